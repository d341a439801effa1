//! Locks in stores that are deleted, and over connections that are shut down.

use shizuku_kv::rw_lock::{DistroRwLockError, LockLoss};
use shizuku_kv::{Connection, KvError};

use crate::adversity::world::{LEASE, World, pass, within};

/// Maximum number of requests per second that it takes to find out that a store is gone.
const FEW: usize = 20;

async fn end(world: &World, is_shut_down: bool) {
    if is_shut_down {
        world.connection.shutdown().await.unwrap();
    } else {
        world.connection.delete_store(&world.name).await.unwrap();
    }
}

/// Returns true if the error describes what happened to the store.
fn says_so(error: &DistroRwLockError, is_shut_down: bool) -> bool {
    match error {
        DistroRwLockError::Store { source: KvError::StoreNotFound { .. }, .. } => !is_shut_down,
        DistroRwLockError::Store { source: KvError::Closed { .. }, .. } => is_shut_down,
        _ => false,
    }
}

/// Otherwise a task with nothing to wait for would send requests without end, while the lock is
/// held or after all handles are gone.
#[tokio::test(start_paused = true)]
async fn holder_sends_few_requests_to_deleted_store() {
    for is_shut_down in [false, true] {
        let world = World::in_memory().await;
        let [holder] = world.processes().await;
        let held = holder.lock().write().await.unwrap();
        // Its record is watched by then.
        pass(2 * LEASE).await;
        let before = holder.faults.requests();
        end(&world, is_shut_down).await;
        assert_eq!(within(1, "the holder is notified", held.lost()).await, LockLoss::StoreGone);
        pass(10 * LEASE).await;
        let asked = holder.faults.requests() - before;
        assert!(asked < 10 * FEW, "{asked} requests in ten seconds");
        drop(held);
        pass(10 * LEASE).await;
        // Its task has ended by now.
        let before = holder.faults.requests();
        pass(60 * LEASE).await;
        assert_eq!(holder.faults.requests(), before);
    }
}

/// Otherwise it would wait until its deadline for a store that does not come back, and send
/// requests all the time.
#[tokio::test(start_paused = true)]
async fn waiter_is_notified_of_deleted_store() {
    for is_shut_down in [false, true] {
        let world = World::in_memory().await;
        let [holder, waiter] = world.processes().await;
        let held = holder.lock().write().await.unwrap();
        let waiting = waiter.start_waiting();
        world.in_line(1).await;
        pass(2 * LEASE).await;
        let before = waiter.faults.requests();
        end(&world, is_shut_down).await;
        let error =
            within(2, "the waiter is notified", waiting).await.unwrap().map(drop).unwrap_err();
        assert!(says_so(&error, is_shut_down), "{error:?}");
        assert!(waiter.faults.requests() - before < 2 * FEW);
        assert!(held.release().await.is_err());
    }
}

/// Otherwise it would not end.
#[tokio::test(start_paused = true)]
async fn calls_for_deleted_store_are_rejected() {
    for is_shut_down in [false, true] {
        let world = World::in_memory().await;
        let [one] = world.processes().await;
        one.lock().write().await.unwrap().release().await.unwrap();
        end(&world, is_shut_down).await;
        let lock = one.lock();
        let rejected = within(3, "all are rejected", async {
            [
                lock.write().await.map(drop),
                lock.try_read().await.map(drop),
                lock.break_lock().await.map(drop),
                lock.inspect().await.map(drop),
            ]
        });
        for rejected in rejected.await {
            let error = rejected.unwrap_err();
            assert!(says_so(&error, is_shut_down), "{error:?}");
        }
    }
}
