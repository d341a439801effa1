//! `modify`: it loses no write, ends, and reports why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use shizuku_kv::{
    KeyValue, KeyValueWrite, KvWriteError, Modify, ModifyAsync, Store, StoreConfig, TypedEntry,
};
use shizuku_kv_tests::faulty::{Fault, FaultyStore, On, Plan};

use crate::Outcome;
use crate::fixture::{Counter, counter, increment, store, store_with};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modify_loses_nothing_under_contention() -> Outcome {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 25;
    let store = store().await;
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                Counter::modify(&store, "hits", |hits| Some(increment("hits", hits)))
                    .await
                    .unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await?;
    }
    assert_eq!(Counter::read_from(&store, "hits").await?, Some(counter("hits", TASKS * ROUNDS)));
    Ok(())
}

#[tokio::test]
async fn modify_creates_changes_keeps_and_rejects() -> Outcome {
    let store = store().await;
    assert!(Counter::modify(&store, "a", |found| found).await?.is_none());
    let created = Counter::modify(&store, "a", |found| Some(increment("a", found))).await?.unwrap();
    assert_eq!((created.count.0, TypedEntry::created(&created)), (1, None));
    // The record stays unchanged, without a write.
    let left = Counter::modify(&store, "a", |_| None).await?.unwrap();
    assert_eq!((TypedEntry::version(&left), left.count.0), (TypedEntry::version(&created), 1));
    // Modifies over a tombstone.
    Counter::delete_anyway(&store, "a").await?;
    let mut found = Some(true);
    let again = Counter::modify(&store, "a", |counter| {
        found = Some(counter.is_some());
        Some(increment("a", counter))
    });
    assert_eq!(again.await?.unwrap().count.0, 1);
    assert_eq!(found, Some(false));

    let error = Counter::modify(&store, "a", |_| Some(counter("b", 1))).await.unwrap_err();
    assert!(
        matches!(&error, KvWriteError::KeyMismatch { key, own, .. } if key == "a" && own == "b"),
        "{error}"
    );
    let error = Counter::modify(&store, "a", |_| Some(counter("a", u64::MAX))).await.unwrap_err();
    assert_eq!(error.to_string(), "Counter for key a cannot be encoded: the count is at its end");
    assert!(!error.is_conflict() && !error.is_retryable());
    assert_eq!(Counter::read_from(&store, "b").await?, None);
    Ok(())
}

#[derive(Debug)]
enum Declined {
    Store(KvWriteError),
    Enough(u64),
}

impl From<KvWriteError> for Declined {
    fn from(error: KvWriteError) -> Self {
        Self::Store(error)
    }
}

