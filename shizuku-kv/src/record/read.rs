//! Reads records: with versions, many at a time, their history, and as they change (ADR 0021, ADR
//! 0028).

use std::future::Future;

use super::entry::{TypedEntry, TypedUpdate};
use super::key::{check_own, check_scope, own_store_key, prints_as, record_key};
use super::key_value::{decode, decode_entry, decode_unchecked};
use super::{ByteDeserialize, KeyValue, KvReadError, TypedScan, TypedWatch};
use crate::store::{Key, KvEntry, Store, WatchCursor, WatchScope};
use crate::watch::{Start, shared_watch};

type History<T> = Vec<Result<TypedUpdate<T>, KvReadError>>;

/// Reading, beyond [`KeyValue::read_from`]. Every [`KeyValue`] has this; each method needs a value
/// that decodes.
///
/// Methods that read many records decode each of them separately. A record that does not decode is
/// an error in its place and hides none of the others.
pub trait KeyValueRead: KeyValue {
    /// Returns the record under a key with its version, which a write back compares. Returns `None`
    /// if it is absent.
    ///
    /// # Errors
    /// As for [`KeyValue::read_from`].
    fn atomic_read_from(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Option<TypedEntry<Self>>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let key = key.into();
        async move {
            let Some(entry) = store.get(own_store_key::<Self>(&key)?).await? else {
                return Ok(None);
            };
            decode_entry(key, &entry).map(Some)
        }
    }

