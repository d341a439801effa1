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
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use shizuku_kv::{
    Connection, KvError, KvOperation, KvUpdate, NatsConnectionConfig, ReadConsistency, Store,
    StoreConfig, WatchScope, connect, nats_connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique};

async fn connection() -> Arc<dyn Connection> {
    connect(&NatsServer::shared().url()).await.unwrap()
}

/// Returns true if the server leaves markers for expired values, which times to live of single keys
/// need.
fn has_markers() -> bool {
    NatsServer::shared().is_at_least(2, 11)
}

fn has_batches() -> bool {
    NatsServer::shared().is_at_least(2, 11)
}

// Capabilities.

#[tokio::test]
async fn every_server_has_all_capabilities_except_key_ttl() {
    let capabilities = connection().await.capabilities();
    assert!(capabilities.write && capabilities.compare_and_swap);
    assert!(capabilities.watch && capabilities.watch_resume);
    assert!(capabilities.max_age && capabilities.leader_reads && capabilities.fenced_writes);
    assert!(capabilities.persistent && capabilities.shared);
    assert_eq!(capabilities.max_history, 64);
}

#[tokio::test]
async fn times_to_live_come_with_2_11() {
    let capabilities = connection().await.capabilities();
    assert_eq!(capabilities.key_ttl, has_markers());
    assert_eq!(capabilities.expiry_events, has_markers());
}

#[tokio::test]
async fn the_version_is_the_servers() {
    let server = NatsServer::shared();
    let connection = nats_connect(NatsConnectionConfig::new([server.url()])).await.unwrap();
    assert_eq!(connection.server_version(), server.version());
}

#[tokio::test]
async fn a_store_has_times_to_live_only_where_that_was_configured() {
    let connection = connection().await;
    let plain = connection.store(&unique("plain")).await.unwrap();
    assert!(!plain.capabilities().key_ttl && !plain.capabilities().expiry_events);
    assert!(plain.ttl().is_none());
    let refused = StoreConfig::new().key_ttl(false).history(9);
    let refused = connection.store_with_config(&unique("refused"), refused).await.unwrap();
    assert!(!refused.capabilities().key_ttl && refused.ttl().is_none());

    let name = unique("ttl");
    let configured = connection.store_with_config(&name, StoreConfig::new().key_ttl(true)).await;
    if !has_markers() {
        let Err(KvError::Unsupported { reason, .. }) = &configured else {
            panic!("{configured:?}")
        };
        assert!(
            reason.contains("2.11") && reason.contains(NatsServer::shared().version()),
            "{reason}"
        );
        let stores = connection.list_stores().try_collect().await.unwrap();
        assert!(!stores.contains(&name), "nothing was made");
        return;
    }
    let configured = configured.unwrap();
    assert!(configured.capabilities().key_ttl && configured.capabilities().expiry_events);
    assert_eq!(configured.ttl().unwrap().granularity(), Duration::from_secs(1));
    // The store has them, not the handle.
    let reopened = connection.store(&name).await.unwrap();
    assert!(reopened.capabilities().key_ttl && reopened.ttl().is_some());
}

