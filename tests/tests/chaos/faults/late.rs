//! One replica receives the leader's writes a moment late, while the server that places consumers
//! reaches it at once. One consumer in three is then created on a replica without the newest
//! writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shizuku_kv::{
    Connection, KvError, KvUpdate, ReadConsistency, Store, StoreConfig, Watch, WatchScope, connect,
};
use shizuku_kv_tests::{NatsCluster, TcpProxy, eventually};

/// Delay of the replica.
const LATE: Duration = Duration::from_millis(300);

/// Number of tries, so that some consumers are created on the late replica.
const TRIES: usize = 20;

/// The newest version of each key.
type Versions = BTreeMap<String, u64>;

/// Returns a cluster with a bucket `b` that has such a replica, and a connection to a node without
/// a delay.
async fn late() -> (NatsCluster, Arc<dyn Connection>) {
    let cluster = NatsCluster::start().await;
    let placing = cluster.meta_leader().await;
    let connection = connect(&cluster.node(placing).url()).await.unwrap();
    open(&connection, StoreConfig::new()).await.put("key.0", "first").await.unwrap();
    cluster.wait_until_healthy("b").await;
    while cluster.leader_of("b").await == placing {
        cluster.step_down("b").await;
    }
    let leader = cluster.leader_of("b").await;
    let ports: Vec<_> = cluster.routes_of(leader).map(TcpProxy::port).collect();
    cluster
        .routes_of(3 - placing - leader)
        .filter(|route| ports.contains(&route.port()))
        .for_each(|route| route.delay(LATE));
    (cluster, connection)
}

async fn open(connection: &Arc<dyn Connection>, config: StoreConfig) -> Store {
    let config = config.replicas(3);
    loop {
        match connection.store_with_config("b", config.clone()).await {
            Ok(store) => return store,
            // A loaded machine may consider a server offline for a moment.
            Err(KvError::Unsupported { .. }) => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn next(watch: &mut Watch) -> KvUpdate {
    let next = tokio::time::timeout(Duration::from_secs(30), watch.next());
    next.await.expect("an update in time").expect("the watch goes on").unwrap()
}

/// Returns the updates of a watch up to its caught-up marker.
async fn state(watch: &mut Watch) -> Versions {
    let mut found = Versions::new();
    loop {
        match next(watch).await {
            KvUpdate::CaughtUp => return found,
            update => {
                let entry = update.into_entry().unwrap();
                found.insert(entry.key.to_string(), entry.version.as_u64().unwrap());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_at_late_replica_has_acknowledged_writes() {
    let (_cluster, connection) = late().await;
    let store = open(&connection, StoreConfig::new()).await;
    for number in 0..TRIES {
        let before = {
            let mut watch = store.watch(WatchScope::All).await.unwrap();
            state(&mut watch).await;
            watch.cursor().unwrap()
        };
        let key = format!("key.{}", number % 5);
        let last = store.put(&*key, "value").await.unwrap().as_u64().unwrap();
        // Writes other keys, so that the end of the stream is not in every scope.
        store.put("other", "value").await.unwrap();
        for scope in
            [WatchScope::All, WatchScope::prefix("key."), WatchScope::prefixes([&*key, "x."])]
        {
            let mut watch = store.watch(scope.clone()).await.unwrap();
            assert_eq!(state(&mut watch).await.get(&key), Some(&last), "{number}, {scope:?}");
        }
        let mut watch = store.watch_from(WatchScope::All, before).await.unwrap();
        assert_eq!(state(&mut watch).await.get(&key), Some(&last), "{number}, resumed");
        // A replica that does not have the cursor yet delivers no entry up to it again.
        let last = store.put("last", "value").await.unwrap();
        let mut watch = store.watch(WatchScope::key("last").unwrap()).await.unwrap();
        assert_eq!(state(&mut watch).await.get("last").copied(), last.as_u64());
        let cursor = watch.cursor().unwrap();
        let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
        assert_eq!(state(&mut watch).await, Versions::new(), "{number}, back from {cursor:?}");
        let after = store.put("after", "value").await.unwrap();
        let entry = next(&mut watch).await.into_entry().unwrap();
        assert_eq!(entry.version, after, "{number}, back from {cursor:?} to {}", entry.key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_at_late_replica_has_every_key_under_writes() {
    let (_cluster, connection) = late().await;
    let store = open(&connection, StoreConfig::new()).await;
    let (acknowledged, ended) =
        (Arc::new(Mutex::new(Versions::new())), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn({
        let (store, acknowledged, ended) =
            (store.clone(), Arc::clone(&acknowledged), Arc::clone(&ended));
        async move {
            // Writes many at a time, so that some are replaced before a consumer reaches them, but
            // no more than reach the late replica.
            while !ended.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let keys: Vec<_> = (0..40).map(|number| format!("key.{}", number % 20)).collect();
                let written = store.put_many(keys.iter().map(|key| (&**key, "value"))).await;
                let versions =
                    written.into_iter().map(|version| version.unwrap().as_u64().unwrap());
                acknowledged.lock().unwrap().extend(keys.into_iter().zip(versions));
            }
        }
    });
    eventually("every key is written", async || acknowledged.lock().unwrap().len() == 20).await;
    for number in 0..TRIES {
        let before = acknowledged.lock().unwrap().clone();
        let found = state(&mut store.watch(WatchScope::prefix("key.")).await.unwrap()).await;
        for (key, version) in &before {
            assert!(found.get(key) >= Some(version), "{number}: {key} is at {version}: {found:?}");
        }
    }
    ended.store(true, Ordering::SeqCst);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_has_every_key_and_the_leaders_values() {
    let (_cluster, connection) = late().await;
    let any = open(&connection, StoreConfig::new()).await;
    let leader = open(&connection, StoreConfig::new().consistency(ReadConsistency::Leader)).await;
    for number in 0..TRIES {
        let new = any.put(format!("new.{number}"), "value").await.unwrap();
        let changed = any.put("key.0", "value").await.unwrap();
        let keys: Vec<_> = any.keys(WatchScope::All).try_collect().await.unwrap();
        assert_eq!(keys.len(), number + 2, "{number}: {keys:?}");
        let entries: Vec<_> = leader.scan(WatchScope::All).try_collect().await.unwrap();
        let of =
            |key: &str| entries.iter().find(|entry| &*entry.key == key).map(|entry| entry.version);
        assert_eq!(of(&format!("new.{number}")), Some(new), "{number}");
        assert_eq!(of("key.0"), Some(changed), "{number}");
    }
}
