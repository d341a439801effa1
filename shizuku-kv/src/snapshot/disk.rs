//! The file system operations that the log needs, as a trait. A test can supply a file system that
//! fails at a chosen operation or loses unsynced data.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::local_file::{self, FileId, Identity};

/// Mode of opening a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads an existing file.
    Read,
    /// Reads and writes an existing file.
    Write,
    /// Reads and writes a new and empty file. Fails if the path exists.
    Create,
}

/// A file system.
pub(super) trait Disk: Send + Sync + 'static {
    /// Opens a regular file at a path without links. Any other path is an error.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames `from` to `to` and replaces `to`. The rename is atomic, but durable only after
    /// [`sync_dir`](Self::sync_dir).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in the directory of `path` durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file. No operation depends on an earlier one, so that threads can share the file.
pub(super) trait DiskFile: Send + Sync {
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads at most `buffer.len()` bytes. Returns 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes some of the bytes, and returns their number.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Truncates the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when the written bytes and the length are durable.
    fn sync(&self) -> io::Result<()>;

    /// Locks the file against all other writers until it is closed. Returns `false` if another
    /// writer has locked it.
    fn try_lock(&self) -> io::Result<bool>;

    /// Checks whether the path still names this file.
    fn identity(&self, path: &Path) -> Identity;

    /// Returns the length in bytes, and whether the path still names this file.
    fn look(&self, path: &Path) -> io::Result<(u64, Identity)>;

    /// Copies owner, group and mode of the file at `from`, as far as the system allows.
    fn copy_access(&self, from: &Path) -> io::Result<()>;
}

/// Reads until the buffer is full or the file ends. Returns the number of bytes read.
pub(super) fn read_full(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of the bytes.
pub(super) fn write_full(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The file system of the machine.
#[derive(Debug)]
pub(super) struct StdDisk;

impl Disk for StdDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        options.write(access != Access::Read);
        #[cfg(windows)]
        if access != Access::Read {
            // Other processes can read and rename the file, but not write it. A lock would also
            // exclude readers on Windows.
            std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, 0x1 | 0x4);
        }
        if access != Access::Create {
            return StdFile::of(local_file::open(path, &options)?);
        }
        // Gives only the owner permission to read a new file.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        StdFile::of(options.create_new(true).open(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        local_file::sync_directory(path)
    }
}

/// A file of the operating system, with its identity.
struct StdFile {
    file: File,
    id: FileId,
}

impl StdFile {
    fn of(file: File) -> io::Result<Arc<dyn DiskFile>> {
        let id = FileId::of(&file.metadata()?);
        Ok(Arc::new(Self { file, id }))
    }
}

impl Drop for StdFile {
    /// Releases the lock now. Closing the file is not enough while a child process, between `fork`
    /// and `exec`, has a copy of the descriptor.
    fn drop(&mut self) {
        // After an error, the lock lasts until the last copy of the descriptor is closed.
        let _ = self.file.unlock();
    }
}

impl DiskFile for StdFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buffer, offset)
    }

    #[cfg(not(any(unix, windows)))]
    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.file, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&self.file, bytes, offset)
    }

    #[cfg(not(any(unix, windows)))]
    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        // Opening the file has already locked it on Windows.
        if cfg!(windows) {
            return Ok(true);
        }
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn identity(&self, path: &Path) -> Identity {
        local_file::identity(path, self.id)
    }

    fn look(&self, path: &Path) -> io::Result<(u64, Identity)> {
        let (identity, len) = local_file::identity_and_len(path, self.id);
        Ok((len.map_or_else(|| self.len(), Ok)?, identity))
    }

    fn copy_access(&self, from: &Path) -> io::Result<()> {
        let from = fs::symlink_metadata(from)?;
        #[cfg_attr(not(unix), expect(unused_mut, reason = "only modes are changed"))]
        let mut permissions = from.permissions();
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
            let own = self.file.metadata()?;
            let is_same = (own.uid(), own.gid()) == (from.uid(), from.gid());
            if !is_same
                // Only root can give a file to another user. A member of a group can give it to
                // that group.
                && fchown(&self.file, Some(from.uid()), Some(from.gid())).is_err()
                && fchown(&self.file, None, Some(from.gid())).is_err()
            {
                // Otherwise the members of this process's group would get the permissions of the
                // other group.
                permissions.set_mode(permissions.mode() & !0o070);
            }
        }
        self.file.set_permissions(permissions)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    /// The copy of the descriptor stands for the one in a child process before its `exec`.
    #[test]
    fn closed_file_is_unlocked_despite_a_copy_of_its_descriptor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || StdFile {
            file: file.reopen().unwrap(),
            id: FileId::of(&file.as_file().metadata().unwrap()),
        };
        let writer = open();
        assert!(writer.try_lock().unwrap());
        let copy = writer.file.try_clone().unwrap();
        assert!(!open().try_lock().unwrap());
        drop(writer);
        assert!(open().try_lock().unwrap());
        drop(copy);
    }
}
