//! A bucket is usable by other clients of the same server at the same time. The library reads,
//! lists, watches and swaps the entries of plain `async_nats::jetstream::kv`, and vice versa.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod buckets;
mod changed_settings;
mod foreign_headers;
mod markers;
mod same_settings;
mod settings;
mod they_read_ours;
mod together;
mod tombstones;
mod we_read_theirs;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv;
use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use shizuku_kv::{
    Connection, KvEntry, KvError, KvOperation, KvUpdate, ReadConsistency, Store, StoreConfig,
    VersionToken, Watch, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, PATIENCE, unique};

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Both clients, each with a connection of its own, and a bucket's name.
struct World {
    server: &'static NatsServer,
    connection: Arc<dyn Connection>,
    context: jetstream::Context,
    bucket: String,
}

impl World {
    async fn new() -> Self {
        let server = NatsServer::shared();
        Self {
            server,
            connection: connect(&server.url()).await.unwrap(),
            context: jetstream::new(server.client().await),
            bucket: unique("interop"),
        }
    }

    /// Returns a bucket that we created.
    async fn made_by_us(config: StoreConfig) -> (Self, Store, kv::Store) {
        let world = Self::new().await;
        let ours = world.connection.store_with_config(&world.bucket, config).await.unwrap();
        let theirs = world.context.get_key_value(&world.bucket).await.unwrap();
        (world, ours, theirs)
    }

    /// Returns a bucket that the other client created, opened by us without any settings.
    async fn made_by_them(config: kv::Config) -> (Self, Store, kv::Store) {
        let world = Self::new().await;
        let config = kv::Config { bucket: world.bucket.clone(), ..config };
        let theirs = world.context.create_key_value(config).await.unwrap();
        let ours = world.open().await;
        (world, ours, theirs)
    }

    /// Returns a bucket that was created as a stream, for settings that the other client's KV
    /// lacks.
    async fn made_as_stream(change: impl FnOnce(&mut Value)) -> (Self, Store) {
        let world = Self::new().await;
        let mut config = json!({
            "name": world.stream(),
            "subjects": [format!("$KV.{}.>", world.bucket)],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": 1,
            "max_msgs_per_subject": 1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_consumers": -1,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
        });
        change(&mut config);
        let answer = world.api(&format!("STREAM.CREATE.{}", world.stream()), &config).await;
        assert!(answer.get("error").is_none(), "{answer}");
        let ours = world.open().await;
        (world, ours)
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }

    async fn open(&self) -> Store {
        self.connection.store(&self.bucket).await.unwrap()
    }

    async fn open_with_leader_reads(&self) -> Store {
        let config = StoreConfig::new().consistency(ReadConsistency::Leader);
        self.connection.store_with_config(&self.bucket, config).await.unwrap()
    }

    async fn api(&self, subject: &str, request: &Value) -> Value {
        let client = self.context.client();
        let answer =
            client.request(format!("$JS.API.{subject}"), request.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Returns the stream's configuration as the server reports it, fields that no client library
    /// knows included.
    async fn raw_config(&self) -> Value {
        let mut info = self.api(&format!("STREAM.INFO.{}", self.stream()), &json!({})).await;
        info["config"].take()
    }

    /// Publishes to the bucket as a client without any KV layer does.
    async fn publish(&self, key: &str, headers: HeaderMap, value: &'static [u8]) -> u64 {
        let subject = self.subject(key);
        let ack =
            self.context.publish_with_headers(subject, headers, Bytes::from_static(value)).await;
        ack.unwrap().await.unwrap().sequence
    }
}

fn headers<const N: usize>(pairs: [(&str, &str); N]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value);
    }
    headers
}

fn revision(version: VersionToken) -> u64 {
    version.as_u64().unwrap()
}

async fn next(watch: &mut Watch) -> KvUpdate {
    within("an update of our watch", watch.next()).await.unwrap().unwrap()
}

async fn next_entry(watch: &mut Watch) -> KvEntry {
    next(watch).await.into_entry().expect("an entry, not the caught-up marker")
}

/// Returns the updates of a watch before its caught-up marker, by key.
async fn state(watch: &mut Watch) -> BTreeMap<String, KvEntry> {
    let mut state = BTreeMap::new();
    loop {
        match next(watch).await {
            KvUpdate::CaughtUp => return state,
            update => {
                let entry = update.into_entry().unwrap();
                let before = state.insert(entry.key.to_string(), entry);
                assert!(before.is_none(), "{before:?} arrived twice");
            }
        }
    }
}

async fn next_of_theirs(watch: &mut kv::Watch) -> kv::Entry {
    within("an update of their watch", watch.next()).await.unwrap().unwrap()
}

async fn scanned(store: &Store) -> BTreeMap<String, Bytes> {
    let entries = within("a scan", store.scan(WatchScope::All).try_collect()).await.unwrap();
    let count = entries.len();
    let found: BTreeMap<_, _> = entries.into_iter().map(|e| (e.key.to_string(), e.value)).collect();
    assert_eq!(found.len(), count, "a key came twice");
    found
}

async fn listed(store: &Store) -> BTreeSet<String> {
    let keys = within("a listing", store.keys(WatchScope::All).try_collect()).await.unwrap();
    keys.iter().map(ToString::to_string).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

async fn history_of(store: &Store, key: &str) -> Vec<(u64, KvOperation, Bytes)> {
    let entries = within("a history", store.history(key).unwrap().try_collect()).await.unwrap();
    entries.into_iter().map(|e| (revision(e.version), e.operation, e.value)).collect()
}

fn with_markers() -> kv::Config {
    kv::Config { limit_markers: Some(Duration::from_secs(60)), ..kv::Config::default() }
}

/// Returns true if the server has times to live of single keys. Otherwise checks that we report
/// that.
async fn has_ttl(world: &World) -> bool {
    if world.server.is_at_least(2, 11) {
        return true;
    }
    assert!(!world.connection.capabilities().key_ttl);
    let refused =
        world.connection.store_with_config(&world.bucket, StoreConfig::new().key_ttl(true)).await;
    assert!(matches!(refused, Err(KvError::Unsupported { .. })), "{refused:?}");
    assert!(world.open().await.ttl().is_none());
    false
}
