//! Changes of the record that are rejected, lost, or made without an acknowledgement.

use shizuku_kv::KvError;
use shizuku_kv::rw_lock::DistroRwLockError;

use crate::adversity::faults::{Fate, Kind, broken, full, timeout, unavailable};
use crate::adversity::world::{LEASE, RECORD, World, pass, within};

/// The transient fates of a write.
fn passing() -> [Fate; 4] {
    [Fate::Rejected(timeout()), Fate::Rejected(unavailable()), Fate::Lost, Fate::Unanswered]
}

/// Otherwise a request that failed once would leave a dead session in the way of all waiters.
#[tokio::test(start_paused = true)]
async fn eviction_of_dead_holder_is_retried() {
    // The first write of the record puts the waiter in the queue, the second evicts the holder.
    for (before, kind) in [(1, Kind::Record), (0, Kind::Ending)] {
        for fate in passing().into_iter().chain([Fate::Rejected(full())]) {
            let world = World::in_memory().await;
            let [dead, waiter] = world.processes().await;
            let _held = dead.lock().write().await.unwrap();
            dead.faults.crash();
            waiter.faults.after(before, kind, fate.clone());
            waiter.is_granted(&format!("{kind:?}, {fate:?}")).await;
            assert!(waiter.faults.are_over(), "{kind:?}, {fate:?}");
        }
    }
}

/// A process may learn of a change that overtook its own from a watch; otherwise it has to read.
/// One that only waited for the watch would not acquire the lock.
#[tokio::test(start_paused = true)]
async fn lost_swap_is_retried_without_watch() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let first = one.lock().read().await.unwrap();
    // Its record is watched by then.
    pass(2 * LEASE).await;
    one.faults.hear_nothing();
    let theirs = other.lock().read().await.unwrap();
    let second = within(1, "it is granted too", one.lock().read()).await.unwrap();
    theirs.release().await.unwrap();
    within(1, "the first lets go", first.release()).await.unwrap();
    within(1, "the second lets go", second.release()).await.unwrap();
    world.held_by(0).await;
}

/// Otherwise the repeated break would revoke the lock from the next holder, while both believe that
/// they hold it.
#[tokio::test(start_paused = true)]
async fn break_without_acknowledgement_breaks_once() {
    let world = World::in_memory().await;
    let [holder, next, last, operator] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let next = next.start_waiting();
    world.in_line(1).await;
    let last = last.start_waiting();
    world.in_line(2).await;
    operator.faults.next(Kind::Record, Fate::Unanswered);
    operator.lock().break_lock().await.unwrap();
    assert!(operator.faults.are_over());
    let next = within(2, "the next is granted", next).await.unwrap().unwrap();
    pass(3 * LEASE).await;
    assert!(!held.is_held() && next.is_held() && !last.is_finished());
    next.release().await.unwrap();
    within(2, "the last is granted", last).await.unwrap().unwrap().release().await.unwrap();
}

/// Without a retry, a live process without a guard would hold the lock for ever. Each fault occurs
/// with a caller that waits for the release, and without one.
#[tokio::test(start_paused = true)]
async fn failed_release_is_retried() {
    let fates = [Fate::Rejected(full()), Fate::Rejected(broken()), Fate::Late];
    for (fate, waits) in
        passing().into_iter().chain(fates).flat_map(|fate| [(fate.clone(), true), (fate, false)])
    {
        let world = World::in_memory().await;
        let [holder, other] = world.processes().await;
        let _alive = holder.stay_alive().await;
        let held = holder.lock().write().await.unwrap();
        holder.faults.next(Kind::Record, fate.clone());
        if waits {
            let released = held.release().await;
            let is_reported =
                matches!(fate, Fate::Rejected(KvError::StoreFull { .. } | KvError::Backend { .. }));
            match released {
                Err(DistroRwLockError::Store { .. }) if is_reported => {}
                released => assert!(released.is_ok() && !is_reported, "{fate:?}: {released:?}"),
            }
        } else {
            drop(held);
        }
        other.is_granted(&format!("{fate:?}, waits {waits}")).await;
        assert!(holder.faults.are_over());
        holder.backend.arrive().await;
        world.held_by(0).await;
    }
}

/// Otherwise a rejected claim would block all others, or a waiter would get the error of a fault
/// that is over.
#[tokio::test(start_paused = true)]
async fn failed_claim_is_granted_or_leaves_no_trace() {
    for fate in passing().into_iter().chain([Fate::Rejected(full()), Fate::Rejected(broken())]) {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        let _alive = one.stay_alive().await;
        one.faults.next(Kind::Record, fate.clone());
        match (&fate, one.lock().write().await) {
            (
                Fate::Rejected(KvError::StoreFull { .. } | KvError::Backend { .. }),
                Err(DistroRwLockError::Store { .. }),
            ) => {}
            (_, claimed) => claimed.unwrap().release().await.unwrap(),
        }
        assert!(one.faults.are_over());
        other.is_granted(&format!("{fate:?}")).await;
        world.held_by(0).await;
    }
}

/// The outcome of the claim's write is unknown. The caller drops the claim, or it is rejected
/// because finding out fails permanently. Left in the record, it would hold the lock for a live
/// process.
#[tokio::test(start_paused = true)]
async fn claim_of_unknown_write_leaves_no_trace() {
    for (fate, is_rejected) in [Fate::Unanswered, Fate::Lost, Fate::Late]
        .into_iter()
        .flat_map(|fate| [(fate.clone(), true), (fate, false)])
    {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        let _alive = one.stay_alive().await;
        // A record already exists, on which a write may land late.
        one.lock().write().await.unwrap().release().await.unwrap();
        one.faults.next(Kind::Record, fate.clone());
        if is_rejected {
            one.faults.reject_read(RECORD, broken());
            let error = one.lock().write().await.map(drop).unwrap_err();
            assert!(matches!(error, DistroRwLockError::Store { .. }), "{fate:?}: {error:?}");
        } else {
            assert!(tokio::time::timeout(LEASE / 60, one.lock().write()).await.is_err());
            pass(2 * LEASE).await;
        }
        assert!(one.faults.are_over());
        one.backend.arrive().await;
        other.is_granted(&format!("{fate:?}, rejected {is_rejected}")).await;
        world.held_by(0).await;
    }
}

/// Otherwise a writer that became a reader would be told that it holds nothing, and block readers.
#[tokio::test(start_paused = true)]
async fn failed_downgrade_is_retried() {
    for fate in passing() {
        let world = World::in_memory().await;
        let [holder, other] = world.processes().await;
        let held = holder.lock().write().await.unwrap();
        holder.faults.next(Kind::Record, fate.clone());
        let held = held.downgrade().await.unwrap();
        let reader = within(2, &format!("the other reads after {fate:?}"), other.lock().read())
            .await
            .unwrap();
        assert!(held.is_held() && reader.is_held() && holder.faults.are_over());
        held.release().await.unwrap();
    }
}
