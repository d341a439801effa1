//! Streams of changes of records.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};

use super::entry::TypedUpdate;
use super::read::decode_update;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvError, KvUpdate, Watch, WatchCursor};

/// A watch of records: the current state, a caught-up marker, then every change.
///
/// It has the guarantees of [`Store::watch`](crate::Store::watch). A record that does not decode is
/// an error item and the watch continues. It ends if its store is deleted or recreated, as any
/// watch does, whereas a [`Live`](crate::Live) value and a [`LiveMap`](crate::LiveMap) continue.
/// Dropping it frees everything, on the server too.
///
/// Watches of single keys share an upstream with others of the store and its clones. So do watches
/// of a scope that another watch already has. A slow subscriber then keeps only the newest unread
/// update of each key, deletions included. The upstream is read on the runtime on which the watch
/// was opened, and stalls or ends with it ([`KvError::Unavailable`]). The first watch of a scope,
/// and one from a cursor, keep nothing, and make progress only while they are polled.
///
/// [`next`](Self::next) takes `&self`, so that a watch can be kept in a plain `let` and shared
/// between tasks. Each update then goes to one of the waiting tasks. It is a [`Stream`] as well.
#[must_use = "a watch does nothing unless it is polled"]
pub struct TypedWatch<T> {
    updates: Watch,
    records: PhantomData<fn() -> T>,
}

impl<T> TypedWatch<T> {
    pub(super) fn new(updates: Watch) -> Self {
        Self { updates, records: PhantomData }
    }

    /// Returns the position after the last returned update, error items included. Another watch can
    /// resume from it ([`watch_scope_from`](crate::KeyValueRead::watch_scope_from)). Returns `None`
    /// before the first update.
    ///
    /// If several tasks read the watch, the cursor covers the updates of all of them.
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.updates.cursor()
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> TypedWatch<T> {
    /// Returns the next update. Returns `None` only after an error that ended the watch.
    ///
    /// Cancel safe: no update is lost. A future that is held and not polled blocks no other reader.
    ///
    /// # Errors
    /// Returns [`KvReadError::Store`] if the watch has ended. Any other error concerns one record,
    /// and the watch continues.
    pub async fn next(&self) -> Option<Result<TypedUpdate<T>, KvReadError>> {
        self.updates.next().await.map(decode)
    }
}

fn decode<T>(update: Result<KvUpdate, KvError>) -> Result<TypedUpdate<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    match update? {
        KvUpdate::CaughtUp => Ok(TypedUpdate::CaughtUp),
        KvUpdate::Put(entry) | KvUpdate::Delete(entry) => decode_update(&entry),
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> Stream for TypedWatch<T> {
    type Item = Result<TypedUpdate<T>, KvReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.updates.poll_next_unpin(cx).map(|update| update.map(decode))
    }
}

impl<T> fmt::Debug for TypedWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedWatch").field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}
