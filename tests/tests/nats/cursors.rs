//! Cursors that cannot be honoured on NATS end in `CursorExpired`, and the others resume without a
//! gap.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

use std::path::Path;
use std::time::Duration;

use shizuku_kv::{
    Connection, KvError, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, PATIENCE, TcpProxy};

async fn next(watch: &mut Watch) -> KvUpdate {
    let next = tokio::time::timeout(PATIENCE, watch.next());
    next.await.expect("an update in time").expect("the watch goes on").unwrap()
}

/// Returns the cursor of a watch that has caught up.
async fn cursor(store: &Store, scope: WatchScope) -> WatchCursor {
    let mut watch = store.watch(scope).await.unwrap();
    while next(&mut watch).await != KvUpdate::CaughtUp {}
    watch.cursor().unwrap()
}

async fn expiry(store: &Store, cursor: WatchCursor) -> String {
    match store.watch_from(WatchScope::All, cursor).await {
        Err(KvError::CursorExpired { reason, .. }) => reason.to_owned(),
        other => panic!("{other:?}"),
    }
}

async fn open(connection: &dyn Connection) -> Store {
    connection.store("b").await.unwrap()
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn compacted_cursor_has_expired() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    store.put("key", "1").await.unwrap();
    let cursor = cursor(&store, WatchScope::All).await;
    store.put("key", "2").await.unwrap();
    // No sequence is missing between the cursor and the first stored entry, so there is no gap.
    let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next(&mut watch).await.into_entry().unwrap().value, "2");
    store.put("key", "3").await.unwrap();
    assert!(expiry(&store, cursor).await.contains("no longer holds"));
}

#[tokio::test]
async fn cursor_of_an_old_key_lives_while_nothing_is_lost() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    store.put("anchor", "1").await.unwrap();
    let cursor = cursor(&store, WatchScope::All).await;
    for n in 0..50 {
        store.put("key", n.to_string()).await.unwrap();
    }
    let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next(&mut watch).await.into_entry().unwrap().value, "49");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
}

#[tokio::test]
async fn cursor_outlives_client_and_server() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    store.put("a", "1").await.unwrap();
    let cursor = cursor(&store, WatchScope::prefix("a")).await.to_bytes();
    store.put("b", "2").await.unwrap();
    connection.shutdown().await.unwrap();
    server.kill();
    server.restart();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    let cursor = WatchCursor::from_bytes(&cursor).unwrap();
    let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next(&mut watch).await.into_entry().unwrap().key, "b");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
}

/// A server comes back without entries that it had acknowledged, and stores other writes at the
/// same sequences.
#[tokio::test]
async fn cursor_beyond_lost_messages_skips_none() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    for n in 0..5 {
        store.put(format!("key.{n}"), "kept").await.unwrap();
    }
    server.kill();
    let kept = tempfile::tempdir().unwrap();
    copy(&server.store_dir(), kept.path());
    server.restart();
    let mut live = store.watch(WatchScope::All).await.unwrap();
    while next(&mut live).await != KvUpdate::CaughtUp {}
    for n in 5..10 {
        store.put(format!("key.{n}"), "lost").await.unwrap();
        next(&mut live).await;
    }
    let cursor = live.cursor().unwrap();
    restore(&mut server, kept.path());
    let other = connect(&server.url()).await.unwrap();
    let other = open(&*other).await;
    assert!(expiry(&other, cursor).await.contains("lost"));
    for n in 5..12 {
        other.put(format!("other.{n}"), "other").await.unwrap();
    }
    assert!(expiry(&other, cursor).await.contains("lost"));
    // The watch that was open all the time ends too.
    ends_as_expired(live).await;
}

/// Writes the entries of a copy of the server's files, and makes the copy.
async fn keep_a_copy(server: &mut NatsServer, to: &Path) {
    let store = open(&*connect(&server.url()).await.unwrap()).await;
    for key in ["hot", "changed", "changed", "other"] {
        store.put(key, "kept").await.unwrap();
    }
    server.kill();
    copy(&server.store_dir(), to);
    server.restart();
}

