//! Processes that live for less than a lease, and queues with dead processes.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions, WriteGuard};
use tokio::time::Instant;

use crate::adversity::faults::{Fate, Kind};
use crate::adversity::world::{LEASE, Process, STEADY_LEASE, World, lock_of, pass, within};

/// Starts processes one after the other, as a cron job does, until one of them acquires the lock.
/// Returns the number of rejected ones.
async fn runs_until_it_gets_in(
    world: &World,
    run: impl AsyncFn(&Process) -> Result<WriteGuard, DistroRwLockError>,
) -> usize {
    for rejected in 0..6 {
        let [process] = world.processes().await;
        if let Ok(guard) = run(&process).await {
            guard.release().await.unwrap();
            return rejected;
        }
        process.faults.crash();
        pass(LEASE * 3 / 4).await;
    }
    panic!("six of six processes are rejected");
}

/// Otherwise each process would count from its own first look at the dead one, and end before the
/// lease is over.
#[tokio::test(start_paused = true)]
async fn try_of_new_process_succeeds_after_crash() {
    let world = World::in_memory().await;
    let [dead] = world.processes().await;
    let _held = dead.lock().write().await.unwrap();
    dead.faults.crash();
    let rejected =
        runs_until_it_gets_in(&world, async |process| process.lock().try_write().await).await;
    // Not before the lease is over, and at once after that.
    assert!((1..=3).contains(&rejected), "{rejected} were rejected");
}

#[tokio::test(start_paused = true)]
async fn short_wait_of_new_process_succeeds_after_crash() {
    let world = World::in_memory().await;
    let [dead] = world.processes().await;
    let _held = dead.lock().write().await.unwrap();
    dead.faults.crash();
    let options = LockOptions::new().lease(LEASE).wait(LEASE / 20);
    let rejected = runs_until_it_gets_in(&world, async |process| {
        DistroRwLock::with_options(&process.store, "r", options.clone()).unwrap().write().await
    });
    let rejected = rejected.await;
    // Rejected processes have removed their claims, or are dead waiters.
    assert!((1..=5).contains(&rejected), "{rejected} were rejected");
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

/// Queues processes that will die, and one behind them.
async fn queue_behind(
    world: &World,
    dying: &[Process],
) -> (Process, tokio::task::JoinHandle<Result<WriteGuard, DistroRwLockError>>) {
    for (number, process) in dying.iter().enumerate() {
        process.start_waiting_for(STEADY_LEASE);
        world.in_line(number + 1).await;
    }
    let [last] = world.processes().await;
    let waiting = last.start_waiting_for(STEADY_LEASE);
    world.in_line(dying.len() + 1).await;
    pass(2 * STEADY_LEASE).await;
    (last, waiting)
}

/// Time for detecting a dead session: the lease and an eighth, and as much again for sessions that
/// come to be observed one after the other.
const DETECTION: Duration = Duration::from_secs(STEADY_LEASE.as_secs() * 5 / 2);

/// Otherwise later waiters would wait for one more lease for each of them.
#[tokio::test(start_paused = true)]
async fn dead_waiters_are_evicted_together() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    let held = holder.lock_for(STEADY_LEASE).write().await.unwrap();
    let dying: [Process; 8] = world.processes().await;
    let (_last, waiting) = queue_behind(&world, &dying).await;
    dying.iter().for_each(|process| process.faults.crash());
    within(DETECTION.as_secs(), "all of them are evicted", async {
        while world.state().await.waiting.len() > 1 {
            pass(LEASE).await;
        }
    })
    .await;
    assert!(held.is_held());
    held.release().await.unwrap();
    within(1, "it is granted", waiting).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dead_holder_and_dead_waiters_are_evicted_together() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    let _held = holder.lock_for(STEADY_LEASE).write().await.unwrap();
    let dying: [Process; 8] = world.processes().await;
    let (_last, waiting) = queue_behind(&world, &dying).await;
    holder.faults.crash();
    dying.iter().for_each(|process| process.faults.crash());
    let guard = within(DETECTION.as_secs(), "it is granted", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

/// Finding a key for the session, creating it, and the swap, however many are queued.
#[tokio::test(start_paused = true)]
async fn claim_of_long_queue_takes_three_requests() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    // The test uses some real time, which counts too.
    let options = LockOptions::new().lease(3600 * LEASE).wait(10_000 * LEASE);
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
    while world.around.get(&*key).await.unwrap().is_some() {
        pass(LEASE / 10).await;
    }
    let [heir] = world.processes().await;
    let theirs = lock_of(&heir.store, "another", LEASE).write().await.unwrap();
    let state = DistroRwLock::new(&world.around, "another").unwrap().inspect().await.unwrap();
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
