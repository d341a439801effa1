//! The folder of a database: checked, created, opened, and recognized later.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction,
    ReadableDatabase, TransactionError, WriteTransaction,
};

use super::draft::{Draft, remove_drafts};
use super::failure::Failure;
use super::network;
use super::options::{Mode, Options};
use super::owner::{self, Owner};
use super::place::{CACHE, FILE, foreign_file, make_folder, unavailable};
use super::tables::{ABOUT, FORMAT, TABLES, THIS_FORMAT};
use crate::local_file::{self, FileId, NotRegular};
use crate::store::{KvError, KvResult};

/// Interval between two tries to open a database for reading while another process repairs it.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Maximum time for opening a database again after a failed commit.
const REOPENING: Duration = Duration::from_secs(1);

/// Size in bytes of a file whose repair would take long, so that each commit records what a repair
/// would have to find out.
const LARGE: u64 = 256 * 1024 * 1024;

/// A folder whose database is open.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// The folder as the user has named it.
    shown: PathBuf,
    path: PathBuf,
    file: PathBuf,
    id: FileId,
    options: Options,
    owner: Option<PathBuf>,
}

/// An open database.
pub(super) enum Opened {
    Writer(Database),
    Reader(ReadOnlyDatabase),
}

impl Opened {
    pub(super) fn begin_read(&self) -> Result<ReadTransaction, Failure> {
        Ok(match self {
            Self::Writer(database) => database.begin_read()?,
            Self::Reader(database) => database.begin_read()?,
        })
    }

    /// Begins a write without waiting for another process.
    ///
    /// Its commit has two phases in every mode. If the sync of a commit of one phase fails, the
    /// cache of the operating system still has the commit. Opening the file again would find it
    /// there, and a loss of power would then destroy the whole database (ADR 0110).
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, TransactionError> {
        match self {
            Self::Writer(database) => {
                let mut transaction = database.try_begin_write()?;
                transaction.set_two_phase_commit(true);
                Ok(transaction)
            }
            Self::Reader(_) => Err(TransactionError::WouldBlock),
        }
    }

    pub(super) fn close(self) -> Result<(), Failure> {
        match self {
            Self::Writer(database) => database.close()?,
            Self::Reader(database) => database.close()?,
        }
        Ok(())
    }
}

impl Folder {
    /// Opens the database of a folder, and creates both if they do not exist. Blocks.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidUrl`] if the path cannot be a folder of this library. Returns
    /// [`KvError::Unavailable`] if another process has it open in a mode that does not fit, or
    /// repairs it beyond `until`. All errors name the path.
    pub(super) fn open(options: Options, until: Instant) -> KvResult<(Self, Opened)> {
        let shown = options.folder.clone();
        let path = folder(&options)?;
        if options.mode == Mode::Shared {
            reject_network(&path, &shown)?;
        }
        let file = path.join(FILE);
        if !file.try_exists().unwrap_or(true) {
            make(&path, &file, &options)?;
        }
        let (opened, id) = open_database(&path, &file, &options, until)?;
        let mut folder = Self { shown, path, file, id, options, owner: None };
        let (mode, permissions) = (folder.options.mode, folder.options.permissions);
        if !mode.is_read_only() {
            owner::remove_stale(&folder.path, mode);
            remove_drafts(&folder.path);
        }
        let this = Owner::this(mode, folder.options.label.as_deref());
        // A failure is ignored: only the errors of other processes use the file, and a reader may
        // have no right to write it.
        folder.owner = owner::write(&folder.path, &this, mode, permissions).ok();
        Ok((folder, opened))
    }

    /// Opens the database again after a failed commit.
    pub(super) fn reopen(&self) -> Result<Opened, Failure> {
        self.check_identity()?;
        let until = Instant::now() + REOPENING;
        match open_file(&self.path, &self.file, self.options.mode, until) {
            Ok((opened, id)) if id == self.id => Ok(opened),
            Ok(_) => Err(Failure::Interfered("replaced by another file")),
            Err(failure) => Err(failure),
        }
    }