/// Replaces the files of a server by a copy of earlier ones.
pub(crate) fn restore(server: &mut NatsServer, from: &Path) {
    server.kill();
    std::fs::remove_dir_all(server.store_dir()).unwrap();
    copy(from, &server.store_dir());
    server.restart();
}

/// Returns a watch that has seen an entry that the copy does not have.
async fn watch_beyond_the_copy(url: &str, scope: WatchScope) -> Watch {
    let store = open(&*connect(url).await.unwrap()).await;
    let mut live = store.watch(scope).await.unwrap();
    while next(&mut live).await != KvUpdate::CaughtUp {}
    store.put("changed", "lost").await.unwrap();
    assert_eq!(next(&mut live).await.into_entry().unwrap().value, "lost");
    live
}

async fn ends_as_expired(watch: Watch) -> &'static str {
    let end = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(error) = watch.next().await.unwrap() {
                return error;
            }
        }
    });
    match end.await.expect("the watch ends") {
        KvError::CursorExpired { reason, .. } => reason,
        error => panic!("{error:?}"),
    }
}

async fn ends_as_lost(watch: Watch) {
    let reason = ends_as_expired(watch).await;
    assert!(reason.contains("lost"), "{reason}");
}

/// Writes one key past the old end of the stream, so that no message is at the watch's position any
/// more.
async fn pass_the_old_end(url: &str) {
    let store = connect(url).await.unwrap().store("b").await.unwrap();
    for n in 0..5 {
        store.put("hot", n.to_string()).await.unwrap();
    }
}

/// Neither the end of the stream nor the message at the watch's position shows that the server lost
/// entries.
#[tokio::test]
async fn watch_ends_if_a_restored_server_lost_its_message() {
    for scope in [WatchScope::All, WatchScope::prefix("changed")] {
        let mut server = NatsServer::start();
        let kept = tempfile::tempdir().unwrap();
        keep_a_copy(&mut server, kept.path()).await;
        let proxy = TcpProxy::start(server.port()).await;
        let live = watch_beyond_the_copy(&proxy.url(), scope).await;
        proxy.refuse(true);
        proxy.cut();
        restore(&mut server, kept.path());
        pass_the_old_end(&server.url()).await;
        proxy.refuse(false);
        ends_as_lost(live).await;
    }
}

/// Two servers that share nothing except a copy of the bucket.
#[tokio::test]
async fn watch_ends_if_its_client_fails_over_to_another_copy() {
    let (mut one, mut other) = (NatsServer::start(), NatsServer::start());
    let kept = tempfile::tempdir().unwrap();
    keep_a_copy(&mut one, kept.path()).await;
    restore(&mut other, kept.path());
    let (to_one, to_other) =
        (TcpProxy::start(one.port()).await, TcpProxy::start(other.port()).await);
    to_other.refuse(true);
    let url = format!("{},127.0.0.1:{}", to_one.url(), to_other.port());
    let live = watch_beyond_the_copy(&url, WatchScope::All).await;
    pass_the_old_end(&other.url()).await;
    to_other.refuse(false);
    to_one.refuse(true);
    to_one.cut();
    ends_as_lost(live).await;
}

/// A watch resumes after a restart without losses, even if another client has cleaned up the last
/// tombstone.
#[tokio::test]
async fn watch_resumes_if_a_restarted_server_lost_nothing() {
    let mut server = NatsServer::start();
    let store = open(&*connect(&server.url()).await.unwrap()).await;
    let mut live = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut live).await, KvUpdate::CaughtUp);
    store.put("key", "value").await.unwrap();
    store.delete("key").await.unwrap();
    next(&mut live).await;
    if live.cursor().unwrap().position() < 2 {
        next(&mut live).await;
    }
    let context = async_nats::jetstream::new(server.client().await);
    context.get_stream("KV_b").await.unwrap().purge().filter("$KV.b.key").await.unwrap();
    server.restart();
    let store = open(&*connect(&server.url()).await.unwrap()).await;
    for value in ["again", "and again"] {
        store.put("key", value).await.unwrap();
        assert_eq!(next(&mut live).await.into_entry().unwrap().value, value);
    }
}

