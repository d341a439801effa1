//! Values that stay current.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use shizuku_kv::replica::{Batch, CancellationToken, Replica, ReplicaMonitor};
use shizuku_kv::{
    Connection, KeyValue, KeyValueRead, KeyValueWrite, KvError, KvOperation, KvReadError, KvUpdate,
    Live, LiveMap, LiveSnapshot, LiveStanding, StaticKeyIndexedValue, Store, TypedEntry, WatchLink,
    WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually, unique};

type Outcome = Result<(), Box<dyn Error>>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.pool", codec = json, validate = Pool::check)]
struct Pool {
    size: u32,
}

impl Pool {
    fn check(&self) -> Result<(), &'static str> {
        if self.size > 100 { Err("at most 100") } else { Ok(()) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{id}", codec = json)]
struct User {
    id: u64,
    name: String,
}

/// Every backend, with a connection of its own.
async fn stores() -> Vec<(Arc<dyn Connection>, Store)> {
    let mut stores = Vec::new();
    for url in ["memory:".to_owned(), NatsServer::shared().url()] {
        let connection = connect(&url).await.unwrap();
        let store = connection.store(&unique("live")).await.unwrap();
        stores.push((connection, store));
    }
    stores
}

async fn put(store: &Store, size: u32) {
    Pool { size }.write_to_anyway(store).await.unwrap();
}

/// Waits until a live value is in a state that the status shows.
#[track_caller]
fn until<T: Send + Sync + 'static>(
    live: &Live<T>,
    is_there: impl Fn(&Live<T>) -> bool,
) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let mut statuses = live.statuses();
        let reached = async {
            while !is_there(live) {
                statuses.next().await.expect("it has ended");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached)
            .await
            .unwrap_or_else(|_| panic!("{place}: {live:?}"));
    }
}

#[tokio::test]
async fn a_live_value_follows_the_store() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 1).await;
        let mut live = Pool::live(&store).await?;
        assert_eq!((live.load().size, live.status().is_current()), (1, true));
        for size in 2..10 {
            put(&store, size).await;
            let value = live.changed().await?;
            assert_eq!((value.size, live.load().size), (size, size));
            assert_eq!(
                LiveSnapshot::version(&value),
                Pool::atomic_read(&store).await?.as_ref().map(TypedEntry::version)
            );
            assert_eq!(live.version(), LiveSnapshot::version(&value));
        }
        // What a handle has not told of yet is told once, the newest only.
        let mut other = live.clone();
        put(&store, 10).await;
        put(&store, 11).await;
        until(&live, |live| live.load().size == 11).await;
        assert_eq!(live.changed().await?.size, 11);
        while other.changed().await?.size != 11 {}
        let later = tokio::time::timeout(Duration::from_millis(50), other.changed()).await;
        assert!(later.is_err(), "{later:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_live_record_has_its_key() -> Outcome {
    for (_connection, store) in stores().await {
        let user = |id, name: &str| User { id, name: name.to_owned() };
        user(1, "Ann").write_to_anyway(&store).await?;
        user(2, "Bob").write_to_anyway(&store).await?;
        let mut ann = User::live_at(&store, 1).await?;
        user(2, "Bert").write_to_anyway(&store).await?;
        user(1, "Anna").write_to_anyway(&store).await?;
        assert_eq!(ann.changed().await?.name, "Anna");
        let nobody = User::live_at_or(&store, 3, user(3, "nobody")).await?;
        assert_eq!(nobody.load().name, "nobody");
        let nobody = User::live_at_optional(&store, 3).await?;
        assert!(nobody.load().is_none());
    }
    Ok(())
}

