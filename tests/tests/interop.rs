//! A bucket is usable by other clients of the same server at the same time: what plain `async_nats::jetstream::kv`
//! writes is read, listed, watched and swapped here, and the other way round.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, kv, stream};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use shizuku_kv::{
    Connection, KvEntry, KvError, KvOperation, KvUpdate, ReadConsistency, StorageType, Store, StoreConfig,
    VersionToken, Watch, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

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

    /// The bucket made by us.
    async fn made_by_us(config: StoreConfig) -> (Self, Store, kv::Store) {
        let world = Self::new().await;
        let ours = world.connection.store_with_config(&world.bucket, config).await.unwrap();
        let theirs = world.context.get_key_value(&world.bucket).await.unwrap();
        (world, ours, theirs)
    }

    /// The bucket made by the other client, opened by us without any settings.
    async fn made_by_them(config: kv::Config) -> (Self, Store, kv::Store) {
        let world = Self::new().await;
        let config = kv::Config { bucket: world.bucket.clone(), ..config };
        let theirs = world.context.create_key_value(config).await.unwrap();
        let ours = world.open().await;
        (world, ours, theirs)
    }

    /// The bucket made as a stream, for what the other client's KV does not offer.
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
        let answer = client.request(format!("$JS.API.{subject}"), request.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// The stream's configuration as the server tells it, fields that no client library knows included.
    async fn raw_config(&self) -> Value {
        let mut info = self.api(&format!("STREAM.INFO.{}", self.stream()), &json!({})).await;
        info["config"].take()
    }

    /// Publishes to the bucket as a client without any KV layer does.
    async fn publish(&self, key: &str, headers: HeaderMap, value: &'static [u8]) -> u64 {
        let subject = self.subject(key);
        let ack = self.context.publish_with_headers(subject, headers, Bytes::from_static(value)).await;
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

/// What a watch has before its caught-up marker, by key.
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

// What we wrote.

#[tokio::test]
async fn what_we_write_is_read_by_the_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().history(5)).await;
    let one = ours.create("plain", "one").await.unwrap();
    let two = ours.update("plain", "two", one).await.unwrap();
    let empty = ours.put("empty", "").await.unwrap();
    let binary = (0..=255_u8).collect::<Vec<_>>();
    ours.put("a/b.c-d_e=", binary.clone()).await.unwrap();

    assert_eq!(theirs.get("plain").await.unwrap().as_deref(), Some(&b"two"[..]));
    assert_eq!(theirs.get("empty").await.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(theirs.get("a/b.c-d_e=").await.unwrap().as_deref(), Some(&binary[..]));
    let entry = theirs.entry("plain").await.unwrap().unwrap();
    assert_eq!((entry.revision, entry.operation), (revision(two), kv::Operation::Put));
    let entry = theirs.entry("empty").await.unwrap().unwrap();
    assert_eq!((entry.revision, entry.operation), (revision(empty), kv::Operation::Put));
    let before = theirs.entry_for_revision("plain", revision(one)).await.unwrap().unwrap();
    assert_eq!(before.value, "one");
    let created = ours.get("plain").await.unwrap().unwrap().created;
    let theirs_created = SystemTime::from(theirs.entry("plain").await.unwrap().unwrap().created);
    assert_eq!(created, theirs_created);
}

#[tokio::test]
async fn what_we_delete_is_deleted_for_the_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().history(5)).await;
    for key in ["deleted", "swapped", "purged"] {
        ours.put(key, "one").await.unwrap();
        ours.put(key, "two").await.unwrap();
    }
    let deleted = ours.delete("deleted").await.unwrap();
    let version = ours.get("swapped").await.unwrap().unwrap().version;
    let swapped = ours.delete_with_version("swapped", version).await.unwrap();
    let purged = ours.purge("purged").await.unwrap();

    for (key, version, operation, versions) in [
        ("deleted", deleted, kv::Operation::Delete, 3),
        ("swapped", swapped, kv::Operation::Delete, 3),
        ("purged", purged, kv::Operation::Purge, 1),
    ] {
        assert_eq!(theirs.get(key).await.unwrap(), None, "{key}");
        let entry = theirs.entry(key).await.unwrap().unwrap();
        assert_eq!((entry.revision, entry.operation), (revision(version), operation), "{key}");
        let history: Vec<_> = theirs.history(key).await.unwrap().try_collect().await.unwrap();
        assert_eq!(history.len(), versions, "{key}");
        assert_eq!(history.last().unwrap().operation, operation, "{key}");
    }
    let keys: Vec<String> = theirs.keys().await.unwrap().try_collect().await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
    theirs.create("deleted", "again".into()).await.unwrap();
    theirs.create("purged", "again".into()).await.unwrap();
    assert_eq!(scanned(&ours).await.keys().cloned().collect::<BTreeSet<_>>(), names(["deleted", "purged"]));
}

#[tokio::test]
async fn what_we_write_is_listed_with_its_history_by_the_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().history(3)).await;
    let mut versions = Vec::new();
    for number in 0..5 {
        versions.push(revision(ours.put("counted", number.to_string()).await.unwrap()));
    }
    ours.put("empty", "").await.unwrap();
    ours.put("gone", "x").await.unwrap();
    ours.delete("gone").await.unwrap();
    let many = (0..50).map(|n| (format!("many.{n}"), format!("{n}")));
    for answer in ours.put_many(many).await {
        answer.unwrap();
    }

    let history: Vec<_> = theirs.history("counted").await.unwrap().try_collect().await.unwrap();
    let history: Vec<_> = history.into_iter().map(|e| (e.revision, e.value)).collect();
    let expected: Vec<_> = (2..5).map(|n| (versions[n], Bytes::from(n.to_string()))).collect();
    assert_eq!(history, expected);
    let keys: BTreeSet<String> = theirs.keys().await.unwrap().try_collect().await.unwrap();
    assert_eq!(keys.len(), 52);
    assert!(keys.contains("counted") && keys.contains("empty") && keys.contains("many.49"));
    for n in [0, 17, 49] {
        assert_eq!(theirs.get(format!("many.{n}")).await.unwrap().unwrap(), n.to_string());
    }
}

