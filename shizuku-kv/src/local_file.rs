//! Regular files of this machine: opened without replacing anything, and recognized later
//! (ADR 0052).

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A path that names something other than a regular file.
#[derive(Debug, thiserror::Error)]
#[error("it is {0}, not a regular file")]
pub(crate) struct NotRegular(&'static str);

impl NotRegular {
    /// Returns the `NotRegular` within an error of this module.
    pub(crate) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    fn error(what: &'static str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, Self(what))
    }
}

/// Resolves all links, once, so that a file is opened, renamed over and looked for under one name.
/// The file need not exist; its directory must.
///
/// # Errors
/// Returns [`NotRegular`] if the path is a link to a file that does not exist. Creating the file
/// would replace the link, or create a file in a place that the link's owner did not prepare.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (path.canonicalize(), path.file_name()) {
        (Err(error), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            // Another file may have been created since.
            if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
                return Err(NotRegular::error("a symbolic link to a file that does not exist"));
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(parent.unwrap_or(Path::new(".")).canonicalize()?.join(name))
        }
        (resolved, _) => resolved,
    }
}

/// Opens an existing file at a [resolved](resolve) path.
///
/// # Errors
/// Returns [`NotRegular`] if it is anything other than a regular file.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    // Checked before opening, because opening a named pipe blocks and opening a device can act on
    // it.
    require_regular(fs::symlink_metadata(path)?.file_type())?;
    let file = options.open(path)?;
    // Another file may have taken this name in between.
    require_regular(file.metadata()?.file_type())?;
    Ok(file)
}

fn require_regular(found: FileType) -> io::Result<()> {
    if found.is_file() { Ok(()) } else { Err(NotRegular::error(kind(found))) }
}

fn kind(found: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if found.is_fifo() {
            return "a named pipe";
        }
        if found.is_socket() {
            return "a socket";
        }
        if found.is_char_device() || found.is_block_device() {
            return "a device";
        }
    }
    if found.is_dir() {
        "a directory"
    } else if found.is_symlink() {
        "a symbolic link"
    } else {
        "a special file"
    }
}

/// Distinguishes files while one of them is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    inode: u64,
    /// Stable Rust has no file numbers elsewhere.
    #[cfg(not(unix))]
    created: Option<std::time::SystemTime>,
}

impl FileId {
    #[cfg(unix)]
    pub(crate) fn of(found: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { device: found.dev(), inode: found.ino() }
    }

    #[cfg(not(unix))]
    pub(crate) fn of(found: &Metadata) -> Self {
        Self { created: found.created().ok() }
    }
}

/// The file that a path names, compared with an open one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The same file.
    Kept,
    /// No file.
    Removed,
    /// Another file.
    Replaced,
}

impl Identity {
    /// Returns the change of the file, as errors name it. Returns `None` if there was no change.
    pub(crate) fn change(self) -> Option<&'static str> {
        match self {
            Self::Kept => None,
            Self::Removed => Some("removed"),
            Self::Replaced => Some("replaced by another file"),
        }
    }
}

/// Checks whether a resolved path still names this file.
pub(crate) fn identity(path: &Path, file: FileId) -> Identity {
    identity_and_len(path, file).0
}

/// Checks like [`identity`], and returns the length of the file if the path names it, with one
/// system call for both.
pub(crate) fn identity_and_len(path: &Path, file: FileId) -> (Identity, Option<u64>) {
    match fs::symlink_metadata(path) {
        Ok(found) if FileId::of(&found) == file => (Identity::Kept, Some(found.len())),
        Ok(_) => (Identity::Replaced, None),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (Identity::Removed, None),
            // A file that cannot be inspected may exist, for example in a directory that this
            // process may not search any more.
            _ => (Identity::Kept, None),
        },
    }
}

/// Syncs the directory of `path`, so that its entries are durable.
#[cfg(unix)]
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

/// Does nothing: elsewhere a directory cannot be opened as a file, and the file system orders its
/// own changes.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}
