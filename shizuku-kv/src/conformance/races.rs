//! Races: guarantees for several writers of one key.

use std::collections::HashSet;

use futures_util::future::{join, join_all, try_join_all};

use super::observe::yield_once;
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{KvError, KvOperation, Store};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "races";
    no_update_is_lost [Write, CompareAndSwap]
        "If several updates expect the same version, one wins, and the others report the conflict.",
    one_of_many_creates_wins [Write, CompareAndSwap]
        "If several creates of an absent key run at the same time, one wins, and the others \
         return AlreadyExists.",
    one_of_many_deletions_wins [Write, CompareAndSwap]
        "If several deletions expect the same version, one wins, and the others return \
         RevisionMismatch.",
    create_against_deletions_does_not_fail [Write, CompareAndSwap]
        "create of a key that is being deleted repeatedly returns AlreadyExists only over a live \
         value.",
    create_and_update_do_not_both_win [Write, CompareAndSwap]
        "If a create and an update expect the same tombstone, one wins, and the other reports \
         the conflict.",
    concurrent_puts_all_take_effect [Write]
        "Concurrent writes have a version each, and the newest entry is one of them.",
};

async fn increment(store: &Store) -> CheckResult {
    loop {
        let Some(entry) = store.get("counter").await? else {
            return Err(CheckFailure::new("the counter is absent"));
        };
        let count =
            std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse::<u32>().ok());
        let Some(count) = count else {
            return Err(CheckFailure::new("the counter is not a number"));
        };
        // Lets every other writer read the value that this one is about to replace.
        yield_once().await;
        match store.update("counter", (count + 1).to_string(), entry.version).await {
            Ok(_) => return Ok(()),
            Err(KvError::RevisionMismatch { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Eight writers count to 80 together, ten times each.
pub async fn no_update_is_lost(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("counter", "0").await?;
    fixture.step("counting with eight writers");
    let writers = (0..8).map(async |_| {
        for _ in 0..10 {
            increment(&store).await?;
        }
        CheckResult::Ok(())
    });
    try_join_all(writers).await?;
    let counter = store.get("counter").await?.map(|entry| entry.value);
    ensure_eq!(counter.as_deref(), Some(b"80".as_slice()), "the counter after 80 increments");
    Ok(())
}

/// Makes sixteen creates, of a key never written and over tombstones.
pub async fn one_of_many_creates_wins(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for round in 0..5 {
        let creates = (0..16).map(|writer| store.create("key", format!("{writer}")));
        let mut winner = None;
        for (writer, answer) in join_all(creates).await.into_iter().enumerate() {
            match answer {
                Ok(version) => {
                    ensure!(winner.is_none(), "two creates of one key have won");
                    winner = Some((writer.to_string(), version));
                }
                Err(KvError::AlreadyExists { .. }) => {}
                Err(error) => {
                    let message =
                        format!("expected a create to win or find AlreadyExists, found: {error}");
                    return Err(CheckFailure::new(message));
                }
            }
        }
        let found = store.get("key").await?;
        let found =
            found.map(|entry| (String::from_utf8_lossy(&entry.value).into_owned(), entry.version));
        ensure!(winner.is_some(), "none of 16 creates of an absent key has won");
        ensure_eq!(found, winner, "value and version of the create that won");
        if round % 2 == 0 {
            store.delete("key").await?
        } else {
            store.purge("key").await?
        };
    }
    Ok(())
}

/// Makes eight deletions.
pub async fn one_of_many_deletions_wins(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = store.put("key", "value").await?;
    let mut won = Vec::new();
    for answer in join_all((0..8).map(|_| store.delete_with_version("key", version))).await {
        match answer {
            Ok(version) => won.push(version),
            Err(KvError::RevisionMismatch { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure_eq!(won.len(), 1, "deletions with the same version that have won");
    let found = store.entry("key").await?.map(|entry| (entry.operation, entry.version));
    ensure_eq!(found, won.first().map(|version| (KvOperation::Delete, *version)), "the tombstone");
    Ok(())
}

/// The key is absent until the one create succeeds, so that any entry in its way is a tombstone.
pub async fn create_against_deletions_does_not_fail(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for round in 0..20 {
        store.delete("key").await?;
        let deletions = async {
            for number in 0..6 {
                if (round + number) % 3 == 0 {
                    store.purge("key").await?
                } else {
                    store.delete("key").await?
                };
                yield_once().await;
            }
            CheckResult::Ok(())
        };
        let create = async {
            yield_once().await;
            store.create("key", "value").await
        };
        let others = try_join_all((0..3).map(|_| store.delete("key")));
        let (created, (deleted, others)) = join(create, join(deletions, others)).await;
        deleted?;
        others?;
        if let Err(error) = created {
            let message = format!("create of a key that was never live while it ran: {error}");
            return Err(CheckFailure::new(message));
        }
    }
    Ok(())
}

/// Both see the tombstone, and both write.
pub async fn create_and_update_do_not_both_win(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for _ in 0..10 {
        store.put("key", "old").await?;
        let tombstone = store.delete("key").await?;
        let (create, update) =
            join(store.create("key", "created"), store.update("key", "updated", tombstone)).await;
        let value = store.get("key").await?.map(|entry| entry.value);
        match (create, update) {
            (Ok(_), Err(KvError::RevisionMismatch { .. })) => {
                ensure_eq!(
                    value.as_deref(),
                    Some(b"created".as_slice()),
                    "the value after create has won"
                );
            }
            (Err(KvError::AlreadyExists { .. }), Ok(_)) => {
                ensure_eq!(
                    value.as_deref(),
                    Some(b"updated".as_slice()),
                    "the value after update has won"
                );
            }
            (create, update) => {
                let message =
                    format!("expected one to win: create found {create:?}, update {update:?}");
                return Err(CheckFailure::new(message));
            }
        }
    }
    Ok(())
}

/// Makes thirty-two puts and eight deletions.
pub async fn concurrent_puts_all_take_effect(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let puts = join_all((0..32).map(|number| store.put("key", format!("{number}"))));
    let (puts, deletions) = join(puts, join_all((0..8).map(|_| store.delete("key")))).await;
    let mut versions = HashSet::new();
    for answer in puts.into_iter().chain(deletions) {
        ensure!(versions.insert(answer?), "two writes to one key have the same version");
    }
    let newest = store.entry("key").await?.map(|entry| entry.version);
    ensure!(
        newest.is_some_and(|newest| versions.contains(&newest)),
        "the newest entry is of none of the writes"
    );
    Ok(())
}
