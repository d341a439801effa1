//! Exact keys are read by name. The cost depends on them, however many other keys the store has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use shizuku_kv::{Connection, KvUpdate, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, PATIENCE, unique};

use super::next;

/// The creations of consumers, as another client sees them.
pub(super) struct Creations(async_nats::Subscriber, async_nats::Client);

impl Creations {
    pub(super) async fn follow(server: &NatsServer) -> Self {
        let client = server.client().await;
        let subscriber = client.subscribe("$JS.API.>").await.unwrap();
        // The answer shows that the server has registered the subscription, which a flush would not
        // show.
        client.request("$JS.API.INFO", Bytes::new()).await.unwrap();
        Self(subscriber, client)
    }

    /// Returns the delivery policies of the consumers that were created for a store since the last
    /// call.
    pub(super) async fn policies(&mut self, store: &Store) -> Vec<String> {
        let prefix = format!("$JS.API.CONSUMER.CREATE.KV_{}.", store.name());
        let end = format!("$JS.API.{}", unique("END"));
        self.1.publish(end.clone(), Bytes::new()).await.unwrap();
        let mut policies = Vec::new();
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await;
            let message = message.expect("the end").unwrap();
            if *message.subject == end {
                return policies;
            }
            if message.subject.starts_with(&prefix) {
                let request: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
                policies.push(request["config"]["deliver_policy"].as_str().unwrap().to_owned());
            }
        }
    }
}

async fn opened(history: u8) -> Store {
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let config = StoreConfig::new().history(history);
    connection.store_with_config(&unique("named"), config).await.unwrap()
}

/// Writes fifteen keys, of which one is deleted, one purged, and one deleted and written again.
async fn fill(store: &Store) -> BTreeMap<String, String> {
    for number in 0..15 {
        for value in ["old", "new"] {
            store.put(format!("key.{number}"), value).await.unwrap();
        }
    }
    store.delete("key.3").await.unwrap();
    store.purge("key.4").await.unwrap();
    store.delete("key.5").await.unwrap();
    store.put("key.5", "again").await.unwrap();
    let value = |number| if number == 5 { "again" } else { "new" };
    (0..15)
        .filter(|number| !matches!(number, 3 | 4))
        .map(|number| (format!("key.{number}"), value(number).to_owned()))
        .collect()
}

async fn listed(store: &Store, scope: WatchScope) -> BTreeMap<String, String> {
    let entries = store.scan(scope.clone()).try_collect().await.unwrap();
    let keys = store.keys(scope).try_collect().await.unwrap();
    assert_eq!(entries.len(), keys.len());
    let values = entries
        .iter()
        .map(|entry| (entry.key.to_string(), String::from_utf8_lossy(&entry.value).into()));
    let values: BTreeMap<_, _> = values.collect();
    assert_eq!(values.len(), entries.len(), "a key came twice");
    assert_eq!(
        values.keys().cloned().collect::<BTreeSet<_>>(),
        keys.iter().map(ToString::to_string).collect()
    );
    values
}

#[tokio::test]
async fn exact_keys_are_listed_without_a_consumer() {
    for history in [1, 5] {
        let store = opened(history).await;
        let live = fill(&store).await;
        let mut creations = Creations::follow(NatsServer::shared()).await;
        // More than one batch, with duplicates, and keys that were never written.
        let names = (0..1_500).map(|number| format!("key.{}", number % 1_200));
        assert_eq!(listed(&store, WatchScope::keys(names).unwrap()).await, live);
        let few = WatchScope::keys(["key.3", "key.1", "absent", "key.1"]).unwrap();
        assert_eq!(listed(&store, few).await.into_keys().collect::<Vec<_>>(), ["key.1"]);
        for (key, number) in [("key.5", 1), ("key.3", 0), ("key.4", 0), ("absent", 0)] {
            assert_eq!(listed(&store, WatchScope::key(key).unwrap()).await.len(), number, "{key}");
        }
        let none = WatchScope::keys(Vec::<String>::new()).unwrap();
        assert!(listed(&store, none).await.is_empty());
        assert!(creations.policies(&store).await.is_empty());
    }
}

/// An answer of many bytes comes in several parts.
#[tokio::test]
async fn exact_keys_with_large_values_are_listed() {
    let store = opened(1).await;
    let value = vec![7_u8; 700_000];
    let names: Vec<_> = (0..40).map(|number| format!("key.{number}")).collect();
    for name in &names {
        store.put(name, value.clone()).await.unwrap();
    }
    let scan = store.scan(WatchScope::keys(&names).unwrap()).try_collect().await.unwrap();
    let found: BTreeSet<_> = scan.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!((found.len(), scan.len()), (40, 40));
    assert!(scan.iter().all(|entry| entry.value == value));
    let found = store.get_many(&names).await.unwrap();
    assert!(found.iter().flatten().filter(|entry| entry.value == value).count() == 40);
}

/// No item comes, but the listing makes progress: the deadline is that of a page.
#[tokio::test]
async fn listing_that_finds_nothing_for_long_does_not_time_out() {
    let store = opened(1).await.with_deadline(Duration::from_secs(4));
    let absent = (0..60_000).map(|number| format!("absent.{number}"));
    let keys = store.keys(WatchScope::keys(absent).unwrap()).try_collect().await.unwrap();
    assert!(keys.is_empty());
}

