//! Locks of shizuku-kv next to those of shizuku 0.1.3, and to the time of one round trip: a put
//! with plain async-nats.

mod alone;
mod idle;
mod shizukus;
mod together;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use shizuku_kv::rw_lock::DistroRwLock;
use shizuku_kv::{Connection, Store, connect};

use self::shizukus::Shizuku;
use crate::support::Server;

/// Bucket of the locks.
const BUCKET: &str = "locks";

/// The amount of measuring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    rounds: usize,
    /// Number of locks that are acquired one after the other in a round.
    singles: usize,
    hand_overs: usize,
    /// Number of crowds in a round.
    crowds: usize,
    /// Number of rounds in which many writers take turns.
    queues: usize,
    /// Duration for which an idle lock is held.
    idle: Duration,
}

pub(crate) const FULL: Effort = Effort {
    rounds: 10,
    singles: 200,
    hand_overs: 20,
    crowds: 5,
    queues: 5,
    idle: Duration::from_secs(60),
};
pub(crate) const QUICK: Effort = Effort {
    rounds: 3,
    singles: 50,
    hand_overs: 5,
    crowds: 2,
    queues: 1,
    idle: Duration::from_secs(20),
};

pub(crate) async fn measure(server: &Server, effort: Effort) -> Vec<String> {
    let bench = Bench::new(server).await;
    let mut lines = alone::measure(&bench, effort).await;
    lines.extend(together::measure(&bench, effort).await);
    lines.push(idle::measure(effort).await);
    lines
}

/// The server and all its clients.
struct Bench {
    url: String,
    ours: Store,
    shizuku: Shizuku,
    plain: kv::Store,
}

impl Bench {
    async fn new(server: &Server) -> Self {
        let url = format!("nats://127.0.0.1:{}", server.port);
        let context = jetstream::new(async_nats::connect(&url).await.unwrap());
        let config = kv::Config { bucket: "plain".to_owned(), ..kv::Config::default() };
        let plain = context.create_key_value(config).await.unwrap();
        Self { ours: store(&url).await.0, shizuku: Shizuku::new(&url).await, plain, url }
    }

    /// Returns locks of one resource, each on a connection of its own.
    async fn locks(&self, resource: &str, connections: usize) -> Vec<DistroRwLock> {
        let mut locks = Vec::new();
        for _ in 0..connections {
            locks.push(DistroRwLock::new(&store(&self.url).await.0, resource).unwrap());
        }
        locks
    }

    /// Returns the p50 of a put, which is one round trip.
    async fn round_trip(&self, count: usize) -> Duration {
        let value = Bytes::from_static(&[b'x'; 100]);
        p50(count, || async {
            self.plain.put("round-trip", value.clone()).await.unwrap();
        })
        .await
    }
}

impl Bench {
    /// Returns the same if each put follows a rest, as in the case that it is compared with. A
    /// resting thread has to be woken, on both sides, and on some machines that takes longer than
    /// everything else.
    async fn rested_round_trip(&self, rest: Duration, count: usize) -> Duration {
        let value = Bytes::from_static(&[b'x'; 100]);
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            tokio::time::sleep(rest).await;
            let start = Instant::now();
            self.plain.put("round-trip", value.clone()).await.unwrap();
            times.push(start.elapsed());
        }
        middle(times)
    }
}

async fn store(url: &str) -> (Store, Arc<dyn Connection>) {
    let connection = connect(url).await.unwrap();
    (connection.store(BUCKET).await.unwrap(), connection)
}

/// Returns the median time of `count` operations one after the other.
async fn p50<F: Future<Output = ()>>(count: usize, mut operation: impl FnMut() -> F) -> Duration {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        operation().await;
        times.push(start.elapsed());
    }
    middle(times)
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
