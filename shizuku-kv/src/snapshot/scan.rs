//! Reads frame after frame from the start of a file, up to its end or to a torn tail.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::SnapshotError;
use super::disk::{DiskFile, read_full};
use super::frame::{
    BadFrame, BadHeader, Ending, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, is_log,
    is_unfinished,
};
use super::small_in_tests;

/// Number of bytes that are read at a time, unless a frame is longer.
const CHUNK: u64 = small_in_tests(1024 * 1024, 300) as u64;

/// Returns the header of a file, and its length at that moment. The header is `None` for an empty
/// file, and for the remainder of a crashed creation.
pub(super) fn read_header(
    file: &dyn DiskFile,
    path: &Path,
) -> Result<(Option<FileHeader>, u64), SnapshotError> {
    let io = |source| SnapshotError::io_at(path, "read", 0, source);
    let mut bytes = [0; FILE_HEADER as usize];
    let (read, len) = loop {
        let read = read_full(file, &mut bytes, 0).map_err(io)?;
        // Read after the header, so that the length includes everything that the header calls
        // synced, even while a writer is running.
        let len = file.len().map_err(io)?;
        // A writer may have started in between.
        if read == bytes.len() || len < FILE_HEADER {
            break (read, len);
        }
    };
    if is_unfinished(&bytes[..read.min(8)], len) {
        return Ok((None, len));
    }
    if read < bytes.len() && is_log(&bytes[..read.min(8)]) {
        return Err(SnapshotError::damaged(path, len, "the file ends within its header"));
    }
    let header = FileHeader::from_bytes(&bytes).map_err(|bad| match bad {
        BadHeader::NotASnapshot => {
            SnapshotError::not_a_snapshot(path, "its first bytes are not those of one")
        }
        BadHeader::UnknownVersion(found) => {
            SnapshotError::UnknownVersion { path: path.to_owned(), found }
        }
        BadHeader::Damaged(offset, what) => SnapshotError::damaged(path, offset, what),
    })?;
    if len < header.sealed() {
        return Err(SnapshotError::damaged(
            path,
            len,
            "the file ends before what had reached the disk",
        ));
    }
    Ok((Some(header), len))
}

/// Fails if the last whole checkpoint ends before the synced length, because seals are at ends of
/// checkpoints.
pub(super) fn must_reach_seal(
    header: &FileHeader,
    good: u64,
    path: &Path,
) -> Result<(), SnapshotError> {
    match good < header.sealed() {
        true => Err(SnapshotError::damaged(
            path,
            good,
            "a checkpoint that had reached the disk is not whole",
        )),
        false => Ok(()),
    }
}

/// A frame with valid checksums.
#[derive(Debug)]
pub(super) struct Frame {
    /// Offset of the frame's header in the file.
    pub(super) offset: u64,
    /// Header, records and ending, as they are in the file.
    pub(super) bytes: Bytes,
    /// Number of bytes of records after the header.
    pub(super) records_len: usize,
    /// The ending, if the frame ends a checkpoint.
    pub(super) ending: Option<Ending>,
    /// Start value for the checksum of the next frame.
    pub(super) chain: u32,
}

impl Frame {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// Returns the offset of the records in the file.
    pub(super) fn records_offset(&self) -> u64 {
        self.offset + FRAME_HEADER as u64
    }

    pub(super) fn records(&self) -> Bytes {
        self.bytes.slice(FRAME_HEADER..FRAME_HEADER + self.records_len)
    }
}

/// The range of a file to scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Offset at which a frame begins.
    pub(super) start: u64,
    /// Start value for the checksum of this frame.
    pub(super) chain: u32,
    /// Offset at which the scan ends.
    pub(super) end: u64,
    /// An error before this offset is damage. An error after it is a torn tail.
    pub(super) sealed: u64,
}

impl Span {
    /// Returns a span that is known to be whole and to end with a frame.
    pub(super) fn known(start: u64, chain: u32, end: u64) -> Self {
        Self { start, chain, end, sealed: end }
    }

    /// Returns a span of the whole file.
    pub(super) fn whole(header: &FileHeader, len: u64) -> Self {
        Self { start: FILE_HEADER, chain: header.chain(), end: len, sealed: header.sealed() }
    }
}

