//! Reading what is held while the replica runs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ::redb::{OwnedRange, ReadableDatabase, ReadableTableMetadata};

use super::database::{self, STATE, Shared};
use super::error::Failure;
use super::record;
use crate::replica::storage::{ReplicaPlace, StorageError};
use crate::store::KvEntry;

/// Reads what a [`RedbStorage`](super::RedbStorage) holds, also while a replica has the storage: neither waits for the
/// other. A clone costs next to nothing.
///
/// Each call sees what one commit left, and no part of another. All of them block on the disk: in async code call them
/// in [`spawn_blocking`](tokio::task::spawn_blocking), or wherever that does no harm.
///
/// When the storage is closed or dropped, every call is an error.
#[derive(Clone)]
pub struct RedbReader {
    shared: Arc<Shared>,
}

impl RedbReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The entry of a key; `None` where it is not held, or is no key at all.
    ///
    /// # Errors
    /// What is in the way, or that the record is damaged.
    pub fn get(&self, key: &str) -> Result<Option<KvEntry>, StorageError> {
        self.shared.read(|database, path| {
            let state = database.begin_read()?.open_table(STATE)?;
            match state.get(key.as_bytes())? {
                Some(bytes) => {
                    let record = record::read(key.as_bytes(), bytes.value());
                    Ok(Some(record.map_err(|damage| damage.at(path))?.into_entry()))
                }
                None => Ok(None),
            }
        })
    }

    /// The entries whose keys begin with this string, in the order of the keys' bytes; with the empty string all of them.
    /// They are read one by one as they are asked for, as they were when this was called.
    ///
    /// As long as it lives, the file keeps what is replaced or deleted meanwhile: finish or drop it.
    ///
    /// # Errors
    /// What is in the way.
    pub fn scan(&self, prefix: &str) -> Result<RedbScan, StorageError> {
        self.shared.read(|database, path| {
            let state = database.begin_read()?.open_table(STATE)?;
            let range = state.range_owned(prefix.as_bytes()..)?;
            Ok(RedbScan { range: Some(range), prefix: prefix.to_owned(), path: path.to_owned() })
        })
    }

    /// How many keys are held. It is counted already: it costs as much as [`get`](Self::get).
    ///
    /// # Errors
    /// What is in the way.
    pub fn len(&self) -> Result<u64, StorageError> {
        self.shared.read(|database, _| Ok(database.begin_read()?.open_table(STATE)?.len()?))
    }

    /// Whether no key is held.
    ///
    /// # Errors
    /// What is in the way.
    pub fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()? == 0)
    }

    /// The place of the last commit; `None` where there was none, or where it was without a place.
    ///
    /// # Errors
    /// What is in the way, or that the place is damaged.
    pub fn place(&self) -> Result<Option<ReplicaPlace>, StorageError> {
        self.shared.read(|database, path| database::place(&database.begin_read()?, path))
    }
}

/// The path, and no content.
impl fmt::Debug for RedbReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbReader").field("path", &self.shared.path()).finish_non_exhaustive()
    }
}

/// The entries of a [`RedbReader::scan`]. Getting the next one blocks on the disk.
///
/// An error is the last item: that the record is damaged, that the storage was closed meanwhile, or what else is in the
/// way.
pub struct RedbScan {
    /// None after the last entry or an error, so that the file need not keep anything for it.
    range: Option<OwnedRange<&'static [u8], &'static [u8]>>,
    prefix: String,
    path: PathBuf,
}

impl RedbScan {
    fn step(&mut self) -> Option<Result<KvEntry, Failure>> {
        let (key, bytes) = match self.range.as_mut()?.next()? {
            Ok(item) => item,
            Err(error) => return Some(Err(error.into())),
        };
        if !key.value().starts_with(self.prefix.as_bytes()) {
            return None;
        }
        let record = record::read(key.value(), bytes.value());
        Some(record.map(record::Record::into_entry).map_err(|damage| damage.at(&self.path)))
    }
}

impl Iterator for RedbScan {
    type Item = Result<KvEntry, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step();
        if !matches!(item, Some(Ok(_))) {
            self.range = None;
        }
        item.map(|item| item.map_err(|failure| failure.into_storage_error(&self.path, "scan")))
    }
}

impl std::iter::FusedIterator for RedbScan {}

/// The path and the prefix, and no content.
impl fmt::Debug for RedbScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbScan")
            .field("path", &self.path)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
