//! The deletions that a watch has delivered (ADR 0061).

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::{Duration, SystemTime};

use super::wire::StreamMessage;
use crate::store::{Key, KvOperation};

/// The deletions that a watch has delivered, by key.
///
/// When a tombstone with a time to live expires, the server adds a marker, which is not a change of
/// the key. A marker before that time is delivered: it belongs to a value that was written after
/// the tombstone, and expired before the watch received it. There can be as many deletions as keys,
/// so only the last [`Deleted::LIMIT`] are known. The markers of older deletions are delivered,
/// each as one more deletion. Only hashes are held.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    hasher: RandomState,
    /// Time at which each tombstone expires, by the server's clock; `None` if it has no time to
    /// live.
    ends: HashMap<u64, Option<SystemTime>>,
    order: VecDeque<u64>,
    /// Number of deletions that are no longer known.
    forgotten: u64,
    /// The deleted keys, up to [`Deleted::FEW`] of them.
    keys: BTreeSet<Key>,
}

impl Deleted {
    const LIMIT: usize = 32 * 1024;

    /// Maximum number of deletions whose keys are held.
    const FEW: usize = 64;

    /// Records a message. Returns whether it changes its key for the reader. `life` is the time to
    /// live of tombstones, if they have one.
    pub(super) fn is_news(&mut self, message: &StreamMessage, life: Option<Duration>) -> bool {
        // The usual case: no deletion in scope so far.
        if message.operation == KvOperation::Put && self.ends.is_empty() {
            return true;
        }
        let hash = self.hasher.hash_one(&message.key);
        let known = self.ends.get(&hash);
        let end = match message.operation {
            KvOperation::Put => {
                self.remove(hash, &message.key);
                return true;
            }
            KvOperation::Expire if known.is_some() => {
                return known.is_some_and(|end| end.is_none_or(|end| message.time < end));
            }
            // The server adds no marker when a marker expires.
            KvOperation::Expire => None,
            _ => life.and_then(|life| message.time.checked_add(life)),
        };
        if self.ends.insert(hash, end).is_none() {
            self.order.push_back(hash);
            if self.keys.len() < Self::FEW {
                self.keys.insert(message.key.clone());
            }
        }
        if self.order.len() > Self::LIMIT
            && let Some(oldest) = self.order.pop_front()
            && self.ends.remove(&oldest).is_some()
        {
            self.forgotten += 1;
        }
        true
    }

    fn remove(&mut self, hash: u64, key: &Key) {
        if self.ends.remove(&hash).is_some() {
            self.keys.remove(key);
        }
    }

    /// Forgets a tombstone that another client has cleaned up.
    pub(super) fn forget(&mut self, key: &Key) {
        self.remove(self.hasher.hash_one(key), key);
    }

    /// Returns the maximum number of delivered tombstones that were not superseded since.
    pub(super) fn count(&self) -> u64 {
        self.ends.len() as u64 + self.forgotten
    }

    /// Returns the keys of these tombstones, or `None` if there are too many.
    pub(super) fn keys(&self) -> Option<&BTreeSet<Key>> {
        (self.keys.len() as u64 == self.count()).then_some(&self.keys)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(number: usize, operation: KvOperation, seconds: u64) -> StreamMessage {
        StreamMessage {
            key: Key::new(format!("k.{number}")).expect("a key"),
            sequence: 1,
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            operation,
            operation_id: None,
            fence: None,
            metadata: None,
            expires: false,
            value: Bytes::new(),
        }
    }

    #[test]
    fn tombstones_are_counted_until_they_are_superseded() {
        use KvOperation::{Delete, Expire, Put};
        let mut deleted = Deleted::default();
        for (number, operation) in
            [(0, Put), (1, Delete), (2, Expire), (1, Delete), (3, Delete), (3, Put)]
        {
            assert!(deleted.is_news(&message(number, operation, 0), None));
        }
        let keys = deleted.keys().map(|keys| keys.iter().map(Key::as_str).collect::<Vec<_>>());
        assert_eq!((deleted.count(), keys), (2, Some(vec!["k.1", "k.2"])));
        for number in 100..200 {
            deleted.is_news(&message(number, Delete, 0), None);
        }
        assert!(deleted.count() == 102 && deleted.keys().is_none());
        deleted.forget(&message(1, Put, 0).key);
        assert_eq!(deleted.count(), 101);
    }

    #[test]
    fn marker_of_a_delivered_deletion_is_not_a_change() {
        use KvOperation::{Delete, Expire, Purge, Put};
        const LIFE: Duration = Duration::from_secs(3600);
        let mut deleted = Deleted::default();
        let mut is_news = |number, operation, seconds| {
            deleted.is_news(&message(number, operation, seconds), Some(LIFE))
        };
        assert!(is_news(0, Expire, 0));
        assert!(is_news(0, Delete, 100));
        // The marker of a value that was written in between and has expired.
        assert!(is_news(0, Expire, 3699));
        // The server can leave one more after a restart.
        assert!(!is_news(0, Expire, 3700));
        assert!(!is_news(0, Expire, 3800));
        assert!(is_news(1, Expire, 3800));
        assert!(is_news(0, Put, 3900));
        assert!(is_news(0, Expire, 9000));
        for number in 0..=Deleted::LIMIT {
            assert!(is_news(number, Purge, 9000));
        }
        assert!(is_news(0, Expire, 99_000));
        assert!(!is_news(Deleted::LIMIT, Expire, 99_000));
        assert_eq!(deleted.order.len(), Deleted::LIMIT);
        assert!(deleted.is_news(&message(1, Delete, 9000), None));
    }
}
