//! A lost lock stays lost, even if a renewal that was sent in time is acknowledged too late.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{Connection, connect};
use shizuku_kv_tests::Random;
use tokio::time::{Instant, sleep, sleep_until};

use crate::schedules::link::{Broken, Link, Rates, linked};

const LEASE: Duration = Duration::from_secs(1);

/// Cuts a process off until shortly before its lease ends, while its coordinator waits for another
/// answer. Returns true if the lock was held again after it was lost.
async fn comes_back(seed: u64) -> bool {
    let connection = connect("memory:").await.expect("memory");
    let store = connection.store("locks").await.expect("a store");
    // Draws no random fault.
    let rates = Rates { often: 1 << 60, slowest: 100 };
    let link = Link::new(Random::new(seed, "link"), rates);
    let store = linked(&store, &link, Broken::Nothing).with_deadline(Duration::from_secs(5));
    let lock =
        DistroRwLock::with_options(&store, "a", LockOptions::new().lease(LEASE)).expect("a lock");
    let guard = lock.write().await.expect("it is free");
    let began = Instant::now();
    let healed_at = began + LEASE - Duration::from_millis(Random::new(seed, "heal").below(300));
    link.cut();
    tokio::spawn(async move { lock.try_read().await.map(drop) });
    sleep_until(healed_at).await;
    link.heal();
    let (mut was_lost, mut comes_back) = (false, false);
    while began.elapsed() < 3 * LEASE / 2 {
        sleep(Duration::from_millis(1)).await;
        comes_back |= was_lost && guard.is_held();
        was_lost |= !guard.is_held();
    }
    comes_back
}

#[test]
fn lost_lock_stays_lost() {
    let comes_back = |seed: &u64| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(comes_back(*seed))
    };
    let found: Vec<_> = (0..200).filter(comes_back).collect();
    assert!(found.is_empty(), "a lock that was lost is held again, with the seeds {found:?}");
}
