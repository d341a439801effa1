//! Watches and live values next to plain async-nats and to a bare `arc_swap`.
//!
//! `cargo bench -p shizuku-kv --bench live [-- --quick]`. The two sides take turns, and what counts
//! is the ratio within a round. The last lines are one for each case:
//! `case | ours | other | ratio | target | met`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on ends"
)]

mod support;

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Connection, KeyValue, KeyValueRead, KeyValueWrite, KvUpdate, LiveRead, LiveStatic,
    StaticKeyIndexedValue, Store, TypedUpdate, Watch, WatchScope, connect,
};
use support::{Comparison, Server, Unit, cores, median, met, p50, sorted};
use tokio::sync::{Mutex, watch};

#[derive(Clone, Debug, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.pool", codec = json)]
struct Pool {
    size: u64,
}

/// 200 bytes of JSON or so.
#[derive(Clone, Debug, Serialize, Deserialize, KeyValue)]
#[kv(key = "item.{id}", codec = json)]
struct Item {
    id: u32,
    name: String,
    text: String,
}

#[derive(Clone, Copy)]
struct Effort {
    /// Rounds and operations a round.
    load: (usize, usize),
    watch: (usize, usize),
    state: (usize, u32),
    live: usize,
    /// Records of the live map, and lookups a round.
    map: (u32, usize),
}

const FULL: Effort = Effort {
    load: (50, 50_000),
    watch: (30, 200),
    state: (10, 100_000),
    live: 10_000,
    map: (1_000_000, 100_000),
};
const QUICK: Effort = Effort {
    load: (20, 10_000),
    watch: (10, 50),
    state: (3, 10_000),
    live: 1000,
    map: (10_000, 10_000),
};

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
    let connection = connect(&url).await.unwrap();
    let context = jetstream::new(async_nats::connect(&url).await.unwrap());
    let mut lines = vec![load(effort).await];
    lines.push(put_until_seen(&connection, &context, &url, effort).await);
    lines.extend(state(&connection, &context, effort).await);
    lines.push(many(&connection, &context, effort).await);
    lines.push(map(effort).await);
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}

/// Loading a live value next to loading an `ArcSwap`, both read.
async fn load(effort: Effort) -> String {
    const BATCH: usize = 1000;
    const TARGET: f64 = 1.2;
    let (rounds, count) = effort.load;
    let store = connect("memory:").await.unwrap().store("config").await.unwrap();
    Pool { size: 5 }.write_to_anyway(&store).await.unwrap();
    let live = Pool::live(&store).await.unwrap();
    let bare = ArcSwap::from_pointee(Pool { size: 5 });
    let comparison = Comparison::run(
        rounds,
        || {
            p50(count / BATCH, async || {
                for _ in 0..BATCH {
                    black_box(black_box(&live).load().size);
                }
            })
        },
        || {
            p50(count / BATCH, async || {
                for _ in 0..BATCH {
                    black_box(black_box(&bare).load().size);
                }
            })
        },
    )
    .await;
    let nanos = |time: Duration| time.as_secs_f64() * 1e9 / BATCH as f64;
    let ours = sorted(comparison.0.iter().map(|round| nanos(round.ours)));
    let other = sorted(comparison.0.iter().map(|round| nanos(round.other)));
    let ratios = sorted(comparison.0.iter().map(|round| nanos(round.ours) / nanos(round.other)));
    let line = format!(
        "Live::load, arc_swap load | {:.1} ns | {:.1} ns | {:.3} ({:.3} to {:.3}) | <= {TARGET} | {}",
        median(&ours),
        median(&other),
        median(&ratios),
        ratios[0],
        ratios[ratios.len() - 1],
        met(median(&ratios) <= TARGET),
    );
    println!("measured: {line}");
    line
}

