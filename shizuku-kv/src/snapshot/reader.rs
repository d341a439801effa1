//! The live entries of a file, without all of them in memory.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::SnapshotError;
use super::disk::{DiskFile, StdDisk};
use super::frame::{Ending, FileHeader};
use super::index::Index;
use super::load::{find, open_to_read};
use super::record::Record;
use super::scan::{Scan, Span, must_reach_seal, read_header};
use crate::store::{KvEntry, WatchCursor};

/// Goes through the live entries of a snapshot, as [`load`](super::load) would give them, with some 30 to 60 bytes for each
/// key in memory.
///
/// Opening reads the file once, each iteration once more. Nothing is written and nothing locked; what is read is the
/// state at the last checkpoint when it was opened, whatever a writer does to the file afterwards. Every call blocks.
pub struct SnapshotReader {
    file: Arc<dyn DiskFile>,
    path: Arc<Path>,
    index: Index,
    ending: Option<Ending>,
    /// Up to the last checkpoint; none where there is none.
    span: Option<Span>,
}

impl SnapshotReader {
    /// Opens a snapshot and reads which entries live.
    ///
    /// # Errors
    /// As [`load`](super::load).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SnapshotError> {
        let path = find(path.as_ref())?;
        let file = open_to_read(&StdDisk, &path)?;
        let (header, len) = read_header(&*file, &path)?;
        let (index, ending, span) = match header {
            Some(header) => indexed(&file, &path, &header, len)?,
            None => (Index::new(), None, None),
        };
        Ok(Self { file, path, index, ending, span })
    }

    /// How many keys live.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no key lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cursor of the last checkpoint; none where there is no checkpoint, or one without a cursor.
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.ending.and_then(|ending| ending.cursor)
    }

    /// The scope tag of the last checkpoint; zeros where there is none.
    pub fn scope_tag(&self) -> [u8; 16] {
        self.ending.unwrap_or_default().tag
    }

    /// The live entries, in the order in which they were written, each with memory of its own. Ends at the first error.
    pub fn iter(&self) -> SnapshotReaderIter<'_> {
        let scan =
            self.span.map(|span| Scan::new(Arc::clone(&self.file), Arc::clone(&self.path), span));
        SnapshotReaderIter { reader: self, scan, waiting: Vec::new().into_iter() }
    }
}

fn indexed(
    file: &Arc<dyn DiskFile>,
    path: &Arc<Path>,
    header: &FileHeader,
    len: u64,
) -> Result<(Index, Option<Ending>, Option<Span>), SnapshotError> {
    let mut span = Span::whole(header, len);
    loop {
        let mut index = Index::new();
        let indexed =
            index.fill(&mut Scan::new(Arc::clone(file), Arc::clone(path), span), path, || true)?;
        span.end = indexed.good;
        // Parts without their end are in the index: once more without them, as when loading.
        if !indexed.beyond {
            must_reach_seal(header, indexed.good.max(span.start), path)?;
            let known = Span::known(span.start, span.chain, indexed.good);
            return Ok((index, indexed.ending, indexed.ending.map(|_| known)));
        }
    }
}

impl fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("path", &self.path)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<'a> IntoIterator for &'a SnapshotReader {
    type Item = Result<KvEntry, SnapshotError>;
    type IntoIter = SnapshotReaderIter<'a>;

    fn into_iter(self) -> SnapshotReaderIter<'a> {
        self.iter()
    }
}

/// The live entries of a [`SnapshotReader`].
pub struct SnapshotReaderIter<'a> {
    reader: &'a SnapshotReader,
    /// None at the end.
    scan: Option<Scan>,
    /// The live ones of the frame that was read last.
    waiting: std::vec::IntoIter<Record>,
}

impl SnapshotReaderIter<'_> {
    /// Reads frames until one has something that lives; false at the end.
    fn read_on(&mut self) -> Result<bool, SnapshotError> {
        let Some(scan) = &mut self.scan else { return Ok(false) };
        while let Some(frame) = scan.next()? {
            let live =
                self.reader.index.live(&frame, &self.reader.path).collect::<Result<Vec<_>, _>>()?;
            if !live.is_empty() {
                self.waiting = live.into_iter();
                return Ok(true);
            }
        }
        scan.must_be_at_end()?;
        Ok(false)
    }
}

impl Iterator for SnapshotReaderIter<'_> {
    type Item = Result<KvEntry, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.waiting.next() {
                let mut entry = record.to_entry();
                // Else one small value that is kept would keep all that was read with it.
                entry.value = Bytes::copy_from_slice(&entry.value);
                return Some(Ok(entry));
            }
            match self.read_on() {
                Ok(true) => {}
                Ok(false) => {
                    self.scan = None;
                    return None;
                }
                Err(error) => {
                    self.scan = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl fmt::Debug for SnapshotReaderIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReaderIter")
            .field("path", &self.reader.path)
            .finish_non_exhaustive()
    }
}
