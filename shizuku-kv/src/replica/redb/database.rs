//! The open file, which the storage and its readers share.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use ::redb::backends::FileBackend;
use ::redb::{Builder, Database, ReadTransaction, ReadableDatabase, TableDefinition};

use super::error::{Failure, RedbFailure};
use super::options::RedbOptions;
use super::record;
use crate::local_file::{self, FileId, NotRegular};
use crate::replica::storage::{Checkpoint, StorageError};

/// Table from a key as bytes to its record. Text keys would be unchecked, and redb would panic over
/// an invalid one.
pub(super) const STATE: TableDefinition<'_, &[u8], &[u8]> =
    TableDefinition::new("shizuku.replica.state");
/// Table of everything that does not belong to one key.
pub(super) const ABOUT: TableDefinition<'_, &[u8], &[u8]> =
    TableDefinition::new("shizuku.replica.about");

/// Key in [`ABOUT`] of the format of the tables.
pub(super) const FORMAT: &[u8] = b"format";
/// Key in [`ABOUT`] of the checkpoint, if one exists.
pub(super) const CHECKPOINT: &[u8] = b"place";

const THIS_FORMAT: &[u8] = &[1];

/// Opens the file, any number of times. Also returns its identity, unless the database is not in a
/// file.
type Opener = Box<dyn Fn() -> Result<(Database, Option<FileId>), Failure> + Send + Sync>;

/// The database of a storage and its readers.
pub(super) struct SharedDatabase {
    path: PathBuf,
    opener: Opener,
    /// The first opened file; no other file is reopened in its place.
    file: Option<FileId>,
    /// Length of the file in bytes after the last commit. Only commits change it.
    len: AtomicU64,
    state: RwLock<State>,
}

enum State {
    Open(Database),
    /// The file had to be closed, and the next access reopens it.
    Interrupted,
    Closed,
}

impl SharedDatabase {
    /// Opens the file at this path, or creates it. Blocks.
    pub(super) fn open(path: PathBuf, options: RedbOptions) -> Result<Self, StorageError> {
        let path = local_file::resolve(&path)
            .map_err(|source| opening_error(not_opened(&path, source), &path))?;
        if !path.exists() {
            make(&path, options).map_err(|failure| opening_error(failure, &path))?;
        }
        let opener = {
            let path = path.clone();
            move || {
                let file = open_file(&path).map_err(|source| not_opened(&path, source))?;
                let found = file.metadata().map_err(|source| not_opened(&path, source))?;
                Ok((
                    builder(options).create_with_backend(FileBackend::new(file)?)?,
                    Some(FileId::of(&found)),
                ))
            }
        };
        Self::over(path, Box::new(opener))
    }

    /// Opens the database with an opener.
    pub(super) fn over(path: PathBuf, opener: Opener) -> Result<Self, StorageError> {
        let opened = opener().and_then(|(database, file)| Ok((prepare(database, &path)?, file)));
        let (database, file) = opened.map_err(|failure| opening_error(failure, &path))?;
        let state = RwLock::new(State::Open(database));
        let shared = Self { path, opener, file, len: AtomicU64::new(0), state };
        shared.note_len();
        Ok(shared)
    }

    /// Returns an error if another program has removed or replaced the file.
    fn check_identity(&self) -> Result<(), Failure> {
        let change = self.file.and_then(|file| local_file::identity(&self.path, file).change());
        change.map_or(Ok(()), |what| Err(self.interfered(what)))
    }

    /// Returns an error if another program has removed, replaced or truncated the file since the
    /// last commit.
    fn check_file(&self) -> Result<(), Failure> {
        self.check_identity()?;
        let is_cut = self.found_len().is_some_and(|len| len < self.len.load(Ordering::Relaxed));
        if is_cut { Err(self.interfered("truncated")) } else { Ok(()) }
    }

    fn interfered(&self, what: &'static str) -> Failure {
        Failure::from(RedbFailure::Interfered { path: self.path.clone(), what })
    }

    fn found_len(&self) -> Option<u64> {
        self.file?;
        Some(fs::metadata(&self.path).ok()?.len())
    }

    fn note_len(&self) {
        if let Some(len) = self.found_len() {
            self.len.store(len, Ordering::Relaxed);
        }
    }

