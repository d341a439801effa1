//! Fenced writes: a holder that has lost its lock and does not know it yet does no harm.

use std::time::Duration;

use futures_util::future::{join, join_all};

use super::observe::{Observer, yield_once};
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{
    FencingToken, KvEntry, KvError, KvResult, Store, StoreFenced, VersionToken, WatchScope,
};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "fenced";
    fenced_writes_are_there [FencedWrites]
        "A store has fenced writes if its connection claims them, and claims them itself.",
    a_store_that_forgets_has_no_fenced_writes [FencedWrites, MaxAge]
        "A store whose values expire with age has no fenced writes, and does not claim them.",
    a_maximum_age_set_later_lets_no_older_token_in [FencedWrites, MaxAge]
        "In a store that is given a maximum age, every open handle rejects an older token, even \
         if the entry is gone.",
    an_older_token_is_rejected [FencedWrites]
        "A write with an older token than that of the newest entry is Fenced, and nothing is \
         written.",
    equal_and_newer_tokens_are_accepted [FencedWrites]
        "A write with the same token as that of the newest entry takes effect, and so does one \
         with a newer token.",
    a_token_counts_for_its_key [FencedWrites]
        "A token rejects writes of its own key only.",
    a_deletion_keeps_the_token [FencedWrites]
        "The tombstone of a fenced deletion has its token, which rejects older ones.",
    deleting_what_is_absent_leaves_a_token [FencedWrites]
        "A fenced deletion of an absent key succeeds, and leaves a tombstone with its token.",
    fenced_swaps_compare [FencedWrites]
        "create and update with a token compare as those without.",
    a_lost_lock_is_said_first [FencedWrites]
        "A write with an older token is Fenced, even if another value or version would prevent \
         it too.",
    a_write_without_a_token_takes_it_away [FencedWrites, Write]
        "A write without a token is not rejected for that, and leaves an entry without a token.",
    the_newest_token_wins [FencedWrites]
        "Among concurrent writes with different tokens, the one with the newest takes effect last.",
    writers_with_one_token_all_write [FencedWrites]
        "Concurrent writes with the same token all take effect.",
    reads_show_the_token [FencedWrites]
        "get, entry, get_many, history and scan deliver the token of the write behind each entry.",
    watches_show_the_token [FencedWrites, Watch]
        "A watch delivers the token of the write behind each entry, in the state and live.",
    raise_rejects_smaller_tokens [FencedWrites, Write]
        "After raise a key rejects smaller tokens. Its value is unchanged, and an absent key \
         stays absent.",
    raise_writes_nothing_over_a_newer_token [FencedWrites]
        "raise returns the key's token afterwards, and writes nothing if that was the same or \
         newer.",
    raise_is_a_write [FencedWrites, Watch]
        "A raised value is an entry like any other, with a version of its own, which arrives at \
         watches.",
    raise_loses_no_write [FencedWrites]
        "No concurrent write or raise is lost, and no write with a smaller token follows a raise.",
    raise_of_a_value_that_expires_is_rejected [FencedWrites, KeyTtl]
        "raise of a value with a time to live is Unsupported, and nothing is written.",
    invalid_keys_are_rejected_by_fenced_writes [FencedWrites]
        "A string that is not a key is InvalidKey before any request is sent.",
    a_fenced_value_over_the_limit_is_rejected [FencedWrites]
        "A value over the limit of fenced writes, which is max_value_size or slightly less, is \
         ValueTooLarge before any token is compared. A value of that size fits with its token.",
};

const fn token(number: u64) -> FencingToken {
    FencingToken::from_u64(number)
}

fn fenced_of(store: &Store) -> CheckResult<StoreFenced<'_>> {
    store
        .fenced()
        .ok_or_else(|| CheckFailure::new("fenced writes are claimed, and the store has none"))
}

/// Value, version and token of an entry.
type Shape = (Vec<u8>, VersionToken, Option<FencingToken>);

fn shape(entry: &KvEntry) -> Shape {
    (entry.value.to_vec(), entry.version, entry.fence)
}

