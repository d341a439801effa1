//! Entries and the updates that a watch delivers.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::{FencingToken, Key, Metadata, VersionToken};

/// The effect of the write behind an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvOperation {
    /// Stored a value.
    Put,
    /// Deleted the key; its history stays.
    Delete,
    /// Deleted the key and its history.
    Purge,
    /// The store itself ended the value, because its time to live or the store's maximum age
    /// passed.
    Expire,
    /// The key is gone, and its end is unknown: a [replica](crate::replica) found it missing in a
    /// resync. The version of such an entry is that of the value that was held, its time that of
    /// the initial state. No store has such entries, and no watch delivers them (ADR 0035).
    Vanished,
}

impl KvOperation {
    /// Returns whether the key is absent after the operation.
    pub fn is_deletion(self) -> bool {
        self != Self::Put
    }
}

/// One write to one key: a value with its version, or a tombstone.
///
/// `Debug` shows the length of the value, never its content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvEntry {
    /// The key.
    pub key: Key,
    /// The value; empty for a tombstone. An empty value of a [`KvOperation::Put`] is a value like
    /// any other.
    pub value: Bytes,
    /// The version that this write gave to the key.
    pub version: VersionToken,
    /// The effect of the write.
    pub operation: KvOperation,
    /// Time at which the store accepted the write, by the store's clock.
    pub created: SystemTime,
    /// The fencing token of the write (see [`Store::fenced`](crate::Store::fenced)). `None` for a
    /// write without one, and in the entries that a [replica](crate::replica) stores.
    pub fence: Option<FencingToken>,
    /// Author and reason of the write. `None` for a write without them, and in the entries that a
    /// [replica](crate::replica) stores.
    pub metadata: Option<Arc<Metadata>>,
}

impl KvEntry {
    /// Creates an entry that stores a value; for authors of backends.
    pub fn put(key: Key, value: Bytes, version: VersionToken, created: SystemTime) -> Self {
        Self {
            key,
            value,
            version,
            operation: KvOperation::Put,
            created,
            fence: None,
            metadata: None,
        }
    }

    /// Creates a tombstone; for authors of backends.
    pub fn tombstone(
        key: Key,
        operation: KvOperation,
        version: VersionToken,
        created: SystemTime,
    ) -> Self {
        Self { operation, ..Self::put(key, Bytes::new(), version, created) }
    }

    /// Sets the fencing token of the write behind the entry; for authors of backends.
    #[must_use]
    pub fn with_fence(self, fence: Option<FencingToken>) -> Self {
        Self { fence, ..self }
    }

    /// Sets the author and the reason of the write behind the entry; for authors of backends.
    #[must_use]
    pub fn with_metadata(self, metadata: Option<Arc<Metadata>>) -> Self {
        Self { metadata, ..self }
    }

    /// Returns whether the key is absent after this write.
    pub fn is_tombstone(&self) -> bool {
        self.operation.is_deletion()
    }
}

impl fmt::Debug for KvEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvEntry")
            .field("key", &self.key)
            .field("value", &format_args!("<{} bytes>", self.value.len()))
            .field("version", &self.version)
            .field("operation", &self.operation)
            .field("fence", &self.fence)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// An update that a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvUpdate {
    /// The key has this value now.
    Put(KvEntry),
    /// The key is absent now: deleted, purged or expired, as the entry's operation shows.
    Delete(KvEntry),
    /// Every entry that was in the store when the watch began, or was resumed, has been delivered.
    /// Live updates follow. The marker comes once per watch, on an empty scope too. Every key that
    /// lives from before the watch to this marker has arrived before it. A replica can therefore
    /// drop the keys that have not.
    CaughtUp,
}

impl KvUpdate {
    /// Returns the entry of the update. Returns `None` for the caught-up marker.
    pub fn entry(&self) -> Option<&KvEntry> {
        match self {
            Self::Put(entry) | Self::Delete(entry) => Some(entry),
            Self::CaughtUp => None,
        }
    }

    /// Converts the update to its entry. Returns `None` for the caught-up marker.
    pub fn into_entry(self) -> Option<KvEntry> {
        match self {
            Self::Put(entry) | Self::Delete(entry) => Some(entry),
            Self::CaughtUp => None,
        }
    }
}

/// Converts to [`KvUpdate::Put`] or [`KvUpdate::Delete`], by the entry's operation.
impl From<KvEntry> for KvUpdate {
    fn from(entry: KvEntry) -> Self {
        if entry.is_tombstone() { Self::Delete(entry) } else { Self::Put(entry) }
    }
}