#[tokio::test]
async fn what_we_write_is_watched_by_the_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new()).await;
    let first = ours.put("k", "first").await.unwrap();
    let mut watch = theirs.watch_with_history(">").await.unwrap();
    let entry = next_of_theirs(&mut watch).await;
    assert_eq!((entry.revision, entry.value.as_ref()), (revision(first), &b"first"[..]));

    let update = ours.update("k", "second", first).await.unwrap();
    let empty = ours.put("k", "").await.unwrap();
    let deleted = ours.delete("k").await.unwrap();
    let created = ours.create("k", "third").await.unwrap();
    let purged = ours.purge("k").await.unwrap();
    for (version, operation, value) in [
        (update, kv::Operation::Put, "second"),
        (empty, kv::Operation::Put, ""),
        (deleted, kv::Operation::Delete, ""),
        (created, kv::Operation::Put, "third"),
        (purged, kv::Operation::Purge, ""),
    ] {
        let entry = next_of_theirs(&mut watch).await;
        assert_eq!(entry.key, "k");
        assert_eq!((entry.revision, entry.operation), (revision(version), operation));
        assert_eq!(entry.value, value);
    }
}

// What the other client wrote.

#[tokio::test]
async fn what_the_other_client_writes_is_read_by_us() {
    let (world, ours, theirs) = World::made_by_them(kv::Config { history: 5, ..kv::Config::default() }).await;
    let one = theirs.put("plain", "one".into()).await.unwrap();
    let two = theirs.update("plain", "two".into(), one).await.unwrap();
    let empty = theirs.put("empty", Bytes::new()).await.unwrap();
    theirs.put("deleted", "x".into()).await.unwrap();
    theirs.delete("deleted").await.unwrap();
    theirs.put("purged", "x".into()).await.unwrap();
    theirs.put("purged", "y".into()).await.unwrap();
    theirs.purge("purged").await.unwrap();
    theirs.put("a/b.c-d_e=", "odd".into()).await.unwrap();

    for store in [ours, world.open_with_leader_reads().await] {
        let entry = store.get("plain").await.unwrap().unwrap();
        assert_eq!((revision(entry.version), entry.value.as_ref()), (two, &b"two"[..]));
        let theirs_created = SystemTime::from(theirs.entry("plain").await.unwrap().unwrap().created);
        assert_eq!(entry.created, theirs_created);
        let entry = store.get("empty").await.unwrap().expect("an empty value is a value");
        assert_eq!((revision(entry.version), entry.value.len()), (empty, 0));
        for (key, operation) in [("deleted", KvOperation::Delete), ("purged", KvOperation::Purge)] {
            assert_eq!(store.get(key).await.unwrap(), None, "{key}");
            let entry = store.entry(key).await.unwrap().unwrap();
            assert_eq!(entry.operation, operation, "{key}");
            assert_eq!(revision(entry.version), theirs.entry(key).await.unwrap().unwrap().revision, "{key}");
        }
        assert_eq!(store.entry("never").await.unwrap(), None);

        let keys = ["plain", "deleted", "never", "empty", "purged", "a/b.c-d_e=", "plain"];
        let found = store.get_many(keys).await.unwrap();
        let found: Vec<_> = found.iter().map(|e| e.as_ref().map(|e| e.value.as_ref())).collect();
        assert_eq!(
            found,
            [Some(&b"two"[..]), None, None, Some(&b""[..]), None, Some(&b"odd"[..]), Some(&b"two"[..])]
        );
    }
}

#[tokio::test]
async fn what_the_other_client_writes_is_listed_with_its_history_by_us() {
    let (_world, ours, theirs) =
        World::made_by_them(kv::Config { history: 3, ..kv::Config::default() }).await;
    let mut revisions = Vec::new();
    for number in 0..4 {
        revisions.push(theirs.put("counted", number.to_string().into()).await.unwrap());
    }
    theirs.delete("counted").await.unwrap();
    revisions.push(theirs.entry("counted").await.unwrap().unwrap().revision);
    theirs.put("empty", Bytes::new()).await.unwrap();
    theirs.put("purged", "x".into()).await.unwrap();
    theirs.purge("purged").await.unwrap();
    theirs.put("tree.leaf", "leaf".into()).await.unwrap();
    theirs.put("trees", "wood".into()).await.unwrap();

    assert_eq!(
        history_of(&ours, "counted").await,
        [
            (revisions[2], KvOperation::Put, "2".into()),
            (revisions[3], KvOperation::Put, "3".into()),
            (revisions[4], KvOperation::Delete, Bytes::new()),
        ]
    );
    let purged = history_of(&ours, "purged").await;
    assert_eq!(purged.len(), 1);
    assert_eq!(purged[0].1, KvOperation::Purge);
    assert_eq!(history_of(&ours, "never").await, []);
    assert_eq!(listed(&ours).await, names(["empty", "tree.leaf", "trees"]));
    let scan = scanned(&ours).await;
    assert_eq!(scan.keys().cloned().collect::<BTreeSet<_>>(), names(["empty", "tree.leaf", "trees"]));
    assert_eq!(scan["empty"], "");
    let below = ours.keys(WatchScope::prefix("tree.")).try_collect().await.unwrap();
    assert_eq!(below, ["tree.leaf"]);
}

