//! Invalid uses, and their errors.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::{
    DistroRwLock, DistroRwLockError, LeaderElection, LockOptions, LockedResourceReadProcessor,
    LockedResourceWriteProcessor, WithLockProcessError, processor_fn,
};
use shizuku_kv::{Connection, KvError, StoreConfig, connect};
use shizuku_kv_tests::faulty::{FaultyStore, ReadOnly};
use shizuku_kv_tests::{unique, urls};

use crate::rw_lock::handles;

#[tokio::test]
async fn invalid_name_is_rejected_without_a_request() {
    let store = connect("memory:").await.unwrap().store("s").await.unwrap();
    for (name, wrong_at, rule) in [
        ("", 0, "at least one token"),
        ("a..b", 2, "empty token"),
        ("a b", 1, "joined by single dots"),
        (".a", 0, "empty token"),
        ("_kv.x", 0, "reserved"),
    ] {
        let error = DistroRwLock::new(&store, name).unwrap_err();
        // The error names the lock, and not its key.
        let is_right = matches!(
            &error,
            DistroRwLockError::InvalidResource {
                resource,
                source: KvError::InvalidKey { key, position, reason, .. },
                ..
            } if resource == name && key == name && *position == wrong_at && reason.contains(rule)
        );
        assert!(is_right, "{name:?}: {error:?}");
        assert!(error.to_string().contains(rule), "{error}");
        assert!(LeaderElection::new(&store, name, "me").is_err());
        let acquired = DistroRwLock::acquire_write(&store, name).await;
        assert!(matches!(acquired, Err(DistroRwLockError::InvalidResource { .. })));
    }
    let longest = "x".repeat(1016);
    assert!(DistroRwLock::new(&store, &longest).is_ok());
    let error = DistroRwLock::new(&store, longest + "x").unwrap_err();
    assert!(error.to_string().len() < 400, "a long name is cut: {error}");
    assert!(store.keys(shizuku_kv::WatchScope::All).try_collect().await.unwrap().is_empty());
}

#[tokio::test]
async fn lease_out_of_range_is_rejected() {
    let store = connect("memory:").await.unwrap().store("s").await.unwrap();
    for lease in
        [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(3601), Duration::MAX]
    {
        let options = LockOptions::new().lease(lease);
        let error = DistroRwLock::with_options(&store, "r", options).unwrap_err();
        assert!(matches!(error, DistroRwLockError::InvalidLease { .. }), "{error:?}");
        assert!(error.to_string().contains("from 1s to 3600s"), "{error}");
    }
    // The wait has no such limits.
    let options = LockOptions::new().lease(Duration::from_secs(1)).wait(Duration::MAX);
    let lock = DistroRwLock::with_options(&store, "r", options).unwrap();
    lock.write().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn read_only_store_has_no_locks() {
    let store = connect("memory:").await.unwrap().store("s").await.unwrap();
    let store = FaultyStore::over(&store, &Arc::new(ReadOnly));
    let error = DistroRwLock::new(&store, "r").unwrap_err();
    assert!(
        matches!(&error, DistroRwLockError::Unsupported { reason, .. } if reason.contains("compare and swap"))
    );
    assert!(matches!(
        DistroRwLock::release_read(&store, "r").await,
        Err(DistroRwLockError::Unsupported { .. })
    ));
}

/// The record of a held lock would expire like other values.
#[tokio::test]
async fn store_with_max_age_has_no_locks() {
    for url in urls() {
        let connection = connect(&url).await.unwrap();
        let config = StoreConfig::new().max_age(Duration::from_secs(60));
        let store = connection.store_with_config(&unique("aging"), config).await.unwrap();
        let error = DistroRwLock::new(&store, "r").unwrap_err();
        assert!(
            matches!(&error, DistroRwLockError::Unsupported { reason, .. } if reason.contains("expire"))
        );
        // Single keys that expire do no harm.
        if connection.capabilities().key_ttl {
            let config = StoreConfig::new().key_ttl(true);
            let store = connection.store_with_config(&unique("leases"), config).await.unwrap();
            let lock = DistroRwLock::new(&store, "r").unwrap();
            lock.write().await.unwrap().release().await.unwrap();
        }
    }
}

#[tokio::test]
async fn reentrant_claim_is_rejected() {
    for stores in handles(2).await {
        let [store, other] = [stores[0].clone(), stores[1].clone()];
        let inner = processor_fn({
            let store = store.clone();
            move |resource: &'static str| {
                let store = store.clone();
                async move {
                    let lock = DistroRwLock::new(&store, resource)?;
                    lock.read().await?.release().await
                }
            }
        });
        let inner = Arc::new(inner);
        let reading = LockedResourceReadProcessor::new(Arc::clone(&inner), &store, "r");
        let error = reading.process("r").await.unwrap_err();
        let is_reentrant = |error: &WithLockProcessError<DistroRwLockError>| {
            matches!(error, WithLockProcessError::Process(DistroRwLockError::Reentrant { .. }))
        };
        assert!(is_reentrant(&error), "{error:?}");
        // The same through another processor in between.
        let nested = LockedResourceWriteProcessor::new(Arc::clone(&inner), &store, "other");
        let outer = LockedResourceWriteProcessor::new(Arc::new(nested), &store, "r");
        let error = outer.process("r").await.unwrap_err();
        assert!(
            matches!(&error, WithLockProcessError::Process(error) if is_reentrant(error)),
            "{error:?}"
        );
        outer.process("third").await.unwrap();
        // The lock was released, and a later claim is not considered nested.
        let lock = DistroRwLock::new(&other, "r").unwrap();
        lock.try_write().await.unwrap().release().await.unwrap();
        DistroRwLock::new(&store, "r").unwrap().write().await.unwrap().release().await.unwrap();
    }
}
