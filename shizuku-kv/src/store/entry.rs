//! Entries and the updates that a watch delivers.

use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;

use super::{FencingToken, Key, VersionToken};

/// What the write behind an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvOperation {
    /// Stored a value.
    Put,
    /// Deleted the key; its history stays.
    Delete,
    /// Deleted the key and its history.
    Purge,
    /// The store itself ended the value's life, because its time to live or the store's maximum age passed.
    Expire,
    /// The key is gone, and nothing tells how: a [replica](crate::replica) found it missing when it took the state anew.
    /// The version of such an entry is that of the value that was held, its time that of the state. No store has such
    /// entries, and no watch delivers them.
    Vanished,
}

impl KvOperation {
    /// Whether the key is absent after it.
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
    /// The value; empty for a tombstone. An empty value of a [`KvOperation::Put`] is a value like any other.
    pub value: Bytes,
    /// The version that this write gave to the key.
    pub version: VersionToken,
    /// What the write did.
    pub operation: KvOperation,
    /// When the store took the write, by the store's clock.
    pub created: SystemTime,
    /// The fencing token that the write was made with (see [`Store::fenced`](crate::Store::fenced)); none for a write
    /// without one. What a [replica](crate::replica) keeps has none either.
    pub fence: Option<FencingToken>,
}

impl KvEntry {
    /// An entry that stores a value; for authors of backends.
    pub fn put(key: Key, value: Bytes, version: VersionToken, created: SystemTime) -> Self {
        Self { key, value, version, operation: KvOperation::Put, created, fence: None }
    }

    /// A tombstone; for authors of backends.
    pub fn tombstone(
        key: Key,
        operation: KvOperation,
        version: VersionToken,
        created: SystemTime,
    ) -> Self {
        Self { key, value: Bytes::new(), version, operation, created, fence: None }
    }

    /// The same with the fencing token of the write behind it; for authors of backends.
    #[must_use]
    pub fn with_fence(self, fence: Option<FencingToken>) -> Self {
        Self { fence, ..self }
    }

    /// Whether the key is absent after this write.
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
            .finish_non_exhaustive()
    }
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvUpdate {
    /// The key has this value now.
    Put(KvEntry),
    /// The key is absent now: deleted, purged or expired, as the entry's operation tells.
    Delete(KvEntry),
    /// Everything that was in the store when the watch began (or was resumed) has been delivered; what follows is
    /// live. Comes once a watch, on an empty scope too. Every key that lives from before the watch to this marker has
    /// arrived before it, so that a replica can drop the keys that have not.
    CaughtUp,
}

impl KvUpdate {
    /// The entry behind the update; none for the caught-up marker.
    pub fn entry(&self) -> Option<&KvEntry> {
        match self {
            Self::Put(entry) | Self::Delete(entry) => Some(entry),
            Self::CaughtUp => None,
        }
    }

    /// The entry, taken out of the update; none for the caught-up marker.
    pub fn into_entry(self) -> Option<KvEntry> {
        match self {
            Self::Put(entry) | Self::Delete(entry) => Some(entry),
            Self::CaughtUp => None,
        }
    }
}

/// A [`KvUpdate::Put`] or a [`KvUpdate::Delete`], as the entry's operation says.
impl From<KvEntry> for KvUpdate {
    fn from(entry: KvEntry) -> Self {
        if entry.is_tombstone() { Self::Delete(entry) } else { Self::Put(entry) }
    }
}
