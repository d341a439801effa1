//! Mirrors of a bucket answer its direct gets from their own content: a part, old values, or no
//! value.

use async_nats::jetstream::stream::{Config, Source};
use shizuku_kv::{KvUpdate, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use super::next;

/// Number of reads of one key. About half of them go to the mirror.
const READS: usize = 60;

/// Returns a bucket with history 2, and its mirror that has only some of the keys.
async fn mirrored(filter: Option<&str>) -> (Store, async_nats::jetstream::stream::Stream) {
    let server = NatsServer::shared();
    let name = unique("mirrored");
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store_with_config(&name, StoreConfig::new().history(2)).await.unwrap();
    let context = async_nats::jetstream::new(server.client().await);
    let mirror = Source {
        name: format!("KV_{name}"),
        filter_subject: filter.map(|filter| format!("$KV.{name}.{filter}")),
        ..Default::default()
    };
    let config = Config {
        name: unique("mirror"),
        mirror: Some(mirror),
        mirror_direct: true,
        allow_direct: true,
        max_messages_per_subject: 2,
        ..Default::default()
    };
    let mirror = context.create_stream(config).await.unwrap();
    (store, mirror)
}

async fn holds(mirror: &async_nats::jetstream::stream::Stream, messages: u64) {
    eventually("the mirror has caught up", async || {
        mirror.get_info().await.unwrap().state.messages == messages
    })
    .await;
}

#[tokio::test]
async fn filtered_mirror_hides_no_live_key() {
    let (store, mirror) = mirrored(Some("a.>")).await;
    for key in ["a.1", "a.2", "b.1", "b.2", "b.3", "b.4"] {
        store.put(key, key).await.unwrap();
    }
    holds(&mirror, 2).await;
    for _ in 0..READS {
        assert_eq!(store.get("b.1").await.unwrap().unwrap().value, "b.1");
        assert!(store.get("none").await.unwrap().is_none());
        // One batch that the mirror has in part, and one that it lacks completely.
        for keys in [["a.1", "a.2", "b.1", "b.2"], ["b.1", "b.2", "b.3", "b.4"]] {
            let found = store.get_many(keys).await.unwrap();
            let values: Vec<_> = found.iter().flatten().map(|entry| entry.value.clone()).collect();
            assert_eq!(values, keys);
            let scan = store.scan(WatchScope::keys(keys).unwrap()).try_collect().await.unwrap();
            assert_eq!(scan.len(), keys.len());
            let mut watch = store.watch(WatchScope::keys(keys).unwrap()).await.unwrap();
            for _ in keys {
                assert!(next(&mut watch).await.unwrap().entry().is_some());
            }
            assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
        }
    }
}

#[tokio::test]
async fn mirror_that_is_behind_answers_no_read() {
    let (store, mirror) = mirrored(None).await;
    let keys = ["a", "b", "c", "d"];
    for value in ["old", "new"] {
        for key in keys {
            store.put(key, value).await.unwrap();
        }
    }
    holds(&mirror, 8).await;
    // Simulates that the last messages have not arrived yet.
    for sequence in 5..=8 {
        mirror.delete_message(sequence).await.unwrap();
    }
    holds(&mirror, 4).await;
    for _ in 0..READS {
        assert_eq!(store.get("a").await.unwrap().unwrap().value, "new");
        let found = store.get_many(keys).await.unwrap();
        assert!(found.iter().flatten().all(|entry| entry.value == "new"));
        assert_eq!(found.iter().flatten().count(), keys.len());
        let scan = store.scan(WatchScope::keys(keys).unwrap()).try_collect().await.unwrap();
        assert!(scan.iter().all(|entry| entry.value == "new"));
        assert_eq!(scan.len(), keys.len());
        let mut watch = store.watch(WatchScope::keys(keys).unwrap()).await.unwrap();
        for _ in keys {
            assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().value, "new");
        }
    }
}

/// The mirror may be behind by any amount.
#[tokio::test]
async fn put_is_read_back_beside_a_mirror() {
    let (store, _mirror) = mirrored(None).await;
    for number in 0..1_000 {
        let version = store.put("key", number.to_string()).await.unwrap();
        assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    }
}
