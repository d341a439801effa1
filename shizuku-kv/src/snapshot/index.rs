//! An index from each live key to the offset of its newest record in a file. Iterating over the
//! live records of a log of any length needs only some dozens of bytes for each key in memory.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use bytes::Bytes;
use hashbrown::hash_table::{Entry, HashTable};

use super::SnapshotError;
use super::frame::Ending;
use super::record::{Record, Shape, shape};
use super::scan::{Frame, Scan};

/// A key's hash in 128 bits. At this length, and with random hash keys, two keys never have the
/// same hash.
type Fingerprint = [u64; 2];

/// The offset of the newest record of each live key.
pub(super) struct Index {
    table: HashTable<(Fingerprint, u64)>,
    hashers: [RandomState; 2],
}

/// Extent of an index.
#[derive(Default)]
pub(super) struct Indexed {
    /// Ending of the last checkpoint.
    pub(super) ending: Option<Ending>,
    /// Offset of the end of the last checkpoint.
    pub(super) good: u64,
    /// True if records follow the last checkpoint. The index contains them too.
    pub(super) beyond: bool,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { table: HashTable::new(), hashers: [RandomState::new(), RandomState::new()] }
    }

    /// Returns the number of live keys.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Adds the records of all frames. Calls `go_on` with the offset read so far before each frame,
    /// and stops if it returns `false`.
    pub(super) fn fill(
        &mut self,
        scan: &mut Scan,
        path: &Path,
        mut go_on: impl FnMut(u64) -> bool,
    ) -> Result<Indexed, SnapshotError> {
        let mut indexed = Indexed::default();
        let mut read = 0;
        while go_on(read)
            && let Some(frame) = scan.next()?
        {
            read = frame.end();
            for record in Records::of(&frame) {
                let (offset, shape, bytes) = record.map_err(|bad| bad.error(path))?;
                self.take(&bytes[shape.key..shape.value], shape.deletion, offset);
            }
            indexed.beyond = frame.ending.is_none();
            if frame.ending.is_some() {
                indexed.ending = frame.ending;
                indexed.good = frame.end();
            }
        }
        Ok(indexed)
    }

    fn fingerprint(&self, key: &[u8]) -> Fingerprint {
        [self.hashers[0].hash_one(key), self.hashers[1].hash_one(key)]
    }

    fn take(&mut self, key: &[u8], deletion: bool, offset: u64) {
        let fingerprint = self.fingerprint(key);
        let is_same = |held: &(Fingerprint, u64)| held.0 == fingerprint;
        if deletion {
            if let Ok(found) = self.table.find_entry(fingerprint[0], is_same) {
                found.remove();
            }
            return;
        }
        match self.table.entry(fingerprint[0], is_same, |held| held.0[0]) {
            Entry::Occupied(mut found) => found.get_mut().1 = offset,
            Entry::Vacant(vacant) => {
                vacant.insert((fingerprint, offset));
            }
        }
    }

    fn is_newest(&self, key: &[u8], offset: u64) -> bool {
        let fingerprint = self.fingerprint(key);
        self.table
            .find(fingerprint[0], |held| held.0 == fingerprint)
            .is_some_and(|(_, newest)| *newest == offset)
    }

    /// Iterates over the live records of a frame.
    pub(super) fn live<'a>(
        &'a self,
        frame: &Frame,
        path: &'a Path,
    ) -> impl Iterator<Item = Result<Record, SnapshotError>> + use<'a> {
        Records::of(frame).filter_map(move |record| match record {
            Ok((offset, shape, bytes)) => {
                let key = &bytes[shape.key..shape.value];
                let live = !shape.deletion && self.is_newest(key, offset);
                live.then(|| Ok(Record::checked(bytes.slice(..shape.end))))
            }
            Err(bad) => Some(Err(bad.error(path))),
        })
    }
}

/// The offset of an invalid record, and its error.
pub(super) struct BadRecord {
    offset: u64,
    what: &'static str,
}

impl BadRecord {
    pub(super) fn error(self, path: &Path) -> SnapshotError {
        SnapshotError::damaged(path, self.offset, self.what)
    }
}

/// Iterator over the records of a frame: the offset in the file, the shape, and the bytes from
/// there on.
pub(super) struct Records {
    offset: u64,
    rest: Bytes,
}

impl Records {
    pub(super) fn of(frame: &Frame) -> Self {
        Self { offset: frame.records_offset(), rest: frame.records() }
    }
}

impl Iterator for Records {
    type Item = Result<(u64, Shape, Bytes), BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        match shape(&self.rest) {
            Ok(shape) => {
                let rest = self.rest.slice(shape.end..);
                self.offset += shape.end as u64;
                Some(Ok((offset, shape, std::mem::replace(&mut self.rest, rest))))
            }
            Err(what) => {
                self.rest = Bytes::new();
                Some(Err(BadRecord { offset, what }))
            }
        }
    }
}
