//! Values: any bytes, empty ones included, up to a limit; shown nowhere.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::observe::Observer;
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{KvEntry, KvError, KvOperation, KvResult, VersionToken, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "values";
    an_empty_value_is_a_value [Write]
        "An empty value is a value like any other, never a tombstone.",
    an_empty_value_cannot_be_created_over [Write, CompareAndSwap]
        "An empty value is a value like any other: create over it is AlreadyExists, and it can \
         be swapped.",
    an_empty_value_arrives_at_a_watch [Write, Watch]
        "An empty value is a value like any other: it arrives as a put, in the initial state and \
         live.",
    any_bytes_come_back [Write]
        "Values are any bytes.",
    a_value_of_the_limit_fits [Write]
        "A value of max_value_size bytes can be written, whatever the key.",
    a_value_over_the_limit_is_rejected [Write]
        "A value over max_value_size is ValueTooLarge with its size and the limit, and nothing \
         is written.",
    a_swapped_value_over_the_limit_is_rejected [Write, CompareAndSwap]
        "create and update of a value over their limit, which is max_value_size or slightly \
         less, are ValueTooLarge. A value of that size fits.",
    the_default_limit_is_true [Write]
        "A store's default limit is one that it keeps.",
    large_values_arrive_everywhere [Write, Watch]
        "Values of the largest size arrive at every read and every watch, however many there are.",
    values_are_never_shown [Write, CompareAndSwap]
        "No error and no Debug output contains a value.",
};

/// Calls `get`, `entry`, `get_many`, `history`, `scan` and `keys`.
pub async fn an_empty_value_is_a_value(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = store.put("empty", Bytes::new()).await?;
    let mut found =
        vec![("get", store.get("empty").await?), ("entry", store.entry("empty").await?)];
    found.extend(store.get_many(["empty"]).await?.into_iter().map(|entry| ("get_many", entry)));
    let history = store.history("empty")?.try_collect().await?;
    found.extend(history.into_iter().map(|entry| ("history", Some(entry))));
    let scan = store.scan(WatchScope::All).try_collect().await?;
    found.extend(scan.into_iter().map(|entry| ("scan", Some(entry))));
    let operations = found.iter().map(|(operation, _)| *operation).collect::<Vec<_>>();
    ensure_eq!(operations, ["get", "entry", "get_many", "history", "scan"], "what answered");
    for (operation, entry) in found {
        let Some(entry) = entry else {
            return Err(CheckFailure::new(format!("{operation} finds an empty value absent")));
        };
        let found = (entry.operation, entry.value.len(), entry.version);
        ensure_eq!(
            found,
            (KvOperation::Put, 0, version),
            "the empty value as {operation} finds it"
        );
    }
    ensure_eq!(
        store.keys(WatchScope::All).try_collect().await?,
        ["empty"],
        "the keys of the store"
    );
    Ok(())
}

/// Calls `create` and `update` on an empty value.
pub async fn an_empty_value_cannot_be_created_over(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = store.create("empty", "").await?;
    let again = store.create("empty", "full").await;
    ensure_error!(again, KvError::AlreadyExists { .. }, "create over an empty value");
    let version = store.update("empty", "full", version).await?;
    store.update("empty", "", version).await?;
    ensure!(
        store.get("empty").await?.is_some(),
        "a key that was updated to an empty value is absent"
    );
    Ok(())
}

/// Writes it before the caught-up marker and after it.
pub async fn an_empty_value_arrives_at_a_watch(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let first = store.put("empty", "").await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let state = observer.state().await?;
    let found = state.iter().map(|entry| (entry.operation, entry.version)).collect::<Vec<_>>();
    ensure_eq!(found, [(KvOperation::Put, first)], "the state with an empty value");
    let second = store.put("empty", "").await?;
    let entry = observer.reach("empty", second).await?;
    ensure_eq!(
        entry.operation,
        KvOperation::Put,
        "the operation of a live update to an empty value"
    );
    Ok(())
}

