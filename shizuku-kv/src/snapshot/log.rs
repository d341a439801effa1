//! The end of the file that is written: frames go behind it, and what fails leaves it as it was.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SnapshotError;
use super::disk::{Access, Disk, DiskFile, read_full, write_full};
use super::frame::{Ending, FRAME_HEADER, FileHeader, FrameHeader, Kind};
use super::load::Loaded;
use super::small_in_tests;

/// As much is written again at a time.
const REWRITE: usize = small_in_tests(1024 * 1024, 100);

/// A file that is written, of a writer that may go on with another one after a compaction.
pub(super) struct Log {
    pub(super) path: Arc<Path>,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) header: FileHeader,
    /// Grows when a compaction puts another file in its place.
    pub(super) generation: u64,
    /// Where the next frame goes, and the checksum that its own begins with.
    pub(super) end: u64,
    pub(super) chain: u32,
    /// The same behind the last checkpoint.
    pub(super) good: u64,
    pub(super) good_chain: u32,
    /// What ended the last checkpoint.
    pub(super) ending: Option<Ending>,
    /// Up to here, at least, it has reached the disk.
    pub(super) synced: u64,
    /// Up to here there was something when it was opened, of which it is not known whether it is on the disk.
    pub(super) found: u64,
    /// What failed in such a way that nothing is known since.
    poison: Option<(&'static str, Arc<io::Error>)>,
    /// Whether there is one, for those who do not want to wait for the log.
    pub(super) poisoned: Arc<AtomicBool>,
}

impl Log {
    /// A log of which `loaded` was read, ready to be written: what a crash left behind the last checkpoint is cut off.
    /// With `durable`, what was read is on the disk when this returns.
    pub(super) fn recover(
        path: Arc<Path>,
        file: Arc<dyn DiskFile>,
        loaded: &Loaded,
        header: FileHeader,
        durable: bool,
    ) -> Result<Self, SnapshotError> {
        let mut log = Self {
            path,
            file,
            header,
            generation: 0,
            end: loaded.good,
            chain: loaded.chain,
            good: loaded.good,
            good_chain: loaded.chain,
            ending: loaded.ending,
            synced: header.sealed().min(loaded.good),
            found: loaded.good,
            poison: None,
            poisoned: Arc::default(),
        };
        let torn = loaded.len > loaded.good;
        if torn {
            log.file.set_len(log.good).map_err(|source| log.error("cut off the torn end of", source))?;
        }
        // Seals beyond the end, which somebody's cutting of the file leaves, would make a torn tail of what is appended
        // now look like damage later. One after the other: between them a crash leaves one that can be read.
        let overreaching = header.seals.map(|seal| seal.is_some_and(|sealed| sealed > log.good));
        if torn || overreaching != [false; 2] || (durable && log.synced < log.good) {
            log.write_again()?;
            log.sync_now()?;
        }
        for slot in (0..2).filter(|slot| overreaching[*slot]) {
            log.write_seal(slot, log.good).map_err(|source| log.error("write a seal of", source))?;
            log.sync_now()?;
        }
        if log.header.sealed() < log.synced {
            log.seal(log.synced);
        }
        Ok(log)
    }

    /// Writes what was found, and is not known to be on the disk, once more as it is, before the first sync. It may be what
    /// a failed sync left, maybe one of the process before: the system takes that for clean, and no sync writes it any more.
    pub(super) fn write_again(&mut self) -> Result<(), SnapshotError> {
        let mut at = self.synced;
        let mut buffer = vec![0; if at < self.found { REWRITE } else { 0 }];
        while at < self.found {
            let len = usize::try_from(self.found - at).map_or(REWRITE, |left| left.min(REWRITE));
            let some = &mut buffer[..len];
            let read = read_full(&*self.file, some, at)
                .map_err(|source| SnapshotError::io_at(&self.path, "read", at, source))?;
            if read < len {
                return Err(SnapshotError::damaged(
                    &self.path,
                    at,
                    "the file has become shorter while it was read",
                ));
            }
            write_full(&*self.file, some, at)
                .map_err(|source| SnapshotError::io_at(&self.path, "write", at, source))?;
            at += len as u64;
        }
        self.found = 0;
        Ok(())
    }

    fn sync_now(&mut self) -> Result<(), SnapshotError> {
        self.file.sync().map_err(|source| self.error("sync", source))?;
        self.synced = self.good;
        Ok(())
    }

