//! Scans and listings: every key that is live throughout, exactly once.

use std::collections::BTreeMap;

use super::observe::{STABLE, ensure_stable_once, fill, sorted_keys, under_writes, yield_once};
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{KvEntry, KvError, Store, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "scans";
    an_empty_store_has_nothing_to_list []
        "keys and scan of an empty store end at once.",
    scans_have_live_keys_only [Write]
        "keys and scan have every live key exactly once, with its newest value, and no deleted \
         one.",
    scans_take_many_keys [Write]
        "keys and scan have every live key exactly once, however many there are.",
    a_scan_in_a_history_has_the_newest [Write, History]
        "keys and scan have a key once, even if the store holds several versions of it.",
    a_scan_under_writes_has_every_key_once [Write]
        "Every key that is live throughout a scan appears in it exactly once, overwritten \
         meanwhile or not.",
    a_listing_under_writes_has_every_key_once [Write]
        "Every key that is live throughout a listing appears in it exactly once, overwritten \
         meanwhile or not.",
    a_scan_in_a_history_under_writes_has_every_key_once [Write, History]
        "The same in a store with a history, if a version that leaves it has not been listed yet.",
    a_scan_next_to_writers_has_every_key_once [Write]
        "Every key that is live throughout a scan appears in it exactly once, whatever others \
         write.",
    a_dropped_scan_leaves_nothing_behind [Write]
        "Dropping a scan or a listing at any time frees everything.",
};

/// Checks both.
pub async fn an_empty_store_has_nothing_to_list(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    fixture.step("scanning an empty store");
    ensure_eq!(store.scan(WatchScope::All).try_collect().await?, [], "a scan of an empty store");
    fixture.step("listing the keys of an empty store");
    let keys = store.keys(WatchScope::All).try_collect().await?;
    ensure!(keys.is_empty(), "a listing of an empty store has {} keys", keys.len());
    Ok(())
}

async fn ensure_lists(store: &Store, expected: &BTreeMap<String, String>) -> CheckResult {
    let scan = store.scan(WatchScope::All).try_collect().await?;
    ensure!(
        scan.iter().all(|entry| !entry.is_tombstone()),
        "a scan has the tombstone of a key that was deleted"
    );
    ensure_eq!(sorted_keys(&scan), expected.keys().collect::<Vec<_>>(), "the keys of a scan");
    for entry in &scan {
        let value = expected.get(entry.key.as_str()).map(String::as_bytes);
        ensure_eq!(Some(entry.value.as_ref()), value, "the value of key {} in a scan", entry.key);
    }
    let mut keys = store.keys(WatchScope::All).try_collect().await?;
    keys.sort_unstable();
    ensure_eq!(
        keys,
        expected.keys().map(String::as_str).collect::<Vec<_>>(),
        "the keys of a listing"
    );
    Ok(())
}

/// Uses overwritten, deleted, purged and re-created keys.
pub async fn scans_have_live_keys_only(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut expected = BTreeMap::new();
    for key in ["once", "twice", "deleted", "purged", "again", "empty"] {
        store.put(key, "first").await?;
        expected.insert(key.to_owned(), "first".to_owned());
    }
    store.put("twice", "second").await?;
    expected.insert("twice".to_owned(), "second".to_owned());
    store.delete("deleted").await?;
    expected.remove("deleted");
    store.purge("purged").await?;
    expected.remove("purged");
    store.delete("never").await?;
    store.delete("again").await?;
    store.put("again", "third").await?;
    expected.insert("again".to_owned(), "third".to_owned());
    store.put("empty", "").await?;
    expected.insert("empty".to_owned(), String::new());
    ensure_lists(&store, &expected).await?;
    for key in ["once", "twice", "again", "empty"] {
        store.delete(key).await?;
    }
    ensure_lists(&store, &BTreeMap::new()).await
}

/// Uses 3,000 keys.
pub async fn scans_take_many_keys(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let expected = fill(&store, 3000, "value").await?;
    ensure_lists(&store, &expected).await
}

/// Uses live and deleted keys with several versions each.
pub async fn a_scan_in_a_history_has_the_newest(fixture: &Fixture) -> CheckResult {
    let store = fixture
        .store_with(fixture.config().history(fixture.capabilities().max_history.min(5)))
        .await?;
    for value in ["1", "2", "3"] {
        for key in ["live", "deleted", "purged"] {
            store.put(key, value).await?;
        }
    }
    store.delete("deleted").await?;
    store.purge("purged").await?;
    ensure_lists(&store, &BTreeMap::from([("live".to_owned(), "3".to_owned())])).await
}

/// Overwrites every stable key, creates new ones, and deletes others.
async fn disturb(store: &Store, round: usize) -> CheckResult {
    fill(store, STABLE, &format!("round {round}")).await?;
    for answer in store.put_many((0..20).map(|n| (format!("new.{round}.{n}"), "new"))).await {
        answer?;
    }
    store.delete(format!("doomed.{round}")).await?;
    store.purge(format!("new.{round}.0")).await?;
    Ok(())
}

