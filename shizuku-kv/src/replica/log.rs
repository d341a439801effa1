//! A replica's state in memory, and in an append-only log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::storage::{Held, ReplicaPlace, ReplicaStorage, StorageError};
use crate::snapshot::{
    Snapshot, SnapshotEntries, SnapshotEntry, SnapshotError, SnapshotOptions, SnapshotWriter,
};
use crate::store::{Key, KvEntry, KvUpdate};

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
    writer: SnapshotWriter,
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
}

impl LogStorage {
    /// Opens a log, or creates it where there is none. The whole state is read into memory, on a thread where that may
    /// block.
    ///
    /// Dropping the future is safe; a log that was being opened is closed again in the background.
    ///
    /// # Errors
    /// As for [`SnapshotWriter::open`]: [`SnapshotError::Locked`] where another process, or another storage, has it open.
    pub async fn open(path: impl AsRef<Path>, options: SnapshotOptions) -> Result<Self, SnapshotError> {
        let path = path.as_ref().to_owned();
        let opened = path.clone();
        let open = move || Self::open_here(&opened, options);
        tokio::task::spawn_blocking(open).await.unwrap_or_else(|_| Err(interrupted(path)))
    }

    fn open_here(path: &Path, options: SnapshotOptions) -> Result<Self, SnapshotError> {
        let (writer, snapshot) = SnapshotWriter::open_whatever_scope(path, options)?;
        let Snapshot { entries, cursor, scope_tag, .. } = snapshot;
        let place = cursor.map(|cursor| ReplicaPlace::new(cursor, scope_tag));
        Ok(Self { writer, state: LogReader(Arc::new(RwLock::new(State { entries, place }))) })
    }

    /// Reads what is held, also while a replica has this storage.
    pub fn reader(&self) -> LogReader {
        self.state.clone()
    }

    fn write(&mut self, changes: &[KvUpdate], place: Option<&ReplicaPlace>) -> Result<(), SnapshotError> {
        for change in changes {
            self.writer.append(change)?;
        }
        if let Some(place) = place {
            self.writer.set_scope_tag(place.scope());
        }
        self.writer.checkpoint(place.map(ReplicaPlace::cursor).as_ref())
    }
}

/// The runtime ended while a log was opened.
fn interrupted(path: PathBuf) -> SnapshotError {
    let source = std::io::Error::other("the runtime has ended");
    SnapshotError::Io { path, operation: "open", offset: None, source: Arc::new(source) }
}

impl ReplicaStorage for LogStorage {
    fn place(&self) -> Result<Option<ReplicaPlace>, StorageError> {
        Ok(self.state.place())
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.state.is_empty())
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

    fn commit(&mut self, changes: &[KvUpdate], place: Option<&ReplicaPlace>) -> Result<(), StorageError> {
        if let Err(error) = self.write(changes, place) {
            // What was appended must not count with the next commit; where that cannot be had, this is no use any more.
            return Err(match self.writer.discard() {
                Ok(()) => storage_error(error),
                Err(worse) => StorageError::fatal(worse),
            });
        }
        let mut state = self.state.write();
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

    /// Calls `visit` for each key that is held, in no particular order. Meanwhile the replica cannot go on: collect what
    /// takes longer.
    pub fn for_each(&self, visit: impl FnMut(SnapshotEntry<'_>)) {
        self.read().entries.iter().for_each(visit);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
