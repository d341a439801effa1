//! A local copy of a key-value state that survives crashes: an append-only log of updates, with
//! checkpoints at which state and watch cursor are durable together.
//!
//! [`SnapshotWriter`] writes the log. [`load`] reads the state into memory, and [`SnapshotReader`]
//! iterates over it without loading it. After a crash at any moment the log has exactly the state
//! of one checkpoint, with its cursor: the last durable checkpoint, or a later whole one.
//!
//! # The file
//!
//! Numbers are little endian, checksums CRC-32. A header of 64 bytes comes first, then frames:
//!
//! | bytes | header of the file |
//! |---|---|
//! | 0..8 | magic number, `89 53 4b 56 4c 4f 47 0a`; until the file has its name the mark `8a 75 6e 66 69 6e 69 73` |
//! | 8 | version of the format, 1 |
//! | 9..12 | zero |
//! | 12..28 | identity of the file, random |
//! | 28..32 | checksum of all before |
//! | 32..44 | a seal |
//! | 48..60 | the other seal |
//!
//! A *seal* is a length (8 bytes) and its checksum (4 bytes, begun with the checksum of the
//! identity). It says that the file had reached the disk up to that length. After each sync the
//! writer overwrites the lower seal with the new length, which the next sync makes durable. A
//! deviation before the larger seal is damage. After the larger seal, it is the remainder of writes
//! that were never acknowledged as durable.
//!
//! | bytes | frame |
//! |---|---|
//! | 0..4 | length of the payload |
//! | 4 | kind: 1 a part, 2 the end of a checkpoint without a cursor, 3 the end of one with a cursor |
//! | 5..8 | zero |
//! | 8..12 | checksum of the payload |
//! | 12..16 | checksum of the twelve bytes before, begun with this checksum of the frame before, or in the first frame with the checksum of the identity |
//! | 16.. | payload: records; in kind 3 a cursor of 40 bytes; in kinds 2 and 3 a scope tag of 16 bytes |
//!
//! A reader applies parts together with the end of their checkpoint, and ignores parts without an
//! end. Each checksum begins with the previous one, so that a frame is valid only after exactly the
//! frames that preceded it when it was written.
//!
//! | bytes | record |
//! |---|---|
//! | 0 | kind: 1 a put, 2 a deletion |
//! | 1 | length of the version, 0 to 16; or 255 for a number, of eight bytes |
//! | 2..4 | length of the key |
//! | 4..8 | length of the value; 0 in a deletion |
//! | 8..12 | time of the write: nanoseconds of the second |
//! | 12..20 | time of the write: seconds since 1970, signed |
//! | 20.. | version, key, value |
//!
//! # Creation of a file
//!
//! A new log is a new file, or an existing empty one. The library never replaces a file that it has
//! not created. The writer writes and syncs the mark, then writes the rest of the header, then
//! writes the magic number over the mark. Each step can therefore be distinguished from a foreign
//! file, and a file that begins with the magic number was whole.
//!
//! A compaction writes a marked file beside the log, whose name is the log's name with the suffix
//! `.compact`. It syncs the file and renames it to the log's name. Then it writes the magic number
//! over the mark. A marked file with the suffix is the remainder of a crash.
//!
//! # Reading after a crash
//!
//! | found at offset O | taken as |
//! |---|---|
//! | an empty file; up to 8 bytes of the mark, or zeros in their place; up to 64 bytes that begin with the mark | an empty state |
//! | the file ends within its header | [`SnapshotError::Damaged`] |
//! | the file ends before the larger seal | [`SnapshotError::Damaged`] |
//! | the file ends within a frame's header, or within the payload whose length a valid header tells | a torn tail, dropped |
//! | a checksum that does not match, O at or after the larger seal | a torn tail, dropped |
//! | a checksum that does not match, O before the larger seal | [`SnapshotError::Damaged`] |
//! | matching checksums around content that this version would not write | [`SnapshotError::Damaged`] |
//! | both seals unreadable, which no crash leaves | [`SnapshotError::Damaged`] |
//!
//! # Limits
//!
//! A reader finds one flipped bit before the larger seal, and a file that was cut off before it. It
//! does not find that a file was emptied, or replaced by an older copy of itself, while no writer
//! had it open.
//!
//! If another program removes, replaces, truncates or extends the file while a writer has it open,
//! the next checkpoint or `close` returns [`SnapshotError::Interfered`]. If it changes bytes within
//! the file, reading that part finds the change.

mod compact;
mod disk;
mod entries;
mod error;
mod frame;
mod index;
mod load;
mod log;
mod options;
mod reader;
mod record;
mod scan;
mod shared;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use entries::Change;
pub use entries::{SnapshotEntries, SnapshotEntry, SnapshotIter};
pub use error::SnapshotError;
pub use load::load;
pub use options::{SnapshotOptions, SyncPolicy};
pub use reader::{SnapshotReader, SnapshotReaderIter};
pub use writer::SnapshotWriter;

use crate::store::WatchCursor;

/// Returns a smaller size in unit tests. These sizes decide which code path runs, so that small
/// logs take every path.
const fn small_in_tests(size: usize, in_tests: usize) -> usize {
    if cfg!(test) { in_tests } else { size }
}

/// The content of a snapshot.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state at the last checkpoint.
    pub entries: SnapshotEntries,
    /// Cursor from which a watch can resume. `None` if the file has no checkpoint, or its last one
    /// has no cursor. [`SnapshotWriter::open`] also returns `None` if the scope tag is another.
    pub cursor: Option<WatchCursor>,
    /// The scope tag of the last checkpoint. Zeros if the file has no checkpoint.
    pub scope_tag: [u8; 16],
}
