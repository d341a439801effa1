//! Locks in a store with 10,000 sessions of crashed processes, next to locks in an empty one. Then
//! hand-overs by a holder that does not watch its lock yet, next to those by one that does.
//!
//! `cargo bench -p shizuku-kv --bench locks [-- --quick]`. The last lines are one for each case:
//! `case | ours | other | ratio | target | met`, "ours" being the store with dead sessions. The A/A
//! rows compare two empty stores: what the machine adds to a ratio.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on ends"
)]

mod crowds;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{Connection, Store, connect};
use support::{Comparison, Server, Unit, cores};

/// Number of sessions of crashed processes.
const DEAD: usize = 10_000;

/// Longest time that a case with dead sessions may take, as a multiple of one without.
const TARGET: f64 = 1.1;

/// The shortest lease, because a takeover waits for it.
const LEASE: Duration = Duration::from_secs(1);

/// Time within which a holder and a waiter have opened their watches.
const WATCH_TIME: Duration = Duration::from_millis(40);

/// Time within which a waiter has opened its watch, and a holder has not begun to.
const SHORT_TIME: Duration = Duration::from_millis(5);

/// Round trips of a hand-over by a holder that does not watch the lock: a rejected swap, a read, a
/// swap, of which the last one is common to both sides.
const SHORT_TARGET: f64 = 3.0;

/// Two processes, as far as locks are concerned: each has a connection of its own.
struct Processes {
    url: String,
    name: String,
    one: Store,
    other: Store,
}

impl Processes {
    async fn start(url: &str, name: &str) -> Self {
        let open = async || connect(url).await.unwrap().store(name).await.unwrap();
        Self { url: url.to_owned(), name: name.to_owned(), one: open().await, other: open().await }
    }

    fn lock(store: &Store) -> DistroRwLock {
        DistroRwLock::with_options(store, "resource", LockOptions::new().lease(LEASE)).unwrap()
    }

    /// Returns the part that the keys of all sessions of the store have in common, and the number
    /// of one that is in use.
    async fn key_of_session(&self) -> (String, usize) {
        let lock = Self::lock(&self.one);
        let held = lock.write().await.unwrap();
        let session = lock.inspect().await.unwrap().holders[0].claim.session.clone();
        held.release().await.unwrap();
        let (salt, number) = session.rsplit_once('.').unwrap();
        (salt.to_owned(), number.parse().unwrap())
    }

    /// Leaves the keys of sessions whose processes crashed, in both formats.
    async fn leave_dead_sessions(&self) {
        let value = |format: &str| {
            format!("{{\"shizuku_lock_session\":{format},\"lease_ms\":10000,\"renewal\":7}}")
        };
        let old = (0..DEAD / 2).map(|n| (format!("rw_lock_session.{n:032x}"), value("1")));
        let nonce = |n: usize| value(&format!("2,\"nonce\":\"{n:016x}\""));
        let (salt, own) = self.key_of_session().await;
        let reused = (0..DEAD / 2).filter(|number| *number != own);
        let reused = reused.map(|n| (format!("rw_lock_session.{salt}.{n}"), nonce(n)));
        for answer in self.one.put_many(old.chain(reused)).await {
            answer.unwrap();
        }
    }

    /// The time from a release until another process, which waits, has the lock. Both processes
    /// have lost swaps of the record before, and watch it.
    async fn hand_over(&self) -> Duration {
        self.hand_over_of("resource", WATCH_TIME).await
    }

    /// Does the same for a lock that was never contended before. Releases it this long after a
    /// claim waits for it.
    async fn first_hand_over(&self, number: &AtomicUsize, after: Duration) -> Duration {
        let number = number.fetch_add(1, Ordering::Relaxed);
        self.hand_over_of(&format!("first.{number}"), after).await
    }

    async fn hand_over_of(&self, resource: &str, after: Duration) -> Duration {
        let options = LockOptions::new().lease(LEASE);
        let lock = |store| DistroRwLock::with_options(store, resource, options.clone()).unwrap();
        let held = lock(&self.one).write().await.unwrap();
        let waiting = lock(&self.other);
        let waiting = tokio::spawn(async move { waiting.write().await.unwrap() });
        while lock(&self.one).inspect().await.unwrap().waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The waiter opens its watch.
        tokio::time::sleep(after).await;
        let start = Instant::now();
        held.release().await.unwrap();
        let granted = waiting.await.unwrap();
        let time = start.elapsed();
        granted.release().await.unwrap();
        time
    }

    /// The time from the death of a holder until another process, which waits, has the lock.
    async fn takeover(&self) -> Duration {
        let process = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (url, name) = (self.url.clone(), self.name.clone());
        let held = process.spawn(async move {
            let connection = connect(&url).await.unwrap();
            let store = connection.store(&name).await.unwrap();
            let held = Self::lock(&store).write().await.unwrap();
            (connection, held)
        });
        std::mem::forget(held.await.unwrap());
        let waiting = Self::lock(&self.other);
        let waiting = tokio::spawn(async move { waiting.write().await.unwrap() });
        while Self::lock(&self.one).inspect().await.unwrap().waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let start = Instant::now();
        process.shutdown_background();
        let granted = waiting.await.unwrap();
        let time = start.elapsed();
        granted.release().await.unwrap();
        time
    }
}

#[tokio::main]
async fn main() {
    let rounds = if std::env::args().any(|argument| argument == "--quick") {
        (5, 10, 3)
    } else {
        (20, 60, 12)
    };
    tokio::spawn(run(rounds)).await.expect("the benchmark");
}

async fn run((crowds, hand_overs, takeovers): (usize, usize, usize)) {
    let server = Server::start();
    println!("nats-server {}, {} cores, {DEAD} dead sessions\n", server.version, cores());
    let url = format!("nats://127.0.0.1:{}", server.port);
    let mut lines = crowds::run(&server, &url, crowds).await;
    if std::env::args().any(|argument| argument == "crowds") {
        return lines.iter().for_each(|line| println!("{line}"));
    }
    let full = Processes::start(&url, "full").await;
    let empty = Processes::start(&url, "empty").await;
    let again = Processes::start(&url, "again").await;
    full.leave_dead_sessions().await;
    let number = AtomicUsize::new(0);
    lines.extend([
        Comparison::run(hand_overs, || full.hand_over(), || empty.hand_over()).await.line(
            "hand-over beside dead sessions",
            Unit::Each,
            TARGET,
        ),
        Comparison::run(hand_overs, || again.hand_over(), || empty.hand_over()).await.line(
            "hand-over, A/A",
            Unit::Each,
            TARGET,
        ),
        Comparison::run(
            hand_overs,
            || again.first_hand_over(&number, WATCH_TIME),
            || again.hand_over(),
        )
        .await
        .line("hand-over of a lock without earlier contention", Unit::Each, TARGET),
        Comparison::run(
            hand_overs,
            || again.first_hand_over(&number, SHORT_TIME),
            || again.hand_over(),
        )
        .await
        .line("hand-over by a holder without a watch", Unit::Each, SHORT_TARGET),
        Comparison::run(takeovers, || full.takeover(), || empty.takeover()).await.line(
            "takeover beside dead sessions",
            Unit::Each,
            TARGET,
        ),
        Comparison::run(takeovers, || again.takeover(), || empty.takeover()).await.line(
            "takeover, A/A",
            Unit::Each,
            TARGET,
        ),
    ]);
    println!("\ncase | ours | other | ratio (min to max) | target | met");
    lines.iter().for_each(|line| println!("{line}"));
}
