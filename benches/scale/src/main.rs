//! Measures many services with many live values on a cluster of three servers, as `docs/scale.md`
//! describes.
//!
//! `scale SERVICES VALUES`: each service has a connection of its own to the same bucket with three
//! replicas, and a live value for each of its keys. The last line is
//! `services,values,consumers,opened_s,open_msgs,open_bytes,idle_msgs_s,idle_bytes_s,change_msgs,
//! change_bytes,change_ms,storm_msgs,storm_bytes,storm_s`.
//!
//! `scale --limit`: creates consumers on one stream until the server rejects one.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, kv};
use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::iter;
use serde::{Deserialize, Serialize};
use shizuku_kv::prelude::*;
use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue, Live, Store, StoreConfig, connect};
use shizuku_kv_tests::{NatsCluster, NatsServer};

const NAME: &str = "config";

/// Number of services that open their values at a time.
const OPENING: usize = 8;

/// Number of changes, each of which all services have before the next one.
const CHANGES: u64 = 20;

/// Time without changes, whose traffic is subtracted from that of the other phases.
const IDLE: Duration = Duration::from_secs(20);

/// A value of 200 bytes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "limit.{id}")]
struct Limit {
    id: u32,
    version: u64,
    text: String,
}

impl Limit {
    fn new(id: u32, version: u64) -> Self {
        Self { id, version, text: "x".repeat(160) }
    }
}

/// A service with its live values. The store keeps its connection open.
struct Service {
    _store: Store,
    values: Vec<Live<Limit>>,
}

impl Service {
    async fn open(url: &str, values: u32) -> Self {
        let connection = connect(url).await.expect("connect");
        let store = connection.store_with_config(NAME, config()).await.expect("the bucket");
        let mut live = Vec::new();
        for id in 0..values {
            live.push(Limit::live_at(&store, LimitKey { id }).await.expect("a live value"));
        }
        Self { _store: store, values: live }
    }

    /// Waits until a value has a version.
    async fn until(&self, id: u32, version: u64) {
        let mut live = self.values[id as usize].clone();
        while live.load().version < version {
            live.changed().await.expect("a change");
        }
    }

