//! Watches: the initial state first, then a marker, then every change.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select, try_join_all};

use super::observe::{Observer, WriteLog, fill, sorted_keys, yield_once};
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{KvError, KvOperation, KvUpdate, Store, VersionToken, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "watches";
    the_state_comes_first [Write, Watch]
        "A watch begins with the newest entry of every live key, then the caught-up marker.",
    the_state_may_be_large [Write, Watch]
        "The initial state has every live key, however many there are.",
    the_state_is_no_history [Write, Watch, History]
        "The initial state has only the newest entry of a key, even if the store holds several \
         versions.",
    changes_arrive_live [Write, Watch]
        "Puts, deletions and purges arrive, with their keys, values, versions and operations.",
    swaps_arrive_live [Write, Watch, CompareAndSwap]
        "Creates, updates and deletions by version arrive, and rejected ones do not.",
    nothing_is_lost_between_state_and_live [Write, Watch]
        "A write during the initial state arrives, once.",
    the_last_write_always_arrives [Write, Watch]
        "Under concurrent writers, the versions of a key never go back, nothing arrives twice, \
         and the last write arrives.",
    a_slow_reader_ends_at_the_final_state [Write, Watch]
        "A watch that is not read for a while ends at the final state of every key.",
    a_next_that_is_dropped_loses_nothing [Write, Watch]
        "Dropping the future of next loses no update.",
    watches_are_independent [Write, Watch]
        "Each watch delivers everything, whatever other watches do, even if they are dropped.",
    a_watch_ends_with_its_store [Write, Watch]
        "A watch whose store is deleted ends with StoreNotFound.",
};

/// Uses overwritten, deleted, purged and re-created keys. Tombstones may come.
pub async fn the_state_comes_first(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    for key in ["once", "twice", "again", "twice", "empty"] {
        let value = if key == "empty" { "" } else { key };
        log.note(key, store.put(key, value).await)?;
    }
    for key in ["deleted", "purged", "again"] {
        log.note(key, store.put(key, "value").await)?;
        let deletion =
            if key == "purged" { store.purge(key).await } else { store.delete(key).await };
        log.note(key, deletion)?;
    }
    log.note("again", store.put("again", "again").await)?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    ensure!(observer.watch().cursor().is_none(), "a watch that has delivered nothing has a cursor");
    let state = observer.state().await?;
    observer.ensure_in_order(&log)?;
    let newest = log.newest();
    for entry in &state {
        ensure_eq!(
            newest.get(entry.key.as_str()),
            Some(&entry.version),
            "the version of key {} in the state",
            entry.key
        );
        let value = if entry.is_tombstone() || entry.key == "empty" { "" } else { &entry.key };
        ensure_eq!(entry.value, value, "the value of key {} in the state", entry.key);
    }
    let live = state.into_iter().filter(|entry| !entry.is_tombstone()).collect::<Vec<_>>();
    ensure_eq!(
        sorted_keys(&live),
        ["again", "empty", "once", "twice"],
        "the live keys of the state"
    );
    Ok(())
}

/// Uses 3,000 keys.
pub async fn the_state_may_be_large(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let written = fill(&store, 3000, "value").await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let state = observer.state().await?;
    ensure!(
        sorted_keys(&state).into_iter().eq(written.keys()),
        "the state has {} of 3,000 keys",
        state.len()
    );
    Ok(())
}

/// Uses live and deleted keys with several versions each.
pub async fn the_state_is_no_history(fixture: &Fixture) -> CheckResult {
    let store = fixture
        .store_with(fixture.config().history(fixture.capabilities().max_history.min(5)))
        .await?;
    let mut log = WriteLog::default();
    for value in ["1", "2", "3"] {
        for key in ["live", "deleted"] {
            log.note(key, store.put(key, value).await)?;
        }
    }
    log.note("deleted", store.delete("deleted").await)?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let newest = log.newest();
    for entry in observer.state().await? {
        let expected = newest.get(entry.key.as_str());
        ensure_eq!(Some(&entry.version), expected, "the version of key {} in the state", entry.key);
    }
    // A resumed watch also continues the initial state, not the history.
    ensure!(
        observer.entries().iter().any(|entry| entry.key == "live"),
        "the live key is not in the state"
    );
    Ok(())
}

async fn ensure_arrives(
    observer: &mut Observer<'_>,
    key: &str,
    version: VersionToken,
    operation: KvOperation,
    value: &str,
) -> CheckResult {
    // Writes one at a time, so that no update can be superseded.
    let entry = observer.entry(&format!("{operation:?} of key {key}")).await?;
    let found = (entry.key.as_str(), entry.version, entry.operation, entry.value.as_ref());
    ensure_eq!(found, (key, version, operation, value.as_bytes()), "the update that arrived");
    Ok(())
}