/// Measures from a plain put until a watch has it. The writer has its own connection: on that of
/// one of the watches, the acknowledgement and the update would come with one read.
async fn put_until_seen(
    connection: &Arc<dyn Connection>,
    context: &jetstream::Context,
    url: &str,
    effort: Effort,
) -> String {
    let ours = connection.store("seen").await.unwrap();
    let plain = context.get_key_value("seen").await.unwrap();
    let writer = jetstream::new(async_nats::connect(url).await.unwrap())
        .get_key_value("seen")
        .await
        .unwrap();
    let watch = ours.watch(WatchScope::key("key").unwrap()).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(KvUpdate::CaughtUp))));
    let other = Mutex::new(plain.watch("other").await.unwrap());
    let watch = Mutex::new(watch);
    let value = Bytes::from(vec![b'x'; 200]);
    let comparison = Comparison::singles(
        effort.watch,
        async || {
            writer.put("key", value.clone()).await.unwrap();
            watch.lock().await.next().await.unwrap().unwrap();
        },
        async || {
            writer.put("other", value.clone()).await.unwrap();
            other.lock().await.next().await.unwrap().unwrap();
        },
    )
    .await;
    comparison.line("put until a watch has it", Unit::Each, 1.05)
}

/// The state of many keys, until the marker; and the same decoded.
async fn state(
    connection: &Arc<dyn Connection>,
    context: &jetstream::Context,
    effort: Effort,
) -> Vec<String> {
    let (rounds, count) = effort.state;
    let store = connection.store("state").await.unwrap();
    let text = "x".repeat(150);
    let items = (0..count).map(|id| {
        let item = Item { id, name: "item".to_owned(), text: text.clone() };
        (item.kv_key().to_string(), serde_json::to_vec(&item).unwrap())
    });
    for written in store.put_many(items).await {
        written.unwrap();
    }
    let plain = context.get_key_value("state").await.unwrap();
    let ours = Comparison::run(
        rounds,
        || async {
            per_key(count, raw_state(store.watch(WatchScope::All).await.unwrap(), count)).await
        },
        || async { per_key(count, plain_state(&plain, count)).await },
    );
    let ours = ours.await.line(&format!("state of {count} keys"), Unit::Item, 1.0);
    let typed = Comparison::run(
        rounds,
        || async { per_key(count, typed_state(&store, count)).await },
        || async {
            per_key(count, raw_state(store.watch(WatchScope::All).await.unwrap(), count)).await
        },
    );
    let typed = typed.await.line(
        &format!("state of {count} keys, decoded and not"),
        Unit::Item,
        f64::INFINITY,
    );
    vec![ours, typed]
}

async fn per_key(count: u32, state: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    state.await;
    start.elapsed() / count
}

async fn raw_state(watch: Watch, count: u32) {
    let mut seen = 0;
    while !matches!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp) {
        seen += 1;
    }
    assert_eq!(seen, count);
}

async fn plain_state(bucket: &kv::Store, count: u32) {
    let mut watch = bucket.watch_with_history(">").await.unwrap();
    for _ in 0..count {
        black_box(watch.next().await.unwrap().unwrap());
    }
}

async fn typed_state(store: &Store, count: u32) {
    let watch = Item::watch_all(store).await.unwrap();
    let mut seen = 0;
    while !matches!(watch.next().await.unwrap().unwrap(), TypedUpdate::CaughtUp) {
        seen += 1;
    }
    assert_eq!(seen, count);
}

/// Many live values of one bucket, each with its key, opened one after the other and all at once;
/// and as many of one key.
async fn many(
    connection: &Arc<dyn Connection>,
    context: &jetstream::Context,
    effort: Effort,
) -> String {
    let count = u32::try_from(effort.live).unwrap();
    let store = connection.store("many").await.unwrap();
    let item = |id| Item { id, name: "item".to_owned(), text: "x".repeat(150) };
    let items = (0..count)
        .map(|id| (item(id).kv_key().to_string(), serde_json::to_vec(&item(id)).unwrap()));
    for written in store.put_many(items).await {
        written.unwrap();
    }
    let stream = context.get_stream("KV_many").await.unwrap();
    for way in ["one after the other", "all at once"] {
        let before = resident();
        let start = Instant::now();
        let mut lives = Vec::new();
        if way == "all at once" {
            let open = |id| Item::live_at(&store, id);
            lives.extend(futures_util::future::try_join_all((0..count).map(open)).await.unwrap());
        } else {
            for id in 0..count {
                lives.push(Item::live_at(&store, id).await.unwrap());
            }
        }
        let opened = start.elapsed();
        let consumers = stream.consumer_names().count().await;
        println!(
            "{count} live values of as many keys, {way}: {consumers} consumers, {:.1} KB each, opened in {:.2} s",
            resident().saturating_sub(before) as f64 / f64::from(count),
            opened.as_secs_f64(),
        );
        drop(lives);
        let start = Instant::now();
        while stream.consumer_names().count().await > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "consumers are left");
        }
    }
    fan_out(&store, count, effort).await
}

