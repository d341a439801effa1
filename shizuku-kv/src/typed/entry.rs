//! Decoded entries and updates.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::SystemTime;

use super::error::type_name;
use super::key_value::decode_entry;
use super::read::typed_key;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvEntry, KvOperation, VersionToken};

/// A record with the version that its key has, to be compared when it is written back.
///
/// Dereferences to the record, and has no fields or methods of its own. Its functions are called by
/// their path, like those of `Rc`, so that none can hide a name of the record.
///
#[cfg_attr(feature = "derive", doc = "```")]
#[cfg_attr(not(feature = "derive"), doc = "```text")]
/// use shizuku_kv::{KeyValue, KeyValueRead, Store, TypedEntry};
/// # #[derive(KeyValue)]
/// # struct Motto(#[kv(key)] String, #[kv(value)] String);
///
/// # async fn shout(store: &Store) -> Result<(), Box<dyn std::error::Error>> {
/// if let Some(mut motto) = Motto::atomic_read_from(store, "ours").await? {
///     motto.1.push('!');
///     // Fails if another process wrote meanwhile.
///     motto.write_to_atomically(store, TypedEntry::version(&motto)).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedEntry<T> {
    value: T,
    version: VersionToken,
    created: Option<SystemTime>,
}

impl<T> TypedEntry<T> {
    pub(super) fn new(value: T, version: VersionToken, created: Option<SystemTime>) -> Self {
        Self { value, version, created }
    }

    /// The record that an entry stands for, as a typed read of it would give it: for entries that were kept somewhere, as
    /// in the log of a [replica](crate::replica).
    ///
    /// # Errors
    /// Those of a typed read for what does not decode, belongs under another key, or breaks the rule of its type;
    /// [`KvReadError::Absent`] for a tombstone.
    pub fn decode(entry: &KvEntry) -> Result<Self, KvReadError>
    where
        T: KeyValue<Value: ByteDeserialize>,
    {
        if entry.is_tombstone() {
            return Err(KvReadError::Absent {
                type_name: type_name::<T>(),
                key: entry.key.clone(),
            });
        }
        decode_entry(typed_key::<T>(&entry.key)?, entry)
    }

    /// The version of the record's key.
    pub fn version(this: &Self) -> VersionToken {
        this.version
    }

    /// When the store accepted the write, by the store's clock. `None` if
    /// [`modify`](crate::KeyValueWrite::modify) has just written it, because the store does not
    /// report the time.
    pub fn created(this: &Self) -> Option<SystemTime> {
        this.created
    }

    /// The record, without its version.
    pub fn into_value(this: Self) -> T {
        this.value
    }
}

/// What was read can be changed in place and written back with its version.
impl<T> DerefMut for TypedEntry<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Deref for TypedEntry<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What a typed watch delivers, and what a typed history consists of.
#[non_exhaustive]
pub enum TypedUpdate<T: KeyValue> {
    /// The record is this now.
    Put(TypedEntry<T>),
    /// The record is absent now.
    #[non_exhaustive]
    Delete {
        /// Its key.
        key: T::Key,
        /// The version of the tombstone.
        version: VersionToken,
        /// How it went: deleted, purged or expired.
        operation: KvOperation,
        /// When it went, by the store's clock.
        created: SystemTime,
    },
    /// Everything that was in the store when the watch began (or was resumed) has been delivered; what follows is
    /// live. Comes once a watch, on an empty scope too; never in a history.
    CaughtUp,
}

impl<T: KeyValue> TypedUpdate<T> {
    /// The entry of a [`Put`](Self::Put).
    pub fn into_entry(self) -> Option<TypedEntry<T>> {
        match self {
            Self::Put(entry) => Some(entry),
            _ => None,
        }
    }
}

impl<T: KeyValue + fmt::Debug> fmt::Debug for TypedUpdate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(entry) => f.debug_tuple("Put").field(entry).finish(),
            Self::Delete { key, version, operation, created: _ } => f
                .debug_struct("Delete")
                .field("key", &format_args!("{key}"))
                .field("version", version)
                .field("operation", operation)
                .finish_non_exhaustive(),
            Self::CaughtUp => f.write_str("CaughtUp"),
        }
    }
}