/// Writes while the scan is after its first, its second and one of its last items.
pub async fn a_scan_under_writes_has_every_key_once(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    fill(&store, STABLE, &"v".repeat(500)).await?;
    for round in 0..3 {
        store.put(format!("doomed.{round}"), "value").await?;
    }
    let scan = store.scan(WatchScope::All);
    let mut found: Vec<KvEntry> = Vec::new();
    for (round, until) in [1, 2, STABLE / 2].into_iter().enumerate() {
        while found.len() < until {
            match scan.next().await {
                Some(entry) => found.push(entry?),
                None => {
                    return Err(CheckFailure::new(format!(
                        "the scan ended after {} items",
                        found.len()
                    )));
                }
            }
        }
        disturb(&store, round).await?;
    }
    while let Some(entry) = scan.next().await {
        found.push(entry?);
    }
    ensure!(found.iter().all(|entry| !entry.is_tombstone()), "a scan has a tombstone");
    ensure_stable_once(found.iter().map(|entry| &entry.key))
}

/// Does the same for `keys`.
pub async fn a_listing_under_writes_has_every_key_once(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    fill(&store, STABLE, "value").await?;
    for round in 0..2 {
        store.put(format!("doomed.{round}"), "value").await?;
    }
    let listing = store.keys(WatchScope::All);
    let mut found = Vec::new();
    for (round, until) in [1, STABLE / 2].into_iter().enumerate() {
        while found.len() < until {
            match listing.next().await {
                Some(key) => found.push(key?),
                None => {
                    return Err(CheckFailure::new(format!(
                        "the listing ended after {} keys",
                        found.len()
                    )));
                }
            }
        }
        disturb(&store, round).await?;
    }
    while let Some(key) = listing.next().await {
        found.push(key?);
    }
    ensure_stable_once(&found)
}

/// Uses more keys than a backend delivers at a time. A few of the later ones are overwritten until
/// their initial version is no longer held, and others are deleted.
pub async fn a_scan_in_a_history_under_writes_has_every_key_once(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().history(2)).await?;
    fill(&store, STABLE, &"v".repeat(40_000)).await?;
    for key in ["deleted.1", "deleted.2"] {
        store.put(key, "value").await?;
        store.delete(key).await?;
    }
    let (scan, listing) = (store.scan(WatchScope::All), store.keys(WatchScope::All));
    let mut found = Vec::new();
    let mut listed = Vec::new();
    found.extend(scan.next().await.transpose()?);
    listed.extend(listing.next().await.transpose()?);
    for number in [280, 290] {
        for _ in 0..2 {
            store.put(format!("stable.{number:05}"), "newer").await?;
        }
    }
    while let Some(entry) = scan.next().await {
        found.push(entry?);
    }
    while let Some(key) = listing.next().await {
        listed.push(key?);
    }
    for keys in [found.into_iter().map(|entry| entry.key).collect(), listed] {
        ensure_stable_once(&keys)?;
        ensure_eq!(keys.len(), STABLE, "keys that appeared, where others were deleted before");
    }
    Ok(())
}

/// Runs six scans and listings, one after the other, while every key is overwritten repeatedly.
pub async fn a_scan_next_to_writers_has_every_key_once(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    fill(&store, STABLE, "value").await?;
    for number in 0..6 {
        let scope = if number % 2 == 0 { WatchScope::All } else { WatchScope::prefix("stable.") };
        let scan = async {
            let mut found = Vec::new();
            if number % 3 == 0 {
                let listing = store.keys(scope);
                while let Some(key) = listing.next().await {
                    found.push(key?);
                    yield_once().await;
                }
            } else {
                let scan = store.scan(scope);
                while let Some(entry) = scan.next().await {
                    found.push(entry?.key);
                    yield_once().await;
                }
            }
            ensure_stable_once(&found)
        };
        under_writes(&store, scan).await?;
    }
    Ok(())
}

/// Drops two hundred scans before their end, and then reads one to its end.
pub async fn a_dropped_scan_leaves_nothing_behind(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let expected = fill(&store, 300, "value").await?;
    for number in 0..100 {
        let scan = store.scan(WatchScope::All);
        let keys = store.keys(WatchScope::All);
        for _ in 0..number % 3 {
            ensure!(scan.next().await.transpose()?.is_some(), "a scan ended too early");
            ensure!(keys.next().await.transpose()?.is_some(), "a listing ended too early");
        }
        if number % 10 == 0 {
            let brief = store.with_deadline(std::time::Duration::from_micros(1));
            let scan = brief.scan(WatchScope::All);
            match scan.next().await {
                Some(Ok(_) | Err(KvError::Timeout { .. })) => {}
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(CheckFailure::new(
                        "a scan without time ended as if it were complete",
                    ));
                }
            }
        }
    }
    ensure_lists(&store, &expected).await
}
