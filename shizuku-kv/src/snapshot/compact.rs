//! Rewrites the log without superseded entries, while the writer continues with the old file.
//!
//! The compaction reads the file twice up to a checkpoint: first to find the newest record of each
//! live key, then to copy these records. It copies the frames that the writer has appended
//! meanwhile as they are. It blocks the writer only for the last of these frames.

use std::io;
use std::sync::Arc;

use super::disk::{DiskFile, write_full};
use super::frame::{Ending, FILE_HEADER, FRAME_HEADER, FileHeader, Kind};
use super::index::Index;
use super::log::{PART_SIZE, create_beside, remove_leftover, seal_frame};
use super::scan::{Scan, Span};
use super::shared::SharedLog;
use super::{SnapshotError, small_in_tests};

/// Maximum number of bytes that are still to be copied when the compaction blocks the writer.
const LAST: u64 = small_in_tests(256 * 1024, 64) as u64;
/// Maximum number of copying rounds. Afterwards the compaction blocks a writer that is faster than
/// the copying, unless the length of the log has already blocked it.
const ROUNDS: usize = 16;
/// Number of written bytes after which the new file is synced. A single sync of everything would
/// take long, and dropping the writer waits for it.
const SYNC_EVERY: u64 = small_in_tests(32 * 1024 * 1024, 700) as u64;

/// Extension of the new file.
pub(super) const EXTENSION: &str = ".compact";

/// Result of a compaction.
pub(super) enum Outcome {
    /// The log is in another file now, with this initial length.
    Done(u64),
    /// The writer is being closed.
    Stopped,
}

/// Compacts the log. The log is unchanged after an error, and if the writer is closed meanwhile.
pub(super) fn run(shared: &SharedLog) -> Result<Outcome, SnapshotError> {
    // Wakes a waiting writer at the end, also after a panic.
    let _ends = EndOfCompaction(shared);
    let path = SharedLog::beside(&shared.path, EXTENSION);
    let result = write(shared);
    if !matches!(result, Ok(Outcome::Done(_))) {
        // The file is absent if it was never created, or if only the sync of the directory failed.
        // If the removal fails, the next opening or compaction of the log removes the file.
        let _ = remove_leftover(&*shared.disk, &path);
    }
    result
}

struct EndOfCompaction<'a>(&'a SharedLog);

impl Drop for EndOfCompaction<'_> {
    fn drop(&mut self) {
        self.0.compaction_ended();
    }
}

fn write(shared: &SharedLog) -> Result<Outcome, SnapshotError> {
    let path = SharedLog::beside(&shared.path, EXTENSION);
    let (source, header, good, good_chain, ending) = {
        let mut log = shared.log();
        log.check_file()?;
        let Some(ending) = log.ending else {
            return Ok(Outcome::Done(log.end));
        };
        (Arc::clone(&log.file), log.header, log.good, log.good_chain, ending)
    };
    let span = Span::known(FILE_HEADER, header.chain(), good);
    let scan = |span| Scan::new(Arc::clone(&source), Arc::clone(&shared.path), span);
    // The total is `2 * good`, because a compaction reads the file twice.
    let mut reported = 0;
    let mut report = |read: u64| {
        if read >= reported + PART_SIZE as u64 {
            reported = read;
            shared.compaction_read(read, 2 * good);
        }
        !shared.is_stopping()
    };
    let mut index = Index::new();
    let mut first = scan(span);
    index.fill(&mut first, &shared.path, &mut report)?;
    if shared.is_stopping() {
        return Ok(Outcome::Stopped);
    }
    first.must_be_at_end()?;

    let mut new = NewFile::create(shared, &path)?;
    let mut second = scan(span);
    while let Some(frame) = second.next()? {
        if !report(good + frame.end()) {
            return Ok(Outcome::Stopped);
        }
        for record in index.live(&frame, &shared.path) {
            new.record(record?.bytes())?;
        }
    }
    second.must_be_at_end()?;
    drop(index);
    new.checkpoint(&ending)?;
    let live = new.end();

    let (mut copied, mut chain) = (good, good_chain);
    for _ in 0..ROUNDS {
        let (good, good_chain) = {
            let log = shared.log();
            log.check()?;
            (log.good, log.good_chain)
        };
        new.copy(&mut scan(Span::known(copied, chain, good)), || !shared.is_stopping())?;
        if shared.is_stopping() {
            return Ok(Outcome::Stopped);
        }
        let last = good - copied;
        (copied, chain) = (good, good_chain);
        if last <= LAST {
            break;
        }
    }
    // Syncs most of the file now, so that the sync under the writer's lock is short.
    new.sync()?;

    let mut log = shared.log();
    log.check()?;
    if shared.is_stopping() {
        return Ok(Outcome::Stopped);
    }
    new.copy(&mut scan(Span::known(copied, chain, log.good)), || true)?;
    let (new_good, new_good_chain) = (new.end(), new.chain);
    // Copies the parts of a checkpoint whose end has not been written yet.
    new.copy(&mut scan(Span::known(log.good, log.good_chain, log.end)), || true)?;
    new.sync()?;
    let error = |operation| move |source| SnapshotError::io(&shared.path, operation, source);
    // Renames its own file and the log only, not other files that took their names meanwhile.
    if let Some(what) = new.file.identity(&path).change() {
        return Err(SnapshotError::Interfered { path, what });
    }
    log.check_file()?;
    shared
        .disk
        .rename(&path, &shared.path)
        .map_err(error("put the compacted file in the place of"))?;
    log.file = Arc::clone(&new.file);
    log.header = new.header;
    log.generation += 1;
    log.found = 0;
    (log.end, log.chain) = (new.end(), new.chain);
    (log.good, log.good_chain) = (new_good, new_good_chain);
    // Until this sync, a crash of the machine may bring back the old file without later frames.
    if let Err(source) = shared.disk.sync_dir(&shared.path) {
        return Err(log.poison("the sync of the directory", source));
    }
    // The mark stays until here, because a crash must not leave a file beside the log that looks
    // like another log.
    log.unmark();
    log.seal(new_good);
    Ok(Outcome::Done(live))
}

