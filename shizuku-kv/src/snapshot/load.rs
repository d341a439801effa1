//! Loads a file into the state in memory.
//!
//! One thread reads, checks and parses; another one fills the table. Each does about half of the
//! work.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::disk::{Access, Disk, DiskFile, StdDisk};
use super::entries::{Change, SnapshotEntries};
use super::frame::{Ending, FILE_HEADER, FileHeader};
use super::record::{MIN_LEN, Record, shape};
use super::scan::{Scan, Span, must_reach_seal, read_header};
use super::{Snapshot, SnapshotError, small_in_tests};
use crate::local_file;
use crate::table::KeyHasher;

/// Minimum length in bytes of a file that a second thread reads faster.
const WORTH_A_THREAD: u64 = small_in_tests(256 * 1024, 1000) as u64;
/// Maximum number of changes in a batch.
const BATCH: usize = small_in_tests(4096, 8);
/// Maximum number of waiting batches.
const WAITING: usize = 4;

/// Reads a snapshot: the state at the last whole checkpoint, and its cursor.
///
/// Writes and locks nothing, so that it can read a file while a writer has it open. Skips the
/// incomplete data that a crash left after the last checkpoint. Blocks while it reads; in
/// asynchronous code call it in [`spawn_blocking`](tokio::task::spawn_blocking). Needs as much
/// memory as the length of the file, and some 40 to 70 bytes for each key.
///
/// # Errors
/// Returns [`SnapshotError::NotFound`] if no such file exists. Returns
/// [`SnapshotError::NotASnapshot`] if it is not a log, but for instance a directory or a named
/// pipe. Returns [`SnapshotError::UnknownVersion`] if another version of this library wrote it.
/// Returns [`SnapshotError::Damaged`] if synced content has changed or is missing. Returns
/// [`SnapshotError::Io`] if the system cannot read it.
pub fn load(path: impl AsRef<Path>) -> Result<Snapshot, SnapshotError> {
    let path = find(path.as_ref())?;
    let file = open_to_read(&StdDisk, &path)?;
    Ok(load_file(&file, &path)?.into_snapshot())
}

/// Resolves the links of a path on this machine.
pub(super) fn find(path: &Path) -> Result<Arc<Path>, SnapshotError> {
    Ok(local_file::resolve(path).map_err(|source| not_opened(path, source))?.into())
}

pub(super) fn open_to_read(
    disk: &dyn Disk,
    path: &Path,
) -> Result<Arc<dyn DiskFile>, SnapshotError> {
    disk.open(path, Access::Read).map_err(|source| not_opened(path, source))
}

fn not_opened(path: &Path, source: std::io::Error) -> SnapshotError {
    match source.kind() {
        std::io::ErrorKind::NotFound => SnapshotError::NotFound { path: path.to_owned() },
        _ => SnapshotError::not_opened(path, source),
    }
}

/// The content of a file.
pub(super) struct Loaded {
    pub(super) entries: SnapshotEntries,
    /// Ending of the last checkpoint. `None` if no checkpoint exists.
    pub(super) ending: Option<Ending>,
    /// `None` if the file ends within its header.
    pub(super) header: Option<FileHeader>,
    /// Offset of the end of the last checkpoint, and the start value for the checksum of the next
    /// frame.
    pub(super) good: u64,
    pub(super) chain: u32,
    /// Length of the file in bytes.
    pub(super) len: u64,
}

impl Loaded {
    /// Returns the content of a file that was just created.
    pub(super) fn empty(header: FileHeader) -> Self {
        Self {
            entries: SnapshotEntries::default(),
            ending: None,
            header: Some(header),
            good: FILE_HEADER,
            chain: header.chain(),
            len: FILE_HEADER,
        }
    }

    pub(super) fn into_snapshot(self) -> Snapshot {
        let ending = self.ending.unwrap_or_default();
        Snapshot { entries: self.entries, cursor: ending.cursor, scope_tag: ending.tag }
    }
}

pub(super) fn load_file(
    file: &Arc<dyn DiskFile>,
    path: &Arc<Path>,
) -> Result<Loaded, SnapshotError> {
    let (header, len) = read_header(&**file, path)?;
    let Some(header) = header else {
        let entries = SnapshotEntries::default();
        return Ok(Loaded { entries, ending: None, header, good: 0, chain: 0, len });
    };
    let mut span = Span::whole(&header, len);
    loop {
        let (entries, read) =
            fold(Scan::new(Arc::clone(file), Arc::clone(path), span), path, span)?;
        if !read.beyond {
            let Read { ending, good, chain, .. } = read;
            must_reach_seal(&header, good, path)?;
            return Ok(Loaded { entries, ending, header: Some(header), good, chain, len });
        }
        // The state contains parts of a checkpoint whose end never came, because the loading does
        // not wait for it. This happens only after a crash within a large checkpoint. Reads
        // everything again, up to the last checkpoint.
        span.end = read.good;
    }
}

