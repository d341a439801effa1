//! Cursors: a watch resumes from a position, or reports that it cannot.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::observe::{Observer, WriteLog, ensure_in_order};
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{
    KvEntry, KvError, KvOperation, KvResult, KvUpdate, Store, VersionToken, Watch, WatchCursor,
    WatchScope,
};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "cursors";
    resuming_delivers_what_came_after [Write, Watch, WatchResume]
        "A watch from a cursor delivers only the updates after it, then the caught-up marker, \
         then live updates.",
    resuming_in_the_state_delivers_the_rest [Write, Watch, WatchResume]
        "A watch from a cursor before the caught-up marker also delivers the rest of the initial \
         state.",
    resuming_keeps_to_the_scope [Write, Watch, WatchResume]
        "A watch from a cursor delivers only updates in scope, and the marker even if there are \
         none.",
    an_idle_store_is_caught_up_at_once [Write, Watch, WatchResume]
        "A watch from a cursor delivers the caught-up marker at once if nothing was written \
         after it.",
    cursors_can_be_chained [Write, Watch, WatchResume]
        "A resumed watch has cursors like any other. Resuming from each in turn delivers \
         everything, and nothing twice.",
    cursors_can_be_stored [Write, Watch, WatchResume]
        "A cursor converts to bytes and back. Other bytes are InvalidCursor.",
    a_cursor_of_another_store_has_expired [Write, Watch, WatchResume]
        "A cursor of another store is CursorExpired.",
    a_cursor_of_an_earlier_incarnation_has_expired [Write, Watch, WatchResume]
        "A cursor from before the store was deleted and recreated is CursorExpired, however far \
         the new store is.",
    the_incarnation_is_that_of_cursors [Write, Watch, WatchResume]
        "If a store knows its incarnation, its cursors contain the same one. A recreated store \
         has another.",
    a_cursor_ahead_of_the_store_has_expired [Write, Watch, WatchResume]
        "A cursor beyond the last change of the store is CursorExpired, because it would skip \
         future changes.",
    an_old_cursor_skips_nothing [Write, Watch, WatchResume]
        "An old cursor is CursorExpired, or all updates after it arrive.",
    deletions_under_other_settings_are_not_skipped [Write, Watch, WatchResume, MaxAge]
        "A deletion after a cursor arrives, or the cursor is CursorExpired, even if tombstones \
         expired for a while.",
    deletions_after_a_cursor_are_not_skipped [Write, Watch, WatchResume]
        "A key that was deleted after the cursor arrives as a deletion, or the cursor is \
         CursorExpired.",
};

/// Makes a few writes, and returns each with the cursor after it. The first key is never written
/// again, so that the store has all updates after any of the cursors.
pub(super) async fn written<'a>(
    fixture: &'a Fixture,
    store: &Store,
) -> CheckResult<(Vec<(String, VersionToken, WatchCursor)>, Observer<'a>)> {
    let mut observer = Observer::open(fixture, store, WatchScope::All).await?;
    observer.state().await?;
    let mut steps = Vec::new();
    let keys = ["anchor", "a", "b", "a", "-b", "c", "-a", "b", "!c", "a", "d", "-d"];
    for key in keys {
        let (key, version) = match key.split_at(1) {
            ("-", key) => (key, store.delete(key).await?),
            ("!", key) => (key, store.purge(key).await?),
            _ => (key, store.put(key, "value").await?),
        };
        observer.reach(key, version).await?;
        steps.push((key.to_owned(), version, observer.cursor()?));
    }
    Ok((steps, observer))
}

fn log_of(steps: &[(String, VersionToken, WatchCursor)]) -> CheckResult<WriteLog> {
    let mut log = WriteLog::default();
    for (key, version, _) in steps {
        log.note(key, Ok(*version))?;
    }
    Ok(log)
}

