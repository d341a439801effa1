//! Tests that a reader returns what a writer has written.

use std::path::Path;

use super::super::{SnapshotError, SnapshotOptions, SnapshotReader, SnapshotWriter, load};
use super::fixture::*;
use super::sim::SimDisk;
use crate::store::{KvUpdate, VersionToken};

#[test]
fn state_is_read_with_its_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let (mut writer, state) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    assert_eq!(Point::of(&state), Point::empty());
    for update in [put("a", b"1", 1), put("b", b"2", 2), delete("a", 3), KvUpdate::CaughtUp] {
        writer.append(&update).unwrap();
    }
    assert_eq!(
        Point::of(&load(&path).unwrap()),
        Point::empty(),
        "nothing counts before the checkpoint"
    );
    writer.checkpoint(Some(&cursor(3))).unwrap();
    let state = load(&path).unwrap();
    assert_eq!(state.cursor, Some(cursor(3)));
    assert_eq!(state.entries.len(), 1);
    assert_eq!(Some(&state.entries.get("b").unwrap()), put("b", b"2", 2).entry());
    assert!(state.entries.contains_key("b") && !state.entries.contains_key("a"));
    assert!(state.entries.get("a").is_none() && state.entries.get("not a key").is_none());
    assert_eq!(state.entries.held("b").unwrap().0, VersionToken::from_u64(2));

    writer.append(&put("c", b"3", 4)).unwrap();
    writer.checkpoint(None).unwrap();
    writer.append(&put("lost", b"", 5)).unwrap();
    writer.close().unwrap();
    let (_, state) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    assert_eq!(state.cursor, None);
    assert_eq!(state.entries.len(), 2);
}

#[test]
fn missing_file_is_reported() {
    let error = load("/no/such/file").unwrap_err();
    assert!(matches!(error, SnapshotError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/file"));
    assert!(matches!(SnapshotReader::open("/no/such/file"), Err(SnapshotError::NotFound { .. })));
    assert!(!error.is_retryable());
}

#[test]
fn cursor_of_another_scope_is_not_returned() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options().scope_tag([1; 16])).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    writer.checkpoint(Some(&cursor(1))).unwrap();
    drop(writer);
    let (writer, state) = open_on(&disk, options().scope_tag([2; 16])).unwrap();
    assert_eq!((state.cursor, state.entries.len(), state.scope_tag), (None, 1, [1; 16]));
    drop(writer);
    let (mut writer, state) = open_on(&disk, options().scope_tag([1; 16])).unwrap();
    assert_eq!((state.cursor, state.scope_tag), (Some(cursor(1)), [1; 16]));
    // Compaction keeps both.
    writer.compact().unwrap();
    let state = load_on(&disk).unwrap();
    assert_eq!((state.cursor, state.scope_tag), (Some(cursor(1)), [1; 16]));
    drop(writer);
    // The same cursor under another tag is another checkpoint.
    let (mut writer, _) = open_on(&disk, options().scope_tag([2; 16])).unwrap();
    writer.checkpoint(Some(&cursor(1))).unwrap();
    assert_eq!(load_on(&disk).unwrap().scope_tag, [2; 16]);
}

#[cfg(unix)]
#[test]
fn compacted_log_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let (mut writer, _) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    writer.checkpoint(None).unwrap();
    writer.compact().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn checkpoint_without_news_writes_nothing() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    writer.checkpoint(Some(&cursor(1))).unwrap();
    let content = disk.content(Path::new(PATH));
    writer.checkpoint(Some(&cursor(1))).unwrap();
    assert_eq!(disk.content(Path::new(PATH)), content);
    writer.checkpoint(Some(&cursor(2))).unwrap();
    assert_eq!(load_on(&disk).unwrap().cursor, Some(cursor(2)));
}

#[test]
fn debug_shows_no_value() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    writer.append(&put("key.1", b"secret", 1)).unwrap();
    writer.checkpoint(None).unwrap();
    let state = load_on(&disk).unwrap();
    let entry = state.entries.iter().next().unwrap();
    let shown =
        format!("{state:?} {:?} {entry:?} {writer:?} {:?}", state.entries, state.entries.iter());
    assert!(!shown.contains("secret") && !shown.contains("115"), "{shown}");
    assert!(!format!("{:?}", state.entries).contains("key.1"));
    assert!(format!("{entry:?}").contains("<6 bytes>"), "{entry:?}");
}