#[tokio::test]
async fn what_is_bad_never_takes_the_place_of_what_is_good() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 1).await;
        let mut live = Pool::live(&store).await?;
        let good = live.version();
        for bad in ["{\"size\":\"hunter2\"}", "{\"size\":101}", "", "hunter2"] {
            let refused = store.put("config.pool", bad).await?;
            until(&live, |live| {
                matches!(live.status().standing, LiveStanding::Rejected { version, .. } if version == refused)
            })
            .await;
            assert_eq!((live.load().size, live.version()), (1, good));
            assert!(!live.status().is_current());
            let LiveStanding::Rejected { error, .. } = live.status().standing else {
                panic!("{live:?}")
            };
            assert!(
                matches!(*error, KvReadError::Decode { .. } | KvReadError::Invalid { .. }),
                "{error}"
            );
            assert!(!format!("{live:?} {error} {error:?}").contains("hunter2"));
        }
        put(&store, 2).await;
        assert_eq!(live.changed().await?.size, 2);
        assert!(live.status().is_current());
    }
    Ok(())
}

#[tokio::test]
async fn a_deletion_leaves_the_last_value_or_none() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 1).await;
        let live = Pool::live(&store).await?;
        let mut optional = Pool::live_optional(&store).await?;
        assert_eq!(optional.load().as_ref().map(|pool| pool.size), Some(1));
        let deleted = Pool::delete(&store).await?;
        let gone = optional.changed().await?;
        assert_eq!(
            (LiveSnapshot::value(&gone).as_ref(), LiveSnapshot::version(&gone)),
            (None, None)
        );
        until(&live, |live| matches!(live.status().standing, LiveStanding::Absent { .. })).await;
        let LiveStanding::Absent { tombstone, .. } = live.status().standing else {
            panic!("{live:?}")
        };
        assert_eq!(tombstone, Some((KvOperation::Delete, deleted)));
        assert_eq!(live.load().size, 1);
        put(&store, 2).await;
        assert_eq!(**optional.changed().await?, Some(Pool { size: 2 }));
        until(&live, |live| live.load().size == 2).await;
        assert!(live.status().is_current());
    }
    Ok(())
}

#[tokio::test]
async fn what_is_waited_for() -> Outcome {
    for (_connection, store) in stores().await {
        let brief = store.with_deadline(Duration::from_millis(200));
        // Nothing there, something bad there.
        assert!(matches!(Pool::live(&brief).await, Err(KvReadError::Absent { .. })));
        store.put("config.pool", "{\"size\":101}").await?;
        assert!(matches!(Pool::live(&brief).await, Err(KvReadError::Invalid { .. })));
        assert!(matches!(Pool::live_optional(&brief).await, Err(KvReadError::Invalid { .. })));
        let mut default = Pool::live_or_default(&brief).await?;
        assert_eq!((default.load().size, default.version()), (0, None));
        assert!(matches!(default.status().standing, LiveStanding::Rejected { .. }));
        // What comes within the deadline is taken.
        let late = tokio::spawn({
            let store = store.clone();
            async move { Pool::live(&store).await }
        });
        put(&store, 7).await;
        assert_eq!(late.await??.load().size, 7);
        assert_eq!(default.changed().await?.size, 7);
        // And the value in force is the first in a stream.
        let mut pools = default.stream();
        assert_eq!(pools.next().await.ok_or("it has ended")?.size, 7);
        put(&store, 8).await;
        assert_eq!(pools.next().await.ok_or("it has ended")?.size, 8);
    }
    Ok(())
}

#[tokio::test]
async fn the_last_handle_ends_the_task_and_its_consumer() -> Outcome {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await?;
    let store = connection.store(&unique("live")).await?;
    put(&store, 1).await;
    let consumers = async || consumers(server, &store).await;
    let live = Pool::live(&store).await?;
    let (other, mut changes) = (live.clone(), live.stream());
    assert_eq!(consumers().await, 1);
    drop(live);
    drop(other);
    put(&store, 2).await;
    while changes.next().await.ok_or("it has ended")?.size != 2 {}
    assert_eq!(consumers().await, 1);
    drop(changes);
    eventually("the consumer is gone", async || consumers().await == 0).await;
    Ok(())
}

