//! The settings that determine which entries a log stores, and for how long.

use std::time::Duration;

use crate::store::{FencingToken, Key, StoreConfig};

/// Maximum lifetime of a tombstone in a store that has a maximum age or times to live. A shorter
/// maximum age limits it further. Such a store is expected to receive new keys all the time, whose
/// tombstones would otherwise accumulate. Every other store keeps tombstones forever.
pub(in crate::backend) const MARKER_TTL: Duration = Duration::from_secs(60 * 60);

/// The settings of a store that determine which entries its log stores.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) struct Limits {
    /// Maximum number of entries of a key.
    pub(in crate::backend) history: usize,
    /// Maximum number of bytes of keys and values.
    pub(in crate::backend) max_bytes: Option<u64>,
    /// Maximum lifetime of a value.
    pub(in crate::backend) max_age: Option<Duration>,
    /// Whether tombstones are forgotten, after [`MARKER_TTL`] or a shorter maximum age.
    pub(in crate::backend) forgets: bool,
}

impl Limits {
    /// Returns the limits of a configuration in which every field is filled in.
    pub(in crate::backend) fn of(config: &StoreConfig) -> Self {
        Self {
            history: usize::from(config.history.unwrap_or(1).max(1)),
            max_bytes: config.max_bytes.flatten(),
            max_age: config.max_age.flatten(),
            forgets: config.max_age.flatten().is_some() || config.key_ttl == Some(true),
        }
    }

    /// Returns the lifetime of a value that was written with `ttl`.
    pub(in crate::backend) fn life(&self, ttl: Option<Duration>) -> Option<Duration> {
        [ttl, self.max_age].into_iter().flatten().min()
    }

    /// Returns the lifetime of a tombstone. A tombstone with a token, or of a lock, must never
    /// expire. A store whose values age has neither fenced writes nor locks, so an earlier such
    /// tombstone expires like every other.
    pub(in crate::backend) fn marker_ttl(
        &self,
        key: &Key,
        fence: Option<FencingToken>,
    ) -> Option<Duration> {
        let forgets = self.forgets && !self.never_forgets(key, fence);
        forgets.then(|| self.max_age.map_or(MARKER_TTL, |age| age.min(MARKER_TTL)))
    }

    /// Returns whether a tombstone must never expire.
    pub(in crate::backend) fn never_forgets(&self, key: &Key, fence: Option<FencingToken>) -> bool {
        self.max_age.is_none() && (fence.is_some() || key.is_of_locks())
    }

    /// Returns whether a purge writes the tombstone of a deletion, as on NATS. If tombstones expire
    /// and the history is 1, both have the same effect.
    pub(in crate::backend) fn purges_by_deleting(&self) -> bool {
        self.forgets && self.history == 1
    }
}
