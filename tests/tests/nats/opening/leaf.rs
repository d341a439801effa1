//! Stores of a hub, opened through a leaf node by the JetStream domain.

use std::time::Duration;

use shizuku_kv::conformance::Suite;
use shizuku_kv::{KvError, KvUpdate, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, NatsServerBuilder, PATIENCE, eventually};

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Domain of the JetStream of a hub.
pub(crate) const DOMAIN: &str = "hub";

/// A hub with a JetStream domain, and a leaf node that is connected to it.
pub(crate) struct Leaf {
    pub(crate) hub: NatsServer,
    pub(crate) leaf: NatsServer,
    _folders: [tempfile::TempDir; 2],
}

impl Leaf {
    /// `jetstream` is the block in the configuration of the leaf node, without its folder.
    fn start(jetstream: Option<&str>) -> Self {
        Self::with(NatsServer::builder(), jetstream)
    }

    /// Starts the leaf node with further settings.
    pub(crate) fn with(leaf: NatsServerBuilder, jetstream: Option<&str>) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let port = crate::connection::closed_port();
        let block = |folder: &tempfile::TempDir, domain: &str| {
            format!("jetstream {{ store_dir: \"{}\" {domain} }}", folder.path().display())
        };
        let hub = NatsServer::builder()
            .jetstream(false)
            .config("server_name: hub")
            .config(&block(&folders[0], &format!(", domain: {DOMAIN}")))
            .config(&format!("leafnodes {{ host: 127.0.0.1, port: {port} }}"))
            .start();
        let mut leaf = leaf.jetstream(false).config("server_name: leaf").config(&format!(
            "leafnodes {{ reconnect: 1, remotes: [ {{ url: \"nats://127.0.0.1:{port}\" }} ] }}"
        ));
        if let Some(domain) = jetstream {
            leaf = leaf.config(&block(&folders[1], domain));
        }
        Self { hub, leaf: leaf.start(), _folders: folders }
    }

    fn url(&self) -> String {
        format!("{}?domain={DOMAIN}", self.leaf.url())
    }

    /// Waits until the leaf node is connected.
    async fn is_connected(&self) {
        let connection = connect(&format!("{}&deadline_ms=1000", self.url())).await.unwrap();
        eventually("the leaf node reaches the domain", async || connection.health().await.is_ok())
            .await;
    }
}

/// A leaf node that has no domain of its own, or no JetStream.
#[tokio::test]
async fn leaf_without_domain_uses_the_hub() {
    for jetstream in [Some(""), None] {
        println!("the JetStream of the leaf node: {jetstream:?}");
        let world = Leaf::start(jetstream);
        world.is_connected().await;
        let connection = connect(&world.url()).await.unwrap();
        let store = connection.store("cfg").await.unwrap();
        let version = store.create("a", "1").await.unwrap();
        assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 1);
        assert_eq!(connection.list_stores().try_collect().await.unwrap(), ["cfg"]);
        let direct = connect(&world.hub.url()).await.unwrap();
        let same = direct.store_with_config("cfg", StoreConfig::new().must_exist()).await.unwrap();
        assert_eq!(same.get("a").await.unwrap().unwrap().version, version, "{jetstream:?}");
        direct.delete_store("cfg").await.unwrap();
        assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
    }
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
    let connection = connect(&format!("{}&deadline_ms=10000", world.url())).await.unwrap();
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
