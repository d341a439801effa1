//! The capabilities of a server and a store are detected correctly, and the replacement of a
//! missing one gives the same answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use shizuku_kv::{
    Connection, NatsConnectionConfig, ReadConsistency, Store, StoreConfig, connect, nats_connect,
};
use shizuku_kv_tests::{NatsServer, PATIENCE, unique};

async fn connection() -> Arc<dyn Connection> {
    connect(&NatsServer::shared().url()).await.unwrap()
}

/// Returns true if the server leaves markers for expired values, which times to live of single keys
/// need.
fn has_markers() -> bool {
    NatsServer::shared().is_at_least(2, 11)
}

// Capabilities.

/// The conformance suite checks each claimed capability, but not that it is claimed.
#[tokio::test]
async fn every_server_has_all_capabilities_except_ttl() {
    let capabilities = connection().await.capabilities();
    assert!(capabilities.write && capabilities.compare_and_swap);
    assert!(capabilities.watch && capabilities.watch_resume);
    assert!(capabilities.max_age && capabilities.leader_reads && capabilities.fenced_writes);
    assert!(capabilities.persistent && capabilities.shared);
    assert!(capabilities.ordered_versions && capabilities.linearizable_reads);
    assert_eq!(capabilities.max_history, 64);
    assert_eq!(capabilities.key_ttl, has_markers());
    assert_eq!(capabilities.expiry_events, has_markers());
}

#[tokio::test]
async fn version_is_that_of_the_server() {
    let server = NatsServer::shared();
    let connection = nats_connect(NatsConnectionConfig::new([server.url()])).await.unwrap();
    assert_eq!(connection.server_version(), server.version());
}

// get_many.

/// Asserts that `get_many` answers as one `get` per key does, and returns the result.
async fn many_are_as_singles(store: &Store, keys: &[String]) -> Vec<Option<Bytes>> {
    let many = store.get_many(keys).await.unwrap();
    assert_eq!(many.len(), keys.len());
    let mut single = BTreeMap::new();
    for (key, entry) in keys.iter().zip(&many) {
        if !single.contains_key(key) {
            single.insert(key, store.get(key).await.unwrap());
        }
        assert_eq!(entry, &single[key], "{key}");
        assert!(entry.as_ref().is_none_or(|entry| entry.key == *key.as_str()));
    }
    many.into_iter().map(|entry| entry.map(|entry| entry.value)).collect()
}

/// Writes hundreds of keys: values of 0 bytes to 100 KB, and tombstones of each kind. Returns them,
/// keys that were never written, and some repeated keys, each with its expected value.
async fn all_sorts(store: &Store) -> Vec<(String, Option<Bytes>)> {
    let sizes = [0, 1, 17, 200, 4096, 65_536, 100_000];
    let mut expected = Vec::new();
    let mut items = Vec::new();
    for n in 0..400_usize {
        let key = format!("k.{n}");
        let size = if n % 40 == 0 { sizes[(n / 40) % sizes.len()] } else { n % 50 };
        let value = Bytes::from(vec![u8::try_from(n % 251).unwrap(); size]);
        if n % 9 != 4 {
            items.push((key.clone(), value.clone()));
        }
        expected.push((key, (n % 9 != 4 && n % 7 != 3 && n % 11 != 5).then_some(value)));
    }
    for answer in store.put_many(items).await {
        answer.unwrap();
    }
    for n in 0..400_usize {
        let key = format!("k.{n}");
        if n % 7 == 3 {
            store.delete(key.as_str()).await.unwrap();
        } else if n % 11 == 5 {
            store.purge(key.as_str()).await.unwrap();
        }
    }
    // Also requests them backwards, so that the order is not that of the stream.
    let again: Vec<_> = expected.iter().rev().step_by(3).cloned().collect();
    expected.extend(again);
    expected.push(("never.written".to_owned(), None));
    expected
}

#[tokio::test(flavor = "multi_thread")]
async fn get_many_equals_single_gets() {
    is_as_singles(StoreConfig::new()).await;
    is_as_singles(StoreConfig::new().consistency(ReadConsistency::Leader)).await;
    is_as_singles(StoreConfig::new().history(10)).await;
}

