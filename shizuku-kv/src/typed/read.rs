//! Reading records: with versions, many at a time, their history, and as they change.

use std::future::Future;

use super::entry::{TypedEntry, TypedUpdate};
use super::key::{check_own, check_scope, own_store_key, prints_as, record_key};
use super::key_value::{decode, decode_entry};
use super::{ByteDeserialize, KeyValue, KvReadError, TypedScan, TypedWatch};
use crate::live::{self, Live, LiveMap};
use crate::store::{Key, KvEntry, Store, WatchCursor, WatchScope};

/// Reading, beyond [`KeyValue::read_from`]. Every [`KeyValue`] has this; each method needs a value that decodes.
///
/// Where many records are read, each is decoded by itself: one that does not decode is an error in its place and hides
/// none of the others.
pub trait KeyValueRead: KeyValue {
    /// The record under a key with its version, to be compared when it is written back; `None` where it is absent.
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

    /// The records under many keys in one go, in the order of the keys; `None` for each that is absent. They may be of
    /// different moments. The deadline is that of the whole.
    ///
    /// Each record is a result of its own; `into_iter().collect::<Result<Vec<_>, _>>()` stops at the first bad one.
    ///
    /// # Errors
    /// [`KvReadError::Store`] where the store does not answer. A key that is none, a record that does not decode or
    /// belongs under another key is an error in its place.
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

    /// What the store holds of a record, the oldest first: [`TypedUpdate::Put`] and [`TypedUpdate::Delete`], at most as
    /// many as the store keeps versions.
    ///
    /// # Errors
    /// Returns [`KvReadError::KeyMismatch`] or [`KvReadError::InvalidRecordKey`] if the key is not
    /// one of the type, before any request is sent; [`KvReadError::Store`] if the store does not
    /// answer. A version that does not decode is an error in its place.
    fn history_read_from(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Vec<Result<TypedUpdate<Self>, KvReadError>>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move {
            let entries = store.history(key?)?.try_collect().await?;
            Ok(entries.iter().map(decode_update).collect())
        }
    }

