//! Processes that live for less than a lease, and queues with dead processes.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions};
use tokio::time::Instant;

use crate::adversity::faults::{Fate, Kind};
use crate::adversity::world::{LEASE, Process, World, lock_of, pass, within};

/// Processes start one after the other, as those of a cron job do, until one of them acquires the
/// lock. Otherwise each would count from its own first look at the dead one, and end before the
/// lease is over.
#[tokio::test(start_paused = true)]
async fn short_lived_process_is_granted_lock_of_dead_one() {
    for waits in [false, true] {
        let world = World::in_memory().await;
        let [dead] = world.processes().await;
        let _held = dead.lock().write().await.unwrap();
        dead.faults.crash();
        let options = LockOptions::new().lease(LEASE).wait(LEASE / 20);
        // The lock is granted once the lease is over, or later if dead waiters are ahead.
        let most = if waits { 5 } else { 3 };
        for rejected in 0.. {
            let [process] = world.processes().await;
            let lock = DistroRwLock::with_options(&process.store, "r", options.clone()).unwrap();
            let claimed = if waits { lock.write().await } else { lock.try_write().await };
            if let Ok(guard) = claimed {
                guard.release().await.unwrap();
                assert!(rejected > 0, "waits {waits}: the first is granted");
                break;
            }
            assert!(rejected < most, "waits {waits}: too many are rejected");
            process.faults.crash();
            pass(LEASE * 3 / 4).await;
        }
    }
}

/// The clock of the store has been set, so that all earlier entries look old. No process loses a
/// lock by that.
#[tokio::test(start_paused = true)]
async fn live_holder_presumed_dead_by_store_keeps_its_lock() {
    let world = World::in_memory().await;
    let [holder, trier] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let key = world.key_of_holder().await;
    trier.faults.make_look_older(&key, Duration::from_secs(3600));
    for _ in 0..5 {
        let begin = Instant::now();
        let error = trier.lock().try_write().await.map(drop).unwrap_err();
        assert!(matches!(error, DistroRwLockError::WouldBlock { .. }), "{error:?}");
        // It waits at most for one renewal.
        assert!(begin.elapsed() < LEASE, "{:?}", begin.elapsed());
        pass(LEASE).await;
        assert!(held.is_held());
    }
    held.release().await.unwrap();
}

/// `try_write` does not wait for a lock that a live process holds.
#[tokio::test(start_paused = true)]
async fn try_is_rejected_at_once_while_holder_lives() {
    let world = World::in_memory().await;
    let [holder, trier] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    pass(5 * LEASE).await;
    let begin = Instant::now();
    assert!(trier.lock().try_write().await.is_err());
    assert_eq!(begin.elapsed(), Duration::ZERO);
    held.release().await.unwrap();
}

/// Time for detecting a dead session: the lease and an eighth, and as much again for sessions that
/// come to be observed one after the other.
const DETECTION: u32 = 250;

/// Lease of processes of which some die. The test uses some real time, which counts too.
const LONG_LEASE: Duration = LEASE.saturating_mul(100);

/// Otherwise later waiters would wait for one more lease for each of them.
#[tokio::test(start_paused = true)]
async fn dead_processes_of_a_queue_are_evicted_together() {
    for is_holder_dead in [false, true] {
        let world = World::in_memory().await;
        let [holder, last] = world.processes().await;
        let held = holder.lock_for(LONG_LEASE).write().await.unwrap();
        let dying: [Process; 8] = world.processes().await;
        for (number, process) in dying.iter().enumerate() {
            process.start_waiting_for(LONG_LEASE);
            world.in_line(number + 1).await;
        }
        let waiting = last.start_waiting_for(LONG_LEASE);
        world.in_line(dying.len() + 1).await;
        pass(2 * LONG_LEASE).await;
        dying.iter().for_each(|process| process.faults.crash());
        if is_holder_dead {
            holder.faults.crash();
        } else {
            within(DETECTION, "all of them are evicted", async {
                while world.state().await.waiting.len() > 1 {
                    pass(LEASE).await;
                }
            })
            .await;
            assert!(held.is_held());
            held.release().await.unwrap();
        }
        let limit = if is_holder_dead { DETECTION } else { 1 };
        within(limit, "it is granted", waiting).await.unwrap().unwrap().release().await.unwrap();
    }
}

/// Finding a key for the session, creating it, and the swap, however many are queued.
#[tokio::test(start_paused = true)]
async fn claim_of_long_queue_takes_three_requests() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    // The test uses some real time, which counts too.
    let options = LockOptions::new().lease(600 * LEASE).wait(10_000 * LEASE);
    let lock = |process: &Process| {
        DistroRwLock::with_options(&process.store, "r", options.clone()).unwrap()
    };
    let held = lock(&holder).write().await.unwrap();
    let joining: [Process; 100] = world.processes().await;
    for (number, process) in joining.iter().enumerate() {
        let lock = lock(process);
        tokio::spawn(async move { lock.write().await });
        world.in_line(number + 1).await;
        assert!(
            process.faults.calls() <= 3,
            "{} requests of number {number}",
            process.faults.calls()
        );
    }
    held.release().await.unwrap();
}

/// Another session has the key by then. Otherwise requests in flight of the old holder would end
/// that session, or keep a dead one alive.
#[tokio::test(start_paused = true)]
async fn late_renewal_does_not_affect_next_session_of_key() {
    let world = World::in_memory().await;
    let [late, other] = world.processes().await;
    let held = late.lock().write().await.unwrap();
    let key = world.key_of_holder().await;
    late.faults.each(Kind::Renewal, Fate::Late);
    let guard = within(5, "the other is granted", other.lock().write()).await.unwrap();
    assert!(!held.is_held());
    while world.observer.get(&*key).await.unwrap().is_some() {
        pass(LEASE / 10).await;
    }
    let [heir] = world.processes().await;
    let theirs = lock_of(&heir.store, "another", LEASE).write().await.unwrap();
    let state = DistroRwLock::new(&world.observer, "another").unwrap().inspect().await.unwrap();
    assert_eq!(format!("rw_lock_session.{}", state.holders[0].claim.session), key);
    for outcome in late.backend.arrive().await {
        assert!(outcome.unwrap_err().is_conflict());
    }
    drop(held);
    pass(5 * LEASE).await;
    assert!(guard.is_held() && theirs.is_held());
    // The old claim is not attributed to the session that has its key.
    guard.release().await.unwrap();
    assert_eq!(world.state().await.holders, []);
    theirs.release().await.unwrap();
}
