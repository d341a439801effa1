//! Requests: changes of a process whose swaps are lost, which others make with theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};
use shizuku_kv::rw_lock::{DistroRwLockError, ReadGuard};
use shizuku_kv::{Deadline, Key, OpenStores, VersionToken, WatchScope};
use tokio::time::{sleep, timeout};

use crate::adversity::faults::{Fate, Kind, REQUESTS, other_version, unavailable};
use crate::adversity::world::{LEASE, Process, RECORD, World, within};

/// Makes the next swaps of a process fail, as if others had been faster.
fn lose_swaps(process: &Process, number: usize) {
    for _ in 0..number {
        process.faults.next(Kind::Record, lost());
    }
}

fn lost() -> Fate {
    let (key, version) = (Key::new(RECORD).unwrap(), VersionToken::from_u64(1));
    Fate::Rejected(other_version(&key, version))
}

/// Lets processes lose swaps, so that they watch requests for some time.
async fn contend(processes: &[&Process]) {
    for process in processes {
        lose_swaps(process, 1);
        let guard = within(1, "it is granted", process.lock().read()).await.unwrap();
        guard.release().await.unwrap();
    }
    sleep(Duration::from_millis(100)).await;
}

async fn requests(world: &World) -> usize {
    let keys = world.observer.keys(WatchScope::prefix(REQUESTS));
    keys.try_collect().await.unwrap().len()
}

/// Returns the guard of a process whose claim another process has made.
async fn granted_by_request(process: &Process) -> ReadGuard {
    lose_swaps(process, 2);
    let guard = within(1, "it is granted", process.lock().read()).await.unwrap();
    assert!(process.faults.are_over());
    guard
}

/// The process that has written the record last makes the change of one whose swaps are lost.
#[tokio::test(start_paused = true)]
async fn lost_swaps_are_made_by_the_last_writer() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    contend(&[&one, &other]).await;
    let _held = one.lock().read().await.unwrap();
    let before = other.faults.record_writes();
    // No further swap of this process succeeds.
    lose_swaps(&other, 2);
    let guard: ReadGuard = within(1, "it is granted", other.lock().read()).await.unwrap();
    assert_eq!(other.faults.record_writes() - before, 2, "swaps to acquire");
    assert_eq!(requests(&world).await, 1);
    // One lost swap is enough, because the last request was applied.
    lose_swaps(&other, 1);
    within(1, "it is released", guard.release()).await.unwrap();
    assert_eq!(other.faults.record_writes() - before, 3, "swaps to release");
    assert!(other.faults.are_over());
    assert_eq!(world.state().await.holders.len(), 1);
}