#[tokio::test]
async fn what_the_other_client_writes_is_watched_by_us() {
    let (_world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    let one = theirs.put("k", "one".into()).await.unwrap();
    theirs.put("empty", Bytes::new()).await.unwrap();
    theirs.put("deleted", "x".into()).await.unwrap();
    theirs.delete("deleted").await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!((revision(state["k"].version), state["k"].value.as_ref()), (one, &b"one"[..]));
    assert!(!state["empty"].is_tombstone());
    assert!(state.get("deleted").is_none_or(KvEntry::is_tombstone));

    let two = theirs.update("k", "two".into(), one).await.unwrap();
    let entry = next_entry(&mut watch).await;
    assert_eq!((revision(entry.version), entry.operation), (two, KvOperation::Put));
    theirs.put("k", Bytes::new()).await.unwrap();
    let KvUpdate::Put(entry) = next(&mut watch).await else { panic!("an empty value is no deletion") };
    assert!(entry.value.is_empty());
    theirs.delete("k").await.unwrap();
    let KvUpdate::Delete(entry) = next(&mut watch).await else { panic!("no deletion") };
    assert_eq!(entry.operation, KvOperation::Delete);
    theirs.create("k", "three".into()).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "three");
    theirs.purge("k").await.unwrap();
    let KvUpdate::Delete(entry) = next(&mut watch).await else { panic!("no deletion") };
    assert_eq!(entry.operation, KvOperation::Purge);

    // From the cursor on, what they wrote meanwhile.
    let cursor = watch.cursor().unwrap();
    drop(watch);
    theirs.put("k", "four".into()).await.unwrap();
    let mut watch = ours.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "four");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
}

#[tokio::test]
async fn swaps_of_both_clients_compare_with_each_other() {
    let (_world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    // Theirs, then ours, then theirs.
    let one = theirs.create("k", "one".into()).await.unwrap();
    let two = ours.update("k", "two", VersionToken::from_u64(one)).await.unwrap();
    let three = theirs.update("k", "three".into(), revision(two)).await.unwrap();

    // Each loses against the other.
    let lost = ours.update("k", "lost", two).await.unwrap_err();
    let KvError::RevisionMismatch { found, .. } = lost else { panic!("{lost:?}") };
    assert_eq!(found, Some(VersionToken::from_u64(three)));
    let lost = ours.create("k", "lost").await.unwrap_err();
    assert!(matches!(lost, KvError::AlreadyExists { .. }), "{lost:?}");
    let lost = ours.delete_with_version("k", two).await.unwrap_err();
    assert!(lost.is_conflict(), "{lost:?}");
    let four = ours.update("k", "four", VersionToken::from_u64(three)).await.unwrap();
    let lost = theirs.update("k", "lost".into(), three).await.unwrap_err();
    assert_eq!(lost.kind(), kv::UpdateErrorKind::WrongLastRevision);
    let lost = theirs.create("k", "lost".into()).await.unwrap_err();
    assert_eq!(lost.kind(), kv::CreateErrorKind::AlreadyExists);
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "four");

    // Over the other's tombstones, of either kind.
    theirs.delete_expect_revision("k", Some(revision(four))).await.unwrap();
    let lost = ours.update("k", "lost", four).await.unwrap_err();
    assert!(matches!(lost, KvError::RevisionMismatch { .. }), "{lost:?}");
    ours.create("k", "five").await.unwrap();
    theirs.purge("k").await.unwrap();
    let six = ours.create("k", "six").await.unwrap();
    ours.delete_with_version("k", six).await.unwrap();
    theirs.create("k", "seven".into()).await.unwrap();
    ours.purge("k").await.unwrap();
    let eight = theirs.create("k", "eight".into()).await.unwrap();
    ours.delete_with_version("k", VersionToken::from_u64(eight)).await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap(), None);
}

// Times to live.

fn with_markers() -> kv::Config {
    kv::Config { limit_markers: Some(Duration::from_secs(60)), ..kv::Config::default() }
}

/// Whether the server has times to live of single keys; where it has not, that we say so.
async fn has_ttl(world: &World) -> bool {
    if world.server.is_at_least(2, 11) {
        return true;
    }
    assert!(!world.connection.capabilities().key_ttl);
    let refused = world.connection.store_with_config(&world.bucket, StoreConfig::new().key_ttl(true)).await;
    assert!(matches!(refused, Err(KvError::Unsupported { .. })), "{refused:?}");
    assert!(world.open().await.ttl().is_none());
    false
}