/// The new file. It collects frames, so that small frames do not need a call each.
struct NewFile {
    file: Arc<dyn DiskFile>,
    path: std::path::PathBuf,
    header: FileHeader,
    chain: u32,
    /// Number of bytes in the file, and number of those that are synced.
    written: u64,
    synced: u64,
    /// Frames that are ready to be written.
    ready: Vec<u8>,
    /// The frame that is being filled with records, with room for its header.
    frame: Vec<u8>,
}

impl NewFile {
    fn create(shared: &SharedLog, path: &std::path::Path) -> Result<Self, SnapshotError> {
        remove_leftover(&*shared.disk, path)?;
        let (file, header) = create_beside(&*shared.disk, path, &shared.path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            header,
            chain: header.chain(),
            written: FILE_HEADER,
            synced: 0,
            ready: Vec::new(),
            frame: vec![0; FRAME_HEADER],
        })
    }

    /// Returns the offset of the next frame after everything has been written.
    fn end(&self) -> u64 {
        self.written + self.ready.len() as u64
    }

    fn record(&mut self, record: &[u8]) -> Result<(), SnapshotError> {
        if self.frame.len() >= PART_SIZE || self.frame.len() + record.len() > 2 * PART_SIZE {
            self.end_frame(Kind::Part)?;
        }
        self.frame.extend_from_slice(record);
        Ok(())
    }

    fn checkpoint(&mut self, ending: &Ending) -> Result<(), SnapshotError> {
        ending.append_to(&mut self.frame);
        self.end_frame(Kind::of(Some(ending)))
    }

    fn end_frame(&mut self, kind: Kind) -> Result<(), SnapshotError> {
        self.chain =
            seal_frame(&mut self.frame, kind, self.chain).map_err(|source| self.error(source))?;
        self.ready.extend_from_slice(&self.frame);
        self.frame.truncate(FRAME_HEADER);
        self.write_if_much()
    }

    /// Copies frames, and computes the checksums of their headers for this file.
    fn copy(&mut self, scan: &mut Scan, go_on: impl Fn() -> bool) -> Result<(), SnapshotError> {
        while let Some(frame) = scan.next()? {
            if !go_on() {
                return Ok(());
            }
            let start = self.ready.len();
            self.ready.extend_from_slice(&frame.bytes);
            let kind = Kind::of(frame.ending.as_ref());
            let sealed = seal_frame(&mut self.ready[start..], kind, self.chain);
            self.chain = sealed.map_err(|source| self.error(source))?;
            self.write_if_much()?;
        }
        scan.must_be_at_end()
    }

    fn write_if_much(&mut self) -> Result<(), SnapshotError> {
        if self.ready.len() >= PART_SIZE {
            self.write()?;
        }
        if self.written - self.synced >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), SnapshotError> {
        write_full(&*self.file, &self.ready, self.written).map_err(|source| self.error(source))?;
        self.written += self.ready.len() as u64;
        self.ready.clear();
        Ok(())
    }

    /// Writes the ready frames, and returns when everything is on the disk.
    fn sync(&mut self) -> Result<(), SnapshotError> {
        self.write()?;
        if self.synced < self.written {
            self.file.sync().map_err(|source| SnapshotError::io(&self.path, "sync", source))?;
            self.synced = self.written;
        }
        Ok(())
    }

    fn error(&self, source: io::Error) -> SnapshotError {
        SnapshotError::io_at(&self.path, "write", self.written, source)
    }
}
