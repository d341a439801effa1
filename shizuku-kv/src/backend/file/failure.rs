//! Failures of the database, and the errors that users get for them.

use std::io;
use std::path::Path;

use crate::store::KvError;

/// A failure within a transaction.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error of redb.
    Redb(::redb::Error),
    /// The content of a table is not what this library writes.
    Damaged(&'static str),
    /// The tables have another format.
    Unknown,
    /// Another program has removed or replaced the file.
    Interfered(&'static str),
    /// Another process is in the way: it holds the lock of the file, or did not release it in time.
    Busy(String),
}

/// Converts all errors of redb through its one combined error.
macro_rules! from_redb {
    ($($error:ident),+) => {
        $(impl From<::redb::$error> for Failure {
            fn from(error: ::redb::$error) -> Self {
                Self::Redb(error.into())
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

impl Failure {
    pub(super) fn damaged(what: &'static str) -> Self {
        Self::Damaged(what)
    }

    pub(super) fn from_io(error: io::Error) -> Self {
        Self::Redb(::redb::Error::Io(error))
    }

    /// Returns the I/O error behind the failure.
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Redb(::redb::Error::Io(error)) => Some(error),
            _ => None,
        }
    }

    /// Returns whether the file could not be read or written, after which redb does neither.
    pub(super) fn is_io(&self) -> bool {
        matches!(self, Self::Redb(::redb::Error::Io(_) | ::redb::Error::PreviousIo))
    }

    /// Returns whether the disk had no room.
    pub(super) fn is_full(&self) -> bool {
        let kind = self.io().map(io::Error::kind);
        let full =
            [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        kind.is_some_and(|kind| full.contains(&kind))
    }

    /// Returns the error of an operation without a key on the database at this path, which may have
    /// happened. Such an operation can be repeated in either case.
    pub(super) fn to_unknown(&self, operation: &'static str, path: &Path) -> KvError {
        let reason = format!(
            "the commit to {} failed, but may have happened; repeat the call",
            path.display()
        );
        KvError::unavailable(operation, reason).with_source(self.to_error(operation, path, None))
    }

    /// Returns the error of an operation on the database at this path. `store` is the store of a
    /// write.
    pub(super) fn to_error(
        &self,
        operation: &'static str,
        path: &Path,
        store: Option<&str>,
    ) -> KvError {
        let path = path.display();
        if self.is_full()
            && let Some(store) = store
        {
            let limit = format!(
                "the file system of {path} has no room; nothing was written: free some space and repeat the call"
            );
            return KvError::store_full(store, limit);
        }
        match self {
            Self::Damaged(what) => KvError::backend(
                operation,
                format!("the database {path} is damaged: {what}; restore it from a backup"),
            ),
            Self::Unknown => KvError::backend(
                operation,
                format!(
                    "the database {path} has a format that this version of the library cannot read; use a newer version"
                ),
            ),
            Self::Interfered(what) => KvError::backend(
                operation,
                format!(
                    "the database {path} was {what} by another program; open the connection again"
                ),
            ),
            Self::Busy(reason) => KvError::unavailable(operation, reason.clone()),
            Self::Redb(::redb::Error::Corrupted(what)) => KvError::backend(
                operation,
                format!("the database {path} is damaged: {what}; restore it from a backup"),
            ),
            Self::Redb(::redb::Error::UpgradeRequired(_)) => KvError::backend(
                operation,
                format!(
                    "the database {path} has the format of another version of redb; use the version of this library that wrote it"
                ),
            ),
            Self::Redb(error) => {
                let source = match self.io() {
                    Some(error) => io::Error::new(error.kind(), error.to_string()),
                    None => io::Error::other(error.to_string()),
                };
                let reason =
                    format!("{path}: {error}; check the disk and the rights, then repeat the call");
                KvError::unavailable(operation, reason).with_source(source)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store may have been created or deleted before the disk was full.
    #[test]
    fn unknown_outcome_without_a_key_is_not_a_full_store() {
        let full = Failure::from_io(io::ErrorKind::StorageFull.into());
        let path = Path::new("data");
        let known = full.to_error("delete_store", path, Some("config"));
        assert!(matches!(known, KvError::StoreFull { .. }), "{known}");
        let unknown = full.to_unknown("delete_store", path);
        assert!(matches!(unknown, KvError::Unavailable { .. }), "{unknown}");
        assert!(unknown.to_string().contains("may have happened"), "{unknown}");
    }
}
