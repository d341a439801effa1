//! Number of bytes that a consumer requests at a time.
//!
//! A server ends a connection on which more than its `max_pending` wait to be written. It does not
//! announce that limit, and gives no reason. So a connection that breaks while a request is being
//! filled halves the size of later requests, and each minute without such a break doubles it again
//! (ADR 0081).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes requested at a time.
const FULL: usize = 8 * 1024 * 1024;

/// Minimum number of bytes to request at a time. Larger messages are requested one by one.
const LEAST: usize = 64 * 1024;

/// Time without a break after which a reduced size doubles.
const DOUBLED_AFTER: Duration = Duration::from_secs(60);

/// The size of requests on one connection, which all consumers share.
#[derive(Debug, Default)]
pub(super) struct PullSize(Mutex<Option<Reduced>>);

#[derive(Clone, Copy, Debug)]
struct Reduced {
    bytes: usize,
    /// The epoch of the connection that broke.
    epoch: u64,
    at: Instant,
}

impl Reduced {
    /// Returns the size after some time, or `None` if it is full again.
    fn after(self, elapsed: Duration) -> Option<usize> {
        let doublings = elapsed.as_secs() / DOUBLED_AFTER.as_secs();
        let factor = 1_usize.checked_shl(u32::try_from(doublings).unwrap_or(u32::MAX))?;
        self.bytes.checked_mul(factor).filter(|bytes| *bytes < FULL)
    }
}

impl PullSize {
    /// Returns the bytes to request at a time. Unless the size is reduced, a request has room for
    /// one message of at most `max_payload` bytes.
    pub(super) fn bytes(&self, max_payload: usize) -> usize {
        let reduced = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reduced = reduced.and_then(|reduced| reduced.after(reduced.at.elapsed()));
        reduced.unwrap_or_else(|| FULL.max(max_payload + LEAST))
    }

    /// Halves the size after a request of `bytes` was interrupted. Several consumers of the same
    /// connection count once.
    pub(super) fn reduce(&self, epoch: u64, bytes: usize) {
        let mut reduced = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reduced.is_none_or(|reduced| reduced.epoch != epoch) {
            let bytes = (bytes / 2).max(LEAST);
            *reduced = Some(Reduced { bytes, epoch, at: Instant::now() });
            drop(reduced);
            tracing::debug!(bytes, "halved the size of requests for messages");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_halved_once_for_each_connection() {
        let size = PullSize::default();
        assert_eq!(size.bytes(1024), FULL);
        size.reduce(1, FULL);
        size.reduce(1, FULL);
        assert_eq!(size.bytes(1024), FULL / 2);
        size.reduce(2, FULL / 2);
        assert_eq!(size.bytes(1024), FULL / 4);
        size.reduce(3, LEAST);
        assert_eq!(size.bytes(1024), LEAST);
    }

    #[test]
    fn full_size_has_room_for_one_message() {
        assert_eq!(PullSize::default().bytes(2 * FULL), 2 * FULL + LEAST);
    }

    #[test]
    fn reduced_size_doubles_each_minute() {
        let reduced = Reduced { bytes: FULL / 4, epoch: 0, at: Instant::now() };
        let after = |seconds| reduced.after(Duration::from_secs(seconds));
        assert_eq!([0, 59].map(after), [Some(FULL / 4); 2]);
        assert_eq!(after(60), Some(FULL / 2));
        assert_eq!([120, 1 << 20, u64::MAX].map(after), [None; 3]);
    }
}
