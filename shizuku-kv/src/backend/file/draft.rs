//! A new database under another name, which is linked when it is whole, because redb cannot open a
//! database whose creation was interrupted.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use ::redb::backends::FileBackend;
use ::redb::{Builder, Database, DatabaseError, WriteTransaction};

use super::failure::Failure;
use super::place::{CACHE, FILE, foreign_file, make_folder};
use crate::local_file;
use crate::store::{KvError, KvResult};

/// Name of the operation in errors of a copy.
pub(super) const BACKUP: &str = "backup";

/// Last part of the names of drafts.
const SUFFIX: &str = ".new";

/// A database that has no name yet. Dropping it removes the file.
pub(super) struct Draft {
    database: Option<Database>,
    new: PathBuf,
    file: PathBuf,
    /// Whether the folder was created for it.
    owns_folder: bool,
}

/// Returns whether a file of this name is a draft.
fn is_draft(name: &str) -> bool {
    name.starts_with(FILE) && name.ends_with(SUFFIX)
}

/// Removes the drafts of processes that were killed. A process that still writes one finds that
/// the folder has a database.
pub(super) fn remove_drafts(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(is_draft) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Draft {
    /// Creates a new folder, or uses an empty one, for a copy of a database.
    pub(super) fn new(path: &Path, permissions: u32) -> KvResult<Self> {
        let owns_folder = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() && !path.join(FILE).exists() => {
                if let Some(foreign) = foreign_file(path)? {
                    return Err(occupied(path, &format!("has other files, such as {foreign:?}")));
                }
                false
            }
            Ok(_) => return Err(occupied(path, "exists")),
            Err(_) => {
                make_folder(path, permissions).map_err(|error| error.of_operation(BACKUP))?;
                true
            }
        };
        match Self::create(path, permissions) {
            Ok(mut draft) => {
                draft.owns_folder = owns_folder;
                Ok(draft)
            }
            Err(failure) => {
                if owns_folder {
                    let _ = fs::remove_dir(path);
                }
                Err(failure.to_error(BACKUP, path, None))
            }
        }
    }

    pub(super) fn create(path: &Path, permissions: u32) -> Result<Self, Failure> {
        let file = path.join(FILE);
        let new = path.join(format!("{FILE}.{:016x}{SUFFIX}", fastrand::u64(..)));
        let mut create = OpenOptions::new();
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut create, permissions);
        let opened = create.read(true).write(true).create_new(true).open(&new);
        let opened = opened.map_err(Failure::from_io)?;
        let mut draft = Self { database: None, new, file, owns_folder: false };
        #[cfg(unix)]
        opened
            .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(permissions))
            .map_err(Failure::from_io)?;
        #[cfg(not(unix))]
        let _ = permissions;
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        draft.database = Some(builder.create_with_backend(FileBackend::new(opened)?)?);
        Ok(draft)
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, Failure> {
        match &self.database {
            Some(database) => {
                let mut transaction = database.begin_write()?;
                // As for every later commit, whose recovery depends on the one before.
                transaction.set_two_phase_commit(true);
                Ok(transaction)
            }
            None => Err(DatabaseError::TransactionInProgress.into()),
        }
    }

    /// Closes the database, and gives it its name. Returns `false` if another process has created
    /// one meanwhile, which stays.
    pub(super) fn publish(mut self) -> Result<bool, Failure> {
        if let Some(database) = self.database.take() {
            database.close()?;
        }
        let is_published = match fs::hard_link(&self.new, &self.file) {
            Ok(()) => true,
            Err(_) if self.file.exists() => false,
            // File systems without links.
            Err(_) => match rename(&self.new, &self.file) {
                Ok(()) => true,
                Err(_) if self.file.exists() => false,
                Err(error) => return Err(Failure::from_io(error)),
            },
        };
        self.owns_folder &= !is_published;
        local_file::sync_directory(&self.file).map_err(Failure::from_io)?;
        Ok(is_published)
    }

    /// Publishes a copy, all of whose commits become durable before.
    pub(super) fn publish_copy(self) -> KvResult<()> {
        let (file, folder) = (self.file.clone(), self.file.parent().map(Path::to_owned));
        let durable = self.begin_write().and_then(|transaction| Ok(transaction.commit()?));
        match durable.and_then(|()| self.publish()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(occupied(&folder.unwrap_or(file), "has got a store meanwhile")),
            Err(failure) => Err(failure.to_error(BACKUP, &file, None)),
        }
    }
}

/// Renames a file, unless another one has that name.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

impl Drop for Draft {
    fn drop(&mut self) {
        drop(self.database.take());
        let _ = fs::remove_file(&self.new);
        if self.owns_folder
            && let Some(folder) = self.file.parent()
        {
            // Fails if another process has put something there.
            let _ = fs::remove_dir(folder);
        }
    }
}

fn occupied(path: &Path, fault: &str) -> KvError {
    let reason = format!("{} {fault}; name a new or an empty folder", path.display());
    KvError::invalid_config("path", reason)
}