/// A server reads the end of the stream and the keys of a batch one after the other.
#[tokio::test]
async fn rewritten_keys_are_found() {
    let store = opened(1).await;
    let names: Vec<_> = (0..32).map(|number| format!("key.{number}")).collect();
    let write = async || {
        let items = names.iter().map(|name| (name.as_str(), "value"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
    };
    write().await;
    let writes = async {
        loop {
            write().await;
        }
    };
    let other =
        connect(&NatsServer::shared().url()).await.unwrap().store(store.name()).await.unwrap();
    let reads = async {
        for round in 0..400 {
            let found = other.get_many(&names).await.unwrap();
            assert_eq!(found.iter().flatten().count(), names.len(), "round {round}");
            let scan = other.scan(WatchScope::keys(&names).unwrap());
            assert_eq!(scan.try_collect().await.unwrap().len(), names.len(), "round {round}");
        }
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
}

/// A server takes long to find the newest messages of several subjects among many.
#[tokio::test]
async fn watch_of_keys_reads_its_state_by_name() {
    for history in [1, 5] {
        let store = opened(history).await;
        let live = fill(&store).await;
        let mut creations = Creations::follow(NatsServer::shared()).await;
        let names = (0..20).map(|number| format!("key.{number}"));
        let mut watch = store.watch(WatchScope::keys(names).unwrap()).await.unwrap();
        let (mut state, mut versions, mut cursors) = (BTreeMap::new(), Vec::new(), Vec::new());
        loop {
            let update = next(&mut watch).await.unwrap();
            cursors.push(watch.cursor().unwrap());
            let Some(entry) = update.into_entry() else { break };
            versions.push(entry.version.as_u64());
            state.insert(entry.key.to_string(), (!entry.is_tombstone()).then_some(entry.value));
        }
        // Tombstones are a part of the state.
        assert_eq!(state.len(), 15);
        let values = state.into_iter().filter_map(|(key, value)| {
            value.map(|value| (key, String::from_utf8_lossy(&value).into_owned()))
        });
        assert_eq!(values.collect::<BTreeMap<_, _>>(), live);
        assert!(versions.is_sorted(), "a cursor has everything before its entry");
        assert_eq!(creations.policies(&store).await, ["by_start_sequence"]);
        let late = store.put("key.7", "late").await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().version, late);
        // Each cursor resumes behind its entry.
        for (number, cursor) in cursors.into_iter().enumerate() {
            let scope = WatchScope::keys((0..20).map(|number| format!("key.{number}"))).unwrap();
            let mut resumed = store.watch_from(scope, cursor).await.unwrap();
            let mut rest = BTreeSet::new();
            while let Some(entry) = next(&mut resumed).await.unwrap().into_entry() {
                rest.insert(entry.key.to_string());
            }
            assert!(rest.contains("key.7"));
            if history == 1 {
                assert!(rest.len() <= 15 - number.min(14), "{number}: {rest:?}");
            }
        }
    }
}

/// The state is that of the moment at which the watch began, or newer, and the tail has no gap.
#[tokio::test]
async fn watch_of_keys_misses_no_write_while_it_opens() {
    for history in [1, 5] {
        let store = opened(history).await;
        let names: Vec<_> = (0..24).map(|number| format!("key.{number}")).collect();
        let other =
            connect(&NatsServer::shared().url()).await.unwrap().store(store.name()).await.unwrap();
        let write = async |round: usize| {
            for (number, name) in names.iter().enumerate() {
                match (number + round) % 7 {
                    0 => other.delete(name).await.map(drop).unwrap(),
                    1 => other.purge(name).await.map(drop).unwrap(),
                    _ => other.put(name, "value").await.map(drop).unwrap(),
                }
            }
        };
        write(0).await;
        for round in 1..30 {
            let scope = WatchScope::keys(&names).unwrap();
            let floor = store.get_many(&names).await.unwrap();
            let (watch, ()) = tokio::join!(store.watch(scope), write(round));
            let mut watch = watch.unwrap();
            let mut state = BTreeMap::new();
            loop {
                match next(&mut watch).await.unwrap() {
                    KvUpdate::CaughtUp => break,
                    update => {
                        let entry = update.into_entry().unwrap();
                        let before = state.insert(entry.key.to_string(), entry.version.as_u64());
                        assert!(
                            before.is_none_or(|before| before < entry.version.as_u64()),
                            "goes back"
                        );
                    }
                }
            }
            for entry in floor.iter().flatten() {
                let seen = state.get(entry.key.as_str()).copied().flatten();
                assert!(
                    seen >= entry.version.as_u64(),
                    "{} is missing or old at the marker",
                    entry.key
                );
            }
            // All writes arrive.
            let mut newest = BTreeMap::new();
            for name in &names {
                newest.insert(
                    name.clone(),
                    store.entry(name).await.unwrap().unwrap().version.as_u64(),
                );
            }
            while state != newest {
                let entry = next(&mut watch).await.unwrap().into_entry().unwrap();
                let before = state.insert(entry.key.to_string(), entry.version.as_u64());
                assert!(before.is_none_or(|before| before < entry.version.as_u64()), "goes back");
            }
        }
    }
}
