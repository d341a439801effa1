//! The folder of a database: checked, created, opened, and recognized later.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction,
    ReadableDatabase, TransactionError, WriteTransaction,
};

use super::failure::Failure;
use super::network;
use super::options::{Mode, Options};
use super::owner::{self, Owner};
use super::tables::{ABOUT, FORMAT, TABLES, THIS_FORMAT};
use crate::local_file::{self, FileId, NotRegular};
use crate::store::{KvError, KvResult};

/// Name of the database file in its folder.
const FILE: &str = "shizuku.redb";

/// Size of the cache of a database, in bytes.
const CACHE: usize = 64 * 1024 * 1024;

/// Permissions of files without an option.
pub(super) const PERMISSIONS: u32 = 0o600;

/// Number of tries to open a database for reading while writers of other processes end.
const TRIES: usize = 20;

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
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, TransactionError> {
        match self {
            Self::Writer(database) => database.try_begin_write(),
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
    /// [`KvError::Unavailable`] if another process has it open in a mode that does not fit. All
    /// errors name the path.
    pub(super) fn open(options: Options) -> KvResult<(Self, Opened)> {
        let shown = options.folder.clone();
        let path = folder(&options)?;
        if options.mode == Mode::Shared {
            reject_network(&path, &shown)?;
        }
        let file = path.join(FILE);
        if !file.try_exists().unwrap_or(true) {
            make(&path, &file, &options)?;
        }
        let (opened, id) = open_database(&path, &file, &options)?;
        let mut folder = Self { shown, path, file, id, options, owner: None };
        if !folder.options.mode.is_read_only() {
            owner::remove_stale(&folder.path);
            let this = Owner::this(folder.options.mode, folder.options.label.as_deref());
            // Only the errors of other processes use it.
            let permissions = folder.options.permissions;
            folder.owner = owner::write(&folder.path, &this, folder.options.mode, permissions).ok();
        }
        Ok((folder, opened))
    }

    /// Opens the database again after a failed commit.
    pub(super) fn reopen(&self) -> Result<Opened, Failure> {
        self.check_identity()?;
        match open_file(&self.path, &self.file, self.options.mode) {
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

    /// Returns the path of the database.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns an error if another program has removed or replaced the database.
    pub(super) fn check_identity(&self) -> Result<(), Failure> {
        match local_file::identity(&self.file, self.id).change() {
            Some(what) => Err(Failure::Interfered(what)),
            None => Ok(()),
        }
    }

    /// Returns the stopped process that may hold the lock of the writers, and the way out.
    pub(super) fn in_the_way(&self) -> Option<String> {
        let stopped = owner::running(&self.path).into_iter().find(Owner::is_stopped)?;
        Some(format!(
            "{} is being written to by a stopped process: {}; continue or end that process",
            self.shown.display(),
            stopped.describe()
        ))
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

fn make_folder(path: &Path, permissions: u32) -> KvResult<()> {
    let mut builder = fs::DirBuilder::new();
    // Everyone with the right to read the file may also search its folder.
    let bits = permissions | ((permissions & 0o444) >> 2);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, bits);
    match builder.create(path) {
        // Another process may have created it.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let reason = format!(
                "the folder {} cannot be created: {error}; create its parent, or name another folder",
                path.display()
            );
            Err(KvError::unavailable("connect", reason).with_source(error))
        }
        _ => {
            set_permissions(path, bits)?;
            // Otherwise a loss of power can remove the folder with everything in it.
            local_file::sync_directory(path).map_err(|error| unavailable(path, &error))
        }
    }
}

/// Sets permissions that the file mode creation mask has removed.
fn set_permissions(path: &Path, bits: u32) -> KvResult<()> {
    #[cfg(unix)]
    {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(bits);
        fs::set_permissions(path, permissions).map_err(|error| unavailable(path, &error))?;
    }
    #[cfg(not(unix))]
    let _ = (path, bits);
    Ok(())
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
        draft.publish()
    });
    made.map_err(|failure| failure.to_error("connect", file, None))
}

/// Returns the name of a file in a folder that is not of this library.
fn foreign_file(path: &Path) -> KvResult<Option<String>> {
    let entries = fs::read_dir(path).map_err(|error| unavailable(path, &error))?;
    let names = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.into_iter().find(|name| !owner::is_owner_file(name) && !name.starts_with(FILE)))
}

/// A new database under another name, which is linked when it is whole, because redb cannot open a
/// database whose creation was interrupted. Dropping it removes the file.
pub(super) struct Draft {
    database: Option<Database>,
    new: PathBuf,
    file: PathBuf,
}