#[tokio::test]
async fn a_closed_connection_ends_a_live_value() -> Outcome {
    for (connection, store) in stores().await {
        put(&store, 1).await;
        let mut live = Pool::live(&store).await?;
        connection.shutdown().await?;
        let ended = tokio::time::timeout(Duration::from_secs(30), live.changed()).await?;
        assert!(matches!(ended, Err(KvError::Closed { .. })), "{ended:?}");
        assert!(matches!(live.status().standing, LiveStanding::Ended { .. }), "{live:?}");
        assert_eq!(live.load().size, 1);
        let mut rest = live.stream();
        assert!(rest.next().await.is_some() && rest.next().await.is_none());
        assert!(matches!(
            Pool::live_or_default(&store).await,
            Err(KvReadError::Store(KvError::Closed { .. }))
        ));
    }
    Ok(())
}

/// The status tells of a server that is away, and since when; what was written meanwhile arrives when it is back.
#[tokio::test]
async fn a_live_value_outlives_its_server() -> Outcome {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await?;
    let store = connection.store("live").await?;
    let apart = store.with_deadline(Duration::from_millis(200));
    put(&store, 1).await;
    let mut live = Pool::live(&store).await?;
    server.kill();
    until(&live, |live| !live.status().link.is_up()).await;
    let WatchLink::Down { since, reason, .. } = live.status().link else { panic!("{live:?}") };
    assert!(since.elapsed().is_ok() && !reason.is_empty());
    assert_eq!(live.load().size, 1);
    // One that is opened meanwhile begins with its default.
    let mut default = Pool::live_or_default(&apart).await?;
    assert_eq!((default.load().size, default.version()), (0, None));
    assert!(matches!(default.status().standing, LiveStanding::Unknown));
    assert!(!default.status().link.is_up());
    assert!(Pool::live(&apart).await.is_err() && Pool::live_optional(&apart).await.is_err());
    server.restart();
    assert_eq!(default.changed().await?.size, 1);
    until(&live, |live| live.status().is_current()).await;
    put(&store, 2).await;
    assert_eq!(live.changed().await?.size, 2);
    assert_eq!(default.changed().await?.size, 2);
    assert!(default.status().is_current());
    Ok(())
}

/// A store that is deleted and made again is followed again; what it does not have is absent.
#[tokio::test]
async fn a_store_that_is_made_again_is_followed() -> Outcome {
    for (connection, store) in stores().await {
        put(&store, 1).await;
        let live = Pool::live(&store).await?;
        let optional = Pool::live_optional(&store).await?;
        connection.delete_store(store.name()).await?;
        until(&live, |live| !live.status().link.is_up()).await;
        let again = connection.store(store.name()).await?;
        // A handle of a store that is gone may stay so, as the backend says.
        if store.get("config.pool").await.is_err() {
            continue;
        }
        until(&optional, |optional| optional.load().is_none()).await;
        until(&live, |live| {
            matches!(live.status().standing, LiveStanding::Absent { tombstone: None, .. })
        })
        .await;
        assert_eq!(live.load().size, 1);
        put(&again, 3).await;
        until(&live, |live| live.load().size == 3).await;
        until(&optional, |optional| optional.load().as_ref().is_some_and(|pool| pool.size == 3))
            .await;
    }
    Ok(())
}

/// A record whose first token is one of many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "{area}.counter.{id}", codec = json)]
struct Counter {
    area: String,
    id: u32,
    count: u64,
}

fn counter(area: u32, id: u32, count: u64) -> Counter {
    Counter { area: format!("area{area}"), id, count }
}

#[tokio::test]
async fn a_value_that_is_waited_for_may_come_in_a_store_that_is_made_again() -> Outcome {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await?;
    let store = connection.store(&unique("live")).await?;
    let waiting = store.with_deadline(Duration::from_secs(30));
    let waiting = tokio::spawn(async move { Pool::live(&waiting).await });
    eventually("it watches", async || consumers(server, &store).await == 1).await;
    let streams = async_nats::jetstream::new(server.client().await);
    let name = format!("KV_{}", store.name());
    let config = streams.get_stream(&name).await?.info().await?.config.clone();
    streams.delete_stream(&name).await?;
    streams.create_stream(config).await?;
    put(&store, 5).await;
    assert_eq!(waiting.await??.load().size, 5);
    Ok(())
}

