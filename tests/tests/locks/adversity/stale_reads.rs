//! Reads with stale results: from a replica that is behind, or from a replaced leader that does not
//! know it yet.

use shizuku_kv::rw_lock::{ReadGuard, WriteGuard};
use tokio::time::timeout;

use crate::adversity::faults::{Fate, Kind, unavailable};
use crate::adversity::world::{LEASE, Process, RECORD, World, pass, within};

/// A process with a hold that stale reads do not show.
struct Behind {
    world: World,
    one: Process,
    /// Keeps the session alive.
    _alive: WriteGuard,
    held: ReadGuard,
    theirs: ReadGuard,
}

async fn behind() -> Behind {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let alive = one.stay_alive().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    // The cached record of the process is stale: its next swap is lost, and it has to read.
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    Behind { world, one, _alive: alive, held, theirs }
}

/// A process that uses the stale record would miss its own grant, and notify its holder of a lost
/// lock. The watch delivers the current record.
#[tokio::test(start_paused = true)]
async fn stale_record_does_not_revoke_a_grant() {
    let Behind { world, one, held, theirs, .. } = behind().await;
    let second = within(5, "the second claim is granted", one.lock().read()).await.unwrap();
    pass(3 * LEASE).await;
    assert!(held.is_held() && second.is_held() && theirs.is_held());
    assert_eq!(world.state().await.holders.len(), 3);
    held.release().await.unwrap();
    second.release().await.unwrap();
    world.held_by(1).await;
}

/// Otherwise a releasing process would not find its grant, believe that others evicted it, and
/// leave it behind.
#[tokio::test(start_paused = true)]
async fn release_after_stale_read_removes_its_grant() {
    let Behind { world, one, held, theirs, .. } = behind().await;
    let (released, ()) = tokio::join!(held.release(), async {
        pass(LEASE).await;
        one.faults.catch_up();
    });
    released.unwrap();
    world.held_by(1).await;
    assert!(theirs.is_held());
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
/// If the watch delivers nothing either, the coordinator must not end before it knows. Otherwise a
/// live process would hold a lock for which it has no guard.
#[tokio::test(start_paused = true)]
async fn stale_record_does_not_resolve_a_write_in_flight() {
    for hears in [true, false] {
        let world = World::in_memory().await;
        let [one, other] = world.processes().await;
        let _alive = one.stay_alive().await;
        one.lock().write().await.unwrap().release().await.unwrap();
        let before = world.record().await;
        one.lock().write().await.unwrap().release().await.unwrap();
        one.faults.fall_behind(RECORD, before);
        if !hears {
            one.faults.hear_nothing();
        }
        one.faults.next(Kind::Record, Fate::Late);
        assert!(timeout(LEASE / 60, one.lock().write()).await.is_err());
        // Longer than the time for which an idle coordinator is kept.
        pass(30 * LEASE).await;
        one.backend.arrive().await;
        one.faults.catch_up();
        other.is_granted(&format!("the write has landed, heard {hears}")).await;
        world.held_by(0).await;
    }
}

/// A break of the old record would report the lock as broken, although that record does not have
/// the newest grant. Breaks with a process that has seen the newer record, with one that sees the
/// lock for the first time, and with one whose reads stay stale.
#[tokio::test(start_paused = true)]
async fn break_after_stale_read_revokes_present_holders() {
    for (has_seen, catches_up) in [(true, true), (false, true), (true, false)] {
        let world = World::in_memory().await;
        let [holder, operator, next] = world.processes().await;
        let first = if has_seen { &operator } else { &holder };
        first.lock().write().await.unwrap().release().await.unwrap();
        let before = world.record().await;
        let held = holder.lock().write().await.unwrap();
        operator.faults.fall_behind(RECORD, before);
        let lock = operator.lock();
        let (is_broken, ()) = tokio::join!(lock.break_lock(), async {
            pass(LEASE / 2).await;
            if catches_up {
                operator.faults.catch_up();
            }
        });
        let case = format!("seen before {has_seen}, catches up {catches_up}: {is_broken:?}");
        assert_eq!(is_broken.is_ok(), world.state().await.holders.is_empty(), "{case}");
        assert!(is_broken.is_ok() || !catches_up, "{case}");
        operator.faults.catch_up();
        lock.break_lock().await.unwrap();
        within(5, "the holder is notified", held.lost()).await;
        next.lock().try_write().await.unwrap().release().await.unwrap();
    }
}

/// A renewal fails once, and the answering server then has an old entry, or does not know the
/// session yet. Otherwise a process would attribute its own entry to another, or consider its
/// session removed, and give up all of its locks.
#[tokio::test(start_paused = true)]
async fn stale_or_missing_renewal_does_not_end_a_session() {
    for is_known in [true, false] {
        let world = World::in_memory().await;
        let [holder] = world.processes().await;
        let held = holder.lock().write().await.unwrap();
        let session = world.key_of_holder().await;
        let first = world.observer.entry(&*session).await.unwrap();
        assert!(first.is_some());
        pass(LEASE).await;
        holder.faults.fall_behind(&session, first.filter(|_| is_known));
        holder.faults.next(Kind::Renewal, Fate::Rejected(unavailable()));
        pass(2 * LEASE).await;
        assert!(holder.faults.are_over());
        assert!(held.is_held(), "known {is_known}: {}", held.lost().await);
        held.release().await.unwrap();
    }
}
