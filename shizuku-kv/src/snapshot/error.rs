//! The errors of a snapshot log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::local_file::NotRegular;
use crate::store::Key;

/// An error of a snapshot log. Names the file, and never shows a value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file does not exist.
    #[error("there is no snapshot {path:?}; a writer creates it")]
    #[non_exhaustive]
    NotFound {
        /// The file.
        path: PathBuf,
    },

    /// The path names another file, a directory, a device, or a link to a missing file. The log
    /// leaves it unchanged.
    #[error("{path:?} is not a snapshot: {what}; choose another path")]
    #[non_exhaustive]
    NotASnapshot {
        /// The file.
        path: PathBuf,
        /// The kind of the file found at the path.
        what: String,
    },

    /// Another version of this library wrote the file, in a format that this version does not know.
    #[error(
        "snapshot {path:?} has format version {found}, which this version of the library does not know; open it with the \
         version that wrote it, or choose another path"
    )]
    #[non_exhaustive]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The format version of the file.
        found: u8,
    },

    /// Bytes that had reached the disk differ from the written ones. Restore the file from a copy,
    /// or remove it and start with the state of the store.
    #[error(
        "snapshot {path:?} is damaged at byte {offset}: {what}; restore it, or remove it and begin anew"
    )]
    #[non_exhaustive]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset in the file at which the damage begins.
        offset: u64,
        /// Description of the damage.
        what: &'static str,
    },

    /// Another writer, of this process or another, has the file open.
    #[error(
        "snapshot {path:?} is open in another writer, of this process or another; close that first"
    )]
    #[non_exhaustive]
    Locked {
        /// The file.
        path: PathBuf,
    },

    /// The value is larger than the limit of the log. The log did not append it; earlier appended
    /// updates are not affected.
    #[error(
        "value of {size} bytes for key {key} is over the limit of {limit} bytes of a snapshot; leave the key out"
    )]
    #[non_exhaustive]
    ValueTooLarge {
        /// The key.
        key: Key,
        /// Size of the value in bytes.
        size: usize,
        /// Maximum size of a value in a snapshot, in bytes.
        limit: usize,
    },

    /// The system rejected an operation. If a writer returns this error, the earlier written data
    /// is unchanged, and the caller can retry the same call.
    #[error("snapshot: cannot {operation} {path:?}{}: {source}{}", at(.offset), way_out(.source.kind()))]
    #[non_exhaustive]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// Offset in the file, if the operation has one.
        offset: Option<u64>,
        /// Error of the system.
        source: Arc<io::Error>,
    },

    /// Another program removed, replaced, truncated or wrote to the file while a writer had it
    /// open. The writer cannot be used any more, and later checkpoints are lost. Exclude the file
    /// from log rotation and from the cleaning of directories.
    #[error(
        "snapshot {path:?} was {what} by another program while a writer had it open; keep other programs away from it, \
         restore or remove the file, and open it again"
    )]
    #[non_exhaustive]
    Interfered {
        /// The file.
        path: PathBuf,
        /// The change that the other program made.
        what: &'static str,
    },

    /// The writer cannot be used any more, because the content of the disk is unknown after an
    /// operation failed. The usual case is a failed sync, which the system reports only once. Open
    /// the file again, and resume from its state and cursor.
    #[error(
        "snapshot: {operation} of {path:?} failed ({source}), and what is on the disk is not known since; open it again"
    )]
    #[non_exhaustive]
    Poisoned {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// Error of the system.
        source: Arc<io::Error>,
    },
}

impl SnapshotError {
    /// Returns true if the same call can succeed later although the caller changes nothing. For
    /// example, the disk may have room again, or the other writer may have ended.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Locked { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::WriteZero
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::OutOfMemory
            ),
            _ => false,
        }
    }

    /// Returns an [`Io`](Self::Io) error without an offset.
    pub(super) fn io(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), operation, offset: None, source: Arc::new(source) }
    }

    /// Returns an [`Io`](Self::Io) error with an offset in the file.
    pub(super) fn io_at(
        path: &Path,
        operation: &'static str,
        offset: u64,
        source: io::Error,
    ) -> Self {
        Self::Io {
            path: path.to_owned(),
            operation,
            offset: Some(offset),
            source: Arc::new(source),
        }
    }

    /// Returns the error for a file that could not be opened.
    pub(super) fn not_opened(path: &Path, source: io::Error) -> Self {
        match NotRegular::within(&source) {
            Some(found) => Self::not_a_snapshot(path, found),
            None => Self::io(path, "open", source),
        }
    }

    pub(super) fn not_a_snapshot(path: &Path, what: impl ToString) -> Self {
        Self::NotASnapshot { path: path.to_owned(), what: what.to_string() }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: &'static str) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what }
    }
}

fn at(offset: &Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at byte {offset}"))
}

/// Returns the way out of an operating system error, if it is known.
fn way_out(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "; create its directory first",
        io::ErrorKind::PermissionDenied => {
            "; give this process access to it, or choose another path"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; choose a path that can be written",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on the disk",
        io::ErrorKind::NotADirectory => "; choose a path in a directory",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use crate::snapshot::{SnapshotOptions, SnapshotWriter};

    #[test]
    fn missing_directory_is_reported_with_a_way_out() {
        let path = std::env::temp_dir().join("shizuku-kv-no-such-directory").join("state.log");
        let text = match SnapshotWriter::open(&path, SnapshotOptions::default()) {
            Err(error) => error.to_string(),
            Ok(_) => String::new(),
        };
        assert!(text.contains("create its directory first"), "{text}");
    }
}
