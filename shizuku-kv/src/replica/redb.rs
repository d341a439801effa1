//! A storage for replicas whose state is larger than memory: a file of the database `redb`.
//!
//! | file | idea |
//! |---|---|
//! | `database.rs` | the open file, shared with readers: reopened after the disk was full |
//! | `error.rs` | the errors of the database, and whether a retry can help |
//! | `options.rs` | when commits become durable, and the memory of the database |
//! | `reader.rs` | reading the state while the replica runs |
//! | `record.rs` | an entry as bytes |

mod database;
mod error;
mod options;
mod reader;
mod record;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ::redb::{Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata};

use self::database::{ABOUT, CHECKPOINT, STATE, SharedDatabase};
use self::error::{Failure, RedbFailure};
use super::storage::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
use crate::store::{Key, KvUpdate};

pub use options::{RedbOptions, RedbSync};
pub use reader::{RedbReader, RedbScan};

/// Keeps keys, versions, values and the checkpoint in a file, with the embedded database
/// [redb](https://docs.rs/redb). For a state that is larger than memory, or that must be available
/// immediately when the process starts.
///
/// Each commit is one transaction: after a crash either both its changes and its checkpoint exist,
/// or neither. [`RedbSync`] decides how soon it survives a crash.
///
/// While the replica has the storage, [`RedbReader`]s read it:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// use shizuku_kv::replica::{RedbOptions, RedbStorage, ReplicaStorage};
///
/// let storage = RedbStorage::open(directory.join("replica.redb"), RedbOptions::new()).await?;
/// let reader = storage.reader();
/// assert!(storage.is_empty()?);
/// assert!(reader.get("config.database")?.is_none());
/// # Ok(())
/// # }
/// ```
///
/// No other program may remove, replace or truncate the file meanwhile. Each commit and `close`
/// check for that, and return a fatal error that names the path.
///
/// Dropping the storage closes the file; its readers then get errors. Closing can take as long as a
/// commit.
///
/// A damaged record is an error that names its key, never a wrong value. However, redb verifies
/// only those of its own pages that a crash can have damaged. A file that was damaged otherwise may
/// make it panic, unless [`check_when_opened`](RedbOptions::check_when_opened) is set. A damaged
/// file can always be deleted: the replica then resyncs.
pub struct RedbStorage {
    shared: Arc<SharedDatabase>,
    sync: RedbSync,
    /// Time of the last durable commit, or of the opening of the file.
    last_durable: Instant,
    /// True if later commits exist that a reopened file would not have.
    has_pending: bool,
    /// Buffer for the bytes of one record after another.
    record: Vec<u8>,
}

impl RedbStorage {
    /// Opens the file at this path, or creates it if it is missing or empty. The directory must
    /// exist. Links in the path are resolved once. An empty file keeps its owner and mode.
    ///
    /// It takes long if the last process that had the file open was killed, because redb then reads
    /// all of it. The work runs in a blocking thread, so it has to be called in a tokio runtime. If
    /// the future is dropped, the file may still be created, and is closed again.
    ///
    /// # Errors
    /// Returns a retryable error if the file is already open, in this process or in another, or the
    /// disk is full. Otherwise returns a fatal error: the path names a directory, a device or
    /// anything other than a file, or the file cannot be opened. It is also fatal if the file is
    /// not a redb database, belongs to another program, has an unknown format, or is damaged. All
    /// errors name the path.
    pub async fn open(path: impl AsRef<Path>, options: RedbOptions) -> Result<Self, StorageError> {
        let path = path.as_ref().to_owned();
        let sync = options.sync;
        let opening = tokio::task::spawn_blocking(move || SharedDatabase::open(path, options));
        match opening.await {
            Ok(shared) => Ok(Self::over(shared?, sync)),
            // The task has panicked, or the runtime has ended.
            Err(error) => Err(StorageError::fatal(error)),
        }
    }

    fn over(shared: SharedDatabase, sync: RedbSync) -> Self {
        let shared = Arc::new(shared);
        Self { shared, sync, last_durable: Instant::now(), has_pending: false, record: Vec::new() }
    }