#[tokio::test]
async fn modify_deletes_the_version_it_has_read() -> Outcome {
    let store = store().await;
    assert!(Counter::modify(&store, "a", |_| Modify::Delete).await?.is_none());
    assert!(store.entry("a").await?.is_none(), "deleting an absent record writes nothing");
    counter("a", 1).write_to_anyway(&store).await?;
    // Another process writes between the read and the deletion of the first attempt.
    let mut attempts = 0;
    let (other, seen) = (store.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let left = Counter::modify(&store, "a", |found: Option<Counter>| {
        attempts += 1;
        let (other, seen, attempt) = (other.clone(), Arc::clone(&seen), attempts);
        ModifyAsync(async move {
            seen.lock().unwrap().push(found.map(|found| found.count.0));
            if attempt == 1 {
                counter("a", 2).write_to_anyway(&other).await?;
            }
            Ok::<_, KvWriteError>(Modify::Delete)
        })
    });
    assert!(left.await?.is_none());
    assert_eq!(*seen.lock().unwrap(), [Some(1), Some(2)]);
    assert_eq!(Counter::read_from(&store, "a").await?, None);
    Ok(())
}

#[tokio::test]
async fn modify_returns_the_error_of_its_change() -> Outcome {
    let store = store().await;
    let version = counter("a", 7).write_to_anyway(&store).await?;
    let refused = Counter::modify(&store, "a", |found| match found {
        Some(found) if found.count.0 > 5 => Err(Declined::Enough(found.count.0)),
        found => Ok(Some(increment("a", found))),
    });
    assert!(matches!(refused.await, Err(Declined::Enough(7))));
    assert_eq!(store.get("a").await?.map(|entry| entry.version), Some(version));
    // A closure of the same type that does not decline.
    let changed = Counter::modify(&store, "b", |found| match found {
        Some(found) => Err(Declined::Enough(found.count.0)),
        found => Ok(Some(increment("b", found))),
    });
    assert_eq!(changed.await.unwrap().unwrap().count.0, 1);
    // The library's own errors are converted to that error type.
    let other = Counter::modify(&store, "a", |_| Ok::<_, Declined>(Some(counter("b", 1)))).await;
    assert!(matches!(other, Err(Declined::Store(KvWriteError::KeyMismatch { .. }))));
    Ok(())
}

/// The deadline of `modify` includes the time of the change, and drops its future.
#[tokio::test(start_paused = true)]
async fn modify_bounds_a_waiting_change() -> Outcome {
    let store = store().await.with_deadline(Duration::from_secs(1));
    counter("a", 1).write_to_anyway(&store).await?;
    let alive = Arc::new(());
    let begun = tokio::time::Instant::now();
    let error = Counter::modify(&store, "a", |found: Option<Counter>| {
        let alive = Arc::clone(&alive);
        ModifyAsync(async move {
            std::future::pending::<()>().await;
            drop(alive);
            found
        })
    });
    let error = error.await.unwrap_err().to_string();
    assert!(error.starts_with("modify of key a did not end within 1s"), "{error}");
    assert!(begun.elapsed() <= Duration::from_millis(1_010));
    assert_eq!(Arc::strong_count(&alive), 1);
    // Dropping the future of `modify` drops the future of its change.
    let pending = Counter::modify(&store, "a", |found: Option<Counter>| {
        let alive = Arc::clone(&alive);
        ModifyAsync(async move {
            std::future::pending::<()>().await;
            drop(alive);
            found
        })
    });
    assert!(pending.now_or_never().is_none());
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_eq!(Counter::read_from(&store, "a").await?, Some(counter("a", 1)));
    Ok(())
}

/// Another writer always writes first: `modify` gives up after a bounded number of attempts.
#[tokio::test(start_paused = true)]
async fn modify_gives_up_when_it_always_loses() -> Outcome {
    let store = store_with(StoreConfig::new().deadline(Duration::from_secs(60))).await;
    counter("a", 0).write_to_anyway(&store).await?;
    let attempts = AtomicU32::new(0);
    let other = store.clone();
    let error = Counter::modify(&store, "a", |found| {
        attempts.fetch_add(1, Ordering::Relaxed);
        let count = u64::from(attempts.load(Ordering::Relaxed));
        counter("a", count).write_to_anyway(&other).now_or_never();
        Some(increment("a", found))
    })
    .await;
    let written = Counter::read_from(&store, "a").await?.unwrap().count.0;
    match error {
        Err(KvWriteError::Contended { ref key, attempts: tried, .. }) => {
            assert_eq!((key.as_str(), tried, attempts.load(Ordering::Relaxed)), ("a", 32, 32));
            assert_eq!(written, 32);
            let error = error.unwrap_err();
            assert!(error.is_conflict() && error.is_retryable());
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

/// Returns a store with slow reads and writes, and the plan that counts them.
fn slow(inner: &Store, read: u64, write: u64) -> (Arc<Plan>, Store) {
    let plan = Arc::new(Plan::default());
    plan.add(On::call("entry"), Fault::delay(Duration::from_millis(read)));
    for name in ["create", "update"] {
        plan.add(On::call(name), Fault::delay(Duration::from_millis(write)));
    }
    let store = FaultyStore::over(inner, &plan).with_deadline(Duration::from_secs(1));
    (plan, store)
}

/// The deadline covers the whole: reading and writing share it, and the error names the configured
/// one.
#[tokio::test(start_paused = true)]
async fn modify_has_one_deadline_for_reading_and_writing() -> Outcome {
    let inner = store().await;
    // The time of a read, the time of a write, and the number of started writes.
    for (read, write, writes) in [(700, 700, 1), (1_000, 0, 0), (2_000, 0, 0), (0, 2_000, 1)] {
        for exists in [false, true] {
            inner.purge("a").await?;
            if exists {
                counter("a", 1).write_to_anyway(&inner).await?;
            }
            let (plan, store) = slow(&inner, read, write);
            let start = tokio::time::Instant::now();
            let error = Counter::modify(&store, "a", |found| Some(increment("a", found)))
                .await
                .unwrap_err();
            let took = start.elapsed();
            let text = error.to_string();
            assert!(
                text.starts_with("modify of key a did not end within 1s; "),
                "{read} {write}: {text}"
            );
            assert!(took <= Duration::from_millis(1_010), "{read} {write}: {took:?}");
            let begun = plan.calls("create") + plan.calls("update");
            assert_eq!(begun, writes, "{read} {write}");
            let found = Counter::read_from(&inner, "a").await?;
            assert_eq!(found, exists.then(|| counter("a", 1)), "{read} {write}");
        }
    }
    let (_, store) = slow(&inner, 400, 400);
    assert_eq!(
        Counter::modify(&store, "a", |found| Some(increment("a", found))).await?.unwrap().count.0,
        2
    );
    Ok(())
}