    /// Whether it can be used still.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        match &self.poison {
            None => Ok(()),
            Some((operation, source)) => Err(SnapshotError::Poisoned {
                path: self.path.to_path_buf(),
                operation,
                source: Arc::clone(source),
            }),
        }
    }

    /// An error from now on if the file is not there any more, or another has its name: nothing that is written would be
    /// found again, and renaming would take the other away.
    pub(super) fn check_name(&mut self) -> Result<(), SnapshotError> {
        if self.file.is_at(&self.path) {
            return Ok(());
        }
        let source = io::Error::new(io::ErrorKind::NotFound, "the file was removed or replaced");
        Err(self.poison("looking for the file", source))
    }

    /// From now on nothing works. The error of it.
    pub(super) fn poison(&mut self, operation: &'static str, source: io::Error) -> SnapshotError {
        // The first is what all others come from.
        self.poison.get_or_insert_with(|| (operation, Arc::new(source)));
        self.poisoned.store(true, Ordering::Release);
        match self.check() {
            Err(error) => error,
            Ok(()) => self.error(operation, io::ErrorKind::Other.into()),
        }
    }

    /// Writes a frame, of which `buffer` has the payload behind room for the header. When that fails, the file is as it
    /// was before; when even that cannot be had, the log is poisoned.
    pub(super) fn append(&mut self, buffer: &mut [u8], ending: Option<Ending>) -> Result<(), SnapshotError> {
        self.check()?;
        let result = seal_frame(buffer, Kind::of(ending.as_ref()), self.chain)
            .and_then(|chain| write_full(&*self.file, buffer, self.end).map(|()| chain));
        match result {
            Ok(chain) => {
                self.end += buffer.len() as u64;
                self.chain = chain;
                if ending.is_some() {
                    self.good = self.end;
                    self.good_chain = chain;
                    self.ending = ending;
                }
                Ok(())
            }
            Err(source) => match self.file.set_len(self.end) {
                Ok(()) => Err(SnapshotError::io_at(&self.path, "append to", self.end, source)),
                Err(cut) => Err(self.poison("cutting off a failed write", cut)),
            },
        }
    }

    /// Forgets the parts behind the last checkpoint.
    pub(super) fn roll_back(&mut self) -> Result<(), SnapshotError> {
        self.check()?;
        if self.end > self.good {
            self.file
                .set_len(self.good)
                .map_err(|source| SnapshotError::io_at(&self.path, "cut", self.good, source))?;
            self.end = self.good;
            self.chain = self.good_chain;
        }
        Ok(())
    }

    /// Notes that the file had reached the disk up to `len` when a sync ended.
    pub(super) fn seal(&mut self, len: u64) {
        self.synced = len;
        // It is not needed for anything to be right: when it cannot be written, the other counts.
        let _ = self.write_seal(self.header.next_seal(), len);
    }

    fn write_seal(&mut self, slot: usize, len: u64) -> io::Result<()> {
        let written = write_full(&*self.file, &self.header.seal(len), FileHeader::seal_at(slot));
        // Half of one may be there; the next goes to the same place.
        self.header.seals[slot] = written.is_ok().then_some(len);
        written
    }

    fn error(&self, operation: &'static str, source: io::Error) -> SnapshotError {
        SnapshotError::io(&self.path, operation, source)
    }
}

/// Puts the header before a payload; the checksum that the next frame's begins with.
pub(super) fn seal_frame(buffer: &mut [u8], kind: Kind, chain: u32) -> io::Result<u32> {
    let Some((header, payload)) = buffer.split_first_chunk_mut::<FRAME_HEADER>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let payload_len = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let payload_crc = crc32fast::hash(payload);
    let (bytes, chain) = FrameHeader { kind, payload_len, payload_crc }.to_bytes(chain);
    *header = bytes;
    Ok(chain)
}

/// A new file in the place of `path`, through one of another name: what is there is a whole header or nothing new.
pub(super) fn create(
    disk: &dyn Disk,
    path: &Path,
    temporary: &Path,
) -> Result<(Arc<dyn DiskFile>, FileHeader), SnapshotError> {
    let (file, header) = create_beside(disk, temporary)?;
    file.sync().map_err(|source| SnapshotError::io(temporary, "sync", source))?;
    disk.rename(temporary, path).map_err(|source| SnapshotError::io(path, "create", source))?;
    disk.sync_dir(path).map_err(|source| SnapshotError::io(path, "sync the directory of", source))?;
    Ok((file, header))
}

/// A new file with a header; not synced.
pub(super) fn create_beside(
    disk: &dyn Disk,
    path: &Path,
) -> Result<(Arc<dyn DiskFile>, FileHeader), SnapshotError> {
    let file = disk.open(path, Access::Create).map_err(|source| SnapshotError::io(path, "create", source))?;
    let header = FileHeader::new(fastrand::u128(..).to_le_bytes());
    write_full(&*file, &header.to_bytes(), 0)
        .map_err(|source| SnapshotError::io_at(path, "write", 0, source))?;
    Ok((file, header))
}
