//! The errors of the database, and whether a retry can help.

use std::io;
use std::path::{Path, PathBuf};

use crate::replica::storage::StorageError;

/// An error within a call.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error of redb.
    Redb(RedbError),
    /// An error that this storage found.
    Ours(Box<RedbFailure>),
}

impl Failure {
    pub(super) fn into_storage_error(self, path: &Path, operation: &'static str) -> StorageError {
        match self {
            Self::Redb(error) => RedbFailure::new(path, operation, error).into(),
            Self::Ours(failure) => (*failure).into(),
        }
    }
}

impl From<RedbFailure> for Failure {
    fn from(failure: RedbFailure) -> Self {
        Self::Ours(Box::new(failure))
    }
}

/// Converts all errors of redb through its one combined error.
macro_rules! from_redb {
    ($($error:ident),+) => {
        $(impl From<::redb::$error> for Failure {
            fn from(error: ::redb::$error) -> Self {
                Self::Redb(RedbError(error.into()))
            }
        })+
    };
}
from_redb!(
    CommitError,
    DatabaseError,
    SetDurabilityError,
    StorageError,
    TableError,
    TransactionError
);

/// An error of redb. Its source is the I/O error within.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RedbError(::redb::Error);

impl RedbError {
    fn io(&self) -> Option<&io::Error> {
        match &self.0 {
            ::redb::Error::Io(error) => Some(error),
            _ => None,
        }
    }

    /// Returns true if the file is not a redb database. Valid only for errors of opening a file.
    pub(super) fn is_foreign_file(&self) -> bool {
        self.io().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
    }

    /// Returns true if the disk had no room.
    pub(super) fn is_full(&self) -> bool {
        let kind = self.io().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// An error of the file at a path.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedbFailure {
    #[error(
        "the replica's database {} is open already, in this process or in another: close it there, or use another file",
        path.display()
    )]
    AlreadyOpen { path: PathBuf },

    #[error("the file {} is no redb database: use another path for the replica, or delete the file", path.display())]
    NoDatabase { path: PathBuf, source: RedbError },

    #[error(
        "the redb database {} was made by something else, not by a replica: use another path for the replica",
        path.display()
    )]
    Foreign { path: PathBuf },

    #[error(
        "the replica's database {} has a format that this version does not know ({found}): use the version of the library \
         that has written it, or delete the file, and the replica takes the state anew",
        path.display()
    )]
    OtherFormat { path: PathBuf, found: String },

    #[error(
        "the replica's database {} is damaged, {what}: delete the file, and the replica takes the state anew",
        path.display()
    )]
    Damaged { path: PathBuf, what: String },

    #[error(
        "the replica's database {} is gone or empty since the disk was full: open it again, and the replica takes the \
         state anew",
        path.display()
    )]
    Gone { path: PathBuf },

    #[error(
        "the replica's database {} was {what} by another program while it was open; keep other programs away from it, \
         restore or remove the file, and open it again",
        path.display()
    )]
    Interfered { path: PathBuf, what: &'static str },

    #[error("cannot use {} for the replica's database: {source}; use another path", path.display())]
    NotAFile { path: PathBuf, source: io::Error },

    #[error("the replica's database {} is closed", path.display())]
    Closed { path: PathBuf },

    #[error(
        "no {operation} is possible in the replica's database {} after an earlier error: open it again",
        path.display()
    )]
    Broken { path: PathBuf, operation: &'static str, source: RedbError },

    #[error(
        "the replica's database {}: {operation} failed, the disk is full: {source}",
        path.display()
    )]
    Full { path: PathBuf, operation: &'static str, source: RedbError },

    #[error(
        "the replica's database {}: commit failed, the disk is full, and commits that were not durable yet are lost: open \
         it again, and the replica resumes from an earlier checkpoint",
        path.display()
    )]
    FullWithPending { path: PathBuf, source: RedbError },

    #[error("the replica's database {}: {operation} failed: {source}", path.display())]
    Other { path: PathBuf, operation: &'static str, source: RedbError },

    #[error("the replica's database {} could not be made: {source}", path.display())]
    NotMade { path: PathBuf, source: io::Error },
}

impl RedbFailure {
    /// Translates redb's error in this operation for the user of the storage.
    pub(super) fn new(path: &Path, operation: &'static str, source: RedbError) -> Self {
        let path = path.to_owned();
        match &source.0 {
            ::redb::Error::DatabaseAlreadyOpen | ::redb::Error::LockProtocolMismatch => {
                Self::AlreadyOpen { path }
            }
            ::redb::Error::UpgradeRequired(version) => {
                Self::OtherFormat { path, found: format!("redb's own, {version}") }
            }
            ::redb::Error::Corrupted(what) => Self::Damaged { path, what: what.clone() },
            ::redb::Error::TableTypeMismatch { .. }
            | ::redb::Error::TableIsMultimap(_)
            | ::redb::Error::TableDoesNotExist(_)
            | ::redb::Error::TypeDefinitionChanged { .. } => Self::Foreign { path },
            ::redb::Error::DatabaseClosed => Self::Closed { path },
            ::redb::Error::PreviousIo | ::redb::Error::LockPoisoned(_) => {
                Self::Broken { path, operation, source }
            }
            _ if source.is_full() => Self::Full { path, operation, source },
            _ => Self::Other { path, operation, source },
        }
    }

    pub(super) fn damaged(path: &Path, what: String) -> Self {
        Self::Damaged { path: path.to_owned(), what }
    }
}

/// An error is retryable if it can end without reopening the file.
impl From<RedbFailure> for StorageError {
    fn from(failure: RedbFailure) -> Self {
        match failure {
            RedbFailure::AlreadyOpen { .. } | RedbFailure::Full { .. } => Self::retryable(failure),
            failure => Self::fatal(failure),
        }
    }
}