async fn found(store: &Store, key: &str) -> CheckResult<Option<Shape>> {
    Ok(store.entry(key).await?.as_ref().map(shape))
}

#[track_caller]
fn ensure_fenced(
    what: &str,
    key: &str,
    answer: KvResult<VersionToken>,
    tokens: (u64, u64),
) -> CheckResult {
    match answer {
        Err(KvError::Fenced { key: named, token, newest }) => {
            let named = (named.as_str(), token.as_u64(), newest.as_u64());
            ensure_eq!(
                named,
                (key, tokens.0, tokens.1),
                "key, token and newest token in the error of {what}"
            );
            Ok(())
        }
        Err(error) => {
            Err(CheckFailure::new(format!("{what}: expected Fenced, found the error {error:?}")))
        }
        Ok(_) => Err(CheckFailure::new(format!("{what}: expected Fenced, found success"))),
    }
}

/// Makes every fenced write of a key with an older token. The swaps use the present version.
async fn ensure_all_fenced(
    store: &Store,
    key: &str,
    older: u64,
    newest: u64,
    version: VersionToken,
) -> CheckResult {
    let fenced = fenced_of(store)?;
    let (tokens, older) = ((older, newest), token(older));
    ensure_fenced("put", key, fenced.put(key, "late", older).await, tokens)?;
    ensure_fenced("create", key, fenced.create(key, "late", older).await, tokens)?;
    ensure_fenced("update", key, fenced.update(key, "late", version, older).await, tokens)?;
    ensure_fenced("delete", key, fenced.delete(key, older).await, tokens)
}

/// Checks the store and its claim.
pub async fn fenced_writes_are_there(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    ensure!(store.capabilities().fenced_writes, "the store does not claim fenced writes");
    let version = fenced_of(&store)?.put("key", "value", token(1)).await?;
    let value = found(&store, "key").await?;
    ensure_eq!(
        value,
        Some((b"value".to_vec(), version, Some(token(1)))),
        "the entry after a fenced put"
    );
    Ok(())
}

/// Uses a store with a maximum age of an hour.
pub async fn a_store_that_forgets_has_no_fenced_writes(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_age(Duration::from_secs(3600))).await?;
    ensure!(store.fenced().is_none(), "a store whose values expire has fenced writes");
    ensure!(
        !store.capabilities().fenced_writes,
        "a store whose values expire claims fenced writes"
    );
    Ok(())
}

/// Waits until a value and a tombstone with a token have expired, and then removes the age again.
pub async fn a_maximum_age_set_later_lets_no_older_token_in(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    fenced.put("value", "later", token(18)).await?;
    fenced.delete("deleted", token(18)).await?;
    let connection = fixture.connection();
    let aged = fixture.config().max_age(Duration::from_secs(1)).reconcile();
    let aged = connection.store_with_config(store.name(), aged).await?;
    ensure!(aged.fenced().is_none(), "a store whose values expire has fenced writes");
    for key in ["value", "deleted"] {
        fixture.step(format!("waiting until the token of key {key} is gone"));
        while found(&store, key).await?.is_some_and(|(.., fence)| fence.is_some()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for answer in [
            fenced.put(key, "late", token(17)).await,
            fenced.create(key, "late", token(17)).await,
            fenced.delete(key, token(17)).await,
        ] {
            ensure_error!(
                answer,
                KvError::Unsupported { .. },
                "a fenced write where tokens are lost"
            );
        }
    }
    store.refresh().await?;
    ensure!(store.fenced().is_none(), "a handle does not know that its store's values expire");
    let kept = fixture.config().max_age(None).reconcile();
    let kept = connection.store_with_config(store.name(), kept).await?;
    fenced_of(&kept)?.put("value", "again", token(19)).await?;
    ensure_fenced("put", "value", fenced.put("value", "late", token(18)).await, (18, 19))
}

/// Uses one less than a large token, and zero.
pub async fn an_older_token_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for newest in [1, 7, u64::MAX] {
        let version = fenced_of(&store)?.put("key", "newest", token(newest)).await?;
        for older in [newest - 1, 0] {
            ensure_all_fenced(&store, "key", older, newest, version).await?;
        }
        let value = found(&store, "key").await?;
        let expected = Some((b"newest".to_vec(), version, Some(token(newest))));
        ensure_eq!(value, expected, "the entry after writes that were rejected");
    }
    Ok(())
}