/// Writes one at a time, so that no update can be superseded.
pub async fn changes_arrive_live(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    for key in ["one", "two"] {
        for value in ["1", "2"] {
            let version = store.put(key, value).await?;
            ensure_arrives(&mut observer, key, version, KvOperation::Put, value).await?;
        }
        let version = store.delete(key).await?;
        ensure_arrives(&mut observer, key, version, KvOperation::Delete, "").await?;
        let version = store.put(key, "3").await?;
        ensure_arrives(&mut observer, key, version, KvOperation::Put, "3").await?;
        let version = store.purge(key).await?;
        ensure_arrives(&mut observer, key, version, KvOperation::Purge, "").await?;
    }
    let answers = store.put_many([("a", "1"), ("b", "2"), ("c", "3")]).await;
    for ((key, value), answer) in [("a", "1"), ("b", "2"), ("c", "3")].into_iter().zip(answers) {
        ensure_arrives(&mut observer, key, answer?, KvOperation::Put, value).await?;
    }
    Ok(())
}

/// Writes one at a time, with rejected writes between.
pub async fn swaps_arrive_live(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    for _ in 0..2 {
        let first = store.create("key", "1").await?;
        ensure_arrives(&mut observer, "key", first, KvOperation::Put, "1").await?;
        let lost = store.create("key", "lost").await;
        ensure_error!(lost, KvError::AlreadyExists { .. }, "create over a live value");
        let second = store.update("key", "2", first).await?;
        ensure_arrives(&mut observer, "key", second, KvOperation::Put, "2").await?;
        let lost = store.update("key", "lost", first).await;
        ensure_error!(lost, KvError::RevisionMismatch { .. }, "update with an old version");
        let lost = store.delete_with_version("key", first).await;
        ensure_error!(lost, KvError::RevisionMismatch { .. }, "a deletion with an old version");
        let third = store.delete_with_version("key", second).await?;
        ensure_arrives(&mut observer, "key", third, KvOperation::Delete, "").await?;
    }
    Ok(())
}

/// Writes before the first update is read, and between any two updates of the initial state.
pub async fn nothing_is_lost_between_state_and_live(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    for number in 0..40 {
        let key = format!("key.{number}");
        log.note(&key, store.put(&key, "state").await)?;
    }
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    for number in 0..60 {
        // Uses delivered keys, undelivered keys, new keys and deletions.
        let key = format!("key.{}", number * 7 % 50);
        let write =
            if number % 5 == 4 { store.delete(&key).await } else { store.put(&key, "live").await };
        log.note(&key, write)?;
        observer.next("the state or a live update").await?;
    }
    observer.reach_all(&log.newest()).await?;
    while !observer.is_caught_up() {
        observer.next("the caught-up marker").await?;
    }
    observer.ensure_in_order(&log)
}

/// Puts and deletes a few keys of its own.
async fn write_some(store: &Store, writer: usize, rounds: usize) -> CheckResult<WriteLog> {
    let mut log = WriteLog::default();
    for round in 0..rounds {
        let key = format!("writer{writer}.{}", round % 3);
        let write = match round % 7 {
            5 => store.delete(&key).await,
            6 => store.purge(&key).await,
            _ => store.put(&key, format!("{round}")).await,
        };
        log.note(&key, write)?;
        yield_once().await;
    }
    Ok(log)
}

/// Reads until the writes are done, and then drops the pending read.
async fn read_during<T>(
    observer: &mut Observer<'_>,
    writes: impl Future<Output = CheckResult<T>>,
) -> CheckResult<T> {
    let reads = async {
        loop {
            if let Err(failure) = observer.next("updates of several writers").await {
                return failure;
            }
        }
    };
    match select(pin!(reads), pin!(writes)).await {
        Either::Left((failure, _)) => Err(failure),
        Either::Right((written, _)) => written,
    }
}

/// Uses four writers, one reader that starts before them, and one that starts in the middle.
pub async fn the_last_write_always_arrives(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    let mut early = Observer::open(fixture, &store, WatchScope::All).await?;
    let written =
        read_during(&mut early, try_join_all((0..4).map(|writer| write_some(&store, writer, 60))))
            .await?;
    written.into_iter().for_each(|part| log.append(part));
    let mut late = Observer::open(fixture, &store, WatchScope::prefix("writer")).await?;
    let written =
        read_during(&mut late, try_join_all((0..4).map(|writer| write_some(&store, writer, 60))))
            .await?;
    written.into_iter().for_each(|part| log.append(part));
    for observer in [&mut early, &mut late] {
        observer.reach_all(&log.newest()).await?;
        // A second delivery would arrive before this.
        let version = log.note("writer.last", store.put("writer.last", "last").await)?;
        observer.reach("writer.last", version).await?;
        observer.ensure_in_order(&log)?;
        ensure!(
            observer.is_caught_up(),
            "live updates have arrived, and the caught-up marker has not"
        );
    }
    Ok(())
}

