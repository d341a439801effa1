//! The effect of a commit, and the queries of a storage.

use super::check::{StorageCheck, storage_checks};
use super::subject::{StorageFixture, checkpoint, delete, held, key_of, put, time};
use crate::conformance::CheckResult;
use crate::store::{KvEntry, KvOperation, KvUpdate, VersionToken};

pub(super) const CHECKS: &[StorageCheck] = storage_checks! {
    an_empty_storage_holds_nothing []
        "A new storage has no checkpoint and holds no key.",
    a_put_is_held []
        "A put is held from then on, with its version and its time.",
    a_put_replaces_the_entry []
        "A put is held from then on, whatever was held before.",
    a_smaller_version_replaces_too []
        "A put is held from then on, even if its version is smaller than the held one.",
    a_time_alone_makes_a_difference []
        "A put is held from then on, even if only its time differs.",
    a_deletion_removes_the_entry []
        "A deletion removes the held entry: deleted, purged or expired alike, whatever its \
         version.",
    a_deletion_of_an_absent_key_changes_nothing []
        "A deletion removes the held entry, if there is one.",
    a_deleted_key_can_be_held_again []
        "A put is held from then on, whatever was held before.",
    the_last_change_of_a_key_counts []
        "A commit may have several changes of one key, of which the last one counts.",
    the_marker_changes_nothing []
        "The caught-up marker changes nothing. Its checkpoint is committed.",
    changes_of_other_keys_change_nothing []
        "A change affects its key and no other.",
    held_answers_in_the_order_of_the_keys []
        "held returns the held entry of each key, in the requested order, and None for a key \
         that is not held.",
    every_key_is_visited_once []
        "for_each_key calls once for each held key.",
    storages_are_their_own []
        "A storage does not hold the changes of another.",
};

fn an_empty_storage_holds_nothing(fixture: &StorageFixture) -> CheckResult {
    let subject = fixture.storage()?;
    let storage = subject.storage()?;
    ensure_eq!(storage.checkpoint()?, None, "the checkpoint of a new storage");
    ensure!(storage.is_empty()?, "a new storage is not empty");
    ensure_eq!(
        storage.held(&[key_of("a")?, key_of("b")?])?,
        [None, None],
        "the versions held of two keys"
    );
    subject.verify("before anything was committed")
}

fn a_put_is_held(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([put("a", 1)?], None, "a put")?;
    ensure!(!subject.storage()?.is_empty()?, "a storage that holds a key says that it is empty");
    subject.takes([put("b", 2)?, put("c.d", 3)?], None, "two more")
}

fn a_put_replaces_the_entry(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([put("a", 1)?, put("b", 2)?], None, "two puts")?;
    subject.takes([put("a", 3)?], None, "a newer put of one of them")
}

fn a_smaller_version_replaces_too(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.commit([put("a", 900)?, put("b", 2)?], None)?;
    // A recreated store begins again with version 1.
    let KvUpdate::Put(mut entry) = put("a", 901)? else { return Ok(()) };
    entry.version = VersionToken::from_u64(1);
    subject.takes([KvUpdate::Put(entry)], None, "a later put with a smaller version")?;
    subject.takes([put("a", 1)?], None, "a put with a smaller version and an earlier time")
}

fn a_time_alone_makes_a_difference(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.commit([put("a", 7)?], None)?;
    for seconds in [8, 6] {
        let KvUpdate::Put(mut entry) = put("a", 7)? else { return Ok(()) };
        entry.created = time(seconds);
        subject.takes(
            [KvUpdate::Put(entry)],
            None,
            "a put of the same version with another time",
        )?;
    }
    Ok(())
}

fn a_deletion_removes_the_entry(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.commit([put("a", 1)?, put("b", 2)?, put("c", 3)?, put("d", 900)?], None)?;
    let operations = [
        ("a", KvOperation::Delete),
        ("b", KvOperation::Purge),
        ("c", KvOperation::Expire),
        ("d", KvOperation::Delete),
    ];
    for (number, (key, operation)) in (10..).zip(operations) {
        let version = VersionToken::from_u64(number);
        let entry = KvEntry::tombstone(key_of(key)?, operation, version, time(number));
        subject.takes(
            [KvUpdate::Delete(entry)],
            None,
            &format!("{operation:?} of one of the keys"),
        )?;
    }
    ensure!(
        subject.storage()?.is_empty()?,
        "a storage of which every key was deleted says that it is not empty"
    );
    Ok(())
}

fn a_deletion_of_an_absent_key_changes_nothing(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([delete("a", 1)?], None, "a deletion in an empty storage")?;
    subject.commit([put("b", 2)?], None)?;
    subject.takes([delete("a", 3)?], None, "a deletion of what was never held")?;
    subject.commit([delete("b", 4)?], None)?;
    subject.takes([delete("b", 4)?, delete("b", 5)?], None, "deletions of what was deleted")
}

