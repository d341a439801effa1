//! Markers: the caught-up marker says that the initial state has been delivered.
//!
//! A replica drops the keys that a watch has not delivered before its marker, so that a marker that
//! comes too early loses data.

use std::collections::BTreeSet;

use super::observe::{Observer, STABLE, ensure_stable_once, fill, under_writes, yield_once};
use super::{Check, CheckResult, Fixture};
use crate::store::{KvError, KvOperation, Store, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "markers";
    an_empty_store_is_caught_up [Watch]
        "The caught-up marker comes on an empty store too.",
    an_empty_scope_is_caught_up [Write, Watch]
        "The caught-up marker comes on a scope without keys too.",
    the_marker_comes_once [Write, Watch]
        "The caught-up marker comes once per watch.",
    the_marker_comes_after_every_key [Write, Watch]
        "Every key that is live from before the watch to the caught-up marker arrives before it, \
         overwritten or not.",
    the_marker_comes_after_every_key_in_a_history [Write, Watch, History]
        "The same in a store with a history, if a version that leaves it has not been delivered \
         yet.",
    the_marker_of_a_resumed_watch_comes_after_every_change [Write, Watch, WatchResume]
        "Every key that changed between the cursor and the resuming arrives before the caught-up \
         marker.",
};

/// Also checks that a later write arrives.
pub async fn an_empty_store_is_caught_up(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    ensure_eq!(observer.state().await?, [], "the state of an empty store");
    if store.capabilities().write {
        let version = store.put("key", "value").await?;
        observer.reach("key", version).await?;
    }
    Ok(())
}

/// Uses a key and a prefix without keys, and no prefixes at all, next to keys elsewhere.
pub async fn an_empty_scope_is_caught_up(fixture: &Fixture) -> CheckResult {
    for scope in
        [WatchScope::key("key")?, WatchScope::prefix("key"), WatchScope::Prefixes(Vec::new())]
    {
        let store = fixture.store().await?;
        store.put("elsewhere", "value").await?;
        let mut observer = Observer::open(fixture, &store, scope.clone()).await?;
        ensure_eq!(observer.state().await?, [], "the state of the empty scope {scope:?}");
        if scope.matches("key") {
            store.put("elsewhere", "value").await?;
            let version = store.put("key", "value").await?;
            let entry = observer.entry("the put in scope").await?;
            let found = (entry.key.as_str(), entry.version, entry.operation);
            ensure_eq!(found, ("key", version, KvOperation::Put), "the first update in the scope");
        }
    }
    Ok(())
}

/// Reads initial state, live updates and deletions. Every watch of every check also fails on a
/// second marker.
pub async fn the_marker_comes_once(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for key in ["a", "b", "c"] {
        store.put(key, "value").await?;
    }
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    for _ in 0..20 {
        let version = store.put("a", "value").await?;
        observer.reach("a", version).await?;
        let version = store.delete("b").await?;
        observer.reach("b", version).await?;
    }
    Ok(())
}

/// Opens six watches, one after the other, while every key is overwritten repeatedly.
pub async fn the_marker_comes_after_every_key(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    fill(&store, STABLE, "value").await?;
    for number in 0..6 {
        let scope = if number % 2 == 0 { WatchScope::All } else { WatchScope::prefix("stable.") };
        let mut observer = Observer::open(fixture, &store, scope).await?;
        under_writes(&store, read_to_the_marker(&store, &mut observer, number * 50)).await?;
    }
    Ok(())
}

/// Some keys are overwritten until the version that the watch was about to deliver is no longer
/// held, and another key is purged. No other key is written, so that no later write causes the rest
/// of the state to arrive.
pub async fn the_marker_comes_after_every_key_in_a_history(fixture: &Fixture) -> CheckResult {
    for history in [2, fixture.capabilities().max_history.min(5)] {
        let store = fixture.store_with(fixture.config().history(history)).await?;
        store.put("purged", "value").await?;
        fill(&store, STABLE, "value").await?;
        let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
        for number in [0, 1, 50, 200] {
            let key = format!("stable.{number:05}");
            for _ in 0..history {
                store.put(&key, "newer").await?;
            }
        }
        store.purge("purged").await?;
        observer.state().await?;
        let live =
            observer.entries().iter().filter(|entry| !entry.is_tombstone()).map(|entry| &entry.key);
        ensure_stable_once(live.collect::<BTreeSet<_>>())?;
        let last = store.put("stable.00299", "last").await?;
        observer.reach("stable.00299", last).await?;
    }
    Ok(())
}

/// Reads some updates, overwrites everything at once, and reads the rest.
async fn read_to_the_marker(
    store: &Store,
    observer: &mut Observer<'_>,
    before: usize,
) -> CheckResult {
    while !observer.is_caught_up() {
        if observer.entries().len() == before {
            fill(store, STABLE, "in between").await?;
        }
        observer.next("the caught-up marker").await?;
        yield_once().await;
    }
    // A key that was overwritten after it was delivered arrived again.
    let live =
        observer.entries().iter().filter(|entry| !entry.is_tombstone()).map(|entry| &entry.key);
    ensure_stable_once(live.collect::<BTreeSet<_>>())
}

/// Opens six watches from one cursor. Every key was written after it, and is overwritten
/// repeatedly.
pub async fn the_marker_of_a_resumed_watch_comes_after_every_change(
    fixture: &Fixture,
) -> CheckResult {
    let store = fixture.store().await?;
    store.put("anchor", "value").await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    let cursor = observer.cursor()?;
    drop(observer);
    fill(&store, STABLE, "value").await?;
    for number in 0..6 {
        let mut observer =
            match Observer::try_resume(fixture, &store, WatchScope::All, cursor).await {
                // At first the cursor must not expire, because only later updates were overwritten.
                // After a while it may.
                Err(KvError::CursorExpired { .. }) if number > 0 => return Ok(()),
                resumed => resumed?,
            };
        under_writes(&store, read_to_the_marker(&store, &mut observer, number * 50)).await?;
    }
    Ok(())
}
