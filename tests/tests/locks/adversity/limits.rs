//! Extreme deadlines and sizes.

use std::time::Duration;

use shizuku_kv::StoreConfig;
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LeaderElection, LockOptions};
use tokio::task::JoinSet;

use crate::adversity::world::{LEASE, STEADY_LEASE, World, lock_of, within};

/// A clone of the handle that cannot wait makes the first request. Its deadline must not apply to
/// requests of others, which would all fail before they are sent.
#[tokio::test(start_paused = true)]
async fn deadline_of_a_clone_does_not_apply_to_others() {
    for has_session in [false, true] {
        for deadline in [Duration::ZERO, Duration::from_nanos(1)] {
            let world = World::in_memory().await;
            let [process] = world.processes().await;
            let alive = if has_session { Some(process.stay_alive().await) } else { None };
            let hasty = lock_of(&process.store.with_deadline(deadline), "r", LEASE);
            let _ = hasty.try_write().await;
            let _ = hasty.break_lock().await;
            let guard = within(3, "it is free", process.lock().write()).await.unwrap();
            guard.release().await.unwrap();
            drop(alive);
        }
    }
}

/// Twice the longest deadline must not panic.
#[tokio::test(start_paused = true)]
async fn longest_deadline_does_not_panic() {
    let world = World::in_memory().await;
    let store = world.observer.with_deadline(Duration::MAX);
    let lock = DistroRwLock::with_options(
        &store,
        "r",
        LockOptions::new().lease(LEASE).wait(Duration::MAX),
    )
    .unwrap();
    lock.try_write().await.unwrap().release().await.unwrap();
    lock.try_read().await.unwrap().release().await.unwrap();
    lock.write().await.unwrap().downgrade().await.unwrap().release().await.unwrap();
    let held = lock.write().await.unwrap();
    lock.break_lock().await.unwrap();
    assert!(held.release().await.is_err());
    DistroRwLock::acquire_write(&store, "process").await.unwrap();
    DistroRwLock::release_write(&store, "process").await.unwrap();
    LeaderElection::new(&store, "job", "me")
        .unwrap()
        .campaign()
        .await
        .unwrap()
        .resign()
        .await
        .unwrap();
}

/// Tokens make a record longer. Without this limit the queue could be so long that the record had
/// no room for the grants, and a holder could not release.
#[tokio::test(start_paused = true)]
async fn queue_is_full_without_room_for_its_grants() {
    let world = World::in_memory_with(StoreConfig::new().max_value_size(4096)).await;
    let [holder, others] = world.processes().await;
    let held = holder.lock_for(STEADY_LEASE).write().await.unwrap();
    let mut waiting = JoinSet::new();
    let rejected = loop {
        let (lock, number) = (others.lock_for(STEADY_LEASE), waiting.len());
        let mut wait = tokio::spawn(async move { lock.read().await });
        tokio::select! {
            ended = &mut wait => break ended.unwrap().map(drop).unwrap_err(),
            () = world.in_line(number + 1) => waiting.spawn(wait),
        };
    };
    assert!(matches!(rejected, DistroRwLockError::QueueFull { .. }), "{rejected:?}");
    assert!(waiting.len() > 10, "{} wait", waiting.len());
    held.release().await.unwrap();
    // All of them hold at the same time: none releases before the last has acquired.
    let number = waiting.len();
    let granted = within(5, "all are granted", waiting.join_all()).await;
    let granted: Vec<_> = granted.into_iter().map(|wait| wait.unwrap().unwrap()).collect();
    assert_eq!(world.state().await.holders.len(), number);
    for guard in granted {
        guard.release().await.unwrap();
    }
    world.held_by(0).await;
    others.lock_for(STEADY_LEASE).write().await.unwrap().release().await.unwrap();
}