fn a_deleted_key_can_be_held_again(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    for number in 0..3 {
        subject.takes([put("a", 10 * number + 1)?], None, "a put")?;
        subject.takes([delete("a", 10 * number + 2)?], None, "a deletion")?;
    }
    subject.takes([put("a", 1)?], None, "a put after a deletion with a greater version")
}

fn the_last_change_of_a_key_counts(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    // Commits twice: with nothing held before, and over the result of the first time.
    for _ in 0..2 {
        let changes = [
            put("put.put", 1)?,
            put("put.delete", 2)?,
            delete("delete.put", 3)?,
            put("put.delete.put", 4)?,
            delete("delete.put.delete", 5)?,
            put("put.smaller", 900)?,
            put("put.put", 6)?,
            delete("put.delete", 7)?,
            put("delete.put", 8)?,
            delete("put.delete.put", 9)?,
            put("delete.put.delete", 10)?,
            put("put.smaller", 11)?,
            put("put.delete.put", 12)?,
            delete("delete.put.delete", 13)?,
        ];
        subject.takes(changes, None, "several changes of each key")?;
    }
    let expected = ["delete.put", "put.delete.put", "put.put", "put.smaller"];
    ensure_eq!(
        subject.keys().map(|key| key.as_str()).collect::<Vec<_>>(),
        expected,
        "the keys in the storage"
    );
    Ok(())
}

fn the_marker_changes_nothing(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([KvUpdate::CaughtUp], None, "the marker in an empty storage")?;
    subject.takes(
        [put("a", 1)?, KvUpdate::CaughtUp, put("b", 2)?],
        None,
        "the marker between two puts",
    )?;
    let checkpoint = checkpoint(7, 1);
    subject.takes([KvUpdate::CaughtUp], Some(checkpoint), "the marker alone, with a checkpoint")?;
    subject.takes([delete("a", 3)?, KvUpdate::CaughtUp], None, "the marker after a deletion")
}

fn changes_of_other_keys_change_nothing(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let keys =
        ["a", "a.b", "a.bc", "a.b.c", "ab", "b", "B", "A", "a-b", "a_b", "a=b", "a/b", "0", "00"];
    let puts =
        (1..).zip(keys).map(|(number, key)| put(key, number)).collect::<CheckResult<Vec<_>>>()?;
    subject.takes(puts, None, "puts of keys that are alike")?;
    for (number, key) in (100..).zip(keys) {
        subject.takes([put(key, number)?], None, &format!("another put of {key}"))?;
    }
    for (number, key) in (200..).zip(keys) {
        subject.takes([delete(key, number)?], None, &format!("a deletion of {key}"))?;
    }
    Ok(())
}

fn held_answers_in_the_order_of_the_keys(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let names = ["m", "c", "x", "a", "k"];
    let puts =
        (1..).zip(names).map(|(number, key)| put(key, number)).collect::<CheckResult<Vec<_>>>()?;
    subject.commit(&puts, None)?;
    let storage = subject.storage()?;
    ensure_eq!(storage.held(&[])?, [], "the answer for no key");
    let expected = puts.iter().filter_map(KvUpdate::entry).map(|entry| Some(held(entry)));
    let expected = expected.flat_map(|held| [held, None]).collect::<Vec<_>>();
    let mut asked = Vec::new();
    for name in names {
        asked.extend([key_of(name)?, key_of(&format!("{name}.absent"))?]);
    }
    ensure_eq!(
        storage.held(&asked)?,
        expected,
        "the answers for held keys, each before one that is not held"
    );
    asked.reverse();
    let backwards = expected.into_iter().rev().collect::<Vec<_>>();
    ensure_eq!(storage.held(&asked)?, backwards, "the answers for the same keys backwards");
    Ok(())
}

fn every_key_is_visited_once(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    // Makes several commits, with replacements and deletions, because some storages have a part for
    // each commit.
    for round in 0..4 {
        let mut changes = Vec::new();
        for number in 0..50 {
            changes.push(put(&format!("key.{number}"), 1000 * round + number)?);
        }
        changes.push(put(&format!("round.{round}"), round)?);
        changes.push(delete(&format!("key.{}", 7 * round), 1000 * round + 100)?);
        subject.commit(changes, None)?;
    }
    let mut count = 0;
    subject.storage()?.for_each_key(&mut |_, _| count += 1)?;
    ensure_eq!(count, 53, "how many keys are visited");
    subject.verify("after several commits")
}

fn storages_are_their_own(fixture: &StorageFixture) -> CheckResult {
    let mut one = fixture.storage()?;
    one.commit([put("a", 1)?, put("b", 2)?], Some(checkpoint(2, 1)))?;
    let mut other = fixture.storage()?;
    other.verify("new, after a commit to another storage")?;
    other.takes([put("a", 3)?, delete("b", 4)?], None, "a commit of its own")?;
    one.verify("after a commit to another storage")?;
    if fixture.is_durable() {
        one.reopen()?;
        other.reopen()?;
    }
    Ok(())
}
