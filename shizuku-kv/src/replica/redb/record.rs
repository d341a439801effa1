//! An entry as bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | the format of the record: 1 |
//! | 1 | the length of the version |
//! | 1 to 17 | the version, as [`VersionToken::to_bytes`] |
//! | 16 | the time of creation: nanoseconds since 1970, little endian, signed |
//! | 4 | CRC-32 of the key, of everything before, and of the value; little endian |
//! | the rest | the value |
//!
//! The checksum is our own, because redb verifies pages only after a crash. Otherwise a change by
//! the disk would come back as a value. The checksum includes the key, so that a value is never
//! taken for that of another key.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::{Failure, RedbFailure};
use crate::replica::storage::{Checkpoint, StoredVersion};
use crate::store::{Key, KvEntry, VersionToken};

const FORMAT: u8 = 1;
const CHECKSUM: usize = 4;
const NANOS_IN_A_SECOND: u128 = 1_000_000_000;

/// A record that was read. The value is still in the file's memory.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) key: Key,
    pub(super) held: StoredVersion,
    value: &'a [u8],
}

impl Record<'_> {
    /// Returns the entry, with a copy of the value.
    pub(super) fn into_entry(self) -> KvEntry {
        KvEntry::put(self.key, self.value.to_vec().into(), self.held.version, self.held.created)
    }
}

/// Damage of a record.
#[derive(Debug)]
pub(super) struct Damage {
    /// `None` if the key itself is damaged.
    key: Option<Key>,
    what: &'static str,
}

impl Damage {
    /// Returns the error for the damage in the file at this path.
    pub(super) fn at(self, path: &Path) -> Failure {
        let record = match self.key {
            Some(key) => format!("the record of the key {key}"),
            None => "a key".to_owned(),
        };
        Failure::from(RedbFailure::damaged(path, format!("{record}: {}", self.what)))
    }
}

/// Replaces the content of `out` by the record of an entry.
pub(super) fn write(out: &mut Vec<u8>, entry: &KvEntry) {
    let version = entry.version.to_bytes();
    out.clear();
    out.reserve(2 + version.len() + 16 + CHECKSUM + entry.value.len());
    // At most 17.
    out.extend([FORMAT, version.len() as u8]);
    out.extend_from_slice(&version);
    out.extend_from_slice(&nanos(entry.created).to_le_bytes());
    let checksum = checksum(entry.key.as_bytes(), out, &entry.value);
    out.extend_from_slice(&checksum);
    out.extend_from_slice(&entry.value);
}

/// Reads the output of [`write`] for this key.
pub(super) fn read<'a>(key: &[u8], record: &'a [u8]) -> Result<Record<'a>, Damage> {
    let key = std::str::from_utf8(key).ok().and_then(|key| Key::new(key).ok());
    let Some(key) = key else {
        return Err(Damage { key: None, what: "it is not one that a bucket can have" });
    };
    let parsed = match parse(key.as_bytes(), record) {
        Ok(parsed) => parsed,
        Err(what) => return Err(Damage { key: Some(key), what }),
    };
    Ok(Record { key, held: parsed.0, value: parsed.1 })
}