/// A request that lands after its process has abandoned the claim is never applied. Otherwise a
/// live session would hold a lock without an owner.
#[tokio::test(start_paused = true)]
async fn late_request_of_an_abandoned_claim_is_not_applied() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    contend(&[&one, &other]).await;
    let _held = one.lock().read().await.unwrap();
    lose_swaps(&other, 2);
    other.faults.next(Kind::Request, Fate::Late);
    let lock = other.lock();
    let waiting = tokio::spawn(async move { lock.read().await });
    within(1, "the request is sent", async {
        while !other.faults.are_over() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    waiting.abort();
    let version = world.record().await.unwrap().version;
    within(1, "the abandoned claim is resolved", async {
        while world.record().await.unwrap().version == version {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    other.backend.arrive().await[0].as_ref().unwrap();
    // The process cannot remove the claim once it is applied.
    other.faults.crash();
    sleep(Duration::from_millis(100)).await;
    let _again = one.lock().read().await.unwrap();
    let state = world.state().await;
    assert_eq!((state.holders.len(), state.waiting.len()), (2, 0), "{state:?}");
}

/// A holder watches its lock soon, so that its release includes the claim of the waiter at once.
#[tokio::test(start_paused = true)]
async fn release_of_a_short_hold_with_a_waiter_is_one_swap() {
    let world = World::in_memory().await;
    let [holder, waiter] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let waiting = waiter.start_waiting();
    world.in_line(1).await;
    sleep(Duration::from_millis(50)).await;
    let before = holder.faults.requests();
    held.release().await.unwrap();
    assert_eq!(holder.faults.requests() - before, 1);
    drop(within(1, "it is granted", waiting).await.unwrap().unwrap());
}

/// A process that applies no requests delays others for a short time only.
#[tokio::test(start_paused = true)]
async fn request_that_is_not_applied_is_followed_by_a_swap() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    contend(&[&one, &other]).await;
    let _held = one.lock().read().await.unwrap();
    one.faults.crash();
    lose_swaps(&other, 2);
    let _guard = within(1, "it is granted", other.lock().read()).await.unwrap();
    assert_eq!(requests(&world).await, 1);
}

/// A request that is slow or not acknowledged does not delay a release by several seconds, even if
/// the last writer has crashed.
#[tokio::test(start_paused = true)]
async fn release_after_a_failed_request_is_a_swap() {
    // The store answers after 0.3 seconds that the outcome is unknown.
    let fates = [(Fate::Lost, LEASE / 8), (Fate::Slow(Duration::from_millis(1_500)), LEASE)];
    for (fate, limit) in fates {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        contend(&[&one, &other]).await;
        let _held = one.lock().read().await.unwrap();
        let guard = granted_by_request(&other).await;
        one.faults.crash();
        lose_swaps(&other, 1);
        other.faults.next(Kind::Request, fate.clone());
        let released = timeout(limit, guard.release()).await;
        assert!(matches!(released, Ok(Ok(()))), "{fate:?}: {released:?}");
        assert!(other.faults.are_over(), "{fate:?}");
    }
}

/// The release of a broken lock is not reported as done because its request was rejected.
#[tokio::test(start_paused = true)]
async fn release_after_a_break_and_a_rejected_request_fails() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    contend(&[&one, &other]).await;
    let _held = one.lock().read().await.unwrap();
    let guard = granted_by_request(&other).await;
    // The break comes after the read with which the request begins.
    other.faults.hear_nothing();
    other.faults.fall_behind(RECORD, world.record().await);
    one.lock().break_lock().await.unwrap();
    other.faults.next(Kind::Request, Fate::Rejected(unavailable()));
    let release = tokio::spawn(guard.release());
    within(1, "the request is rejected", async {
        while !other.faults.are_over() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    other.faults.catch_up();
    let released = within(1, "it is answered", release).await.unwrap();
    assert!(matches!(released, Err(DistroRwLockError::LeaseLost { .. })), "{released:?}");
}

/// Otherwise a user with the right to write requests could end the hold of another process.
#[tokio::test(start_paused = true)]
async fn request_for_claims_of_others_is_not_applied() {
    let world = World::in_memory().await;
    let [one, other, third] = world.processes().await;
    contend(&[&one, &other, &third]).await;
    let held = one.lock().read().await.unwrap();
    let _granted = granted_by_request(&other).await;
    // A request for the holder's leave, under the key of the other session and of its own.
    let record = world.record().await.unwrap();
    let record: Value = serde_json::from_slice(&record.value).unwrap();
    let holder = &record["holders"][0];
    let keys = world.observer.keys(WatchScope::prefix(REQUESTS)).try_collect().await.unwrap();
    let genuine = world.observer.entry(keys[0].as_str()).await.unwrap().unwrap();
    let mut forged: Value = serde_json::from_slice(&genuine.value).unwrap();
    forged["claims"] = Value::Array(Vec::new());
    forged["leaves"] = json!([{ "session": holder["session"], "number": holder["number"] }]);
    let own = holder["session"].as_str().unwrap().split('-').next().unwrap();
    let checksum = keys[0].split('.').nth(1).unwrap();
    for key in [keys[0].to_string(), format!("{REQUESTS}{checksum}.{own}")] {
        world.observer.put(key, forged.to_string()).await.unwrap();
    }
    // The last writer applies this request, which comes after the forged ones.
    let _granted = granted_by_request(&third).await;
    assert_eq!(world.state().await.holders.len(), 3);
    assert!(held.is_held());
}

/// All locks are released, so that a store that is slow to purge requests is no failure.
#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_long_for_purged_requests() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let handles = OpenStores::new();
    handles.add(&other.store);
    contend(&[&one, &other]).await;
    let _held = one.lock().read().await.unwrap();
    let _granted = granted_by_request(&other).await;
    other.faults.next(Kind::Purge, Fate::Slow(Duration::from_secs(10)));
    handles.close(Deadline::after(LEASE)).await.unwrap();
    assert!(other.faults.are_over());
    assert_eq!(world.state().await.holders.len(), 1);
}

/// Processes of an earlier version neither make nor apply requests. Beside them, in both orders of
/// start, a writer is alone, readers share, and each has its turn.
#[tokio::test(start_paused = true)]
async fn writer_beside_an_earlier_version_is_alone() {
    const ROUNDS: usize = 40;
    const WRITER: usize = 100;
    for old_first in [true, false] {
        let world = World::in_memory().await;
        let processes: [Process; 4] = world.processes().await;
        let old = usize::from(!old_first);
        processes.iter().skip(old).step_by(2).for_each(|process| process.faults.deny_requests());
        let inside = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for process in &processes {
            contend(&[process]).await;
        }
        for (number, process) in processes.iter().enumerate() {
            let (lock, inside) = (process.lock(), Arc::clone(&inside));
            // Some swaps of each process are lost, besides those lost to others.
            for round in 0..ROUNDS {
                process.faults.after(3 * round, Kind::Record, lost());
            }
            tasks.push(tokio::spawn(async move {
                for round in 0..ROUNDS {
                    if round % 5 == number {
                        let guard = lock.write().await.unwrap();
                        assert_eq!(inside.fetch_add(WRITER, SeqCst), 0, "alone");
                        sleep(Duration::from_millis(1)).await;
                        inside.fetch_sub(WRITER, SeqCst);
                        guard.release().await.unwrap();
                    } else {
                        let guard = lock.read().await.unwrap();
                        assert!(inside.fetch_add(1, SeqCst) < WRITER, "among readers");
                        sleep(Duration::from_millis(1)).await;
                        inside.fetch_sub(1, SeqCst);
                        guard.release().await.unwrap();
                    }
                }
            }));
        }
        for task in tasks {
            within(60, "each has its turn", task).await.unwrap();
        }
        world.held_by(0).await;
        assert!(requests(&world).await > 0, "requests were made");
    }
}

/// Keys of requests are those of sessions. An unused lock leaves no request.
#[tokio::test(start_paused = true)]
async fn contended_lock_leaves_no_request() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    contend(&[&one, &other]).await;
    for _ in 0..1_000 {
        let held = one.lock().read().await.unwrap();
        lose_swaps(&other, 2);
        let guard = within(1, "it is granted", other.lock().read()).await.unwrap();
        guard.release().await.unwrap();
        held.release().await.unwrap();
    }
    assert_eq!(requests(&world).await, 1);
    within(30, "the request is removed", async {
        while requests(&world).await > 0 {
            sleep(LEASE).await;
        }
    })
    .await;
}
