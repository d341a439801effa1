//! Our operations next to the same done by hand with async-nats and serde_json, against the same
//! real server in the same process, and the memory backend next to the decoding alone.
//!
//! `cargo bench -p shizuku-kv [-- --quick]`. The two sides take turns in short blocks, and who
//! begins changes with every round, so that what the machine does beside hits both. What counts is
//! the ratio within a round. The last lines are one for each case:
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
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    ByteDeserialize, Connection, JsonByteDes, JsonByteSer, KeyValue, StaticKeyIndexedValue, Store,
    StoreConfig, VersionToken, WatchScope, connect,
};
use support::{Comparison, Server, Unit, cores, median, met, p50, per_item, sorted};

/// A typical configuration record: 180 bytes of JSON.
#[derive(
    Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue,
)]
#[kv(key = "config.database")]
struct DatabaseConfig {
    url: String,
    user: String,
    password: String,
    pool_size: u32,
    connect_timeout_ms: u64,
    read_only: bool,
    replicas: Vec<String>,
}

impl DatabaseConfig {
    fn example(pool_size: u32) -> Self {
        Self {
            url: "postgres://db.internal:5432/billing".to_owned(),
            user: "billing".to_owned(),
            password: "correct horse battery staple".to_owned(),
            pool_size,
            connect_timeout_ms: 2500,
            read_only: false,
            replicas: vec!["db-1.internal".to_owned(), "db-2.internal".to_owned()],
        }
    }
}

/// The key of the record.
const OUR_KEY: &str = "config.database";

/// The key of the other side's record, of the same length as ours.
const OTHER_KEY: &str = "config.datahoard";

/// Target of every comparison with async-nats: the highest ratio of the times.
const TARGET: f64 = 1.05;

/// Target of a write next to one without the header by which a lost acknowledgement is resolved.
const BARE: f64 = 1.10;

/// A header of the size of ours.
const HEADER: (&str, &str) = ("Shizuku-Op", "0123456789abcdef01234567");

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// Rounds and operations a block, for single operations.
    single: (usize, usize),
    /// Rounds for each that handles many items.
    many: usize,
    get_many: usize,
    put_many: usize,
    scan: usize,
    /// Rounds and operations a block, in memory.
    memory: (usize, usize),
}

const FULL: Effort = Effort {
    single: (30, 200),
    many: 20,
    get_many: 1000,
    put_many: 10_000,
    scan: 100_000,
    memory: (50, 20_000),
};

const QUICK: Effort = Effort {
    single: (10, 50),
    many: 4,
    get_many: 1000,
    put_many: 2000,
    scan: 10_000,
    memory: (10, 5000),
};

#[tokio::main]
async fn main() {
    // Cargo adds `--bench`.
    let effort = if std::env::args().any(|argument| argument == "--quick") { QUICK } else { FULL };
    // A task of its own, since that is where services run.
    tokio::spawn(run(effort)).await.expect("the benchmark");
}

async fn run(effort: Effort) {
    let server = Server::start();
    let world = World::connect(&server).await;
    println!("nats-server {}, {} cores\n", server.version, cores());
    let mut lines = vec![memory_read(effort).await];
    println!();
    lines.push(typed_read(&world, OUR_KEY, effort).await.line("typed read", Unit::Each, TARGET));
    // The value that the other side reads here has no header, so the server answers faster.
    let other = typed_read(&world, OTHER_KEY, effort).await;
    lines.push(other.line("typed read, other of its own value", Unit::Each, TARGET));
    let same = plain_writes(&world, effort).await;
    for (headers, header, target) in [(true, "with a header", TARGET), (false, "bare", BARE)] {
        let write = typed_write(&world, headers, effort).await;
        let case = format!("typed write, other {header}");
        lines.push(write.line_beside(&same, &case, Unit::Each, target));
        let swap = typed_swap(&world, headers, effort).await;
        let case = format!("typed CAS, other {header}");
        lines.push(swap.line_beside(&same, &case, Unit::Each, target));
    }
    let what = format!("get_many({})", effort.get_many);
    lines.push(get_many(&world, effort).await.line(&what, Unit::Item, TARGET));
    let same = plain_put_many(&world, effort).await;
    for (headers, header, target) in [(true, "with a header", TARGET), (false, "bare", BARE)] {
        let case = format!("put_many({}), other {header}", effort.put_many);
        let put = put_many(&world, headers, effort).await;
        lines.push(put.line_beside(&same, &case, Unit::Item, target));
    }
    let what = format!("scan of {} keys", effort.scan);
    lines.push(scan(&world, effort).await.line(&what, Unit::Item, TARGET));
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}

/// One bucket, and both sides with a connection of their own.
struct World {
    ours: Store,
    other: kv::Store,
    context: jetstream::Context,
    connection: Arc<dyn Connection>,
}

