//! Batches: the limits of a batch, and the argument of `apply`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ReplicaError;
use crate::record::{ByteDeserialize, KeyValue, KvReadError, TypedUpdate, decode_update};
use crate::store::{KvUpdate, WatchCursor};

/// Limits of a batch, whose updates [`watch_applied`](crate::watch_applied) and a
/// [`Replica`](crate::replica::Replica) apply together. A batch ends with whichever of its limits
/// is reached first, and with the caught-up marker.
///
/// Up to two batches are in memory: one that is being applied, and the next, which is being
/// collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchConfig {
    /// Set by [`window`](Self::window()).
    pub window: Duration,
    /// Set by [`max_updates`](Self::max_updates()).
    pub max_updates: usize,
    /// Set by [`max_bytes`](Self::max_bytes()).
    pub max_bytes: usize,
}

impl Default for BatchConfig {
    /// 10 ms, 8,192 updates, 4 MiB.
    fn default() -> Self {
        Self { window: Duration::from_millis(10), max_updates: 8192, max_bytes: 4 << 20 }
    }
}

impl BatchConfig {
    /// Returns the defaults: 10 ms, 8,192 updates, 4 MiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maximum time for which the first update of a batch waits for others, up to an hour. With
    /// zero, the collected updates are applied as soon as the previous batch has been.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Maximum number of updates in a batch; at least 1.
    pub fn max_updates(mut self, updates: usize) -> Self {
        self.max_updates = updates;
        self
    }

    /// Number of bytes of keys and values at which a batch is full; at least 1. A single update can
    /// have more.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    pub(super) fn validate(&self) -> Result<(), ReplicaError> {
        let reject = |field, allowed| Err(ReplicaError::InvalidConfig { field, allowed });
        if self.window > Duration::from_secs(3600) {
            return reject("window", "at most an hour");
        }
        if self.max_updates == 0 {
            return reject("max_updates", "at least 1");
        }
        if self.max_bytes == 0 {
            return reject("max_bytes", "at least 1");
        }
        Ok(())
    }
}

/// Updates to be applied together, in the order in which they came. Cheap to clone.
///
/// `Debug` shows no value.
#[derive(Clone)]
pub struct Batch {
    pub(super) updates: Arc<Vec<KvUpdate>>,
    pub(super) cursor: Option<WatchCursor>,
}

impl Batch {
    /// Returns the updates. [`KvUpdate::CaughtUp`] marks the complete initial state, and is at the
    /// end of a batch.
    ///
    /// A deletion with the operation [`KvOperation::Vanished`](crate::KvOperation::Vanished) did
    /// not come from a watch: a resync of the replica found it.
    pub fn updates(&self) -> &[KvUpdate] {
        &self.updates
    }

    /// Returns the cursor that is committed after this batch has been applied. Returns `None`
    /// during a resync.
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.cursor
    }

    /// Returns true if the initial state of the watch is complete with this batch.
    pub fn is_caught_up(&self) -> bool {
        matches!(self.updates.last(), Some(KvUpdate::CaughtUp))
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("updates", &self.updates.len())
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

/// Updates of records to be applied together, in the order in which they came. Cheap to clone.
pub struct TypedBatch<T: KeyValue> {
    updates: Arc<[Result<TypedUpdate<T>, KvReadError>]>,
    cursor: Option<WatchCursor>,
}

impl<T: KeyValue> TypedBatch<T> {
    /// Returns the updates. An update that does not decode is an error in its place, which names
    /// type, key and version.
    pub fn updates(&self) -> &[Result<TypedUpdate<T>, KvReadError>] {
        &self.updates
    }

    /// As [`Batch::cursor`].
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.cursor
    }

    /// As [`Batch::is_caught_up`].
    pub fn is_caught_up(&self) -> bool {
        matches!(self.updates.last(), Some(Ok(TypedUpdate::CaughtUp)))
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> TypedBatch<T> {
    pub(super) fn of(batch: &Batch) -> Self {
        let decode = |update: &KvUpdate| match update {
            KvUpdate::CaughtUp => Ok(TypedUpdate::CaughtUp),
            KvUpdate::Put(entry) | KvUpdate::Delete(entry) => decode_update(entry),
        };
        Self { updates: batch.updates.iter().map(decode).collect(), cursor: batch.cursor }
    }
}

impl<T: KeyValue> Clone for TypedBatch<T> {
    fn clone(&self) -> Self {
        Self { updates: Arc::clone(&self.updates), cursor: self.cursor }
    }
}

impl<T: KeyValue> fmt::Debug for TypedBatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedBatch")
            .field("updates", &self.updates.len())
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}
