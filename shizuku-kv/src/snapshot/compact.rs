//! Writing the log anew without what is superseded, while the writer goes on with the old one.
//!
//! The file is read twice up to a checkpoint: once to learn where the newest record of each live key is, once to copy
//! those. What has come meanwhile is copied as it is. Only for the last of it is the writer held up.

use std::io;
use std::sync::Arc;

use super::disk::{DiskFile, write_full};
use super::frame::{Ending, FILE_HEADER, FRAME_HEADER, FileHeader, Kind};
use super::index::Index;
use super::log::{create_beside, remove_leftover, seal_frame};
use super::scan::{Scan, Span};
use super::shared::Shared;
use super::writer::PART;
use super::{SnapshotError, small_in_tests};

/// Behind this much that is not copied yet, the writer is not held up.
const LAST: u64 = small_in_tests(256 * 1024, 64) as u64;
/// A writer that is faster than the copying is held up in the end.
const ROUNDS: usize = 16;
/// The new file is synced each time this much was written: one sync of everything would take long, and whoever drops
/// the writer waits for it.
const SYNC_EVERY: u64 = small_in_tests(32 * 1024 * 1024, 700) as u64;

/// Extension of the file that is written.
pub(super) const EXTENSION: &str = ".compact";

/// What a compaction came to.
pub(super) enum Outcome {
    /// The log is another file now, this long at first.
    Done(u64),
    /// The writer is being closed.
    Stopped,
}

/// Compacts the log. On any error the log is as it was, and so it is when the writer is closed meanwhile.
pub(super) fn run(shared: &Shared) -> Result<Outcome, SnapshotError> {
    let path = Shared::beside(&shared.path, EXTENSION);
    let result = write(shared);
    if !matches!(result, Ok(Outcome::Done(_))) {
        // Absent if it was never created, or if only the directory could not be synced. If it
        // cannot be removed now, the next opening or compaction of the log removes it.
        let _ = remove_leftover(&*shared.disk, &path);
    }
    result
}

fn write(shared: &Shared) -> Result<Outcome, SnapshotError> {
    let path = Shared::beside(&shared.path, EXTENSION);
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
    let mut index = Index::new();
    let mut first = scan(span);
    index.fill(&mut first, &shared.path, || !shared.is_stopping())?;
    if shared.is_stopping() {
        return Ok(Outcome::Stopped);
    }
    first.must_be_at_end()?;

    let mut new = NewFile::create(shared, &path)?;
    let mut second = scan(span);
    while let Some(frame) = second.next()? {
        if shared.is_stopping() {
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
    // Most of it, so that it does not take long when the writer waits for it.
    new.sync()?;

    let mut log = shared.log();
    log.check()?;
    if shared.is_stopping() {
        return Ok(Outcome::Stopped);
    }
    new.copy(&mut scan(Span::known(copied, chain, log.good)), || true)?;
    let (new_good, new_good_chain) = (new.end(), new.chain);
    // The parts of a checkpoint whose end is still to come.
    new.copy(&mut scan(Span::known(log.good, log.good_chain, log.end)), || true)?;
    new.sync()?;
    let error = |operation| move |source| SnapshotError::io(&shared.path, operation, source);
    // Renames its own file and the log only, not other files that took their names meanwhile.
    if let Some(what) = new.file.place(&path).change() {
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
    // Until then a crash of the machine may bring the old file back, without what comes next.
    if let Err(source) = shared.disk.sync_dir(&shared.path) {
        return Err(log.poison("the sync of the directory", source));
    }
    // Not earlier, because a crash must not leave a file beside the log that looks like another
    // log.
    log.unmark();
    log.seal(new_good);
    Ok(Outcome::Done(live))
}

/// The file that is written: frames are gathered, so that small ones do not cost a call each.
struct NewFile {
    file: Arc<dyn DiskFile>,
    path: std::path::PathBuf,
    header: FileHeader,
    chain: u32,
    /// How much is in the file, and how much of that is synced.
    written: u64,
    synced: u64,
    /// Frames that are ready to be written.
    ready: Vec<u8>,
    /// The frame that records go into, with room for its header.
    frame: Vec<u8>,
}

impl NewFile {
    fn create(shared: &Shared, path: &std::path::Path) -> Result<Self, SnapshotError> {
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

    /// Where the next frame goes, once all is written.
    fn end(&self) -> u64 {
        self.written + self.ready.len() as u64
    }

    fn record(&mut self, record: &[u8]) -> Result<(), SnapshotError> {
        if self.frame.len() >= PART || self.frame.len() + record.len() > 2 * PART {
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

    /// Copies frames; the checksums of their headers become those of this file.
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
        if self.ready.len() >= PART {
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

    /// Writes what is ready, and returns when all is on the disk.
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
