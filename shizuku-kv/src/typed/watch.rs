//! Records as they change.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};

use super::entry::TypedUpdate;
use super::read::decode_update;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvError, KvUpdate, Watch, WatchCursor};

/// A watch of records: the current state, a caught-up marker, then every change.
///
/// It promises what [`Store::watch`](crate::Store::watch) promises. A record that does not decode is an error item and
/// the watch goes on. It makes progress only while it is polled, and frees everything when it is dropped, on the server
/// too.
///
/// [`next`](Self::next) takes `&self`, so that a watch can be kept in a plain `let` and shared between tasks: each
/// update then goes to one of those that wait, in turn. It is a [`Stream`] as well.
#[must_use = "a watch does nothing unless it is polled"]
pub struct TypedWatch<T> {
    updates: tokio::sync::Mutex<Watch>,
    // Apart from the watch, so that it can be asked for while somebody waits for the next update.
    cursor: Mutex<Option<WatchCursor>>,
    records: PhantomData<fn() -> T>,
}

impl<T> TypedWatch<T> {
    pub(super) fn new(watch: Watch) -> Self {
        Self {
            cursor: Mutex::new(watch.cursor()),
            updates: tokio::sync::Mutex::new(watch),
            records: PhantomData,
        }
    }

    /// The place after the last update that was returned, error items included, from which another watch can go on
    /// ([`watch_scope_from`](crate::KeyValueRead::watch_scope_from)); `None` before the first.
    ///
    /// Where several tasks take updates, it covers those of all of them.
    pub fn cursor(&self) -> Option<WatchCursor> {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> TypedWatch<T> {
    /// The next update. `None` only after an error that ended the watch.
    ///
    /// Dropping the future is safe: no update is lost.
    ///
    /// # Errors
    /// [`KvReadError::Store`] ends the watch; any other is about one record, and the watch goes on.
    pub async fn next(&self) -> Option<Result<TypedUpdate<T>, KvReadError>> {
        let mut watch = self.updates.lock().await;
        let update = watch.next().await;
        // Without an await from here on, so that what was taken is returned.
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = watch.cursor();
        update.map(decode)
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
        let this = &mut *self;
        let watch = this.updates.get_mut();
        let update = watch.poll_next_unpin(cx);
        *this.cursor.get_mut().unwrap_or_else(PoisonError::into_inner) = watch.cursor();
        update.map(|update| update.map(decode))
    }
}

impl<T> fmt::Debug for TypedWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedWatch").field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}
