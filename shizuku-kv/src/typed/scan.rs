//! Records as they are listed.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};

use super::entry::TypedEntry;
use super::key_value::decode_entry;
use super::read::typed_key;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvEntry, KvStream};

/// The records of a listing, as they arrive. From [`KeyValueRead::list`](crate::KeyValueRead::list).
///
/// A record that does not decode, or whose key is none of its type, is an error item and the stream goes on; an error
/// of the store is the last item. Dropping the stream at any time frees everything, on the server too.
#[must_use = "a stream does nothing unless it is polled"]
pub struct TypedScan<T> {
    /// The reason why the scan lists no record, which is returned once.
    entries: Result<KvStream<KvEntry>, Option<KvReadError>>,
    records: PhantomData<fn() -> T>,
}

impl<T> TypedScan<T> {
    pub(super) fn new(entries: Result<KvStream<KvEntry>, KvReadError>) -> Self {
        Self { entries: entries.map_err(Some), records: PhantomData }
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> TypedScan<T> {
    /// The next record; `None` after the last.
    ///
    /// Dropping the future is safe: no record is lost.
    ///
    /// # Errors
    /// [`KvReadError::Store`] ends the stream; any other is about one record, and the stream goes on.
    pub async fn next(&mut self) -> Option<Result<TypedEntry<T>, KvReadError>> {
        StreamExt::next(self).await
    }

    /// All records that are left, in memory at once.
    ///
    /// # Errors
    /// The first error; the records before it are lost.
    pub async fn try_collect(mut self) -> Result<Vec<TypedEntry<T>>, KvReadError> {
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
        let entries = match &mut self.entries {
            Ok(entries) => entries,
            Err(rejection) => return Poll::Ready(rejection.take().map(Err)),
        };
        entries.poll_next_unpin(cx).map(|item| {
            item.map(|entry| {
                let entry = entry?;
                decode_entry(typed_key::<T>(&entry.key)?, &entry)
            })
        })
    }
}

impl<T> fmt::Debug for TypedScan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedScan").finish_non_exhaustive()
    }
}
