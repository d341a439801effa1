//! Stores of a hub, opened through a leaf node by the JetStream domain.

use std::net::Ipv4Addr;
use std::time::Duration;

use shizuku_kv::conformance::Suite;
use shizuku_kv::replica::{Batch, MemoryStorage};
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError};
use shizuku_kv::{
    BatchConfig, KvError, KvUpdate, ReadConsistency, StoreConfig, WatchScope, connect,
    watch_applied,
};
use shizuku_kv_tests::{NatsServer, eventually};
use tokio_util::sync::CancellationToken;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {patience:?}"))
}

/// A hub, and a leaf node that is connected to it.
struct Leaf {
    hub: NatsServer,
    leaf: NatsServer,
    _folders: [tempfile::TempDir; 2],
}

fn free_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl Leaf {
    /// `jetstream` is the block in the configuration of the leaf node, without its folder.
    fn start(jetstream: Option<&str>) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let port = free_port();
        let block = |folder: &tempfile::TempDir, domain: &str| {
            format!("jetstream {{ store_dir: \"{}\" {domain} }}", folder.path().display())
        };
        let hub = NatsServer::builder()
            .jetstream(false)
            .config("server_name: hub")
            .config(&block(&folders[0], ", domain: hub"))
            .config(&format!("leafnodes {{ host: 127.0.0.1, port: {port} }}"))
            .start();
        let mut leaf =
            NatsServer::builder().jetstream(false).config("server_name: leaf").config(&format!(
                "leafnodes {{ reconnect: 1, remotes: [ {{ url: \"nats://127.0.0.1:{port}\" }} ] }}"
            ));
        if let Some(domain) = jetstream {
            leaf = leaf.config(&block(&folders[1], domain));
        }
        Self { hub, leaf: leaf.start(), _folders: folders }
    }

    fn url(&self) -> String {
        format!("{}?domain=hub", self.leaf.url())
    }

    /// Waits until the leaf node is connected.
    async fn is_connected(&self) {
        let connection = connect(&format!("{}&deadline_ms=1000", self.url())).await.unwrap();
        eventually("the leaf node reaches the domain", async || connection.health().await.is_ok())
            .await;
    }
}

async fn uses_the_hub(world: Leaf) {
    world.is_connected().await;
    let connection = connect(&world.url()).await.unwrap();
    let store = connection.store_with_config("cfg", StoreConfig::new().history(3)).await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp);
    let first = store.create("a", "1").await.unwrap();
    let second = store.update("a", "2", first).await.unwrap();
    assert!(store.update("a", "3", first).await.unwrap_err().is_conflict());
    for answer in store.put_many((0..20).map(|n| (format!("k.{n}"), "x"))).await {
        answer.unwrap();
    }
    for expected in [first, second] {
        let update = watch.next().await.unwrap().unwrap();
        assert_eq!(update.entry().unwrap().version, expected);
    }
    assert_eq!(store.get("a").await.unwrap().unwrap().version, second);
    assert_eq!(store.get("absent").await.unwrap(), None);
    let many = store.get_many((0..20).map(|n| format!("k.{n}"))).await.unwrap();
    assert_eq!(many.iter().flatten().count(), 20);
    assert_eq!(store.history("a").unwrap().try_collect().await.unwrap().len(), 2);
    assert_eq!(store.keys(WatchScope::prefix("k.")).try_collect().await.unwrap().len(), 20);
    assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 21);
    store.delete("k.1").await.unwrap();
    store.purge("k.2").await.unwrap();
    let leader = StoreConfig::new().consistency(ReadConsistency::Leader);
    let leader = connection.store_with_config("cfg", leader).await.unwrap();
    assert_eq!(leader.get("a").await.unwrap().unwrap().value, "2");
    assert_eq!(connection.list_stores().try_collect().await.unwrap(), ["cfg"]);

    // Uses a lock, and a replica.
    let locks = connection.store("locks").await.unwrap();
    let lock = DistroRwLock::new(&locks, "job").unwrap();
    let guard = lock.write().await.unwrap();
    assert!(matches!(lock.try_read().await, Err(DistroRwLockError::WouldBlock { .. })));
    guard.release().await.unwrap();
    let (seen, mut came) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let replica = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let apply = move |batch: Batch| {
                for update in batch.updates() {
                    let key = update.entry().map(|entry| entry.key.to_string());
                    let _ = seen.send(key.unwrap_or_default());
                }
                std::future::ready(Ok::<_, String>(()))
            };
            let storage = MemoryStorage::new();
            watch_applied(&store, WatchScope::All, storage, BatchConfig::new(), stop, apply)
                .await
                .map(drop)
        }
    });
    store.put("applied", "x").await.unwrap();
    while within("the replica", came.recv()).await.unwrap() != "applied" {}
    stop.cancel();
    within("the end of the replica", replica).await.unwrap().unwrap();

    // The store belongs to the hub.
    let direct = connect(&world.hub.url()).await.unwrap();
    let same = direct.store_with_config("cfg", StoreConfig::new().must_exist()).await.unwrap();
    assert_eq!(same.get("a").await.unwrap().unwrap().version, second);
    direct.delete_store("cfg").await.unwrap();
    assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
}

