//! Expiry: values that end by themselves, and its visible effects.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::observe::Observer;
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{KvError, KvOperation, KvUpdate, Store, StoreTtl, VersionToken, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "expiry";
    times_to_live_are_asked_for [Write, KeyTtl]
        "Single keys can have a time to live in stores that were opened with it. Others have no \
         such ability.",
    a_time_to_live_below_the_granularity_is_rejected [Write, KeyTtl]
        "A time to live that the store cannot keep is InvalidConfig, and nothing is written.",
    a_time_to_live_over_the_maximum_age_is_rejected [Write, KeyTtl, MaxAge]
        "A time to live that the maximum age would cut short is InvalidConfig, and nothing is \
         written.",
    a_deletion_is_told_of_once [Write, Watch, KeyTtl]
        "delete, delete_with_version and purge arrive at a watch once, even if tombstones expire.",
    a_value_expires_after_its_time_to_live [Write, KeyTtl]
        "A value expires its time to live after it was written, not before, and is then absent \
         for every read.",
    others_do_not_expire [Write, KeyTtl]
        "A value without a time to live does not expire, not even one that had a time to live \
         before.",
    a_renewed_value_lives_on [Write, KeyTtl, CompareAndSwap]
        "A value that is updated with a time to live expires that long after the update.",
    swaps_with_a_time_to_live_compare [Write, KeyTtl, CompareAndSwap]
        "create and update with a time to live compare and swap like those without.",
    an_expired_key_can_be_created [Write, KeyTtl, CompareAndSwap]
        "create succeeds over an expired value, and an earlier version no longer matches.",
    expiry_arrives_at_a_watch [Write, Watch, KeyTtl, ExpiryEvents]
        "A value that expires arrives at watches as a deletion with the operation Expire, once.",
    expiry_leaves_a_tombstone [Write, Watch, KeyTtl, ExpiryEvents]
        "A value that expires leaves a tombstone, which entry and history show and get, keys and \
         scan do not.",
    expiry_while_away_is_not_skipped [Write, Watch, WatchResume, KeyTtl, ExpiryEvents]
        "A value that expired after a cursor arrives as a deletion, or the cursor is \
         CursorExpired.",
    values_expire_after_the_maximum_age [Write, MaxAge]
        "In a store with a maximum age, every value expires that long after it was written, and \
         not before.",
    the_maximum_age_arrives_at_a_watch [Write, Watch, MaxAge, ExpiryEvents]
        "A value that reaches the maximum age arrives at watches as a deletion with the \
         operation Expire.",
};

/// Maximum time by which the store's clock may end a value earlier than the check's clock.
const SLACK: Duration = Duration::from_millis(50);

/// Maximum time for which a value may remain after its time to live.
const LATE: Duration = Duration::from_secs(10);

async fn ttl_store(fixture: &Fixture) -> CheckResult<Store> {
    fixture.store_with(fixture.config().key_ttl(true)).await
}

fn ttl_of(store: &Store) -> CheckResult<StoreTtl<'_>> {
    store
        .ttl()
        .ok_or_else(|| CheckFailure::new("the store was opened with times to live and has none"))
}

/// Returns the shortest time to live that a busy machine can measure.
fn span(ttl: &StoreTtl<'_>) -> Duration {
    ttl.granularity().max(Duration::from_millis(500))
}

/// Opens a store with times to live, and one without.
pub async fn times_to_live_are_asked_for(fixture: &Fixture) -> CheckResult {
    let without = fixture.store().await?;
    ensure!(without.ttl().is_none(), "a store that was not asked for times to live has them");
    let with = ttl_store(fixture).await?;
    let ttl = ttl_of(&with)?;
    ensure!(!ttl.granularity().is_zero(), "the granularity of times to live is zero");
    ensure!(with.capabilities().key_ttl, "a store with times to live does not claim them");
    Ok(())
}

