//! Tests that the suite for storages does not cover: errors, a disk without room, readers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests report by panicking")]

mod disk;
mod full;
mod opening;
mod reading;

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::store::{KvEntry, KvOperation, VersionToken, WatchCursor};

/// Part of all values, so that tests find it wherever a value is shown.
const SECRET: &str = "tell-nobody";

fn put(key: &str, number: u64) -> KvUpdate {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(number);
    let value = format!("{SECRET} {number}");
    KvUpdate::Put(KvEntry::put(
        Key::new(key).unwrap(),
        value.into(),
        VersionToken::from_u64(number),
        time,
    ))
}

fn delete(key: &str, number: u64) -> KvUpdate {
    let (key, version) = (Key::new(key).unwrap(), VersionToken::from_u64(number));
    KvUpdate::Delete(KvEntry::tombstone(key, KvOperation::Delete, version, SystemTime::UNIX_EPOCH))
}

fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint::new(WatchCursor::new([7; 16], position, SystemTime::UNIX_EPOCH), [1; 16])
}

async fn open(path: impl AsRef<Path>) -> RedbStorage {
    RedbStorage::open(path, RedbOptions::new()).await.unwrap()
}

/// Returns keys and versions, in order.
fn content(reader: &RedbReader) -> Vec<(String, u64)> {
    let entries = reader.scan("").unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.key.to_string(), entry.version.as_u64().unwrap())).collect()
}

fn is_in_order(error: &StorageError, path: &Path) {
    let text = format!("{error} {error:?}");
    assert!(text.contains(&*path.to_string_lossy()), "no path in: {text}");
    assert!(!text.contains(SECRET), "a value in: {text}");
}
