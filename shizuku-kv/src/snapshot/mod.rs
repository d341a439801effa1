//! A local copy of a key-value state that survives crashes: an append-only log of updates, with checkpoints at which
//! state and watch cursor are durable together.
//!
//! [`SnapshotWriter`] writes it; [`load`] reads the state into memory, and [`SnapshotReader`] goes through it without.
//! After a crash at any moment there is exactly the state of one checkpoint, with its cursor: the last that was durable,
//! or a later one that is whole.
//!
//! # The file
//!
//! Numbers are little endian, checksums CRC-32. A header of 64 bytes, then frames:
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
//! A *seal* is a length (8 bytes) and its checksum (4 bytes, begun with the checksum of the identity). It says that the
//! file had reached the disk up to there. After each sync the lower seal is written over with the new length; the next
//! sync takes it along. What is not as it was written below the larger seal is damage; behind it, it is what a crash
//! left of writes that were never acknowledged as durable.
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
//! Parts count with the end of their checkpoint, and not at all where that is missing. As each checksum begins with the
//! one before, a frame is right only behind exactly those that it was written behind.
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
//! # Making one
//!
//! A new log is a new file, or an existing empty one. The library never replaces a file that it has
//! not created. The mark is written and synced, then the rest of the header, then the magic number
//! over the mark. So each step can be distinguished from a foreign file, and a file that begins
//! with the magic number was whole.
//!
//! A compaction writes a marked file beside the log, named as the log with `.compact` behind it,
//! syncs it and gives it the log's name. Then the magic number is written over the mark. A marked
//! file of the other name is the remainder of a crash.
//!
//! # Reading what a crash left
//!
//! | found at offset O | taken as |
//! |---|---|
//! | an empty file; up to 8 bytes of the mark, or zeros in their place; up to 64 bytes that begin with the mark | an empty state |
//! | the file ends within its header | [`SnapshotError::Damaged`] |
//! | the file ends before the larger seal | [`SnapshotError::Damaged`] |
//! | the file ends within a frame's header, or within the payload whose length a valid header tells | a torn tail, dropped |
//! | a checksum that does not match, O at or behind the larger seal | a torn tail, dropped |
//! | a checksum that does not match, O before the larger seal | [`SnapshotError::Damaged`] |
//! | checksums that match, around what this version would not have written | [`SnapshotError::Damaged`] |
//! | both seals unreadable, which no crash leaves | [`SnapshotError::Damaged`] |
//!
//! # What it does not do
//!
//! One flipped bit before the larger seal is found, and so is a file that was cut off before it. A
//! file that was emptied, or replaced by an older copy of itself, while no writer had it open is
//! not found.
//!
//! If another program removes, replaces, truncates or extends the file while a writer has it open,
//! the next checkpoint or `close` returns [`SnapshotError::Interfered`]. Bytes that it changes amid
//! the file are found when that part is read.

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

pub use entries::{SnapshotEntries, SnapshotEntry, SnapshotIter};
pub use error::SnapshotError;
pub use load::load;
pub use options::{SnapshotOptions, SyncPolicy};
pub use reader::{SnapshotReader, SnapshotReaderIter};
pub use writer::SnapshotWriter;

use crate::store::WatchCursor;

/// Sizes that decide which way the code takes are small in unit tests, so that small logs take every way.
const fn small_in_tests(size: usize, in_tests: usize) -> usize {
    if cfg!(test) { in_tests } else { size }
}

/// What was read from a snapshot.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state at the last checkpoint.
    pub entries: SnapshotEntries,
    /// Where a watch can go on from. None where there is no checkpoint, or one without a place to go on from; from
    /// [`SnapshotWriter::open`] also where the scope tag is another.
    pub cursor: Option<WatchCursor>,
    /// The scope tag of the last checkpoint; zeros where there is none.
    pub scope_tag: [u8; 16],
}