/// Writes with zero, and with one nanosecond less than the shortest.
pub async fn a_time_to_live_below_the_granularity_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    for short in [Duration::ZERO, ttl.granularity().saturating_sub(Duration::from_nanos(1))] {
        let put = ttl.put("key", "value", short).await;
        ensure_error!(put, KvError::InvalidConfig { .. }, "put with a time to live of {short:?}");
        let create = ttl.create("key", "value", short).await;
        ensure_error!(
            create,
            KvError::InvalidConfig { .. },
            "create with a time to live of {short:?}"
        );
        let version = VersionToken::from_u64(1);
        let update = ttl.update("key", "value", version, short).await;
        ensure_error!(
            update,
            KvError::InvalidConfig { .. },
            "update with a time to live of {short:?}"
        );
    }
    ensure!(store.entry("key").await?.is_none(), "a rejected write left something behind");
    Ok(())
}

/// Writes with one step more, in a store that has the age from the start, and in one that got it
/// while a handle was open.
pub async fn a_time_to_live_over_the_maximum_age_is_rejected(fixture: &Fixture) -> CheckResult {
    const AGE: Duration = Duration::from_secs(60);
    for later in [false, true] {
        let mut config = fixture.config().key_ttl(true);
        if !later {
            config = config.max_age(AGE);
        }
        let store = fixture.store_with(config).await?;
        let ttl = ttl_of(&store)?;
        if later {
            ttl.put("before", "value", AGE).await?;
            let aged = fixture.config().max_age(AGE).reconcile();
            fixture.connection().store_with_config(store.name(), aged).await?;
            store.refresh().await?;
        }
        let long = AGE + ttl.granularity();
        let put = ttl.put("key", "value", long).await;
        ensure_error!(
            put,
            KvError::InvalidConfig { .. },
            "put with a time to live over the maximum age"
        );
        let create = ttl.create("key", "value", long).await;
        ensure_error!(
            create,
            KvError::InvalidConfig { .. },
            "create with a time to live over the maximum age"
        );
        ensure!(store.entry("key").await?.is_none(), "a rejected write left something behind");
        let version = ttl.create("key", "value", AGE).await?;
        let update = ttl.update("key", "value", version, long).await;
        ensure_error!(
            update,
            KvError::InvalidConfig { .. },
            "update with a time to live over the maximum age"
        );
        let found = store.get("key").await?.map(|entry| entry.version);
        ensure_eq!(found, Some(version), "the version after a rejected update");
    }
    Ok(())
}

/// Deletes three keys, and creates each again.
pub async fn a_deletion_is_told_of_once(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    for key in ["deleted", "swapped", "purged"] {
        let version = store.put(key, "value").await?;
        observer.reach(key, version).await?;
        let tombstone = match key {
            "deleted" => store.delete(key).await?,
            "swapped" if store.capabilities().compare_and_swap => {
                store.delete_with_version(key, version).await?
            }
            "swapped" => store.delete(key).await?,
            _ => store.purge(key).await?,
        };
        observer.reach(key, tombstone).await?;
        ensure_absent(&store, key).await?;
        let found = store.entry(key).await?.map(|entry| entry.version);
        ensure_eq!(found, Some(tombstone), "the version of the tombstone of key {key}");
        let version = store.put(key, "again").await?;
        observer.reach(key, version).await?;
        ensure_eq!(
            store.get(key).await?.map(|entry| entry.version),
            Some(version),
            "key {key} written again"
        );
    }
    let deletions = observer.entries().iter().filter(|entry| entry.is_tombstone()).count();
    ensure_eq!(deletions, 3, "deletions that arrived");
    Ok(())
}

