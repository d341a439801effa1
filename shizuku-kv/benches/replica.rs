//! Replicas next to what plain async-nats delivers.
//!
//! `cargo bench -p shizuku-kv --bench replica [-- --quick]`. The two sides take turns, and what
//! counts is the ratio within a round. The last lines are one for each case:
//! `case | ours | other | ratio | target | met`.
//!
//! The bucket is written by this library, so that each message has a header. "Delivered" is the
//! watch of async-nats's key-value store, and the subscriber is a subscription without any of its
//! JetStream code. The memory of a replica is that of a process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on ends"
)]

mod support;

use std::hint::black_box;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use shizuku_kv::replica::{Batch, CancellationToken, LogStorage, MemoryStorage, ReplicaStorage};
use shizuku_kv::snapshot::{SnapshotOptions, SyncPolicy};
use shizuku_kv::{BatchConfig, KvUpdate, Store, StoreConfig, WatchScope, connect, watch_applied};
use support::cost::{Cost, Side};
use support::{Comparison, Latencies, Round, Server, Unit, cores, met};

/// Maximum ratio of the time until all is applied to the time until all is delivered.
const TARGET: f64 = 1.1;

/// Maximum ratio of the client's CPU time to that of a plain subscriber.
const CPU_TARGET: f64 = 2.0;

/// Maximum memory of a replica of 1,000,000 keys, in MiB.
const MEMORY_TARGET: f64 = 300.0;

/// Maximum time for which a `get` waits for a commit, in milliseconds.
const GET_TARGET: f64 = 5.0;

const NAME: &str = "replicated";

#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    keys: usize,
    /// Number of keys of the replica whose memory is measured.
    large: usize,
}

const FULL: Effort = Effort { rounds: 10, keys: 100_000, large: 1_000_000 };
const QUICK: Effort = Effort { rounds: 3, keys: 20_000, large: 50_000 };

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let argument = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Some(url) = argument("--peak") {
        let keys = argument("--keys").expect("keys").parse().expect("a number of keys");
        runtime.block_on(peak(&url, keys));
        return;
    }
    // Cargo adds `--bench`.
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let effort = if is_quick { QUICK } else { FULL };
    runtime.block_on(async { tokio::spawn(run(effort)).await.expect("the benchmark") });
}

async fn run(effort: Effort) {
    let server = Server::start();
    println!("nats-server {}, {} cores\n", server.version, cores());
    let url = format!("nats://127.0.0.1:{}", server.port);
    let mut lines = Vec::new();
    {
        let bucket = Bucket::fill(&url, NAME, effort.keys).await;
        lines.extend(comparisons(&server, &bucket, effort).await);
    }
    let bucket = Bucket::fill(&url, "large", effort.large).await;
    lines.extend(waits(&bucket).await);
    lines.push(memory(&url, effort.large));
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}

/// A bucket, and both sides of a comparison.
struct Bucket {
    ours: Store,
    other: kv::Store,
    client: async_nats::Client,
    keys: usize,
}

impl Bucket {
    async fn fill(url: &str, name: &str, keys: usize) -> Self {
        let bucket = Self::open(url, name, keys).await;
        let value = Bytes::from(vec![b'x'; 200]);
        for start in (0..keys).step_by(10_000) {
            let items = start..keys.min(start + 10_000);
            let items = items.map(|number| (format!("route.{number}"), value.clone()));
            for written in bucket.ours.put_many(items).await {
                written.unwrap();
            }
        }
        bucket
    }

