//! An operator purges the stream of a bucket. No message notifies a watch, so the watch compares
//! the figures of the stream, and ends as a cursor that has expired.

use std::time::Duration;

use async_nats::jetstream;
use shizuku_kv::{KvError, KvUpdate, Store, Watch, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, unique};

use super::next;

/// Returns a bucket with the keys `a`, `b`, `c` and a tombstone of `d`, and its stream.
async fn bucket() -> (String, Store, jetstream::stream::Stream) {
    let server = NatsServer::shared();
    let name = unique("purged");
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    for key in ["a", "b", "c", "d"] {
        store.put(key, "value").await.unwrap();
    }
    store.delete("d").await.unwrap();
    let context = jetstream::new(server.client().await);
    let stream = context.get_stream(format!("KV_{name}")).await.unwrap();
    (name, store, stream)
}

async fn caught_up(store: &Store, scope: WatchScope) -> Watch {
    let mut watch = store.watch(scope).await.unwrap();
    while next(&mut watch).await.unwrap() != KvUpdate::CaughtUp {}
    watch
}

/// Reads a watch until it ends as expired.
async fn expires(watch: Watch) {
    let end = tokio::time::timeout(Duration::from_secs(50), async {
        loop {
            if let Err(error) = watch.next().await.expect("an error before the end") {
                return error;
            }
        }
    });
    let error = end.await.expect("the watch notices the purge");
    assert!(matches!(error, KvError::CursorExpired { .. }), "{error:?}");
}

/// The last delivered entry is a deletion, whose removal would be no loss.
#[tokio::test]
async fn a_whole_purge_ends_an_idle_watch() {
    for scope in [WatchScope::All, WatchScope::prefix("a")] {
        let (_, store, stream) = bucket().await;
        let watch = caught_up(&store, scope).await;
        stream.purge().await.unwrap();
        expires(watch).await;
    }
}

/// The watch has delivered nothing itself.
#[tokio::test]
async fn a_whole_purge_ends_a_resumed_watch() {
    let (_, store, stream) = bucket().await;
    let cursor = caught_up(&store, WatchScope::All).await.cursor().unwrap();
    let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    stream.purge().await.unwrap();
    expires(watch).await;
}

/// The last delivered entry still exists.
#[tokio::test]
async fn a_purge_of_older_keys_ends_an_idle_watch() {
    let (name, store, stream) = bucket().await;
    store.put("last", "value").await.unwrap();
    let watches =
        [caught_up(&store, WatchScope::All).await, caught_up(&store, WatchScope::All).await];
    for key in ["a", "b"] {
        stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
    }
    for watch in watches {
        expires(watch).await;
    }
}

#[tokio::test]
async fn a_purge_that_keeps_the_last_message_ends_a_watch() {
    let (_, store, stream) = bucket().await;
    store.put("last", "value").await.unwrap();
    let watch = caught_up(&store, WatchScope::All).await;
    stream.purge().keep(1).await.unwrap();
    expires(watch).await;
    let (_, store, stream) = bucket().await;
    let last = store.put("last", "value").await.unwrap();
    let watch = caught_up(&store, WatchScope::All).await;
    stream.purge().sequence(last.as_u64().unwrap()).await.unwrap();
    expires(watch).await;
}

/// The purge follows the marker at once, before any idle heartbeat. The last key of the prefix
/// still exists.
#[tokio::test]
async fn a_purge_within_a_prefix_ends_a_watch_of_it() {
    for is_single in [true, false] {
        let (name, store, stream) = bucket().await;
        let items = (0..50).map(|number| (format!("p.{number}"), "value"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
        let watch = caught_up(&store, WatchScope::prefix("p.")).await;
        if is_single {
            stream.purge().filter(format!("$KV.{name}.p.3")).await.unwrap();
        } else {
            // The messages of `bucket` and half of the prefix.
            stream.purge().sequence(30).await.unwrap();
        }
        expires(watch).await;
    }
}

/// One key of the prefix is its last as well.
#[tokio::test]
async fn a_purge_of_a_single_key_ends_a_watch_of_it() {
    let (name, store, stream) = bucket().await;
    let watch = caught_up(&store, WatchScope::key("b").unwrap()).await;
    stream.purge().filter(format!("$KV.{name}.b")).await.unwrap();
    expires(watch).await;
}

/// A watch that never becomes idle compares too.
#[tokio::test]
async fn a_purge_ends_a_busy_watch() {
    let (name, store, stream) = bucket().await;
    let watch = caught_up(&store, WatchScope::All).await;
    for key in ["a", "b"] {
        stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
    }
    let busy = async {
        loop {
            store.put("c", "again").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = expires(watch) => {}
        () = busy => {}
    }
}

/// The purge happens while the watch is cut off, and other keys are written before it is back.
#[tokio::test]
async fn a_purge_during_an_outage_ends_a_watch() {
    for is_whole in [true, false] {
        let server = NatsServer::shared();
        let (name, around, stream) = bucket().await;
        let proxy = TcpProxy::start(server.port()).await;
        let store = connect(&proxy.url()).await.unwrap().store(&name).await.unwrap();
        around.put("last", "value").await.unwrap();
        let watch = caught_up(&store, WatchScope::All).await;
        proxy.refuse(true);
        proxy.cut();
        if is_whole {
            stream.purge().await.unwrap();
        } else {
            for key in ["a", "b"] {
                stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
            }
        }
        around.put("last", "again").await.unwrap();
        proxy.refuse(false);
        expires(watch).await;
    }
}

/// Another client cleans up tombstones (`PurgeDeletes`). The watch has delivered them, and resumes.
#[tokio::test]
async fn a_purge_of_tombstones_does_not_end_a_watch() {
    let (name, store, stream) = bucket().await;
    let mut watch = caught_up(&store, WatchScope::All).await;
    store.delete("c").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "c");
    for key in ["c", "d"] {
        stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
    }
    let idle = tokio::time::timeout(Duration::from_secs(35), watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    store.put("e", "value").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "e");
}

/// The purged key was delivered before, and the rest of the state is delivered.
#[tokio::test]
async fn a_purge_while_the_state_is_read_ends_a_watch() {
    for scope in [WatchScope::All, WatchScope::prefix("key.")] {
        let (name, store, stream) = bucket().await;
        let items = (0..9_000).map(|number| (format!("key.{number}"), "value"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
        let mut watch = store.watch(scope).await.unwrap();
        let first = next(&mut watch).await.unwrap().into_entry().unwrap().key;
        for key in [first.as_str(), "key.8999"] {
            stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
        }
        expires(watch).await;
    }
}

/// An operator empties the stream with a maximum age, which leaves no markers.
#[tokio::test]
async fn an_age_that_empties_the_stream_ends_a_watch() {
    let server = NatsServer::shared();
    let (name, store, mut stream) = bucket().await;
    let watch = caught_up(&store, WatchScope::All).await;
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_age = Duration::from_secs(1);
    config.duplicate_window = Duration::from_secs(1);
    jetstream::new(server.client().await).update_stream(config).await.unwrap();
    expires(watch).await;
    assert!(store.get("a").await.unwrap().is_none(), "{name}");
}

/// As many keys have left as the watch has delivered tombstones, and the tombstones still exist.
#[tokio::test]
async fn a_purge_of_as_many_keys_as_tombstones_ends_a_watch() {
    let (name, store, stream) = bucket().await;
    let watch = caught_up(&store, WatchScope::All).await;
    stream.purge().filter(format!("$KV.{name}.a")).await.unwrap();
    expires(watch).await;
}
