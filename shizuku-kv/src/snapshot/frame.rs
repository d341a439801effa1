//! The file's header, its seals and the headers of frames, as bytes. No I/O (ADR 0037, ADR 0038).

use crc32fast::Hasher;

use crate::store::WatchCursor;

/// Length of the file's header in bytes.
pub(super) const FILE_HEADER: u64 = 64;
/// Length of a frame's header in bytes.
pub(super) const FRAME_HEADER: usize = 16;

/// The first byte does not occur in text. The last byte reveals a transfer that changes line ends.
pub(super) const MAGIC: [u8; 8] = *b"\x89SKVLOG\n";
/// Mark in place of the magic number, until the file has its name. No single bit flip turns one
/// into the other. After a crash between the two writes, each byte may be of either.
pub(super) const MARK: [u8; 8] = *b"\x8aunfinis";
/// Version of the format.
pub(super) const VERSION: u8 = 1;

/// Offsets of the two seals.
const SEAL_AT: [usize; 2] = [32, 48];
/// Length of a seal in bytes.
pub(super) const SEAL: usize = 12;

const PART: u8 = 1;
const CHECKPOINT: u8 = 2;
const CHECKPOINT_WITH_CURSOR: u8 = 3;

const TAG: usize = 16;

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    /// Random identity of the file. It distinguishes this log from blocks of another log that a
    /// file system brings back.
    id: [u8; 16],
    /// The two seals: the length up to which the file had reached the disk. `None` for a seal that
    /// cannot be read.
    pub(super) seals: [Option<u64>; 2],
    /// True if the magic number has not replaced the mark yet.
    pub(super) marked: bool,
}

/// Returns true if a file of this length that begins with `start` is the remainder of a crashed log
/// creation. Such a file has no content.
pub(super) fn is_unfinished(start: &[u8], len: u64) -> bool {
    let has_mark = start.starts_with(&MARK) && len <= FILE_HEADER;
    has_mark || is_torn_mark(start, len)
}

/// Returns true if a file beside a log is the remainder of a crashed compaction.
pub(super) fn is_leftover(start: &[u8], len: u64) -> bool {
    start.starts_with(&MARK) || is_torn_mark(start, len)
}

/// The mark is synced before the rest is written, so only zeros can replace a part of it.
fn is_torn_mark(start: &[u8], len: u64) -> bool {
    len <= MARK.len() as u64
        && start.iter().zip(MARK).all(|(byte, mark)| *byte == 0 || *byte == mark)
}

/// Returns true if `start` can be the beginning of a log.
pub(super) fn is_log(start: &[u8]) -> bool {
    let is_either = |(byte, (magic, mark)): (&u8, (u8, u8))| *byte == magic || *byte == mark;
    start.iter().zip(MAGIC.into_iter().zip(MARK)).all(is_either)
}

/// Reason for rejecting a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// The magic number is a different one.
    NotASnapshot,
    /// Another version of the format wrote the header.
    UnknownVersion(u8),
    /// The header does not match its checksum.
    Damaged(u64, &'static str),
}

impl FileHeader {
    pub(super) fn new(id: [u8; 16]) -> Self {
        Self { id, seals: [Some(FILE_HEADER); 2], marked: false }
    }

    pub(super) fn to_bytes(self) -> [u8; FILE_HEADER as usize] {
        let mut out = [0; FILE_HEADER as usize];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = VERSION;
        out[12..28].copy_from_slice(&self.id);
        let checksum = crc32fast::hash(&out[..28]);
        out[28..32].copy_from_slice(&checksum.to_le_bytes());
        for (at, sealed) in SEAL_AT.into_iter().zip(self.seals) {
            if let Some(sealed) = sealed {
                out[at..at + SEAL].copy_from_slice(&self.seal(sealed));
            }
        }
        out
    }

    pub(super) fn from_bytes(bytes: &[u8; FILE_HEADER as usize]) -> Result<Self, BadHeader> {
        if !is_log(&bytes[..8]) {
            return Err(BadHeader::NotASnapshot);
        }
        if crc32fast::hash(&[&MAGIC[..], &bytes[8..28]].concat()) != number(bytes, 28) {
            return Err(BadHeader::Damaged(0, "the file's header does not match its checksum"));
        }
        if bytes[8] != VERSION {
            return Err(BadHeader::UnknownVersion(bytes[8]));
        }
        let mut header = Self { id: [0; 16], seals: [None; 2], marked: bytes[..8] != MAGIC };
        header.id.copy_from_slice(&bytes[12..28]);
        for (slot, at) in SEAL_AT.into_iter().enumerate() {
            let found = &bytes[at..at + SEAL];
            let len = found.first_chunk().copied().map_or(0, u64::from_le_bytes);
            header.seals[slot] = (header.seal(len) == *found).then_some(len);
        }
        // A sync separates any two writes of seals, so that no crash leaves both unreadable.
        if header.seals == [None; 2] {
            return Err(BadHeader::Damaged(SEAL_AT[0] as u64, "neither seal matches its checksum"));
        }
        Ok(header)
    }