/// The server forgets the tombstones of a bucket in which values expire.
#[tokio::test]
async fn cursor_older_than_the_tombstones_has_expired() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let config = StoreConfig::new().max_age(Duration::from_secs(1));
    let store = connection.store_with_config("b", config).await.unwrap();
    store.put("anchor", "1").await.unwrap();
    let cursor = cursor(&store, WatchScope::All).await;
    // Waits until the age has passed by the server's clock. Every later write is newer than the
    // age.
    shizuku_kv_tests::eventually("the first value expires", async || {
        store.get("anchor").await.unwrap().is_none()
    })
    .await;
    store.put("later", "2").await.unwrap();
    let reason = expiry(&store, cursor).await;
    assert!(reason.contains("forgotten") || reason.contains("no longer holds"), "{reason}");
}

async fn stream(server: &NatsServer) -> async_nats::jetstream::stream::Stream {
    async_nats::jetstream::new(server.client().await).get_stream("KV_b").await.unwrap()
}

/// No entry follows the cursor, and no entry before it is left.
#[tokio::test]
async fn cursor_at_end_of_purged_stream_has_expired() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    store.put("a", "1").await.unwrap();
    store.put("b", "1").await.unwrap();
    let all = cursor(&store, WatchScope::All).await;
    let scoped = cursor(&store, WatchScope::prefix("a")).await;
    stream(&server).await.purge().await.unwrap();
    for cursor in [all, scoped] {
        assert!(expiry(&store, cursor).await.contains("no longer holds"));
    }
    // Repeats the check after the server was restarted.
    server.restart();
    assert!(expiry(&store, all).await.contains("no longer holds"));
    // A watch that began after the purge has missed no entry.
    let after = cursor(&store, WatchScope::All).await;
    assert_eq!(after.position(), all.position());
    let mut watch = store.watch_from(WatchScope::All, after).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    store.put("a", "2").await.unwrap();
    assert_eq!(next(&mut watch).await.into_entry().unwrap().value, "2");
    store.put("a", "3").await.unwrap();
    assert!(expiry(&store, all).await.contains("no longer holds"));
}

/// The key of the last message was purged, and another one is left.
#[tokio::test]
async fn cursor_at_purged_last_key_has_expired() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    store.put("a", "1").await.unwrap();
    store.put("b", "1").await.unwrap();
    let before = cursor(&store, WatchScope::All).await;
    stream(&server).await.purge().filter("$KV.b.b").await.unwrap();
    assert!(expiry(&store, before).await.contains("no longer holds"));
    let after = cursor(&store, WatchScope::All).await;
    let mut watch = store.watch_from(WatchScope::All, after).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
}

/// Values reach their age without a marker.
#[tokio::test]
async fn cursor_at_end_of_aged_stream_has_expired() {
    let server = NatsServer::start();
    let context = async_nats::jetstream::new(server.client().await);
    let aging = async_nats::jetstream::kv::Config {
        bucket: "b".to_owned(),
        max_age: Duration::from_secs(4),
        ..Default::default()
    };
    context.create_key_value(aging).await.unwrap();
    let connection = connect(&server.url()).await.unwrap();
    let store = open(&*connection).await;
    let empty = cursor(&store, WatchScope::All).await;
    let mut watch = store.watch_from(WatchScope::All, empty).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    store.put("a", "1").await.unwrap();
    let mut watch = store.watch_from(WatchScope::All, empty).await.unwrap();
    assert_eq!(next(&mut watch).await.into_entry().unwrap().key, "a");
    let before = cursor(&store, WatchScope::All).await;
    shizuku_kv_tests::eventually("the value ages", async || {
        store.get("a").await.unwrap().is_none()
    })
    .await;
    let reason = expiry(&store, before).await;
    assert!(reason.contains("no longer holds"), "{reason}");
}