/// Resumes after each write of a small sequence, and then checks live updates.
pub async fn resuming_delivers_what_came_after(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, _) = written(fixture, &store).await?;
    let mut resumed = Vec::new();
    for (number, (.., cursor)) in steps.iter().enumerate() {
        let after = log_of(steps.get(number + 1..).unwrap_or_default())?;
        let mut observer = Observer::resume(fixture, &store, WatchScope::All, *cursor).await?;
        let delivered = observer.state().await?;
        // Checks that no older update arrives, because all of these were written after the cursor.
        ensure_in_order(&delivered, &after)?;
        let found = newest_of(&delivered);
        ensure_eq!(found, after.newest(), "the last writes after write {number}");
        resumed.push(observer);
    }
    let version = store.put("live", "value").await?;
    for observer in &mut resumed {
        let entry = observer.entry("a live update").await?;
        ensure_eq!((entry.key.as_str(), entry.version), ("live", version), "the live update");
    }
    Ok(())
}

fn newest_of(entries: &[KvEntry]) -> BTreeMap<String, VersionToken> {
    entries.iter().map(|entry| (entry.key.as_str().to_owned(), entry.version)).collect()
}

/// Resumes from each position in the initial state of twelve keys, and again with writes in
/// between.
pub async fn resuming_in_the_state_delivers_the_rest(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    for number in 0..12 {
        let key = format!("key.{number:02}");
        log.note(&key, store.put(&key, "state").await)?;
    }
    for stop in 1..12 {
        let (first, cursor) = read_some(fixture, &store, stop).await?;
        let mut rest = Observer::resume(fixture, &store, WatchScope::All, cursor).await?;
        let mut all = first;
        all.extend(rest.state().await?);
        ensure_in_order(&all, &log)?;
        ensure_eq!(all.len(), 12, "updates of both watches, interrupted after {stop}");
        ensure_eq!(newest_of(&all), log.newest(), "the state that both watches delivered");
    }
    let (first, cursor) = read_some(fixture, &store, 5).await?;
    // Changes one delivered key, and two others.
    let delivered = first.first().map(|entry| entry.key.clone());
    let missing =
        log.newest().into_keys().filter(|key| !first.iter().any(|entry| entry.key == key.as_str()));
    let mut changed = missing.take(2).collect::<Vec<_>>();
    changed.extend(delivered.map(|key| key.as_str().to_owned()));
    for (number, key) in changed.iter().enumerate() {
        let write =
            if number == 0 { store.delete(key).await } else { store.put(key, "changed").await };
        log.note(key, write)?;
    }
    let mut rest = Observer::resume(fixture, &store, WatchScope::All, cursor).await?;
    let mut all = first;
    all.extend(rest.state().await?);
    ensure_in_order(&all, &log)?;
    ensure_eq!(
        newest_of(&all),
        log.newest(),
        "the state that both watches delivered, with writes in between"
    );
    Ok(())
}

async fn read_some(
    fixture: &Fixture,
    store: &Store,
    stop: usize,
) -> CheckResult<(Vec<KvEntry>, WatchCursor)> {
    let mut observer = Observer::open(fixture, store, WatchScope::All).await?;
    for _ in 0..stop {
        let update = observer.next("the state").await?;
        ensure!(update != KvUpdate::CaughtUp, "the caught-up marker came before the whole state");
    }
    Ok((observer.entries().to_vec(), observer.cursor()?))
}

/// Resumes with writes inside the scope, and with writes only outside it.
pub async fn resuming_keeps_to_the_scope(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, _) = written(fixture, &store).await?;
    let Some((.., cursor)) = steps.first() else {
        return Err(CheckFailure::new("nothing was written"));
    };
    let mut inside = log_of(steps.get(1..).unwrap_or_default())?.newest();
    inside.retain(|key, _| key == "a");
    let mut observer = Observer::resume(fixture, &store, WatchScope::prefix("a"), *cursor).await?;
    ensure_eq!(newest_of(&observer.state().await?), inside, "the last writes in scope");
    let mut outside =
        Observer::resume(fixture, &store, WatchScope::prefix("nothing."), *cursor).await?;
    ensure_eq!(outside.state().await?, [], "updates after the cursor in an empty scope");
    let version = store.put("nothing.now", "value").await?;
    outside.reach("nothing.now", version).await?;
    Ok(())
}

