//! The end of the file to which the writer appends frames. A failed append leaves it unchanged.

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

/// Size in bytes above which a checkpoint is written in parts as it grows (ADR 0039).
pub(super) const PART_SIZE: usize = small_in_tests(1024 * 1024, 256);

/// Number of bytes that are rewritten at a time.
const REWRITE: usize = small_in_tests(1024 * 1024, 100);

/// The file of a writer. A compaction may replace it with another file.
pub(super) struct Log {
    pub(super) path: Arc<Path>,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) header: FileHeader,
    /// Number of compactions that have replaced the file.
    pub(super) generation: u64,
    /// Offset of the next frame, and the start value for its checksum.
    pub(super) end: u64,
    pub(super) chain: u32,
    /// The same two after the last checkpoint.
    pub(super) good: u64,
    pub(super) good_chain: u32,
    /// Ending of the last checkpoint.
    pub(super) ending: Option<Ending>,
    /// Length that has reached the disk at least.
    pub(super) synced: u64,
    /// Length found at opening. It is unknown whether the bytes between `synced` and here are on
    /// the disk.
    pub(super) found: u64,
    /// The compaction in progress.
    pub(super) compaction: Option<Compaction>,
    /// The error that every operation returns from now on.
    poison: Option<SnapshotError>,
    /// True if `poison` is set, for readers that must not wait for the log.
    pub(super) poisoned: Arc<AtomicBool>,
}

/// Progress of a compaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compaction {
    /// Length of the log when the compaction began.
    pub(super) from: u64,
    /// Number of bytes that the compaction has read, and in `of` the number that it has to read.
    pub(super) read: u64,
    pub(super) of: u64,
}

impl Compaction {
    /// Returns the permitted length of the log at the current progress. It reaches `limit` at the
    /// end of the compaction. It grows with the progress, so that a fast writer makes many short
    /// pauses and not one long pause at the end.
    pub(super) fn allows(&self, limit: u64) -> u64 {
        let room = limit.saturating_sub(self.from);
        let first = room / 8;
        let part = u128::from(room - first) * u128::from(self.read.min(self.of))
            / u128::from(self.of.max(1));
        self.from.saturating_add(first).saturating_add(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

impl Log {
    /// Prepares a log for writing after `loaded` was read from it. Cuts off the incomplete data
    /// that a crash left after the last checkpoint. With `durable`, the loaded state is on the disk
    /// when this returns.
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
            compaction: None,
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

    /// Rewrites the found bytes that may not be on the disk, before the first sync. A failed sync
    /// may have left them, possibly of the previous process. The system considers such bytes clean,
    /// and no later sync writes them.
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

    /// Returns the error that poisoned the log, if any.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// Poisons the log if another program has touched the file. Otherwise written frames would be
    /// lost or read as damage, and a rename would remove the file that took its place.
    pub(super) fn check_file(&mut self) -> Result<(), SnapshotError> {
        self.check()?;
        let mut header = [0; FILE_HEADER as usize];
        let look = self.file.look(&self.path);
        let (len, identity) = look.map_err(|source| self.error("look at", source))?;
        // After a write beyond the end of a truncated file the length is right, and zeros precede
        // the write.
        let read = read_full(&*self.file, &mut header, 0)
            .map_err(|source| self.error("look at", source))?;
        let is_cut = len < self.end || read < header.len() || !self.header.is_in(&header);
        let change = match identity.change() {
            None if is_cut => Some("truncated"),
            None if len > self.end => Some("written to"),
            change => change,
        };
        let Some(what) = change else { return Ok(()) };
        Err(self.poison_with(SnapshotError::Interfered { path: self.path.to_path_buf(), what }))
    }

    /// Makes all further operations fail. Returns their error.
    pub(super) fn poison(&mut self, operation: &'static str, source: io::Error) -> SnapshotError {
        let path = self.path.to_path_buf();
        self.poison_with(SnapshotError::Poisoned { path, operation, source: Arc::new(source) })
    }

    fn poison_with(&mut self, error: SnapshotError) -> SnapshotError {
        self.poisoned.store(true, Ordering::Release);
        // The first error is the cause of all others.
        self.poison.get_or_insert(error).clone()
    }

    /// Writes a frame. `buffer` has its payload after room for the header. If the write fails, the
    /// file is as it was before. If restoring it fails too, the log is poisoned (ADR 0039).
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

    /// Returns true if the writer has to wait for the compaction before the log may grow.
    pub(super) fn is_ahead(&self, limit: u64) -> bool {
        self.compaction.is_some_and(|compaction| self.good > compaction.allows(limit))
    }

    /// Cuts off the parts after the last checkpoint.
    pub(super) fn roll_back(&mut self) -> Result<(), SnapshotError> {
        self.check()?;
        if self.end > self.good {
            // Cutting a file that another program has truncated would extend it.
            self.check_file()?;
            self.file
                .set_len(self.good)
                .map_err(|source| SnapshotError::io_at(&self.path, "cut", self.good, source))?;
            self.end = self.good;
            self.chain = self.good_chain;
        }
        Ok(())
    }

    /// Records that the file had reached the disk up to `len` when a sync ended.
    pub(super) fn seal(&mut self, len: u64) {
        self.synced = len;
        // A failed write does no harm, because the other seal remains valid.
        let _ = self.write_seal(self.header.next_seal(), len);
    }

    /// Writes the magic number over the mark, now that the file has its name. A log is readable
    /// with either.
    pub(super) fn unmark(&mut self) {
        if self.header.marked && write_full(&*self.file, &MAGIC, 0).is_ok() {
            self.header.marked = false;
        }
    }

    fn write_seal(&mut self, slot: usize, len: u64) -> io::Result<()> {
        let written = write_full(&*self.file, &self.header.seal(len), FileHeader::seal_at(slot));
        // After an error the seal may be half written. The next write goes to the same slot.
        self.header.seals[slot] = written.is_ok().then_some(len);
        written
    }

    fn error(&self, operation: &'static str, source: io::Error) -> SnapshotError {
        SnapshotError::io(&self.path, operation, source)
    }
}

/// Writes the header before a payload. Returns the start value for the checksum of the next frame.
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

/// Turns an empty file, or the remainder of a crashed creation, into a log. It takes three steps.
/// The file is recognized after a crash between them, and a file that begins with the magic number
/// is whole.
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

/// Creates a new file beside the log, with a mark and the rest of a header. Only the mark is
/// synced.
pub(super) fn create_beside(
    disk: &dyn Disk,
    path: &Path,
    log: &Path,
) -> Result<(Arc<dyn DiskFile>, FileHeader), SnapshotError> {
    let error = |operation| move |source| SnapshotError::io(path, operation, source);
    let file = disk.open(path, Access::Create).map_err(error("create"))?;
    // Locks the file before it has the log's name, so that no other writer can lock it in between.
    if !file.try_lock().map_err(error("lock"))? {
        return Err(SnapshotError::Locked { path: path.to_owned() });
    }
    // Sets the permissions before the file has readable content.
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

/// Writes the header after its mark.
fn write_header(
    file: &dyn DiskFile,
    path: &Path,
    header: &FileHeader,
) -> Result<(), SnapshotError> {
    let start = MARK.len();
    write_full(file, &header.to_bytes()[start..], start as u64)
        .map_err(|source| SnapshotError::io_at(path, "write", start as u64, source))
}

/// Removes the remainder of a crashed compaction. Leaves any other file of that name unchanged,
/// including the file of a running writer.
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