    /// Waits until each value is followed by an open watch. A lost connection ends the watches of
    /// all values at once.
    async fn until_current(&self) {
        while !self.values.iter().all(|live| live.status().is_current()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn config() -> StoreConfig {
    StoreConfig::new().replicas(3).deadline(Duration::from_secs(60))
}

/// Messages and bytes that all servers have read and written since they started, those between
/// servers included.
#[derive(Clone, Copy, Default)]
struct Traffic {
    messages: f64,
    bytes: f64,
}

impl Traffic {
    async fn of(cluster: &NatsCluster) -> Self {
        let mut sum = Self::default();
        for node in cluster.nodes() {
            let page = node.page("/varz").await.expect("a monitoring page");
            let of = |name: &str| page[name].as_f64().expect("a number");
            sum.messages += of("in_msgs") + of("out_msgs");
            sum.bytes += of("in_bytes") + of("out_bytes");
        }
        sum
    }

    /// Returns the traffic since an earlier one, without that of an idle fleet.
    fn since(self, earlier: Self, idle: Self, took: Duration) -> Self {
        let took = took.as_secs_f64();
        Self {
            messages: self.messages - earlier.messages - idle.messages * took,
            bytes: self.bytes - earlier.bytes - idle.bytes * took,
        }
    }
}

async fn consumers(cluster: &NatsCluster) -> u64 {
    let mut sum = 0;
    for node in cluster.nodes() {
        let page = node.page("/jsz").await.expect("a monitoring page");
        sum += page["consumers"].as_u64().expect("a number");
    }
    sum
}

async fn measure(services: usize, values: u32) {
    let cluster = NatsCluster::start().await;
    let url = cluster.url();
    let connection = connect(&url).await.expect("connect");
    let store = connection.store_with_config(NAME, config()).await.expect("a bucket");
    let first: Vec<_> = (0..values).map(|id| Limit::new(id, 0)).collect();
    for written in Limit::write_many(&store, &first).await {
        written.expect("a write");
    }
    cluster.wait_until_healthy(NAME).await;

    let (before, start) = (Traffic::of(&cluster).await, Instant::now());
    let opening = iter(0..services).map(|_| Service::open(&url, values));
    let fleet: Vec<_> = opening.buffer_unordered(OPENING).collect().await;
    let opened = start.elapsed();
    let open = Traffic::of(&cluster).await.since(before, Traffic::default(), opened);
    println!("opened {services} services with {values} values in {opened:.1?}");

    let (before, start) = (Traffic::of(&cluster).await, Instant::now());
    tokio::time::sleep(IDLE).await;
    let took = start.elapsed().as_secs_f64();
    let idle = Traffic::of(&cluster).await.since(before, Traffic::default(), Duration::ZERO);
    let idle = Traffic { messages: idle.messages / took, bytes: idle.bytes / took };
    let consumers = consumers(&cluster).await;
    println!("idle: {consumers} consumers, {:.1} messages/s", idle.messages);

    let (before, start) = (Traffic::of(&cluster).await, Instant::now());
    for version in 1..=CHANGES {
        let id = version as u32 * 7 % values;
        Limit::new(id, version).write_to_anyway(&store).await.expect("a write");
        join_all(fleet.iter().map(|service| service.until(id, version))).await;
    }
    let took = start.elapsed();
    let change = Traffic::of(&cluster).await.since(before, idle, took);
    let each = CHANGES as f64;
    let change_ms = took.as_secs_f64() * 1e3 / each;
    println!("change: {change_ms:.1} ms until all have it");

    // All connections are lost at once, and a value changes meanwhile.
    let (before, start) = (Traffic::of(&cluster).await, Instant::now());
    cluster.nodes().iter().for_each(|node| node.proxy().cut());
    let version = CHANGES + 1;
    let plain = jetstream::new(cluster.client().await);
    let bucket: kv::Store = plain.get_key_value(NAME).await.expect("the bucket");
    let value = Limit::new(0, version).to_bytes().expect("bytes");
    bucket.put(Limit::new(0, version).kv_key().to_string(), value).await.expect("a put");
    join_all(fleet.iter().map(|service| async {
        service.until(0, version).await;
        service.until_current().await;
    }))
    .await;
    let storm_took = start.elapsed();
    let storm = Traffic::of(&cluster).await.since(before, idle, storm_took);
    println!("storm: {storm_took:.1?} until all are current");
    let columns = [
        services as f64,
        f64::from(values),
        consumers as f64,
        opened.as_secs_f64(),
        open.messages,
        open.bytes,
        idle.messages,
        idle.bytes,
        change.messages / each,
        change.bytes / each,
        change_ms,
        storm.messages,
        storm.bytes,
        storm_took.as_secs_f64(),
    ];
    let columns: Vec<_> = columns.iter().map(|number| format!("{number:.1}")).collect();
    println!("{}", columns.join(","));
}

/// Creates consumers on one stream until the server rejects one.
async fn limit() {
    let server = NatsServer::start();
    let context = jetstream::new(server.client().await);
    let bucket = kv::Config { bucket: NAME.to_owned(), ..Default::default() };
    let bucket = context.create_key_value(bucket).await.expect("a bucket");
    let mut created = 0;
    loop {
        let one = || {
            let config = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
            bucket.stream.create_consumer(config)
        };
        match try_join_all((0..50).map(|_| one())).await {
            Ok(_) => created += 50,
            Err(error) => {
                println!("{} consumers or a few more, then: {error}", created);
                return;
            }
        }
        if created >= 20_000 {
            println!("no limit up to {created} consumers");
            return;
        }
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let task = match &arguments[..] {
        [only] if only == "--limit" => tokio::spawn(limit()),
        [services, values] => {
            let services = services.parse().expect("a number of services");
            let values = values.parse().expect("a number of values");
            tokio::spawn(measure(services, values))
        }
        _ => panic!("usage: scale SERVICES VALUES, or scale --limit"),
    };
    task.await.expect("the measurement");
}
