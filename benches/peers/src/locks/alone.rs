//! Uncontended locks: acquired and released.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shizuku_kv::rw_lock::DistroRwLock;

use super::{Bench, Effort, p50};
use crate::lines::{Figure, line};
use crate::turns::{Side, take_turns};

/// Maximum ratio to shizuku's time.
const THAN_SHIZUKU: f64 = 0.5;
/// Maximum number of round trips: one to acquire, one to release, and the overhead.
const ROUND_TRIPS: f64 = 2.3;

pub(super) async fn measure(bench: &Bench, effort: Effort) -> Vec<String> {
    let mut lines = Vec::new();
    let [ours, shizukus, our_put, put] = take_turns(
        effort.rounds,
        [
            Side::new(move || our_reads(bench, effort.singles)),
            Side::new(move || p50(effort.singles, move || bench.shizuku.read())),
            Side::new(move || our_puts(bench, effort.singles)),
            Side::new(move || bench.round_trip(effort.singles)),
        ],
    )
    .await;
    let case = "read lock, acquire and release";
    lines.push(line(
        &format!("{case}; shizuku"),
        Figure::Each,
        &ours,
        &shizukus,
        Some(THAN_SHIZUKU),
    ));
    lines.push(line(&format!("{case}; round trip"), Figure::Each, &ours, &put, Some(ROUND_TRIPS)));
    lines.push(line(&format!("{case}; our own put"), Figure::Each, &ours, &our_put, None));

    let next = &AtomicUsize::new(0);
    let [new, shizukus, again, other, put] = take_turns(
        effort.rounds,
        [
            Side::new(move || our_new_writes(bench, effort.singles, next)),
            Side::new(move || p50(effort.singles, move || bench.shizuku.write_new())),
            Side::new(move || our_writes(bench, effort.singles)),
            Side::new(move || our_writes_in_turn(bench, effort.singles)),
            Side::new(move || bench.round_trip(effort.singles)),
        ],
    )
    .await;
    let case = "write lock of a new resource, acquire and release";
    lines.push(line(
        &format!("{case}; shizuku"),
        Figure::Each,
        &new,
        &shizukus,
        Some(THAN_SHIZUKU),
    ));
    lines.push(line(&format!("{case}; round trip"), Figure::Each, &new, &put, None));
    let case = "write lock, acquire and release";
    lines.push(line(&format!("{case}; round trip"), Figure::Each, &again, &put, Some(ROUND_TRIPS)));
    let case = "write lock after another connection's, acquire and release";
    lines.push(line(&format!("{case}; round trip"), Figure::Each, &other, &put, None));
    lines
}

async fn our_puts(bench: &Bench, count: usize) -> Duration {
    p50(count, || async {
        bench.ours.put("our-round-trip", vec![b'x'; 100]).await.unwrap();
    })
    .await
}

async fn our_reads(bench: &Bench, count: usize) -> Duration {
    let lock = DistroRwLock::new(&bench.ours, "read").unwrap();
    p50(count, || async {
        lock.read().await.unwrap().release().await.unwrap();
    })
    .await
}

async fn our_writes(bench: &Bench, count: usize) -> Duration {
    let lock = DistroRwLock::new(&bench.ours, "write").unwrap();
    p50(count, || async {
        lock.write().await.unwrap().release().await.unwrap();
    })
    .await
}

async fn our_new_writes(bench: &Bench, count: usize, next: &AtomicUsize) -> Duration {
    p50(count, || async {
        let resource = format!("new.{}", next.fetch_add(1, Ordering::Relaxed));
        let lock = DistroRwLock::new(&bench.ours, resource).unwrap();
        lock.write().await.unwrap().release().await.unwrap();
    })
    .await
}

/// Alternates between two connections, so that the cached record of each is always stale.
async fn our_writes_in_turn(bench: &Bench, count: usize) -> Duration {
    let locks = bench.locks("in-turn", 2).await;
    let mut turn = 0;
    p50(count, || {
        turn += 1;
        let lock = &locks[turn % 2];
        async move { lock.write().await.unwrap().release().await.unwrap() }
    })
    .await
}
