//! Tasks that panic, because something that they call does.

use shizuku_kv::rw_lock::LockLoss;

use crate::faults::{Fate, Kind};
use crate::world::{LEASE, World, goes_by, within};

/// Whoever comes next takes what the task had for nobody's. Else its holder would go on while another is let in.
#[tokio::test(start_paused = true)]
async fn a_holder_is_told_when_the_task_of_its_lock_has_panicked() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    let held = one.lock().write().await.unwrap();
    one.faults.next(Kind::Record, Fate::Panics);
    let claim = one.lock();
    let claim = tokio::spawn(async move { claim.write().await });
    assert_eq!(within(1, "it is told", held.lost()).await, LockLoss::TaskEnded);
    assert!(!held.is_held() && one.faults.are_over());
    // Who has claimed is told as well, or let in by the task that takes its place.
    if let Ok(guard) = within(5, "the claim ends", claim).await.unwrap() {
        guard.release().await.unwrap();
    }
    let guard = async {
        let guard = other.lock().write().await.unwrap();
        assert!(!held.is_held());
        guard
    };
    // Some task of the process has to look at the lock again.
    let lock = one.lock();
    let look = async {
        if let Ok(guard) = lock.try_read().await {
            guard.release().await.unwrap();
        }
    };
    let ((), guard) = within(5, "the other gets in", async { tokio::join!(look, guard) }).await;
    goes_by(2 * LEASE).await;
    assert!(guard.is_held() && held.release().await.is_err());
    guard.release().await.unwrap();
    world.held_by(0).await;
}

/// Else nobody would renew the lease, and its holder would believe in it until it is over.
#[tokio::test(start_paused = true)]
async fn a_holder_is_told_when_the_task_of_its_session_has_panicked() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let held = one.lock().write().await.unwrap();
    one.faults.next(Kind::Renewal, Fate::Panics);
    assert_eq!(within(1, "it is told", held.lost()).await, LockLoss::TaskEnded);
    let guard = within(5, "the other gets in", other.lock().write()).await.unwrap();
    assert!(guard.is_held() && !held.is_held());
    guard.release().await.unwrap();
    // The next claim has a session of its own.
    let held = within(5, "it gets in again", one.lock().write()).await.unwrap();
    goes_by(3 * LEASE).await;
    assert!(held.is_held());
}