/// From a write until as many live values of one key have it, next to a plain `watch` channel with
/// as many receivers. Our side has the write in it.
async fn fan_out(store: &Store, count: u32, effort: Effort) -> String {
    Pool { size: 0 }.write_to_anyway(store).await.unwrap();
    let mut lives = Vec::new();
    for _ in 0..count {
        lives.push(Pool::live(store).await.unwrap());
    }
    let (sender, receiver) = watch::channel(0);
    let receivers = Mutex::new(vec![receiver; count as usize]);
    let (lives, size) = (Mutex::new(lives), AtomicU64::new(0));
    let comparison = Comparison::run(
        effort.watch.0,
        || async {
            let (mut lives, size) = (lives.lock().await, size.fetch_add(1, Ordering::Relaxed) + 1);
            let start = Instant::now();
            Pool { size }.write_to_anyway(store).await.unwrap();
            for live in lives.iter_mut() {
                while live.load().size != size {
                    live.changed().await.unwrap();
                }
            }
            start.elapsed()
        },
        || async {
            let mut receivers = receivers.lock().await;
            let start = Instant::now();
            sender.send_modify(|size| *size += 1);
            for receiver in receivers.iter_mut() {
                receiver.changed().await.unwrap();
                black_box(*receiver.borrow_and_update());
            }
            start.elapsed()
        },
    );
    let case = format!("a change at {count} live values of a key, at receivers of a channel");
    comparison.await.line(&case, Unit::Each, 1.5)
}

/// A live map of many records: its opening, memory, update and snapshot, and a lookup next to one
/// in a `HashMap` behind an `ArcSwap`, which would have to be copied for each update.
async fn map(effort: Effort) -> String {
    const TARGET: f64 = 1.5;
    const UPDATES: u32 = 200;
    let (count, lookups) = effort.map;
    let store = connect("memory:").await.unwrap().store("map").await.unwrap();
    let item = |id| Item { id, name: "item".to_owned(), text: "x".repeat(150) };
    for start in (0..count).step_by(10_000) {
        let items = (start..count.min(start + 10_000)).map(item).collect::<Vec<_>>();
        for written in Item::write_many(&store, &items).await {
            written.unwrap();
        }
    }
    let (before, start) = (resident(), Instant::now());
    let mut live = Item::live_map(&store).await.unwrap();
    let opened = start.elapsed();
    let memory = resident().saturating_sub(before) as f64 * 1024.0 / f64::from(count);
    let mut updates = Vec::new();
    for number in 0..UPDATES {
        let start = Instant::now();
        item(number * (count / UPDATES)).write_to_anyway(&store).await.unwrap();
        live.changed().await.unwrap();
        updates.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let start = Instant::now();
    for _ in 0..1000 {
        black_box(live.snapshot());
    }
    println!(
        "live map of {count} records: opened in {:.2} s, {memory:.0} bytes a record, an update until the map has it {:.1} us, a snapshot {:.0} ns",
        opened.as_secs_f64(),
        median(&sorted(updates.into_iter())),
        start.elapsed().as_secs_f64() * 1e6,
    );
    let plain = (0..count).map(|id| (item(id).kv_key(), Arc::new(item(id))));
    let plain = ArcSwap::from_pointee(plain.collect::<HashMap<_, _>>());
    let keys: Vec<_> = (0..lookups as u64)
        .map(|number| {
            // A multiplicative hash visits the keys in no order.
            let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % u64::from(count);
            item(u32::try_from(id).unwrap()).kv_key()
        })
        .collect();
    let each = |start: Instant| start.elapsed() / u32::try_from(lookups).unwrap();
    let comparison = Comparison::run(
        effort.load.0,
        || async {
            let start = Instant::now();
            keys.iter().for_each(|key| drop(black_box(live.get(key).unwrap())));
            each(start)
        },
        || async {
            let start = Instant::now();
            keys.iter().for_each(|key| drop(black_box(Arc::clone(&plain.load()[key]))));
            each(start)
        },
    )
    .await;
    comparison.line(&format!("lookup in a live map of {count}, in a HashMap"), Unit::Each, TARGET)
}

/// Resident memory of the process in KB; 0 if it is unknown.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