/// Makes each kind of write twice with one token, and then with the next. The tokens of locks begin
/// anywhere and have gaps.
pub async fn equal_and_newer_tokens_are_accepted(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    for number in [0, 0, 1, 1, 900, 901, u64::MAX, u64::MAX] {
        let holder = token(number);
        fenced.put("key", "put", holder).await?;
        fenced.delete("key", holder).await?;
        let created = fenced.create("key", "created", holder).await?;
        let version = fenced.update("key", "updated", created, holder).await?;
        let value = found(&store, "key").await?;
        ensure_eq!(
            value,
            Some((b"updated".to_vec(), version, Some(holder))),
            "the entry written with token {number}"
        );
    }
    Ok(())
}

/// Uses two keys, of which one is a prefix of the other.
pub async fn a_token_counts_for_its_key(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    fenced.put("key", "value", token(9)).await?;
    fenced.put("key.other", "value", token(3)).await?;
    fenced.delete("another", token(1)).await?;
    ensure_fenced("put", "key", fenced.put("key", "late", token(3)).await, (3, 9))?;
    fenced.put("key.other", "value", token(3)).await?;
    Ok(())
}

/// Deletes with the token of the value, and with a newer one.
pub async fn a_deletion_keeps_the_token(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    for (key, deleted) in [("same", 5), ("newer", 6)] {
        fenced.put(key, "value", token(5)).await?;
        let version = fenced.delete(key, token(deleted)).await?;
        ensure!(store.get(key).await?.is_none(), "a fenced deletion leaves a value");
        let tombstone = store.entry(key).await?;
        let is_deletion = tombstone.as_ref().is_some_and(KvEntry::is_tombstone);
        ensure!(is_deletion, "the newest entry after a fenced deletion is no tombstone");
        let tombstone = tombstone.as_ref().map(shape);
        ensure_eq!(tombstone, Some((Vec::new(), version, Some(token(deleted)))), "the tombstone");
        ensure_all_fenced(&store, key, deleted - 1, deleted, version).await?;
        ensure!(store.get(key).await?.is_none(), "a rejected write made a deleted key");
        fenced.create(key, "again", token(deleted)).await?;
    }
    Ok(())
}

/// Deletes a key that was never written, and one that was deleted without a token.
pub async fn deleting_what_is_absent_leaves_a_token(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    fenced.delete("deleted", token(1)).await?;
    for key in ["never", "deleted"] {
        let version = fenced.delete(key, token(4)).await?;
        let tombstone = found(&store, key).await?;
        ensure_eq!(
            tombstone,
            Some((Vec::new(), version, Some(token(4)))),
            "the tombstone of key {key}"
        );
        ensure_all_fenced(&store, key, 3, 4, version).await?;
    }
    Ok(())
}

/// Swaps over values, tombstones and absent keys, with the token that wrote them and with a newer
/// one.
pub async fn fenced_swaps_compare(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    let first = fenced.create("key", "1", token(5)).await?;
    let second = fenced.update("key", "2", first, token(5)).await?;
    for holder in [token(5), token(6)] {
        let create = fenced.create("key", "lost", holder).await;
        ensure_error!(create, KvError::AlreadyExists { .. }, "a fenced create over a live value");
        let update = fenced.update("key", "lost", first, holder).await;
        ensure_error!(
            update,
            KvError::RevisionMismatch { .. },
            "a fenced update with an old version"
        );
        let absent = fenced.update("absent", "lost", first, holder).await;
        ensure_error!(absent, KvError::RevisionMismatch { .. }, "a fenced update of an absent key");
    }
    let value = found(&store, "key").await?;
    ensure_eq!(value, Some((b"2".to_vec(), second, Some(token(5)))), "the entry after lost swaps");
    ensure!(store.entry("absent").await?.is_none(), "a lost swap made a key");
    let tombstone = fenced.delete("key", token(6)).await?;
    let late = fenced.update("key", "lost", second, token(6)).await;
    ensure_error!(
        late,
        KvError::RevisionMismatch { .. },
        "a fenced update with the version before a deletion"
    );
    let third = fenced.update("key", "3", tombstone, token(6)).await?;
    let value = found(&store, "key").await?;
    ensure_eq!(
        value,
        Some((b"3".to_vec(), third, Some(token(6)))),
        "the entry swapped in for a tombstone"
    );
    Ok(())
}