/// Resumes after the last write, and after the marker of a store without keys.
pub async fn an_idle_store_is_caught_up_at_once(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    let empty = observer.cursor()?;
    let mut resumed = Observer::resume(fixture, &store, WatchScope::All, empty).await?;
    ensure_eq!(resumed.state().await?, [], "updates after the cursor of an empty store");
    let version = store.put("key", "value").await?;
    resumed.reach("key", version).await?;
    let mut resumed = Observer::resume(fixture, &store, WatchScope::All, resumed.cursor()?).await?;
    ensure_eq!(resumed.state().await?, [], "updates after the cursor of an idle store");
    // The key was written after the cursor of the empty store.
    let mut resumed = Observer::resume(fixture, &store, WatchScope::All, empty).await?;
    let found = resumed.state().await?;
    let found = found.iter().map(|entry| (entry.key.as_str(), entry.version)).collect::<Vec<_>>();
    ensure_eq!(found, [("key", version)], "updates after the cursor of an empty store");
    Ok(())
}

/// Drops each watch after one update, and resumes the next from its cursor.
pub async fn cursors_can_be_chained(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut log = WriteLog::default();
    for number in 0..10 {
        let key = format!("key.{number}");
        log.note(&key, store.put(&key, "state").await)?;
    }
    let mut seen = Vec::new();
    let mut cursor = None;
    for number in 0..25 {
        let mut observer = match cursor {
            None => Observer::open(fixture, &store, WatchScope::All).await?,
            Some(cursor) => Observer::resume(fixture, &store, WatchScope::All, cursor).await?,
        };
        let key = format!("new.{number}");
        log.note(&key, store.put(&key, "live").await)?;
        seen.push(observer.entry("updates after the cursor").await?);
        cursor = Some(observer.cursor()?);
    }
    if let Some(cursor) = cursor {
        seen.extend(
            Observer::resume(fixture, &store, WatchScope::All, cursor).await?.state().await?,
        );
    }
    ensure_in_order(&seen, &log)?;
    ensure_eq!(newest_of(&seen), log.newest(), "newest values that all watches delivered");
    ensure_eq!(seen.len(), 35, "updates of all watches together");
    Ok(())
}

/// Resumes from bytes. Also reads bytes with every bit flipped, bytes of every length, and bytes
/// that never were a cursor.
pub async fn cursors_can_be_stored(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, _) = written(fixture, &store).await?;
    let Some((.., cursor)) = steps.get(4) else {
        return Err(CheckFailure::new("nothing was written"));
    };
    let bytes = cursor.to_bytes();
    let stored = WatchCursor::from_bytes(&bytes)?;
    ensure_eq!(stored, *cursor, "a cursor that went through bytes");
    let mut observer = Observer::resume(fixture, &store, WatchScope::All, stored).await?;
    let after = log_of(steps.get(5..).unwrap_or_default())?;
    ensure_eq!(
        newest_of(&observer.state().await?),
        after.newest(),
        "updates after the stored cursor"
    );
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        if let Some(byte) = damaged.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
        let read = WatchCursor::from_bytes(&damaged);
        ensure_error!(read, KvError::InvalidCursor { .. }, "a cursor with bit {bit} flipped");
    }
    for length in 0..bytes.len() {
        let read = WatchCursor::from_bytes(bytes.get(..length).unwrap_or_default());
        ensure_error!(read, KvError::InvalidCursor { .. }, "the first {length} bytes of a cursor");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    for other in [longer, vec![0; bytes.len()], b"not a cursor".to_vec(), vec![0xff; 1000]] {
        let read = WatchCursor::from_bytes(&other);
        ensure_error!(read, KvError::InvalidCursor { .. }, "bytes that are no cursor");
    }
    Ok(())
}