#[tokio::test]
async fn a_value_of_the_other_client_expires_for_us() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, theirs) = World::made_by_them(with_markers()).await;
    assert!(ours.capabilities().key_ttl && ours.capabilities().expiry_events);
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    let put = theirs.create_with_ttl("lease", "held".into(), Duration::from_secs(1)).await.unwrap();
    theirs.put("stays", "here".into()).await.unwrap();

    let entry = next_entry(&mut watch).await;
    assert_eq!((revision(entry.version), entry.operation), (put, KvOperation::Put));
    assert_eq!(next_entry(&mut watch).await.key, "stays");
    let KvUpdate::Delete(expired) = next(&mut watch).await else { panic!("no expiry") };
    assert_eq!((expired.key.as_str(), expired.operation), ("lease", KvOperation::Expire));

    for store in [&ours, &world.open_with_leader_reads().await] {
        assert_eq!(store.get("lease").await.unwrap(), None);
        let entry = store.entry("lease").await.unwrap().unwrap();
        assert_eq!((entry.operation, entry.version), (KvOperation::Expire, expired.version));
        let many = store.get_many(["lease", "stays", "never", "lease", "stays"]).await.unwrap();
        assert_eq!(many.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, false, true]);
    }
    assert_eq!(listed(&ours).await, names(["stays"]));
    assert_eq!(scanned(&ours).await.len(), 1);
    assert_eq!(
        history_of(&ours, "lease").await,
        [(revision(expired.version), KvOperation::Expire, Bytes::new())]
    );
    let mut fresh = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut fresh).await;
    assert!(state.get("lease").is_none_or(|entry| entry.operation == KvOperation::Expire), "{state:?}");

    // It makes room for a new value, without a time to live.
    let created = ours.create("lease", "mine").await.unwrap();
    assert_eq!(theirs.get("lease").await.unwrap().unwrap(), "mine");
    assert_eq!(theirs.entry("lease").await.unwrap().unwrap().revision, revision(created));
}

#[tokio::test]
async fn a_value_of_ours_expires_for_the_other_client() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let mut watch = theirs.watch(">").await.unwrap();
    let (ttl, second) = (ours.ttl().unwrap(), Duration::from_secs(1));
    let created = ttl.create("created", "x", second).await.unwrap();
    let put = ttl.put("put", "", second).await.unwrap();
    ours.put("renewed", "x").await.unwrap();
    let version = ours.get("renewed").await.unwrap().unwrap().version;
    let updated = ttl.update("renewed", "y", version, second).await.unwrap();
    ours.put("stays", "x").await.unwrap();

    let mut puts = BTreeMap::new();
    let mut expired = BTreeSet::new();
    while expired.len() < 3 {
        let entry = next_of_theirs(&mut watch).await;
        match entry.operation {
            kv::Operation::Put => {
                puts.insert(entry.key, entry.revision);
            }
            // The other client has one word for a purge and for an expiry.
            kv::Operation::Purge => {
                expired.insert(entry.key);
            }
            kv::Operation::Delete => panic!("{entry:?}"),
        }
    }
    assert_eq!(expired, names(["created", "put", "renewed"]));
    assert_eq!(puts["created"], revision(created));
    assert_eq!(puts["put"], revision(put));
    assert_eq!(puts["renewed"], revision(updated));
    let keys: Vec<String> = theirs.keys().await.unwrap().try_collect().await.unwrap();
    assert_eq!(keys, ["stays"]);
    for key in ["created", "put", "renewed"] {
        assert_eq!(theirs.get(key).await.unwrap(), None, "{key}");
        assert_eq!(ours.entry(key).await.unwrap().unwrap().operation, KvOperation::Expire, "{key}");
    }
    theirs.create("created", "theirs".into()).await.unwrap();
    assert_eq!(ours.get("created").await.unwrap().unwrap().value, "theirs");
}

#[tokio::test]
async fn a_purge_whose_marker_expires_leaves_the_key_absent() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (_world, ours, theirs) = World::made_by_them(with_markers()).await;
    theirs.put("k", "x".into()).await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "x");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    theirs.purge_with_ttl("k", Duration::from_secs(1)).await.unwrap();
    let purged = next_entry(&mut watch).await;
    assert_eq!(purged.operation, KvOperation::Purge);
    eventually("the marker is gone or was replaced", async || {
        assert_eq!(ours.get("k").await.unwrap(), None);
        ours.entry("k").await.unwrap().is_none_or(|entry| entry.version != purged.version)
    })
    .await;
    assert_eq!(listed(&ours).await, names([]));
    ours.create("k", "new").await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "new");
    let entry = loop {
        let entry = next_entry(&mut watch).await;
        if !entry.is_tombstone() {
            break entry;
        }
    };
    assert_eq!(entry.value, "new");
}

#[tokio::test]
async fn a_maximum_age_set_by_the_other_client_is_seen_by_us() {
    let config = kv::Config { max_age: Duration::from_secs(1), ..kv::Config::default() };
    let (world, ours, theirs) = World::made_by_them(config).await;
    // The other client asked for no markers, so that expiry is silent.
    assert!(!ours.capabilities().expiry_events);
    theirs.put("k", "x".into()).await.unwrap();
    assert_eq!(ours.get("k").await.unwrap().unwrap().value, "x");
    eventually("the value expires", async || ours.get("k").await.unwrap().is_none()).await;
    assert_eq!(listed(&ours).await, names([]));
    ours.create("k", "y").await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "y");
    let wanted = StoreConfig::new().max_age(Duration::from_secs(1));
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
}

#[tokio::test]
async fn a_longer_history_than_we_count_offers_no_times_to_live() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    // With more than one version, the one before comes back when the newest expires.
    for history in [2, 64, 300, -1] {
        let (_world, ours) = World::made_as_stream(|config| {
            config["max_msgs_per_subject"] = json!(history);
            config["allow_msg_ttl"] = json!(true);
            config["subject_delete_marker_ttl"] = json!(60_000_000_000_u64);
        })
        .await;
        assert!(!ours.capabilities().key_ttl, "{history} versions");
        assert!(ours.ttl().is_none(), "{history} versions");
        ours.put("k", "one").await.unwrap();
        ours.put("k", "two").await.unwrap();
        assert_eq!(history_of(&ours, "k").await.len(), 2, "{history} versions");
    }
}

