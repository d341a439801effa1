//! A storage for replicas whose state is larger than memory: a file of the database `redb`.
//!
//! | file | idea |
//! |---|---|
//! | `database.rs` | the open file, shared with readers: opened again after the disk was full |
//! | `error.rs` | what can be wrong with it, and whether trying again can help |
//! | `options.rs` | when commits become durable, and how much memory it takes |
//! | `reader.rs` | reading what is held while the replica runs |
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

use self::database::{ABOUT, PLACE, STATE, Shared};
use self::error::{Failure, RedbFailure};
use super::storage::{Held, ReplicaPlace, ReplicaStorage, StorageError};
use crate::store::{Key, KvUpdate};

pub use options::{RedbOptions, RedbSync};
pub use reader::{RedbReader, RedbScan};

/// Keeps keys, versions, values and the place in a file, by the embedded database [redb](https://docs.rs/redb): for a
/// state that is larger than memory, and one that is there at once when the process starts.
///
/// Each commit is one transaction: after a crash its changes and its place are both there, or neither is. How soon it is
/// safe from a crash is up to [`RedbSync`].
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
/// check for that; it is a fatal error, which names the path.
///
/// Dropping it closes the file; its readers then get errors. That can take as long as a commit.
///
/// A damaged record is an error that names its key, never a wrong value. Of its own pages redb verifies what a crash can
/// have damaged; a file that was damaged otherwise may make it panic, unless
/// [`check_when_opened`](RedbOptions::check_when_opened) is set. Whatever happened to it, the file can be deleted: the
/// replica then takes the state anew.
pub struct RedbStorage {
    shared: Arc<Shared>,
    sync: RedbSync,
    /// When the last commit was that became durable, or the file was opened.
    last_durable: Instant,
    /// Whether there are commits since, which a reopened file would not have.
    has_pending: bool,
    /// For the bytes of one record after another.
    record: Vec<u8>,
}

impl RedbStorage {
    /// Opens the file at this path, or creates it if it is missing or empty. The directory has to
    /// exist. Links in the path are resolved once. An empty file keeps its owner and mode.
    ///
    /// It takes long where the last process that had the file open was killed: redb then reads all of it. The work is
    /// done in a thread for what blocks, so it has to be called in a tokio runtime. When the future is dropped the file
    /// may still be made, and is closed again.
    ///
    /// # Errors
    /// Retryable where the file is open already, in this process or in another, or the disk is full. Otherwise fatal: the
    /// path names a directory, a device or anything other than a file, the file cannot be opened,
    /// is no redb database, is one that something else has made, has a format that this version
    /// does not know, or is damaged. All of them name the path.
    pub async fn open(path: impl AsRef<Path>, options: RedbOptions) -> Result<Self, StorageError> {
        let path = path.as_ref().to_owned();
        let sync = options.sync;
        let opening = tokio::task::spawn_blocking(move || Shared::open(path, options));
        match opening.await {
            Ok(shared) => Ok(Self::over(shared?, sync)),
            // Its own panics, and a runtime that ends.
            Err(error) => Err(StorageError::fatal(error)),
        }
    }

    fn over(shared: Shared, sync: RedbSync) -> Self {
        let shared = Arc::new(shared);
        Self { shared, sync, last_durable: Instant::now(), has_pending: false, record: Vec::new() }
    }

    /// A reader of what is held, to be used while a replica has the storage.
    pub fn reader(&self) -> RedbReader {
        RedbReader::new(Arc::clone(&self.shared))
    }

    /// Makes all commits durable and closes the file, which dropping the storage does too, but without telling whether
    /// it succeeded. Blocks as long as a commit does.
    ///
    /// # Errors
    /// What is in the way. The file is closed all the same; commits that were not durable yet may be lost.
    pub fn close(self) -> Result<(), StorageError> {
        self.shared.close()
    }

    fn write(
        &mut self,
        changes: &[KvUpdate],
        place: Option<&ReplicaPlace>,
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
                match place {
                    Some(place) => {
                        drop(about.insert(PLACE, record::place_to_bytes(place).as_slice())?)
                    }
                    None => drop(about.remove(PLACE)?),
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }
}

impl ReplicaStorage for RedbStorage {
    fn place(&self) -> Result<Option<ReplicaPlace>, StorageError> {
        self.shared.read(|database, path| database::place(&database.begin_read()?, path))
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        self.shared.read(|database, _| Ok(database.begin_read()?.open_table(STATE)?.is_empty()?))
    }

    fn len(&self) -> Result<u64, StorageError> {
        self.shared.read(|database, _| Ok(database.begin_read()?.open_table(STATE)?.len()?))
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<Held>>, StorageError> {
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

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, Held)) -> Result<(), StorageError> {
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
        place: Option<&ReplicaPlace>,
    ) -> Result<(), StorageError> {
        let is_durable = self.sync.is_due(self.last_durable.elapsed());
        let durability = if is_durable { Durability::Immediate } else { Durability::None };
        match self.write(changes, place, durability) {
            Ok(()) => {
                self.has_pending = !is_durable;
                if is_durable {
                    self.last_durable = Instant::now();
                }
                Ok(())
            }
            // redb does nothing more with this file once a write has failed. It can be opened again, as soon as there is
            // room, and has then what was durable: which is everything, if nothing is pending. This commit may be
            // there too, if its last step was what failed; it is made again, and comes to the same.
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

/// The path, and no content.
impl fmt::Debug for RedbStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStorage")
            .field("path", &self.shared.path())
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}