/// Reads until the key is absent, and checks that it was present for its whole time.
async fn ensure_expires(
    fixture: &Fixture,
    store: &Store,
    key: &str,
    span: Duration,
    written: Instant,
) -> CheckResult {
    fixture.step(format!("waiting for key {key} to expire"));
    loop {
        let found = store.get(key).await?;
        let age = written.elapsed();
        match found {
            None => {
                ensure!(
                    age + SLACK >= span,
                    "key {key} was to live for {span:?} and is gone after {age:?}"
                );
                return Ok(());
            }
            Some(_) => {
                ensure!(
                    age < span + LATE,
                    "key {key} was to live for {span:?} and is there after {age:?}"
                );
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ensure_absent(store: &Store, key: &str) -> CheckResult {
    ensure!(store.get(key).await?.is_none(), "get finds the expired key {key}");
    ensure_eq!(store.get_many([key]).await?, [None], "get_many of the expired key {key}");
    let scan = store.scan(WatchScope::All).try_collect().await?;
    ensure!(scan.iter().all(|entry| entry.key != key), "a scan has the expired key {key}");
    let keys = store.keys(WatchScope::All).try_collect().await?;
    ensure!(keys.iter().all(|listed| listed != key), "a listing has the expired key {key}");
    let history = store.history(key)?.try_collect().await?;
    ensure!(
        history.iter().all(|entry| entry.is_tombstone()),
        "the history of {key} has the expired value"
    );
    let entry = store.entry(key).await?;
    ensure!(
        entry.is_none_or(|entry| entry.is_tombstone()),
        "entry finds the expired value of {key}"
    );
    Ok(())
}

/// Writes the value with `put`.
pub async fn a_value_expires_after_its_time_to_live(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let (ttl, written) = (ttl_of(&store)?, Instant::now());
    store.put("stays", "value").await?;
    let version = ttl.put("key", "value", span(&ttl)).await?;
    let found = store.get("key").await?.map(|entry| entry.version);
    ensure!(
        found == Some(version) || written.elapsed() >= span(&ttl),
        "the version of a value with a time to live is not the one that was returned"
    );
    ensure_expires(fixture, &store, "key", span(&ttl), written).await?;
    ensure_absent(&store, "key").await?;
    ensure!(store.get("stays").await?.is_some(), "a key without a time to live has expired");
    Ok(())
}

/// Writes with `put` and `update`, and waits until a neighbour that was written later has expired.
pub async fn others_do_not_expire(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    let long = span(&ttl) * 3;
    store.put("never", "value").await?;
    ttl.put("put.again", "value", long).await?;
    store.put("put.again", "value").await?;
    let version = ttl.put("updated", "value", long).await?;
    if store.capabilities().compare_and_swap {
        store.update("updated", "value", version).await?;
    } else {
        store.put("updated", "value").await?;
    }
    let written = Instant::now();
    ttl.put("neighbour", "value", long).await?;
    ensure_expires(fixture, &store, "neighbour", long, written).await?;
    for key in ["never", "put.again", "updated"] {
        ensure!(store.get(key).await?.is_some(), "key {key} has no time to live and has expired");
    }
    Ok(())
}

/// Updates the value twice, each time after six tenths of its time.
pub async fn a_renewed_value_lives_on(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    let mut span = span(&ttl);
    // A machine that sleeps too long proves nothing. The check then repeats with more time.
    'attempts: for attempt in 0..5 {
        let key = format!("lease.{attempt}");
        let mut renewed = Instant::now();
        let mut version = ttl.create(&key, "0", span).await?;
        for number in 0..2 {
            sleep_until(renewed + span * 6 / 10).await;
            let before = Instant::now();
            match ttl.update(&key, format!("{number}"), version, span).await {
                Ok(next) => (version, renewed) = (next, before),
                Err(error) if renewed.elapsed() + SLACK >= span => {
                    ensure_error!(
                        Err::<(), _>(error),
                        KvError::RevisionMismatch { .. },
                        "a late renewal"
                    );
                    span *= 2;
                    continue 'attempts;
                }
                Err(error) => return Err(error.into()),
            }
        }
        sleep_until(renewed + span * 6 / 10).await;
        let alive = store.get(&key).await?.is_some();
        if renewed.elapsed() + SLACK < span {
            ensure!(alive, "a value that was renewed in time has expired");
            return ensure_expires(fixture, &store, &key, span, renewed).await;
        }
        span *= 2;
    }
    Err(CheckFailure::new("the machine is too busy to renew a value in time"))
}

/// Rejects a write over a live value, and one with an old version.
pub async fn swaps_with_a_time_to_live_compare(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let (ttl, long) = (ttl_of(&store)?, Duration::from_secs(600));
    let first = ttl.create("key", "1", long).await?;
    let again = ttl.create("key", "lost", long).await;
    ensure_error!(
        again,
        KvError::AlreadyExists { .. },
        "create with a time to live over a live value"
    );
    let second = ttl.update("key", "2", first, long).await?;
    let lost = ttl.update("key", "lost", first, long).await;
    ensure_error!(
        lost,
        KvError::RevisionMismatch { .. },
        "update with a time to live and an old version"
    );
    let lost = ttl.update("absent", "lost", first, long).await;
    ensure_error!(
        lost,
        KvError::RevisionMismatch { .. },
        "update with a time to live of an absent key"
    );
    let found = store.get("key").await?.map(|entry| (entry.value, entry.version));
    ensure_eq!(found, Some(("2".into(), second)), "value and version after rejected writes");
    store.delete("key").await?;
    ttl.create("key", "3", long).await?;
    Ok(())
}

/// Creates with and without a time to live.
pub async fn an_expired_key_can_be_created(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    let written = Instant::now();
    let mut versions = Vec::new();
    for key in ["plain", "again"] {
        versions.push((key, ttl.create(key, "value", span(&ttl)).await?));
    }
    for (key, version) in versions {
        ensure_expires(fixture, &store, key, span(&ttl), written).await?;
        let lost = store.update(key, "lost", version).await;
        ensure_error!(
            lost,
            KvError::RevisionMismatch { .. },
            "update with the version of an expired value"
        );
        let lost = store.delete_with_version(key, version).await;
        ensure_error!(
            lost,
            KvError::RevisionMismatch { .. },
            "a deletion with the version of an expired value"
        );
        let created = match key {
            "plain" => store.create(key, "new").await?,
            _ => ttl.create(key, "new", Duration::from_secs(600)).await?,
        };
        ensure!(created != version, "a key has a version again that it had before it expired");
        let found = store.get(key).await?.map(|entry| (entry.value, entry.version));
        ensure_eq!(found, Some(("new".into(), created)), "the value created over an expired one");
    }
    Ok(())
}

/// Reads a watch until the key expires.
async fn expiry_of(
    observer: &mut Observer<'_>,
    key: &str,
    value: VersionToken,
    span: Duration,
    written: Instant,
) -> CheckResult<VersionToken> {
    let waiting_for = format!("the expiry of key {key}");
    loop {
        let Ok(update) = tokio::time::timeout(span + LATE, observer.next(&waiting_for)).await
        else {
            return Err(CheckFailure::new(format!(
                "{waiting_for}: it did not arrive within {:?}",
                span + LATE
            )));
        };
        if let KvUpdate::Delete(entry) = update?
            && entry.key == key
        {
            let age = written.elapsed();
            ensure_eq!(entry.operation, KvOperation::Expire, "the operation that ended key {key}");
            ensure!(
                age + SLACK >= span,
                "key {key} was to live for {span:?} and expired after {age:?}"
            );
            ensure!(entry.version != value, "the tombstone of {key} has the version of the value");
            ensure!(entry.value.is_empty(), "the tombstone of {key} has a value");
            return Ok(entry.version);
        }
    }
}

/// Watches live, next to a key that stays.
pub async fn expiry_arrives_at_a_watch(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    store.put("stays", "value").await?;
    let written = Instant::now();
    let version = ttl.put("key", "value", span(&ttl)).await?;
    expiry_of(&mut observer, "key", version, span(&ttl), written).await?;
    // A second delivery would arrive before this.
    let version = store.put("stays", "value").await?;
    observer.reach("stays", version).await?;
    let expiries = observer.entries().iter().filter(|entry| entry.is_tombstone()).count();
    ensure_eq!(expiries, 1, "deletions that arrived");
    Ok(())
}

/// Reads right after the watch has delivered the expiry, and until the key is written again.
pub async fn expiry_leaves_a_tombstone(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let written = Instant::now();
    let version = ttl.put("key", "value", span(&ttl)).await?;
    let expired = expiry_of(&mut observer, "key", version, span(&ttl), written).await?;
    ensure_absent(&store, "key").await?;
    let found = store.entry("key").await?.map(|entry| (entry.operation, entry.version));
    ensure_eq!(found, Some((KvOperation::Expire, expired)), "the entry of an expired key");
    let history = store.history("key")?.try_collect().await?;
    let history = history.iter().map(|entry| (entry.operation, entry.version)).collect::<Vec<_>>();
    ensure_eq!(history, [(KvOperation::Expire, expired)], "the history of an expired key");
    let mut state = Observer::open(fixture, &store, WatchScope::All).await?;
    for entry in state.state().await? {
        ensure!(
            entry.is_tombstone(),
            "the state of a watch has the expired value of key {}",
            entry.key
        );
    }
    let version = store.put("key", "again").await?;
    observer.reach("key", version).await?;
    ensure!(store.get("key").await?.is_some(), "a key that was written after it expired is absent");
    Ok(())
}

/// Resumes from a cursor before the value expired.
pub async fn expiry_while_away_is_not_skipped(fixture: &Fixture) -> CheckResult {
    let store = ttl_store(fixture).await?;
    let ttl = ttl_of(&store)?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    store.put("stays", "value").await?;
    let written = Instant::now();
    let version = ttl.put("key", "value", span(&ttl)).await?;
    observer.reach("key", version).await?;
    let cursor = observer.cursor()?;
    drop(observer);
    ensure_expires(fixture, &store, "key", span(&ttl), written).await?;
    fixture.step("resuming from before a value expired");
    let watch = match store.watch_from(WatchScope::All, cursor).await {
        Ok(watch) => watch,
        Err(KvError::CursorExpired { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    loop {
        match watch.next().await {
            // The expiry may come after the marker, because a store may report it later than it
            // forgets the value.
            Some(Ok(KvUpdate::CaughtUp)) => {}
            Some(Ok(KvUpdate::Delete(entry))) if entry.key == "key" => return Ok(()),
            Some(Ok(update)) => {
                return Err(CheckFailure::new(format!(
                    "expected the expiry of the key, found {update:?}"
                )));
            }
            Some(Err(KvError::CursorExpired { .. })) => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(CheckFailure::new("the watch ended")),
        }
    }
}

const MAX_AGE: Duration = Duration::from_secs(1);

/// Writes with every operation, and one value again in between.
pub async fn values_expire_after_the_maximum_age(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_age(MAX_AGE)).await?;
    let written = Instant::now();
    store.put("early", "value").await?;
    store.put("renewed", "value").await?;
    sleep_until(written + MAX_AGE / 2).await;
    let renewed = Instant::now();
    store.put("renewed", "value").await?;
    ensure_expires(fixture, &store, "early", MAX_AGE, written).await?;
    ensure_absent(&store, "early").await?;
    ensure_expires(fixture, &store, "renewed", MAX_AGE, renewed).await?;
    ensure_absent(&store, "renewed").await?;
    if store.capabilities().compare_and_swap {
        store.create("early", "again").await?;
    }
    Ok(())
}

/// Watches two values of different ages.
pub async fn the_maximum_age_arrives_at_a_watch(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_age(MAX_AGE)).await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let mut values = Vec::new();
    for key in ["one", "two"] {
        let written = Instant::now();
        values.push((key, store.put(key, "value").await?, written));
        sleep(Duration::from_millis(200)).await;
    }
    for (key, version, written) in values {
        expiry_of(&mut observer, key, version, MAX_AGE, written).await?;
        ensure_absent(&store, key).await?;
    }
    Ok(())
}