impl World {
    async fn connect(server: &Server) -> Self {
        let url = format!("nats://127.0.0.1:{}", server.port);
        let connection = connect(&url).await.expect("our connection");
        let client = async_nats::connect(&url).await.expect("the other connection");
        // As many as are published before the first acknowledgement is awaited; with its 5,000 it
        // would wait for ever.
        let context =
            jetstream::context::ContextBuilder::new().max_ack_inflight(1 << 16).build(client);
        let (ours, other) = Self::bucket(&connection, &context, "single").await;
        Self { ours, other, context, connection }
    }

    async fn bucket(
        connection: &Arc<dyn Connection>,
        context: &jetstream::Context,
        name: &str,
    ) -> (Store, kv::Store) {
        let config = StoreConfig::new().deadline(Duration::from_secs(60));
        let ours = connection.store_with_config(name, config).await.expect("a bucket");
        (ours, context.get_key_value(name).await.expect("the same bucket"))
    }
}

/// A read of our record next to one of the record under `other_key`.
async fn typed_read(world: &World, other_key: &str, effort: Effort) -> Comparison {
    let record = DatabaseConfig::example(7);
    record.write_to_anyway(&world.ours).await.unwrap();
    world.other.put(OTHER_KEY, serde_json::to_vec(&record).unwrap().into()).await.unwrap();
    Comparison::singles(
        effort.single,
        || async {
            let key = DatabaseConfig::key();
            let read = DatabaseConfig::read_from(&world.ours, key).await.unwrap();
            black_box(read.expect("it was written"));
        },
        || async {
            let bytes = world.other.get(other_key).await.unwrap().expect("it was written");
            black_box(serde_json::from_slice::<DatabaseConfig>(&bytes).unwrap());
        },
    )
    .await
}

/// A plain put, with a header on request.
async fn plain_put(world: &World, key: &str, bytes: Vec<u8>, has_header: bool) {
    let subject = format!("{}{key}", world.other.prefix);
    let headers = headers(has_header);
    let sent = world.context.publish_with_headers(subject, headers, bytes.into()).await.unwrap();
    black_box(sent.await.unwrap());
}

fn headers(has_header: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if has_header {
        headers.insert(HEADER.0, HEADER.1);
    }
    headers
}

/// The noise of single writes: the same plain put on both sides.
async fn plain_writes(world: &World, effort: Effort) -> Comparison {
    let bytes = serde_json::to_vec(&DatabaseConfig::example(8)).unwrap();
    let put = async || plain_put(world, OTHER_KEY, bytes.clone(), true).await;
    Comparison::singles(effort.single, put, put).await
}

/// The noise of many writes: the same plain writes on both sides.
async fn plain_put_many(world: &World, effort: Effort) -> Comparison {
    let items = items(effort.put_many);
    let put = || per_item(effort.put_many, plain_puts(world, &items, true));
    Comparison::run(effort.many, put, put).await
}

/// Plain writes, all sent before the first acknowledgement is looked at.
async fn plain_puts(world: &World, items: &[(String, Bytes)], has_header: bool) {
    let mut acknowledgements = Vec::with_capacity(items.len());
    for (key, value) in items.iter().cloned() {
        let subject = format!("{}{key}", world.other.prefix);
        let sent = match has_header {
            true => world.context.publish_with_headers(subject, headers(true), value).await,
            false => world.context.publish(subject, value).await,
        };
        acknowledgements.push(sent.unwrap());
    }
    for acknowledgement in acknowledgements {
        black_box(acknowledgement.await.unwrap());
    }
}

async fn typed_write(world: &World, has_header: bool, effort: Effort) -> Comparison {
    let record = DatabaseConfig::example(8);
    Comparison::singles(
        effort.single,
        || async {
            black_box(record.write_to_anyway(&world.ours).await.unwrap());
        },
        || async {
            let bytes = serde_json::to_vec(&record).unwrap();
            if has_header {
                plain_put(world, OTHER_KEY, bytes, true).await;
            } else {
                black_box(world.other.put(OTHER_KEY, bytes.into()).await.unwrap());
            }
        },
    )
    .await
}

async fn typed_swap(world: &World, has_header: bool, effort: Effort) -> Comparison {
    let record = DatabaseConfig::example(9);
    let version = record.write_to_anyway(&world.ours).await.unwrap();
    let version = AtomicU64::new(version.as_u64().expect("a numbered version"));
    let revision = AtomicU64::new(world.other.put(OTHER_KEY, Bytes::new()).await.unwrap());
    Comparison::singles(
        effort.single,
        || async {
            let expected = VersionToken::from_u64(version.load(Relaxed));
            let written = record.write_to_atomically(&world.ours, expected).await.unwrap();
            version.store(written.as_u64().unwrap_or_default(), Relaxed);
        },
        || async {
            let bytes = serde_json::to_vec(&record).unwrap();
            let expected = revision.load(Relaxed);
            let written = if has_header {
                let subject = format!("{}{OTHER_KEY}", world.other.prefix);
                let mut headers = headers(true);
                headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
                let sent = world.context.publish_with_headers(subject, headers, bytes.into());
                sent.await.unwrap().await.unwrap().sequence
            } else {
                world.other.update(OTHER_KEY, bytes.into(), expected).await.unwrap()
            };
            revision.store(written, Relaxed);
        },
    )
    .await
}

