//! Tests with a disk that is full or fails, at each of the operations of a commit.

use std::io::ErrorKind;

use super::disk::Disk;
use super::*;

fn batch(number: u64) -> Vec<KvUpdate> {
    let mut changes =
        (0..20).map(|key| put(&format!("key.{number}.{key}"), number)).collect::<Vec<_>>();
    changes.push(put("all", number));
    changes
}

/// Returns the number of operations of the third commit.
fn operations_of_a_commit() -> u64 {
    let disk = Disk::default();
    let mut storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
    storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
    storage.commit(&batch(2), Some(&checkpoint(2))).unwrap();
    let before = disk.platter().operations;
    storage.commit(&batch(3), Some(&checkpoint(3))).unwrap();
    disk.platter().operations - before
}

#[test]
fn commit_is_repeated_after_a_full_disk() {
    let operations = operations_of_a_commit();
    assert!(operations > 3);
    for left in 0..operations {
        let disk = Disk::default();
        let mut storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
        storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
        storage.commit(&batch(2), Some(&checkpoint(2))).unwrap();
        let reader = storage.reader();
        let before = content(&reader);
        disk.fail_after(left, ErrorKind::StorageFull);
        // The disk stays full for a while, so that reopening the file fails too.
        for _ in 0..3 {
            let error = storage.commit(&batch(3), Some(&checkpoint(3))).unwrap_err();
            is_in_order(&error, Path::new("/disk.redb"));
            assert!(error.is_retryable(), "{left} operations: {error}");
            assert!(error.to_string().contains("full"), "{error}");
        }
        disk.mend();
        // Either both are there or neither is. The outcome of the last step of a commit may be
        // known only now.
        let checkpoint_then = storage.checkpoint().unwrap();
        assert!(
            checkpoint_then == Some(checkpoint(2)) && content(&reader) == before
                || checkpoint_then == Some(checkpoint(3))
        );
        storage.commit(&batch(3), Some(&checkpoint(3))).unwrap();
        assert_eq!(storage.checkpoint().unwrap(), Some(checkpoint(3)));
        assert_eq!(content(&reader).len(), 61, "after {left} operations");
        storage.commit(&batch(4), Some(&checkpoint(4))).unwrap();
        drop(storage);
        let storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
        assert_eq!(
            (storage.checkpoint().unwrap(), content(&storage.reader()).len()),
            (Some(checkpoint(4)), 81)
        );
    }
}

/// A reopened file would lack commits that are not durable, and the replica would not know.
#[test]
fn full_disk_after_volatile_commits_is_fatal() {
    let disk = Disk::default();
    let mut storage = disk.open(RedbSync::Never).unwrap();
    storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
    storage.sync = RedbSync::EveryCheckpoint;
    disk.fail_after(2, ErrorKind::StorageFull);
    for _ in 0..2 {
        let error = storage.commit(&batch(2), Some(&checkpoint(2))).unwrap_err();
        is_in_order(&error, Path::new("/disk.redb"));
        assert!(!error.is_retryable(), "{error}");
        assert!(error.to_string().contains("open it again"), "{error}");
    }
    disk.mend();
    assert!(!storage.commit(&batch(2), Some(&checkpoint(2))).unwrap_err().is_retryable());
    drop(storage);
    let storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
    assert_eq!((storage.checkpoint().unwrap(), storage.is_empty().unwrap()), (None, true));
}

#[test]
fn failing_disk_is_fatal_and_leaves_whole_commits() {
    for left in 0..operations_of_a_commit() {
        let disk = Disk::default();
        let mut storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
        storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
        storage.commit(&batch(2), Some(&checkpoint(2))).unwrap();
        disk.fail_after(left, ErrorKind::Other);
        for _ in 0..2 {
            let error = storage.commit(&batch(3), Some(&checkpoint(3))).unwrap_err();
            is_in_order(&error, Path::new("/disk.redb"));
            assert!(!error.is_retryable(), "{error}");
        }
        disk.mend();
        let error = storage.commit(&batch(3), Some(&checkpoint(3))).unwrap_err();
        assert!(error.to_string().contains("open it again"), "{error}");
        drop(storage);
        disk.lose_power();
        let storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
        let expected = [(Some(checkpoint(2)), 41), (Some(checkpoint(3)), 61)];
        let found = (storage.checkpoint().unwrap(), content(&storage.reader()).len());
        assert!(expected.contains(&found), "{found:?} after {left} operations");
    }
}

#[test]
fn durable_commits_survive_a_loss_of_power_and_others_may_not() {
    for (sync, expected) in
        [(RedbSync::EveryCheckpoint, Some(checkpoint(2))), (RedbSync::Never, None)]
    {
        let disk = Disk::default();
        let mut storage = disk.open(sync).unwrap();
        storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
        storage.commit(&batch(2), Some(&checkpoint(2))).unwrap();
        // The drop must not write anything to the disk.
        disk.fail_after(0, ErrorKind::Other);
        drop(storage);
        disk.mend();
        disk.lose_power();
        assert_eq!(disk.open(sync).unwrap().checkpoint().unwrap(), expected, "{sync:?}");
    }
}

#[test]
fn closing_makes_commits_durable_or_fails() {
    for fails in [false, true] {
        let disk = Disk::default();
        let mut storage = disk.open(RedbSync::Never).unwrap();
        storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
        if fails {
            disk.fail_after(0, ErrorKind::Other);
            let error = storage.close().unwrap_err();
            is_in_order(&error, Path::new("/disk.redb"));
        } else {
            storage.close().unwrap();
        }
        disk.mend();
        disk.lose_power();
        let found = disk.open(RedbSync::Never).unwrap().checkpoint().unwrap();
        assert_eq!(found.is_some(), !fails);
    }
}

/// If an operator deletes the file to make room, the replica must resync, and not continue without
/// the lost content.
#[test]
fn file_deleted_while_the_disk_was_full_is_not_used_again() {
    let disk = Disk::default();
    let mut storage = disk.open(RedbSync::EveryCheckpoint).unwrap();
    storage.commit(&batch(1), Some(&checkpoint(1))).unwrap();
    disk.fail_after(0, ErrorKind::StorageFull);
    assert!(storage.commit(&batch(2), Some(&checkpoint(2))).unwrap_err().is_retryable());
    disk.delete();
    disk.mend();
    let again = storage.commit(&batch(2), Some(&checkpoint(2)));
    let found = (storage.checkpoint().ok().flatten(), storage.reader().len().ok());
    assert!(again.is_err(), "kept: {found:?}: the checkpoint covers 21 keys that are gone");
    assert!(!again.unwrap_err().is_retryable());
}
