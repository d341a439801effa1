//! Reads with stale results: from a replica that is behind, or from a replaced leader that does not
//! know it yet.

use shizuku_kv::rw_lock::DistroRwLockError;
use tokio::time::timeout;

use crate::adversity::faults::{Fate, Kind, unavailable};
use crate::adversity::world::{LEASE, RECORD, World, pass, within};

/// Otherwise a process would miss its own grant, and notify its holder of a lost lock.
#[tokio::test(start_paused = true)]
async fn stale_record_does_not_revoke_a_grant() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    // The cached record of the process is stale: its next swap is lost, and it has to read.
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    let second = one.lock();
    let second = tokio::spawn(async move { second.read().await });
    pass(3 * LEASE).await;
    assert!(held.is_held());
    one.faults.catch_up();
    let second = within(5, "the second claim is granted", second).await.unwrap().unwrap();
    assert!(held.is_held() && second.is_held() && theirs.is_held());
    assert_eq!(world.state().await.holders.len(), 3);
    held.release().await.unwrap();
    second.release().await.unwrap();
    world.held_by(1).await;
}

/// The same if every read is stale, because the watch delivers the current record.
#[tokio::test(start_paused = true)]
async fn holder_keeps_its_lock_if_all_reads_are_stale() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    let _ = timeout(5 * LEASE, one.lock().try_read()).await;
    assert!(held.is_held() && theirs.is_held());
    // The release succeeds or is retried, but does not report a lost lock.
    match held.release().await {
        Ok(()) | Err(DistroRwLockError::Store { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    one.faults.catch_up();
    world.held_by(1).await;
    assert!(theirs.is_held());
}

/// Otherwise a releasing process would not find its grant, believe that others evicted it, and
/// leave it behind.
#[tokio::test(start_paused = true)]
async fn release_after_stale_read_removes_its_grant() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    let (released, ()) = tokio::join!(held.release(), async {
        pass(LEASE).await;
        one.faults.catch_up();
    });
    released.unwrap();
    world.held_by(1).await;
    theirs.release().await.unwrap();
}

/// Otherwise a queued process would not find itself, and queue a second time.
#[tokio::test(start_paused = true)]
async fn waiter_queues_once_despite_stale_record() {
    let world = World::in_memory().await;
    let [holder, waiter] = world.processes().await;
    let _alive = waiter.stay_alive().await;
    waiter.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = holder.lock().write().await.unwrap();
    let waiting = waiter.start_waiting();
    world.in_line(1).await;
    waiter.faults.fall_behind(RECORD, before);
    for _ in 0..3 {
        // Each makes its process look at the record.
        let _ = timeout(LEASE, waiter.lock().try_read()).await;
    }
    assert_eq!(world.state().await.waiting.len(), 1);
    waiter.faults.catch_up();
    held.release().await.unwrap();
    within(5, "it is granted", waiting).await.unwrap().unwrap().release().await.unwrap();
    world.held_by(0).await;
}

/// A claim is dropped while its write is in transit, and the read result is older than the version
/// that the write replaces. The other version must not prove that the write cannot land any more.
/// When it did, a live process would hold a lock that no guard there knows of.
#[tokio::test(start_paused = true)]
async fn stale_record_does_not_resolve_a_write_in_flight() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    one.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    one.lock().write().await.unwrap().release().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    one.faults.next(Kind::Record, Fate::Late);
    assert!(timeout(LEASE / 10, one.lock().write()).await.is_err());
    pass(2 * LEASE).await;
    one.backend.arrive().await;
    one.faults.catch_up();
    other.is_granted("the write has landed").await;
    world.held_by(0).await;
}

/// Otherwise an operator would be told that a lock is broken whose newest grant the old record does
/// not have.
#[tokio::test(start_paused = true)]
async fn break_after_stale_read_revokes_present_holders() {
    let world = World::in_memory().await;
    let [holder, operator] = world.processes().await;
    operator.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = holder.lock().write().await.unwrap();
    // Breaks with a process that has seen the newer record, and with one that sees the lock for the
    // first time.
    let [newcomer] = world.processes().await;
    for process in [&operator, &newcomer] {
        let [next] = world.processes().await;
        process.faults.fall_behind(RECORD, before.clone());
        let lock = process.lock();
        let (is_broken, ()) = tokio::join!(lock.break_lock(), async {
            pass(LEASE / 2).await;
            process.faults.catch_up();
        });
        is_broken.unwrap();
        assert_eq!(world.state().await.holders, [], "it was said to be broken");
        let guard = next.lock().try_write().await.unwrap();
        assert!(guard.is_held());
        if std::ptr::eq(process, &newcomer) {
            guard.release().await.unwrap();
        } else {
            std::mem::forget(guard);
        }
    }
    drop(held);
}

/// Otherwise the caller would be told that a lock is broken that is held as before.
#[tokio::test(start_paused = true)]
async fn break_is_not_reported_unless_made() {
    let world = World::in_memory().await;
    let [holder, operator] = world.processes().await;
    operator.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = holder.lock().write().await.unwrap();
    let token = held.fencing_token();
    operator.faults.fall_behind(RECORD, before);
    let is_broken = operator.lock().break_lock().await;
    let holders = world.state().await.holders;
    assert_eq!(
        is_broken.is_ok(),
        holders.iter().all(|grant| grant.token != token),
        "{is_broken:?}"
    );
    operator.faults.catch_up();
    operator.lock().break_lock().await.unwrap();
    assert_eq!(world.state().await.holders, []);
    within(5, "the holder is notified", held.lost()).await;
}

/// A renewal fails once, and the answering server then has an old one, or does not know the session
/// yet.
async fn is_held_after_an_old_read_of_its_session(is_known: bool) {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let session = format!("rw_lock_session.{}", world.state().await.holders[0].claim.session);
    let first = world.around.entry(&*session).await.unwrap();
    assert!(first.is_some());
    pass(LEASE).await;
    holder.faults.fall_behind(&session, first.filter(|_| is_known));
    holder.faults.next(Kind::Renewal, Fate::Rejected(unavailable()));
    pass(2 * LEASE).await;
    assert!(holder.faults.are_over());
    assert!(held.is_held(), "{}", held.lost().await);
    held.release().await.unwrap();
}

/// Otherwise a process would attribute its own entry to another, and give up all of its locks.
#[tokio::test(start_paused = true)]
async fn stale_renewal_does_not_end_a_session() {
    is_held_after_an_old_read_of_its_session(true).await;
}

/// Otherwise a process would consider its session removed, and give up all of its locks.
#[tokio::test(start_paused = true)]
async fn missing_renewal_on_replica_does_not_end_a_session() {
    is_held_after_an_old_read_of_its_session(false).await;
}
