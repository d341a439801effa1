//! A replica's state in memory, and in an append-only log (ADR 0040).

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::storage::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
use crate::record::{ByteDeserialize, KeyValue, KvReadError, TypedEntry};
use crate::snapshot::{
    Change, Snapshot, SnapshotEntries, SnapshotEntry, SnapshotError, SnapshotOptions,
    SnapshotWriter,
};
use crate::store::{Key, KvEntry, KvUpdate};

/// Maximum time to wait for a log that is open elsewhere, and the interval between attempts.
const CLOSING: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// Keeps the state in memory, and every change with its checkpoint in a log
/// ([`snapshot`](crate::snapshot)). After a restart the storage has both again.
///
/// A committed change outlives the process in any case. The
/// [`SyncPolicy`](crate::snapshot::SyncPolicy) decides which changes a failing machine can lose. It
/// never loses more than the last batches, which the store then delivers again. The log is
/// compacted in the background as it grows. The replica manages its scope tag.
///
/// ```
/// use shizuku_kv::WatchScope;
/// use shizuku_kv::replica::{LogStorage, Replica};
/// use shizuku_kv::snapshot::SnapshotOptions;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("routes.log");
/// # let store = shizuku_kv::connect("memory:").await?.store("routes").await?;
/// let storage = LogStorage::open(&path, SnapshotOptions::new()).await?;
/// let routes = storage.reader();
/// // Reads the state of the last process, before any request to the network.
/// routes.for_each(|route| println!("{}: {} bytes", route.key(), route.value().len()));
/// let replica = Replica::new(&store, WatchScope::prefix("route.")).storage(storage);
/// # let _ = replica;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LogStorage {
    /// `None` after it was closed.
    writer: Option<SnapshotWriter>,
    state: LogReader,
}

/// Reads the state of a [`LogStorage`], while a replica has it. Cheap to clone.
///
/// Each call sees the whole state after one batch.
#[derive(Clone, Debug)]
pub struct LogReader(Arc<RwLock<State>>);

#[derive(Debug)]
struct State {
    entries: SnapshotEntries,
    /// Its reference count is one more than the number of visits in progress.
    visits: Arc<()>,
    checkpoint: Option<Checkpoint>,
    compaction_error: Option<SnapshotError>,
}

impl LogStorage {
    /// Opens a log, or creates it if it is missing; the directory must exist. The whole state is
    /// read into memory, on a thread that may block.
    ///
    /// Dropping the future is safe; a log that was being opened is closed again in the background.
    ///
    /// # Errors
    /// Returns the errors of [`SnapshotWriter::open`], and [`SnapshotError::Locked`] if another
    /// process, or another storage, has the log open and does not close it within three seconds.
    pub async fn open(
        path: impl AsRef<Path>,
        options: SnapshotOptions,
    ) -> Result<Self, SnapshotError> {
        let path = path.as_ref().to_owned();
        let opened = path.clone();
        let open = move || Self::open_here(&opened, options);
        tokio::task::spawn_blocking(open).await.unwrap_or_else(|_| Err(interrupted(path, "open")))
    }

    fn open_here(path: &Path, options: SnapshotOptions) -> Result<Self, SnapshotError> {
        let begun = Instant::now();
        let (writer, snapshot) = loop {
            match SnapshotWriter::open_whatever_scope(path, options) {
                // The other writer may be closing the log at this moment.
                Err(SnapshotError::Locked { .. }) if begun.elapsed() < CLOSING => {
                    std::thread::sleep(POLL)
                }
                opened => break opened?,
            }
        };
        let Snapshot { entries, cursor, scope_tag, .. } = snapshot;
        let checkpoint = cursor.map(|cursor| Checkpoint::new(cursor, scope_tag));
        Ok(Self {
            writer: Some(writer),
            state: LogReader(Arc::new(RwLock::new(State {
                entries,
                visits: Arc::new(()),
                checkpoint,
                compaction_error: None,
            }))),
        })
    }

    /// Closes the log. All commits are then on the disk, unless the policy is `Never`. Use it with
    /// the result of [`Replica::into_storage`](super::Replica::into_storage) to learn of errors.
    ///
    /// A dropped storage is closed too, in the background if a runtime exists, and errors are
    /// logged.
    ///
    /// # Errors
    /// Returns the errors of [`SnapshotWriter::close`].
    pub async fn close(mut self) -> Result<(), SnapshotError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let path = writer.path().to_owned();
        // If the runtime ends, dropping has closed the log, and the result is unknown.
        tokio::task::spawn_blocking(|| writer.close())
            .await
            .unwrap_or_else(|_| Err(interrupted(path, "close")))
    }

    /// Returns a reader of the state, which also works while a replica has this storage.
    pub fn reader(&self) -> LogReader {
        self.state.clone()
    }
}

fn write(
    writer: &mut SnapshotWriter,
    changes: &[Change],
    checkpoint: Option<&Checkpoint>,
) -> Result<(), SnapshotError> {
    for change in changes {
        writer.append_change(change)?;
    }
    if let Some(checkpoint) = checkpoint {
        writer.set_scope_tag(checkpoint.tag());
    }
    writer.checkpoint(checkpoint.map(Checkpoint::cursor).as_ref())
}

