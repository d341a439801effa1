//! Lost locks without a guard: they never prevent the release of a live one.

use std::time::Duration;

use shizuku_kv::Store;
use shizuku_kv::rw_lock::{
    DistroRwLock, DistroRwLockError, LeaderElection, LockLoss, LockMode,
    LockedResourceWriteProcessor, processor_fn,
};

use crate::rw_lock::{handles, runtime};

async fn acquire(store: &Store, mode: LockMode) {
    match mode {
        LockMode::Read => DistroRwLock::acquire_read(store, "r").await.unwrap(),
        LockMode::Write => DistroRwLock::acquire_write(store, "r").await.unwrap(),
    };
}

async fn release(store: &Store, mode: LockMode) -> Result<(), DistroRwLockError> {
    match mode {
        LockMode::Read => DistroRwLock::release_read(store, "r").await,
        LockMode::Write => DistroRwLock::release_write(store, "r").await,
    }
}

#[track_caller]
fn assert_not_held(answer: Result<(), DistroRwLockError>) {
    assert!(matches!(answer, Err(DistroRwLockError::NotHeld { .. })), "{answer:?}");
}

#[track_caller]
fn assert_lost(answer: Result<(), DistroRwLockError>) {
    let is_lost =
        matches!(answer, Err(DistroRwLockError::LeaseLost { reason: LockLoss::Broken, .. }));
    assert!(is_lost, "{answer:?}");
}

/// Tests one loss, and two in a row.
#[tokio::test]
async fn release_after_lost_holds_releases_the_live_one() {
    for stores in handles(2).await {
        let [here, operator] = [&stores[0], &stores[1]];
        let lock = DistroRwLock::new(operator, "r").unwrap();
        for mode in [LockMode::Read, LockMode::Write] {
            for losses in [1, 2] {
                for _ in 0..losses {
                    acquire(here, mode).await;
                    lock.break_lock().await.unwrap();
                }
                acquire(here, mode).await;
                assert_eq!(lock.inspect().await.unwrap().holders.len(), 1);
                release(here, mode).await.unwrap();
                assert!(
                    lock.inspect().await.unwrap().holders.is_empty(),
                    "{mode}, {losses} losses"
                );
                assert_not_held(release(here, mode).await);
                lock.try_write().await.unwrap().release().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn release_of_lost_holds_reports_each_loss() {
    for stores in handles(2).await {
        let [here, operator] = [&stores[0], &stores[1]];
        let lock = DistroRwLock::new(operator, "r").unwrap();
        acquire(here, LockMode::Read).await;
        acquire(here, LockMode::Read).await;
        lock.break_lock().await.unwrap();
        assert_lost(release(here, LockMode::Read).await);
        assert_lost(release(here, LockMode::Read).await);
        assert_not_held(release(here, LockMode::Read).await);
        acquire(here, LockMode::Write).await;
        lock.break_lock().await.unwrap();
        assert_lost(release(here, LockMode::Write).await);
        assert_not_held(release(here, LockMode::Write).await);
    }
}

/// A hold of a runtime that has ended is older than a live one of another.
#[test]
fn release_prefers_the_live_hold_to_an_older_lost_one() {
    let living = runtime();
    for stores in living.block_on(handles(2)) {
        let dying = runtime();
        dying.block_on(acquire(&stores[0], LockMode::Read));
        living.block_on(acquire(&stores[0], LockMode::Read));
        dying.shutdown_timeout(Duration::from_secs(5));
        living.block_on(async {
            let lock = DistroRwLock::new(&stores[1], "r").unwrap();
            assert_eq!(lock.inspect().await.unwrap().holders.len(), 2);
            release(&stores[0], LockMode::Read).await.unwrap();
            assert_eq!(lock.inspect().await.unwrap().holders.len(), 1, "the dead one is left");
            let lost = release(&stores[0], LockMode::Read).await.unwrap_err();
            assert!(matches!(lost, DistroRwLockError::LeaseLost { .. }), "{lost:?}");
            assert_not_held(release(&stores[0], LockMode::Read).await);
        });
    }
}

/// The lost guard still exists when the next is acquired.
#[tokio::test]
async fn guards_terms_and_work_after_a_loss_release_the_live_one() {
    for stores in handles(2).await {
        let [here, operator] = [&stores[0], &stores[1]];
        let (lock, broken) =
            (DistroRwLock::new(here, "r").unwrap(), DistroRwLock::new(operator, "r").unwrap());
        let lost = lock.write().await.unwrap();
        broken.break_lock().await.unwrap();
        let live = lock.write().await.unwrap();
        assert_lost(lost.release().await);
        assert!(live.is_held());
        live.release().await.unwrap();
        let lost = lock.write().await.unwrap();
        broken.break_lock().await.unwrap();
        let work = processor_fn(async |(): ()| Ok::<_, std::convert::Infallible>(7));
        let work = LockedResourceWriteProcessor::new(std::sync::Arc::new(work), here, "r");
        assert_eq!(work.process(()).await.unwrap(), 7);
        assert!(broken.inspect().await.unwrap().holders.is_empty());
        assert_lost(lost.release().await);

        let election = LeaderElection::new(here, "job", "me").unwrap();
        let lost = election.campaign().await.unwrap();
        LeaderElection::new(operator, "job", "").unwrap().break_term().await.unwrap();
        let live = election.campaign().await.unwrap();
        assert_lost(lost.resign().await);
        assert!(live.is_leader());
        live.resign().await.unwrap();
        assert_eq!(election.leader().await.unwrap(), None);
    }
}