    async fn open(url: &str, name: &str, keys: usize) -> Self {
        let connection = connect(url).await.unwrap();
        let config = StoreConfig::new().deadline(Duration::from_secs(60));
        let ours = connection.store_with_config(name, config).await.unwrap();
        let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 21);
        let client = options.connect(url).await.unwrap();
        let other = jetstream::new(client.clone()).get_key_value(name).await.unwrap();
        Self { ours, other, client, keys }
    }

    /// Replicates into a storage.
    async fn applied<S: ReplicaStorage>(&self, storage: S) {
        let stop = CancellationToken::new();
        let mut seen = 0;
        let apply = |batch: Batch| {
            let is_put = |update: &&KvUpdate| matches!(update, KvUpdate::Put(_));
            seen += batch.updates().iter().filter(is_put).count();
            if batch.is_caught_up() {
                stop.cancel();
            }
            std::future::ready(Ok::<_, std::convert::Infallible>(()))
        };
        let (scope, batches) = (WatchScope::All, BatchConfig::new());
        watch_applied(&self.ours, scope, storage, batches, stop.clone(), apply).await.unwrap();
        assert_eq!(seen, self.keys);
    }

    /// Replicates into a new log.
    async fn logged(&self) {
        let log = Log::open().await;
        self.applied(log.storage).await;
    }

    /// The watch of async-nats's key-value store.
    async fn delivered(&self) {
        let mut watch = self.other.watch_with_history(">").await.unwrap();
        for _ in 0..self.keys {
            black_box(watch.next().await.unwrap().unwrap());
        }
    }

    /// One request for all messages, which nothing but the client of the protocol reads.
    async fn subscribed(&self) {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subject: format!("{}>", self.other.prefix),
            ..Default::default()
        };
        let consumer = self.other.stream.create_consumer(config).await.unwrap();
        let (stream, name) = (&self.other.stream_name, &consumer.cached_info().name);
        let inbox = self.client.new_inbox();
        let mut messages = self.client.subscribe(inbox.clone()).await.unwrap();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}");
        let batch = format!("{{\"batch\":{}}}", self.keys);
        self.client.publish_with_reply(subject, inbox, batch.into()).await.unwrap();
        for _ in 0..self.keys {
            black_box(messages.next().await.unwrap());
        }
    }
}

/// A new log, which is never synced, so that the disk is not measured.
struct Log {
    storage: LogStorage,
    _directory: tempfile::TempDir,
}

impl Log {
    async fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = SnapshotOptions::new().sync(SyncPolicy::Never).compaction_threshold(u64::MAX);
        let storage = LogStorage::open(directory.path().join("log"), options).await.unwrap();
        Self { storage, _directory: directory }
    }
}

async fn comparisons(server: &Server, bucket: &Bucket, effort: Effort) -> Vec<String> {
    let delivered = || bucket.delivered();
    let same = costs(server, effort, bucket, delivered, delivered).await;
    let memory = costs(server, effort, bucket, || bucket.applied(MemoryStorage::new()), delivered);
    let memory = memory.await;
    let logged = costs(server, effort, bucket, || bucket.logged(), delivered).await;
    let subscribed = || bucket.subscribed();
    let same_subscriber = costs(server, effort, bucket, subscribed, subscribed).await;
    let subscriber = costs(server, effort, bucket, || bucket.logged(), subscribed).await;
    let keys = bucket.keys;
    let mut lines = Vec::new();
    let mut add = |cases: &Costs, same: &Costs, side, case: &str, target| {
        let case = format!("{keys} keys, {case}");
        let line = cases.of(side).line_beside(&same.of(side), &case, Unit::Item, target);
        lines.push(line);
    };
    add(&same, &same, Side::Wall, "delivered, A/A", TARGET);
    add(&memory, &same, Side::Wall, "applied, versions in memory; delivered", TARGET);
    add(&logged, &same, Side::Wall, "applied, state in memory and log; delivered", TARGET);
    add(&same_subscriber, &same_subscriber, Side::Client, "CPU of a subscriber, A/A", CPU_TARGET);
    let case = "CPU of the client, replica with a log; subscriber";
    add(&subscriber, &same_subscriber, Side::Client, case, CPU_TARGET);
    let case = "CPU of the server, replica with a log; subscriber";
    add(&subscriber, &same_subscriber, Side::Server, case, CPU_TARGET);
    lines
}