    /// Removes the owner file of this process.
    pub(super) fn leave(&self) {
        if let Some(owner) = &self.owner {
            let _ = fs::remove_file(owner);
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.options.mode
    }

    pub(super) fn has_events(&self) -> bool {
        self.options.has_events
    }

    /// Returns the permissions of new files.
    pub(super) fn permissions(&self) -> u32 {
        self.options.permissions
    }

    /// Returns the path of the database.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns an error if another program has removed or replaced the database.
    pub(super) fn check_identity(&self) -> Result<(), Failure> {
        self.is_large().map(drop)
    }

    /// Checks like [`check_identity`](Self::check_identity), and returns whether a repair of the
    /// database would take long.
    pub(super) fn is_large(&self) -> Result<bool, Failure> {
        let (identity, len) = local_file::identity_and_len(&self.file, self.id);
        match identity.change() {
            Some(what) => Err(Failure::Interfered(what)),
            None => Ok(len.is_some_and(|len| len >= LARGE)),
        }
    }

    /// Returns the stopped process that may hold the lock of the writers, and the way out.
    pub(super) fn in_the_way(&self) -> Option<String> {
        let reason = owner::stopped(&self.path)?;
        Some(format!("{} {reason}", self.shown.display()))
    }
}

/// Finds or creates the folder. Returns its path without links.
fn folder(options: &Options) -> KvResult<PathBuf> {
    let path = &options.folder;
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
                let fault = "is a symbolic link to a folder that does not exist";
                return Err(invalid(&format!(
                    "{shown} {fault}; create that folder or name another"
                )));
            }
            if options.mode.is_read_only() {
                return Err(invalid(&format!(
                    "{shown} does not exist; a writer creates it: leave read_only=true out"
                )));
            }
            make_folder(path, options.permissions)?;
            fs::metadata(path).map_err(|error| unavailable(path, &error))?
        }
        Err(error) => return Err(unavailable(path, &error)),
    };
    if !found.is_dir() {
        return Err(invalid(&format!("{shown} is not a folder; name a folder, which may be new")));
    }
    path.canonicalize().map_err(|error| unavailable(path, &error))
}

/// Creates the database of a folder that has none.
fn make(path: &Path, file: &Path, options: &Options) -> KvResult<()> {
    let shown = options.folder.display();
    if let Some(foreign) = foreign_file(path)? {
        return Err(invalid(&format!(
            "{shown} has other files, such as {foreign:?}, and no store; name an empty or a new folder"
        )));
    }
    if options.mode.is_read_only() {
        return Err(invalid(&format!(
            "{shown} has no store yet; a writer creates it: leave read_only=true out"
        )));
    }
    let made = Draft::create(path, options.permissions).and_then(|draft| {
        let transaction = draft.begin_write()?;
        for table in TABLES {
            transaction.open_table(table)?;
        }
        transaction.open_table(ABOUT)?.insert(FORMAT, THIS_FORMAT)?;
        transaction.commit()?;
        draft.publish().map(drop)
    });
    made.map_err(|failure| failure.to_error("connect", file, None))
}

fn open_database(
    path: &Path,
    file: &Path,
    options: &Options,
    until: Instant,
) -> KvResult<(Opened, FileId)> {
    let opened = open_file(path, file, options.mode, until).and_then(|(opened, id)| {
        check_format(&opened)?;
        Ok((opened, id))
    });
    opened.map_err(|failure| {
        if let Failure::Redb(::redb::Error::Io(error)) = &failure {
            if NotRegular::within(error).is_some() || error.kind() == io::ErrorKind::InvalidData {
                return invalid(&format!(
                    "{} is no store of this library: {error}; name another folder",
                    file.display()
                ));
            }
            if error.kind() == io::ErrorKind::PermissionDenied
                || error.kind() == io::ErrorKind::ReadOnlyFilesystem
            {
                let reason = format!(
                    "{}: {error}; change the permissions, or add read_only=true if it may be read",
                    file.display()
                );
                return KvError::Unauthorized { operation: "connect", reason };
            }
        }
        if let Failure::Redb(::redb::Error::DatabaseAlreadyOpen) = &failure {
            return already_open(path, options);
        }
        failure.to_error("connect", file, None)
    })
}