// Buckets with other settings.

#[tokio::test]
async fn a_bucket_with_other_settings_opens_without_any() {
    let (world, ours, theirs) = World::made_by_them(kv::Config {
        description: "of the others".to_owned(),
        history: 8,
        max_age: Duration::from_secs(3600),
        max_bytes: 1 << 20,
        max_value_size: 4096,
        storage: stream::StorageType::Memory,
        ..kv::Config::default()
    })
    .await;
    let before = world.raw_config().await;
    theirs.put("k", "theirs".into()).await.unwrap();
    assert_eq!(ours.get("k").await.unwrap().unwrap().value, "theirs");
    ours.put("k", "ours").await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "ours");

    let same = StoreConfig::new()
        .description("of the others")
        .history(8)
        .max_age(Duration::from_secs(3600))
        .max_bytes(1 << 20)
        .storage(StorageType::Memory)
        .replicas(1)
        .must_exist();
    world.connection.store_with_config(&world.bucket, same).await.unwrap();
    let other = StoreConfig::new().history(3).storage(StorageType::File).max_bytes(1 << 20);
    let refused = world.connection.store_with_config(&world.bucket, other).await.unwrap_err();
    let KvError::ConfigMismatch { differences, .. } = &refused else { panic!("{refused:?}") };
    let fields: BTreeSet<_> = differences.iter().map(|difference| difference.field.to_owned()).collect();
    assert_eq!(fields, names(["history", "storage"]));
    assert_eq!(world.raw_config().await, before, "opening changes nothing");
}

#[tokio::test]
async fn a_bucket_made_by_us_has_the_layout_of_adr_8() {
    let (world, _ours, theirs) = World::made_by_us(StoreConfig::new().history(7).description("ours")).await;
    let mut stream = world.context.get_stream(world.stream()).await.unwrap();
    let config = stream.info().await.unwrap().config.clone();
    assert_eq!(config.name, world.stream());
    assert_eq!(config.subjects, [format!("$KV.{}.>", world.bucket)]);
    assert_eq!(config.discard, stream::DiscardPolicy::New);
    assert_eq!(config.retention, stream::RetentionPolicy::Limits);
    assert_eq!(config.storage, stream::StorageType::File);
    assert!(config.allow_rollup);
    assert!(config.deny_delete);
    assert!(!config.deny_purge);
    assert!(config.allow_direct);
    assert!(!config.discard_new_per_subject);
    assert!(!config.no_ack && !config.sealed);
    assert_eq!(config.max_messages_per_subject, 7);
    assert_eq!(config.num_replicas, 1);
    assert_eq!((config.max_messages, config.max_bytes, config.max_consumers), (-1, -1, -1));
    assert_eq!(config.max_age, Duration::ZERO);
    assert_eq!(config.duplicate_window, Duration::from_secs(120));
    assert_eq!(config.description.as_deref(), Some("ours"));
    assert!(!config.allow_message_ttl && config.subject_delete_marker_ttl.is_none());
    assert!(config.mirror.is_none() && config.sources.is_none() && config.republish.is_none());
    let status = theirs.status().await.unwrap();
    assert_eq!((status.bucket(), status.history()), (world.bucket.as_str(), 7));
}

#[tokio::test]
async fn a_bucket_made_by_us_is_as_one_made_by_the_other_client() {
    let (one, ..) = World::made_by_us(StoreConfig::new()).await;
    let (other, ..) = World::made_by_them(kv::Config { history: 1, ..kv::Config::default() }).await;
    let own = ["name", "subjects"];
    assert_eq!(but(own, one.raw_config().await), but(own, other.raw_config().await));
}

