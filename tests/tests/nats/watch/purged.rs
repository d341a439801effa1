//! An operator purges the stream of a bucket. No message notifies a watch, so the watch compares
//! the figures of the stream, and ends as a cursor that has expired.

use std::time::Duration;

use async_nats::jetstream;
use futures_util::future::join_all;
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
async fn expires(case: &str, watch: Watch) {
    let end = tokio::time::timeout(Duration::from_secs(50), async {
        loop {
            if let Err(error) = watch.next().await.expect("an error before the end") {
                return error;
            }
        }
    });
    let error = end.await.unwrap_or_else(|_| panic!("{case}: the watch does not notice the purge"));
    assert!(matches!(error, KvError::CursorExpired { .. }), "{case}: {error:?}");
}

/// Messages that an operator purges from a bucket.
#[derive(Clone, Copy, Debug)]
enum Purge {
    Whole,
    Keys(&'static [&'static str]),
    /// All but this number of the newest messages.
    Keep(u64),
    /// The messages before this sequence number.
    Before(u64),
}

async fn purge(name: &str, stream: &jetstream::stream::Stream, purge: Purge) {
    match purge {
        Purge::Whole => drop(stream.purge().await.unwrap()),
        Purge::Keys(keys) => {
            for key in keys {
                stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
            }
        }
        Purge::Keep(count) => drop(stream.purge().keep(count).await.unwrap()),
        Purge::Before(sequence) => drop(stream.purge().sequence(sequence).await.unwrap()),
    }
}

/// The messages of [`bucket`] are followed by 50 of the prefix `p.`, and by the key `last` in some
/// cases.
#[tokio::test]
async fn purge_ends_an_idle_watch() {
    let prefix = || WatchScope::prefix("p.");
    let cases = [
        // The last delivered entry is a deletion, whose removal would be no loss.
        (WatchScope::All, 0, false, Purge::Whole),
        (WatchScope::prefix("a"), 0, false, Purge::Whole),
        // The last delivered entry still exists.
        (WatchScope::All, 0, true, Purge::Keys(&["a", "b"])),
        (WatchScope::All, 0, true, Purge::Keep(1)),
        (WatchScope::All, 0, true, Purge::Before(6)),
        // The last key of the prefix still exists.
        (prefix(), 50, false, Purge::Keys(&["p.3"])),
        (prefix(), 50, false, Purge::Before(30)),
        // The only key of the scope is its last as well.
        (WatchScope::key("b").unwrap(), 0, false, Purge::Keys(&["b"])),
        // As many keys leave as the watch has delivered tombstones, which still exist.
        (WatchScope::All, 0, false, Purge::Keys(&["a"])),
    ];
    let ends = cases.map(async |(scope, more, has_last, purged)| {
        let case = format!("{scope:?}, {purged:?}");
        let (name, store, stream) = bucket().await;
        let items = (0..more).map(|number| (format!("p.{number}"), "value"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
        if has_last {
            store.put("last", "value").await.unwrap();
        }
        let watch = caught_up(&store, scope).await;
        purge(&name, &stream, purged).await;
        expires(&case, watch).await;
    });
    join_all(ends).await;
}

/// The watch has delivered nothing itself.
#[tokio::test]
async fn purge_ends_a_resumed_watch() {
    let (_, store, stream) = bucket().await;
    let cursor = caught_up(&store, WatchScope::All).await.cursor().unwrap();
    let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    stream.purge().await.unwrap();
    expires("resumed", watch).await;
}

/// A watch that never becomes idle compares too.
#[tokio::test]
async fn purge_ends_a_busy_watch() {
    let (name, store, stream) = bucket().await;
    let watch = caught_up(&store, WatchScope::All).await;
    purge(&name, &stream, Purge::Keys(&["a", "b"])).await;
    let busy = async {
        loop {
            store.put("c", "again").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = expires("busy", watch) => {}
        () = busy => {}
    }
}

/// The purge happens while the watch is cut off, and other keys are written before it is back.
#[tokio::test]
async fn purge_during_an_outage_ends_a_watch() {
    for purged in [Purge::Whole, Purge::Keys(&["a", "b"])] {
        let server = NatsServer::shared();
        let (name, direct, stream) = bucket().await;
        let proxy = TcpProxy::start(server.port()).await;
        let store = connect(&proxy.url()).await.unwrap().store(&name).await.unwrap();
        direct.put("last", "value").await.unwrap();
        let watch = caught_up(&store, WatchScope::All).await;
        proxy.refuse(true);
        proxy.cut();
        purge(&name, &stream, purged).await;
        direct.put("last", "again").await.unwrap();
        proxy.refuse(false);
        expires(&format!("{purged:?}"), watch).await;
    }
}

/// Another client cleans up tombstones (`PurgeDeletes`). The watch has delivered them, and resumes.
#[tokio::test]
async fn purge_of_tombstones_does_not_end_a_watch() {
    let (name, store, stream) = bucket().await;
    let mut watch = caught_up(&store, WatchScope::All).await;
    store.delete("c").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "c");
    purge(&name, &stream, Purge::Keys(&["c", "d"])).await;
    let idle = tokio::time::timeout(Duration::from_secs(35), watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    store.put("e", "value").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "e");
}

/// The purged key was delivered before, and the rest of the state is delivered.
#[tokio::test]
async fn purge_while_the_state_is_read_ends_a_watch() {
    for scope in [WatchScope::All, WatchScope::prefix("key.")] {
        let (name, store, stream) = bucket().await;
        let items = (0..9_000).map(|number| (format!("key.{number}"), "value"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
        let case = format!("{scope:?}");
        let mut watch = store.watch(scope).await.unwrap();
        let first = next(&mut watch).await.unwrap().into_entry().unwrap().key;
        for key in [first.as_str(), "key.8999"] {
            stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
        }
        expires(&case, watch).await;
    }
}

/// An operator empties the stream with a maximum age, which leaves no markers.
#[tokio::test]
async fn age_that_empties_the_stream_ends_a_watch() {
    let server = NatsServer::shared();
    let (name, store, mut stream) = bucket().await;
    let watch = caught_up(&store, WatchScope::All).await;
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_age = Duration::from_secs(1);
    config.duplicate_window = Duration::from_secs(1);
    jetstream::new(server.client().await).update_stream(config).await.unwrap();
    expires("age", watch).await;
    assert!(store.get("a").await.unwrap().is_none(), "{name}");
}
