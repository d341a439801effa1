//! The end of the file that is written: frames go behind it, and what fails leaves it as it was.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SnapshotError;
use super::disk::{Access, Disk, DiskFile, read_full, write_full};
use super::frame::{
    Ending, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, Kind, MAGIC, MARK, is_leftover,
};
use super::load::Loaded;
use super::small_in_tests;
use crate::local_file::NotRegular;

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
    /// The error that every operation returns from now on.
    poison: Option<SnapshotError>,
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
            log.file
                .set_len(log.good)
                .map_err(|source| log.error("cut off the torn end of", source))?;
        }
        if torn || (durable && log.synced < log.good) {
            log.write_again()?;
            log.file.sync().map_err(|source| log.error("sync", source))?;
            log.synced = log.good;
        }
        log.unmark();
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

    /// Whether it can be used still.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// Fails from now on if another program has touched the file: written frames would be lost or
    /// read as damage, and renaming would remove the file that took its place.
    pub(super) fn check_file(&mut self) -> Result<(), SnapshotError> {
        self.check()?;
        let mut header = [0; FILE_HEADER as usize];
        let len = self.file.len().map_err(|source| self.error("look at", source))?;
        // After a write behind the end of a truncated file the length is right, and zeros precede
        // the write.
        let read = read_full(&*self.file, &mut header, 0)
            .map_err(|source| self.error("look at", source))?;
        let is_cut = len < self.end || read < header.len() || !self.header.is_in(&header);
        let change = match self.file.place(&self.path).change() {
            None if is_cut => Some("truncated"),
            None if len > self.end => Some("written to"),
            change => change,
        };
        let Some(what) = change else { return Ok(()) };
        Err(self.poison_with(SnapshotError::Interfered { path: self.path.to_path_buf(), what }))
    }

    /// From now on nothing works. The error of it.
    pub(super) fn poison(&mut self, operation: &'static str, source: io::Error) -> SnapshotError {
        let path = self.path.to_path_buf();
        self.poison_with(SnapshotError::Poisoned { path, operation, source: Arc::new(source) })
    }

    fn poison_with(&mut self, error: SnapshotError) -> SnapshotError {
        self.poisoned.store(true, Ordering::Release);
        // The first error is the cause of all others.
        self.poison.get_or_insert(error).clone()
    }

    /// Writes a frame, of which `buffer` has the payload behind room for the header. When that fails, the file is as it
    /// was before; when even that cannot be had, the log is poisoned.
    pub(super) fn append(
        &mut self,
        buffer: &mut [u8],
        ending: Option<Ending>,
    ) -> Result<(), SnapshotError> {
        self.check_file()?;
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
            // Cutting a file that was truncated would extend it.
            self.check_file()?;
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

    /// Writes the magic number over the mark, now that the file has its name. Logs can be read with
    /// either.
    pub(super) fn unmark(&mut self) {
        if self.header.marked && write_full(&*self.file, &MAGIC, 0).is_ok() {
            self.header.marked = false;
        }
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

/// Turns an empty file, or the remainder of a creation that crashed, into a log. It takes three
/// steps, so that the file is recognized after a crash between them, and a file that begins with
/// the magic number is whole.
pub(super) fn create(file: &dyn DiskFile, path: &Path) -> Result<FileHeader, SnapshotError> {
    let mut header = mark(file, path)?;
    write_header(file, path, &header)?;
    let sync = |source| SnapshotError::io(path, "sync", source);
    file.sync().map_err(sync)?;
    write_full(file, &MAGIC, 0).map_err(|source| SnapshotError::io_at(path, "write", 0, source))?;
    file.sync().map_err(sync)?;
    header.marked = false;
    Ok(header)
}

/// A new file beside the log, with a mark and the rest of a header; only the mark is synced.
pub(super) fn create_beside(
    disk: &dyn Disk,
    path: &Path,
    log: &Path,
) -> Result<(Arc<dyn DiskFile>, FileHeader), SnapshotError> {
    let error = |operation| move |source| SnapshotError::io(path, operation, source);
    let file = disk.open(path, Access::Create).map_err(error("create"))?;
    // Locked before it has the log's name, so that no other writer can lock it in between.
    if !file.try_lock().map_err(error("lock"))? {
        return Err(SnapshotError::Locked { path: path.to_owned() });
    }
    // Before it has content that could be read.
    file.copy_access(log).map_err(error("set the permissions of"))?;
    let header = mark(&*file, path)?;
    write_header(&*file, path, &header)?;
    Ok((file, header))
}

fn mark(file: &dyn DiskFile, path: &Path) -> Result<FileHeader, SnapshotError> {
    write_full(file, &MARK, 0).map_err(|source| SnapshotError::io_at(path, "write", 0, source))?;
    file.sync().map_err(|source| SnapshotError::io(path, "sync", source))?;
    let mut header = FileHeader::new(fastrand::u128(..).to_le_bytes());
    header.marked = true;
    Ok(header)
}

/// Writes the header behind its mark.
fn write_header(
    file: &dyn DiskFile,
    path: &Path,
    header: &FileHeader,
) -> Result<(), SnapshotError> {
    let start = MARK.len();
    write_full(file, &header.to_bytes()[start..], start as u64)
        .map_err(|source| SnapshotError::io_at(path, "write", start as u64, source))
}

/// Removes the remainder of a compaction that crashed. Any other file of that name is left
/// unchanged, including the file of a running writer.
pub(super) fn remove_leftover(disk: &dyn Disk, path: &Path) -> Result<(), SnapshotError> {
    let error = |operation| move |source| SnapshotError::io(path, operation, source);
    let file = match disk.open(path, Access::Read) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) if NotRegular::within(&source).is_some() => return Ok(()),
        Err(source) => return Err(error("open")(source)),
    };
    let mut start = [0; MARK.len()];
    let read = read_full(&*file, &mut start, 0).map_err(error("read"))?;
    let len = file.len().map_err(error("read"))?;
    if is_leftover(&start[..read], len) && file.try_lock().map_err(error("lock"))? {
        disk.remove(path).map_err(error("remove"))?;
    }
    Ok(())
}
