//! A watch that reads from a replica that is behind. Entries that the replica does not have yet
//! must not be treated as absent.

use std::time::{Duration, Instant};

use shizuku_kv::{
    Connection, KvError, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::NatsCluster;

/// Number of writes that a returning server does not receive at once.
const MANY: usize = 20_000;

/// Time for which a returning server is observed. It catches up within this time.
const LENGTH: Duration = Duration::from_secs(4);

/// Returns a bucket of which one replica has just come back and has missed many writes, the version
/// of the last write, and a cursor after it.
async fn behind(cluster: &NatsCluster) -> (Store, u64, WatchCursor) {
    let connection = connect(&cluster.url()).await.unwrap();
    let store = connection.store_with_config("b", StoreConfig::new().replicas(3)).await.unwrap();
    store.put("key.0", "first").await.unwrap();
    cluster.wait_until_healthy("b").await;
    let away = (cluster.leader_of("b").await + 1) % 3;
    cluster.node(away).kill();
    let items =
        (0..MANY).map(|number| (format!("key.{}", number % 100), format!("value {number}")));
    let items: Vec<_> = items.collect();
    for part in items.chunks(1000) {
        assert!(store.put_many(part.iter().cloned()).await.iter().all(Result::is_ok));
    }
    let mut version = None;
    while version.is_none() {
        version = store.put("last", "value").await.ok();
    }
    let mut watch = open(&store, None).await;
    while next(&mut watch).await.unwrap() != KvUpdate::CaughtUp {}
    let cursor = watch.cursor().unwrap();
    cluster.node(away).restart();
    (store, version.unwrap().as_u64().unwrap(), cursor)
}

/// Opens a watch. Retries if the server places it on a node that is gone.
async fn open(store: &Store, from: Option<WatchCursor>) -> Watch {
    loop {
        let opened = match from {
            Some(cursor) => store.watch_from(WatchScope::All, cursor).await,
            None => store.watch(WatchScope::All).await,
        };
        match opened {
            Ok(watch) => return watch,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

async fn next(watch: &mut Watch) -> Result<KvUpdate, KvError> {
    let next = tokio::time::timeout(Duration::from_secs(60), watch.next());
    next.await.expect("an update in time").expect("the watch goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_on_a_replica_that_is_behind_is_not_caught_up() {
    let cluster = NatsCluster::start().await;
    let (store, last, _) = behind(&cluster).await;
    let (start, mut opened) = (Instant::now(), 0);
    while start.elapsed() < LENGTH {
        let mut watch = open(&store, None).await;
        opened += 1;
        let mut newest = 0;
        loop {
            let update = next(&mut watch).await.unwrap();
            let Some(entry) = update.into_entry() else { break };
            newest = newest.max(entry.version.as_u64().unwrap());
        }
        assert_eq!(
            newest,
            last,
            "watch {opened}, {:.3?} after the restart: caught up without the last one",
            start.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_resumed_at_stale_replica_does_not_go_back() {
    let cluster = NatsCluster::start().await;
    let (store, last, cursor) = behind(&cluster).await;
    let (start, mut watches) = (Instant::now(), Vec::new());
    while start.elapsed() < LENGTH {
        let mut watch = open(&store, Some(cursor)).await;
        assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
        watches.push(watch);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut after = None;
    while after.is_none() {
        after = store.put("after", "value").await.ok();
    }
    for (number, watch) in watches.iter_mut().enumerate() {
        let entry = next(watch).await.unwrap().into_entry().unwrap();
        assert_eq!(
            Some(entry.version),
            after,
            "watch {number} goes back behind its cursor, {last}, to {}",
            entry.key
        );
    }
}