/// The consumers of a bucket on the server.
async fn consumers(server: &NatsServer, store: &Store) -> usize {
    let client = server.client().await;
    let stream = async_nats::jetstream::new(client)
        .get_stream(format!("KV_{}", store.name()))
        .await
        .unwrap();
    stream.consumer_names().count().await
}

/// While others write, no live value goes back, nothing is told twice, and each gets to the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_live_value_goes_back_and_none_is_told_twice() -> Outcome {
    const AREAS: u32 = 30;
    for (_connection, store) in stores().await {
        let records = (0..AREAS).map(|area| counter(area, 0, 0)).collect::<Vec<_>>();
        for written in Counter::write_many(&store, &records).await {
            written?;
        }
        let writer = tokio::spawn({
            let store = store.clone();
            async move {
                let mut count = 0;
                // Some of them deleted and made again meanwhile.
                for area in (0..AREAS).cycle().take(40 * AREAS as usize) {
                    count += 1;
                    if count % 7 == 0 {
                        Counter::delete_anyway(&store, counter(area, 0, 0).kv_key()).await?;
                    }
                    counter(area, 0, count).write_to_anyway(&store).await?;
                }
                Ok::<_, shizuku_kv::KvWriteError>(())
            }
        });
        let mut followers = Vec::new();
        for area in (0..AREAS).chain(0..AREAS) {
            let key = counter(area, 0, 0).kv_key();
            let live = Counter::live_at_or(&store, key, counter(area, 0, 0)).await?;
            followers.push(tokio::spawn(async move {
                let mut values = live.stream();
                let mut last = 0;
                while last <= u64::from(39 * AREAS) {
                    let value = values.next().await.ok_or("it has ended")?;
                    let Some(version) =
                        LiveSnapshot::version(&value).and_then(|version| version.as_u64())
                    else {
                        continue;
                    };
                    assert!(
                        value.count > last || last == 0,
                        "{last} and then {} ({version})",
                        value.count
                    );
                    last = value.count;
                }
                Ok::<_, &'static str>((live, last))
            }));
        }
        writer.await??;
        for follower in followers {
            let (live, last) = tokio::time::timeout(Duration::from_secs(60), follower).await???;
            let stored =
                Counter::read_from(&store, live.load().kv_key()).await?.ok_or("it is absent")?;
            assert_eq!(stored.count, last);
        }
    }
    Ok(())
}

/// A live value does not depend on the runtime of another one.
#[test]
fn a_live_value_outlives_the_runtime_of_another_one() -> Outcome {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (own, other) = (runtime()?, runtime()?);
    for (_connection, store) in own.block_on(stores()) {
        own.block_on(put(&store, 1));
        let first = other.block_on(Pool::live(&store))?;
        let mut second = own.block_on(Pool::live(&store))?;
        assert_eq!((first.load().size, second.load().size), (1, 1));
        let ending = runtime()?;
        let third = ending.block_on(Pool::live(&store))?;
        drop((first, third));
        ending.shutdown_background();
        own.block_on(async {
            put(&store, 2).await;
            assert_eq!(second.changed().await?.size, 2);
            Ok::<_, KvError>(())
        })?;
    }
    // And with the runtime its own live values end.
    for (_connection, store) in own.block_on(stores()) {
        own.block_on(put(&store, 1));
        let first = runtime()?;
        let live = first.block_on(Pool::live(&store))?;
        let mut second = own.block_on(Pool::live(&store))?;
        first.shutdown_timeout(Duration::from_secs(10));
        own.block_on(async {
            put(&store, 2).await;
            assert_eq!(second.changed().await?.size, 2);
            Ok::<_, KvError>(())
        })?;
        assert!(matches!(live.status().standing, LiveStanding::Ended { .. }), "{live:?}");
        assert_eq!(live.load().size, 1);
    }
    Ok(())
}

