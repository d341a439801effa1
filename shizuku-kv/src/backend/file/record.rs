//! An entry as bytes: the rows of the tables of entries.
//!
//! A row begins with a byte of flags, whose lowest three bits are the operation. Three fields
//! follow: the version, the number of versions since the first one of the key, and the time of the
//! write. Then come the optional fields by their flags: time to live, expiry, fencing token, author
//! and reason, older versions. The rest is the value. Times are big-endian numbers of eight bytes.
//! Versions, lengths and counts are numbers in base 128, the lowest digit first, because they make
//! a file of a million small rows smaller by a twentieth.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::failure::Failure;
use crate::backend::embedded::Newest;
use crate::store::{FencingToken, Key, KvEntry, KvOperation, Metadata, VersionToken};

const OPERATION: u8 = 0b111;
const TTL: u8 = 1 << 3;
const DUE: u8 = 1 << 4;
const FENCE: u8 = 1 << 5;
const METADATA: u8 = 1 << 6;
const OLDER: u8 = 1 << 7;

/// A row without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) operation: KvOperation,
    pub(super) version: u64,
    /// The version since which the store has had an entry of the key.
    pub(super) since: u64,
    /// Time of the write, in nanoseconds since 1970.
    pub(super) created: u64,
    /// Versions of the older entries that the store holds, the oldest first.
    pub(super) older: Vec<u64>,
    /// The time to live with which the value was written, in nanoseconds.
    pub(super) ttl: Option<u64>,
    /// Time of the expiry, in nanoseconds since 1970. A value then becomes a tombstone, and a
    /// tombstone is forgotten.
    pub(super) due: Option<u64>,
    pub(super) fence: Option<u64>,
    pub(super) metadata: Option<Arc<Metadata>>,
}

impl Head {
    pub(super) fn is_tombstone(&self) -> bool {
        self.operation.is_deletion()
    }

    /// Returns whether the entry has expired by `now`, but the expiry has not been applied.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Returns the attributes with which a write is compared.
    pub(super) fn newest(&self) -> Newest {
        Newest {
            version: VersionToken::from_u64(self.version),
            is_tombstone: self.is_tombstone(),
            fence: self.fence.map(FencingToken::from_u64),
        }
    }

    /// Returns the entry with this value.
    pub(super) fn into_entry(self, key: Key, value: Bytes) -> KvEntry {
        let (version, created) = (VersionToken::from_u64(self.version), system(self.created));
        let entry = match self.operation {
            KvOperation::Put => KvEntry::put(key, value, version, created),
            operation => KvEntry::tombstone(key, operation, version, created),
        };
        entry.with_fence(self.fence.map(FencingToken::from_u64)).with_metadata(self.metadata)
    }

    /// Appends the row of this entry to `row`.
    pub(super) fn write(&self, value: &[u8], row: &mut Vec<u8>) {
        let mut flags = match self.operation {
            KvOperation::Put => 0,
            KvOperation::Delete => 1,
            KvOperation::Purge => 2,
            // No store has entries of the last kind.
            KvOperation::Expire | KvOperation::Vanished => 3,
        };
        let optional = [(TTL, self.ttl), (DUE, self.due), (FENCE, self.fence)];
        for (flag, _) in optional.iter().filter(|(_, field)| field.is_some()) {
            flags |= flag;
        }
        if self.metadata.is_some() {
            flags |= METADATA;
        }
        if !self.older.is_empty() {
            flags |= OLDER;
        }
        row.push(flags);
        write_short(self.version, row);
        write_short(self.version.saturating_sub(self.since), row);
        row.extend(self.created.to_be_bytes());
        for number in optional.iter().filter_map(|(_, field)| *field) {
            row.extend(number.to_be_bytes());
        }
        if let Some(metadata) = &self.metadata {
            for text in [metadata.author(), metadata.reason()] {
                let text = text.unwrap_or_default();
                write_short(text.len() as u64, row);
                row.extend(text.as_bytes());
            }
        }
        if !self.older.is_empty() {
            write_short(self.older.len() as u64, row);
            for version in self.older.iter().copied() {
                write_short(version, row);
            }
        }
        row.extend(value);
    }