/// Keys of one kind, with values of 200 bytes.
fn items(count: usize) -> Vec<(String, Bytes)> {
    let value = Bytes::from(vec![b'x'; 200]);
    (0..count).map(|n| (format!("items.{}.{n}", n % 10), value.clone())).collect()
}

async fn get_many(world: &World, effort: Effort) -> Comparison {
    let items = items(effort.get_many);
    let keys: Vec<_> = items.iter().map(|(key, _)| key.clone()).collect();
    for answer in world.ours.put_many(items).await {
        answer.unwrap();
    }
    Comparison::run(
        effort.many,
        || {
            per_item(keys.len(), async {
                let found = world.ours.get_many(&keys).await.unwrap();
                assert_eq!(black_box(found).iter().flatten().count(), keys.len());
            })
        },
        || {
            per_item(keys.len(), async {
                let found = join_all(keys.iter().map(|key| world.other.get(key))).await;
                assert_eq!(black_box(found).iter().flatten().flatten().count(), keys.len());
            })
        },
    )
    .await
}

async fn put_many(world: &World, has_header: bool, effort: Effort) -> Comparison {
    let items = items(effort.put_many);
    Comparison::run(
        effort.many,
        || {
            per_item(effort.put_many, async {
                for answer in world.ours.put_many(items.clone()).await {
                    black_box(answer.unwrap());
                }
            })
        },
        || per_item(effort.put_many, plain_puts(world, &items, has_header)),
    )
    .await
}

async fn scan(world: &World, effort: Effort) -> Comparison {
    let (ours, other) = World::bucket(&world.connection, &world.context, "large").await;
    for answer in ours.put_many(items(effort.scan)).await {
        answer.unwrap();
    }
    Comparison::run(
        effort.many.div_ceil(2),
        || {
            per_item(effort.scan, async {
                let scan = ours.scan(WatchScope::All);
                let mut found = 0;
                while let Some(entry) = scan.next().await {
                    black_box(entry.unwrap());
                    found += 1;
                }
                assert_eq!(found, effort.scan);
            })
        },
        || {
            per_item(effort.scan, async {
                let mut watch = other.watch_with_history(">").await.unwrap();
                let mut found = 0;
                while let Some(entry) = watch.next().await {
                    found += 1;
                    if black_box(entry.unwrap()).seen_current {
                        break;
                    }
                }
                assert_eq!(found, effort.scan);
            })
        },
    )
    .await
}

/// A typed read from memory next to the decoding of the same bytes.
async fn memory_read(effort: Effort) -> String {
    const BATCH: usize = 50;
    const TARGET: f64 = 1000.0;
    let (rounds, count) = effort.memory;
    let connection = connect("memory:").await.unwrap();
    let store = connection.store("config").await.unwrap();
    DatabaseConfig::example(5).write_to_anyway(&store).await.unwrap();
    let bytes = store.get("config.database").await.unwrap().unwrap().value;
    // So short that a clock around each would be measured too.
    let comparison = Comparison::run(
        rounds,
        || {
            p50(count / BATCH, || async {
                for _ in 0..BATCH {
                    let key = DatabaseConfig::key();
                    black_box(DatabaseConfig::read_from(black_box(&store), key).await.unwrap());
                }
            })
        },
        || {
            p50(count / BATCH, || async {
                for _ in 0..BATCH {
                    black_box(DatabaseConfig::from_bytes(black_box(&bytes)).unwrap());
                }
            })
        },
    )
    .await;
    let nanos = |time: Duration| time.as_secs_f64() * 1e9 / BATCH as f64;
    let read = sorted(comparison.0.iter().map(|round| nanos(round.ours)));
    let decode = sorted(comparison.0.iter().map(|round| nanos(round.other)));
    let apart = sorted(comparison.0.iter().map(|round| nanos(round.ours) - nanos(round.other)));
    let line = format!(
        "memory typed read, without decoding | {:.0} ns p50 read | {:.0} ns p50 decode | {:.0} ns apart ({:.0} to {:.0}) \
         | <= {TARGET} ns | {}",
        median(&read),
        median(&decode),
        median(&apart),
        apart[0],
        apart[apart.len() - 1],
        met(median(&apart) <= TARGET),
    );
    println!("measured: {line}");
    line
}
