//! A disk in memory that has no room, fails, or loses unsynced data, on request.

use super::*;

use std::io;
use std::sync::{Mutex, MutexGuard};

use ::redb::StorageBackend;

/// The content stays when the database over it is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
pub(super) struct Platter {
    /// The content for reads.
    bytes: Vec<u8>,
    /// The content after a loss of power.
    synced: Vec<u8>,
    /// Number of operations until one fails, and all after it.
    pub(super) left: Option<u64>,
    /// Kind of the error of failing operations.
    pub(super) kind: Option<io::ErrorKind>,
    pub(super) operations: u64,
}

impl Disk {
    pub(super) fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// Lets this number of operations succeed, and makes all later ones fail with this error.
    pub(super) fn fail_after(&self, operations: u64, kind: io::ErrorKind) {
        let mut platter = self.platter();
        (platter.left, platter.kind) = (Some(operations), Some(kind));
    }

    /// Lets all operations succeed again.
    pub(super) fn mend(&self) {
        self.platter().left = None;
    }

    /// Loses power, and with it all unsynced data.
    pub(super) fn lose_power(&self) {
        let mut platter = self.platter();
        platter.bytes = platter.synced.clone();
    }

    /// Deletes the file.
    pub(super) fn delete(&self) {
        self.platter().bytes.clear();
    }

    /// Opens a storage on the disk.
    pub(super) fn open(&self, sync: RedbSync) -> Result<RedbStorage, StorageError> {
        let disk = self.clone();
        let opener = move || {
            Ok((
                ::redb::Builder::new().set_cache_size(1 << 20).create_with_backend(disk.clone())?,
                None,
            ))
        };
        SharedDatabase::over("/disk.redb".into(), Box::new(opener))
            .map(|shared| RedbStorage::over(shared, sync))
    }

    fn change(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.platter();
        platter.operations += 1;
        match &mut platter.left {
            Some(0) => Err(platter.kind.unwrap_or(io::ErrorKind::Other).into()),
            Some(left) => {
                *left -= 1;
                Ok(platter)
            }
            None => Ok(platter),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let platter = self.platter();
        let found = platter.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change()?.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.change()?;
        platter.synced = platter.bytes.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        let mut platter = self.change()?;
        let target =
            platter.bytes.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(data);
        Ok(())
    }
}
