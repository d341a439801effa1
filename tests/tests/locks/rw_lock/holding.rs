//! Holders, and the order of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockLoss, LockMode};

use crate::rw_lock::{handles, in_line, start_waiting, within};

#[tokio::test]
async fn readers_share_and_writer_is_exclusive() {
    for stores in handles(3).await {
        let locks: Vec<_> =
            stores.iter().map(|store| DistroRwLock::new(store, "r").unwrap()).collect();
        let one = locks[0].read().await.unwrap();
        let other = locks[1].read().await.unwrap();
        let rejected = locks[2].try_write().await.unwrap_err();
        assert!(
            matches!(rejected, DistroRwLockError::WouldBlock { mode: LockMode::Write, .. }),
            "{rejected:?}"
        );
        assert!(other.fencing_token() > one.fencing_token());
        one.release().await.unwrap();
        other.release().await.unwrap();
        let writer = locks[2].try_write().await.unwrap();
        assert!(matches!(locks[0].try_read().await, Err(DistroRwLockError::WouldBlock { .. })));
        assert!(matches!(locks[2].try_read().await, Err(DistroRwLockError::WouldBlock { .. })));
        assert!(writer.is_held());
        writer.release().await.unwrap();
    }
}

#[tokio::test]
async fn waiting_writer_precedes_later_readers() {
    for stores in handles(3).await {
        let locks: Vec<_> =
            stores.iter().map(|store| DistroRwLock::new(store, "r").unwrap()).collect();
        let reader = locks[0].read().await.unwrap();
        let writer = start_waiting(&locks[1]);
        in_line(&locks[0], 1).await;
        let late = tokio::spawn({
            let lock = locks[2].clone();
            async move { lock.read().await.unwrap() }
        });
        in_line(&locks[0], 2).await;
        assert!(locks[0].try_read().await.is_err());
        reader.release().await.unwrap();
        let writer = writer.await.unwrap().unwrap();
        assert!(!late.is_finished());
        let token = writer.fencing_token();
        writer.release().await.unwrap();
        assert!(late.await.unwrap().fencing_token() > token);
    }
}

#[tokio::test]
async fn writer_is_downgraded_to_reader() {
    for stores in handles(2).await {
        let [first, second] = [0, 1].map(|n| DistroRwLock::new(&stores[n], "r").unwrap());
        let writer = first.write().await.unwrap();
        let token = writer.fencing_token();
        let reader = writer.downgrade().await.unwrap();
        assert_eq!(reader.fencing_token(), token);
        second.try_read().await.unwrap().release().await.unwrap();
        assert!(second.try_write().await.is_err());
        reader.release().await.unwrap();
        second.try_write().await.unwrap().release().await.unwrap();
    }
}

#[tokio::test]
async fn break_grants_next_waiter_and_notifies_holder() {
    for stores in handles(2).await {
        let [first, second] = [0, 1].map(|n| DistroRwLock::new(&stores[n], "r").unwrap());
        let held = first.write().await.unwrap();
        let token = held.fencing_token();
        second.break_lock().await.unwrap();
        assert_eq!(within(held.lost()).await, LockLoss::Broken);
        assert!(!held.is_held());
        let then = second.try_write().await.unwrap();
        assert!(
            then.fencing_token().as_u64() > token.as_u64() + 1,
            "breaking moves the token by itself"
        );
        let error = held.release().await.unwrap_err();
        assert!(
            matches!(error, DistroRwLockError::LeaseLost { reason: LockLoss::Broken, .. }),
            "{error:?}"
        );
        // The release of a former holder does not affect the present one.
        assert_eq!(second.inspect().await.unwrap().holders.len(), 1);
        then.release().await.unwrap();
    }
}

#[tokio::test]
async fn locks_without_guards_belong_to_the_process() {
    for stores in handles(2).await {
        let [here, there] = [&stores[0], &stores[1]];
        let not_held = |error: DistroRwLockError| {
            assert!(matches!(error, DistroRwLockError::NotHeld { .. }), "{error:?}")
        };
        not_held(DistroRwLock::release_read(here, "r").await.unwrap_err());
        DistroRwLock::acquire_read(here, "r").await.unwrap();
        DistroRwLock::acquire_read(&here.clone(), "r").await.unwrap();
        not_held(DistroRwLock::release_write(here, "r").await.unwrap_err());
        not_held(DistroRwLock::release_read(there, "r").await.unwrap_err());
        DistroRwLock::release_read(here, "r").await.unwrap();
        let writer = DistroRwLock::new(there, "r").unwrap();
        assert!(writer.try_write().await.is_err());
        DistroRwLock::release_read(&here.clone(), "r").await.unwrap();
        not_held(DistroRwLock::release_read(here, "r").await.unwrap_err());
        DistroRwLock::acquire_write(here, "r").await.unwrap();
        assert!(writer.try_read().await.is_err());
        DistroRwLock::release_write(here, "r").await.unwrap();
        writer.try_write().await.unwrap().release().await.unwrap();
    }
}

#[tokio::test]
async fn many_waiters_are_all_granted() {
    for stores in handles(4).await {
        let mut tasks = tokio::task::JoinSet::new();
        let inside = Arc::new(AtomicI64::new(0));
        for number in 0..40_usize {
            let lock = DistroRwLock::new(&stores[number % 4], "r").unwrap();
            let inside = inside.clone();
            tasks.spawn(async move {
                for _ in 0..5 {
                    if number % 5 == 0 {
                        let guard = lock.write().await.unwrap();
                        assert_eq!(inside.fetch_sub(1000, SeqCst), 0, "a writer is alone");
                        tokio::task::yield_now().await;
                        inside.fetch_add(1000, SeqCst);
                        guard.release().await.unwrap();
                    } else {
                        let guard = lock.read().await.unwrap();
                        assert!(inside.fetch_add(1, SeqCst) >= 0, "no writer is there");
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, SeqCst);
                        drop(guard);
                    }
                }
            });
        }
        let all = tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await;
        all.expect("all are granted");
    }
}