/// Makes 2,000 writes with half a megabyte, and deletions, before the first read.
pub async fn a_slow_reader_ends_at_the_final_state(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    let mut before = Observer::open(fixture, &store, WatchScope::All).await?;
    let mut within = Observer::open(fixture, &store, WatchScope::All).await?;
    within.state().await?;
    for round in 0..4 {
        let items = (0..500)
            .map(|n| (format!("key.{}", n % 40), format!("{round}.{n}.{}", "v".repeat(250))));
        let items = items.collect::<Vec<_>>();
        let answers = store.put_many(items.clone()).await;
        for ((key, _), answer) in items.iter().zip(answers) {
            log.note(key, answer)?;
        }
        for key in ["key.1", "key.2"] {
            log.note(key, store.delete(key).await)?;
        }
    }
    for observer in [&mut before, &mut within] {
        observer.reach_all(&log.newest()).await?;
        let version = log.note("last", store.put("last", "last").await)?;
        observer.reach("last", version).await?;
        observer.ensure_in_order(&log)?;
        ensure!(
            observer.is_caught_up(),
            "live updates have arrived, and the caught-up marker has not"
        );
    }
    Ok(())
}

/// Polls for each update many times, for almost no time each.
pub async fn a_next_that_is_dropped_loses_nothing(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    for number in 0..20 {
        let key = format!("key.{number}");
        log.note(&key, store.put(&key, "state").await)?;
    }
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    for number in 0..120_u64 {
        // Polls with an update in transit, with none, and with one that comes after the future was
        // dropped.
        if number % 3 == 0 {
            let key = format!("key.{}", number % 30);
            log.note(&key, store.put(&key, "live").await)?;
        }
        let patience = Duration::from_micros(number % 4 * 300);
        if let Ok(item) = tokio::time::timeout(patience, observer.watch().next()).await {
            observer.check(item, "an update")?;
        }
    }
    observer.reach_all(&log.newest()).await?;
    while !observer.is_caught_up() {
        observer.next("the caught-up marker").await?;
    }
    observer.ensure_in_order(&log)
}

/// Uses watches of one scope, of different ones, and next to some that are dropped at every stage.
pub async fn watches_are_independent(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    log.note("a.1", store.put("a.1", "state").await)?;
    log.note("b.1", store.put("b.1", "state").await)?;
    let mut one = Observer::open(fixture, &store, WatchScope::All).await?;
    let mut two = Observer::open(fixture, &store, WatchScope::All).await?;
    let mut part = Observer::open(fixture, &store, WatchScope::prefix("a.")).await?;
    drop(store.watch(WatchScope::All).await?);
    one.state().await?;
    let mut dropped = Observer::open(fixture, &store, WatchScope::All).await?;
    dropped.next("the state").await?;
    drop(dropped);
    for value in ["1", "2", "3"] {
        let mut dropped = Observer::open(fixture, &store, WatchScope::prefix("a.")).await?;
        dropped.state().await?;
        let version = log.note("a.1", store.put("a.1", value).await)?;
        dropped.reach("a.1", version).await?;
        drop(dropped);
        log.note("b.1", store.put("b.1", value).await)?;
    }
    let newest = log.newest();
    for observer in [&mut one, &mut two] {
        observer.reach_all(&newest).await?;
        observer.ensure_in_order(&log)?;
    }
    let newest = newest.into_iter().filter(|(key, _)| key.starts_with("a.")).collect();
    part.reach_all(&newest).await?;
    part.ensure_in_order(&log)?;
    let keys = part.entries().iter().map(|entry| entry.key.as_str()).collect::<BTreeSet<_>>();
    ensure_eq!(keys, BTreeSet::from(["a.1"]), "the keys that arrived in the scope a.");
    Ok(())
}

/// Checks a live watch, and one whose initial state was not read.
pub async fn a_watch_ends_with_its_store(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("key", "value").await?;
    let mut live = Observer::open(fixture, &store, WatchScope::All).await?;
    live.state().await?;
    let mut unread = store.watch(WatchScope::All).await?;
    fixture.connection().delete_store(store.name()).await?;
    fixture.step("waiting for a watch to end whose store was deleted");
    // Updates in transit may still arrive.
    for watch in [live.watch(), &mut unread] {
        loop {
            match watch.next().await {
                Some(Ok(KvUpdate::CaughtUp | KvUpdate::Put(_) | KvUpdate::Delete(_))) => {}
                Some(Err(KvError::StoreNotFound { .. })) => break,
                Some(Err(error)) => {
                    let message =
                        format!("expected the watch to end with StoreNotFound, found: {error}");
                    return Err(CheckFailure::new(message));
                }
                None => return Err(CheckFailure::new("the watch ended without StoreNotFound")),
            }
        }
        ensure!(watch.next().await.is_none(), "a watch goes on after the error that ended it");
    }
    let late = match store.watch(WatchScope::All).await {
        Ok(watch) => watch.next().await.transpose(),
        Err(error) => Err(error),
    };
    ensure_error!(late, KvError::StoreNotFound { .. }, "a watch of a store that was deleted");
    Ok(())
}
