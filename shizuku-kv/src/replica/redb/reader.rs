//! Reads the state while the replica runs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ::redb::{OwnedRange, ReadableDatabase, ReadableTableMetadata};

use super::database::{self, STATE, SharedDatabase};
use super::error::Failure;
use super::record;
use crate::replica::storage::{Checkpoint, StorageError};
use crate::store::KvEntry;

/// Reads the state of a [`RedbStorage`](super::RedbStorage), also while a replica has the storage.
/// Neither waits for the other. A clone is cheap.
///
/// Each call sees the state of exactly one commit. All calls block on the disk: in async code call
/// them in [`spawn_blocking`](tokio::task::spawn_blocking), or wherever blocking does no harm.
///
/// After the storage was closed or dropped, every call returns an error.
#[derive(Clone)]
pub struct RedbReader {
    shared: Arc<SharedDatabase>,
}

impl RedbReader {
    pub(super) fn new(shared: Arc<SharedDatabase>) -> Self {
        Self { shared }
    }

    /// Returns the entry of a key. Returns `None` if the key is not held or is not a valid key.
    ///
    /// # Errors
    /// Returns the error of the storage, or an error if the record is damaged.
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

    /// Returns the entries whose keys begin with this string, in the order of the keys' bytes, or
    /// all entries for the empty string. The iterator reads them one by one, from the state at the
    /// time of this call.
    ///
    /// While the iterator exists, the file keeps entries that are replaced or deleted meanwhile.
    /// Finish or drop it.
    ///
    /// # Errors
    /// Returns the error of the storage.
    pub fn scan(&self, prefix: &str) -> Result<RedbScan, StorageError> {
        self.shared.read(|database, path| {
            let state = database.begin_read()?.open_table(STATE)?;
            let range = state.range_owned(prefix.as_bytes()..)?;
            Ok(RedbScan { range: Some(range), prefix: prefix.to_owned(), path: path.to_owned() })
        })
    }

    /// Returns the number of held keys. The file stores the number, so this costs as much as
    /// [`get`](Self::get).
    ///
    /// # Errors
    /// Returns the error of the storage.
    pub fn len(&self) -> Result<u64, StorageError> {
        self.shared.read(|database, _| Ok(database.begin_read()?.open_table(STATE)?.len()?))
    }

    /// Returns true if no key is held.
    ///
    /// # Errors
    /// Returns the error of the storage.
    pub fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()? == 0)
    }

    /// Returns the checkpoint of the last commit. Returns `None` if nothing was committed, or the
    /// last commit had no checkpoint.
    ///
    /// # Errors
    /// Returns the error of the storage, or an error if the checkpoint is damaged.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        self.shared.read(|database, path| database::checkpoint(&database.begin_read()?, path))
    }
}

/// Shows the path, and no content.
impl fmt::Debug for RedbReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbReader").field("path", &self.shared.path()).finish_non_exhaustive()
    }
}

/// The entries of a [`RedbReader::scan`]. Getting the next one blocks on the disk.
///
/// An error is the last item: the record is damaged, the storage was closed meanwhile, or another
/// error of the storage.
pub struct RedbScan {
    /// `None` after the last entry or an error, so that the file need not keep anything for it.
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

/// Shows the path and the prefix, and no content.
impl fmt::Debug for RedbScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbScan")
            .field("path", &self.path)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