/// Returns the first item of a watch, or the error that rejected its cursor at once.
async fn first_of(watch: KvResult<Watch>) -> KvResult<Option<KvUpdate>> {
    match watch {
        Ok(watch) => watch.next().await.transpose(),
        Err(error) => Err(error),
    }
}

async fn ensure_expired(
    fixture: &Fixture,
    store: &Store,
    cursor: WatchCursor,
    which: &str,
) -> CheckResult {
    fixture.step(format!("resuming from {which}"));
    let first = first_of(store.watch_from(WatchScope::All, cursor).await).await;
    ensure_error!(first, KvError::CursorExpired { .. }, "resuming from {which}");
    Ok(())
}

/// Uses a cursor in an empty store, and in one with more writes.
pub async fn a_cursor_of_another_store_has_expired(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, _) = written(fixture, &store).await?;
    let other = fixture.store().await?;
    for (.., cursor) in steps.iter().step_by(5) {
        ensure_expired(fixture, &other, *cursor, "a cursor of another store").await?;
    }
    written(fixture, &other).await?;
    other.put("more", "value").await?;
    for (.., cursor) in steps.iter().step_by(5) {
        ensure_expired(fixture, &other, *cursor, "a cursor of another store that is less far")
            .await?;
    }
    Ok(())
}

/// Uses a cursor while the new store has fewer writes than the old one had, as many, and more.
pub async fn a_cursor_of_an_earlier_incarnation_has_expired(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, observer) = written(fixture, &store).await?;
    drop(observer);
    fixture.connection().delete_store(store.name()).await?;
    let again = fixture.connection().store_with_config(store.name(), fixture.config()).await?;
    for _ in 0..3 {
        for (.., cursor) in steps.iter().step_by(5) {
            ensure_expired(fixture, &again, *cursor, "a cursor of an earlier incarnation").await?;
        }
        written(fixture, &again).await?;
    }
    Ok(())
}

/// Also checks a handle from before the deletion, if it has become a handle of the new store.
pub async fn the_incarnation_is_that_of_cursors(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let Some(incarnation) = store.incarnation() else { return Ok(()) };
    let (steps, observer) = written(fixture, &store).await?;
    drop(observer);
    let is_of_cursors = steps.iter().all(|(.., cursor)| *cursor.incarnation() == incarnation);
    ensure!(is_of_cursors, "the incarnation of a store is not that of its cursors");
    fixture.connection().delete_store(store.name()).await?;
    let again = fixture.connection().store_with_config(store.name(), fixture.config()).await?;
    let found = again.incarnation();
    ensure!(
        found.is_some_and(|found| found != incarnation),
        "a recreated store has the incarnation of the deleted one"
    );
    if store.refresh().await.is_ok() && store.get("key").await.is_ok() {
        ensure_eq!(
            store.incarnation(),
            found,
            "the incarnation through a handle from before the deletion"
        );
    }
    Ok(())
}

/// Simulates a server that was restored from a backup, with a valid cursor whose position is moved.
pub async fn a_cursor_ahead_of_the_store_has_expired(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, _) = written(fixture, &store).await?;
    let Some((.., cursor)) = steps.last() else {
        return Err(CheckFailure::new("nothing was written"));
    };
    let ahead = WatchCursor::new(*cursor.incarnation(), u64::MAX / 2, SystemTime::now());
    ensure_expired(fixture, &store, ahead, "a cursor that is ahead of the store").await
}