fn open_file(
    path: &Path,
    file: &Path,
    mode: Mode,
    until: Instant,
) -> Result<(Opened, FileId), Failure> {
    let mut access = OpenOptions::new();
    access.read(true).write(!mode.is_read_only());
    let open = |access: &OpenOptions| -> Result<(File, FileId), Failure> {
        let file = local_file::open(file, access).map_err(Failure::from_io)?;
        let found = file.metadata().map_err(Failure::from_io)?;
        if found.len() == 0 {
            // redb would make a database of it.
            let error = io::Error::new(io::ErrorKind::InvalidData, "it is empty");
            return Err(Failure::from_io(error));
        }
        Ok((file, FileId::of(&found)))
    };
    let (opened, id) = open(&access)?;
    if !mode.is_read_only() {
        let writer = builder(mode).create_with_backend(FileBackend::new(opened)?)?;
        return Ok((Opened::Writer(writer), id));
    }
    let mut opened = opened;
    loop {
        match builder(mode).open_read_only_with_backend(FileBackend::new(opened)?) {
            Ok(reader) => return Ok((Opened::Reader(reader), id)),
            Err(DatabaseError::RepairAborted) if Instant::now() >= until => {
                let reason = owner::in_the_way(path).unwrap_or_else(|| {
                    "is being repaired by another process; try later".to_owned()
                });
                return Err(Failure::Busy(format!("{} {reason}", path.display())));
            }
            // Its writer was killed. Another process may be repairing it.
            Err(DatabaseError::RepairAborted) => {
                if !repair(file, path)? {
                    thread::sleep(TRY_AGAIN);
                }
            }
            Err(error) => return Err(error.into()),
        }
        opened = open(&access)?.0;
    }
}

/// Repairs a database whose writer was killed. Returns `false` if another writer has it open, and
/// repairs it or has repaired it.
fn repair(file: &Path, path: &Path) -> Result<bool, Failure> {
    let access = &mut OpenOptions::new();
    let opened = local_file::open(file, access.read(true).write(true)).map_err(|error| {
        Failure::Busy(format!(
            "{} was not closed by its last writer, and cannot be repaired: {error}; open it for writing once",
            path.display()
        ))
    })?;
    match builder(Mode::Single).create_with_backend(FileBackend::new(opened)?) {
        Ok(repaired) => {
            repaired.close()?;
            Ok(true)
        }
        Err(DatabaseError::DatabaseAlreadyOpen) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn builder(mode: Mode) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_concurrency_mode(match mode {
        Mode::Exclusive => ConcurrencyMode::ExclusiveWriter,
        // A reader in this mode also opens a file that `MultiWriter` processes have open.
        Mode::Single | Mode::ReadOnly => ConcurrencyMode::SingleWriter,
        Mode::Shared => ConcurrencyMode::MultiWriter,
    });
    builder
}

/// Checks that the tables are of this library and of a known format.
fn check_format(opened: &Opened) -> Result<(), Failure> {
    let transaction = opened.begin_read()?;
    let about = match transaction.open_table(ABOUT) {
        Err(::redb::TableError::TableDoesNotExist(_)) => {
            let what = "it is a database of another program";
            return Err(Failure::from_io(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        table => table?,
    };
    match about.get(FORMAT)? {
        Some(format) if format.value() == THIS_FORMAT => Ok(()),
        Some(_) => Err(Failure::Unknown),
        None => Err(Failure::damaged("the mark of its format is missing")),
    }
}

/// Returns the error for a folder that another process has open in a mode that does not fit.
fn already_open(path: &Path, options: &Options) -> KvError {
    let shown = options.folder.display();
    let Some(owner) = owner::holder(path) else {
        let reason = format!(
            "{shown} is open in another process, which has left no owner file; close it there"
        );
        return KvError::unavailable("connect", reason);
    };
    let way_out = if owner.is_this_process() {
        "use the connection that this process has, or shut it down first".to_owned()
    } else {
        match (owner.mode(), options.mode) {
            ("exclusive", _) => format!(
                "close it there, or open it in both processes with file:{shown}?shared=true"
            ),
            ("read_only", _) => format!("leave exclusive=true out: file:{shown}"),
            ("shared", _) => format!("open it with file:{shown}?shared=true"),
            _ => format!(
                "read with file:{shown}?read_only=true, or write from both with file:{shown}?shared=true"
            ),
        }
    };
    let reason = format!(
        "{shown} cannot be opened in mode {}: it is open in {}; {way_out}",
        options.mode.name(),
        owner.describe()
    );
    KvError::unavailable("connect", reason)
}

/// Rejects file systems of a network, on which locks do not work between hosts as redb needs them.
fn reject_network(path: &Path, shown: &Path) -> KvResult<()> {
    match network::kind(path) {
        Some(kind) => Err(KvError::unsupported(
            "connect",
            format!(
                "{} is on a network file system ({kind}), which cannot be shared; use a local disk, or leave shared=true out",
                shown.display()
            ),
        )),
        None => Ok(()),
    }
}

fn invalid(reason: &str) -> KvError {
    KvError::InvalidUrl { reason: reason.to_owned() }
}
