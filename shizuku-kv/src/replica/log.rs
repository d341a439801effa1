//! A replica's state in memory, and in an append-only log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::storage::{Held, ReplicaPlace, ReplicaStorage, StorageError};
use crate::snapshot::{
    Snapshot, SnapshotEntries, SnapshotEntry, SnapshotError, SnapshotOptions, SnapshotWriter,
};
use crate::store::{Key, KvEntry, KvUpdate};
use crate::typed::{ByteDeserialize, KeyValue, KvReadError, TypedEntry};

/// How long a log that is open elsewhere is waited for, and how often it is tried.
const CLOSING: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// Keeps the state in memory, and every change with the place in a log ([`snapshot`](crate::snapshot)): after a restart
/// both are there again.
///
/// What was committed outlives the process in any case. What a machine can lose that fails, the
/// [`SyncPolicy`](crate::snapshot::SyncPolicy) says; it is never more than the last batches, which then come again. The
/// log is compacted in the background as it grows. Its scope tag is the replica's own affair.
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
/// // What was there when this process ended the last time, before anything is asked of the network.
/// routes.for_each(|route| println!("{}: {} bytes", route.key(), route.value().len()));
/// let replica = Replica::new(&store, WatchScope::prefix("route.")).storage(storage);
/// # let _ = replica;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LogStorage {
    /// There until it is closed.
    writer: Option<SnapshotWriter>,
    state: LogReader,
}

/// Reads what a [`LogStorage`] holds, while a replica has it. Cheap to clone.
///
/// Each call sees the state after one batch, whole.
#[derive(Clone, Debug)]
pub struct LogReader(Arc<RwLock<State>>);

#[derive(Debug)]
struct State {
    entries: SnapshotEntries,
    place: Option<ReplicaPlace>,
    compaction_error: Option<SnapshotError>,
}

impl LogStorage {
    /// Opens a log, or creates it if there is none; the directory must exist. The whole state is
    /// read into memory, on a thread that may block.
    ///
    /// Dropping the future is safe; a log that was being opened is closed again in the background.
    ///
    /// # Errors
    /// As for [`SnapshotWriter::open`]: [`SnapshotError::Locked`] where another process, or another storage, has it open
    /// and does not close it within three seconds.
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
                // Who had it may be closing it at this moment.
                Err(SnapshotError::Locked { .. }) if begun.elapsed() < CLOSING => {
                    std::thread::sleep(POLL)
                }
                opened => break opened?,
            }
        };
        let Snapshot { entries, cursor, scope_tag, .. } = snapshot;
        let place = cursor.map(|cursor| ReplicaPlace::new(cursor, scope_tag));
        Ok(Self {
            writer: Some(writer),
            state: LogReader(Arc::new(RwLock::new(State {
                entries,
                place,
                compaction_error: None,
            }))),
        })
    }

    /// Closes the log: what was committed is on the disk then, unless the policy is `Never`. To be called with what
    /// [`Replica::into_storage`](super::Replica::into_storage) gives, by those who want to know.
    ///
    /// A storage that is dropped is closed all the same, in the background where there is a runtime, and what goes wrong is
    /// logged.
    ///
    /// # Errors
    /// As for [`SnapshotWriter::close`].
    pub async fn close(mut self) -> Result<(), SnapshotError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let path = writer.path().to_owned();
        // Where the runtime ends, dropping has closed it, and nobody knows whether that went well.
        tokio::task::spawn_blocking(|| writer.close())
            .await
            .unwrap_or_else(|_| Err(interrupted(path, "close")))
    }

    /// Reads what is held, also while a replica has this storage.
    pub fn reader(&self) -> LogReader {
        self.state.clone()
    }
}

fn write(
    writer: &mut SnapshotWriter,
    changes: &[KvUpdate],
    place: Option<&ReplicaPlace>,
) -> Result<(), SnapshotError> {
    for change in changes {
        writer.append(change)?;
    }
    if let Some(place) = place {
        writer.set_scope_tag(place.tag());
    }
    writer.checkpoint(place.map(ReplicaPlace::cursor).as_ref())
}

