//! The session keys of processes: removed by an operator, lost by a server, renewed slowly.

use std::time::Duration;

use futures_util::future::join_all;
use shizuku_kv::rw_lock::LockLoss;
use tokio::time::sleep;

use crate::adversity::faults::{Fate, Kind, unavailable};
use crate::adversity::world::{LEASE, Process, World, lock_of, pass, within};

const LONG_LEASE: Duration = LEASE.saturating_mul(10);

/// The key exists when the waiter first looks, and is gone when it wants to end the session.
/// Otherwise it would try for ever to delete a version that does not exist.
#[tokio::test(start_paused = true)]
async fn dead_session_without_key_is_evicted() {
    let world = World::in_memory().await;
    let [dead, waiter] = world.processes().await;
    let _held = dead.lock().write().await.unwrap();
    dead.faults.crash();
    let waiting = waiter.start_waiting();
    world.in_line(1).await;
    pass(LEASE / 2).await;
    let session = world.state().await.holders[0].claim.session.clone();
    waiter.faults.lose_key(&format!("rw_lock_session.{session}"));
    within(5, "it is granted", waiting).await.unwrap().unwrap().release().await.unwrap();
}

/// The same on a server, from whose stream the key is purged by hand.
#[tokio::test]
async fn dead_session_purged_from_stream_is_evicted() {
    let world = World::on_nats().await;
    let [dead, waiter] = world.processes().await;
    let _held = dead.lock().write().await.unwrap();
    dead.faults.crash();
    let waiting = waiter.start_waiting();
    world.in_line(1).await;
    let session = world.state().await.holders[0].claim.session.clone();
    let context = async_nats::jetstream::new(shizuku_kv_tests::NatsServer::shared().client().await);
    let stream = context.get_stream(format!("KV_{}", world.name)).await.unwrap();
    let subject = format!("$KV.{}.rw_lock_session.{session}", world.name);
    // The waiter knows the session by now, or finds that it does not exist.
    assert!(stream.purge().filter(subject).await.unwrap().success);
    within(15, "it is granted", waiting).await.unwrap().unwrap().release().await.unwrap();
}

/// A process whose session key was deleted, or lost without a trace, would otherwise continue until
/// the end of its lease.
#[tokio::test(start_paused = true)]
async fn holder_without_session_key_is_notified_at_renewal() {
    for is_deleted in [true, false] {
        let world = World::in_memory().await;
        let [holder, other] = world.processes().await;
        let held = holder.lock_for(LONG_LEASE).write().await.unwrap();
        let key = world.key_of_holder().await;
        if is_deleted {
            world.observer.delete(key).await.unwrap();
        } else {
            holder.faults.lose_key(&key);
        }
        assert_eq!(within(4, "it is notified", held.lost()).await, LockLoss::Evicted);
        // The new claim has a session of its own.
        let lock = holder.lock_for(LONG_LEASE);
        let guard = within(5, "it is granted again", lock.write()).await.unwrap();
        pass(LONG_LEASE).await;
        assert!(guard.is_held(), "deleted {is_deleted}");
        guard.release().await.unwrap();
        other.is_granted("the loss").await;
    }
}

/// Otherwise it would be queued under an ended session, evicted and queued again repeatedly, or
/// granted without a notification.
#[tokio::test(start_paused = true)]
async fn waiter_of_deleted_session_queues_under_another() {
    let world = World::in_memory().await;
    let [holder, waiter] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let lock = waiter.lock_for(LONG_LEASE);
    let waiting = tokio::spawn(async move { lock.write().await });
    world.in_line(1).await;
    let session = world.state().await.waiting[0].session.clone();
    let writes = waiter.faults.record_writes();
    world.observer.delete(format!("rw_lock_session.{session}")).await.unwrap();
    let stands_anew = world.until("it is queued again", |state| {
        state.waiting.len() == 1 && state.waiting[0].session != session
    });
    within(3, "long before its lease is over", stands_anew).await;
    pass(LONG_LEASE / 3).await;
    let writes = waiter.faults.record_writes() - writes;
    assert!(writes < 10, "{writes} writes to queue again");
    held.release().await.unwrap();
    let guard = within(3, "it is granted", waiting).await.unwrap().unwrap();
    pass(LONG_LEASE).await;
    assert!(guard.is_held());
}