#[tokio::test]
async fn leaf_with_its_own_domain_uses_the_hub() {
    uses_the_hub(Leaf::start(Some(", domain: leaf"))).await;
}

#[tokio::test]
async fn leaf_with_a_jetstream_without_domain_uses_the_hub() {
    uses_the_hub(Leaf::start(Some(""))).await;
}

#[tokio::test]
async fn leaf_without_jetstream_uses_the_hub() {
    uses_the_hub(Leaf::start(None)).await;
}

#[tokio::test]
async fn stores_of_leaf_and_hub_are_distinct() {
    let world = Leaf::start(Some(", domain: leaf"));
    world.is_connected().await;
    let hub = connect(&world.url()).await.unwrap().store("cfg").await.unwrap();
    hub.put("key", "hub").await.unwrap();
    for url in [world.leaf.url(), format!("{}?domain=leaf", world.leaf.url())] {
        let connection = connect(&url).await.unwrap();
        let store = connection.store("cfg").await.unwrap();
        assert_eq!(store.get("key").await.unwrap().map(|entry| entry.value), None, "{url}");
        store.put("mine", "leaf").await.unwrap();
        connection.delete_store("cfg").await.unwrap();
    }
    assert_eq!(hub.get("mine").await.unwrap(), None);
    assert_eq!(hub.get("key").await.unwrap().unwrap().value, "hub");
    // The API prefix leads to the same store.
    let prefix = connect(&format!("{}?api_prefix=%24JS.hub.API", world.leaf.url())).await.unwrap();
    let store = prefix.store("cfg").await.unwrap();
    store.put("key", "by prefix").await.unwrap();
    assert_eq!(hub.get("key").await.unwrap().unwrap().value, "by prefix");
}

#[tokio::test]
async fn leaf_without_jetstream_advises_a_domain() {
    let world = Leaf::start(None);
    world.is_connected().await;
    let connection = connect(&world.leaf.url()).await.unwrap();
    for error in
        [connection.store("cfg").await.unwrap_err(), connection.health().await.unwrap_err()]
    {
        let text = error.to_string();
        assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
        assert!(text.contains("leaf node") && text.contains("?domain="), "{text}");
    }
}

#[tokio::test]
async fn unknown_domain_is_named() {
    let world = Leaf::start(None);
    let connection = connect(&format!("{}?domain=hbu", world.leaf.url())).await.unwrap();
    let error = connection.store("cfg").await.unwrap_err();
    assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("\"hbu\""), "{error}");
    for url in [
        "nats://h?domain=a.b",
        "nats://h?domain=*",
        "nats://h?domain=a&api_prefix=b",
        "nats://h?domain=",
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(matches!(error, KvError::InvalidConfig { .. }), "{url}: {error:?}");
    }
}

/// The leaf node loses the hub. Operations end with errors, and succeed again after the hub is
/// back.
#[tokio::test]
async fn watch_outlives_the_loss_of_the_hub() {
    let mut world = Leaf::start(None);
    world.is_connected().await;
    let connection = connect(&format!("{}&deadline_ms=2000", world.url())).await.unwrap();
    let store = connection.store("cfg").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp);
    world.hub.kill();
    let quick = store.with_deadline(Duration::from_secs(1));
    eventually("the hub is missed", async || quick.get("key").await.is_err()).await;
    world.hub.restart();
    eventually("the store is back", async || quick.put("key", "x").await.is_ok()).await;
    let newest = store.get("key").await.unwrap().unwrap().version;
    loop {
        let update = within("the watch", watch.next()).await.unwrap().unwrap();
        if update.entry().is_some_and(|entry| entry.version == newest) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_is_fulfilled_through_a_leaf() {
    let world = Leaf::start(Some(", domain: leaf"));
    world.is_connected().await;
    let url = world.url();
    let suite = Suite::connecting(move || {
        let url = url.clone();
        async move { connect(&url).await }
    });
    let report = suite.run().await;
    assert!(report.is_ok(), "nats-server {}:\n{report}", world.hub.version());
}
