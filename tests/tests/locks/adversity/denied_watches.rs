//! A process that may not watch the lock's record.

use std::time::Duration;

use shizuku_kv::KvError;
use shizuku_kv::rw_lock::DistroRwLockError;

use crate::adversity::world::{LEASE, World, lock_of, pass, within};

/// A lock that is held for long is watched. If that is denied, each new request costs the server a
/// denial and the holder a read of the record.
#[tokio::test(start_paused = true)]
async fn denied_watch_of_held_lock_is_requested_rarely() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    holder.faults.deny_watches(true);
    let guard = holder.lock().write().await.unwrap();
    let before = holder.faults.requests();
    pass(Duration::from_secs(60)).await;
    let requests = holder.faults.requests() - before;
    assert!((20..120).contains(&requests), "{requests} requests in a minute");
    assert!(guard.is_held());
    // A waiter that arrives during a pause is rejected all the same.
    let waited = within(5, "the wait ends", holder.lock().write()).await;
    let Err(DistroRwLockError::Store { source, .. }) = &waited else { panic!("{waited:?}") };
    assert!(matches!(source, KvError::Unauthorized { .. }), "{source:?}");
    // The right may be granted later.
    holder.faults.deny_watches(false);
    lock_of(&world.observer, "r", LEASE).break_lock().await.unwrap();
    within(5, "the holder learns that it was broken", guard.lost()).await;
}