#[tokio::test]
async fn store_with_maximum_age_delivers_expiry_if_server_can() {
    let config = StoreConfig::new().max_age(Duration::from_secs(1));
    let store = connection().await.store_with_config(&unique("age"), config).await.unwrap();
    assert_eq!(store.capabilities().expiry_events, has_markers());
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp);
    store.put("k", "x").await.unwrap();
    if has_markers() {
        // Reads all the time, because tombstones live no longer than values here.
        let expired = loop {
            let update = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
            if let KvUpdate::Delete(entry) = update.expect("the expiry arrives").unwrap().unwrap() {
                break entry;
            }
        };
        assert_eq!(expired.operation, KvOperation::Expire);
    }
    eventually("the value expires", async || store.get("k").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn store_claims_at_most_capabilities_of_connection() {
    let connection = connection().await;
    let whole = connection.capabilities();
    let mut configs = vec![
        StoreConfig::new(),
        StoreConfig::new().history(64),
        StoreConfig::new().max_age(Duration::from_secs(60)),
        StoreConfig::new().consistency(ReadConsistency::Leader),
    ];
    if whole.key_ttl {
        configs.push(StoreConfig::new().key_ttl(true));
        configs.push(StoreConfig::new().key_ttl(true).max_age(Duration::from_secs(60)));
    }
    for config in configs {
        let store = connection.store_with_config(&unique("most"), config.clone()).await.unwrap();
        let part = store.capabilities();
        assert!(!part.key_ttl || whole.key_ttl, "{config:?}");
        assert!(!part.expiry_events || whole.expiry_events, "{config:?}");
        assert_eq!(part.key_ttl, store.ttl().is_some(), "{config:?}");
        assert_eq!(part.fenced_writes, config.max_age.is_none(), "{config:?}");
        assert_eq!(part.fenced_writes, store.fenced().is_some(), "{config:?}");
        let rest = {
            let mut rest = part;
            (rest.key_ttl, rest.expiry_events) = (whole.key_ttl, whole.expiry_events);
            rest.fenced_writes = whole.fenced_writes;
            rest
        };
        assert_eq!(rest, whole, "{config:?}");
    }
}

#[tokio::test]
async fn setting_added_later_applies_after_reopening() {
    let connection = connection().await;
    let name = unique("later");
    let before = connection.store(&name).await.unwrap();
    let wanted = StoreConfig::new().key_ttl(true).reconcile();
    let after = connection.store_with_config(&name, wanted).await;
    if !has_markers() {
        assert!(matches!(after, Err(KvError::Unsupported { .. })), "{after:?}");
        return;
    }
    let after = after.unwrap();
    assert!(before.ttl().is_none(), "nothing has asked for the settings since");
    before.refresh().await.unwrap();
    assert!(before.ttl().is_some() && before.capabilities().key_ttl);
    let ttl = after.ttl().expect("it was turned on");
    ttl.put("k", "x", Duration::from_secs(1)).await.unwrap();
    eventually("the value expires", async || before.get("k").await.unwrap().is_none()).await;
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

async fn is_as_singles(config: StoreConfig) {
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

#[tokio::test(flavor = "multi_thread")]
async fn many_gets_are_as_single_ones() {
    is_as_singles(StoreConfig::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gets_are_as_single_ones_from_the_leader() {
    is_as_singles(StoreConfig::new().consistency(ReadConsistency::Leader)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gets_are_as_single_ones_with_a_history() {
    is_as_singles(StoreConfig::new().history(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gets_find_thousands_of_keys_of_any_length() {
    let store = connection().await.store(&unique("long")).await.unwrap();
    // The keys are longer than one request can carry in full portions.
    let keys: Vec<_> = (0..1500).map(|n| format!("{n:04}.{}", "x".repeat(1 + n % 1019))).collect();
    for answer in store.put_many(keys.iter().map(|key| (key, key.clone()))).await {
        answer.unwrap();
    }
    let found = store.get_many(&keys).await.unwrap();
    for (key, entry) in keys.iter().zip(found) {
        assert_eq!(entry.expect("it was written").value, *key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gets_find_more_than_a_connection_buffers() {
    let config = StoreConfig::new().deadline(Duration::from_secs(20));
    let store = connection().await.store_with_config(&unique("large"), config).await.unwrap();
    let value = Bytes::from(vec![7; 100_000]);
    let keys: Vec<_> = (0..200).map(|n| format!("k.{n}")).collect();
    for answer in store.put_many(keys.iter().map(|key| (key, value.clone()))).await {
        answer.unwrap();
    }
    let found = store.get_many(&keys).await.unwrap();
    assert!(found.iter().all(|entry| entry.as_ref().is_some_and(|entry| entry.value == value)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gets_find_values_while_they_are_written() {
    let store = connection().await.store(&unique("moving")).await.unwrap();
    let keys: Vec<_> = (0..300).map(|n| format!("k.{n}")).collect();
    for answer in store.put_many(keys.iter().map(|key| (key, "0"))).await {
        answer.unwrap();
    }
    let writer = tokio::spawn({
        let (store, keys) = (store.clone(), keys.clone());
        async move {
            for round in 1..=20 {
                for answer in store.put_many(keys.iter().map(|key| (key, round.to_string()))).await
                {
                    answer.unwrap();
                }
            }
        }
    });
    let mut newest = vec![0_u64; keys.len()];
    while !writer.is_finished() {
        let found = store.get_many(&keys).await.unwrap();
        for (newest, entry) in newest.iter_mut().zip(found) {
            let sequence = entry.expect("a key that is never deleted").version.as_u64().unwrap();
            assert!(sequence >= *newest, "a version went back");
            *newest = sequence;
        }
    }
    writer.await.unwrap();
    let last = store.get_many(&keys).await.unwrap();
    assert!(last.iter().all(|entry| entry.as_ref().is_some_and(|entry| entry.value == "20")));
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
            let message = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await;
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
async fn leader_reads_see_every_write_of_their_own() {
    let config = StoreConfig::new().consistency(ReadConsistency::Leader).history(3);
    let store = connection().await.store_with_config(&unique("own"), config).await.unwrap();
    for round in 0..100 {
        let version = store.put("k", round.to_string()).await.unwrap();
        assert_eq!(store.get("k").await.unwrap().unwrap().version, version);
        let many = store.get_many(["k", "a", "b", "c", "k"]).await.unwrap();
        assert!(many[0].as_ref().is_some_and(|entry| entry.version == version));
        assert_eq!(many[0], many[4]);
    }
    let deleted = store.delete("k").await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), None);
    assert_eq!(store.entry("k").await.unwrap().unwrap().version, deleted);
}

#[tokio::test]
async fn many_gets_are_one_request_where_the_server_takes_that() {
    let store = connection().await.store(&unique("batch")).await.unwrap();
    let keys: Vec<_> = (0..500).map(|n| format!("k.{n}")).collect();
    for answer in store.put_many(keys.iter().map(|key| (key, "x"))).await {
        answer.unwrap();
    }
    let mut requests = Requests::watch().await;
    assert_eq!(store.get_many(&keys).await.unwrap().iter().flatten().count(), 500);
    let expected = if has_batches() { 1 } else { 500 };
    let reads = requests.reads_of(&store, expected).await;
    assert_eq!(reads.len(), expected, "{:?}", &reads[..1]);
}