/// Closes the log in a blocking thread, because closing waits for the disk and for threads.
impl Drop for LogStorage {
    fn drop(&mut self) {
        let writer = self.writer.take();
        if let (Some(writer), Ok(runtime)) = (writer, Handle::try_current()) {
            runtime.spawn_blocking(|| drop(writer));
        }
    }
}

/// Returns the error for a runtime that ended while a log was opened or closed.
fn interrupted(path: PathBuf, operation: &'static str) -> SnapshotError {
    let source = std::io::Error::other("the runtime has ended");
    SnapshotError::Io { path, operation, offset: None, source: Arc::new(source) }
}

impl ReplicaStorage for LogStorage {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        Ok(self.state.checkpoint())
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.state.is_empty())
    }

    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.state.len() as u64)
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        let state = self.state.read();
        let held = |key: &Key| {
            let (version, created) = state.entries.held(key)?;
            Some(StoredVersion::new(version, created))
        };
        Ok(keys.iter().map(held).collect())
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        for entry in &self.state.read().entries {
            let key = Key::of_checked(entry.key());
            visit(&key, StoredVersion::new(entry.version(), entry.created()));
        }
        Ok(())
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        let Some(writer) = &mut self.writer else {
            return Err(StorageError::fatal("it is closed"));
        };
        // Encoded once, for the log and the table, and hashed outside of the lock.
        let hasher = self.state.read().entries.hasher();
        let changes = changes.iter().filter_map(|change| Change::of(change, &hasher).transpose());
        let mut changes: Vec<_> = changes.collect::<Result<_, _>>().map_err(storage_error)?;
        if let Err(error) = write(writer, &changes, checkpoint) {
            // The next commit must not include the appended changes. If they cannot be discarded,
            // the storage is unusable.
            return Err(match writer.discard() {
                Ok(()) => storage_error(error),
                Err(worse) => StorageError::fatal(worse),
            });
        }
        let compaction_error = writer.last_compaction_error().cloned();
        let mut state = self.state.write();
        if Arc::strong_count(&state.visits) > 1 {
            // A commit has to copy the segments that a visit shares, and does so outside of the
            // lock. No other thread changes the entries meanwhile.
            let mut entries = state.entries.clone();
            drop(state);
            changes.iter_mut().for_each(|change| entries.apply(change));
            state = self.state.write();
            let before = std::mem::replace(&mut state.entries, entries);
            state.end_of_batch(checkpoint, compaction_error);
            drop(state);
            drop(before);
        } else {
            changes.iter_mut().for_each(|change| state.entries.apply(change));
            state.end_of_batch(checkpoint, compaction_error);
            drop(state);
        }
        // Frees the superseded records outside of the lock, so that no reader waits for that.
        drop(changes);
        Ok(())
    }

    fn close(&mut self) -> Result<(), StorageError> {
        // Closes the log here, and not in the background as dropping does.
        self.writer.take().map_or(Ok(()), SnapshotWriter::close).map_err(storage_error)
    }
}

impl State {
    fn end_of_batch(
        &mut self,
        checkpoint: Option<&Checkpoint>,
        compaction_error: Option<SnapshotError>,
    ) {
        self.checkpoint = checkpoint.copied();
        self.compaction_error = compaction_error;
    }
}

fn storage_error(error: SnapshotError) -> StorageError {
    if error.is_retryable() { StorageError::retryable(error) } else { StorageError::fatal(error) }
}

impl LogReader {
    /// Returns the entry of a key, without copying its value. Returns `None` if the key is not
    /// held.
    pub fn get(&self, key: &str) -> Option<KvEntry> {
        self.read().entries.get(key)
    }

    /// Returns the number of held keys.
    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Returns true if no key is held.
    pub fn is_empty(&self) -> bool {
        self.read().entries.is_empty()
    }

    /// Returns the checkpoint of the state. Returns `None` if nothing was committed, and during a
    /// resync.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.read().checkpoint
    }

    /// Returns the error of the last attempt to compact the log, as of the last commit. The log
    /// keeps growing after an error, and the next attempt follows when it is longer by half.
    pub fn compaction_error(&self) -> Option<SnapshotError> {
        self.read().compaction_error.clone()
    }

    /// Calls `visit` for each key, in no particular order, with the state at the time of the call.
    /// The replica and other readers continue meanwhile. The earlier entries of changed keys stay
    /// in memory until this returns. Values are not copied.
    pub fn for_each(&self, visit: impl FnMut(SnapshotEntry<'_>)) {
        // Visits without the lock. Every reader waits behind a commit that waits for the lock, and
        // so would `visit`.
        let (entries, _visiting) = {
            let state = self.read();
            (state.entries.clone(), Arc::clone(&state.visits))
        };
        entries.iter().for_each(visit);
    }

    /// Calls `visit` for each held key, with its record or the error of decoding it; otherwise as
    /// [`for_each`](Self::for_each). Use it to fill a table of your own at the start.
    pub fn for_each_record<T>(&self, mut visit: impl FnMut(Result<TypedEntry<T>, KvReadError>))
    where
        T: KeyValue<Value: ByteDeserialize>,
    {
        self.for_each(|entry| visit(TypedEntry::decode(&entry.to_entry())));
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
