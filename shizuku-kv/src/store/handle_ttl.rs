//! The part of the handle that gives times to live.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{IntoKey, KvError, KvResult, KvTtl, Store, VersionToken};

/// Rejects a time to live that the store's maximum age would cut short.
///
/// # Errors
/// Returns [`KvError::InvalidConfig`] if it would.
pub(crate) fn check_ttl(ttl: Duration, max_age: Option<Duration>) -> KvResult<()> {
    match max_age {
        Some(age) if ttl > age => Err(KvError::InvalidConfig {
            field: "time to live",
            reason: format!("{ttl:?} is longer than the store's maximum age, {age:?}"),
        }),
        _ => Ok(()),
    }
}

/// Writing values that expire. From [`Store::ttl`].
///
/// A value expires its time to live after it was written, unless it was written again before. Expiry is a deletion: it
/// arrives at watches, and `create` succeeds over it.
#[derive(Clone, Copy)]
pub struct StoreTtl<'a> {
    store: &'a Store,
    ttl: &'a dyn KvTtl,
}

impl<'a> StoreTtl<'a> {
    pub(super) fn new(store: &'a Store, ttl: &'a dyn KvTtl) -> Self {
        Self { store, ttl }
    }

    /// The shortest time to live, and the step in which they are counted: one that is no multiple of it is rounded up.
    pub fn granularity(&self) -> Duration {
        self.ttl.granularity()
    }

    /// As [`Store::put`], with a time to live.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`] if the time to live is below the
    /// [granularity](Self::granularity), or above the store's
    /// [`max_age`](crate::StoreConfig::max_age()); [`KvError::Unsupported`] if the store has lost
    /// its times to live since it was opened; otherwise as for [`Store::put`].
    pub async fn put(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.store.key_and_value(key, value).await?;
        let ttl = self.checked(ttl)?;
        let deadline = self.store.deadline_of("put with a time to live", Some(&key))?;
        let write = self.ttl.put_with_ttl(&key, value, ttl, deadline);
        self.store.finish("put with a time to live", &key, deadline, write).await
    }

    /// As [`Store::create`], with a time to live.
    ///
    /// # Errors
    /// As for [`put`](Self::put), and [`KvError::AlreadyExists`].
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.store.key_and_value(key, value).await?;
        let ttl = self.checked(ttl)?;
        let deadline = self.store.deadline_of("create with a time to live", Some(&key))?;
        let write = self.ttl.create_with_ttl(&key, value, ttl, deadline);
        self.store.finish("create with a time to live", &key, deadline, write).await
    }

    /// As [`Store::update`], with a time to live: how a lease is renewed.
    ///
    /// # Errors
    /// As for [`put`](Self::put), and [`KvError::RevisionMismatch`].
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.store.key_and_value(key, value).await?;
        let ttl = self.checked(ttl)?;
        let deadline = self.store.deadline_of("update with a time to live", Some(&key))?;
        let write = self.ttl.update_with_ttl(&key, value, expected, ttl, deadline);
        self.store.finish("update with a time to live", &key, deadline, write).await
    }

    fn checked(&self, ttl: Duration) -> KvResult<Duration> {
        let step = self.ttl.granularity();
        if ttl < step {
            return Err(KvError::InvalidConfig {
                field: "time to live",
                reason: format!("{ttl:?} is below the shortest that the store keeps, {step:?}"),
            });
        }
        round_up(ttl, step).ok_or_else(|| KvError::InvalidConfig {
            field: "time to live",
            reason: format!("{ttl:?} is longer than the store can count"),
        })
    }
}

impl fmt::Debug for StoreTtl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTtl").field("store", &self.store).finish_non_exhaustive()
    }
}

/// The next multiple of `step` that is not below `span`; none where no `Duration` is.
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
