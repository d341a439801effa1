//! Changes of the record that are refused, lost, or done without anybody being told.

use shizuku_kv::KvError;
use shizuku_kv::rw_lock::DistroRwLockError;

use crate::faults::{Fate, Kind, broken, full, timeout, unavailable};
use crate::world::{LEASE, World, goes_by, within};

/// What becomes of a write once, and may become of it at any time.
fn passing() -> [Fate; 4] {
    [Fate::Refused(timeout()), Fate::Refused(unavailable()), Fate::Lost, Fate::Unanswered]
}

/// Else the waiter would watch a record that nobody changes any more, until its deadline.
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_eviction_of_a_dead_holder_fails_tries_it_again() {
    for fate in passing().into_iter().chain([Fate::Refused(full())]) {
        let world = World::in_memory().await;
        let [dead, waiter] = world.processes().await;
        let _held = dead.lock().write().await.unwrap();
        dead.faults.crash();
        // The first write of the record puts the waiter in line, the second takes out the dead.
        waiter.faults.after(1, Kind::Record, fate.clone());
        waiter.gets_in(&format!("{fate:?}")).await;
        assert!(waiter.faults.are_over());
    }
}

/// Else a request that failed for a moment would leave a dead session in the way of all who wait.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_cannot_end_a_dead_session_tries_it_again() {
    for fate in passing().into_iter().chain([Fate::Refused(full())]) {
        let world = World::in_memory().await;
        let [dead, waiter] = world.processes().await;
        let _held = dead.lock().write().await.unwrap();
        dead.faults.crash();
        waiter.faults.next(Kind::Ending, fate.clone());
        waiter.gets_in(&format!("{fate:?}")).await;
        assert!(waiter.faults.are_over());
    }
}

/// What took the place of what a process knows it may hear of from a watch; else it has to read. One that waits for the
/// watch alone would not get in.
#[tokio::test(start_paused = true)]
async fn a_change_that_another_was_ahead_of_is_made_also_where_no_watch_tells() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let first = one.lock().read().await.unwrap();
    // By then its record is watched.
    goes_by(2 * LEASE).await;
    one.faults.hear_nothing();
    let theirs = other.lock().read().await.unwrap();
    let second = within(1, "it gets in too", one.lock().read()).await.unwrap();
    theirs.release().await.unwrap();
    within(1, "the first lets go", first.release()).await.unwrap();
    within(1, "the second lets go", second.release()).await.unwrap();
    world.held_by(0).await;
}

/// Else the break that is made again would take the lock from the next holder, while both think that they have it.
#[tokio::test(start_paused = true)]
async fn a_break_without_an_acknowledgement_breaks_once() {
    let world = World::in_memory().await;
    let [holder, next, last, operator] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let next = next.starts_to_wait();
    world.in_line(1).await;
    let last = last.starts_to_wait();
    world.in_line(2).await;
    operator.faults.next(Kind::Record, Fate::Unanswered);
    operator.lock().break_lock().await.unwrap();
    assert!(operator.faults.are_over());
    let next = within(2, "the next gets in", next).await.unwrap().unwrap();
    goes_by(3 * LEASE).await;
    assert!(!held.is_held() && next.is_held() && !last.is_finished());
    next.release().await.unwrap();
    within(2, "the last gets in", last).await.unwrap().unwrap().release().await.unwrap();
}

/// Else the lock would be held for ever by a process that lives and knows nothing of it.
#[tokio::test(start_paused = true)]
async fn a_release_that_fails_once_is_made_all_the_same() {
    for fate in
        passing().into_iter().chain([Fate::Refused(full()), Fate::Refused(broken()), Fate::Late])
    {
        let world = World::in_memory().await;
        let [holder, other] = world.processes().await;
        let _alive = holder.stay_alive().await;
        let held = holder.lock().write().await.unwrap();
        holder.faults.next(Kind::Record, fate.clone());
        let released = held.release().await;
        match fate {
            Fate::Refused(KvError::StoreFull { .. } | KvError::Backend { .. }) => {
                assert!(
                    matches!(released, Err(DistroRwLockError::Store { .. })),
                    "{fate:?}: {released:?}"
                );
            }
            _ => released.unwrap(),
        }
        other.gets_in(&format!("{fate:?}")).await;
        assert!(holder.faults.are_over());
        holder.backend.arrive().await;
        world.held_by(0).await;
    }
}

/// The same where nobody waits for the release.
#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_lets_go_also_where_that_fails_once() {
    for fate in passing().into_iter().chain([Fate::Refused(full()), Fate::Refused(broken())]) {
        let world = World::in_memory().await;
        let [holder, other] = world.processes().await;
        let _alive = holder.stay_alive().await;
        let held = holder.lock().read().await.unwrap();
        holder.faults.next(Kind::Record, fate.clone());
        drop(held);
        other.gets_in(&format!("{fate:?}")).await;
        assert!(holder.faults.are_over());
    }
}

/// Else one who was told that it has nothing would be in everybody's way, or one who waits would be told of a fault that
/// is over.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_write_fails_once_is_granted_or_leaves_nothing() {
    for fate in passing().into_iter().chain([Fate::Refused(full()), Fate::Refused(broken())]) {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        let _alive = one.stay_alive().await;
        one.faults.next(Kind::Record, fate.clone());
        match (&fate, one.lock().write().await) {
            (
                Fate::Refused(KvError::StoreFull { .. } | KvError::Backend { .. }),
                Err(DistroRwLockError::Store { .. }),
            ) => {}
            (_, claimed) => claimed.unwrap().release().await.unwrap(),
        }
        assert!(one.faults.are_over());
        other.gets_in(&format!("{fate:?}")).await;
        world.held_by(0).await;
    }
}

/// Nobody knows whether the claim is in the record, and what would tell fails for good. Else a claim that was refused
/// would hold the lock of a process that lives.
#[tokio::test(start_paused = true)]
async fn a_claim_that_is_refused_after_an_unknown_write_leaves_nothing() {
    for fate in [Fate::Unanswered, Fate::Lost, Fate::Late] {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        let _alive = one.stay_alive().await;
        // There is a record already, on which a write may land late.
        one.lock().write().await.unwrap().release().await.unwrap();
        one.faults.next(Kind::Record, fate.clone());
        one.faults.refuse_read(broken());
        let refused = one.lock().write().await.map(drop).unwrap_err();
        assert!(matches!(refused, DistroRwLockError::Store { .. }), "{fate:?}: {refused:?}");
        assert!(one.faults.are_over());
        one.backend.arrive().await;
        other.gets_in(&format!("{fate:?}")).await;
        world.held_by(0).await;
    }
}

/// The same where the claim is not refused but given up.
#[tokio::test(start_paused = true)]
async fn a_claim_that_is_given_up_while_its_write_is_on_its_way_leaves_nothing() {
    for fate in [Fate::Unanswered, Fate::Lost, Fate::Late] {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        let _alive = one.stay_alive().await;
        one.lock().write().await.unwrap().release().await.unwrap();
        one.faults.next(Kind::Record, fate.clone());
        let given_up = tokio::time::timeout(LEASE / 10, one.lock().write()).await;
        assert!(given_up.is_err() && one.faults.are_over());
        goes_by(2 * LEASE).await;
        one.backend.arrive().await;
        other.gets_in(&format!("{fate:?}")).await;
        world.held_by(0).await;
    }
}

/// Else a writer that became a reader would be told that it has nothing, and keep readers out.
#[tokio::test(start_paused = true)]
async fn a_downgrade_whose_write_fails_once_is_made() {
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
