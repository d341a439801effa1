//! Records: their stored values, and their keys (ADR 0030).

use std::future::Future;
use std::time::Duration;

use super::entry::TypedEntry;
use super::error::type_name;
use super::key::{own_key, own_store_key, prints_as};
use super::modify::ModifyOutcome;
use super::put;
use super::round_trip;
use super::{
    ByteDeserialize, ByteSerialize, KeyValueRead, KeyValueWrite, KvReadError, KvWriteError,
    RecordKey, TypedWatch, ValidationError,
};
use crate::store::{FencingToken, Key, KvEntry, KvError, Store, VersionToken, WatchScope};

/// A record: a value that knows its key.
///
/// `#[derive(KeyValue)]` implements this. A record has one of three shapes:
///
/// - A type with one fixed key implements [`StaticKeyIndexedValue`] instead, which implements this
///   trait too.
/// - A record whose key consists of its fields is stored as a whole: its [`Value`](Self::Value) is
///   `Self`.
/// - A pair of a key and a value stores only the value: its [`Value`](Self::Value) is that of the
///   value's field.
///
/// Reading needs [`ByteDeserialize`] of the value and writing [`ByteSerialize`]; a type may have
/// only one of the two. [`KeyValueRead`] and [`KeyValueWrite`] are implemented automatically and
/// add the other operations.
///
/// Every operation has the deadline of its store. Dropping the future of a read is safe. A write
/// whose future is dropped may take effect or not, and leaves nothing else behind. Values are
/// encoded when a method is called. Keys are checked before any request is sent.
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
/// #[kv(key = "user.{tenant}.{id}")]
/// struct User {
///     tenant: String,
///     id: u64,
///     name: String,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = shizuku_kv::connect("memory:").await?.store("users").await?;
/// let ann = User { tenant: "acme.com".to_owned(), id: 7, name: "Ann".to_owned() };
/// let version = ann.write_to_anyway(&store).await?;
///
/// // Any text can be in a key.
/// assert_eq!(ann.kv_key().to_string(), "user.acme=2Ecom.7");
/// assert_eq!(User::read_from(&store, ("acme.com".to_owned(), 7)).await?, Some(ann));
///
/// let key = UserKey { tenant: "acme.com".to_owned(), id: 7 };
/// User::delete_atomically(&store, key, version).await?;
/// # Ok(())
/// # }
/// ```
///
/// By hand it is three functions. This one stores a number under a name:
///
/// ```
/// use shizuku_kv::{ByteSerialize, Bytes, EncodeError, KeyValue};
///
/// struct Limit {
///     name: String,
///     most: Most,
/// }
///
/// struct Most(u32);
///
/// impl ByteSerialize for Most {
///     fn to_bytes(&self) -> Result<Bytes, EncodeError> {
///         Ok(self.0.to_string().into())
///     }
/// }
///
/// impl KeyValue for Limit {
///     type Key = String;
///     type Value = Most;
///
///     fn kv_key(&self) -> String {
///         self.name.clone()
///     }
///
///     fn kv_value(&self) -> &Most {
///         &self.most
///     }
///
///     fn from_kv(name: String, most: Most) -> Self {
///         Self { name, most }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a record: it does not implement `KeyValue`",
    label = "this type has no key",
    note = "add `#[derive(StaticKeyIndexedValue)] #[kv(key = \"…\")]` for one value at one key, or \
            `#[derive(KeyValue)] #[kv(key = \"….{{field}}\")]` for many"
)]
pub trait KeyValue: Sized {
    /// The record's own type for its key. It prints as the store's key.
    type Key: RecordKey;

    /// The stored part of the record.
    type Value;

    /// Returns the record's key.
    fn kv_key(&self) -> Self::Key;

    /// Returns the stored part of the record.
    fn kv_value(&self) -> &Self::Value;

    /// Returns the record of a value that was found under a key.
    ///
    /// A record that has its key in its value ignores `key`, because the caller checks that the two
    /// agree.
    fn from_kv(key: Self::Key, value: Self::Value) -> Self;

    /// Returns the scope of the records of this type, for listing and watching all of them. The
    /// default is every key. For a derived template it is the prefix before its first placeholder;
    /// every key with that prefix has to be of this type (see [`KeyValueRead::list`]).
    ///
    /// A record cannot be outside of its scope: every operation rejects such a key before any
    /// request is sent.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if the scope names an invalid key.
    fn kv_scope() -> Result<WatchScope, KvError> {
        Ok(WatchScope::All)
    }

    /// Checks whether the record is valid. Called before every write, and after every read. A
    /// rejected value is not written. A rejected stored value is an error in its place. The default
    /// accepts every record.
    ///
    /// # Errors
    /// Returns the rule that the record breaks.
    fn kv_validate(&self) -> Result<(), ValidationError> {
        Ok(())
    }

