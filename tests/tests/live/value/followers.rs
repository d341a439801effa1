//! Live values, live maps and replicas of one store: entries that leave without a message, a server
//! that comes back with older data, and a blocked runtime.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use shizuku_kv::replica::{Batch, CancellationToken, Replica, ReplicaMonitor};
use shizuku_kv::{
    KeyValue, KvUpdate, Live, LiveMap, LiveRead, LiveStatic, LiveSyncState, Store, WatchLink,
    WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, PATIENCE, TcpProxy, eventually, unique};

use super::{Pool, User, UserKey, put};

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A live value, a live map and a replica of one store, with a short comparison interval.
struct Followers {
    pool: Live<Pool>,
    users: LiveMap<UserKey, User>,
    table: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    monitor: ReplicaMonitor,
    stop: CancellationToken,
}

impl Followers {
    async fn start(store: &Store) -> Self {
        Self::comparing_every(store, Duration::from_secs(1)).await
    }

    async fn comparing_every(store: &Store, interval: Duration) -> Self {
        let store = store.with_comparison(interval);
        let pool = Pool::live(&store).await.unwrap();
        let users = User::live_map(&store).await.unwrap();
        let (table, stop) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), CancellationToken::new());
        let mut replica = Replica::new(&store, WatchScope::All).stop_on(stop.clone());
        let (mut monitor, applied) = (replica.monitor(), Arc::clone(&table));
        tokio::spawn(async move {
            let apply = |batch: Batch| {
                let mut table = applied.lock().unwrap();
                for update in batch.updates() {
                    match update {
                        KvUpdate::Put(entry) => {
                            drop(table.insert(entry.key.to_string(), entry.value.to_vec()));
                        }
                        KvUpdate::Delete(entry) => drop(table.remove(entry.key.as_str())),
                        _ => {}
                    }
                }
                std::future::ready(Ok::<_, std::convert::Infallible>(()))
            };
            replica.run(apply).await
        });
        assert!(monitor.current().await);
        Self { pool, users, table, monitor, stop }
    }

    fn are_current(&self) -> [bool; 3] {
        let replica = self.monitor.progress().is_current();
        [self.pool.status().is_current(), self.users.status().is_current(), replica]
    }

    /// Waits until all followers have these values.
    async fn come_to(&self, size: u32, name: &str) {
        let wanted = (size, Some(name.to_owned()), [true, true]);
        eventually(&format!("they have {wanted:?}"), async || self.have() == wanted).await;
    }

    /// Returns the pool and the first user, and whether the replica agrees with the live value and
    /// the live map.
    fn have(&self) -> (u32, Option<String>, [bool; 2]) {
        let name = self.users.get(&UserKey { id: 1 }).map(|user| user.name.clone());
        let table = self.table.lock().unwrap();
        let pool =
            table.get("config.pool").and_then(|value| serde_json::from_slice::<Pool>(value).ok());
        let agrees = [
            pool.is_some_and(|pool| pool.size == self.pool.load().size),
            table.contains_key("user.1") == name.is_some(),
        ];
        (self.pool.load().size, name, agrees)
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn user(store: &Store, id: u64, name: &str) {
    User { id, name: name.to_owned() }.write_to_anyway(store).await.unwrap();
}

/// A server whose data directory was restored from an older copy has lost values. Before its
/// followers reconnect, writes extend it past its old end, so that its content looks like the
/// continuation of their state.
#[tokio::test]
async fn followers_of_restored_older_server_converge() {
    let mut server = NatsServer::start();
    let name = unique("older");
    let direct = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    put(&direct, 1).await;
    user(&direct, 1, "old").await;
    direct.put("hot", "0").await.unwrap();
    server.kill();
    let backup = tempfile::tempdir().unwrap();
    copy(&server.store_dir(), backup.path());
    server.restart();

    let proxy = TcpProxy::start(server.port()).await;
    let store = connect(&proxy.url()).await.unwrap().store(&name).await.unwrap();
    let followers = Followers::start(&store).await;
    put(&direct, 2).await;
    user(&direct, 1, "new").await;
    // The writes continue with the last key that all followers have received.
    direct.put("hot", "1").await.unwrap();
    followers.come_to(2, "new").await;
    let knows = async || followers.table.lock().unwrap()["hot"] == b"1";
    eventually("the last write is known", knows).await;

    proxy.refuse(true);
    proxy.cut();
    server.kill();
    std::fs::remove_dir_all(server.store_dir()).unwrap();
    copy(backup.path(), &server.store_dir());
    server.restart();
    let other = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    for value in 0..20 {
        other.put("hot", value.to_string()).await.unwrap();
    }
    proxy.refuse(false);
    followers.come_to(1, "old").await;
    eventually("they are current", async || followers.are_current() == [true; 3]).await;
}

/// Interval of comparisons that the test does not reach.
const RARELY: Duration = Duration::from_secs(3600);

/// Creates a bucket of another client with an age limit. Its values expire without a marker, so no
/// watch of it compares figures (ADR 0064).
async fn aging(server: &NatsServer) -> String {
    let name = unique("aging");
    let config = kv::Config { bucket: name.clone(), max_age: RARELY, ..kv::Config::default() };
    jetstream::new(server.client().await).create_key_value(config).await.unwrap();
    name
}

async fn stream_of(server: &NatsServer, name: &str) -> jetstream::stream::Stream {
    jetstream::new(server.client().await).get_stream(format!("KV_{name}")).await.unwrap()
}

/// An operator purges the stream, without a message to any watch. The comparisons notice it.
#[tokio::test]
async fn followers_of_a_purged_stream_converge() {
    let server = NatsServer::shared();
    let name = aging(server).await;
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    put(&store, 1).await;
    user(&store, 1, "one").await;
    let followers = Followers::start(&store).await;
    stream_of(server, &name).await.purge().await.unwrap();
    eventually("all is gone", async || {
        let absent = matches!(followers.pool.status().sync_state, LiveSyncState::Absent { .. });
        absent && followers.users.is_empty() && followers.table.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(followers.pool.load().size, 1, "the last value stays current");
    eventually("they are current", async || followers.are_current() == [false, true, true]).await;
}

/// The watches notice a purge of all but the entry that they have delivered last (ADR 0064).
#[tokio::test]
async fn watches_of_followers_notice_a_purged_stream() {
    let server = NatsServer::shared();
    let name = unique("purged");
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    put(&store, 1).await;
    user(&store, 1, "one").await;
    let kept = store.put("user.2", r#"{"id":2,"name":"two"}"#).await.unwrap();
    let followers = Followers::comparing_every(&store, RARELY).await;
    let purge = stream_of(server, &name).await.purge().sequence(kept.as_u64().unwrap()).await;
    purge.unwrap();
    eventually("the purged values are gone", async || {
        let absent = matches!(followers.pool.status().sync_state, LiveSyncState::Absent { .. });
        let users: Vec<_> = followers.users.snapshot().keys().map(|key| key.id).collect();
        let table: Vec<_> = followers.table.lock().unwrap().keys().cloned().collect();
        (absent, users, table) == (true, vec![2], vec!["user.2".to_owned()])
    })
    .await;
    eventually("they are current", async || followers.are_current() == [false, true, true]).await;
}

/// A value whose task does not run is not current, whatever its last state was.
#[test]
fn followers_on_a_blocked_runtime_are_not_current() {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (release, is_released) = std::sync::mpsc::channel::<()>();
    let (end, has_ended) = tokio::sync::oneshot::channel::<()>();
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let connection = connect("memory:").await.unwrap();
            let store = connection.store("frozen").await.unwrap();
            put(&store, 1).await;
            let followers = Arc::new(Followers::start(&store).await);
            ready.send(Arc::clone(&followers)).unwrap();
            is_released.recv().unwrap();
            has_ended.await.unwrap();
        });
    });
    let followers = is_ready.recv().unwrap();
    assert_eq!(followers.are_current(), [true; 3]);
    let wait = |wanted: bool| {
        let begun = std::time::Instant::now();
        while followers.are_current() != [wanted; 3] {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", followers.are_current());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait(false);
    assert!(matches!(followers.pool.status().link, WatchLink::Down { .. }));
    release.send(()).unwrap();
    wait(true);
    end.send(()).unwrap();
    drop(followers);
    runtime.join().unwrap();
}

/// Another client gives a time to live to a value in a bucket with a history. When the value
/// expires, its predecessor is the newest again, and no watch is notified (ADR-48).
#[tokio::test]
async fn followers_of_reverted_value_converge() {
    let server = NatsServer::shared();
    if !server.is_at_least(2, 11) {
        // Servers support times to live of single messages from 2.11 on.
        return;
    }
    let context = jetstream::new(server.client().await);
    for limit_markers in [None, Some(Duration::from_secs(1))] {
        let name = unique("reverts");
        let config = jetstream::stream::Config {
            name: format!("KV_{name}"),
            subjects: vec![format!("$KV.{name}.>")],
            max_messages_per_subject: 5,
            allow_message_ttl: true,
            subject_delete_marker_ttl: limit_markers,
            allow_rollup: true,
            allow_direct: true,
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
        put(&store, 1).await;
        user(&store, 1, "old").await;
        let followers = Followers::start(&store).await;
        for (key, value) in
            [("config.pool", r#"{"size":2}"#), ("user.1", r#"{"id":1,"name":"new"}"#)]
        {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-TTL", "4s");
            let subject = format!("$KV.{name}.{key}");
            let sent = context.publish_with_headers(subject, headers, value.into()).await.unwrap();
            sent.await.unwrap();
        }
        followers.come_to(2, "new").await;
        followers.come_to(1, "old").await;
        eventually("they are current", async || followers.are_current() == [true; 3]).await;
    }
}

/// The stream is purged and written to while the followers are disconnected.
async fn purge_during_outage(server: &NatsServer, name: &str, interval: Duration, filter: Filter) {
    let direct = connect(&server.url()).await.unwrap().store(name).await.unwrap();
    put(&direct, 1).await;
    user(&direct, 1, "one").await;
    direct.put("other", "value").await.unwrap();
    let proxy = TcpProxy::start(server.port()).await;
    let store = connect(&proxy.url()).await.unwrap().store(name).await.unwrap();
    let followers = Followers::comparing_every(&store, interval).await;
    proxy.refuse(true);
    proxy.cut();
    let stream = stream_of(server, name).await;
    match filter {
        None => drop(stream.purge().await.unwrap()),
        Some(key) => drop(stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap()),
    }
    direct.put("other", "again").await.unwrap();
    direct.put("new", "value").await.unwrap();
    proxy.refuse(false);
    let has = |key: &str| filter.is_some_and(|filter| filter != key);
    eventually("the purged values are gone", async || {
        let absent = matches!(followers.pool.status().sync_state, LiveSyncState::Absent { .. });
        let table = followers.table.lock().unwrap();
        (!absent, followers.users.len() == 1) == (has("config.pool"), has("user.1"))
            && (table.contains_key("config.pool"), table.contains_key("user.1"))
                == (has("config.pool"), has("user.1"))
            && table.contains_key("new")
    })
    .await;
    let current = [has("config.pool"), true, true];
    eventually("they are current", async || followers.are_current() == current).await;
}

/// Key of the purged entry; `None` for all entries.
type Filter = Option<&'static str>;

#[tokio::test]
async fn followers_compare_after_a_purge_in_an_outage() {
    let server = NatsServer::shared();
    for filter in [None, Some("user.1"), Some("config.pool")] {
        purge_during_outage(server, &aging(server).await, Duration::from_secs(1), filter).await;
    }
}

/// A watch cannot tell a purge of one key from the write of another.
#[tokio::test]
async fn watches_notice_a_purge_in_an_outage() {
    purge_during_outage(NatsServer::shared(), &unique("purged"), RARELY, None).await;
}

/// The stream has reached its limit of consumers. Followers wait until one is free.
#[tokio::test]
async fn followers_wait_for_room_for_their_consumers() {
    let server = NatsServer::shared();
    let name = unique("room");
    let context = jetstream::new(server.client().await);
    let config = jetstream::stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        max_consumers: 5,
        allow_rollup: true,
        allow_direct: true,
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
    let direct = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    put(&direct, 1).await;
    user(&direct, 1, "one").await;
    let proxy = TcpProxy::start(server.port()).await;
    let store = connect(&proxy.url()).await.unwrap().store(&name).await.unwrap();
    let followers = Followers::start(&store).await;
    let stream = context.get_stream(format!("KV_{name}")).await.unwrap();
    proxy.refuse(true);
    proxy.cut();
    for consumer in server.consumers(&name).await {
        stream.delete_consumer(&consumer).await.unwrap();
    }
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(direct.watch(WatchScope::All).await.unwrap());
    }
    // A replica is opened while the stream has no room for its consumer.
    let mut late = Replica::new(&direct.with_deadline(Duration::from_millis(300)), WatchScope::All);
    let mut late_monitor = late.monitor();
    let late = tokio::spawn(async move {
        late.run(|_: Batch| std::future::ready(Ok::<_, std::convert::Infallible>(()))).await
    });
    proxy.refuse(false);
    eventually("the followers report the limit", async || {
        let names_it =
            |link: &WatchLink| matches!(link, WatchLink::Down { reason, .. } if reason.contains("consumer"));
        names_it(&followers.pool.status().link)
            && names_it(&followers.monitor.progress().link)
            && names_it(&late_monitor.progress().link)
    })
    .await;
    drop(others);
    let late_is_current = tokio::time::timeout(PATIENCE, late_monitor.current());
    assert!(late_is_current.await.unwrap());
    late.abort();
    put(&direct, 2).await;
    user(&direct, 1, "two").await;
    followers.come_to(2, "two").await;
    eventually("they are current", async || followers.are_current() == [true; 3]).await;
}