/// The rounds of a comparison, each with the cost of both sides.
struct Costs(Vec<(Cost, Cost)>);

impl Costs {
    fn of(&self, side: Side) -> Comparison {
        let round = |(ours, other): &(Cost, Cost)| Round {
            ours: ours.of_side(side),
            other: other.of_side(side),
        };
        Comparison::of(self.0.iter().map(round).collect())
    }
}

/// Compares two sides by their cost for each key.
async fn costs<A: Future<Output = ()>, B: Future<Output = ()>>(
    server: &Server,
    effort: Effort,
    bucket: &Bucket,
    ours: impl Fn() -> A,
    other: impl Fn() -> B,
) -> Costs {
    let (all_ours, all_other) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let keys = u32::try_from(bucket.keys).unwrap();
    Comparison::run(
        effort.rounds,
        || async {
            let cost = Cost::of(server, ours()).await / keys;
            all_ours.lock().unwrap().push(cost);
            cost.wall
        },
        || async {
            let cost = Cost::of(server, other()).await / keys;
            all_other.lock().unwrap().push(cost);
            cost.wall
        },
    )
    .await;
    // The first round is not counted.
    let (ours, other) = (all_ours.into_inner().unwrap(), all_other.into_inner().unwrap());
    let pairs = ours.into_iter().zip(other);
    Costs(pairs.skip(1).collect())
}

/// The time of a `get` while the state is replicated, next to that of a lock without a writer,
/// which shows the delays of the scheduler.
async fn waits(bucket: &Bucket) -> [String; 2] {
    let log = Log::open().await;
    let reader = log.storage.reader();
    let idle = RwLock::new(());
    let get = move || drop(black_box(reader.get("route.7")));
    let lock = move || drop(black_box(idle.read().unwrap()));
    let (stop, stopped) = mpsc::channel::<()>();
    let probe = thread::spawn(move || {
        let (mut gets, mut locks) = (Latencies::new(), Latencies::new());
        // Rests between two reads, so that it does not occupy a core.
        while stopped.recv_timeout(Duration::from_micros(200)) == Err(RecvTimeoutError::Timeout) {
            let start = Instant::now();
            get();
            gets.add(start.elapsed());
            let start = Instant::now();
            lock();
            locks.add(start.elapsed());
        }
        (gets, locks)
    });
    bucket.applied(log.storage).await;
    drop(stop);
    let (gets, locks) = probe.join().unwrap();
    [("get while a replica fills", gets), ("a lock without a writer meanwhile", locks)].map(
        |(case, times)| {
            let most = times.most().as_secs_f64() * 1e3;
            let keys = bucket.keys;
            let is_met = met(most <= GET_TARGET);
            let line = format!(
                "{keys} keys, {case} | {times} | - | {most:.2} ms at most | <= {GET_TARGET} ms | {is_met}"
            );
            println!("measured: {line}");
            line
        },
    )
}

/// The peak memory of a process with a replica.
fn memory(url: &str, keys: usize) -> String {
    let program = std::env::current_exe().unwrap();
    let keys_argument = keys.to_string();
    let output = Command::new(program)
        .args(["--peak", url, "--keys", &keys_argument])
        .output()
        .expect("the same program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let peak = String::from_utf8(output.stdout).expect("text");
    let peak: f64 = peak.trim().parse().expect("a number of MiB");
    let target = MEMORY_TARGET;
    let line = format!(
        "{keys} keys, most memory of a process with a replica and its log | {peak:.0} MiB | - | - | \
         <= {target} MiB | {}",
        met(peak <= target)
    );
    println!("measured: {line}");
    line
}

async fn peak(url: &str, keys: usize) {
    let bucket = Bucket::open(url, "large", keys).await;
    let log = Log::open().await;
    let reader = log.storage.reader();
    bucket.applied(log.storage).await;
    assert_eq!(reader.len(), keys);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{:.1}", kib / 1024.0);
}
