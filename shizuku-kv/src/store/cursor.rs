//! Watch cursors: positions from which watches resume.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::KvError;

/// A position in a store's sequence of changes, from which a watch can resume later.
///
/// A cursor is opaque to users. [`to_bytes`](Self::to_bytes) converts it for storage,
/// [`from_bytes`](Self::from_bytes) reads it back, and
/// [`Store::watch_from`](crate::Store::watch_from) resumes from it. It contains the store's
/// incarnation. A cursor of another store, or from before the store was deleted and created again,
/// is therefore rejected with [`KvError::CursorExpired`]. It is never misread as a position in the
/// new store.
///
/// A store that lost acknowledged writes, such as one that was restored from a copy, keeps its
/// incarnation. Its positions continue with other changes. A cursor is rejected if its position is
/// beyond the store's end, or if the change at its position has another time. It is not rejected if
/// that change was superseded since, because a cursor names no key that could be compared. A
/// running watch also compares the last key that it delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchCursor {
    incarnation: [u8; 16],
    position: u64,
    as_of_nanos: u64,
}

/// First bytes of a cursor. The last of them is the version of the format.
const MAGIC: [u8; 4] = [b'S', b'K', b'C', 1];

impl WatchCursor {
    /// Length of a cursor in bytes.
    pub const LEN: usize = 4 + 16 + 8 + 8 + 4;

    /// Creates a cursor; for authors of backends.
    ///
    /// `incarnation` identifies the store as created once: no other store, and no later store of
    /// the same name, may have it. `position` is the last change delivered, in the backend's own
    /// numbering. It grows with every change, and is the same for every watch of the store. `as_of`
    /// is the time of that change by the store's clock. With it, a backend that forgets deletions
    /// after a while detects that the cursor is too old.
    pub fn new(incarnation: [u8; 16], position: u64, as_of: SystemTime) -> Self {
        let as_of_nanos = as_of.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self { incarnation, position, as_of_nanos: u64::try_from(as_of_nanos).unwrap_or(u64::MAX) }
    }

    /// Returns the store's incarnation; for authors of backends.
    pub fn incarnation(&self) -> &[u8; 16] {
        &self.incarnation
    }

    /// Returns the position of the last change delivered; for authors of backends.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Returns the time of that change by the store's clock; for authors of backends.
    pub fn as_of(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.as_of_nanos)
    }

    /// Returns the cursor as bytes: a magic number with the format's version, the fields, and a
    /// checksum.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..20].copy_from_slice(&self.incarnation);
        out[20..28].copy_from_slice(&self.position.to_be_bytes());
        out[28..36].copy_from_slice(&self.as_of_nanos.to_be_bytes());
        let checksum = crc32fast::hash(&out[..36]);
        out[36..].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    /// Reads a cursor from the bytes that [`to_bytes`](Self::to_bytes) returned.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidCursor`] if the bytes have another length or another format
    /// version, or are damaged. Recover as from [`KvError::CursorExpired`]: list the store again,
    /// and watch from the start.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KvError> {
        let reject = |reason| Err(KvError::InvalidCursor { reason });
        let Some((magic, fields)) = bytes.split_first_chunk::<4>() else {
            return reject("too short");
        };
        if magic[..3] != MAGIC[..3] {
            return reject("not a cursor of this library");
        }
        if magic[3] != MAGIC[3] {
            return reject("written in a format that this version does not know");
        }
        let (Some((incarnation, rest)), Ok(bytes)) =
            (fields.split_first_chunk::<16>(), <&[u8; Self::LEN]>::try_from(bytes))
        else {
            return reject("wrong length");
        };
        let number = |at: usize| {
            rest.get(at..at + 8).and_then(|n| n.try_into().ok()).map_or(0, u64::from_be_bytes)
        };
        let cursor =
            Self { incarnation: *incarnation, position: number(0), as_of_nanos: number(8) };
        // The fields fill the bytes, so that comparing the whole compares the checksum.
        if &cursor.to_bytes() != bytes {
            return reject("checksum does not match: the bytes are damaged");
        }
        Ok(cursor)
    }
}

impl fmt::Debug for WatchCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchCursor").field("position", &self.position).finish_non_exhaustive()
    }
}
