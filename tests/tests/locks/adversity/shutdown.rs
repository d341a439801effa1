//! Releasing everything before a connection is shut down, and sessions that cannot be opened.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLockError, LockLoss};
use shizuku_kv::{Deadline, KvError, OpenStores};
use shizuku_kv_tests::faulty::{Fault, On};

use crate::adversity::faults::{Fate, Kind, broken, full, timeout, unavailable};
use crate::adversity::world::{LEASE, Process, STEADY_LEASE, World, within};

const LIMIT: Duration = LEASE.saturating_mul(5);

/// Time for which a slow store does not answer.
const SLOW: Duration = Duration::from_secs(1);

/// Checks that a claim is rejected, because the connection was shut down.
async fn is_closed(process: &Process) {
    let late = process.lock().try_write().await.map(drop).unwrap_err();
    let is_closed = matches!(late, DistroRwLockError::Store { source: KvError::Closed { .. }, .. });
    assert!(is_closed, "{late:?}");
}

/// One held lock, and a waiting claim for another.
#[tokio::test(start_paused = true)]
async fn failed_release_at_shutdown_is_retried() {
    let fates = [
        Fate::Rejected(timeout()),
        Fate::Rejected(unavailable()),
        Fate::Rejected(full()),
        Fate::Lost,
        Fate::Unanswered,
        Fate::Late,
    ];
    for fate in fates {
        let world = World::in_memory().await;
        let [process, other] = world.processes().await;
        let handles = OpenStores::new();
        handles.add(&process.store);
        let held = process.lock().write().await.unwrap();
        process.faults.next(Kind::Record, fate.clone());
        handles.close(Deadline::after(LIMIT)).await.unwrap();
        assert!(process.faults.are_over(), "{fate:?}");
        assert_eq!(held.lost().await, LockLoss::StoreGone);
        assert!(world.state().await.holders.is_empty(), "{fate:?}");
        other.is_granted(&format!("{fate:?}")).await;
        // A write that arrives late changes nothing.
        process.backend.arrive().await;
        assert!(world.state().await.holders.is_empty(), "{fate:?}");
        is_closed(&process).await;
        handles.close(Deadline::after(LIMIT)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_unreachable_store_ends() {
    let world = World::in_memory().await;
    let [process] = world.processes().await;
    let handles = OpenStores::new();
    handles.add(&process.store);
    let held = process.lock_for(Duration::from_secs(60)).write().await.unwrap();
    process.faults.each(Kind::Record, Fate::Rejected(timeout()));
    let error = within(6, "it ends", handles.close(Deadline::after(LIMIT))).await.unwrap_err();
    assert!(matches!(error, KvError::Timeout { operation: "shutdown", .. }), "{error:?}");
    assert!(!held.is_held());
}

/// The lease ends before the deadline of the shutdown does. Otherwise the caller would rely on a
/// release that no other process sees.
#[tokio::test(start_paused = true)]
async fn shutdown_reports_release_that_was_given_up() {
    let world = World::in_memory().await;
    let [process] = world.processes().await;
    let handles = OpenStores::new();
    handles.add(&process.store);
    let held = process.lock().write().await.unwrap();
    process.faults.each(Kind::Record, Fate::Rejected(unavailable()));
    process.faults.each(Kind::Renewal, Fate::Rejected(unavailable()));
    let error = within(6, "it ends", handles.close(Deadline::after(LIMIT))).await.unwrap_err();
    assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
    assert!(!held.is_held());
    assert_eq!(world.state().await.holders.len(), 1);
}

/// It has no lock to release.
#[tokio::test(start_paused = true)]
async fn shutdown_of_deleted_store_ends_at_once() {
    let world = World::in_memory().await;
    let [process] = world.processes().await;
    let handles = OpenStores::new();
    handles.add(&process.store);
    let held = process.lock_for(Duration::from_secs(60)).write().await.unwrap();
    let gone = KvError::store_not_found("locks");
    process.faults.each(Kind::Record, Fate::Rejected(gone));
    within(1, "it ends", handles.close(Deadline::after(LIMIT))).await.unwrap();
    assert!(!held.is_held());
}

/// The session has no user any more when the shutdown begins, and ends by itself. Otherwise its key
/// would stay, and look alive, after the connection has ended.
#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_session_that_is_ending() {
    let world = World::in_memory().await;
    let [process] = world.processes().await;
    let handles = OpenStores::new();
    handles.add(&process.store);
    let guard = process.lock_for(STEADY_LEASE).write().await.unwrap();
    guard.release().await.unwrap();
    process.faults.plan.add(On::call("delete_with_version"), Fault::delay(SLOW));
    drop(process.store);
    // The session begins to end.
    tokio::task::yield_now().await;
    handles.close(Deadline::after(LIMIT)).await.unwrap();
    assert_eq!(world.sessions().await, [""; 0]);
}

/// Otherwise a lock that is acquired while another handle's locks are being released would stay
/// held after the connection has ended.
#[tokio::test(start_paused = true)]
async fn shutdown_closes_handles_without_locks() {
    let world = World::in_memory().await;
    let [unused, late, process] = world.processes().await;
    let handles = OpenStores::new();
    handles.add(&unused.store);
    handles.add(&process.store);
    let held = process.lock_for(STEADY_LEASE).write().await.unwrap();
    process.faults.next(Kind::Record, Fate::Slow(SLOW));
    let closing = handles.close(Deadline::after(LIMIT));
    let meanwhile = async {
        tokio::time::sleep(SLOW / 2).await;
        handles.add(&late.store);
        is_closed(&unused).await;
        is_closed(&late).await;
    };
    let (closed, ()) = tokio::join!(closing, meanwhile);
    closed.unwrap();
    assert!(!held.is_held());
    is_closed(&unused).await;
    assert_eq!(world.sessions().await, [""; 0]);
}

/// The first claim needs a session that has yet to be created; the second has one, and is queued
/// behind it.
#[tokio::test(start_paused = true)]
async fn claim_of_failed_session_blocks_no_other() {
    for fate in [Fate::Rejected(broken()), Fate::Lost, Fate::Unanswered] {
        let world = World::in_memory().await;
        let [process] = world.processes().await;
        let _alive = process.stay_alive().await;
        process.faults.next(Kind::Other, fate.clone());
        let claims = [process.lock_for(2 * LEASE), process.lock()]
            .map(|lock| tokio::spawn(async move { lock.write().await?.release().await }));
        let [first, second] = claims;
        within(3, "the second is granted", second).await.unwrap().unwrap();
        // It fails, or is queued again under another session.
        let first = within(3, "the first has an answer", first).await.unwrap();
        assert_eq!(first.is_err(), matches!(fate, Fate::Rejected(_)), "{first:?}");
        assert!(process.faults.are_over(), "{fate:?}");
    }
}
