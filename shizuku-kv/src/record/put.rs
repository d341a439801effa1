//! Writes the bytes of a record: with a time to live if its type has one, or under a lock (ADR
//! 0020).

use bytes::Bytes;

use super::KeyValue;
use super::error::type_name;
use crate::store::{
    FencingToken, Key, KvError, KvResult, Store, StoreFenced, StoreTtl, VersionToken,
};

pub(super) async fn put<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
) -> KvResult<VersionToken> {
    match T::kv_ttl() {
        None => store.put(key, bytes).await,
        Some(ttl) => expiring::<T>(store, "put").await?.put(key, bytes, ttl).await,
    }
}

pub(super) async fn create<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
) -> KvResult<VersionToken> {
    match T::kv_ttl() {
        None => store.create(key, bytes).await,
        Some(ttl) => expiring::<T>(store, "create").await?.create(key, bytes, ttl).await,
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
        Some(ttl) => expiring::<T>(store, "update").await?.update(key, bytes, expected, ttl).await,
    }
}

/// Returns the results in the order of the items.
pub(super) async fn put_many<T: KeyValue>(
    store: &Store,
    items: Vec<(Key, Bytes)>,
) -> Vec<KvResult<VersionToken>> {
    let Some(ttl) = T::kv_ttl() else { return store.put_many(items).await };
    match expiring::<T>(store, "put_many").await {
        Ok(expiring) => expiring.put_many(items, ttl).await,
        Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// Returns the store's times to live, which the type needs.
async fn expiring<'s, T>(store: &'s Store, operation: &'static str) -> KvResult<StoreTtl<'s>> {
    if store.ttl().is_none() && !store.deadline().is_zero() {
        // Another client may have changed the settings. Without an answer, the known ones apply.
        let _ = store.refresh().await;
    }
    store.ttl().ok_or_else(|| KvError::Unsupported {
        operation,
        reason: format!(
            "{} has a time to live, and store {:?} {}",
            type_name::<T>(),
            store.name(),
            store.backend().ttl_fault(),
        ),
    })
}

pub(super) async fn put_fenced<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    token: FencingToken,
) -> KvResult<VersionToken> {
    lasting::<T>(store, "write_fenced")?.put(key, bytes, token).await
}

pub(super) async fn create_fenced<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    token: FencingToken,
) -> KvResult<VersionToken> {
    lasting::<T>(store, "create_write_fenced")?.create(key, bytes, token).await
}

pub(super) async fn update_fenced<T: KeyValue>(
    store: &Store,
    key: Key,
    bytes: Bytes,
    expected: VersionToken,
    token: FencingToken,
) -> KvResult<VersionToken> {
    lasting::<T>(store, "write_fenced_atomically")?.update(key, bytes, expected, token).await
}

/// Has no type parameter, because a deletion has no time to live, whatever its record has.
pub(super) async fn delete_fenced(
    store: &Store,
    key: Key,
    token: FencingToken,
) -> KvResult<VersionToken> {
    fenced(store, "delete_fenced")?.delete(key, token).await
}

/// Returns the store's fenced writes, for a type that does not expire: the token would expire with
/// the value.
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