    /// Returns the records under many keys, in the order of the keys, with `None` for each that is
    /// absent. They may be from different moments. The deadline applies to each batch of up to
    /// 1,024 keys.
    ///
    /// Each record is a result of its own; `into_iter().collect::<Result<Vec<_>, _>>()` stops at
    /// the first error.
    ///
    /// # Errors
    /// Returns [`KvReadError::Store`] if the store does not answer. An invalid key, and a record
    /// that does not decode or belongs under another key, is an error in its place.
    fn read_many<K: Into<Self::Key>>(
        store: &Store,
        keys: impl IntoIterator<Item = K>,
    ) -> impl Future<Output = Result<Vec<Result<Option<Self>, KvReadError>>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let keys = keys
            .into_iter()
            .map(|key| {
                let key = key.into();
                own_store_key::<Self>(&key).map(|name| (key, name))
            })
            .collect::<Vec<_>>();
        async move {
            let names = keys.iter().flatten().map(|(_, name)| name.clone()).collect::<Vec<_>>();
            let mut entries = store.get_many(names).await?.into_iter();
            let answers = keys.into_iter().map(|key| {
                let (key, _) = key?;
                entries.next().flatten().map(|entry| decode(key, &entry)).transpose()
            });
            Ok(answers.collect())
        }
    }

    /// Returns the stored history of a record, the oldest first: [`TypedUpdate::Put`] and
    /// [`TypedUpdate::Delete`], at most as many as the store keeps versions.
    ///
    /// # Errors
    /// Returns [`KvReadError::KeyMismatch`] or [`KvReadError::InvalidRecordKey`] if the key is not
    /// one of the type, before any request is sent; [`KvReadError::Store`] if the store does not
    /// answer. A version that does not decode is an error in its place.
    fn history_read_from(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<History<Self>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move {
            let entries = store.history(key?)?.try_collect().await?;
            Ok(entries.iter().map(decode_update).collect())
        }
    }

    /// Watches the record under a key. Delivers its current state, then [`TypedUpdate::CaughtUp`],
    /// then every change.
    ///
    /// # Errors
    /// Returns [`KvReadError::KeyMismatch`] or [`KvReadError::InvalidRecordKey`] if the key is not
    /// one of the type, before any request is sent; [`KvReadError::Store`] for the errors of
    /// [`Store::watch`].
    fn watch(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<TypedWatch<Self>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move {
            Ok(TypedWatch::new(shared_watch(store, WatchScope::Key(key?), Start::Watch).await?))
        }
    }

    /// Watches all records of this type, as far as [`KeyValue::kv_scope`] selects them. Every key
    /// in that scope has to be of this type, as for [`list`](Self::list). A key of another type is
    /// an error item ([`KvReadError::InvalidRecordKey`]), after which the watch continues.
    ///
    /// # Errors
    /// As for [`watch`](Self::watch).
    fn watch_all(
        store: &Store,
    ) -> impl Future<Output = Result<TypedWatch<Self>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let scope = Self::kv_scope();
        async move { Ok(TypedWatch::new(shared_watch(store, scope?, Start::Watch).await?)) }
    }

    /// Watches the records in a scope. Every key in the scope has to be of this type. A key of
    /// another type is an error item.
    ///
    /// # Errors
    /// As for [`watch`](Self::watch), also if a scope names a key.
    fn watch_scope(
        store: &Store,
        scope: impl Into<WatchScope>,
    ) -> impl Future<Output = Result<TypedWatch<Self>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let scope = scope.into();
        async move {
            check_scope::<Self>(&scope)?;
            Ok(TypedWatch::new(shared_watch(store, scope, Start::Watch).await?))
        }
    }

    /// Watches the records in a scope from a [cursor](TypedWatch::cursor). Delivers the updates
    /// after it, then [`TypedUpdate::CaughtUp`], then every change.
    ///
    /// # Errors
    /// Returns [`KvError::CursorExpired`](crate::KvError::CursorExpired) if updates after the
    /// cursor may be missing from the store; otherwise as for [`watch`](Self::watch).
    fn watch_scope_from(
        store: &Store,
        scope: impl Into<WatchScope>,
        cursor: WatchCursor,
    ) -> impl Future<Output = Result<TypedWatch<Self>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let scope = scope.into();
        async move {
            check_scope::<Self>(&scope)?;
            Ok(TypedWatch::new(store.watch_from(scope, cursor).await?))
        }
    }

    /// Lists all records of this type, as far as [`KeyValue::kv_scope`] selects them; see
    /// [`Store::scan`].
    ///
    /// Every key in that scope has to be of this type. For a derived template these are all keys
    /// that start with the text before its first placeholder (`UserKey::PREFIX`). A key of another
    /// type is an error item, after which the stream continues. So do not keep records at
    /// `user.{id}` and others at `user.{id}.settings` in the same store; or skip
    /// [`KvReadError::InvalidRecordKey`], which [`TypedScan::try_collect`] does not.
    fn list(store: &Store) -> TypedScan<Self>
    where
        Self::Value: ByteDeserialize,
    {
        TypedScan::new(Self::kv_scope().map(|scope| store.scan(scope)).map_err(KvReadError::from))
    }

    /// Lists the records in a scope; see [`Store::scan`]. Every key in the scope has to be of this
    /// type. A key of another type is an error item. If the scope names such a key, that is the
    /// only item, and no request is sent.
    fn list_scope(store: &Store, scope: impl Into<WatchScope>) -> TypedScan<Self>
    where
        Self::Value: ByteDeserialize,
    {
        let scope = scope.into();
        TypedScan::new(check_scope::<Self>(&scope).map(|()| store.scan(scope)))
    }
}

impl<T: KeyValue> KeyValueRead for T {}

/// Decodes an entry into an update of its record.
pub(crate) fn decode_update<T>(entry: &KvEntry) -> Result<TypedUpdate<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let key: T::Key = typed_key::<T>(&entry.key)?;
    Ok(if entry.is_tombstone() {
        // A tombstone has no value that could contain its key.
        check_own::<T>(&entry.key)?;
        TypedUpdate::Delete {
            key,
            version: entry.version,
            operation: entry.operation,
            created: entry.created,
        }
    } else {
        TypedUpdate::Put(decode_entry(key, entry)?)
    })
}

/// Decodes the record of an entry with a value, without the checks of
/// [`check_record`](super::check_record).
pub(crate) fn decode_record<T>(entry: &KvEntry) -> Result<T, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    decode_unchecked(typed_key::<T>(&entry.key)?, entry)
}

/// Returns the record's key from which a key in the store is printed. Returns `None` if another key
/// is printed from it, as `7` is for `007`.
pub(crate) fn canonical_key<T: KeyValue>(key: &Key) -> Option<T::Key> {
    typed_key::<T>(key).ok().filter(|typed| prints_as(typed, key))
}

/// Returns the record's key for a key in the store.
pub(super) fn typed_key<T: KeyValue>(key: &Key) -> Result<T::Key, KvReadError> {
    record_key::<T, T::Key>(key)
}
