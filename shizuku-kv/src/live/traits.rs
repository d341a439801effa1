//! Methods of record types that open values which stay current.

use super::map::live_map;
use super::{Live, LiveMap, open};
use crate::record::{
    ByteDeserialize, KeyValueRead, KvReadError, StaticKeyIndexedValue, check_scope, own_store_key,
};
use crate::store::{Store, WatchScope};

/// Values and maps that stay current, of every [`KeyValue`](crate::KeyValue) type.
pub trait LiveRead: KeyValueRead {
    /// Returns the record under a key as a value that stays current. Waits for the first good
    /// value, up to the store's deadline.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// Returns [`KvReadError::Absent`] if the deadline has passed, or the reason if the stored
    /// record was rejected ([`KvReadError::Decode`], [`KvReadError::Invalid`],
    /// [`KvReadError::KeyMismatch`]). Returns the errors of [`KeyValueRead::watch`] immediately.
    fn live_at(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Live<Self>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move { open::live(store.clone(), key?).await }
    }

    /// As [`live_at`](Self::live_at), but begins with `default` if the store has no good value now,
    /// or cannot be reached within its deadline. The default remains current until the store has a
    /// good value. The store itself has to be open already, because opening it, and the connection
    /// before it, needs the backend.
    ///
    /// # Errors
    /// Returns an error if no value will ever come. Returns [`KvReadError::KeyMismatch`] or
    /// [`KvReadError::InvalidRecordKey`] if the key is not one of the type. Returns
    /// [`KvReadError::Store`] if it is not a key at all, if the store cannot be watched, or if the
    /// connection is closed.
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
        async move { open::live_or(store.clone(), key?, default).await }
    }

    /// As [`live_at`](Self::live_at), for a record that may be absent. The value is `None` while
    /// the record is absent, so that this does not wait for one. It becomes `None` again when the
    /// record is deleted.
    ///
    /// # Errors
    /// Returns the reason if the stored record was rejected ([`KvReadError::Decode`],
    /// [`KvReadError::Invalid`], [`KvReadError::KeyMismatch`]); otherwise as for
    /// [`KeyValueRead::watch`].
    fn live_at_optional(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Live<Option<Self>>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Value: ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into());
        async move { open::live_optional(store.clone(), key?).await }
    }

    /// Returns all records of this type as a map that stays current, as far as
    /// [`KeyValue::kv_scope`](crate::KeyValue::kv_scope) selects them. Waits for the complete
    /// initial state. The store's deadline limits the time in which no further key arrives, so it
    /// need not grow with the number of records.
    ///
    /// Every key in that scope has to be of this type, as for [`KeyValueRead::list`]. A key of
    /// another type and a rejected record are not errors of this call, but appear in
    /// [`LiveMap::rejections`].
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// Returns [`KvReadError::Store`]: [`KvError::Timeout`](crate::KvError::Timeout) if no further
    /// key arrived within the deadline, otherwise the errors of [`Store::watch`].
    fn live_map(
        store: &Store,
    ) -> impl Future<Output = Result<LiveMap<Self::Key, Self>, KvReadError>> + Send
    where
        Self: Send + Sync + 'static,
        Self::Key: Ord + Clone + 'static,
        Self::Value: ByteDeserialize,
    {
        let scope = Self::kv_scope();
        async move { live_map(store.clone(), scope?).await }
    }

    /// As [`live_map`](Self::live_map), with the records in a scope. Every key in the scope has to
    /// be of this type.
    ///
    /// # Errors
    /// As for [`live_map`](Self::live_map), and as for [`KeyValueRead::watch`] if the scope names a
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
            live_map(store.clone(), scope).await
        }
    }
}

impl<T: KeyValueRead> LiveRead for T {}

/// Values that stay current, of every type with a fixed key.
pub trait LiveStatic: StaticKeyIndexedValue {
    /// As [`LiveRead::live_at`] with the type's key: returns a value that stays current.
    ///
    /// # Errors
    /// As for [`LiveRead::live_at`].
    fn live(store: &Store) -> impl Future<Output = Result<Live<Self>, KvReadError>> + Send
    where
        Self: ByteDeserialize + Send + Sync + 'static,
    {
        <Self as LiveRead>::live_at(store, Self::key())
    }

    /// As [`LiveRead::live_at_or`] with the type's key: returns a value that begins with a
    /// default.
    ///
    /// # Errors
    /// As for [`LiveRead::live_at_or`].
    fn live_or(
        store: &Store,
        default: Self,
    ) -> impl Future<Output = Result<Live<Self>, KvReadError>> + Send
    where
        Self: ByteDeserialize + Send + Sync + 'static,
    {
        <Self as LiveRead>::live_at_or(store, Self::key(), default)
    }

    /// As [`live_or`](Self::live_or) with the type's own default.
    ///
    /// # Errors
    /// As for [`LiveRead::live_at_or`].
    fn live_or_default(
        store: &Store,
    ) -> impl Future<Output = Result<Live<Self>, KvReadError>> + Send
    where
        Self: ByteDeserialize + Default + Send + Sync + 'static,
    {
        Self::live_or(store, Self::default())
    }

    /// As [`LiveRead::live_at_optional`] with the type's key: the value is `None` while it is
    /// absent.
    ///
    /// # Errors
    /// As for [`LiveRead::live_at_optional`].
    fn live_optional(
        store: &Store,
    ) -> impl Future<Output = Result<Live<Option<Self>>, KvReadError>> + Send
    where
        Self: ByteDeserialize + Send + Sync + 'static,
    {
        <Self as LiveRead>::live_at_optional(store, Self::key())
    }
}

impl<T: StaticKeyIndexedValue> LiveStatic for T {}