/// Reads frame after frame.
pub(super) struct Scan {
    file: Arc<dyn DiskFile>,
    path: Arc<Path>,
    span: Span,
    /// Bytes that were read from the file, and the number of them that are used.
    buffer: Bytes,
    used: usize,
    /// Offset in the file of `used`.
    offset: u64,
    chain: u32,
}

impl Scan {
    pub(super) fn new(file: Arc<dyn DiskFile>, path: Arc<Path>, span: Span) -> Self {
        Self {
            file,
            path,
            span,
            buffer: Bytes::new(),
            used: 0,
            offset: span.start,
            chain: span.chain,
        }
    }

    /// Returns the next frame. Returns `None` at the end of the span and at a torn tail.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, SnapshotError> {
        if !self.fill(FRAME_HEADER as u64)? {
            return Ok(None);
        }
        let Some(bytes) = self.buffer.get(self.used..).and_then(|rest| rest.first_chunk()) else {
            return Ok(None);
        };
        let (header, chain) = match FrameHeader::from_bytes(bytes, self.chain) {
            Ok(read) => read,
            Err(BadFrame::Checksum) => {
                return self.bad("a frame's header does not match its checksum");
            }
            Err(BadFrame::Unknown) => return Err(self.damaged("a frame of an unknown kind")),
        };
        let total = FRAME_HEADER as u64 + u64::from(header.payload_len);
        if !self.fill(total)? {
            return Ok(None);
        }
        let end = self.used + total as usize;
        let payload = &self.buffer[self.used + FRAME_HEADER..end];
        if crc32fast::hash(payload) != header.payload_crc {
            return self.bad("a frame's content does not match its checksum");
        }
        let (records_len, ending) =
            header.kind.split(payload).map_err(|what| self.damaged(what))?;
        let bytes = self.buffer.slice(self.used..end);
        let frame = Frame { offset: self.offset, bytes, records_len, ending, chain };
        self.used = end;
        self.offset += total;
        self.chain = chain;
        Ok(Some(frame))
    }

    /// Returns an error if the scan of a span that is known to be whole ended before its end.
    pub(super) fn must_be_at_end(&self) -> Result<(), SnapshotError> {
        match self.offset == self.span.end {
            true => Ok(()),
            false => Err(self.damaged("the file has become shorter while it was read")),
        }
    }

    /// Allocates memory to read into. It never exceeds the length of the file.
    fn zeros(&self, len: u64) -> Result<Vec<u8>, SnapshotError> {
        if len <= CHUNK {
            return Ok(vec![0; len as usize]);
        }
        // The buffer is for one large record, so the allocation may fail.
        let mut buffer = Vec::new();
        let reserved =
            usize::try_from(len).ok().filter(|len| buffer.try_reserve_exact(*len).is_ok());
        let Some(len) = reserved else {
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(SnapshotError::io_at(&self.path, "read", self.offset, source));
        };
        buffer.resize(len, 0);
        Ok(buffer)
    }

    /// Handles bytes that do not match their checksum. They are damage if they had reached the
    /// disk, otherwise the end.
    fn bad(&self, what: &'static str) -> Result<Option<Frame>, SnapshotError> {
        if self.offset < self.span.sealed { Err(self.damaged(what)) } else { Ok(None) }
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::damaged(&self.path, self.offset, what)
    }

    /// Reads until the buffer has `wanted` bytes. Returns `false` if the span or the file ends
    /// before.
    fn fill(&mut self, wanted: u64) -> Result<bool, SnapshotError> {
        let left = self.span.end.saturating_sub(self.offset);
        if wanted > left {
            return Ok(false);
        }
        let have = self.buffer.len() - self.used;
        if wanted <= have as u64 {
            return Ok(true);
        }
        // Includes the header of the next frame. Otherwise a frame of a chunk's length or more
        // would need two reads.
        let len = (wanted + FRAME_HEADER as u64).max(CHUNK).min(left);
        let mut buffer = self.zeros(len)?;
        buffer[..have].copy_from_slice(&self.buffer[self.used..]);
        let from = self.offset + have as u64;
        let read = read_full(&*self.file, &mut buffer[have..], from)
            .map_err(|source| SnapshotError::io_at(&self.path, "read", from, source))?;
        buffer.truncate(have + read);
        self.buffer = buffer.into();
        self.used = 0;
        Ok(wanted <= self.buffer.len() as u64)
    }
}
