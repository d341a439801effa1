//! Streams of listed records.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt, stream};

use super::entry::TypedEntry;
use super::key_value::decode_entry;
use super::read::typed_key;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvEntry, KvError, KvStream};

/// The records of a listing, as they arrive. From
/// [`KeyValueRead::list`](crate::KeyValueRead::list).
///
/// A record that does not decode, or whose key is not one of its type, is an error item and the
/// stream continues. An error of the store is the last item. Dropping the stream at any time frees
/// everything, on the server too.
#[must_use = "a stream does nothing unless it is polled"]
pub struct TypedScan<T> {
    entries: KvStream<KvEntry>,
    /// The reason why the scan lists no record, which is returned once.
    rejection: Mutex<Option<KvReadError>>,
    records: PhantomData<fn() -> T>,
}

impl<T> TypedScan<T> {
    pub(super) fn new(entries: Result<KvStream<KvEntry>, KvReadError>) -> Self {
        let (entries, rejection) = match entries {
            Ok(entries) => (entries, None),
            Err(rejection) => (KvStream::new(stream::empty()), Some(rejection)),
        };
        Self { entries, rejection: Mutex::new(rejection), records: PhantomData }
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> TypedScan<T> {
    /// Returns the next record. Returns `None` after the last.
    ///
    /// Cancel safe: no record is lost. Several tasks may call this method: each record goes to one
    /// of them.
    ///
    /// # Errors
    /// Returns [`KvReadError::Store`] if the store failed, which ends the stream. Any other error
    /// concerns one record, and the stream continues.
    pub async fn next(&self) -> Option<Result<TypedEntry<T>, KvReadError>> {
        let rejection = self.rejection.lock().unwrap_or_else(PoisonError::into_inner).take();
        match rejection {
            Some(rejection) => Some(Err(rejection)),
            None => self.entries.next().await.map(record),
        }
    }

    /// Returns all remaining records, in memory at once.
    ///
    /// # Errors
    /// Returns the first error. The records before it are lost.
    pub async fn try_collect(self) -> Result<Vec<TypedEntry<T>>, KvReadError> {
        let mut records = Vec::new();
        while let Some(record) = self.next().await {
            records.push(record?);
        }
        Ok(records)
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> Stream for TypedScan<T> {
    type Item = Result<TypedEntry<T>, KvReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.rejection.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            Some(rejection) => Poll::Ready(Some(Err(rejection))),
            None => self.entries.poll_next_unpin(cx).map(|entry| entry.map(record)),
        }
    }
}

fn record<T>(entry: Result<KvEntry, KvError>) -> Result<TypedEntry<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let entry = entry?;
    decode_entry(typed_key::<T>(&entry.key)?, &entry)
}

impl<T> fmt::Debug for TypedScan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedScan").finish_non_exhaustive()
    }
}