    /// Changes the database, if it is still the opened file. At most one call runs at a time.
    pub(super) fn change(
        &self,
        work: impl FnOnce(&Database) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.check_file()?;
        let changed = self.with(work);
        // A commit can change the length. But a commit to a file that was removed meanwhile has not
        // persisted anything.
        self.check_identity()?;
        self.note_len();
        changed
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on the database, and reopens it before if necessary.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let is_interrupted = {
            // Releases the lock before reopening, which needs it exclusively.
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            matches!(&*state, State::Interrupted)
        };
        if is_interrupted {
            self.open_again()?;
        }
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(database) => work(database),
            State::Interrupted | State::Closed => {
                Err(Failure::from(RedbFailure::Closed { path: self.path.clone() }))
            }
        }
    }

    /// Reads from the database.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Database, &Path) -> Result<T, Failure>,
    ) -> Result<T, StorageError> {
        let read = self.with(|database| work(database, &self.path));
        read.map_err(|failure| failure.into_storage_error(&self.path, "read"))
    }

    fn open_again(&self) -> Result<(), Failure> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have reopened it.
        if let State::Interrupted = &*state {
            // Rejects another file at the path: it would lack entries that the replica considers
            // persisted.
            self.check_file()?;
            let (database, file) = (self.opener)()?;
            if file != self.file || is_new(&database)? {
                return Err(Failure::from(RedbFailure::Gone { path: self.path.clone() }));
            }
            *state = State::Open(prepare(database, &self.path)?);
        }
        Ok(())
    }

    /// Closes the file, and reopens it at the next access.
    pub(super) fn close_until_needed(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(_) = &*state {
            // The assignment closes the old file. An error of closing it is already known, because
            // it is the reason for closing it.
            *state = State::Interrupted;
            self.note_len();
        }
    }

    /// Closes the file permanently. Later reads return an error.
    pub(super) fn close(&self) -> Result<(), StorageError> {
        let state = std::mem::replace(
            &mut *self.state.write().unwrap_or_else(PoisonError::into_inner),
            State::Closed,
        );
        match state {
            State::Open(database) => {
                let kept = self.check_file();
                let closed = kept.and(database.close().map_err(Failure::from));
                closed.map_err(|failure| failure.into_storage_error(&self.path, "close"))
            }
            State::Interrupted | State::Closed => Ok(()),
        }
    }
}

fn builder(options: RedbOptions) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_size).set_check_integrity_on_open(options.checks);
    builder
}

/// Opens the file at a path without links, or creates it.
fn open_file(path: &Path) -> io::Result<File> {
    match local_file::open(path, OpenOptions::new().read(true).write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create_file(path),
        opened => opened,
    }
}

/// Creates a file that only its owner can read. Fails if the path exists.
fn create_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.read(true).write(true).create_new(true).open(path)
}

fn not_opened(path: &Path, source: io::Error) -> Failure {
    match NotRegular::within(&source) {
        Some(_) => Failure::from(RedbFailure::NotAFile { path: path.to_owned(), source }),
        None => Failure::from(::redb::StorageError::Io(source)),
    }
}

fn opening_error(failure: Failure, path: &Path) -> StorageError {
    match failure {
        Failure::Redb(error) if error.is_foreign_file() => {
            StorageError::fatal(RedbFailure::NoDatabase { path: path.to_owned(), source: error })
        }
        failure => failure.into_storage_error(path, "opening"),
    }
}

/// Creates the tables in a new database. Checks the tables of an existing one, so that a foreign
/// database is not changed.
fn prepare(database: Database, path: &Path) -> Result<Database, Failure> {
    let reading = database.begin_read()?;
    if is_new(&database)? {
        let transaction = database.begin_write()?;
        transaction.open_table(STATE)?;
        transaction.open_table(ABOUT)?.insert(FORMAT, THIS_FORMAT)?;
        transaction.commit()?;
        return Ok(database);
    }
    let about = reading.open_table(ABOUT)?;
    match about.get(FORMAT)? {
        Some(format) if format.value() == THIS_FORMAT => {}
        Some(format) => {
            // Shows a few bytes only, none of them of a value.
            let found = format!("{:?}", format.value().iter().take(8).collect::<Vec<_>>());
            return Err(Failure::from(RedbFailure::OtherFormat { path: path.to_owned(), found }));
        }
        None => {
            let what = "the mark of its format is missing".to_owned();
            return Err(Failure::from(RedbFailure::damaged(path, what)));
        }
    }
    reading.open_table(STATE)?;
    drop(about);
    drop(reading);
    Ok(database)
}

/// Returns true if the database never had any content.
fn is_new(database: &Database) -> Result<bool, Failure> {
    let reading = database.begin_read()?;
    Ok(reading.list_tables()?.next().is_none() && reading.list_multimap_tables()?.next().is_none())
}

/// Returns the checkpoint that a transaction sees.
pub(super) fn checkpoint(
    reading: &ReadTransaction,
    path: &Path,
) -> Result<Option<Checkpoint>, Failure> {
    match reading.open_table(ABOUT)?.get(CHECKPOINT)? {
        Some(bytes) => record::checkpoint_from_bytes(bytes.value(), path).map(Some),
        None => Ok(None),
    }
}

/// Creates a database under another name and renames it when it is whole, because redb cannot open
/// a database whose creation was interrupted.
fn make(path: &Path, options: RedbOptions) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", fastrand::u64(..)));
    let new = path.with_file_name(name);
    let made = create_and_link(&new, path, options);
    // The file is missing if its creation has failed or it has been renamed.
    let _ = fs::remove_file(&new);
    made
}

fn create_and_link(new: &Path, path: &Path, options: RedbOptions) -> Result<(), Failure> {
    let not_made = |source| Failure::from(RedbFailure::NotMade { path: path.to_owned(), source });
    let file = create_file(new).map_err(|source| not_opened(new, source))?;
    prepare(builder(options).create_with_backend(FileBackend::new(file)?)?, path)?.close()?;
    // Uses a link, because renaming would replace a file that was created at the path meanwhile.
    // Such a file is opened instead. On file systems without links the database is created in
    // place.
    let _ = fs::hard_link(new, path);
    // Otherwise a loss of power can remove the name, and with it everything that was synced to the
    // file.
    local_file::sync_directory(path).map_err(not_made)
}
