//! Contended locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use shizuku_kv::rw_lock::DistroRwLock;
use shizuku_kv::{Key, KvUpdate, WatchScope};

use super::{Bench, Effort, middle};
use crate::lines::{Figure, alone, line};
use crate::support::{median, sorted};
use crate::turns::{Side, take_turns};

/// Maximum number of round trips.
const HAND_OVER: f64 = 3.0;
/// Maximum number of round trips for all readers.
const CROWD: f64 = 64.0;

const READERS: usize = 64;
const WRITERS: usize = 8;
const SECTIONS: usize = 50;

/// Time for which a writer waits before the lock is released: long enough to watch the lock.
const IN_LINE: Duration = Duration::from_millis(20);

pub(super) async fn measure(bench: &Bench, effort: Effort) -> Vec<String> {
    let mut lines = hand_over(bench, effort).await;
    lines.extend(crowds(bench, effort).await);
    lines.push(queue(bench, effort).await);
    lines
}

/// Measures a release of one writer until another one, of another connection, has the lock. Also
/// measures the time until one connection receives a write of another.
async fn hand_over(bench: &Bench, effort: Effort) -> Vec<String> {
    let locks = &*bench.locks("hand-over", 2).await;
    let [ours, arriving, rested, put] = take_turns(
        effort.rounds,
        [
            Side::new(move || hand_overs(locks, effort.hand_overs)),
            Side::new(move || arrivals(bench, effort.hand_overs)),
            Side::new(move || bench.rested_round_trip(IN_LINE, effort.hand_overs)),
            Side::new(move || bench.round_trip(effort.singles)),
        ],
    )
    .await;
    let case = "hand-over from writer to waiting writer (shizuku: none, its second write lock never returns)";
    vec![
        line(
            &format!("{case}; round trip after the same rest"),
            Figure::Each,
            &ours,
            &rested,
            Some(HAND_OVER),
        ),
        line(&format!("{case}; round trip without a rest"), Figure::Each, &ours, &put, None),
        line(
            &format!("{case}; arriving after the same rest"),
            Figure::Each,
            &ours,
            &arriving,
            None,
        ),
    ]
}

/// Measures the time from a write until a watch of another connection has delivered it.
async fn arrivals(bench: &Bench, count: usize) -> Duration {
    let key = Key::new("arriving").unwrap();
    let (store, _connection) = super::store(&bench.url).await;
    let watch = store.watch(WatchScope::Key(key.clone())).await.unwrap();
    while !matches!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp) {}
    let mut times = Vec::new();
    for _ in 0..count {
        tokio::time::sleep(IN_LINE).await;
        let start = Instant::now();
        let (store, key) = (bench.ours.clone(), key.clone());
        let writing = tokio::spawn(async move { store.put(key, "x").await });
        watch.next().await.unwrap().unwrap();
        times.push(start.elapsed());
        writing.await.unwrap().unwrap();
    }
    middle(times)
}

async fn hand_overs(locks: &[DistroRwLock], count: usize) -> Duration {
    let mut times = Vec::new();
    let mut holder = locks[0].write().await.unwrap();
    for number in 1..=count {
        let next = locks[number % locks.len()].clone();
        let waiting = tokio::spawn(async move {
            let guard = next.write().await.unwrap();
            (guard, Instant::now())
        });
        while locks[0].inspect().await.unwrap().waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(IN_LINE).await;
        let start = Instant::now();
        // The releasing side waits for no other process.
        let releasing = tokio::spawn(holder.release());
        let (guard, granted) = waiting.await.unwrap();
        times.push(granted - start);
        releasing.await.unwrap().unwrap();
        holder = guard;
    }
    holder.release().await.unwrap();
    middle(times)
}

/// Measures readers that come at the same time.
async fn crowds(bench: &Bench, effort: Effort) -> Vec<String> {
    let one = &*bench.locks("crowd-of-one", 1).await;
    let many = &*bench.locks("crowd-of-many", 16).await;
    let [handle, connections, shizukus, put] = take_turns(
        effort.rounds,
        [
            Side::new(move || crowd(one, effort.crowds)),
            Side::new(move || crowd(many, effort.crowds)),
            Side::new(move || bench.shizuku.crowd(READERS)),
            Side::new(move || bench.round_trip(effort.singles)),
        ],
    )
    .await;
    let case = "64 readers at once, all in";
    vec![
        line(&format!("{case}, one handle; round trip"), Figure::Each, &handle, &put, Some(CROWD)),
        line(
            &format!("{case}, 16 connections; round trip"),
            Figure::Each,
            &connections,
            &put,
            Some(CROWD),
        ),
        line(&format!("{case}, one handle; shizuku"), Figure::Each, &handle, &shizukus, None),
    ]
}

async fn crowd(locks: &[DistroRwLock], count: usize) -> Duration {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let entering = (0..READERS).map(|number| {
            let lock = locks[number % locks.len()].clone();
            tokio::spawn(async move { lock.read().await.unwrap() })
        });
        let guards: Vec<_> =
            join_all(entering).await.into_iter().map(|entered| entered.unwrap()).collect();
        times.push(start.elapsed());
        // The next step does not depend on the order of the releases.
        for left in join_all(guards.into_iter().map(|guard| guard.release())).await {
            left.unwrap();
        }
    }
    middle(times)
}

/// Measures writers that take turns, each of a connection of its own.
async fn queue(bench: &Bench, effort: Effort) -> String {
    let locks = bench.locks("queue", WRITERS).await;
    let mut rates = Vec::new();
    for round in 0..=effort.queues {
        let inside = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let writers = locks.iter().map(|lock| {
            let (lock, inside) = (lock.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                for _ in 0..SECTIONS {
                    let guard = lock.write().await.unwrap();
                    assert!(!inside.swap(true, Ordering::SeqCst), "alone");
                    inside.store(false, Ordering::SeqCst);
                    guard.release().await.unwrap();
                }
            })
        });
        join_all(writers).await.into_iter().for_each(|written| written.unwrap());
        // The first round is not counted.
        if round > 0 {
            rates.push((WRITERS * SECTIONS) as f64 / start.elapsed().as_secs_f64());
        }
    }
    let rates = sorted(rates.into_iter());
    alone(
        "8 writers on 8 connections, 50 empty sections each",
        &format!(
            "{:.0} sections/s ({:.0} to {:.0}, {} rounds)",
            median(&rates),
            rates[0],
            rates[rates.len() - 1],
            rates.len()
        ),
    )
}
