//! A listing whose consumer is lost resumes after its returned items. The server deletes a consumer
//! whose reader pauses for a minute.

use std::collections::BTreeSet;

use shizuku_kv::{Connection, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually, unique};

use super::by_name::Creations;
use crate::cursors;

/// Number of keys, more than one request to a consumer, so that many wait on the server.
const KEYS: usize = 20_000;

async fn filled(server: &NatsServer, history: u8) -> Store {
    let config = StoreConfig::new().history(history);
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store_with_config(&unique("resumed"), config).await.unwrap();
    put(&store, 0..KEYS).await;
    store
}

fn name(number: usize) -> String {
    format!("key.{number:05}")
}

async fn put(store: &Store, numbers: impl IntoIterator<Item = usize>) {
    let items = numbers.into_iter().map(|number| (name(number), "value"));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
}

/// Deletes every consumer, as an operator can, or the server after a minute without a request.
async fn delete_consumers(server: &NatsServer, store: &Store) {
    let context = async_nats::jetstream::new(server.client().await);
    let stream = context.get_stream(format!("KV_{}", store.name())).await.unwrap();
    for consumer in server.consumers(store.name()).await {
        stream.delete_consumer(&consumer).await.unwrap();
    }
}

#[tokio::test]
async fn listing_without_its_consumer_resumes() {
    let server = NatsServer::shared();
    for history in [1, 5] {
        let store = filled(server, history).await;
        store.delete(name(KEYS - 1)).await.unwrap();
        let mut creations = Creations::follow(server).await;
        let scan = store.scan(WatchScope::All);
        let keys = store.keys(WatchScope::prefix("key."));
        let (mut found, mut listed) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            found.push(scan.next().await.unwrap().unwrap().key.to_string());
            listed.push(keys.next().await.unwrap().unwrap().to_string());
        }
        delete_consumers(server, &store).await;
        // Changes returned keys, arrived keys, and keys that wait on the server.
        put(&store, (0..KEYS).step_by(1_000)).await;
        let gone: BTreeSet<_> = (500..KEYS).step_by(1_000).map(name).collect();
        for (number, name) in gone.iter().enumerate() {
            if number % 2 == 0 { store.delete(name).await } else { store.purge(name).await }
                .unwrap();
        }
        store.put("new", "value").await.unwrap();
        let rest = scan.try_collect().await.unwrap();
        assert!(rest.iter().all(|entry| !entry.is_tombstone()));
        found.extend(rest.into_iter().map(|entry| entry.key.to_string()));
        listed.extend(keys.try_collect().await.unwrap().into_iter().map(|key| key.to_string()));
        for keys in [found, listed] {
            let distinct: BTreeSet<_> = keys.iter().cloned().collect();
            assert_eq!(distinct.len(), keys.len(), "history {history}: a key came twice");
            let missing: Vec<_> = (0..KEYS - 1)
                .map(name)
                .filter(|name| !distinct.contains(name) && !gone.contains(name))
                .collect();
            assert!(missing.is_empty(), "history {history}: {} are missing", missing.len());
            assert!(!distinct.contains(&name(KEYS - 1)), "an older value of a deleted key");
        }
        // Neither of them read its returned items once more.
        let again = if history == 1 { vec!["by_start_sequence"; 2] } else { vec![] };
        let expected = [vec!["last_per_subject"; 2], again].concat();
        assert_eq!(creations.policies(&store).await, expected, "history {history}");
    }
}

/// A connection that breaks takes the consumer with it.
#[tokio::test]
async fn listing_over_a_broken_connection_resumes() {
    let server = NatsServer::shared();
    let proxy = TcpProxy::start(server.port()).await;
    let name_of = filled(server, 1).await;
    let store = connect(&proxy.url()).await.unwrap().store(name_of.name()).await.unwrap();
    let mut creations = Creations::follow(server).await;
    let scan = store.scan(WatchScope::All);
    let mut found = vec![scan.next().await.unwrap().unwrap().key];
    proxy.cut();
    found.extend(scan.try_collect().await.unwrap().into_iter().map(|entry| entry.key));
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), KEYS);
    assert_eq!(found.len(), KEYS);
    // If everything had arrived before the cut, no second consumer is needed.
    let policies = creations.policies(&store).await;
    assert_eq!(policies[0], "last_per_subject");
    assert!(policies[1..].iter().all(|policy| *policy == "by_start_sequence"), "{policies:?}");
}