#[tokio::test]
async fn a_bucket_with_times_to_live_made_by_us_is_one_for_the_other_client() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, theirs) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let stream = world.context.get_stream(world.stream()).await.unwrap();
    let config = &stream.cached_info().config;
    assert!(config.allow_message_ttl);
    assert!(config.subject_delete_marker_ttl.is_some_and(|ttl| ttl >= Duration::from_secs(1)));
    assert_eq!(config.max_messages_per_subject, 1);
    theirs.create_with_ttl("k", "x".into(), Duration::from_secs(1)).await.unwrap();
    eventually("the value expires", async || ours.get("k").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_bucket_without_direct_gets_is_read() {
    let (_world, ours) = World::made_as_stream(|config| config["allow_direct"] = json!(false)).await;
    let keys: Vec<_> = (0..20).map(|n| format!("k.{n}")).collect();
    let binary = Bytes::from_static(b"\x00\r\n\xff");
    for answer in ours.put_many(keys.iter().map(|key| (key, binary.clone()))).await {
        answer.unwrap();
    }
    ours.put("empty", "").await.unwrap();
    let deleted = ours.delete("k.3").await.unwrap();
    assert_eq!(ours.get("k.0").await.unwrap().unwrap().value, binary);
    assert_eq!(ours.get("empty").await.unwrap().unwrap().value, "");
    assert_eq!(ours.get("k.3").await.unwrap(), None);
    assert_eq!(ours.entry("k.3").await.unwrap().unwrap().version, deleted);
    assert_eq!(ours.get("never").await.unwrap(), None);
    let many = ours.get_many(&keys).await.unwrap();
    assert_eq!(many.iter().flatten().count(), 19);
    assert!(many[3].is_none());
    assert_eq!(scanned(&ours).await.len(), 20);
}

#[tokio::test]
async fn reconciling_keeps_the_settings_of_others() {
    let server = NatsServer::shared();
    let (world, ours) = World::made_as_stream(|config| {
        config["description"] = json!("of the others");
        config["metadata"] = json!({ "owner": "billing", "tier": "gold" });
        config["compression"] = json!("s2");
        config["republish"] = json!({ "src": ">", "dest": "audit.>" });
        config["placement"] = json!({ "cluster": "", "tags": ["ssd"] });
        config["consumer_limits"] = json!({ "inactive_threshold": 300_000_000_000_u64 });
        config["duplicate_window"] = json!(30_000_000_000_u64);
        config["max_bytes"] = json!(1 << 20);
        // Settings that this library has never heard of. A server refuses those that itself does not know.
        if server.is_at_least(2, 12) {
            config["allow_atomic"] = json!(true);
        }
        if server.is_at_least(2, 14) {
            config["allow_batched"] = json!(true);
        }
    })
    .await;
    ours.put("k", "kept").await.unwrap();
    let before = world.raw_config().await;
    assert_eq!(before["compression"], "s2");
    assert_eq!(before["metadata"]["owner"], "billing");
    assert!(!server.is_at_least(2, 12) || before["allow_atomic"] == true);
    assert!(!server.is_at_least(2, 14) || before["allow_batched"] == true);

    let wanted = StoreConfig::new().history(5).max_value_size(1000).reconcile();
    let ours = world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    let after = world.raw_config().await;
    assert_eq!(after["max_msgs_per_subject"], 5);
    assert_eq!(after["metadata"]["owner"], "billing");
    let changed = ["max_msgs_per_subject", "max_msg_size"];
    assert_eq!(but(changed, after), but(changed, before));
    assert_eq!(ours.get("k").await.unwrap().unwrap().value, "kept");
}

/// The configurations without the fields that a change is about, and without the notes that the server keeps in the
/// metadata.
fn but<const N: usize>(fields: [&str; N], mut config: Value) -> Value {
    let object = config.as_object_mut().unwrap();
    for field in fields {
        object.remove(field);
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !name.starts_with("_nats."));
        if metadata.is_empty() {
            object.remove("metadata");
        }
    }
    config
}

#[tokio::test]
async fn reconciling_a_maximum_age_keeps_the_window_for_duplicates() {
    let (world, _) =
        World::made_as_stream(|config| config["duplicate_window"] = json!(30_000_000_000_u64)).await;
    let before = world.raw_config().await;
    let wanted = StoreConfig::new().max_age(Duration::from_secs(3600)).reconcile();
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    let after = world.raw_config().await;
    assert_eq!(after["max_age"], 3_600_000_000_000_u64);
    // Expiry brings its markers with it.
    let changed = ["max_age", "allow_msg_ttl", "subject_delete_marker_ttl"];
    assert_eq!(but(changed, after), but(changed, before));

    // A shorter age than the window takes the window with it: the server insists.
    let wanted = StoreConfig::new().max_age(Duration::from_secs(10)).reconcile();
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    assert_eq!(world.raw_config().await["duplicate_window"], 10_000_000_000_u64);
}

#[tokio::test]
async fn reconciling_something_else_leaves_a_bucket_with_a_maximum_age_as_it_is() {
    let config = kv::Config { max_age: Duration::from_secs(3600), ..kv::Config::default() };
    let (world, ..) = World::made_by_them(config).await;
    let before = world.raw_config().await;
    let wanted = StoreConfig::new().history(3).reconcile();
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    let after = world.raw_config().await;
    assert_eq!(after["max_msgs_per_subject"], 3);
    assert_eq!(but(["max_msgs_per_subject"], after), but(["max_msgs_per_subject"], before));
}

#[tokio::test]
async fn reconciling_keeps_the_age_of_markers_that_others_chose() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ..) = World::made_by_them(with_markers()).await;
    let wanted = StoreConfig::new().key_ttl(true).description("ours now").reconcile();
    let ours = world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    assert!(ours.ttl().is_some());
    let config = world.raw_config().await;
    assert_eq!(config["description"], "ours now");
    assert_eq!(config["subject_delete_marker_ttl"], 60_000_000_000_u64);
}