/// A type's own code that panics is as a value that does not decode.
#[tokio::test]
async fn a_type_that_panics_costs_no_good_value() -> Outcome {
    #[derive(Debug, StaticKeyIndexedValue)]
    #[kv(key = "config.fragile")]
    struct Fragile(usize);

    impl shizuku_kv::ByteDeserialize for Fragile {
        fn from_bytes(bytes: &shizuku_kv::Bytes) -> Result<Self, shizuku_kv::DecodeError> {
            assert_ne!(bytes.len(), 13);
            Ok(Self(bytes.len()))
        }
    }

    for (_connection, store) in stores().await {
        store.put("config.fragile", "a").await?;
        let mut live = Fragile::live(&store).await?;
        store.put("config.fragile", "thirteen long").await?;
        until(&live, |live| matches!(live.status().standing, LiveStanding::Rejected { .. })).await;
        assert_eq!(live.load().0, 1);
        store.put("config.fragile", "ab").await?;
        assert_eq!(live.changed().await?.0, 2);
    }
    Ok(())
}

/// A key that changes all the time does not keep a deadline from passing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_does_not_hold_up_a_deadline() -> Outcome {
    let (_connection, store) = stores().await.swap_remove(0);
    store.put("config.pool", "{\"size\":101}").await?;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for size in (101..).cycle() {
                store.put("config.pool", format!("{{\"size\":{size}}}")).await.unwrap();
            }
        }
    });
    let brief = store.with_deadline(Duration::from_millis(100));
    let refused = tokio::time::timeout(Duration::from_secs(30), Pool::live(&brief)).await?;
    assert!(matches!(refused, Err(KvReadError::Invalid { .. })), "{refused:?}");
    writer.abort();
    Ok(())
}

/// Copies a directory recursively.
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

/// A live value, a live map and a replica of one store, which compare themselves often.
struct Followers {
    pool: Live<Pool>,
    users: LiveMap<UserKey, User>,
    table: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    monitor: ReplicaMonitor,
    stop: CancellationToken,
}

impl Followers {
    async fn start(store: &Store) -> Self {
        let store = store.with_comparison(Duration::from_secs(1));
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

    /// The pool and the first user, as each of them shows it.
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

/// A server whose data directory was restored from an older copy has lost values, and is written
/// past its old end before its followers reconnect. Its content then looks like the continuation of
/// their state.
#[tokio::test]
async fn followers_of_a_server_that_came_back_older_converge() {
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
    // The last key delivered to all followers is the one that continues.
    direct.put("hot", "1").await.unwrap();
    let knows =
        |size: u32, name: &str| followers.have() == (size, Some(name.to_owned()), [true, true]);
    eventually("all is known", async || {
        knows(2, "new") && followers.table.lock().unwrap()["hot"] == b"1"
    })
    .await;

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
    eventually("what was lost is lost", async || knows(1, "old")).await;
    eventually("they are current", async || followers.are_current() == [true; 3]).await;
}

/// An operator purges the stream, without a message to any watch.
#[tokio::test]
async fn followers_of_a_purged_stream_converge() {
    let server = NatsServer::shared();
    let name = unique("purged");
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    put(&store, 1).await;
    user(&store, 1, "one").await;
    let followers = Followers::start(&store).await;
    let context = async_nats::jetstream::new(server.client().await);
    context.get_stream(format!("KV_{name}")).await.unwrap().purge().await.unwrap();
    eventually("all is gone", async || {
        let absent = matches!(followers.pool.status().standing, LiveStanding::Absent { .. });
        absent && followers.users.is_empty() && followers.table.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(followers.pool.load().size, 1, "the last value stays in force");
    eventually("they are current", async || followers.are_current() == [false, true, true]).await;
}

/// A value without a running follower is not current, whatever its last state was.
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
