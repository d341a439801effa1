//! Iterates over the live entries of a file, without loading all of them into memory.

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

/// Iterates over the live entries of a snapshot. The entries are those of [`load`](super::load),
/// with some 30 to 60 bytes for each key in memory.
///
/// Opening reads the file once, and each iteration reads it once more. The reader writes and locks
/// nothing. It returns the state at the last checkpoint when it was opened, even if a writer
/// changes the file afterwards. Every call blocks.
pub struct SnapshotReader {
    file: Arc<dyn DiskFile>,
    path: Arc<Path>,
    index: Index,
    ending: Option<Ending>,
    /// The file up to the last checkpoint. `None` if no checkpoint exists.
    span: Option<Span>,
}

impl SnapshotReader {
    /// Opens a snapshot and indexes its live entries.
    ///
    /// # Errors
    /// Returns the errors of [`load`](super::load).
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

    /// Returns the number of live keys.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns true if no key is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the cursor of the last checkpoint. Returns `None` if no checkpoint exists, or the
    /// last one has no cursor.
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.ending.and_then(|ending| ending.cursor)
    }

    /// Returns the scope tag of the last checkpoint. Returns zeros if no checkpoint exists.
    pub fn scope_tag(&self) -> [u8; 16] {
        self.ending.unwrap_or_default().tag
    }

    /// Iterates over the live entries in the order in which they were written. Each entry has
    /// memory of its own. Ends at the first error.
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
            index.fill(&mut Scan::new(Arc::clone(file), Arc::clone(path), span), path, |_| true)?;
        span.end = indexed.good;
        // The index contains parts without their end. Indexes again without them, as loading does.
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

/// Iterator over the live entries of a [`SnapshotReader`].
pub struct SnapshotReaderIter<'a> {
    reader: &'a SnapshotReader,
    /// `None` at the end.
    scan: Option<Scan>,
    /// Live records of the last frame that was read.
    waiting: std::vec::IntoIter<Record>,
}

impl SnapshotReaderIter<'_> {
    /// Reads frames until one has live records. Returns `false` at the end.
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
                // Otherwise keeping one small value would keep its whole buffer in memory.
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