/// Uses every byte, runs of zeros, text in no encoding, and bytes with a meaning in protocols.
pub async fn any_bytes_come_back(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let values: [Vec<u8>; 7] = [
        (0..=255).collect(),
        vec![0],
        vec![0; 3000],
        vec![0xff; 3000],
        b"\r\n".to_vec(),
        b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n".to_vec(),
        b"DEL".to_vec(),
    ];
    for (number, value) in values.iter().enumerate() {
        store.put(format!("key.{number}"), value.clone()).await?;
    }
    for (number, value) in values.iter().enumerate() {
        let entry = store.get(format!("key.{number}")).await?;
        ensure!(
            entry.is_some_and(|entry| entry.value == *value),
            "value {number} came back changed"
        );
    }
    Ok(())
}

/// Writes through `put` and `put_many`, under a short and the longest key.
pub async fn a_value_of_the_limit_fits(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_value_size(4096)).await?;
    ensure_eq!(store.max_value_size(), 4096, "the limit that was asked for");
    let value = Bytes::from(vec![b'v'; 4096]);
    let longest = "k".repeat(1024);
    store.put("put", value.clone()).await?;
    store.put(&longest, value.clone()).await?;
    for answer in store.put_many([("put_many", value.clone())]).await {
        answer?;
    }
    for key in ["put", &longest, "put_many"] {
        let entry = store.get(key).await?;
        ensure!(
            entry.is_some_and(|entry| entry.value == value),
            "a value of the limit came back changed"
        );
    }
    Ok(())
}

fn ensure_too_large(result: KvResult<VersionToken>, size: usize, limit: usize) -> CheckResult {
    match result {
        Err(KvError::ValueTooLarge { size: found, limit: named, .. }) => {
            ensure_eq!((found, named), (size, limit), "size and limit in the error");
            Ok(())
        }
        Err(error) => Err(CheckFailure::new(format!("expected ValueTooLarge, found: {error}"))),
        Ok(_) => Err(CheckFailure::new(format!(
            "a value of {size} bytes was written over the limit {limit}"
        ))),
    }
}

/// Writes through `put` and `put_many`, one byte over and far over the limit.
pub async fn a_value_over_the_limit_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_value_size(1000)).await?;
    let before = store.put("key", "small").await?;
    for size in [1001, 100_000] {
        let value = Bytes::from(vec![b'v'; size]);
        ensure_too_large(store.put("key", value.clone()).await, size, 1000)?;
        ensure_too_large(store.put("other", value.clone()).await, size, 1000)?;
        for answer in store.put_many([("key", value)]).await {
            ensure_too_large(answer, size, 1000)?;
        }
    }
    let found = store.get("key").await?.map(|entry| entry.version);
    ensure_eq!(found, Some(before), "the version after rejected writes");
    ensure!(store.entry("other").await?.is_none(), "a rejected write left something behind");
    Ok(())
}

/// Writes through `create` and `update`.
pub async fn a_swapped_value_over_the_limit_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_value_size(1000)).await?;
    let value = Bytes::from(vec![b'v'; 1001]);
    ensure_too_large(store.create("key", value.clone()).await, 1001, 1000)?;
    ensure!(store.entry("key").await?.is_none(), "a rejected create left something behind");
    let room = room(store.create("key", vec![b'v'; 1000]).await)?;
    let before = match room {
        None => store.get("key").await?.map(|entry| entry.version),
        Some(room) => Some(store.create("key", vec![b'v'; room]).await?),
    };
    let Some(before) = before else { return Err(CheckFailure::new("a created value is absent")) };
    ensure_too_large(store.update("key", value, before).await, 1001, 1000)?;
    // An expected version may reduce the room for the value further.
    store
        .update("key", vec![b'w'; room.map_or(1000, |room| room.saturating_sub(20))], before)
        .await?;
    Ok(())
}

/// Returns the limit that rejected a value of 1,000 bytes, or `None` if it was written.
fn room(written: KvResult<VersionToken>) -> CheckResult<Option<usize>> {
    match written {
        Ok(_) => Ok(None),
        Err(KvError::ValueTooLarge { size: 1000, limit, .. }) if (800..1000).contains(&limit) => {
            Ok(Some(limit))
        }
        Err(error) => {
            Err(CheckFailure::new(format!("a swapped value of max_value_size bytes: {error}")))
        }
    }
}

