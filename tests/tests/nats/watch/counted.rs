//! A watch from a cursor, whose state is proven by a count of the keys behind the cursor.

use std::collections::BTreeSet;

use shizuku_kv::{Connection, KvUpdate, Store, Watch, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, unique};

use super::next;

/// More keys than one request of a consumer, so that the last ones wait on the server.
const KEYS: usize = 12_000;

/// Returns the keys of a watch up to its caught-up marker.
async fn keys(watch: &mut Watch) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    while let Some(entry) = match next(watch).await.unwrap() {
        KvUpdate::CaughtUp => None,
        update => update.into_entry(),
    } {
        keys.insert(entry.key.to_string());
    }
    keys
}

/// Returns a store, and a watch that has many keys behind its cursor: `key.…`, `late` and `last`.
/// The first was delivered.
async fn resumed(name: &str) -> (Store, Watch) {
    let store = connect(&NatsServer::shared().url()).await.unwrap().store(name).await.unwrap();
    store.put("before", "value").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    keys(&mut watch).await;
    let cursor = watch.cursor().unwrap();
    drop(watch);
    let items = (0..KEYS).map(|number| (format!("key.{number:05}"), "value"));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    for key in ["late", "last"] {
        store.put(key, "value").await.unwrap();
    }
    let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
    next(&mut watch).await.unwrap();
    (store, watch)
}

/// The purged keys were delivered, and are no longer counted. Another key has not been delivered,
/// because its value was superseded before its turn.
#[tokio::test]
async fn purge_of_delivered_keys_hides_no_other_key() {
    let name = unique("counted");
    let (store, mut watch) = resumed(&name).await;
    store.put("late", "again").await.unwrap();
    let context = async_nats::jetstream::new(NatsServer::shared().client().await);
    let stream = context.get_stream(format!("KV_{name}")).await.unwrap();
    for number in 0..10 {
        stream.purge().filter(format!("$KV.{name}.key.{number:05}")).await.unwrap();
    }
    let keys = keys(&mut watch).await;
    assert!(keys.contains("late") && keys.contains("last"), "{} keys", keys.len());
}

/// The leader always has a newer message, and each key written meanwhile comes from behind the end
/// that the stream had.
#[tokio::test]
async fn resumed_watch_catches_up_while_others_write() {
    let (store, mut watch) = resumed(&unique("counted")).await;
    let other = connect(&NatsServer::shared().url()).await.unwrap();
    let other = other.store(store.name()).await.unwrap();
    let writes = async {
        loop {
            let hot = (0..20).map(|number| (format!("key.{:05}", KEYS - 20 + number), "again"));
            assert!(other.put_many(hot).await.iter().all(Result::is_ok));
        }
    };
    tokio::select! {
        () = writes => {}
        // The first key was delivered before.
        keys = keys(&mut watch) => assert_eq!(keys.len(), KEYS - 1 + 2),
    }
}
