//! Writing records: new ones, many at a time, and changing what is there.

use std::borrow::Borrow;
use std::future::Future;

use super::entry::TypedEntry;
use super::key::own_store_key;
use super::key_value::encode;
use super::modify::modify;
use super::put;
use super::{ByteDeserialize, ByteSerialize, KeyValue, KvWriteError};
#[allow(unused_imports, reason = "named in the documentation")]
use crate::store::KvError;
use crate::store::{FencingToken, Store, VersionToken};

/// Writing, beyond [`KeyValue::write_to_anyway`]. Every [`KeyValue`] has this; each method needs a value that encodes.
pub trait KeyValueWrite: KeyValue {
    /// Stores the record where its key is absent (never written, deleted, purged or expired), and returns its version.
    ///
    /// # Errors
    /// [`KvError::AlreadyExists`] over a live value (see [`KvWriteError::is_conflict`]);
    /// else as for [`KeyValue::write_to_anyway`], with [`Store::create`].
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

    /// As [`create_write`](Self::create_write), under a lock: refused once a newer token has written to the key, or deleted
    /// it.
    ///
    /// # Errors
    /// As for [`KeyValue::write_fenced`], and [`KvError::AlreadyExists`] over a live value that no newer token wrote.
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

    /// Stores many records (a slice, a vector, any iterator over records or references), pipelined, and answers for
    /// each in the order given. Each is a write of its own, as [`KeyValue::write_to_anyway`]: some can succeed while
    /// others fail. Records with the same key are written in the order given.
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
            // What is refused here keeps its place in the answer.
            let mut accepted = Vec::with_capacity(encoded.len());
            let refused = encoded
                .into_iter()
                .map(|item| item.map(|item| accepted.push(item)).err())
                .collect::<Vec<_>>();
            let mut written = put::put_many::<Self>(store, accepted).await.into_iter();
            refused
                .into_iter()
                .filter_map(|refused| match refused {
                    Some(error) => Some(Err(error)),
                    None => written.next().map(|written| written.map_err(KvWriteError::from)),
                })
                .collect()
        }
    }

    /// Changes the record under a key by compare-and-swap: reads it, lets `change` make the new record of it, and
    /// writes that if nobody else wrote meanwhile; else begins again with what is there then.
    ///
    /// `change` gets the record, or `None` where it is absent, and returns what it is to be, or `None` to leave it as
    /// it is. It is called once an attempt, so it must not do anything that may not be done again. An absent record is
    /// created. Between attempts it waits, longer each time and at random. It ends after 32 attempts or when the
    /// store's deadline has passed, which here is that of the whole: nothing is written that could not end within it.
    ///
    /// Returns what is there now: what was written, or what `change` left as it is; `None` where there is nothing.
    /// Dropping the future leaves nothing behind but, perhaps, one write.
    ///
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
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns [`KvWriteError::Contended`] if every attempt lost; [`KvWriteError::Read`] if the
    /// stored record does not decode or breaks its rule: it is not overwritten, which only another
    /// write can do; [`KvWriteError::KeyMismatch`] or [`KvWriteError::InvalidRecordKey`] if the key
    /// is not one of the type, before any request is sent, and if `change` returns a record of
    /// another key; [`KvWriteError::Invalid`] or [`KvWriteError::Encode`] if the new record cannot
    /// be written; [`KvWriteError::Store`] for the errors of [`Store::get`], [`Store::create`] and
    /// [`Store::update`] other than a lost compare-and-swap. [`KvError::OutcomeUnknown`] is among
    /// them: such a write is not tried again.
    fn modify(
        store: &Store,
        key: impl Into<Self::Key>,
        change: impl FnMut(Option<Self>) -> Option<Self> + Send,
    ) -> impl Future<Output = Result<Option<TypedEntry<Self>>, KvWriteError>> + Send
    where
        Self: Send,
        Self::Value: ByteSerialize + ByteDeserialize,
    {
        let key = own_store_key::<Self>(&key.into()).map_err(KvWriteError::of_key);
        async move { modify(store, key?, change).await }
    }
}

impl<T: KeyValue> KeyValueWrite for T {}