/// Writes a value of the limit, and checks that one over it is rejected, if the limit is small
/// enough to try.
pub async fn the_default_limit_is_true(fixture: &Fixture) -> CheckResult {
    const TRIED: usize = 8 << 20;
    let store = fixture.store().await?;
    let limit = store.max_value_size();
    ensure!(limit >= 4096, "a limit of {limit} bytes is too small to be of use");
    let size = limit.min(TRIED);
    let value = Bytes::from(vec![b'v'; size]);
    let longest = "k".repeat(1024);
    store.put(&longest, value.clone()).await?;
    let entry = store.get(&longest).await?;
    ensure!(
        entry.is_some_and(|entry| entry.value == value),
        "a value of {size} bytes came back changed"
    );
    if limit <= TRIED {
        ensure_too_large(store.put("key", vec![b'v'; limit + 1]).await, limit + 1, limit)?;
        ensure!(store.entry("key").await?.is_none(), "a rejected write left something behind");
    }
    Ok(())
}

/// Writes twelve values of a megabyte, or of the limit if that is less.
pub async fn large_values_arrive_everywhere(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let size = store.max_value_size().min(1 << 20);
    let values =
        (0..12_u8).map(|number| (format!("key.{number:02}"), Bytes::from(vec![number; size])));
    let values = values.collect::<BTreeMap<_, _>>();
    for answer in store.put_many(values.clone()).await {
        answer?;
    }
    let whole = |entries: &[KvEntry]| {
        let mut found =
            entries.iter().map(|entry| (entry.key.as_str(), &entry.value)).collect::<Vec<_>>();
        found.sort_unstable();
        found.into_iter().eq(values.iter().map(|(key, value)| (key.as_str(), value)))
    };
    let many = store.get_many(values.keys()).await?.into_iter().flatten().collect::<Vec<_>>();
    ensure!(whole(&many), "get_many of large values has others than were written");
    let scan = store.scan(WatchScope::All).try_collect().await?;
    ensure!(whole(&scan), "a scan of large values has others than were written");
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    let state = observer.state().await?;
    ensure!(whole(&state), "the state of large values has others than were written");
    for answer in store.put_many(values.clone()).await {
        answer?;
    }
    for _ in &values {
        observer.entry("a large value").await?;
    }
    let live = observer.entries().get(values.len()..).unwrap_or_default();
    ensure!(whole(live), "live updates of large values have others than were written");
    Ok(())
}

/// Uses entries, handles, conflicts and values that are too large.
pub async fn values_are_never_shown(fixture: &Fixture) -> CheckResult {
    const SECRET: &str = "hunter2-do-not-show";
    let store = fixture.store_with(fixture.config().max_value_size(128)).await?;
    let version = store.create("key", SECRET).await?;
    let other = store.put("other", SECRET).await?;
    let mut shown = vec![
        format!("{:?}", store.get("key").await?),
        format!("{:?}", store.scan(WatchScope::All).try_collect().await?),
        format!("{store:?}"),
        format!("{:?}", store.backend()),
        format!("{:?}", fixture.connection()),
    ];
    let errors = [
        store.create("key", SECRET).await,
        store.update("key", SECRET, other).await,
        store.update("absent", SECRET, version).await,
        store.put("key", SECRET.repeat(10)).await,
        store.put("not a key", SECRET).await,
    ];
    for result in errors {
        let Err(error) = result else {
            return Err(CheckFailure::new("a write that had to be rejected succeeded"));
        };
        shown.extend([format!("{error}"), format!("{error:?}")]);
    }
    // Searches for the text, and for the numbers or hexadecimal digits that a derived `Debug` of
    // bytes would print.
    let numbers = format!("{:?}", SECRET.as_bytes());
    let numbers = numbers.trim_matches(['[', ']']);
    for text in shown {
        ensure!(
            !text.contains(SECRET) && !text.contains(numbers),
            "a value is shown in an error or Debug output"
        );
    }
    Ok(())
}