/// Returns the last state of every key that changed after the cursor. Returns `None` if the cursor
/// has expired.
async fn resumed_state(
    fixture: &Fixture,
    store: &Store,
    cursor: WatchCursor,
) -> CheckResult<Option<BTreeMap<String, KvEntry>>> {
    fixture.step("resuming from an old cursor");
    let mut delivered = BTreeMap::new();
    let watch = match store.watch_from(WatchScope::All, cursor).await {
        Ok(watch) => watch,
        Err(KvError::CursorExpired { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    loop {
        match watch.next().await {
            Some(Ok(KvUpdate::CaughtUp)) => return Ok(Some(delivered)),
            Some(Ok(KvUpdate::Put(entry) | KvUpdate::Delete(entry))) => {
                delivered.insert(entry.key.as_str().to_owned(), entry);
            }
            // The error is valid only in place of the first update, because delivered updates have
            // already been applied.
            Some(Err(KvError::CursorExpired { .. })) if delivered.is_empty() => return Ok(None),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(CheckFailure::new("a watch from an old cursor ended")),
        }
    }
}

/// Overwrites twenty keys fifty times: all of them, and all but one.
pub async fn an_old_cursor_skips_nothing(fixture: &Fixture) -> CheckResult {
    for anchored in [false, true] {
        let store = fixture.store().await?;
        let (steps, observer) = written(fixture, &store).await?;
        drop(observer);
        let mut log = WriteLog::default();
        let keys = ["a", "b", "c", "d"].map(String::from).into_iter();
        let keys = keys.chain((0..16).map(|number| format!("key.{number}"))).collect::<Vec<_>>();
        for round in 0..50 {
            let items =
                keys.iter().map(|key| (key.clone(), format!("{round}"))).collect::<Vec<_>>();
            let answers = store.put_many(items).await;
            for (key, answer) in keys.iter().zip(answers) {
                log.note(key, answer)?;
            }
        }
        if !anchored {
            log.note("anchor", store.put("anchor", "moved").await)?;
        }
        for (number, (.., cursor)) in steps.iter().enumerate().step_by(3) {
            let Some(delivered) = resumed_state(fixture, &store, *cursor).await? else {
                continue;
            };
            for (key, version) in log.newest() {
                let found = delivered.get(&key).map(|entry| entry.version);
                ensure_eq!(
                    found,
                    Some(version),
                    "the last write of key {key} after cursor {number}"
                );
            }
        }
    }
    Ok(())
}

/// Deletes and purges one key, and purges everything.
pub async fn deletions_after_a_cursor_are_not_skipped(fixture: &Fixture) -> CheckResult {
    for everything in [false, true] {
        let store = fixture.store().await?;
        for key in ["deleted", "purged", "other"] {
            store.put(key, "value").await?;
        }
        let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
        observer.state().await?;
        let cursor = observer.cursor()?;
        drop(observer);
        let mut expected = vec![
            ("deleted", KvOperation::Delete, store.delete("deleted").await?),
            ("purged", KvOperation::Purge, store.purge("purged").await?),
        ];
        if everything {
            expected.push(("other", KvOperation::Purge, store.purge("other").await?));
        }
        let Some(delivered) = resumed_state(fixture, &store, cursor).await? else {
            continue;
        };
        for (key, operation, version) in expected {
            let found = delivered.get(key).map(|entry| (entry.operation, entry.version));
            ensure_eq!(
                found,
                Some((operation, version)),
                "the deletion of key {key} after the cursor"
            );
        }
    }
    Ok(())
}

/// Uses tombstones without an expiry, with one, and after the expiry was removed again.
pub async fn deletions_under_other_settings_are_not_skipped(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("key", "value").await?;
    store.put("anchor", "value").await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    let cursor = observer.cursor()?;
    drop(observer);
    store.delete("key").await?;
    let reconcile = async |age| {
        let config = fixture.config().max_age(age).reconcile();
        fixture.connection().store_with_config(store.name(), config).await
    };
    reconcile(Some(Duration::from_millis(500))).await?;
    fixture.step("waiting until a tombstone is forgotten");
    while store.entry("key").await?.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for age in [Some(Duration::from_secs(3600)), None] {
        reconcile(age).await?;
        store.put("later", "value").await?;
        if let Some(delivered) = resumed_state(fixture, &store, cursor).await? {
            ensure!(
                delivered.contains_key("key"),
                "a deletion was skipped by a cursor with {age:?}"
            );
        }
    }
    Ok(())
}
