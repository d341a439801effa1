//! The part of the handle that gives times to live.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{IntoKey, KvError, KvResult, KvTtl, Store, VersionToken, Write};

impl Store {
    /// Returns the handle for times to live of single keys. Returns `None` if the store does not
    /// support them (see [`StoreConfig::key_ttl`](crate::StoreConfig::key_ttl)).
    pub fn ttl(&self) -> Option<StoreTtl<'_>> {
        self.backend().ttl().map(|ttl| StoreTtl { store: self, ttl })
    }
}

/// Writing values that expire, from [`Store::ttl`].
///
/// A value expires when its time to live has passed since its write, unless it was written again
/// before. Expiry is a deletion: it arrives at watches, and `create` succeeds over it.
#[derive(Clone, Copy)]
pub struct StoreTtl<'a> {
    store: &'a Store,
    ttl: &'a dyn KvTtl,
}

impl StoreTtl<'_> {
    /// Returns the shortest time to live, which is also the step of longer ones. A time to live
    /// that is not a multiple of it is rounded up.
    pub fn granularity(&self) -> Duration {
        self.ttl.granularity()
    }

    /// Stores a value like [`Store::put`], with a time to live.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`] if the time to live is below the
    /// [granularity](Self::granularity), or above the store's
    /// [`max_age`](crate::StoreConfig::max_age()). Returns [`KvError::Unsupported`] if the store
    /// has lost its times to live since it was opened. Otherwise as for [`Store::put`].
    pub async fn put(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        self.write(key, Write::put(value), ttl).await
    }

    /// Stores a value like [`Store::create`], with a time to live.
    ///
    /// # Errors
    /// As for [`put`](Self::put). Returns [`KvError::AlreadyExists`] if the key has a live value.
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        self.write(key, Write::create(value), ttl).await
    }

    /// Stores a value like [`Store::update`], with a time to live, for example to renew a lease.
    ///
    /// # Errors
    /// As for [`put`](Self::put). Returns [`KvError::RevisionMismatch`] if the key has another
    /// version.
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        self.write(key, Write::update(value, expected), ttl).await
    }

    /// Stores many values like [`Store::put_many`], with one time to live for all of them.
    ///
    /// Each answer has the errors of [`put`](Self::put).
    pub async fn put_many<K: IntoKey, V: Into<Bytes>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
        ttl: Duration,
    ) -> Vec<KvResult<VersionToken>> {
        let item = |(key, value): (K, V)| {
            Ok((key.into_key()?, Write::put(value).with_ttl(self.checked(ttl)?)))
        };
        self.store.write_many("put_many_with_ttl", items.into_iter().map(item).collect()).await
    }

    async fn write(
        &self,
        key: impl IntoKey,
        write: Write,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, ttl) = (key.into_key()?, self.checked(ttl)?);
        self.store.write(key, write.with_ttl(ttl)).await
    }

    fn checked(&self, ttl: Duration) -> KvResult<Duration> {
        let step = self.ttl.granularity();
        if ttl < step {
            return Err(KvError::InvalidConfig {
                field: "time to live",
                reason: format!(
                    "{ttl:?} is below the shortest that the store keeps, {step:?}; use that or longer"
                ),
            });
        }
        round_up(ttl, step).ok_or_else(|| KvError::InvalidConfig {
            field: "time to live",
            reason: format!(
                "{ttl:?} is longer than the store can represent; write without a time to live"
            ),
        })
    }
}

impl fmt::Debug for StoreTtl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTtl").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Returns the next multiple of `step` that is not below `span`. Returns `None` if no `Duration`
/// can represent it.
fn round_up(span: Duration, step: Duration) -> Option<Duration> {
    const SECOND: u128 = 1_000_000_000;
    let nanos = span.as_nanos().checked_next_multiple_of(step.as_nanos().max(1))?;
    let seconds = u64::try_from(nanos / SECOND).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanos % SECOND).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_rounded_up_to_whole_steps() {
        let (second, milli) = (Duration::from_secs(1), Duration::from_millis(1));
        assert_eq!(round_up(second, second), Some(second));
        assert_eq!(round_up(second + Duration::from_nanos(1), second), Some(2 * second));
        assert_eq!(round_up(5 * second, 3 * second), Some(6 * second));
        // More steps than a u32 counts, and no step at all.
        let year = Duration::from_secs(365 * 86_400);
        assert_eq!(round_up(year, milli), Some(year));
        assert_eq!(round_up(year + Duration::from_nanos(1), milli), Some(year + milli));
        assert_eq!(round_up(second, Duration::ZERO), Some(second));
        assert_eq!(round_up(Duration::MAX, Duration::from_nanos(1)), Some(Duration::MAX));
        assert_eq!(round_up(Duration::MAX, second), None);
    }
}