async fn is_as_singles(config: StoreConfig) {
    println!("{config:?}");
    let store = connection().await.store_with_config(&unique("many"), config).await.unwrap();
    let (keys, expected): (Vec<_>, Vec<_>) = all_sorts(&store).await.into_iter().unzip();
    assert_eq!(many_are_as_singles(&store, &keys).await, expected);
    // Uses no keys, numbers that are requested one by one, and numbers up to a full request.
    for count in [0, 1, 3, 4, 5, 100] {
        assert_eq!(
            many_are_as_singles(&store, &keys[..count]).await,
            expected[..count],
            "{count} keys"
        );
    }
    let absent: Vec<_> = (0..600).map(|n| format!("absent.{n}")).collect();
    assert!(many_are_as_singles(&store, &absent).await.iter().all(Option::is_none));
    let same = vec!["k.0".to_owned(); 700];
    assert_eq!(many_are_as_singles(&store, &same).await, vec![expected[0].clone(); 700]);
}

// Requests.

/// Counts the requests to the server: the subjects of the requests to one store, as another client
/// sees them.
struct Requests(async_nats::Subscriber, async_nats::Client);

impl Requests {
    async fn watch() -> Self {
        let client = NatsServer::shared().client().await;
        let subscriber = client.subscribe("$JS.API.>").await.unwrap();
        // The answer shows that the server has registered the subscription, which a flush would not
        // show.
        client.request("$JS.API.INFO", Bytes::new()).await.unwrap();
        Self(subscriber, client)
    }

    /// Returns the read requests to a store since the last call, and waits for `expected` of them.
    async fn reads_of(&mut self, store: &Store, expected: usize) -> Vec<String> {
        let prefixes = ["$JS.API.DIRECT.GET.", "$JS.API.STREAM.MSG.GET."]
            .map(|prefix| format!("{prefix}KV_{}", store.name()));
        let is_read = |subject: &str| {
            prefixes
                .iter()
                .any(|prefix| subject == prefix || subject.starts_with(&format!("{prefix}.")))
        };
        let end = format!("$JS.API.{}", unique("END"));
        let mut reads = Vec::new();
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await;
            let subject = message.expect("as many as expected").unwrap().subject.to_string();
            if subject == end {
                return reads;
            }
            if is_read(&subject) {
                reads.push(subject);
                // A surplus request usually comes before this.
                if reads.len() == expected {
                    self.1.publish(end.clone(), Bytes::new()).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn leader_reads_ask_the_leader_and_others_any_replica() {
    let connection = connection().await;
    let name = unique("leader");
    let any = connection.store(&name).await.unwrap();
    let config = StoreConfig::new().consistency(ReadConsistency::Leader);
    let leader = connection.store_with_config(&name, config).await.unwrap();
    let keys: Vec<_> = (0..10).map(|n| format!("k.{n}")).collect();
    for key in &keys {
        any.put(key, "x").await.unwrap();
    }
    let mut requests = Requests::watch().await;

    leader.get("k.0").await.unwrap().unwrap();
    leader.entry("never").await.unwrap();
    assert_eq!(leader.get_many(&keys).await.unwrap().iter().flatten().count(), 10);
    let reads = requests.reads_of(&leader, 12).await;
    assert_eq!(reads, vec![format!("$JS.API.STREAM.MSG.GET.KV_{name}"); 12]);

    any.get("k.0").await.unwrap().unwrap();
    let reads = requests.reads_of(&any, 1).await;
    assert_eq!(reads, [format!("$JS.API.DIRECT.GET.KV_{name}.$KV.{name}.k.0")]);
}

#[tokio::test]
async fn get_many_is_one_request_if_the_server_can() {
    let store = connection().await.store(&unique("batch")).await.unwrap();
    let keys: Vec<_> = (0..500).map(|n| format!("k.{n}")).collect();
    for answer in store.put_many(keys.iter().map(|key| (key, "x"))).await {
        answer.unwrap();
    }
    let mut requests = Requests::watch().await;
    assert_eq!(store.get_many(&keys).await.unwrap().iter().flatten().count(), 500);
    let expected = if NatsServer::shared().is_at_least(2, 11) { 1 } else { 500 };
    let reads = requests.reads_of(&store, expected).await;
    assert_eq!(reads.len(), expected, "{:?}", &reads[..1]);
}
