//! What can go wrong with a snapshot log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::local_file::NotRegular;
use crate::store::Key;

/// What can go wrong with a snapshot log. Names the file, and never shows a value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is no file of that name.
    #[error("there is no snapshot {path:?}; a writer creates it")]
    NotFound {
        /// The file.
        path: PathBuf,
    },

    /// The path names another file, a directory, a device, or a link to a missing file. It is left
    /// unchanged.
    #[error("{path:?} is not a snapshot: {what}; choose another path")]
    NotASnapshot {
        /// The file.
        path: PathBuf,
        /// The kind of file that it is instead.
        what: String,
    },

    /// The file was written by another version of this library, in a format that this one does not know.
    #[error(
        "snapshot {path:?} has format version {found}, of which this version of the library knows nothing"
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version that it has.
        found: u8,
    },

    /// Bytes that had reached the disk are not as they were written. Restore the file from a copy, or remove it and
    /// begin with what the store has.
    #[error(
        "snapshot {path:?} is damaged at byte {offset}: {what}; restore it, or remove it and begin anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file what is damaged begins.
        offset: u64,
        /// What is not as it should be.
        what: &'static str,
    },

    /// Another writer, of this process or another, has the file open.
    #[error(
        "snapshot {path:?} is open in another writer, of this process or another; close that first"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },

    /// The value is larger than the log takes. It was not appended; what was appended before is not affected.
    #[error("value of {size} bytes for key {key} is over the limit of {limit} bytes of a snapshot")]
    ValueTooLarge {
        /// The key.
        key: Key,
        /// The size of the value in bytes.
        size: usize,
        /// The largest value that a snapshot takes, in bytes.
        limit: usize,
    },

    /// The system refused an operation. Where a writer gives this error, what was written before is as it was, and
    /// the same call may be tried again.
    #[error("snapshot: cannot {operation} {path:?}{}: {source}", at(.offset))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        operation: &'static str,
        /// Where in the file, where the operation has a place.
        offset: Option<u64>,
        /// The system's error.
        source: Arc<io::Error>,
    },

    /// Another program removed, replaced, truncated or wrote to the file while a writer had it
    /// open. The writer cannot be used any more, and later checkpoints are lost. Exclude the file
    /// from log rotation and from the cleaning of directories.
    #[error(
        "snapshot {path:?} was {what} by another program while a writer had it open; keep other programs away from it, \
         restore or remove the file, and open it again"
    )]
    Interfered {
        /// The file.
        path: PathBuf,
        /// The change that was made to it.
        what: &'static str,
    },

    /// The writer cannot be used any more, because of an operation after which it is not known what is on the disk:
    /// a failed sync most of all, of which the system tells once only. Open the file again, and go on from the state
    /// and the cursor that are there then.
    #[error(
        "snapshot: {operation} of {path:?} failed ({source}), and what is on the disk is not known since; open it again"
    )]
    Poisoned {
        /// The file.
        path: PathBuf,
        /// What failed.
        operation: &'static str,
        /// The system's error.
        source: Arc<io::Error>,
    },
}

impl SnapshotError {
    /// Whether the same call can succeed later without anything being changed by the caller: the disk may have room
    /// again, the other writer may have ended.
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

    /// An [`Io`](Self::Io) without a place in the file.
    pub(super) fn io(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), operation, offset: None, source: Arc::new(source) }
    }

    /// An [`Io`](Self::Io) with a place in the file.
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

    /// An error for a file that could not be opened.
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