/// Creates over a live value, and updates with the version that the holder knows.
pub async fn a_lost_lock_is_said_first(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    let known = fenced.put("key", "earlier", token(1)).await?;
    fenced.put("key", "later", token(2)).await?;
    ensure_fenced("create", "key", fenced.create("key", "late", token(1)).await, (1, 2))?;
    ensure_fenced("update", "key", fenced.update("key", "late", known, token(1)).await, (1, 2))
}

/// Puts, updates, deletes and purges a key that has a token.
pub async fn a_write_without_a_token_takes_it_away(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    for what in ["put", "update", "delete", "purge"] {
        let version = fenced.put(what, "fenced", token(9)).await?;
        match what {
            "put" => store.put(what, "plain").await?,
            "update" if store.capabilities().compare_and_swap => {
                store.update(what, "plain", version).await?
            }
            "update" => store.put(what, "plain").await?,
            "delete" => store.delete(what).await?,
            _ => store.purge(what).await?,
        };
        let left = store.entry(what).await?.and_then(|entry| entry.fence);
        ensure_eq!(left, None, "the token after {what} without one");
        fenced.put(what, "earlier", token(1)).await?;
    }
    Ok(())
}

/// Starts eight writers, each a few times, in an order in which the newest is neither first nor
/// last.
pub async fn the_newest_token_wins(fixture: &Fixture) -> CheckResult {
    const TOKENS: [u64; 8] = [4, 7, 1, 8, 3, 6, 2, 5];
    let store = fixture.store().await?;
    for round in 0..6 {
        let key = format!("key.{round}");
        let writers = TOKENS.map(|number| {
            let (store, key) = (&store, &key);
            async move {
                let mut written = Vec::new();
                for _ in 0..4 {
                    yield_once().await;
                    match fenced_of(store)?.put(key, number.to_string(), token(number)).await {
                        Ok(version) => written.push(version),
                        Err(KvError::Fenced { newest, .. }) => {
                            ensure!(
                                newest > token(number),
                                "token {number} was rejected for {newest}"
                            );
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(written)
            }
        });
        let mut newest = Vec::new();
        for (number, written) in TOKENS.into_iter().zip(join_all(writers).await) {
            let written = written?;
            if number == 8 {
                ensure_eq!(written.len(), 4, "writes of the newest token that took effect");
                newest = written;
            }
        }
        let value = found(&store, &key).await?;
        let last = newest.last().copied();
        let expected = last.map(|version| (b"8".to_vec(), version, Some(token(8))));
        ensure_eq!(value, expected, "the entry after all of them");
    }
    Ok(())
}

/// Starts eight writers, and as many deletions.
pub async fn writers_with_one_token_all_write(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    let puts = join_all((0..8).map(|number| fenced.put("key", format!("{number}"), token(3))));
    let deletions = join_all((0..8).map(|_| fenced.delete("key", token(3))));
    let (puts, deletions) = join(puts, deletions).await;
    let mut versions = Vec::new();
    for answer in puts.into_iter().chain(deletions) {
        let version = answer?;
        ensure!(!versions.contains(&version), "two fenced writes to one key have the same version");
        versions.push(version);
    }
    let newest = found(&store, "key").await?.map(|(_, version, _)| version);
    ensure!(
        newest.is_some_and(|newest| versions.contains(&newest)),
        "the newest entry is of none of the writes"
    );
    Ok(())
}

/// Uses the smallest token and the largest, a tombstone, and an entry without a token between them.
pub async fn reads_show_the_token(fixture: &Fixture) -> CheckResult {
    let config = fixture.config();
    let history = fixture.capabilities().max_history.min(4);
    let store =
        fixture.store_with(if history > 1 { config.history(history) } else { config }).await?;
    let fenced = fenced_of(&store)?;
    let mut written = Vec::new();
    for number in [0, 17] {
        let version = fenced.put("key", "value", token(number)).await?;
        written.push((b"value".to_vec(), version, Some(token(number))));
    }
    let version = fenced.delete("key", token(18)).await?;
    written.push((Vec::new(), version, Some(token(18))));
    let version = fenced.create("key", "", token(u64::MAX)).await?;
    written.push((Vec::new(), version, Some(token(u64::MAX))));
    fenced.delete("deleted", token(5)).await?;
    if store.capabilities().write {
        store.put("plain", "value").await?;
        let plain = store.get("plain").await?.and_then(|entry| entry.fence);
        ensure_eq!(plain, None, "the token of an entry that has none");
    }

    let newest = written.last().cloned();
    ensure_eq!(store.get("key").await?.as_ref().map(shape), newest, "the result of get");
    ensure_eq!(found(&store, "key").await?, newest, "the result of entry");
    let tombstone = found(&store, "deleted").await?.and_then(|(_, _, fence)| fence);
    ensure_eq!(tombstone, Some(token(5)), "the token of a tombstone");
    // Requests as many as a backend may fetch at once.
    let many = store.get_many(vec!["key"; 6]).await?;
    for entry in many {
        ensure_eq!(entry.as_ref().map(shape), newest, "the result of get_many");
    }
    let shown = store.history("key")?.try_collect().await?;
    let shown = shown.iter().map(shape).collect::<Vec<_>>();
    let kept = written.get(written.len() - usize::from(history.max(1))..).unwrap_or_default();
    ensure_eq!(shown, kept, "the history");
    let scan = store.scan(WatchScope::key("key")?).try_collect().await?;
    ensure_eq!(scan.first().map(shape), newest, "the result of a scan of the key");
    let scan = store.scan(WatchScope::All).try_collect().await?;
    let scan = scan.iter().find(|entry| entry.key == "key").map(shape);
    ensure_eq!(scan, newest, "the result of a scan of everything");
    Ok(())
}

/// Watches puts and a deletion.
pub async fn watches_show_the_token(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    let first = fenced.put("key", "value", token(3)).await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let state = observer.state().await?.iter().map(shape).collect::<Vec<_>>();
    ensure_eq!(state, [(b"value".to_vec(), first, Some(token(3)))], "the state");
    let put = fenced.put("key", "live", token(4)).await?;
    let live = shape(&observer.reach("key", put).await?);
    ensure_eq!(live, (b"live".to_vec(), put, Some(token(4))), "a live value");
    let deletion = fenced.delete("key", token(5)).await?;
    let live = shape(&observer.reach("key", deletion).await?);
    ensure_eq!(live, (Vec::new(), deletion, Some(token(5))), "a live deletion");
    if store.capabilities().write {
        let plain = store.put("key", "plain").await?;
        let live = observer.reach("key", plain).await?.fence;
        ensure_eq!(live, None, "the token of a live value that has none");
    }
    Ok(())
}

/// Raises values with a smaller token and without a token, tombstones of both kinds, and a key that
/// was never written.
pub async fn raise_rejects_smaller_tokens(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    fenced.put("smaller", "value", token(3)).await?;
    store.put("plain", "value").await?;
    fenced.put("empty", "", token(0)).await?;
    fenced.put("deleted", "value", token(3)).await?;
    fenced.delete("deleted", token(3)).await?;
    store.put("purged", "value").await?;
    store.purge("purged").await?;
    for (key, value) in [
        ("smaller", Some("value")),
        ("plain", Some("value")),
        ("empty", Some("")),
        ("deleted", None),
        ("purged", None),
        ("never", None),
    ] {
        ensure_eq!(fenced.raise(key, token(7)).await?, token(7), "the result of raise of {key}");
        let raised = store.entry(key).await?;
        let Some(raised) = raised else {
            return Err(CheckFailure::new(format!("key {key} has no entry after raise")));
        };
        let live = (!raised.is_tombstone()).then(|| raised.value.to_vec());
        ensure_eq!(
            live,
            value.map(|value| value.as_bytes().to_vec()),
            "the value of {key} after raise"
        );
        ensure_eq!(raised.fence, Some(token(7)), "the token of {key} after raise");
        ensure_all_fenced(&store, key, 6, 7, raised.version).await?;
        fenced.put(key, "equal", token(7)).await?;
        fenced.put(key, "newer", token(8)).await?;
    }
    Ok(())
}

/// Raises a value and a tombstone.
pub async fn raise_writes_nothing_over_a_newer_token(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    fenced.put("value", "value", token(9)).await?;
    fenced.delete("deleted", token(9)).await?;
    for key in ["value", "deleted"] {
        let before = found(&store, key).await?;
        for number in [9, 8, 0] {
            ensure_eq!(
                fenced.raise(key, token(number)).await?,
                token(9),
                "the result of raise to {number}"
            );
            ensure_eq!(found(&store, key).await?, before, "the entry after raise to {number}");
        }
    }
    Ok(())
}

/// Raises a value, and a key that was never written.
pub async fn raise_is_a_write(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    let first = fenced.put("key", "value", token(1)).await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    for key in ["key", "never"] {
        fenced.raise(key, token(2)).await?;
        let raised = store.entry(key).await?;
        let Some(raised) = raised else {
            return Err(CheckFailure::new(format!("key {key} has no entry after raise")));
        };
        ensure!(raised.version != first, "raise has not given the key a new version");
        let live = observer.reach(key, raised.version).await?;
        ensure_eq!(shape(&live), shape(&raised), "the update of {key} in the watch");
        ensure_eq!(live.operation, raised.operation, "the update of {key} in the watch");
    }
    let late = fenced.update("key", "late", first, token(2)).await;
    ensure_error!(
        late,
        KvError::RevisionMismatch { .. },
        "an update with the version from before raise"
    );
    Ok(())
}

/// A holder increments a counter, while it is raised repeatedly: to the holder's own token, then to
/// a newer one.
pub async fn raise_loses_no_write(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for round in 0..6 {
        let key = format!("key.{round}");
        let holder = async {
            let fenced = fenced_of(&store)?;
            let mut last = None;
            for number in 0..12_u32 {
                yield_once().await;
                match fenced.put(&key, number.to_string(), token(5)).await {
                    Ok(_) => last = Some(number),
                    Err(KvError::Fenced { newest, .. }) => {
                        ensure_eq!(newest, token(6), "the token that rejects the holder");
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(last)
        };
        let raises = async {
            let fenced = fenced_of(&store)?;
            for _ in 0..8 {
                yield_once().await;
                fenced.raise(&key, token(4)).await?;
            }
            fenced.raise(&key, token(6)).await?;
            CheckResult::Ok(())
        };
        let (last, raised) = join(holder, raises).await;
        raised?;
        let last: Option<u32> = last?;
        let left = store.entry(&key).await?;
        let value = left.as_ref().filter(|entry| !entry.is_tombstone());
        let value = value.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        ensure_eq!(value, last.map(|number| number.to_string()), "the last value that was written");
        ensure_eq!(left.and_then(|entry| entry.fence), Some(token(6)), "the token after all of it");
    }
    Ok(())
}

/// Checks that the value stays, and its time to live too.
pub async fn raise_of_a_value_that_expires_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().key_ttl(true)).await?;
    let fenced = fenced_of(&store)?;
    let ttl = store
        .ttl()
        .ok_or_else(|| CheckFailure::new("times to live were asked for, and are not there"))?;
    ttl.put("key", "value", Duration::from_secs(3600)).await?;
    let before = found(&store, "key").await?;
    let raise = fenced.raise("key", token(1)).await;
    ensure_error!(raise, KvError::Unsupported { .. }, "raise of a value with a time to live");
    ensure_eq!(found(&store, "key").await?, before, "the entry after raise was rejected");
    // Other values in the same store do not expire.
    fenced.put("lasting", "value", token(1)).await?;
    ensure_eq!(
        fenced.raise("lasting", token(2)).await?,
        token(2),
        "the result of raise of a lasting value"
    );
    Ok(())
}

/// Makes each kind of write.
pub async fn invalid_keys_are_rejected_by_fenced_writes(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let fenced = fenced_of(&store)?;
    let version = VersionToken::from_u64(1);
    for key in ["", "a..b", ".a", "a b", "a*", "_kv.a", "\u{e4}"] {
        let put = fenced.put(key, "value", token(1)).await;
        ensure_error!(put, KvError::InvalidKey { .. }, "a fenced put of {key:?}");
        let create = fenced.create(key, "value", token(1)).await;
        ensure_error!(create, KvError::InvalidKey { .. }, "a fenced create of {key:?}");
        let update = fenced.update(key, "value", version, token(1)).await;
        ensure_error!(update, KvError::InvalidKey { .. }, "a fenced update of {key:?}");
        let delete = fenced.delete(key, token(1)).await;
        ensure_error!(delete, KvError::InvalidKey { .. }, "a fenced deletion of {key:?}");
        let raise = fenced.raise(key, token(1)).await;
        ensure_error!(raise, KvError::InvalidKey { .. }, "raise of {key:?}");
    }
    let left = store.keys(WatchScope::All).try_collect().await?;
    ensure!(left.is_empty(), "rejected writes left something behind");
    Ok(())
}

/// Also checks an older token, and deletions in a store with hardly any room, if that store offers
/// fenced writes.
pub async fn a_fenced_value_over_the_limit_is_rejected(fixture: &Fixture) -> CheckResult {
    const LARGEST: FencingToken = token(u64::MAX);
    let store = fixture.store_with(fixture.config().max_value_size(1000)).await?;
    let fenced = fenced_of(&store)?;
    // A token reduces the room for the value, and so does an expected version.
    let limit = match fenced.put("key", vec![b'v'; 1000], LARGEST).await {
        Ok(_) => 1000,
        Err(KvError::ValueTooLarge { limit, .. }) if (800..1000).contains(&limit) => limit - 20,
        Err(error) => return Err(error.into()),
    };
    let version = fenced.put("key", vec![b'v'; limit], LARGEST).await?;
    let value = vec![b'v'; 1001];
    for holder in [LARGEST, token(1)] {
        let put = fenced.put("key", value.clone(), holder).await;
        ensure_error!(put, KvError::ValueTooLarge { .. }, "a fenced put that is too large");
        let create = fenced.create("other", value.clone(), holder).await;
        ensure_error!(create, KvError::ValueTooLarge { .. }, "a fenced create that is too large");
        let update = fenced.update("key", value.clone(), version, holder).await;
        ensure_error!(update, KvError::ValueTooLarge { .. }, "a fenced update that is too large");
    }
    let left = found(&store, "key").await?.map(|(value, version, _)| (value.len(), version));
    ensure_eq!(left, Some((limit, version)), "size and version after rejected writes");
    ensure!(store.entry("other").await?.is_none(), "a rejected write left something behind");
    fenced.update("key", vec![b'w'; limit], version, LARGEST).await?;

    let small = fixture.store_with(fixture.config().max_value_size(1)).await?;
    // If headers count, a fenced write has no room at all.
    let Some(fenced) = small.fenced() else { return Ok(()) };
    let version = fenced.create("key", "1", LARGEST).await?;
    fenced.update("key", "2", version, LARGEST).await?;
    fenced.delete("key", LARGEST).await?;
    let left = found(&small, "key").await?.and_then(|(_, _, fence)| fence);
    ensure_eq!(left, Some(LARGEST), "the token of a tombstone where values are of a byte at most");
    Ok(())
}