/// A stream that lost its end takes new messages at sequences that the listing has passed.
#[tokio::test]
async fn listing_of_a_stream_that_was_set_back_starts_over() {
    let mut server = NatsServer::start();
    let store = filled(&server, 1).await;
    // A copy of the files, to which the server returns below.
    server.kill();
    let copy = tempfile::tempdir().unwrap();
    cursors::copy(&server.store_dir(), copy.path());
    server.restart();
    eventually("the store is back", async || store.get("none").await.is_ok()).await;
    put(&store, KEYS..2 * KEYS).await;
    let scan = store.scan(WatchScope::All);
    let mut found = BTreeSet::new();
    while found.len() < KEYS + 1 {
        assert!(found.insert(scan.next().await.unwrap().unwrap().key.to_string()));
    }
    cursors::restore(&mut server, copy.path());
    let others: Vec<_> =
        (0..2 * KEYS).map(|number| (format!("other.{number:05}"), "value")).collect();
    let fresh = connect(&server.url()).await.unwrap().store(store.name()).await.unwrap();
    assert!(fresh.put_many(others.clone()).await.iter().all(Result::is_ok));
    let rest = scan.try_collect().await.unwrap();
    let listed: BTreeSet<_> = rest.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(listed.len(), rest.len());
    let missing = others.iter().filter(|(key, _)| !listed.contains(key)).count();
    assert_eq!(missing, 0);
}

/// Returns the number of messages that the server has sent to the connection named `reader`.
async fn sent_to_reader(server: &NatsServer) -> u64 {
    let page = server.page("/connz").await.unwrap();
    let connections = page["connections"].as_array().unwrap();
    let reader = connections.iter().find(|connection| connection["name"] == "reader").unwrap();
    reader["out_msgs"].as_u64().unwrap()
}

/// Delivered messages are not delivered again, and few others are sent.
#[tokio::test]
async fn listing_that_lost_its_consumer_halfway_is_not_repeated() {
    const KEYS: usize = 2_000;
    let limits = "limits: { max_request_batch: 100 }";
    let server = NatsServer::builder().jetstream_config(limits).start();
    for history in [1, 5] {
        let config = StoreConfig::new().history(history);
        let connection = connect(&server.url()).await.unwrap();
        let admin = connection.store_with_config(&unique("halfway"), config).await.unwrap();
        for _ in 0..2 {
            put(&admin, 0..KEYS).await;
        }
        let reader = connect(&format!("{}?name=reader", server.url())).await.unwrap();
        let store = reader.store(admin.name()).await.unwrap();
        let before = sent_to_reader(&server).await;
        let scan = store.scan(WatchScope::All);
        let mut found = BTreeSet::new();
        for _ in 0..KEYS / 2 {
            found.insert(scan.next().await.unwrap().unwrap().key);
        }
        delete_consumers(&server, &admin).await;
        found.extend(scan.try_collect().await.unwrap().into_iter().map(|entry| entry.key));
        assert_eq!(found.len(), KEYS);
        let sent = sent_to_reader(&server).await - before;
        assert!(sent < KEYS as u64 * 11 / 10, "history {history}: {sent} messages");
        reader.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn history_that_lost_its_consumer_halfway_is_not_repeated() {
    const VERSIONS: usize = 60;
    let limits = "limits: { max_request_batch: 10 }";
    let server = NatsServer::builder().jetstream_config(limits).start();
    let config = StoreConfig::new().history(64);
    let connection = connect(&server.url()).await.unwrap();
    let admin = connection.store_with_config("b", config).await.unwrap();
    for number in 0..VERSIONS {
        admin.put("key", number.to_string()).await.unwrap();
    }
    let reader = connect(&format!("{}?name=reader", server.url())).await.unwrap();
    let store = reader.store("b").await.unwrap();
    let before = sent_to_reader(&server).await;
    let history = store.history("key").unwrap();
    let mut found = Vec::new();
    for _ in 0..VERSIONS / 2 {
        found.push(history.next().await.unwrap().unwrap().value);
    }
    delete_consumers(&server, &admin).await;
    found.extend(history.try_collect().await.unwrap().into_iter().map(|entry| entry.value));
    let expected: Vec<_> = (0..VERSIONS).map(|number| number.to_string()).collect();
    assert_eq!(found, expected);
    // Less than the first half once more: the others are statuses and answers.
    let sent = sent_to_reader(&server).await - before;
    assert!(sent < (VERSIONS + VERSIONS / 2) as u64, "{sent} messages");
}
