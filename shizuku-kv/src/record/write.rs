//! Writes records: new ones, many at a time, and changes of existing ones (ADR 0021).

use std::borrow::Borrow;
use std::future::Future;

use super::entry::TypedEntry;
use super::key::own_store_key;
use super::key_value::encode;
#[allow(unused_imports, reason = "named in the documentation")]
use super::modify::Modify;
use super::modify::{ModifyOutcome, modify};
use super::put;
use super::{ByteDeserialize, ByteSerialize, KeyValue, KvWriteError};
#[allow(unused_imports, reason = "named in the documentation")]
use crate::store::KvError;
use crate::store::{FencingToken, Store, VersionToken};

/// Writing, beyond [`KeyValue::write_to_anyway`]. Every [`KeyValue`] has this; each method needs a
/// value that encodes.
pub trait KeyValueWrite: KeyValue {
    /// Stores the record if its key is absent (never written, deleted, purged or expired), and
    /// returns its version.
    ///
    /// # Errors
    /// Returns [`KvError::AlreadyExists`] if the key has a live value (see
    /// [`KvWriteError::is_conflict`]); otherwise as for [`KeyValue::write_to_anyway`], with
    /// [`Store::create`].
    fn create_write(
        &self,
        store: &Store,
    ) -> impl Future<Output = Result<VersionToken, KvWriteError>> + Send
    where
        Self::Value: ByteSerialize,
    {
        let encoded = encode(self);
        async move {
            let (key, bytes) = encoded?;
            Ok(put::create::<Self>(store, key, bytes).await?)
        }
    }

    /// As [`create_write`](Self::create_write), under a lock. The store rejects the write if a
    /// newer token has written to the key, or deleted it.
    ///
    /// # Errors
    /// As for [`KeyValue::write_fenced`], and returns [`KvError::AlreadyExists`] if the key has a
    /// live value that no newer token wrote.
    fn create_write_fenced(
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
            Ok(put::create_fenced::<Self>(store, key, bytes, token).await?)
        }
    }

    /// Stores many records (a slice, a vector, any iterator over records or references), pipelined,
    /// and returns their results in the given order. Each is a write of its own, as
    /// [`KeyValue::write_to_anyway`]: some can succeed while others fail. Records with the same key
    /// are written in the given order.
    fn write_many<R: Borrow<Self>>(
        store: &Store,
        records: impl IntoIterator<Item = R>,
    ) -> impl Future<Output = Vec<Result<VersionToken, KvWriteError>>> + Send
    where
        Self::Value: ByteSerialize,
    {
        let encoded =
            records.into_iter().map(|record| encode::<Self>(record.borrow())).collect::<Vec<_>>();
        async move {
            // A record that is rejected here keeps its position in the results.
            let mut accepted = Vec::with_capacity(encoded.len());
            let rejected = encoded
                .into_iter()
                .map(|item| item.map(|item| accepted.push(item)).err())
                .collect::<Vec<_>>();
            let mut written = put::put_many::<Self>(store, accepted).await.into_iter();
            rejected
                .into_iter()
                .filter_map(|rejected| match rejected {
                    Some(error) => Some(Err(error)),
                    None => written.next().map(|written| written.map_err(KvWriteError::from)),
                })
                .collect()
        }
    }

    /// Changes the record under a key by compare-and-swap: reads it, calls `change` for the new
    /// record, and writes that unless another writer was first. Otherwise it starts again with the
    /// newest record.
    ///
    /// `change` receives the record, or `None` if it is absent. It returns the new record, or
    /// `None` to keep the existing one. An absent record is created. A change that can also delete
    /// returns a [`Modify`]. A change that can fail returns a `Result` of either: its error ends
    /// `modify`, which returns it unchanged. A change that awaits returns
    /// [`ModifyAsync`](crate::ModifyAsync) of a future of any of these.
    ///
    /// `change` is called once per attempt, so its side effects must be repeatable. Between
    /// attempts `modify` backs off with growing, jittered pauses. It ends after 32 attempts or at
    /// the store's deadline, which here covers all attempts and the time of `change`. A write that
    /// could not end within the deadline is not sent.
    ///
    /// Returns the record that was written or kept, or `None` if the record is absent now.
    ///
    /// Dropping the future also drops the future of `change`. One write may already have been sent.
    #[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
    #[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
    /// use shizuku_kv::{KeyValue, KeyValueWrite};
    ///
    /// #[derive(KeyValue)]
    /// struct Motto {
    ///     #[kv(key)]
    ///     name: String,
    ///     #[kv(value)]
    ///     text: String,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = shizuku_kv::connect("memory:").await?.store("mottos").await?;
    /// let motto = Motto::modify(&store, "ours", |motto| {
    ///     let text = motto.map_or(String::new(), |motto| motto.text + " and ");
    ///     Some(Motto { name: "ours".to_owned(), text: text + "quietly" })
    /// });
    /// assert_eq!(motto.await?.unwrap().text, "quietly");
    ///
    /// // Asks another service whether to delete the motto.
    /// # type AnyError = Box<dyn std::error::Error + Send + Sync>;
    /// # async fn is_outdated(_: &str) -> Result<bool, AnyError> { Ok(true) }
    /// use shizuku_kv::{Modify, ModifyAsync};
    ///
    /// let left = Motto::modify(&store, "ours", |motto| {
    ///     ModifyAsync(async move {
    ///         let Some(motto) = motto else { return Ok(Modify::Keep) };
    ///         let is_outdated = is_outdated(&motto.text).await?;
    ///         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(if is_outdated {
    ///             Modify::Delete
    ///         } else {
    ///             Modify::Keep
    ///         })
    ///     })
    /// });
    /// assert!(left.await.is_ok_and(|motto| motto.is_none()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns the error of `change`, if it returns one. The error type of `change` has
    /// `From<KvWriteError>` and is `Send`, which `Box<dyn Error>` lacks; use
    /// `Box<dyn Error + Send + Sync>` or a type of your own. The other errors arrive through that
    /// `From`:
    ///
    /// - Returns [`KvWriteError::Contended`] if every attempt lost.
    /// - Returns [`KvWriteError::Read`] if the stored record does not decode or breaks its rule. It
    ///   is not overwritten, which only another write can do.
    /// - Returns [`KvWriteError::KeyMismatch`] or [`KvWriteError::InvalidRecordKey`] if the key is
    ///   not one of the type, before any request is sent, and if `change` returns a record of
    ///   another key.
    /// - Returns [`KvWriteError::Invalid`] or [`KvWriteError::Encode`] if the new record cannot be
    ///   written.
    /// - Returns [`KvWriteError::Store`] for the errors of [`Store::get`], [`Store::create`],
    ///   [`Store::update`] and [`Store::delete_with_version`] other than a lost compare-and-swap.
    ///   [`KvError::OutcomeUnknown`] is among them: such a write is not retried.
    fn modify<O: ModifyOutcome<Self>>(
        store: &Store,
        key: impl Into<Self::Key>,
        change: impl FnMut(Option<Self>) -> O + Send,
    ) -> impl Future<Output = Result<Option<TypedEntry<Self>>, O::Error>> + Send
    where
        Self: Send,
        Self::Value: ByteSerialize + ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into()).map_err(KvWriteError::of_key);
        async move { modify(store, key?, change).await }
    }
}

impl<T: KeyValue> KeyValueWrite for T {}
