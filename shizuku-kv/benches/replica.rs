//! Replicas next to what plain async-nats delivers.
//!
//! `cargo bench -p shizuku-kv --bench replica [-- --quick]`. The two sides take turns, and what
//! counts is the ratio within a round. The last lines are one for each case:
//! `case | ours | other | ratio | target | met`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on ends"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv};
use futures_util::StreamExt;
use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{Batch, MemoryStorage, ReplicaStorage};
use shizuku_kv::{BatchConfig, Connection, KvUpdate, Store, WatchScope, connect, watch_applied};
use support::{Comparison, Server, Unit, cores};

/// Highest ratio to the time of plain async-nats, which is 0.9 of its rate.
const TARGET: f64 = 1.11;

#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    keys: usize,
}

const FULL: Effort = Effort { rounds: 10, keys: 100_000 };
const QUICK: Effort = Effort { rounds: 3, keys: 20_000 };

#[tokio::main]
async fn main() {
    // Cargo adds `--bench`.
    let effort = if std::env::args().any(|argument| argument == "--quick") { QUICK } else { FULL };
    tokio::spawn(run(effort)).await.expect("the benchmark");
}

async fn run(effort: Effort) {
    let server = Server::start();
    println!("nats-server {}, {} cores\n", server.version, cores());
    let url = format!("nats://127.0.0.1:{}", server.port);
    let connection: Arc<dyn Connection> = connect(&url).await.unwrap();
    let context = jetstream::new(async_nats::connect(&url).await.unwrap());
    let store = connection.store("replicated").await.unwrap();
    let value = vec![b'x'; 200];
    let items = (0..effort.keys).map(|number| (format!("route.{number}"), value.clone()));
    for written in store.put_many(items).await {
        written.unwrap();
    }
    let plain = context.get_key_value("replicated").await.unwrap();
    let memory = Comparison::run(
        effort.rounds,
        || per_key(effort.keys, applied(&store, MemoryStorage::new(), effort.keys)),
        || per_key(effort.keys, delivered(&plain, effort.keys)),
    );
    let case = format!("{} keys applied, versions in memory; delivered", effort.keys);
    let lines = [memory.await.line(&case, Unit::Item, TARGET)];
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}

async fn per_key(keys: usize, all: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    all.await;
    start.elapsed() / u32::try_from(keys).unwrap()
}

async fn applied<S: ReplicaStorage>(store: &Store, storage: S, keys: usize) {
    let stop = CancellationToken::new();
    let mut seen = 0;
    let apply = |batch: Batch| {
        seen += batch.updates().iter().filter(|update| matches!(update, KvUpdate::Put(_))).count();
        if batch.is_caught_up() {
            stop.cancel();
        }
        std::future::ready(Ok::<_, std::convert::Infallible>(()))
    };
    watch_applied(store, WatchScope::All, storage, BatchConfig::new(), stop.clone(), apply)
        .await
        .unwrap();
    assert_eq!(seen, keys);
}

async fn delivered(bucket: &kv::Store, keys: usize) {
    let mut watch = bucket.watch_with_history(">").await.unwrap();
    for _ in 0..keys {
        black_box(watch.next().await.unwrap().unwrap());
    }
}
