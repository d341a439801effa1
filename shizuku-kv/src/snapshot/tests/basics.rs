//! Tests that a reader returns what a writer has written.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::super::{
    EntryRecord, SnapshotError, SnapshotOptions, SnapshotReader, SnapshotWriter, SyncPolicy, load,
};
use super::fixture::*;
use super::sim::SimDisk;
use crate::store::{Key, KvEntry, KvUpdate, VersionToken};

#[test]
fn a_state_comes_back_with_its_cursor() {
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
fn versions_and_times_come_back() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    let versions = [VersionToken::from_u64(u64::MAX), VersionToken::opaque(&[1; 10]).unwrap()];
    let times = [UNIX_EPOCH + Duration::new(5, 1), UNIX_EPOCH - Duration::new(5, 999_999_999)];
    let entries = versions.into_iter().zip(times).enumerate().map(|(n, (version, created))| {
        KvEntry::put(Key::new(format!("key.{n}")).unwrap(), "value".into(), version, created)
    });
    let entries: Vec<_> = entries.collect();
    for entry in &entries {
        writer.append(&KvUpdate::Put(entry.clone())).unwrap();
    }
    writer.checkpoint(None).unwrap();
    let state = load_on(&disk).unwrap();
    for entry in &entries {
        assert_eq!(&state.entries.get(&entry.key).unwrap(), entry);
        assert_eq!(state.entries.held(&entry.key).unwrap(), (entry.version, entry.created));
    }
}

#[test]
fn a_file_that_is_not_there_is_an_error_that_says_so() {
    let error = load("/no/such/file").unwrap_err();
    assert!(matches!(error, SnapshotError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/file"));
    assert!(matches!(SnapshotReader::open("/no/such/file"), Err(SnapshotError::NotFound { .. })));
    assert!(!error.is_retryable());
}

#[test]
fn a_second_writer_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let (first, _) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    let error = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap_err();
    assert!(matches!(error, SnapshotError::Locked { .. }) && error.is_retryable(), "{error}");
    load(&path).unwrap();
    drop(first);
    SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
}

#[test]
fn a_cursor_of_another_scope_is_not_given() {
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
fn a_compacted_log_can_be_read_by_nobody_who_could_not_before() {
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
fn discarded_changes_do_not_count() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    writer.checkpoint(None).unwrap();
    let len = writer.file_len();
    for n in 0..40 {
        writer.append(&put(&format!("b.{n}"), &[1; 30], 2)).unwrap();
    }
    assert!(disk.content(Path::new(PATH)).len() as u64 > len, "parts are in the file");
    writer.discard().unwrap();
    assert_eq!(disk.content(Path::new(PATH)).len() as u64, len);
    writer.append(&put("c", b"3", 3)).unwrap();
    writer.checkpoint(None).unwrap();
    let state = load_on(&disk).unwrap();
    assert_eq!(state.entries.len(), 2);
    assert!(state.entries.contains_key("a") && state.entries.contains_key("c"));
}

#[test]
fn a_checkpoint_of_nothing_new_writes_nothing() {
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
}

#[test]
fn a_replica_changes_what_was_loaded() {
    let mut entries = super::super::SnapshotEntries::default();
    let first = put("a", b"1", 1).into_entry().unwrap();
    let second = put("a", b"two", 2).into_entry().unwrap();
    assert!(entries.insert(EntryRecord::of(&first)).is_none());
    assert!(entries.insert(EntryRecord::of(&second)).is_some());
    assert!(entries.insert(EntryRecord::of(put("b", b"", 3).entry().unwrap())).is_none());
    assert_eq!(entries.get("a").unwrap(), second);
    let mut keys: Vec<_> = entries.iter().map(|entry| entry.key()).collect();
    keys.sort();
    assert_eq!(keys, ["a", "b"]);
    assert!(entries.remove("a").is_some() && entries.remove("a").is_none());
    assert!(entries.get("a").is_none());
    assert_eq!(entries.len(), 1);
}

#[test]
fn each_policy_gives_the_state_back_after_the_process_ends() {
    let interval = SyncPolicy::Interval(Duration::from_secs(3600));
    for policy in [SyncPolicy::EveryCheckpoint, interval, SyncPolicy::Never] {
        let disk = SimDisk::default();
        let (mut writer, _) = open_on(&disk, options().sync(policy)).unwrap();
        writer.append(&put("a", b"1", 1)).unwrap();
        writer.checkpoint(Some(&cursor(1))).unwrap();
        writer.kill();
        let (_, state) = open_on(&disk, options().sync(policy)).unwrap();
        assert_eq!((state.cursor, state.entries.len()), (Some(cursor(1)), 1), "{policy:?}");
    }
}