    /// Watches the record under a key: what it is now, then [`TypedUpdate::CaughtUp`], then every change.
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
        async move { Ok(TypedWatch::new(store.shared_watch(WatchScope::Key(key?)).await?)) }
    }

    /// Watches all records of this type, as far as [`KeyValue::kv_scope`] selects them. Every key in that scope has to
    /// be of this type, as for [`list`](Self::list): one that is none of it is an error item
    /// ([`KvReadError::InvalidRecordKey`]), after which the watch goes on.
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
        async move { Ok(TypedWatch::new(store.shared_watch(scope?).await?)) }
    }

    /// Watches the records in a scope. Everything in the scope has to be of this type: a key that is none of it is an
    /// error item.
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
            Ok(TypedWatch::new(store.shared_watch(scope).await?))
        }
    }

    /// Watches the records in a scope from a [cursor](TypedWatch::cursor) on: what came after it, then
    /// [`TypedUpdate::CaughtUp`], then every change.
    ///
    /// # Errors
    /// [`KvError::CursorExpired`](crate::KvError::CursorExpired) where something that followed the cursor may be
    /// missing from the store; else as for [`watch`](Self::watch).
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

    /// All records of this type, as far as [`KeyValue::kv_scope`] selects them; see [`Store::scan`].
    ///
    /// Every key in that scope has to be of this type, and for a derived template that is every key that starts with
    /// what stands before its first placeholder (`UserKey::PREFIX`). One that is none of it is an error item, after
    /// which the stream goes on. So do not keep records at `user.{id}` and others at `user.{id}.settings` in the same
    /// store; or go on past [`KvReadError::InvalidRecordKey`], which [`TypedScan::try_collect`] does not.
    fn list(store: &Store) -> TypedScan<Self>
    where
        Self::Value: ByteDeserialize,
    {
        TypedScan::new(Self::kv_scope().map(|scope| store.scan(scope)).map_err(KvReadError::from))
    }

    /// The records in a scope; see [`Store::scan`]. Everything in the scope has to be of this type:
    /// a key of another type is an error item. If the scope names such a key, that is the only
    /// item, and no request is sent.
    fn list_scope(store: &Store, scope: impl Into<WatchScope>) -> TypedScan<Self>
    where
        Self::Value: ByteDeserialize,
    {
        let scope = scope.into();
        TypedScan::new(check_scope::<Self>(&scope).map(|()| store.scan(scope)))
    }

    /// The record under a key as a value that stays current. Waits for the first good one, for as long as the store's
    /// deadline.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// Returns [`KvReadError::Absent`] if the deadline has passed, or the reason if the stored
    /// record was rejected ([`KvReadError::Decode`], [`KvReadError::Invalid`],
    /// [`KvReadError::KeyMismatch`]). Returns the errors of [`watch`](Self::watch) immediately.
    fn live_at(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Live<Self>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move { live::live(store.clone(), key?).await }
    }

    /// As [`live_at`](Self::live_at), beginning with `default` where the store has no good value now, or cannot be
    /// reached within its deadline. The default stays in force until there is a good one. The store itself has to be open
    /// already: that, and the connection before it, need the backend to be there.
    ///
    /// # Errors
    /// Returns an error if no value will ever come: [`KvReadError::KeyMismatch`] or
    /// [`KvReadError::InvalidRecordKey`] if the key is not one of the type; [`KvReadError::Store`]
    /// if it is not a key at all, if the store cannot be watched, or if the connection is closed.
    fn live_at_or(
        store: &Store,
        key: impl Into<Self::Key>,
        default: Self,
    ) -> impl Future<Output = Result<Live<Self>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move { live::live_or(store.clone(), key?, default).await }
    }

    /// As [`live_at`](Self::live_at), for a record that may be absent: then the value is `None`, which is waited for no
    /// longer. It becomes `None` again when the record is deleted.
    ///
    /// # Errors
    /// Returns the reason if the stored record was rejected ([`KvReadError::Decode`],
    /// [`KvReadError::Invalid`], [`KvReadError::KeyMismatch`]); otherwise as for
    /// [`watch`](Self::watch).
    fn live_at_optional(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Live<Option<Self>>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move { live::live_optional(store.clone(), key?).await }
    }

    /// All records of this type as a map that stays current, as far as [`KeyValue::kv_scope`] selects them. Waits until
    /// all that is there has arrived, for as long as the store's deadline; for very many records give the store
    /// [more time](Store::with_deadline).
    ///
    /// Every key in that scope has to be of this type, as for [`list`](Self::list). One that is none, and a record that
    /// is refused, are no reason to fail: they are in [`LiveMap::rejections`].
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`KvReadError::Store`]: [`KvError::Timeout`](crate::KvError::Timeout) when the deadline has passed, else the
    /// errors of [`Store::watch`].
    fn live_map(
        store: &Store,
    ) -> impl Future<Output = Result<LiveMap<Self::Key, Self>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Key: Ord + Clone + 'static,
        Self::Value: ByteDeserialize,
    {
        let scope = Self::kv_scope();
        async move { live::live_map(store.clone(), scope?).await }
    }

    /// As [`live_map`](Self::live_map), with the records in a scope. Everything in the scope has to be of this type.
    ///
    /// # Errors
    /// As for [`live_map`](Self::live_map), and as for [`watch`](Self::watch) if the scope names a
    /// key.
    fn live_map_scope(
        store: &Store,
        scope: impl Into<WatchScope>,
    ) -> impl Future<Output = Result<LiveMap<Self::Key, Self>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Key: Ord + Clone + 'static,
        Self::Value: ByteDeserialize,
    {
        let scope = scope.into();
        async move {
            check_scope::<Self>(&scope)?;
            live::live_map(store.clone(), scope).await
        }
    }
}

impl<T: KeyValue> KeyValueRead for T {}

/// What an entry says of a record.
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

/// The record that an entry with a value stands for.
pub(crate) fn read_record<T>(entry: &KvEntry) -> Result<T, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    decode(typed_key::<T>(&entry.key)?, entry)
}

/// The record's key that a key in the store is printed from; none where another one is, as `7` is for `007`.
pub(crate) fn canonical_key<T: KeyValue>(key: &Key) -> Option<T::Key> {
    typed_key::<T>(key).ok().filter(|typed| prints_as(typed, key))
}

/// The record's key of a key in the store.
pub(super) fn typed_key<T: KeyValue>(key: &Key) -> Result<T::Key, KvReadError> {
    record_key::<T, T::Key>(key)
}
