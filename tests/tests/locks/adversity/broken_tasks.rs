//! Tasks that panic, because code that they call does.

use shizuku_kv::rw_lock::LockLoss;

use crate::adversity::faults::{Fate, Kind};
use crate::adversity::world::{LEASE, World, pass, within};

/// The next task would not know of the holds of the panicked one. Without the notification a holder
/// would continue while another acquires the lock.
#[tokio::test(start_paused = true)]
async fn holder_is_notified_after_panic_of_coordinator() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    let held = one.lock().write().await.unwrap();
    one.faults.next(Kind::Record, Fate::Panics);
    let claim = one.lock();
    let claim = tokio::spawn(async move { claim.write().await });
    assert_eq!(within(1, "it is notified", held.lost()).await, LockLoss::TaskEnded);
    assert!(!held.is_held() && one.faults.are_over());
    // The claim is notified as well, or granted by the task that replaces the panicked one.
    if let Ok(guard) = within(5, "the claim ends", claim).await.unwrap() {
        guard.release().await.unwrap();
    }
    let guard = async {
        let guard = other.lock().write().await.unwrap();
        assert!(!held.is_held());
        guard
    };
    // A task of the process has to look at the lock again.
    let lock = one.lock();
    let look = async {
        if let Ok(guard) = lock.try_read().await {
            guard.release().await.unwrap();
        }
    };
    let ((), guard) = within(5, "the other is granted", async { tokio::join!(look, guard) }).await;
    pass(2 * LEASE).await;
    assert!(guard.is_held() && held.release().await.is_err());
    guard.release().await.unwrap();
    world.held_by(0).await;
}

/// Otherwise the lease would not be renewed, and its holder would rely on it until it expires.
#[tokio::test(start_paused = true)]
async fn holder_is_notified_after_panic_of_keep_alive() {
    let world = World::in_memory().await;
    let [one, other] = world.processes().await;
    let held = one.lock().write().await.unwrap();
    one.faults.next(Kind::Renewal, Fate::Panics);
    assert_eq!(within(1, "it is notified", held.lost()).await, LockLoss::TaskEnded);
    let guard = within(5, "the other is granted", other.lock().write()).await.unwrap();
    assert!(guard.is_held() && !held.is_held());
    guard.release().await.unwrap();
    // The next claim has a session of its own.
    let held = within(5, "it is granted again", one.lock().write()).await.unwrap();
    pass(3 * LEASE).await;
    assert!(held.is_held());
}