#[tokio::test]
async fn keys_that_are_none_of_ours_do_not_disturb() {
    let (world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    let odd = ["_kv.internal", "_kv_other", "colon:here", "umlaut-ü", "star$", "a.percent%20"];
    theirs.put("first", "1".into()).await.unwrap();
    for key in odd {
        world.publish(key, HeaderMap::new(), b"odd").await;
    }
    theirs.put("middle", "2".into()).await.unwrap();
    for key in odd {
        world.publish(key, HeaderMap::new(), b"odd again").await;
    }
    theirs.put(&"k".repeat(1024), "long".into()).await.unwrap();
    world.publish(&"k".repeat(1025), HeaderMap::new(), b"too long").await;

    let long = "k".repeat(1024);
    assert_eq!(listed(&ours).await, names(["first", "middle", &long]));
    assert_eq!(scanned(&ours).await.len(), 3);
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!(state.keys().cloned().collect::<BTreeSet<_>>(), names(["first", "middle", &long]));
    world.publish("_kv.live", HeaderMap::new(), b"odd").await;
    let last = theirs.put("last", "3".into()).await.unwrap();
    assert_eq!(revision(next_entry(&mut watch).await.version), last);

    // Also where there is nothing else in scope.
    let scope = WatchScope::prefix("_kv");
    assert_eq!(ours.keys(scope.clone()).try_collect().await.unwrap().len(), 0);
    let mut watch = ours.watch(scope).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    let refused = ours.get("_kv.internal").await.unwrap_err();
    assert!(matches!(refused, KvError::InvalidKey { .. }), "{refused:?}");
}

#[tokio::test]
async fn what_fits_a_bucket_of_small_values_is_written() {
    for limit in [128, 300, 1000] {
        let config = kv::Config { max_value_size: limit, ..kv::Config::default() };
        let (_world, ours, theirs) = World::made_by_them(config).await;
        // What the other client may write, we read.
        let whole = vec![7; usize::try_from(limit).unwrap()];
        theirs.put("theirs", whole.clone().into()).await.unwrap();
        assert_eq!(ours.get("theirs").await.unwrap().unwrap().value, whole);

        // What we say that we take, the server takes, with and without an expected version.
        let most = ours.max_value_size();
        assert!(most > 0, "nothing at all fits a bucket of {limit} bytes");
        let version = ours.create("ours", vec![1; most]).await.unwrap();
        ours.update("ours", vec![2; most], version).await.unwrap();
        let refused = ours.put("ours", vec![3; most + 1]).await.unwrap_err();
        assert!(matches!(refused, KvError::ValueTooLarge { .. }), "{refused:?}");
        assert_eq!(theirs.get("ours").await.unwrap().unwrap().len(), most);
        ours.delete("ours").await.unwrap();
        ours.purge("ours").await.unwrap();
    }
}

#[tokio::test]
async fn a_history_of_64_is_read_in_full() {
    let (_world, ours, theirs) =
        World::made_by_them(kv::Config { history: 64, ..kv::Config::default() }).await;
    let mut expected = Vec::new();
    for number in 0..70_u32 {
        let value = number.to_string();
        let written = match number % 3 {
            0 => theirs.put("k", value.clone().into()).await.unwrap(),
            1 => revision(ours.put("k", value.clone()).await.unwrap()),
            _ => revision(ours.delete("k").await.unwrap()),
        };
        let operation = if number % 3 == 2 { KvOperation::Delete } else { KvOperation::Put };
        let value = if number % 3 == 2 { Bytes::new() } else { value.into() };
        expected.push((written, operation, value));
    }
    assert_eq!(history_of(&ours, "k").await, expected[6..]);
    let history: Vec<_> = theirs.history("k").await.unwrap().try_collect().await.unwrap();
    assert_eq!(history.len(), 64);
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!(revision(state["k"].version), expected[69].0);
}

// Messages with headers of their own.

/// Asserts that every way of reading finds a value under each of the keys, at these revisions.
async fn is_found_everywhere(world: &World, value: &[u8], written: &[(&str, u64)]) {
    let ours = world.open().await;
    let leader = world.open_with_leader_reads().await;
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    let scan = scanned(&ours).await;
    let keys = listed(&ours).await;
    let many = ours.get_many(written.iter().map(|(key, _)| *key)).await.unwrap();
    for ((key, sequence), found) in written.iter().zip(many) {
        let found = found.unwrap_or_else(|| panic!("get_many does not find {key}"));
        assert_eq!(found.key, *key, "get_many");
        assert_eq!((revision(found.version), found.value.as_ref()), (*sequence, value), "get_many of {key}");
        for (way, store) in [("direct", &ours), ("leader", &leader)] {
            let found = store.get(*key).await.unwrap().unwrap_or_else(|| panic!("{way} does not find {key}"));
            assert_eq!(found.key, *key, "{way}");
            assert_eq!((revision(found.version), found.value.as_ref()), (*sequence, value), "{way} of {key}");
            let year = Duration::from_secs(365 * 86_400);
            assert!(found.created.elapsed().is_ok_and(|age| age < year), "{way}: {:?}", found.created);
        }
        assert_eq!(revision(state[*key].version), *sequence, "watch of {key}");
        assert_eq!(state[*key].value, value, "watch of {key}");
        assert_eq!(scan[*key], value, "scan of {key}");
        assert!(keys.contains(*key), "keys with {key}");
        let newest = history_of(&ours, key).await.pop().unwrap();
        assert_eq!((newest.0, newest.1), (*sequence, KvOperation::Put), "history of {key}");
    }
    // The version that was found is the one that is swapped.
    for (key, sequence) in written {
        ours.update(*key, "swapped", VersionToken::from_u64(*sequence)).await.unwrap();
    }
}

#[tokio::test]
async fn values_with_headers_of_others_are_read() {
    let (world, ..) = World::made_by_them(kv::Config { history: 2, ..kv::Config::default() }).await;
    let value = b"with headers";
    let mut written = Vec::new();
    for (key, headers) in [
        ("id", headers([("Nats-Msg-Id", "the-one")])),
        ("custom", headers([("X-Trace", "a"), ("X-Trace", "b"), ("Content-Type", "text/plain")])),
        ("put", headers([("KV-Operation", "PUT")])),
        ("unknown", headers([("KV-Operation", "SOMETHING")])),
        ("odd", headers([("X-Empty", ""), ("X-Colon", "a: b: c"), ("x", "ü")])),
        ("plain", HeaderMap::new()),
    ] {
        written.push((key, world.publish(key, headers, value).await));
    }
    is_found_everywhere(&world, value, &written).await;
}

#[tokio::test]
async fn headers_that_pretend_to_be_the_servers_do_not_confuse() {
    let (world, ..) = World::made_by_them(kv::Config::default()).await;
    let value = b"genuine";
    let other = world.subject("other");
    let mut written = Vec::new();
    for (key, headers) in [
        ("sequence", headers([("Nats-Sequence", "999999")])),
        ("lower", headers([("nats-sequence", "999999"), ("nats-subject", "$KV.x.y")])),
        ("garbage", headers([("Nats-Sequence", "x"), ("Nats-Time-Stamp", "never"), ("Nats-Stream", "KV_x")])),
        ("subject", headers([("Nats-Subject", other.as_str())])),
        ("pending", headers([("Nats-Num-Pending", "0"), ("Nats-UpTo-Sequence", "1"), ("Status", "404")])),
        ("consumer", headers([("Nats-Last-Consumer", "7"), ("Nats-Pending-Messages", "9")])),
        ("last", headers([("Nats-Last-Sequence", "1")])),
        ("operation", headers([("Shizuku-Op", "stolen")])),
    ] {
        written.push((key, world.publish(key, headers, value).await));
    }
    is_found_everywhere(&world, value, &written).await;
}

#[tokio::test]
async fn a_message_with_a_status_of_its_own_does_not_stop_the_others() {
    let (world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    theirs.put("before", "1".into()).await.unwrap();
    // Headers with a status line are the server's own way to talk; nothing keeps a client from storing one.
    let port = world.server.port();
    let mut raw = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut script = "CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_owned();
    for (key, status) in [("s404", "404"), ("s503", "503"), ("s100", "100 Idle Heartbeat"), ("s408", "408")] {
        let head = format!("NATS/1.0 {status}\r\nX: y\r\n\r\n");
        let sizes = (head.len(), head.len() + "odd".len());
        script += &format!("HPUB {} {} {}\r\n{head}odd\r\n", world.subject(key), sizes.0, sizes.1);
    }
    script += "PING\r\n";
    raw.write_all(script.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("the server has taken the messages", async {
        while !answer.windows(6).any(|bytes| bytes == b"PONG\r\n") {
            assert!(raw.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
    })
    .await;
    theirs.put("after", "2".into()).await.unwrap();
    let stream = world.context.get_stream(world.stream()).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 6, "the server took them");

    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!((state["before"].value.as_ref(), state["after"].value.as_ref()), (&b"1"[..], &b"2"[..]));
    theirs.put("live", "3".into()).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.key, "live");
    let keys = listed(&ours).await;
    assert!(keys.contains("before") && keys.contains("after") && keys.contains("live"), "{keys:?}");
    let many = ours.get_many(["before", "after", "live", "never"]).await.unwrap();
    assert_eq!(many.iter().flatten().count(), 3);
}

// Which buckets there are.

#[tokio::test]
async fn buckets_of_others_are_listed_and_deleted() {
    let (world, ours, _theirs) = World::made_by_them(kv::Config::default()).await;
    let long = format!("{}-{}", world.bucket, "x".repeat(64));
    let config = kv::Config { bucket: long.clone(), ..kv::Config::default() };
    world.context.create_key_value(config).await.unwrap();
    let plain = unique("no-bucket");
    world
        .context
        .create_stream(stream::Config { name: plain.clone(), ..stream::Config::default() })
        .await
        .unwrap();

    let stores = world.connection.list_stores().try_collect().await.unwrap();
    assert!(stores.contains(&world.bucket));
    assert!(stores.contains(&long), "also a bucket whose name we would not give");
    assert!(!stores.iter().any(|name| name.contains(&plain)), "{stores:?}");
    world.context.delete_key_value(&long).await.unwrap();

    world.connection.delete_store(&world.bucket).await.unwrap();
    assert!(world.context.get_key_value(&world.bucket).await.is_err());
    let gone = ours.get("k").await.unwrap_err();
    assert!(matches!(gone, KvError::StoreNotFound { .. }), "{gone:?}");
}

#[tokio::test]
async fn a_bucket_deleted_by_the_other_client_is_gone_for_us() {
    let (world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    theirs.put("k", "x".into()).await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "x");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    world.context.delete_key_value(&world.bucket).await.unwrap();
    for error in [
        ours.get("k").await.unwrap_err(),
        ours.put("k", "y").await.unwrap_err(),
        ours.get_many(["a", "b", "c", "d", "e"]).await.unwrap_err(),
        within("the watch ends", watch.next()).await.unwrap().unwrap_err(),
    ] {
        assert!(matches!(error, KvError::StoreNotFound { .. }), "{error:?}");
    }
    let lists = world.connection.list_stores().try_collect().await.unwrap();
    assert!(!lists.contains(&world.bucket));
}

#[tokio::test]
async fn a_mirror_is_refused_or_read_but_never_taken_for_an_empty_store() {
    let (world, _ours, theirs) = World::made_by_them(kv::Config::default()).await;
    theirs.put("k", "origin".into()).await.unwrap();
    let mirror = unique("mirror");
    let config = kv::Config {
        bucket: mirror.clone(),
        mirror: Some(stream::Source { name: world.stream(), ..stream::Source::default() }),
        mirror_direct: true,
        ..kv::Config::default()
    };
    world.context.create_key_value(config).await.unwrap();
    let copy = world.context.get_stream(format!("KV_{mirror}")).await.unwrap();
    eventually("the mirror has its message", async || copy.clone().info().await.unwrap().state.messages == 1)
        .await;
    match world.connection.store(&mirror).await {
        Ok(store) => {
            let found = store.get("k").await.unwrap().expect("the mirror's value");
            assert_eq!(found.value, "origin");
            assert_eq!(listed(&store).await, names(["k"]));
        }
        Err(error) => assert!(matches!(error, KvError::Unsupported { .. }), "{error:?}"),
    }
}
