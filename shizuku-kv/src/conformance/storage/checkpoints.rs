//! The checkpoint, and the content of a reopened storage.

use std::time::{Duration, SystemTime};

use super::check::{StorageCheck, storage_checks};
use super::subject::{StorageFixture, checkpoint, delete, put, time};
use crate::conformance::CheckResult;
use crate::replica::Checkpoint;
use crate::store::WatchCursor;

pub(super) const CHECKS: &[StorageCheck] = storage_checks! {
    the_checkpoint_is_that_of_the_last_commit []
        "The checkpoint is that of the last commit, whatever the earlier one was.",
    a_commit_without_a_checkpoint_leaves_none []
        "After a commit without a checkpoint there is none, until the next commit with one.",
    a_commit_of_nothing_moves_the_checkpoint []
        "The checkpoint of a commit is stored, even if the commit has no changes.",
    checkpoints_come_back_as_they_were []
        "A checkpoint is the same in every byte: store, position, time and scope.",
    an_empty_storage_opens_again_as_one [Durable]
        "A storage without commits is empty when it is reopened.",
    every_entry_is_found_again [Durable]
        "All commits are present when the storage is reopened: keys, versions, times and \
         checkpoint.",
    a_deleted_key_stays_deleted [Durable]
        "A deleted or replaced entry does not come back when the storage is reopened.",
    no_checkpoint_stays_no_checkpoint [Durable]
        "After a commit without a checkpoint there is none, even when the storage is reopened. \
         The changes are present.",
    opening_again_and_again_changes_nothing [Durable]
        "Reopening a storage changes nothing in it, and it accepts commits as before.",
    many_keys_are_there_again [Durable]
        "All commits are present when the storage is reopened, however many.",
};

fn the_checkpoint_is_that_of_the_last_commit(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([put("a", 1)?], Some(checkpoint(1, 1)), "a commit with a checkpoint")?;
    subject.takes([put("b", 2)?], Some(checkpoint(2, 1)), "one with a later checkpoint")?;
    subject.takes([put("b", 3)?], Some(checkpoint(2, 1)), "one with the same checkpoint")?;
    // A recreated store starts again.
    subject.takes([put("a", 1)?], Some(checkpoint(1, 1)), "one with an earlier checkpoint")?;
    subject.takes([delete("a", 2)?], Some(checkpoint(2, 2)), "one with another scope")
}

fn a_commit_without_a_checkpoint_leaves_none(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([put("a", 1)?], None, "a commit without a checkpoint, the first")?;
    subject.takes([put("b", 2)?], Some(checkpoint(2, 1)), "a commit with a checkpoint")?;
    subject.takes(
        [put("c", 3)?],
        None,
        "a commit without a checkpoint after one with a checkpoint",
    )?;
    subject.takes([delete("a", 4)?], None, "another one")?;
    subject.takes([put("d", 5)?], Some(checkpoint(5, 1)), "a commit with a checkpoint again")?;
    subject.takes([], None, "a commit of nothing without a checkpoint")
}

fn a_commit_of_nothing_moves_the_checkpoint(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([], Some(checkpoint(1, 1)), "a commit of nothing in an empty storage")?;
    subject.takes([put("a", 2)?], Some(checkpoint(2, 1)), "a commit of something")?;
    subject.takes([], Some(checkpoint(3, 1)), "a commit of nothing")
}

fn checkpoints_come_back_as_they_were(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let bytes = std::array::from_fn::<u8, 16, _>(|index| 0xf0 | index as u8);
    let times = [
        SystemTime::UNIX_EPOCH,
        time(0),
        SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::MAX / 2),
    ];
    for (incarnation, scope) in
        [([0; 16], [0; 16]), ([0xff; 16], [0xff; 16]), (bytes, [0; 16]), ([0; 16], bytes)]
    {
        for position in [0, 1, u64::from(u32::MAX) + 1, u64::MAX] {
            for as_of in times {
                let cursor = WatchCursor::new(incarnation, position, as_of);
                subject.takes(
                    [],
                    Some(Checkpoint::new(cursor, scope)),
                    "a commit of a checkpoint",
                )?;
            }
        }
    }
    Ok(())
}

fn an_empty_storage_opens_again_as_one(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.reopen()?;
    subject.takes([put("a", 1)?], Some(checkpoint(1, 1)), "its first commit")
}

fn every_entry_is_found_again(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.commit([put("a", 1)?, put("b", 2)?, put("c", 3)?], Some(checkpoint(3, 1)))?;
    subject.reopen()?;
    subject.takes(
        [put("a", 4)?],
        Some(checkpoint(4, 1)),
        "a commit to a storage that was opened again",
    )?;
    subject.reopen()?;
    subject.commit([], Some(checkpoint(5, 2)))?;
    subject.reopen()
}

fn a_deleted_key_stays_deleted(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.commit([put("a", 1)?, put("b", 2)?, put("c", 900)?], Some(checkpoint(3, 1)))?;
    subject.commit([delete("a", 4)?, put("c", 5)?], Some(checkpoint(5, 1)))?;
    subject.reopen()?;
    subject.commit(
        [put("d", 6)?, delete("d", 7)?, delete("b", 8)?, delete("c", 9)?],
        Some(checkpoint(9, 1)),
    )?;
    subject.reopen()?;
    ensure!(
        subject.storage()?.is_empty()?,
        "the emptied storage is not empty after it was reopened"
    );
    subject.takes([put("a", 1)?], Some(checkpoint(10, 1)), "a put of what was deleted before")?;
    subject.reopen()
}

fn no_checkpoint_stays_no_checkpoint(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.commit([put("a", 1)?, put("b", 2)?], Some(checkpoint(2, 1)))?;
    subject.commit([put("c", 3)?, delete("a", 4)?], None)?;
    subject.reopen()?;
    subject.commit([put("d", 5)?], None)?;
    subject.reopen()?;
    subject.commit([put("e", 6)?], Some(checkpoint(6, 1)))?;
    subject.reopen()
}

fn opening_again_and_again_changes_nothing(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    for number in 1..=5 {
        subject.commit(
            [put(&format!("key.{number}"), number)?, put("all", number)?],
            Some(checkpoint(number, 1)),
        )?;
        subject.reopen()?;
        subject.reopen()?;
    }
    Ok(())
}

fn many_keys_are_there_again(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    for round in 0..5 {
        // Each round replaces half of the changes of the previous one.
        let numbers = 500 * round..500 * round + 1000;
        let changes = numbers.map(|number| put(&format!("key.{number}"), 10_000 * round + number));
        subject.commit(changes.collect::<CheckResult<Vec<_>>>()?, Some(checkpoint(round, 1)))?;
    }
    subject.reopen()
}
