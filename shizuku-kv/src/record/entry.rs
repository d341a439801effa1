//! Decoded entries and updates.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::SystemTime;

use super::error::type_name;
use super::key_value::decode_entry;
use super::read::typed_key;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvEntry, KvOperation, VersionToken};

/// A record with the version of its key, which a write back compares.
///
/// Dereferences to the record, and has no fields or methods of its own. Its functions are called by
/// their path, like those of `Rc`, so that none can hide a name of the record.
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
#[derive(Clone, PartialEq, Eq)]
pub struct TypedEntry<T> {
    value: T,
    version: VersionToken,
    created: Option<SystemTime>,
}

impl<T> TypedEntry<T> {
    pub(super) fn new(value: T, version: VersionToken, created: Option<SystemTime>) -> Self {
        Self { value, version, created }
    }

    /// Decodes the record of an entry, as a typed read would. For entries that the caller has
    /// stored, such as those in the log of a [replica](crate::replica).
    ///
    /// # Errors
    /// Returns the errors of a typed read if the entry does not decode, belongs under another key,
    /// or breaks the rule of its type. Returns [`KvReadError::Absent`] for a tombstone.
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

    /// Returns the version of the record's key.
    pub fn version(this: &Self) -> VersionToken {
        this.version
    }

    /// Returns the time at which the store accepted the write, by the store's clock. Returns `None`
    /// if [`modify`](crate::KeyValueWrite::modify) has just written it, because the store does not
    /// report the time.
    pub fn created(this: &Self) -> Option<SystemTime> {
        this.created
    }

    /// Returns the record, without its version.
    pub fn into_value(this: Self) -> T {
        this.value
    }
}

/// Lets the caller change a record in place and write it back with its version.
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

/// Shows the version, not the record.
impl<T> fmt::Debug for TypedEntry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedEntry")
            .field("type", &type_name::<T>())
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// An update of a typed watch, or an item of a typed history.
#[non_exhaustive]
pub enum TypedUpdate<T: KeyValue> {
    /// The current record.
    Put(TypedEntry<T>),
    /// The record is absent now.
    #[non_exhaustive]
    Delete {
        /// The key.
        key: T::Key,
        /// The version of the tombstone.
        version: VersionToken,
        /// The way in which the record ended: deleted, purged or expired.
        operation: KvOperation,
        /// Time at which the record ended, by the store's clock.
        created: SystemTime,
    },
    /// All records that the store had when the watch began (or was resumed) have been delivered;
    /// later updates are live. Delivered once per watch, on an empty scope too; never in a history.
    CaughtUp,
}

impl<T: KeyValue> TypedUpdate<T> {
    /// Returns the entry of a [`Put`](Self::Put).
    pub fn into_entry(self) -> Option<TypedEntry<T>> {
        match self {
            Self::Put(entry) => Some(entry),
            _ => None,
        }
    }
}

impl<T: KeyValue<Key: Clone> + Clone> Clone for TypedUpdate<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Put(entry) => Self::Put(entry.clone()),
            Self::Delete { key, version, operation, created } => Self::Delete {
                key: key.clone(),
                version: *version,
                operation: *operation,
                created: *created,
            },
            Self::CaughtUp => Self::CaughtUp,
        }
    }
}

impl<T: KeyValue<Key: PartialEq> + PartialEq> PartialEq for TypedUpdate<T> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Put(one), Self::Put(other)) => one == other,
            (
                Self::Delete { key, version, operation, created },
                Self::Delete { key: other, version: v, operation: o, created: c },
            ) => (key, version, operation, created) == (other, v, o, c),
            (Self::CaughtUp, Self::CaughtUp) => true,
            _ => false,
        }
    }
}

/// Shows the key and the version, not the record.
impl<T: KeyValue> fmt::Debug for TypedUpdate<T> {
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
