//! The file system as the log uses it, and nothing more: so that a test can put another in its place, one that fails at
//! a chosen operation or forgets what was not synced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::local_file::{self, FileId, Place};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// An existing file, to be read.
    Read,
    /// An existing file, to be read and written.
    Write,
    /// A new and empty file, to be read and written. Fails if the path exists.
    Create,
}

/// A file system.
pub(super) trait Disk: Send + Sync + 'static {
    /// Opens a regular file at a path without links; anything else is an error.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives `to` what `from` was; atomically, but durable only with [`sync_dir`](Self::sync_dir).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes durable which files there are beside `path`.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file; no operation depends on one before, so that threads can share it.
pub(super) trait DiskFile: Send + Sync {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads at most `buffer.len()` bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes some of the bytes, and tells how many.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns once what was written is durable, and the length too.
    fn sync(&self) -> io::Result<()>;

    /// Locks the file against all other writers until it is closed. Returns false if another writer
    /// has locked it.
    fn try_lock(&self) -> io::Result<bool>;

    /// Checks whether the path still names this file.
    fn place(&self, path: &Path) -> Place;

    /// Copies owner, group and mode of the file at `from`, as far as the system allows.
    fn copy_access(&self, from: &Path) -> io::Result<()>;
}

/// Reads until the buffer is full or the file ends; how much there was.
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
            // Others can read and rename the file, but not write it, because a lock would exclude
            // readers there.
            std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, 0x1 | 0x4);
        }
        if access != Access::Create {
            return Ok(Arc::new(local_file::open(path, &options)?));
        }
        // Only the owner may read a new file.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Arc::new(options.create_new(true).open(path)?))
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

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buffer, offset)
    }

    #[cfg(not(any(unix, windows)))]
    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(self, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(self, bytes, offset)
    }

    #[cfg(not(any(unix, windows)))]
    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        // Opening it has locked it there.
        if cfg!(windows) {
            return Ok(true);
        }
        match Self::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn place(&self, path: &Path) -> Place {
        self.metadata().map_or(Place::Kept, |own| local_file::place(path, FileId::of(&own)))
    }

    fn copy_access(&self, from: &Path) -> io::Result<()> {
        let from = fs::symlink_metadata(from)?;
        #[cfg_attr(not(unix), expect(unused_mut, reason = "only modes are changed"))]
        let mut permissions = from.permissions();
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
            let own = self.metadata()?;
            let is_same = (own.uid(), own.gid()) == (from.uid(), from.gid());
            if !is_same
                // Only root can give a file to another user; a member of a group can give it to
                // that group.
                && fchown(self, Some(from.uid()), Some(from.gid())).is_err()
                && fchown(self, None, Some(from.gid())).is_err()
            {
                // Otherwise the members of this process's group would get the permissions of the
                // other group.
                permissions.set_mode(permissions.mode() & !0o070);
            }
        }
        self.set_permissions(permissions)
    }
}
