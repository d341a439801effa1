//! The open file, which the storage and its readers share.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use ::redb::{Builder, Database, ReadTransaction, ReadableDatabase, TableDefinition};

use super::error::{Failure, RedbFailure};
use super::options::RedbOptions;
use super::record;
use crate::replica::storage::{ReplicaPlace, StorageError};

/// A key as bytes to its record. Not as text, which redb would not check, and panic over.
pub(super) const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("shizuku.replica.state");
/// What is not of one key.
pub(super) const ABOUT: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("shizuku.replica.about");

/// In [`ABOUT`]: the format of the tables.
pub(super) const FORMAT: &[u8] = b"format";
/// In [`ABOUT`]: the place, where there is one.
pub(super) const PLACE: &[u8] = b"place";

const THIS_FORMAT: &[u8] = &[1];

/// Opens the file, however often.
type Opener = Box<dyn Fn() -> Result<Database, Failure> + Send + Sync>;

/// The database of a storage and its readers.
pub(super) struct Shared {
    path: PathBuf,
    opener: Opener,
    /// Whether there is a file to be opened again.
    is_there: fn(&Path) -> bool,
    state: RwLock<State>,
}

enum State {
    Open(Database),
    /// It had to be closed, and whoever needs it next opens it.
    Interrupted,
    Closed,
}

impl Shared {
    /// Opens the file at this path, or makes it. Blocks.
    pub(super) fn open(path: PathBuf, options: RedbOptions) -> Result<Self, StorageError> {
        if !path.exists() {
            make(&path, options).map_err(|failure| opening_error(failure, &path))?;
        }
        let opener = {
            let path = path.clone();
            move || Ok(builder(options).create(&path)?)
        };
        let mut shared = Self::over(path, Box::new(opener))?;
        shared.is_there = Path::exists;
        Ok(shared)
    }

    /// Over what the opener opens.
    pub(super) fn over(path: PathBuf, opener: Opener) -> Result<Self, StorageError> {
        let opened = opener().and_then(|database| prepare(database, &path));
        let database = opened.map_err(|failure| opening_error(failure, &path))?;
        Ok(Self { path, opener, is_there: |_| true, state: RwLock::new(State::Open(database)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something with the database, which is opened before if it has to be.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        let is_interrupted = {
            // Not held while it is opened, which needs it alone.
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

    /// Reads something.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Database, &Path) -> Result<T, Failure>,
    ) -> Result<T, StorageError> {
        let read = self.with(|database| work(database, &self.path));
        read.map_err(|failure| failure.into_storage_error(&self.path, "read"))
    }

    fn open_again(&self) -> Result<(), Failure> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Another may have been faster.
        if let State::Interrupted = &*state {
            // Not one that was made in its place: it would lack what the replica takes for kept.
            if !(self.is_there)(&self.path) {
                return Err(Failure::from(RedbFailure::Gone { path: self.path.clone() }));
            }
            let database = (self.opener)()?;
            if is_new(&database)? {
                return Err(Failure::from(RedbFailure::Gone { path: self.path.clone() }));
            }
            *state = State::Open(prepare(database, &self.path)?);
        }
        Ok(())
    }

    /// Closes the file, and opens it again when it is needed.
    pub(super) fn close_until_needed(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(_) = &*state {
            // The old one is closed with the assignment; what it could say is known, or it would not be closed.
            *state = State::Interrupted;
        }
    }

    /// Closes the file for good. What reads from it gets an error from then on.
    pub(super) fn close(&self) -> Result<(), StorageError> {
        let state = std::mem::replace(
            &mut *self.state.write().unwrap_or_else(PoisonError::into_inner),
            State::Closed,
        );
        match state {
            State::Open(database) => {
                let closed = database.close().map_err(Failure::from);
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

fn opening_error(failure: Failure, path: &Path) -> StorageError {
    match failure {
        Failure::Redb(error) if error.is_foreign_file() => {
            StorageError::fatal(RedbFailure::NoDatabase { path: path.to_owned(), source: error })
        }
        failure => failure.into_storage_error(path, "opening"),
    }
}

/// Makes the tables in a new database; looks at those of another, so that nothing is done with what is not a replica's.
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
            // At most a few bytes, and none of them of a value.
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

/// Whether nothing was ever put into it.
fn is_new(database: &Database) -> Result<bool, Failure> {
    let reading = database.begin_read()?;
    Ok(reading.list_tables()?.next().is_none() && reading.list_multimap_tables()?.next().is_none())
}

/// The place that a transaction sees.
pub(super) fn place(reading: &ReadTransaction, path: &Path) -> Result<Option<ReplicaPlace>, Failure> {
    match reading.open_table(ABOUT)?.get(PLACE)? {
        Some(bytes) => record::place_from_bytes(bytes.value(), path).map(Some),
        None => Ok(None),
    }
}

/// Makes a database under another name and gives it its own when it is whole: redb cannot open what it was making when
/// the process was killed.
fn make(path: &Path, options: RedbOptions) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", fastrand::u64(..)));
    let new = path.with_file_name(name);
    let made = make_whole(&new, path, options);
    // Where there is none, making it has failed or it has been renamed.
    let _ = fs::remove_file(&new);
    made
}

fn make_whole(new: &Path, path: &Path, options: RedbOptions) -> Result<(), Failure> {
    let not_made = |source| Failure::from(RedbFailure::NotMade { path: path.to_owned(), source });
    prepare(builder(options).create(new)?, path)?.close()?;
    // What is in it is nobody else's business.
    #[cfg(unix)]
    fs::set_permissions(new, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(not_made)?;
    let named = match fs::hard_link(new, path) {
        // Another was faster, and may have its database open: it is to be opened, not replaced.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // There are file systems without links.
        Err(_) => fs::rename(new, path),
        Ok(()) => Ok(()),
    };
    // Else a loss of power can take the name away, and with it all that was synced to the file.
    named.and_then(|()| sync_directory(path)).map_err(not_made)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Elsewhere a directory cannot be opened, and needs no sync.
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