    /// Reads a row. Also returns the range of the value in it.
    pub(super) fn read(row: &[u8]) -> Result<(Self, Range<usize>), Failure> {
        let mut rest = Reader { row, at: 0 };
        let flags = rest.byte()?;
        let operation = match flags & OPERATION {
            0 => KvOperation::Put,
            1 => KvOperation::Delete,
            2 => KvOperation::Purge,
            3 => KvOperation::Expire,
            _ => return Err(Failure::damaged("an entry has an unknown operation")),
        };
        let version = rest.short()?;
        let since = version.saturating_sub(rest.short()?);
        let created = rest.number()?;
        let mut optional = |flag| {
            let is_present = flags & flag != 0;
            is_present.then(|| rest.number()).transpose()
        };
        let (ttl, due, fence) = (optional(TTL)?, optional(DUE)?, optional(FENCE)?);
        let metadata = if flags & METADATA == 0 {
            None
        } else {
            let (author, reason) = (rest.text()?, rest.text()?);
            let present = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
            let (author, reason) = (present(author), present(reason));
            Some(Arc::new(Metadata::found(author.as_deref(), reason.as_deref())))
        };
        let count = if flags & OLDER == 0 { 0 } else { rest.short()? };
        let older = (0..count).map(|_| rest.short()).collect::<Result<_, _>>()?;
        let head = Self { operation, version, since, created, older, ttl, due, fence, metadata };
        Ok((head, rest.at..row.len()))
    }
}

/// A part of a row that was not read yet.
struct Reader<'a> {
    row: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Failure> {
        let end = self.at.saturating_add(len);
        let taken = self.row.get(self.at..end);
        self.at = end;
        taken.ok_or_else(|| Failure::damaged("an entry is too short"))
    }

    fn byte(&mut self) -> Result<u8, Failure> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> Result<u64, Failure> {
        number(self.take(8)?)
    }

    /// Reads a number in base 128.
    fn short(&mut self) -> Result<u64, Failure> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Failure::damaged("a number is too long"))
    }

    fn text(&mut self) -> Result<&'a str, Failure> {
        let len = usize::try_from(self.short()?).unwrap_or(usize::MAX);
        let text = std::str::from_utf8(self.take(len)?);
        text.map_err(|_| Failure::damaged("an author or a reason is not text"))
    }
}

/// Appends a number in base 128, the lowest digit first. All digits but the last have the highest
/// bit.
fn write_short(mut number: u64, row: &mut Vec<u8>) {
    while number >= 0x80 {
        row.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    row.push(number.to_le_bytes()[0]);
}

/// Reads a big-endian number of eight bytes.
pub(super) fn number(bytes: &[u8]) -> Result<u64, Failure> {
    let bytes = bytes.try_into().map_err(|_| Failure::damaged("a number has the wrong length"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Reads the bytes of a key.
pub(super) fn read_key(bytes: &[u8]) -> Result<Key, Failure> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| Key::new(text).ok());
    text.ok_or_else(|| Failure::damaged("a key is not valid"))
}

/// Returns the nanoseconds since 1970.
pub(super) fn nanos(at: SystemTime) -> u64 {
    span(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Returns the nanoseconds of a span.
pub(super) fn span(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the time that is this many nanoseconds after 1970.
pub(super) fn system(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn heads() -> Vec<Head> {
        let plain = Head {
            operation: KvOperation::Put,
            version: 7,
            since: 3,
            created: 9,
            older: Vec::new(),
            ttl: None,
            due: None,
            fence: None,
            metadata: None,
        };
        let metadata = Metadata::new(Some("deploy@ci"), None).unwrap();
        vec![
            plain.clone(),
            Head { operation: KvOperation::Expire, due: Some(u64::MAX), ..plain.clone() },
            Head { older: (1..64).collect(), fence: Some(1), ..plain.clone() },
            Head { version: u64::MAX, since: 1, ..plain.clone() },
            Head { ttl: Some(5), metadata: Some(Arc::new(metadata)), ..plain },
        ]
    }

    #[test]
    fn row_is_read_as_it_was_written() {
        for head in heads() {
            for value in [&b""[..], b"value"] {
                let mut row = Vec::new();
                head.write(value, &mut row);
                let (read, range) = Head::read(&row).unwrap();
                assert_eq!((&read, &row[range]), (&head, value));
            }
        }
    }

    #[test]
    fn truncated_row_is_rejected() {
        for head in heads() {
            let mut row = Vec::new();
            head.write(b"", &mut row);
            for len in 0..row.len() {
                assert!(Head::read(&row[..len]).is_err(), "{len} of {}", row.len());
            }
        }
    }
}