/// Extent of a reading.
struct Read {
    ending: Option<Ending>,
    good: u64,
    chain: u32,
    /// True if data follows the last checkpoint.
    beyond: bool,
}

/// Changes, and the offset in the file after them.
struct Batch {
    changes: Vec<Change>,
    offset: u64,
}

fn fold(mut scan: Scan, path: &Path, span: Span) -> Result<(SnapshotEntries, Read), SnapshotError> {
    let mut table = Table { entries: SnapshotEntries::default(), span, offset: span.start };
    let hasher = table.entries.hasher();
    let len = span.end.saturating_sub(span.start);
    let read = if len < WORTH_A_THREAD {
        None
    } else {
        thread::scope(|scope| {
            let (send, receive) = sync_channel(WAITING);
            let (scan, hasher) = (&mut scan, &hasher);
            let reading =
                thread::Builder::new().name("snapshot-read".to_owned()).spawn_scoped(scope, {
                    move || take_apart(scan, path, span, hasher, |batch| send_on(&send, batch))
                });
            // If the system has no thread left, this thread does all the work.
            let reading = reading.ok()?;
            table.fill(&receive);
            Some(reading.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    };
    let read = match read {
        Some(read) => read?,
        None => take_apart(&mut scan, path, span, &hasher, |batch| {
            table.apply(batch);
            true
        })?,
    };
    let Table { mut entries, .. } = table;
    entries.settle(len);
    Ok((entries, read))
}

fn send_on(send: &SyncSender<Batch>, batch: Batch) -> bool {
    send.send(batch).is_ok()
}

/// Reads all frames, and passes on their records. Passes on the parts of a checkpoint as they come,
/// before its end is known.
fn take_apart(
    scan: &mut Scan,
    path: &Path,
    span: Span,
    hasher: &KeyHasher,
    mut give: impl FnMut(Batch) -> bool,
) -> Result<Read, SnapshotError> {
    let mut read = Read { ending: None, good: span.start, chain: span.chain, beyond: false };
    let mut changes = Vec::new();
    while let Some(frame) = scan.next()? {
        let records = frame.records();
        let mut at = 0;
        while at < records.len() {
            let rest = &records[at..];
            let shape = shape(rest).map_err(|what| {
                SnapshotError::damaged(path, frame.records_offset() + at as u64, what)
            })?;
            let record = Record::checked(records.slice(at..at + shape.end));
            changes.push(Change::new(hasher, record));
            at += shape.end;
        }
        read.beyond = frame.ending.is_none();
        if frame.ending.is_some() {
            read.ending = frame.ending;
            read.good = frame.end();
            read.chain = frame.chain;
        }
        if changes.len() >= BATCH {
            let next = Vec::with_capacity(changes.len());
            let batch =
                Batch { changes: std::mem::replace(&mut changes, next), offset: frame.end() };
            if !give(batch) {
                return Ok(read);
            }
        }
    }
    give(Batch { changes, offset: span.end });
    Ok(read)
}

/// The table while it is being filled.
struct Table {
    entries: SnapshotEntries,
    span: Span,
    /// Offset in the file after the records in the table.
    offset: u64,
}

impl Table {
    fn fill(&mut self, receive: &Receiver<Batch>) {
        for batch in receive {
            self.apply(batch);
        }
    }

    fn apply(&mut self, batch: Batch) {
        let Batch { changes, offset } = batch;
        if self.entries.is_full(changes.len()) {
            self.entries.reserve(changes.len() + self.expected());
        }
        for mut change in changes {
            self.entries.apply(&mut change);
        }
        self.offset = offset;
    }

    /// Estimates the number of further keys from the rate so far, plus a sixteenth. A table that
    /// grows step by step is moved each time. The result never exceeds the number of records for
    /// which the rest of the file has room.
    fn expected(&self) -> usize {
        let left = self.span.end.saturating_sub(self.offset);
        let done = self.offset.saturating_sub(self.span.start).max(1);
        let expected = u128::from(left) * self.entries.len() as u128 / u128::from(done);
        let most = left / MIN_LEN as u64;
        usize::try_from((expected + expected / 16).min(u128::from(most))).unwrap_or_default()
    }
}