/// Closing waits for the disk and for threads: not where tasks run.
impl Drop for LogStorage {
    fn drop(&mut self) {
        let writer = self.writer.take();
        if let (Some(writer), Ok(runtime)) = (writer, Handle::try_current()) {
            runtime.spawn_blocking(|| drop(writer));
        }
    }
}

/// The runtime ended while a log was opened or closed.
fn interrupted(path: PathBuf, operation: &'static str) -> SnapshotError {
    let source = std::io::Error::other("the runtime has ended");
    SnapshotError::Io { path, operation, offset: None, source: Arc::new(source) }
}

impl ReplicaStorage for LogStorage {
    fn place(&self) -> Result<Option<ReplicaPlace>, StorageError> {
        Ok(self.state.place())
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.state.is_empty())
    }

    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.state.len() as u64)
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<Held>>, StorageError> {
        let state = self.state.read();
        let held = |key: &Key| {
            let (version, created) = state.entries.held(key)?;
            Some(Held::new(version, created))
        };
        Ok(keys.iter().map(held).collect())
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, Held)) -> Result<(), StorageError> {
        for entry in &self.state.read().entries {
            let key = Key::of_checked(entry.key());
            visit(&key, Held::new(entry.version(), entry.created()));
        }
        Ok(())
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        place: Option<&ReplicaPlace>,
    ) -> Result<(), StorageError> {
        let Some(writer) = &mut self.writer else {
            return Err(StorageError::fatal("it is closed"));
        };
        if let Err(error) = write(writer, changes, place) {
            // What was appended must not count with the next commit; where that cannot be had, this is no use any more.
            return Err(match writer.discard() {
                Ok(()) => storage_error(error),
                Err(worse) => StorageError::fatal(worse),
            });
        }
        let compaction_error = writer.last_compaction_error().cloned();
        let mut state = self.state.write();
        state.compaction_error = compaction_error;
        for change in changes {
            match change {
                KvUpdate::Put(entry) => state.entries.insert(entry),
                KvUpdate::Delete(entry) => {
                    state.entries.remove(&entry.key);
                }
                KvUpdate::CaughtUp => {}
            }
        }
        state.place = place.copied();
        Ok(())
    }

    fn close(&mut self) -> Result<(), StorageError> {
        // Here, and not in the background as when it is dropped.
        self.writer.take().map_or(Ok(()), SnapshotWriter::close).map_err(storage_error)
    }
}

fn storage_error(error: SnapshotError) -> StorageError {
    if error.is_retryable() { StorageError::retryable(error) } else { StorageError::fatal(error) }
}

impl LogReader {
    /// The entry of a key; `None` where it is not held. The value is not copied.
    pub fn get(&self, key: &str) -> Option<KvEntry> {
        self.read().entries.get(key)
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.read().entries.is_empty()
    }

    /// How far the state is; `None` where nothing was committed, or a repair is under way.
    pub fn place(&self) -> Option<ReplicaPlace> {
        self.read().place
    }

    /// Why the log could not be compacted when that was tried last, as of the last commit: it goes on growing then, and that
    /// is tried again when it is longer by half.
    pub fn compaction_error(&self) -> Option<SnapshotError> {
        self.read().compaction_error.clone()
    }

    /// Calls `visit` for each key that is held, in no particular order: with the state as it is when this is called, while
    /// the replica and other readers go on. Takes some 40 to 70 bytes for each key meanwhile; values are not copied.
    pub fn for_each(&self, visit: impl FnMut(SnapshotEntry<'_>)) {
        // Not under the lock: once a commit waits for it, so does every reader, `visit` too.
        let entries = self.read().entries.clone();
        entries.iter().for_each(visit);
    }

    /// Calls `visit` for each key that is held, with its record or what is wrong with it; else as
    /// [`for_each`](Self::for_each). With this a table of the caller's own is filled at the start.
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
