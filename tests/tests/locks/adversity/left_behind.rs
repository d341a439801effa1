//! The tasks and requests that remain of locks that are no longer used.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::adversity::faults::{Fate, Kind};
use crate::adversity::world::{LEASE, Process, RECORD, STEADY_LEASE, World, lock_of, pass, within};

/// Time after which an unused lock has ended its tasks, except for its session.
const IDLE: Duration = Duration::from_secs(15);

/// Waits until the number of tasks is back to what it was.
async fn tasks_return_to(number: usize) {
    let tasks = Handle::current().metrics();
    within(60, "the tasks end", async {
        while tasks.num_alive_tasks() > number {
            pass(LEASE).await;
        }
    })
    .await;
}

/// Counts the requests of a process that does not use locks any more.
async fn requests_at_rest(process: &Process) -> usize {
    pass(4 * IDLE).await;
    let before = process.faults.requests();
    pass(4 * IDLE).await;
    process.faults.requests() - before
}

/// Each round uses another resource: grants, rejected tries, abandoned waits and lost locks.
#[tokio::test(start_paused = true)]
async fn rounds_of_all_outcomes_leave_no_task() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let before = Handle::current().metrics().num_alive_tasks();
    for round in 0..500 {
        let name = format!("round.{round}");
        let lock = |process: &Process| lock_of(&process.store, &name, STEADY_LEASE);
        let held = lock(&one).write().await.unwrap();
        let error = lock(&other).try_write().await.map(drop).unwrap_err();
        assert!(matches!(error, DistroRwLockError::WouldBlock { .. }), "{error:?}");
        if round % 3 == 0 {
            assert!(timeout(Duration::from_millis(5), lock(&other).read()).await.is_err());
        }
        if round % 7 == 0 {
            lock(&other).break_lock().await.unwrap();
            drop(held);
        } else {
            held.release().await.unwrap();
        }
    }
    // The sessions end once they were unused for a lease, which each renewal checks.
    pass(2 * STEADY_LEASE).await;
    tasks_return_to(before).await;
}

/// The failure detector watches the sessions ahead of a claim, even of a rejected one in case it
/// comes back. In a deleted store, or under a foreign record, such watches would never end.
#[tokio::test(start_paused = true)]
async fn claim_without_a_record_leaves_no_task() {
    for (waits, is_deleted) in [(false, true), (true, true), (false, false)] {
        let case = format!("waits {waits}, store is deleted {is_deleted}");
        let world = World::in_memory().await;
        let [holder, claimer] = world.processes().await;
        let before = Handle::current().metrics().num_alive_tasks();
        let held = holder.lock().write().await.unwrap();
        let waiting = if waits {
            let waiting = claimer.start_waiting();
            world.in_line(1).await;
            Some(waiting)
        } else {
            assert!(claimer.lock().try_write().await.is_err());
            None
        };
        pass(LEASE / 10).await;
        if is_deleted {
            world.connection.delete_store(&world.name).await.unwrap();
        } else {
            world.observer.put(RECORD, "no record").await.unwrap();
        }
        within(5, "the holder is notified", held.lost()).await;
        drop(held);
        if let Some(waiting) = waiting {
            within(5, "the waiter is notified", waiting).await.unwrap().unwrap_err();
        }
        assert_eq!(requests_at_rest(&claimer).await, 0, "{case}");
        tasks_return_to(before).await;
    }
}

/// A lock without a guard is held although all handles are dropped. Once it is lost, no part of it
/// remains.
#[tokio::test(start_paused = true)]
async fn lost_lock_without_guard_leaves_no_task() {
    let world = World::in_memory().await;
    let before = Handle::current().metrics().num_alive_tasks();
    let [holder] = world.processes().await;
    DistroRwLock::acquire_write(&holder.store, "r").await.unwrap();
    let key = world.key_of_holder().await;
    drop(holder.store);
    pass(4 * IDLE).await;
    assert_eq!(world.state().await.holders.len(), 1);
    world.observer.delete(key).await.unwrap();
    pass(4 * IDLE).await;
    tasks_return_to(before).await;
}

/// The leave of an abandoned waiter has landed without an answer. A live process would otherwise
/// claim again, and have to remove the claim once more.
#[tokio::test(start_paused = true)]
async fn abandoned_waiter_is_not_claimed_again() {
    let world = World::in_memory().await;
    let [one, other, third] = world.processes().await;
    let _alive = other.stay_alive().await;
    let held = one.lock().write().await.unwrap();
    let waiter = other.start_waiting();
    world.in_line(1).await;
    let before = other.faults.record_writes();
    other.faults.next(Kind::Record, Fate::Unanswered);
    waiter.abort();
    world.in_line(0).await;
    pass(LEASE).await;
    held.release().await.unwrap();
    third.is_granted("the waiter has left").await;
    assert!(other.faults.are_over());
    // A second write would contain the claim, and a third one would remove it.
    assert_eq!(other.faults.record_writes() - before, 1);
}
