//! The wait of a claim, and the order of the claims of one process.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::{
    DistroRwLock, DistroRwLockError, LeaderElection, LockOptions, LockedResourceReadProcessor,
    processor_fn,
};

use crate::rw_lock::{handles, in_line};

/// The wait applies to other holders; the store has its own deadline.
#[tokio::test]
async fn free_lock_is_acquired_with_any_wait() {
    for wait in [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(50)] {
        for stores in handles(2).await {
            let options = LockOptions::new().wait(wait);
            let lock = DistroRwLock::with_options(&stores[0], "r", options.clone()).unwrap();
            for _ in 0..3 {
                lock.write().await.unwrap().release().await.unwrap();
                lock.read().await.unwrap().release().await.unwrap();
            }
            let work = processor_fn(async |(): ()| Ok::<_, std::convert::Infallible>(7));
            let work = LockedResourceReadProcessor::new(Arc::new(work), &stores[0], "r");
            assert_eq!(work.options(options.clone()).process(()).await.unwrap(), 7);
            let election = LeaderElection::with_options(&stores[0], "job", "me", options).unwrap();
            election.campaign().await.unwrap().resign().await.unwrap();

            let other = DistroRwLock::new(&stores[1], "r").unwrap();
            let held = other.write().await.unwrap();
            for _ in 0..3 {
                let late = lock.read().await.unwrap_err();
                assert!(
                    matches!(late, DistroRwLockError::Timeout { waited, .. } if waited == wait),
                    "{late:?}"
                );
            }
            in_line(&other, 0).await;
            held.release().await.unwrap();
            lock.write().await.unwrap().release().await.unwrap();
        }
    }
}

/// Each length of lease has a session of its own: an existing one, and one that is yet to be
/// created.
#[tokio::test]
async fn claims_with_different_leases_keep_their_order() {
    for has_session in [true, false] {
        for stores in handles(2).await {
            let lock = |lease: u64, label: usize| {
                let options = LockOptions::new()
                    .lease(Duration::from_secs(lease))
                    .wait(Duration::from_secs(20))
                    .label(label.to_string());
                DistroRwLock::with_options(&stores[0], "r", options).unwrap()
            };
            let other = |lease: u64| {
                let options = LockOptions::new().lease(Duration::from_secs(lease));
                DistroRwLock::with_options(&stores[0], "other", options).unwrap()
            };
            // A session whose claims have larger numbers.
            for _ in 0..20 {
                other(10).write().await.unwrap().release().await.unwrap();
            }
            if has_session {
                other(20).write().await.unwrap().release().await.unwrap();
                other(30).write().await.unwrap().release().await.unwrap();
            }
            let view = DistroRwLock::new(&stores[1], "r").unwrap();
            let held = view.write().await.unwrap();
            let waiting: Vec<_> = [20, 10, 30, 10, 20, 30]
                .into_iter()
                .enumerate()
                .map(|(number, lease)| {
                    let lock = lock(lease, number);
                    tokio::spawn(
                        async move { lock.write().await.unwrap().release().await.unwrap() },
                    )
                })
                .collect();
            in_line(&view, waiting.len()).await;
            let state = view.inspect().await.unwrap();
            let order: Vec<_> =
                state.waiting.iter().filter_map(|claim| claim.label.as_deref()).collect();
            assert_eq!(order, ["0", "1", "2", "3", "4", "5"], "sessions were there: {has_session}");
            held.release().await.unwrap();
            for wait in waiting {
                wait.await.unwrap();
            }
        }
    }
}