    /// Returns the time to live of a written record, or `None` if it does not expire. Every write
    /// of such a record gives it this time to live. A store rejects the write if it has no times to
    /// live for single keys (see [`Store::ttl`]), or a longer
    /// [shortest](crate::StoreTtl::granularity) one. The time is rounded up to the unit of the
    /// store: both backends use whole seconds.
    fn kv_ttl() -> Option<Duration> {
        None
    }

    /// Returns the record under a key. Returns `None` if it is absent.
    ///
    /// # Errors
    /// Returns [`KvReadError::Decode`] if the stored record does not decode;
    /// [`KvReadError::KeyMismatch`] if it belongs under another key; [`KvReadError::Invalid`] if
    /// its type rejects it; [`KvReadError::Store`] for the errors of [`Store::get`]. If no record
    /// of the type can be under the key, returns [`KvReadError::KeyMismatch`] for a type with one
    /// fixed key, otherwise [`KvReadError::InvalidRecordKey`], before any request is sent.
    fn read_from(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<Option<Self>, KvReadError>> + Send
    where
        Self::Value: ByteDeserialize,
    {
        let key = key.into();
        async move {
            let Some(entry) = store.get(own_store_key::<Self>(&key)?).await? else {
                return Ok(None);
            };
            decode(key, &entry).map(Some)
        }
    }

    /// Stores the record, whatever its key had before, and returns its new version.
    ///
    /// # Errors
    /// Before any request is sent, returns [`KvWriteError::Invalid`] if the record breaks its rule,
    /// and [`KvWriteError::Encode`] if it has no byte form. Returns
    /// [`KvWriteError::InvalidRecordKey`] if it would not be found again under its key. Otherwise
    /// returns [`KvWriteError::Store`] for the errors of [`Store::put`], and
    /// [`KvError::Unsupported`] for a [time to live](Self::kv_ttl) that the store cannot give.
    fn write_to_anyway(
        &self,
        store: &Store,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send
    where
        Self::Value: ByteSerialize,
    {
        let encoded = encode(self);
        async move {
            let (key, bytes) = encoded?;
            Ok(put::put::<Self>(store, key, bytes).await?)
        }
    }

    /// Compare-and-swap: stores the record if its key has the version `revision`, and returns the
    /// new version.
    ///
    /// # Errors
    /// Returns [`KvError::RevisionMismatch`] if the key has another version (see
    /// [`KvWriteError::is_conflict`]); otherwise as for [`write_to_anyway`](Self::write_to_anyway),
    /// with [`Store::update`].
    fn write_to_atomically(
        &self,
        store: &Store,
        revision: VersionToken,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send
    where
        Self::Value: ByteSerialize,
    {
        let encoded = encode(self);
        async move {
            let (key, bytes) = encoded?;
            Ok(put::update::<Self>(store, key, bytes, revision).await?)
        }
    }

    /// Stores the record under a lock, as [`write_to_anyway`](Self::write_to_anyway) does. The
    /// store rejects the write if a newer token has written to the key. See
    /// [`StoreFenced`](crate::StoreFenced) for its guarantees, and its requirements on every writer
    /// of the record.
    ///
    /// # Errors
    /// Returns [`KvError::Fenced`] if a newer token has written (see [`KvWriteError::is_fenced`]).
    /// Returns [`KvError::Unsupported`] in a store without [fenced writes](Store::fenced), and for
    /// a type with a [time to live](Self::kv_ttl). Otherwise as for
    /// [`write_to_anyway`](Self::write_to_anyway), with
    /// [`StoreFenced::put`](crate::StoreFenced::put).
    fn write_fenced(
        &self,
        store: &Store,
        token: FencingToken,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send
    where
        Self::Value: ByteSerialize,
    {
        let encoded = encode(self);
        async move {
            let (key, bytes) = encoded?;
            Ok(put::put_fenced::<Self>(store, key, bytes, token).await?)
        }
    }

    /// Compare-and-swap under a lock, as [`write_to_atomically`](Self::write_to_atomically). The
    /// store rejects it if a newer token has written to the key.
    ///
    /// # Errors
    /// As for [`write_fenced`](Self::write_fenced), and returns [`KvError::RevisionMismatch`] if
    /// the key has another version that no newer token wrote.
    fn write_fenced_atomically(
        &self,
        store: &Store,
        revision: VersionToken,
        token: FencingToken,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send
    where
        Self::Value: ByteSerialize,
    {
        let encoded = encode(self);
        async move {
            let (key, bytes) = encoded?;
            Ok(put::update_fenced::<Self>(store, key, bytes, revision, token).await?)
        }
    }

    /// Deletes the record under a key, whatever it is, and returns the version of the tombstone.
    /// Deleting an absent record succeeds.
    ///
    /// # Errors
    /// Returns [`KvWriteError::Store`] for the errors of [`Store::delete`]. If no record of the
    /// type can be under the key, returns [`KvWriteError::KeyMismatch`] for a type with one fixed
    /// key, otherwise [`KvWriteError::InvalidRecordKey`], before any request is sent.
    fn delete_anyway(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send {
        let key = own_store_key::<Self>(&key.into()).map_err(KvWriteError::of_key);
        async move { Ok(store.delete(key?).await?) }
    }

    /// Compare-and-delete: deletes the record under a key if it has the version `revision`.
    ///
    /// # Errors
    /// Returns [`KvError::RevisionMismatch`] if it has another version; otherwise as for
    /// [`delete_anyway`](Self::delete_anyway).
    fn delete_atomically(
        store: &Store,
        key: impl Into<Self::Key>,
        revision: VersionToken,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send {
        let key = own_store_key::<Self>(&key.into()).map_err(KvWriteError::of_key);
        async move { Ok(store.delete_with_version(key?, revision).await?) }
    }

    /// Deletes the record under a key under a lock, unless a newer token has written to it, and
    /// returns the version of the tombstone. The tombstone stores the token too, so that older
    /// tokens remain rejected after the deletion.
    ///
    /// # Errors
    /// Returns [`KvError::Fenced`] if a newer token has written; [`KvError::Unsupported`] in a
    /// store without [fenced writes](Store::fenced); otherwise as for
    /// [`delete_anyway`](Self::delete_anyway).
    fn delete_fenced(
        store: &Store,
        key: impl Into<Self::Key>,
        token: FencingToken,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send {
        let key = own_store_key::<Self>(&key.into()).map_err(KvWriteError::of_key);
        async move { Ok(put::delete_fenced(store, key?, token).await?) }
    }

    /// Deletes the record under a key and its stored history, and returns the version of the
    /// tombstone.
    ///
    /// # Errors
    /// As for [`delete_anyway`](Self::delete_anyway).
    fn purge(
        store: &Store,
        key: impl Into<Self::Key>,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send {
        let key = own_store_key::<Self>(&key.into()).map_err(KvWriteError::of_key);
        async move { Ok(store.purge(key?).await?) }
    }
}

/// A record with one fixed key: a configuration, a set of flags, a limit.
///
/// `#[derive(StaticKeyIndexedValue)]` with `#[kv(key = "…")]` implements this and checks the key at
/// compile time. The type is then a [`KeyValue`] too. Its operations also exist without the key:
/// [`read`](Self::read), [`atomic_read`](Self::atomic_read), [`watch_value`](Self::watch_value),
/// [`modify_value`](Self::modify_value), [`delete`](Self::delete).
///
/// The key belongs to the type and not to its parameters. Every instantiation of a generic type is
/// under the same key, and reads the value that another one wrote.
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue, StaticKeyIndexedValue};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// #[derive(JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
/// #[kv(key = "config.limits")]
/// struct Limits {
///     connections: u32,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = shizuku_kv::connect("memory:").await?.store("config").await?;
/// Limits { connections: 5 }.write_to_anyway(&store).await?;
/// assert_eq!(Limits::read(&store).await?, Limits::read_from(&store, Limits::key()).await?);
///
/// let limits = Limits::modify_value(&store, |limits| {
///     limits.map(|limits| Limits { connections: limits.connections * 2 })
/// });
/// assert_eq!(limits.await?.unwrap().connections, 10);
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no fixed key: it does not implement `StaticKeyIndexedValue`",
    label = "this type has no fixed key",
    note = "add `#[derive(StaticKeyIndexedValue)] #[kv(key = \"…\")]`"
)]
pub trait StaticKeyIndexedValue: Sized {
    /// Returns the key under which every value of this type is stored.
    fn key() -> String;

    /// Checks the value; see [`KeyValue::kv_validate`].
    ///
    /// # Errors
    /// Returns the rule that the value breaks.
    fn validate_value(&self) -> Result<(), ValidationError> {
        Ok(())
    }

    /// Returns the time to live; see [`KeyValue::kv_ttl`].
    fn value_ttl() -> Option<Duration> {
        None
    }

    /// As [`KeyValue::read_from`] with the type's key.
    ///
    /// # Errors
    /// As for [`KeyValue::read_from`].
    fn read(store: &Store) -> impl Future<Output = Result<Option<Self>, KvReadError>> + Send
    where
        Self: ByteDeserialize,
    {
        <Self as KeyValue>::read_from(store, Self::key())
    }

    /// As [`KeyValueRead::atomic_read_from`] with the type's key.
    ///
    /// # Errors
    /// As for [`KeyValue::read_from`].
    fn atomic_read(
        store: &Store,
    ) -> impl Future<Output = Result<Option<TypedEntry<Self>>, KvReadError>> + Send
    where
        Self: ByteDeserialize,
    {
        <Self as KeyValueRead>::atomic_read_from(store, Self::key())
    }

    /// As [`KeyValueRead::watch`] with the type's key: delivers the current value, then every
    /// change.
    ///
    /// # Errors
    /// As for [`KeyValueRead::watch`].
    fn watch_value(
        store: &Store,
    ) -> impl Future<Output = Result<TypedWatch<Self>, KvReadError>> + Send
    where
        Self: ByteDeserialize,
    {
        <Self as KeyValueRead>::watch(store, Self::key())
    }

    /// As [`KeyValueWrite::modify`] with the type's key.
    ///
    /// # Errors
    /// As for [`KeyValueWrite::modify`].
    fn modify_value<O: ModifyOutcome<Self>>(
        store: &Store,
        change: impl FnMut(Option<Self>) -> O + Send,
    ) -> impl Future<Output = Result<Option<TypedEntry<Self>>, O::Error>> + Send
    where
        Self: ByteSerialize + ByteDeserialize + Send,
    {
        <Self as KeyValueWrite>::modify(store, Self::key(), change)
    }

    /// As [`KeyValue::delete_anyway`] with the type's key.
    ///
    /// # Errors
    /// As for [`KeyValue::delete_anyway`].
    fn delete(store: &Store) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send {
        <Self as KeyValue>::delete_anyway(store, Self::key())
    }
}

#[diagnostic::do_not_recommend]
impl<T: StaticKeyIndexedValue> KeyValue for T {
    type Key = String;
    type Value = Self;

    fn kv_key(&self) -> String {
        T::key()
    }

    fn kv_value(&self) -> &Self {
        self
    }

    fn from_kv(_key: String, value: Self) -> Self {
        value
    }

    fn kv_scope() -> Result<WatchScope, KvError> {
        WatchScope::key(T::key())
    }

    fn kv_validate(&self) -> Result<(), ValidationError> {
        self.validate_value()
    }

    fn kv_ttl() -> Option<Duration> {
        T::value_ttl()
    }
}

/// Decodes and checks the record of an entry.
pub(super) fn decode<T>(key: T::Key, entry: &KvEntry) -> Result<T, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let record = decode_unchecked(key, entry)?;
    check_record(&record, entry)?;
    Ok(record)
}

/// Decodes the record of an entry, without the checks of [`check_record`].
pub(super) fn decode_unchecked<T>(key: T::Key, entry: &KvEntry) -> Result<T, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let value = T::Value::from_bytes(&entry.value).map_err(|source| KvReadError::Decode {
        type_name: type_name::<T>(),
        key: entry.key.clone(),
        version: entry.version,
        source,
    })?;
    Ok(T::from_kv(key, value))
}

/// Checks that a record belongs under the key of its entry and satisfies the rule of its type.
pub(crate) fn check_record<T: KeyValue>(record: &T, entry: &KvEntry) -> Result<(), KvReadError> {
    let own = record.kv_key();
    if !prints_as(&own, &entry.key) {
        return Err(KvReadError::KeyMismatch {
            type_name: type_name::<T>(),
            read_under: entry.key.clone(),
            own: own_key(&own),
        });
    }
    record.kv_validate().map_err(|source| KvReadError::Invalid {
        type_name: type_name::<T>(),
        key: entry.key.clone(),
        version: entry.version,
        source,
    })
}

/// Decodes and checks the record of an entry, and adds its version.
pub(super) fn decode_entry<T>(key: T::Key, entry: &KvEntry) -> Result<TypedEntry<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    decode(key, entry).map(|record| TypedEntry::new(record, entry.version, Some(entry.created)))
}

/// Returns the key and the bytes of a record.
pub(super) fn encode<T>(record: &T) -> Result<(Key, bytes::Bytes), KvWriteError>
where
    T: KeyValue<Value: ByteSerialize>,
{
    let key = own_store_key::<T>(&record.kv_key()).map_err(KvWriteError::of_key)?;
    let bytes = encode_value(record, &key)?;
    Ok((key, bytes))
}

/// Returns the bytes of a record that belongs under `key`.
pub(super) fn encode_value<T>(record: &T, key: &Key) -> Result<bytes::Bytes, KvWriteError>
where
    T: KeyValue<Value: ByteSerialize>,
{
    record.kv_validate().map_err(|source| KvWriteError::Invalid {
        type_name: type_name::<T>(),
        key: key.clone(),
        source,
    })?;
    let bytes = record.kv_value().to_bytes().map_err(|source| KvWriteError::Encode {
        type_name: type_name::<T>(),
        key: key.clone(),
        source,
    })?;
    if cfg!(debug_assertions) {
        round_trip::check(record, key, &bytes)?;
    }
    Ok(bytes)
}
