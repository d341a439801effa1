//! One write as bytes. The bytes are the same on the disk and in memory, so that loading copies
//! nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::SnapshotError;
use crate::store::{Key, KvEntry, KvUpdate, MAX_KEY_LEN, VersionToken, check_key};

/// Number of bytes before the version, the key and the value.
const FIXED: usize = 20;

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Marker in place of a version's length: the version is a number of eight bytes.
const NUMBER: u8 = 0xff;
const NUMBER_LEN: usize = 8;

const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// Minimum length of a record in bytes.
pub(super) const MIN_LEN: usize = FIXED + 1;

/// Maximum length of a value in bytes. A frame holds any one record, and stores its length in 32
/// bits.
pub(super) const MAX_VALUE_LEN: usize = u32::MAX as usize - 64 * 1024;

/// Returns the entry of an update, and whether it is a deletion. Returns `None` for the caught-up
/// marker.
///
/// # Errors
/// Returns [`SnapshotError::ValueTooLarge`] if the value is longer than [`MAX_VALUE_LEN`].
pub(super) fn written(update: &KvUpdate) -> Result<Option<(&KvEntry, bool)>, SnapshotError> {
    let (entry, deletion) = match update {
        KvUpdate::Put(entry) => (entry, false),
        KvUpdate::Delete(entry) => (entry, true),
        KvUpdate::CaughtUp => return Ok(None),
    };
    let size = entry.value.len();
    if size > MAX_VALUE_LEN {
        let key = entry.key.clone();
        return Err(SnapshotError::ValueTooLarge { key, size, limit: MAX_VALUE_LEN });
    }
    Ok(Some((entry, deletion)))
}

/// Appends the record of a write. A deletion keeps no value. The value is at most [`MAX_VALUE_LEN`]
/// bytes long.
pub(super) fn encode(out: &mut Vec<u8>, entry: &KvEntry, deletion: bool) {
    let value: &[u8] = if deletion { &[] } else { &entry.value };
    let number = entry.version.as_u64();
    let opaque = if number.is_some() { Vec::new() } else { entry.version.to_bytes() };
    // Drops the first byte, which marks the version as opaque, because the record already says so.
    let opaque = opaque.get(1..).unwrap_or_default();
    let (seconds, nanos) = since_epoch(entry.created);

    let mut fixed = [0; FIXED];
    fixed[0] = if deletion { DELETE } else { PUT };
    fixed[1] = if number.is_some() { NUMBER } else { opaque.len() as u8 };
    fixed[2..4].copy_from_slice(&(entry.key.len() as u16).to_le_bytes());
    fixed[4..8].copy_from_slice(&(value.len() as u32).to_le_bytes());
    fixed[8..12].copy_from_slice(&nanos.to_le_bytes());
    fixed[12..20].copy_from_slice(&seconds.to_le_bytes());
    // Gives an empty vector the capacity of exactly this record.
    let version_len = if number.is_some() { NUMBER_LEN } else { opaque.len() };
    out.reserve(FIXED + version_len + entry.key.len() + value.len());
    out.extend_from_slice(&fixed);
    match number {
        Some(number) => out.extend_from_slice(&number.to_le_bytes()),
        None => out.extend_from_slice(opaque),
    }
    out.extend_from_slice(entry.key.as_bytes());
    out.extend_from_slice(value);
}

/// Offsets of the parts of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) deletion: bool,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) end: usize,
}

/// Returns the shape of the record at the start of `bytes`, or a description of the error. Checks
/// everything, so that the functions of [`Record`] cannot fail.
pub(super) fn shape(bytes: &[u8]) -> Result<Shape, &'static str> {
    let Some(fixed) = bytes.first_chunk::<FIXED>() else {
        return Err("a record that is cut off");
    };
    let deletion = match fixed[0] {
        PUT => false,
        DELETE => true,
        _ => return Err("a record of an unknown kind"),
    };
    let Some(version_len) = version_len(fixed[1]) else {
        return Err("a record with a version of more than 16 bytes");
    };
    let (key_len, value_len) = lengths(fixed);
    let key = FIXED + version_len;
    let value = key + key_len;
    let Some(end) = value.checked_add(value_len).filter(|end| *end <= bytes.len()) else {
        return Err("a record that is longer than its frame");
    };
    if deletion && value_len > 0 {
        return Err("a deletion with a value");
    }
    if created(fixed).is_none() {
        return Err("a record with a time that does not exist");
    }
    // Checks the length before the whole key is read.
    if key_len > MAX_KEY_LEN {
        return Err("a key of more than 1024 bytes");
    }
    match std::str::from_utf8(&bytes[key..value]).map(check_key) {
        Ok(Ok(())) => Ok(Shape { deletion, key, value, end }),
        _ => Err("a key that breaks the rules for keys"),
    }
}

/// A record that [`shape`] has checked or [`encode`] has made, without trailing bytes.
#[derive(Clone, Default)]
pub(super) struct Record(Bytes);

impl Record {
    /// Wraps `bytes`, which [`shape`] must have accepted, cut at their end.
    pub(super) fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Returns the record of an update, in an allocation of its own. Returns `None` for the
    /// caught-up marker.
    ///
    /// # Errors
    /// Returns [`SnapshotError::ValueTooLarge`] if the value is longer than [`MAX_VALUE_LEN`].
    pub(super) fn of(update: &KvUpdate) -> Result<Option<Self>, SnapshotError> {
        let Some((entry, deletion)) = written(update)? else { return Ok(None) };
        let mut bytes = Vec::new();
        encode(&mut bytes, entry, deletion);
        Ok(Some(Self(bytes.into())))
    }

