//! Watch cursors: a written cursor is read back, and no other bytes are read.

use std::time::{Duration, SystemTime};

use shizuku_kv::WatchCursor;

use super::reading::{Input, crc32};

/// Reads the bytes as a cursor. Also makes a cursor from them, and damages it.
pub fn run(data: &[u8]) {
    reads_only_what_is_a_cursor(data);

    let mut input = Input(data);
    let (incarnation, position, nanos) = (input.array(), input.number(), input.number());
    let as_of = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
    let cursor = WatchCursor::new(incarnation, position, as_of);
    let bytes = cursor.to_bytes();
    reads_only_what_is_a_cursor(&bytes);
    assert_eq!(WatchCursor::from_bytes(&bytes).unwrap(), cursor);
    assert_eq!(
        (cursor.incarnation(), cursor.position(), cursor.as_of()),
        (&incarnation, position, as_of)
    );

    // The checksum detects every change of four bytes in a row.
    let (at, damage) = (input.below(WatchCursor::LEN - 3), input.array::<4>());
    let mut damaged = bytes;
    damaged[at..at + 4].iter_mut().zip(damage).for_each(|(byte, damage)| *byte ^= damage);
    assert_eq!(WatchCursor::from_bytes(&damaged).is_ok(), damage == [0; 4]);
    let len = input.below(WatchCursor::LEN);
    assert!(WatchCursor::from_bytes(&bytes[..len]).is_err());
    assert!(WatchCursor::from_bytes(&[&bytes[..], &[input.byte()]].concat()).is_err());
}

/// Returns a cursor of each kind.
pub fn examples() -> Vec<Vec<u8>> {
    let times = [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::MAX)];
    times.into_iter().map(|time| WatchCursor::new([7; 16], 300, time).to_bytes().to_vec()).collect()
}

/// Checks the format independently of the library.
fn reads_only_what_is_a_cursor(bytes: &[u8]) {
    let is_cursor = bytes.len() == 40
        && bytes.starts_with(b"SKC\x01")
        && crc32(0, &bytes[..36]).to_be_bytes() == bytes[36..];
    match WatchCursor::from_bytes(bytes) {
        Ok(cursor) => {
            assert!(is_cursor, "these bytes are no cursor");
            assert_eq!(cursor.to_bytes(), bytes);
            assert_eq!(cursor.incarnation(), &bytes[4..20]);
            assert_eq!(cursor.position().to_be_bytes(), bytes[20..28]);
        }
        Err(error) => {
            assert!(!is_cursor, "{error}");
            assert!(!error.to_string().is_empty());
        }
    }
}
