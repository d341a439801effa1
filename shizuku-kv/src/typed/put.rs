//! Writing bytes for a record's type: with its time to live where it has one, or under a lock.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use super::KeyValue;
use super::error::type_name;
use crate::store::{
    Deadline, FencingToken, Key, KvError, KvResult, Store, StoreFenced, StoreTtl, VersionToken,
};

/// How many writes with a time to live are on their way at a time.
const IN_FLIGHT: usize = 256;

/// For how many writes the whole has a deadline more.
const TURN: usize = 1024;

pub(super) async fn put<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
) -> KvResult<VersionToken> {
    match T::kv_ttl() {
        None => store.put(key, bytes).await,
        Some(ttl) => expiring::<T>(store, "put")?.put(key, bytes, ttl).await,
    }
}

pub(super) async fn create<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
) -> KvResult<VersionToken> {
    match T::kv_ttl() {
        None => store.create(key, bytes).await,
        Some(ttl) => expiring::<T>(store, "create")?.create(key, bytes, ttl).await,
    }
}

pub(super) async fn update<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    expected: VersionToken,
) -> KvResult<VersionToken> {
    match T::kv_ttl() {
        None => store.update(key, bytes, expected).await,
        Some(ttl) => expiring::<T>(store, "update")?.update(key, bytes, expected, ttl).await,
    }
}

/// The answers are in the order of the items.
pub(super) async fn put_many<T: KeyValue>(
    store: &Store,
    items: Vec<(Key, Bytes)>,
) -> Vec<KvResult<VersionToken>> {
    let Some(ttl) = T::kv_ttl() else { return store.put_many(items).await };
    // As `Store::put_many` bounds the whole.
    let turns = u32::try_from(items.len().div_ceil(TURN)).unwrap_or(u32::MAX);
    let whole = Deadline::after(store.deadline().saturating_mul(turns.saturating_add(1)));
    let mut answers = Vec::with_capacity(items.len());
    for wave in waves(items) {
        // With none left nothing is sent.
        let store = &store.with_deadline(store.deadline().min(whole.remaining()));
        let writes = wave.into_iter().map(|(key, bytes)| put_expiring::<T>(store, key, bytes, ttl));
        answers.extend(stream::iter(writes).buffered(IN_FLIGHT).collect::<Vec<_>>().await);
    }
    answers
}

async fn put_expiring<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    ttl: Duration,
) -> KvResult<VersionToken> {
    expiring::<T>(store, "put_many")?.put(key, bytes, ttl).await
}

/// The items in runs without a key that is there twice: what is on its way at once has no order.
fn waves(items: Vec<(Key, Bytes)>) -> Vec<Vec<(Key, Bytes)>> {
    let mut waves = Vec::new();
    let mut wave = Vec::new();
    let mut keys = HashSet::new();
    for (key, bytes) in items {
        if !keys.insert(key.clone()) {
            waves.push(std::mem::take(&mut wave));
            keys = HashSet::from([key.clone()]);
        }
        wave.push((key, bytes));
    }
    waves.push(wave);
    waves
}

/// The store's times to live, which the type cannot do without.
fn expiring<'s, T>(store: &'s Store, operation: &'static str) -> KvResult<StoreTtl<'s>> {
    store.ttl().ok_or_else(|| KvError::Unsupported {
        operation,
        reason: format!(
            "{} has a time to live, and store {:?} was opened without any for single keys: open it with \
             `StoreConfig::new().key_ttl(true)`, and with `.reconcile()` where it was made without",
            type_name::<T>(),
            store.name(),
        ),
    })
}

pub(super) async fn put_fenced<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    token: FencingToken,
) -> KvResult<VersionToken> {
    lasting::<T>(store, "fenced put")?.put(key, bytes, token).await
}

pub(super) async fn create_fenced<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    token: FencingToken,
) -> KvResult<VersionToken> {
    lasting::<T>(store, "fenced create")?.create(key, bytes, token).await
}

pub(super) async fn update_fenced<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    expected: VersionToken,
    token: FencingToken,
) -> KvResult<VersionToken> {
    lasting::<T>(store, "fenced update")?.update(key, bytes, expected, token).await
}

/// Of no type: a deletion has no time to live, whatever its record has.
pub(super) async fn delete_fenced(
    store: &Store,
    key: Key,
    token: FencingToken,
) -> KvResult<VersionToken> {
    fenced(store, "fenced delete")?.delete(key, token).await
}

/// The store's fenced writes, for a type that does not expire: the token would expire with the value.
fn lasting<'s, T: KeyValue>(
    store: &'s Store,
    operation: &'static str,
) -> KvResult<StoreFenced<'s>> {
    if T::kv_ttl().is_some() {
        return Err(KvError::Unsupported {
            operation,
            reason: format!(
                "{} has a time to live, with which its fencing token would end too: take one type for what is written \
                 under a lock and another for what expires",
                type_name::<T>(),
            ),
        });
    }
    fenced(store, operation)
}

fn fenced<'s>(store: &'s Store, operation: &'static str) -> KvResult<StoreFenced<'s>> {
    store.fenced().ok_or_else(|| KvError::Unsupported {
        operation,
        reason: format!(
            "store {:?} cannot keep fencing tokens: it has a maximum age, drops the oldest when it is full, or has no \
             room for them; use one that keeps what is in it",
            store.name(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_twice_in_a_wave_and_the_order_stays() -> KvResult<()> {
        let keys = ["a", "b", "a", "a", "c", "b", "c"].into_iter().map(Key::new);
        let items = keys.map(|key| Ok((key?, Bytes::new()))).collect::<KvResult<Vec<_>>>()?;
        let waves = waves(items.clone());
        let lengths = waves.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths, [2, 1, 3, 1]);
        assert_eq!(waves.concat(), items);
        Ok(())
    }
}