/// Otherwise it would believe for a third of its lease that it holds the lock, while another does.
#[tokio::test(start_paused = true)]
async fn holder_of_deleted_session_is_notified_at_next_grant() {
    let world = World::in_memory().await;
    let [holder, waiter] = world.processes().await;
    let held = holder.lock_for(LONG_LEASE).write().await.unwrap();
    let waiting = waiter.start_waiting();
    world.in_line(1).await;
    // Its record is watched by then.
    pass(2 * LEASE).await;
    let session = world.state().await.holders[0].claim.session.clone();
    world.observer.delete(format!("rw_lock_session.{session}")).await.unwrap();
    let guard = within(3, "the other is granted", waiting).await.unwrap().unwrap();
    let loss = within(1, "the holder is notified", held.lost()).await;
    assert!(matches!(loss, LockLoss::Broken | LockLoss::Evicted), "{loss:?}");
    assert!(guard.is_held() && held.release().await.is_err());
    assert_eq!(world.state().await.holders.len(), 1);
}

/// Answers that take up to half of the lease are no reason to lose it. Otherwise each renewal would
/// be given up before its answer comes, and none would ever count.
#[tokio::test(start_paused = true)]
async fn holder_with_slow_renewals_keeps_its_lock() {
    let lease = 3 * LEASE;
    let holds = async |part: u32| {
        let world = World::in_memory().await;
        let [holder] = world.processes().await;
        let held = holder.lock_for(lease).write().await.unwrap();
        holder.faults.each(Kind::Renewal, Fate::Slow(lease / part));
        pass(10 * lease).await;
        held.is_held()
    };
    assert_eq!(join_all([20, 7, 4, 2].map(holds)).await, [true; 4]);
}

/// Otherwise a process would lose its locks because of one lost answer in two.
#[tokio::test(start_paused = true)]
async fn holder_without_acknowledgements_keeps_its_lock() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    let held = holder.lock_for(3 * LEASE).write().await.unwrap();
    holder.faults.each(Kind::Renewal, Fate::Unanswered);
    pass(30 * LEASE).await;
    assert!(held.is_held());
    held.release().await.unwrap();
}

/// The read that would show the outcome of a failed renewal may fail too. The next attempt renews.
#[tokio::test(start_paused = true)]
async fn holder_keeps_lock_after_failed_renewal_and_read() {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    holder.faults.next(Kind::Renewal, Fate::Rejected(unavailable()));
    holder.faults.reject_read("rw_lock_session.", unavailable());
    pass(3 * LEASE).await;
    assert!(held.is_held() && holder.faults.are_over());
}

/// A holder whose renewals never arrive is notified when its lease expires, and not when another
/// acquires the lock.
#[tokio::test(start_paused = true)]
async fn holder_without_renewals_is_notified_in_time() {
    let world = World::in_memory().await;
    let [holder, waiter] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    holder.faults.each(Kind::Renewal, Fate::Lost);
    let waiting = waiter.start_waiting();
    let guard = async {
        let guard = waiting.await.unwrap().unwrap();
        assert!(!held.is_held(), "it is lost by now");
        guard
    };
    let (loss, _guard) = within(5, "both", async { tokio::join!(held.lost(), guard) }).await;
    assert_eq!(loss, LockLoss::Expired);
    sleep(LEASE).await;
    assert!(!held.is_held());
}

/// A new session deletes the keys of many crashed processes, in a store that takes long to answer.
/// Together that takes longer than its own lease.
#[tokio::test(start_paused = true)]
async fn slow_deletion_of_dead_sessions_delays_no_renewal() {
    let world = World::in_memory().await;
    let dead: [Process; 40] = world.processes().await;
    for (number, process) in dead.iter().enumerate() {
        let lock = lock_of(&process.store, &format!("dead.{number}"), LONG_LEASE);
        std::mem::forget(lock.write().await.unwrap());
    }
    dead.iter().for_each(|process| process.faults.crash());
    let [holder] = world.processes().await;
    let held = holder.lock_for(LONG_LEASE).write().await.unwrap();
    holder.faults.each(Kind::Ending, Fate::Slow(Duration::from_secs(4)));
    within(300, "they are deleted", async {
        while world.sessions().await.len() > 1 {
            pass(LONG_LEASE).await;
        }
    })
    .await;
    assert!(held.is_held(), "{}", held.lost().await);
}