    /// Returns the length up to which the file had reached the disk.
    pub(super) fn sealed(&self) -> u64 {
        self.seals.into_iter().flatten().max().unwrap_or_default()
    }

    /// Returns true if these first bytes of a file belong to the file of this header.
    pub(super) fn is_in(&self, bytes: &[u8; FILE_HEADER as usize]) -> bool {
        is_log(&bytes[..8]) && bytes[12..28] == self.id
    }

    /// Returns the start value for the checksum of the first frame.
    pub(super) fn chain(&self) -> u32 {
        crc32fast::hash(&self.id)
    }

    /// Returns the bytes of a seal.
    pub(super) fn seal(&self, len: u64) -> [u8; SEAL] {
        let mut out = [0; SEAL];
        out[..8].copy_from_slice(&len.to_le_bytes());
        let checksum = continued(self.chain(), &out[..8]);
        out[8..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Returns the seal to write next: an unreadable one, otherwise the lower one. A torn write
    /// never hits the only valid seal.
    pub(super) fn next_seal(&self) -> usize {
        usize::from(self.seals[1] < self.seals[0])
    }

    /// Returns the offset of a seal in the file.
    pub(super) fn seal_at(slot: usize) -> u64 {
        SEAL_AT[slot & 1] as u64
    }
}

/// The part of a checkpoint that follows its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) cursor: Option<WatchCursor>,
    pub(super) tag: [u8; TAG],
}

impl Ending {
    /// Appends the ending to a payload.
    pub(super) fn append_to(&self, payload: &mut Vec<u8>) {
        if let Some(cursor) = self.cursor {
            payload.extend_from_slice(&cursor.to_bytes());
        }
        payload.extend_from_slice(&self.tag);
    }
}

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records of a checkpoint that a later frame ends.
    Part,
    /// The end of a checkpoint.
    Checkpoint {
        /// True if the checkpoint has a cursor.
        cursor: bool,
    },
}

impl Kind {
    pub(super) fn of(ending: Option<&Ending>) -> Self {
        ending.map_or(Self::Part, |ending| Self::Checkpoint { cursor: ending.cursor.is_some() })
    }

    /// Splits a payload into records and ending, or returns a description of the error.
    pub(super) fn split(self, payload: &[u8]) -> Result<(usize, Option<Ending>), &'static str> {
        let Self::Checkpoint { cursor } = self else { return Ok((payload.len(), None)) };
        let Some((rest, tag)) = payload.split_last_chunk::<TAG>() else {
            return Err("a checkpoint without its end");
        };
        if !cursor {
            return Ok((rest.len(), Some(Ending { cursor: None, tag: *tag })));
        }
        let Some((records, cursor)) = rest.split_last_chunk::<{ WatchCursor::LEN }>() else {
            return Err("a checkpoint without its cursor");
        };
        match WatchCursor::from_bytes(cursor) {
            Ok(cursor) => Ok((records.len(), Some(Ending { cursor: Some(cursor), tag: *tag }))),
            Err(_) => Err("a checkpoint with a cursor that is none"),
        }
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: Kind,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
}

/// Reason for rejecting a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadFrame {
    /// The header does not match its checksum.
    Checksum,
    /// The checksum matches, but another version of the format wrote the header.
    Unknown,
}

impl FrameHeader {
    /// Returns the bytes, and the start value for the checksum of the next frame. Each checksum
    /// begins with the previous one, so that a frame is valid only after exactly the frames that
    /// preceded it when it was written.
    pub(super) fn to_bytes(self, chain: u32) -> ([u8; FRAME_HEADER], u32) {
        let mut out = [0; FRAME_HEADER];
        out[..4].copy_from_slice(&self.payload_len.to_le_bytes());
        out[4] = match self.kind {
            Kind::Part => PART,
            Kind::Checkpoint { cursor: false } => CHECKPOINT,
            Kind::Checkpoint { cursor: true } => CHECKPOINT_WITH_CURSOR,
        };
        out[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        let chain = continued(chain, &out[..12]);
        out[12..].copy_from_slice(&chain.to_le_bytes());
        (out, chain)
    }

    /// Reads the output of [`to_bytes`](Self::to_bytes), and returns the start value for the
    /// checksum of the next frame.
    pub(super) fn from_bytes(
        bytes: &[u8; FRAME_HEADER],
        chain: u32,
    ) -> Result<(Self, u32), BadFrame> {
        let chain = continued(chain, &bytes[..12]);
        if chain != number(bytes, 12) {
            return Err(BadFrame::Checksum);
        }
        let kind = match bytes[4..8] {
            [PART, 0, 0, 0] => Kind::Part,
            [CHECKPOINT, 0, 0, 0] => Kind::Checkpoint { cursor: false },
            [CHECKPOINT_WITH_CURSOR, 0, 0, 0] => Kind::Checkpoint { cursor: true },
            _ => return Err(BadFrame::Unknown),
        };
        Ok((Self { kind, payload_len: number(bytes, 0), payload_crc: number(bytes, 8) }, chain))
    }
}

fn continued(chain: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(chain);
    hasher.update(bytes);
    hasher.finalize()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_le_bytes)
}