    /// Returns a reader of the state, for use while a replica has the storage.
    pub fn reader(&self) -> RedbReader {
        RedbReader::new(Arc::clone(&self.shared))
    }

    /// Makes all commits durable and closes the file. Dropping the storage does the same, but does
    /// not report whether it succeeded. Blocks as long as a commit does.
    ///
    /// # Errors
    /// Returns the error of the storage. The file is closed nevertheless; commits that were not
    /// durable yet may be lost.
    pub fn close(self) -> Result<(), StorageError> {
        self.shared.close()
    }

    fn write(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
        durability: Durability,
    ) -> Result<(), Failure> {
        let (record, shared) = (&mut self.record, &self.shared);
        shared.change(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            {
                let mut state = transaction.open_table(STATE)?;
                for change in changes {
                    match change {
                        KvUpdate::Put(entry) => {
                            record::write(record, entry);
                            state.insert(entry.key.as_bytes(), record.as_slice())?;
                        }
                        KvUpdate::Delete(entry) => drop(state.remove(entry.key.as_bytes())?),
                        KvUpdate::CaughtUp => {}
                    }
                }
                let mut about = transaction.open_table(ABOUT)?;
                match checkpoint {
                    Some(checkpoint) => {
                        drop(about.insert(
                            CHECKPOINT,
                            record::checkpoint_to_bytes(checkpoint).as_slice(),
                        )?)
                    }
                    None => drop(about.remove(CHECKPOINT)?),
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }
}

impl ReplicaStorage for RedbStorage {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        self.shared.read(|database, path| database::checkpoint(&database.begin_read()?, path))
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        self.shared.read(|database, _| Ok(database.begin_read()?.open_table(STATE)?.is_empty()?))
    }

    fn len(&self) -> Result<u64, StorageError> {
        self.shared.read(|database, _| Ok(database.begin_read()?.open_table(STATE)?.len()?))
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        self.shared.read(|database, path| {
            let state = database.begin_read()?.open_table(STATE)?;
            let held = |key: &Key| match state.get(key.as_bytes())? {
                Some(bytes) => {
                    let record = record::read(key.as_bytes(), bytes.value());
                    Ok(Some(record.map_err(|damage| damage.at(path))?.held))
                }
                None => Ok(None),
            };
            keys.iter().map(held).collect()
        })
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        self.shared.read(|database, path| {
            for item in database.begin_read()?.open_table(STATE)?.iter()? {
                let (key, bytes) = item?;
                let record =
                    record::read(key.value(), bytes.value()).map_err(|damage| damage.at(path))?;
                visit(&record.key, record.held);
            }
            Ok(())
        })
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        let is_durable = self.sync.is_due(self.last_durable.elapsed());
        let durability = if is_durable { Durability::Immediate } else { Durability::None };
        match self.write(changes, checkpoint, durability) {
            Ok(()) => {
                self.has_pending = !is_durable;
                if is_durable {
                    self.last_durable = Instant::now();
                }
                Ok(())
            }
            // redb rejects this file after a failed write. It can be reopened as soon as the disk
            // has room, and then has all durable commits, which is everything if none is pending.
            // It may even have this commit, if its last step failed; repeating the commit has the
            // same result.
            Err(Failure::Redb(error)) if error.is_full() && self.has_pending => {
                let path = self.shared.path().to_owned();
                Err(RedbFailure::FullWithPending { path, source: error }.into())
            }
            Err(failure) => {
                if matches!(&failure, Failure::Redb(error) if error.is_full()) {
                    self.shared.close_until_needed();
                }
                Err(failure.into_storage_error(self.shared.path(), "commit"))
            }
        }
    }

    fn close(&mut self) -> Result<(), StorageError> {
        self.shared.close()
    }
}

impl Drop for RedbStorage {
    fn drop(&mut self) {
        if let Err(error) = self.shared.close() {
            tracing::warn!(%error, "a replica's database was not closed in good order");
        }
    }
}

/// Shows the path, and no content.
impl fmt::Debug for RedbStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStorage")
            .field("path", &self.shared.path())
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}