    pub(super) fn is_deletion(&self) -> bool {
        self.fixed()[0] == DELETE
    }

    /// Returns a copy that keeps nothing else in memory.
    pub(super) fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.0
    }

    fn fixed(&self) -> [u8; FIXED] {
        self.0.first_chunk().copied().unwrap_or_default()
    }

    fn bounds(&self) -> (usize, usize) {
        let fixed = self.fixed();
        let key = FIXED + version_len(fixed[1]).unwrap_or_default();
        (key, key + lengths(&fixed).0)
    }

    pub(super) fn key_bytes(&self) -> &[u8] {
        let (key, value) = self.bounds();
        self.0.get(key..value).unwrap_or_default()
    }

    pub(super) fn key(&self) -> &str {
        std::str::from_utf8(self.key_bytes()).unwrap_or_default()
    }

    pub(super) fn value(&self) -> &[u8] {
        self.0.get(self.bounds().1..).unwrap_or_default()
    }

    pub(super) fn version(&self) -> VersionToken {
        let fixed = self.fixed();
        let token = self.0.get(FIXED..self.bounds().0).unwrap_or_default();
        match <[u8; NUMBER_LEN]>::try_from(token) {
            Ok(number) if fixed[1] == NUMBER => VersionToken::from_u64(u64::from_le_bytes(number)),
            _ => VersionToken::opaque(token).unwrap_or(VersionToken::from_u64(0)),
        }
    }

    pub(super) fn created(&self) -> SystemTime {
        created(&self.fixed()).unwrap_or(UNIX_EPOCH)
    }

    /// Returns the entry. Its value shares the record's memory.
    pub(super) fn to_entry(&self) -> KvEntry {
        let value = self.0.slice(self.bounds().1.min(self.0.len())..);
        KvEntry::put(Key::of_checked(self.key()), value, self.version(), self.created())
    }
}

fn version_len(byte: u8) -> Option<usize> {
    match byte {
        NUMBER => Some(NUMBER_LEN),
        len if usize::from(len) <= VersionToken::MAX_LEN => Some(usize::from(len)),
        _ => None,
    }
}

/// Returns the lengths of key and value.
fn lengths(fixed: &[u8; FIXED]) -> (usize, usize) {
    let key_len = u16::from_le_bytes([fixed[2], fixed[3]]);
    let value_len = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    (usize::from(key_len), value_len as usize)
}

fn created(fixed: &[u8; FIXED]) -> Option<SystemTime> {
    let nanos = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    let seconds = fixed.last_chunk().copied().map_or(0, i64::from_le_bytes);
    if nanos >= NANOS_PER_SECOND {
        return None;
    }
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    start?.checked_add(Duration::from_nanos(nanos.into()))
}

/// Returns the seconds since 1970, and the nanoseconds since the start of that second. Also works
/// for times before 1970.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let seconds = 0i64.saturating_sub_unsigned(before.as_secs());
            match before.subsec_nanos() {
                0 => (seconds, 0),
                nanos => (seconds.saturating_sub(1), NANOS_PER_SECOND - nanos),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn entry(version: VersionToken, created: SystemTime) -> KvEntry {
        KvEntry::put(Key::new("a.b").unwrap(), Bytes::from_static(b"value"), version, created)
    }

    fn round_trip(entry: &KvEntry) {
        let mut bytes = Vec::new();
        encode(&mut bytes, entry, false);
        bytes.extend_from_slice(b"more");
        let shape = shape(&bytes).unwrap();
        assert!(!shape.deletion);
        assert_eq!(&bytes[shape.key..shape.value], entry.key.as_bytes());
        bytes.truncate(shape.end);
        let record = Record::checked(bytes.into());
        assert_eq!(&record.to_entry(), entry);
        let update = KvUpdate::Put(entry.clone());
        assert_eq!(record.bytes(), Record::of(&update).unwrap().unwrap().bytes());
    }

    #[test]
    fn every_kind_of_version_comes_back() {
        for number in [0, 1, u64::MAX] {
            round_trip(&entry(VersionToken::from_u64(number), UNIX_EPOCH));
        }
        for len in 0..=16 {
            round_trip(&entry(VersionToken::opaque(&vec![0xa5; len]).unwrap(), UNIX_EPOCH));
        }
    }

    #[test]
    fn times_come_back_to_the_nanosecond_before_1970_too() {
        let version = VersionToken::from_u64(1);
        for (seconds, nanos) in [(0, 0), (0, 1), (1, 999_999_999), (1 << 40, 5)] {
            let distance = Duration::new(seconds, nanos);
            round_trip(&entry(version, UNIX_EPOCH + distance));
            round_trip(&entry(version, UNIX_EPOCH - distance));
        }
    }

    #[test]
    fn invalid_record_is_rejected() {
        let mut good = Vec::new();
        encode(&mut good, &entry(VersionToken::from_u64(7), UNIX_EPOCH), false);
        for len in 0..good.len() {
            assert!(shape(&good[..len]).is_err(), "cut at {len}");
        }
        let rejected = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            shape(&bytes).unwrap_err()
        };
        assert!(rejected(0, 0).contains("kind"));
        assert!(rejected(0, DELETE).contains("deletion"));
        assert!(rejected(1, 17).contains("version"));
        assert!(rejected(2, 0).contains("rules"));
        assert!(rejected(3, 4).contains("longer"));
        assert!(rejected(11, 0xff).contains("time"));
        assert!(rejected(28, b'*').contains("rules"));
        assert!(rejected(28, 0x80).contains("rules"));
    }
}
