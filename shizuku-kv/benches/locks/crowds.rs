//! Locks without contention and with much of it, in round trips. A round trip is the time of one
//! compare-and-swap by plain async-nats, with a header of the same size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use futures_util::future::join_all;
use shizuku_kv::connect;
use shizuku_kv::rw_lock::DistroRwLock;

use crate::support::{Comparison, Server, Unit, p50, per_item};

/// Maximum number of round trips of an uncontended lock, acquired and released.
const ALONE: f64 = 2.2;

/// Maximum number of round trips until all readers have the lock.
const IN: f64 = 64.0;

/// Maximum number of round trips until all readers have released it.
const OUT: f64 = 96.0;

/// Maximum number of round trips of one section of a writer that takes turns with others. These are
/// the two swaps, the delivery of a grant, and a lost swap for each of the two.
const TURN: f64 = 5.0;

const READERS: usize = 64;
const CONNECTIONS: usize = 16;
const WRITERS: usize = 8;
const SECTIONS: usize = 50;

/// A header of the size of the library's, and the size of the record of an uncontended lock.
const HEADER: (&str, &str) = ("Shizuku-Op", "0123456789abcdef01234567");
const RECORD: usize = 250;

struct World<'a> {
    server: &'a Server,
    context: Context,
    version: AtomicU64,
    locks: Vec<DistroRwLock>,
}

impl<'a> World<'a> {
    async fn start(server: &'a Server, url: &str) -> Self {
        let mut locks = Vec::new();
        for _ in 0..CONNECTIONS {
            let store = connect(url).await.unwrap().store("crowds").await.unwrap();
            locks.push(DistroRwLock::new(&store, "resource").unwrap());
        }
        let context = jetstream::new(async_nats::connect(url).await.unwrap());
        Self { server, context, version: AtomicU64::new(0), locks }
    }

    /// The time of a compare-and-swap.
    async fn round_trip(&self) -> Duration {
        p50(40, || self.swap()).await
    }

    async fn swap(&self) {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER.0, HEADER.1);
        let expected = self.version.load(Ordering::Relaxed).to_string();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected);
        let subject = "$KV.crowds.swapped".to_owned();
        let sent =
            self.context.publish_with_headers(subject, headers, vec![b'x'; RECORD].into()).await;
        self.version.store(sent.unwrap().await.unwrap().sequence, Ordering::Relaxed);
    }

    async fn alone(&self) {
        self.locks[0].write().await.unwrap().release().await.unwrap();
    }

    /// The times until all readers have the lock, and until all have released it.
    async fn crowd(&self) -> (Duration, Duration) {
        let messages = self.server.messages();
        let start = Instant::now();
        let entering = (0..READERS).map(|number| {
            let lock = self.locks[number % CONNECTIONS].clone();
            tokio::spawn(async move { lock.read().await.unwrap() })
        });
        let guards = join_all(entering).await;
        let entered = start.elapsed();
        let between = self.server.messages();
        let start = Instant::now();
        let leaving = guards.into_iter().map(|guard| tokio::spawn(guard.unwrap().release()));
        for left in join_all(leaving).await {
            left.unwrap().unwrap();
        }
        let left = start.elapsed();
        let after = self.server.messages();
        println!("messages of a crowd: {} in, {} out", between - messages, after - between);
        (entered, left)
    }

    async fn writers(&self) -> Duration {
        let writers = self.locks[..WRITERS].iter().map(|lock| {
            let lock = lock.clone();
            tokio::spawn(async move {
                for _ in 0..SECTIONS {
                    lock.write().await.unwrap().release().await.unwrap();
                }
            })
        });
        let all = async {
            join_all(writers).await.into_iter().for_each(|written| written.unwrap());
        };
        per_item(WRITERS * SECTIONS, all).await
    }
}

pub(crate) async fn run(server: &Server, url: &str, rounds: usize) -> Vec<String> {
    let world = World::start(server, url).await;
    let alone = Comparison::singles((rounds, 100), || world.alone(), || world.swap()).await;
    let same = Comparison::singles((rounds, 100), || world.swap(), || world.swap()).await;
    let mut lines = vec![
        alone.line("write lock, acquire and release; round trip", Unit::Each, ALONE),
        same.line("round trip, A/A", Unit::Each, 1.0),
    ];
    for (case, target, is_in) in
        [("64 readers of 16 connections in", IN, true), ("and out again", OUT, false)]
    {
        let crowd = || async {
            let (entered, left) = world.crowd().await;
            if is_in { entered } else { left }
        };
        let crowds = Comparison::run(rounds, crowd, || world.round_trip()).await;
        lines.push(crowds.line(&format!("{case}; round trip"), Unit::Each, target));
    }
    let turns = Comparison::run(rounds, || world.writers(), || world.round_trip()).await;
    lines.push(turns.line("a turn of 8 writers; round trip", Unit::Each, TURN));
    lines
}