fn parse<'a>(key: &[u8], record: &'a [u8]) -> Result<(StoredVersion, &'a [u8]), &'static str> {
    const SHORT: &str = "it is too short";
    match record.first() {
        Some(&FORMAT) => {}
        Some(_) => return Err("it has a format that this version does not know"),
        None => return Err(SHORT),
    }
    let length = usize::from(*record.get(1).ok_or(SHORT)?);
    let (head, rest) = record.split_at_checked(2 + length + 16).ok_or(SHORT)?;
    let (found, value) = rest.split_at_checked(CHECKSUM).ok_or(SHORT)?;
    if found != checksum(key, head, value) {
        return Err("its checksum does not match");
    }
    let (version, created) =
        head.get(2..).and_then(|head| head.split_last_chunk::<16>()).ok_or(SHORT)?;
    let version = VersionToken::from_bytes(version).map_err(|_| "its version is none")?;
    let created = time(i128::from_le_bytes(*created)).ok_or("its time is none")?;
    Ok((StoredVersion::new(version, created), value))
}

fn checksum(key: &[u8], head: &[u8], value: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(head);
    hasher.update(value);
    hasher.finalize().to_le_bytes()
}

fn nanos(time: SystemTime) -> i128 {
    // Seconds have 64 bits at most, so that their nanoseconds have far less than 127.
    let signed = |span: Duration| i128::try_from(span.as_nanos()).unwrap_or(i128::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => signed(since),
        Err(before) => -signed(before.duration()),
    }
}

fn time(nanos: i128) -> Option<SystemTime> {
    let span = nanos.unsigned_abs();
    let seconds = u64::try_from(span / NANOS_IN_A_SECOND).ok()?;
    let span = Duration::new(seconds, (span % NANOS_IN_A_SECOND) as u32);
    if nanos < 0 { UNIX_EPOCH.checked_sub(span) } else { UNIX_EPOCH.checked_add(span) }
}

/// Returns the bytes of a checkpoint with a checksum over all of it.
pub(super) fn checkpoint_to_bytes(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = checkpoint.to_bytes().to_vec();
    bytes.extend_from_slice(&checksum(&[], &bytes, &[]));
    bytes
}

/// Reads the output of [`checkpoint_to_bytes`].
pub(super) fn checkpoint_from_bytes(bytes: &[u8], path: &Path) -> Result<Checkpoint, Failure> {
    let checkpoint = bytes.split_last_chunk::<CHECKSUM>();
    let checkpoint =
        checkpoint.filter(|(checkpoint, found)| **found == checksum(&[], checkpoint, &[]));
    let checkpoint = checkpoint.and_then(|(checkpoint, _)| Checkpoint::from_bytes(checkpoint).ok());
    checkpoint.ok_or_else(|| {
        Failure::from(RedbFailure::damaged(path, "the checkpoint of the replica".to_owned()))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn entry() -> KvEntry {
        let version = VersionToken::opaque(b"opaque").unwrap();
        let created = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        KvEntry::put(Key::new("a.b").unwrap(), "a value".into(), version, created)
    }

    #[test]
    fn record_round_trips_and_damage_is_rejected() {
        let mut bytes = b"what was there before".to_vec();
        write(&mut bytes, &entry());
        assert_eq!(read(b"a.b", &bytes).unwrap().into_entry(), entry());
        for length in 0..bytes.len() {
            assert!(read(b"a.b", &bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(b"a.b", &damaged).is_err(), "bit {bit}");
        }
        assert!(read(b"a.c", &bytes).is_err(), "the record of another key");
        for key in [&b"a..b"[..], b"", b"\xff"] {
            assert!(read(key, &bytes).is_err(), "{key:?}");
        }
    }

    #[test]
    fn error_of_a_record_shows_nothing_of_the_value() {
        let mut bytes = Vec::new();
        write(&mut bytes, &entry());
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let damage = read(b"a.b", &bytes).unwrap_err();
        let text = damage
            .at(Path::new("/p.redb"))
            .into_storage_error(Path::new("/p.redb"), "read")
            .to_string();
        assert!(
            text.contains("/p.redb") && text.contains("a.b") && !text.contains("value"),
            "{text}"
        );
    }

    #[test]
    fn unknown_format_is_not_damage() {
        let mut bytes = Vec::new();
        write(&mut bytes, &entry());
        bytes[0] = 2;
        assert!(read(b"a.b", &bytes).unwrap_err().what.contains("format"));
    }

    #[test]
    fn distant_times_are_kept_or_rejected() {
        for nanos_since in
            [0, 1, -1, 999_999_999, -1_000_000_001, i128::from(u64::MAX), -i128::from(u64::MAX)]
        {
            assert_eq!(nanos(time(nanos_since).unwrap()), nanos_since);
        }
        assert_eq!(time(i128::MAX), None);
        assert_eq!(time(i128::MIN), None);
    }

    #[test]
    fn damaged_checkpoint_is_rejected() {
        let cursor = crate::store::WatchCursor::new([7; 16], 42, UNIX_EPOCH);
        let checkpoint = Checkpoint::new(cursor, [9; 16]);
        let bytes = checkpoint_to_bytes(&checkpoint);
        assert_eq!(checkpoint_from_bytes(&bytes, Path::new("p")).unwrap(), checkpoint);
        for length in 0..bytes.len() {
            assert!(checkpoint_from_bytes(&bytes[..length], Path::new("p")).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(checkpoint_from_bytes(&damaged, Path::new("p")).is_err(), "bit {bit}");
        }
    }
}