impl Draft {
    /// Creates a new folder, or uses an empty one, for a copy of a database.
    pub(super) fn new(path: &Path) -> KvResult<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() && !path.join(FILE).exists() => {
                if let Some(foreign) = foreign_file(path)? {
                    return Err(occupied(path, &format!("has other files, such as {foreign:?}")));
                }
            }
            Ok(_) => return Err(occupied(path, "exists")),
            Err(_) => make_folder(path, PERMISSIONS).map_err(|e| e.of_operation("backup"))?,
        }
        Self::create(path, PERMISSIONS).map_err(|failure| failure.to_error("backup", path, None))
    }

    fn create(path: &Path, permissions: u32) -> Result<Self, Failure> {
        let file = path.join(FILE);
        let new = path.join(format!("{FILE}.{:016x}.new", fastrand::u64(..)));
        let mut create = OpenOptions::new();
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut create, permissions);
        let opened = create.read(true).write(true).create_new(true).open(&new);
        let opened = opened.map_err(Failure::from_io)?;
        let mut draft = Self { database: None, new, file };
        #[cfg(unix)]
        opened
            .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(permissions))
            .map_err(Failure::from_io)?;
        #[cfg(not(unix))]
        let _ = permissions;
        draft.database = Some(Builder::new().create_with_backend(FileBackend::new(opened)?)?);
        Ok(draft)
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, Failure> {
        match &self.database {
            Some(database) => Ok(database.begin_write()?),
            None => Err(DatabaseError::TransactionInProgress.into()),
        }
    }

    /// Closes the database, and gives it its name. If another process has created one meanwhile,
    /// that one stays.
    pub(super) fn publish(mut self) -> Result<(), Failure> {
        if let Some(database) = self.database.take() {
            database.close()?;
        }
        match fs::hard_link(&self.new, &self.file) {
            // File systems without links.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                fs::rename(&self.new, &self.file).map_err(Failure::from_io)?;
            }
            _ => {}
        }
        local_file::sync_directory(&self.file).map_err(Failure::from_io)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        drop(self.database.take());
        let _ = fs::remove_file(&self.new);
    }
}

fn occupied(path: &Path, fault: &str) -> KvError {
    let reason = format!("{} {fault}; name a new or an empty folder", path.display());
    KvError::invalid_config("path", reason)
}

fn open_database(path: &Path, file: &Path, options: &Options) -> KvResult<(Opened, FileId)> {
    let opened = open_file(path, file, options.mode).and_then(|(opened, id)| {
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

fn open_file(path: &Path, file: &Path, mode: Mode) -> Result<(Opened, FileId), Failure> {
    let mut access = OpenOptions::new();
    access.read(true).write(!mode.is_read_only());
    let open = |access: &OpenOptions| -> Result<(File, FileId), Failure> {
        let file = local_file::open(file, access).map_err(Failure::from_io)?;
        let id = FileId::of(&file.metadata().map_err(Failure::from_io)?);
        Ok((file, id))
    };
    let (opened, id) = open(&access)?;
    if !mode.is_read_only() {
        let writer = builder(mode).create_with_backend(FileBackend::new(opened)?)?;
        return Ok((Opened::Writer(writer), id));
    }
    let mut opened = opened;
    for _ in 0..TRIES {
        match builder(mode).open_read_only_with_backend(FileBackend::new(opened)?) {
            Ok(reader) => return Ok((Opened::Reader(reader), id)),
            Err(DatabaseError::RepairAborted) => repair(file, path)?,
            Err(error) => return Err(error.into()),
        }
        opened = open(&access)?.0;
    }
    Err(DatabaseError::RepairAborted.into())
}

/// Repairs a database whose writer was killed, unless another writer already does.
fn repair(file: &Path, path: &Path) -> Result<(), Failure> {
    let access = &mut OpenOptions::new();
    let opened = local_file::open(file, access.read(true).write(true)).map_err(|error| {
        Failure::Busy(format!(
            "{} was not closed by its last writer, and cannot be repaired: {error}; open it for writing once",
            path.display()
        ))
    })?;
    match builder(Mode::Single).create_with_backend(FileBackend::new(opened)?) {
        Ok(repaired) => Ok(repaired.close()?),
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn builder(mode: Mode) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_concurrency_mode(match mode {
        Mode::Exclusive => ConcurrencyMode::ExclusiveWriter,
        // A reader of this mode also opens beside writers of the other mode.
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
        Some(_) => Err(Failure::Damaged(
            "its format is unknown to this version; use a newer version of the library",
        )),
        None => Err(Failure::damaged("the mark of its format is missing")),
    }
}

/// Returns the error for a folder that another process has open in a mode that does not fit.
fn already_open(path: &Path, options: &Options) -> KvError {
    let shown = options.folder.display();
    let owners = owner::running(path);
    let Some(owner) = owners.first() else {
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

fn unavailable(path: &Path, error: &io::Error) -> KvError {
    let reason = format!("{}: {error}; check the path and its permissions", path.display());
    KvError::unavailable("connect", reason)
        .with_source(io::Error::new(error.kind(), error.to_string()))
}
