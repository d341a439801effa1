//! Reads that find what was there before: by a replica that is behind, or a leader that was replaced and does not know
//! it yet.

use shizuku_kv::rw_lock::DistroRwLockError;
use tokio::time::timeout;

use crate::faults::{Fate, Kind, unavailable};
use crate::world::{LEASE, RECORD, World, goes_by, within};

/// Else a process would see its own grant gone, and tell its holder that the lock is lost.
#[tokio::test(start_paused = true)]
async fn a_holder_is_not_told_that_it_lost_what_an_old_record_does_not_have() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    // What the process knows of the record is outdated: the next swap is lost, and it has to read.
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    let second = one.lock();
    let second = tokio::spawn(async move { second.read().await });
    goes_by(3 * LEASE).await;
    assert!(held.is_held());
    one.faults.catch_up();
    let second = within(5, "the second claim is granted", second).await.unwrap().unwrap();
    assert!(held.is_held() && second.is_held() && theirs.is_held());
    assert_eq!(world.state().await.holders.len(), 3);
    held.release().await.unwrap();
    second.release().await.unwrap();
    world.held_by(1).await;
}

/// The same where no read is ever right: the watch has the truth.
#[tokio::test(start_paused = true)]
async fn a_holder_goes_on_also_where_all_reads_are_old() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    let _ = timeout(5 * LEASE, one.lock().try_read()).await;
    assert!(held.is_held() && theirs.is_held());
    // Whether it succeeds or is tried further, it is not told that it was lost.
    match held.release().await {
        Ok(()) | Err(DistroRwLockError::Store { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    one.faults.catch_up();
    world.held_by(1).await;
    assert!(theirs.is_held());
}

/// Else who lets go would find nothing of itself, believe that others took it out, and leave its grant behind.
#[tokio::test(start_paused = true)]
async fn a_release_over_an_old_record_takes_its_grant_out() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    one.lock().read().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = one.lock().read().await.unwrap();
    let theirs = other.lock().read().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    let (released, ()) = tokio::join!(held.release(), async {
        goes_by(LEASE).await;
        one.faults.catch_up();
    });
    released.unwrap();
    world.held_by(1).await;
    theirs.release().await.unwrap();
}

/// Else a process in line would find itself nowhere, and stand in line a second time.
#[tokio::test(start_paused = true)]
async fn a_waiter_stands_in_line_once_whatever_an_old_record_says() {
    let world = World::in_memory().await;
    let [holder, waiter] = world.processes().await;
    let _alive = waiter.stay_alive().await;
    waiter.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = holder.lock().write().await.unwrap();
    let waiting = waiter.starts_to_wait();
    world.in_line(1).await;
    waiter.faults.fall_behind(RECORD, before);
    for _ in 0..3 {
        // Each has its process look at the record.
        let _ = timeout(LEASE, waiter.lock().try_read()).await;
    }
    assert_eq!(world.state().await.waiting.len(), 1);
    waiter.faults.catch_up();
    held.release().await.unwrap();
    within(5, "it gets in", waiting).await.unwrap().unwrap().release().await.unwrap();
    world.held_by(0).await;
}

/// A claim is given up while its write is on its way, and what is read is from before the version that the write
/// replaces. Else that other version would be taken for a sign that the write cannot land any more; when it did, a process
/// that lives would hold a lock that nobody there knows of.
#[tokio::test(start_paused = true)]
async fn a_write_that_can_still_land_is_not_taken_for_gone_by_an_old_record() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    one.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    one.lock().write().await.unwrap().release().await.unwrap();
    one.faults.fall_behind(RECORD, before);
    one.faults.next(Kind::Record, Fate::Late);
    assert!(timeout(LEASE / 10, one.lock().write()).await.is_err());
    goes_by(2 * LEASE).await;
    one.backend.arrive().await;
    one.faults.catch_up();
    other.gets_in("the write has landed").await;
    world.held_by(0).await;
}

/// Else an operator would be told that a lock is broken whose newest grant the old record does not have.
#[tokio::test(start_paused = true)]
async fn a_break_after_an_old_read_breaks_what_is_there() {
    let world = World::in_memory().await;
    let [holder, operator] = world.processes().await;
    operator.lock().write().await.unwrap().release().await.unwrap();
    let before = world.record().await;
    let held = holder.lock().write().await.unwrap();
    // By a process that has seen the newer record, and by one that sees the lock for the first time.
    let [newcomer] = world.processes().await;
    for process in [&operator, &newcomer] {
        let [next] = world.processes().await;
        process.faults.fall_behind(RECORD, before.clone());
        let lock = process.lock();
        let (is_broken, ()) = tokio::join!(lock.break_lock(), async {
            goes_by(LEASE / 2).await;
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

/// Else somebody would be told that a lock is broken that is held as before.
#[tokio::test(start_paused = true)]
async fn a_break_is_not_said_to_be_made_that_was_not_made() {
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
    within(5, "the holder is told", held.lost()).await;
}

/// A renewal fails for a moment, and whoever is asked then knows an old one, or nothing yet of the session.
async fn is_held_after_an_old_read_of_its_session(is_known: bool) {
    let world = World::in_memory().await;
    let [holder] = world.processes().await;
    let held = holder.lock().write().await.unwrap();
    let session = format!("rw_lock_session.{}", world.state().await.holders[0].claim.session);
    let first = world.around.entry(&*session).await.unwrap();
    assert!(first.is_some());
    goes_by(LEASE).await;
    holder.faults.fall_behind(&session, first.filter(|_| is_known));
    holder.faults.next(Kind::Renewal, Fate::Refused(unavailable()));
    goes_by(2 * LEASE).await;
    assert!(holder.faults.are_over());
    assert!(held.is_held(), "{}", held.lost().await);
    held.release().await.unwrap();
}

/// Else a process would take what it reads for another's, and give up all that it holds.
#[tokio::test(start_paused = true)]
async fn a_session_is_not_taken_for_ended_by_an_old_renewal() {
    is_held_after_an_old_read_of_its_session(true).await;
}

/// Else a process would take its session for removed, and give up all that it holds.
#[tokio::test(start_paused = true)]
async fn a_session_is_not_taken_for_ended_where_it_is_not_known_yet() {
    is_held_after_an_old_read_of_its_session(false).await;
}
