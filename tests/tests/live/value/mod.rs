//! Values that stay current.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod followers;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Connection, KeyValue, KeyValueWrite, KvError, KvOperation, KvReadError, Live, LiveMapSyncState,
    LiveRead, LiveSnapshot, LiveStatic, LiveSyncState, StaticKeyIndexedValue, Store, TypedEntry,
    WatchLink, connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique};

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

/// Returns every backend, with a connection of its own.
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

/// Waits until the status of a live value satisfies a condition.
#[track_caller]
fn until<T: Send + Sync + 'static>(
    live: &Live<T>,
    is_there: impl Fn(&Live<T>) -> bool,
) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let statuses = live.statuses();
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
        // A handle reports unreported changes once, and only the newest.
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
async fn rejected_value_never_replaces_current_value() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 1).await;
        let mut live = Pool::live(&store).await?;
        let good = live.version();
        for bad in ["{\"size\":\"hunter2\"}", "{\"size\":101}", "", "hunter2"] {
            let refused = store.put("config.pool", bad).await?;
            until(&live, |live| {
                matches!(
                    live.status().sync_state,
                    LiveSyncState::Rejected { version, .. } if version == refused
                )
            })
            .await;
            assert_eq!((live.load().size, live.version()), (1, good));
            assert!(!live.status().is_current());
            let LiveSyncState::Rejected { error, .. } = live.status().sync_state else {
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
        until(&live, |live| matches!(live.status().sync_state, LiveSyncState::Absent { .. })).await;
        let LiveSyncState::Absent { tombstone, .. } = live.status().sync_state else {
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
async fn opening_without_good_value_is_as_its_method_says() -> Outcome {
    for (_connection, store) in stores().await {
        let brief = store.with_deadline(Duration::from_millis(200));
        // The store has no value, then a bad one.
        assert!(matches!(Pool::live(&brief).await, Err(KvReadError::Absent { .. })));
        store.put("config.pool", "{\"size\":101}").await?;
        assert!(matches!(Pool::live(&brief).await, Err(KvReadError::Invalid { .. })));
        assert!(matches!(Pool::live_optional(&brief).await, Err(KvReadError::Invalid { .. })));
        let mut default = Pool::live_or_default(&brief).await?;
        assert_eq!((default.load().size, default.version()), (0, None));
        assert!(matches!(default.status().sync_state, LiveSyncState::Rejected { .. }));
        // A value that comes within the deadline is used.
        let late = tokio::spawn({
            let store = store.clone();
            async move { Pool::live(&store).await }
        });
        put(&store, 7).await;
        assert_eq!(late.await??.load().size, 7);
        assert_eq!(default.changed().await?.size, 7);
        // The current value is the first in a stream.
        let pools = default.stream();
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
    let (other, changes) = (live.clone(), live.stream());
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
        assert!(matches!(live.status().sync_state, LiveSyncState::Ended { .. }), "{live:?}");
        assert_eq!(live.load().size, 1);
        let rest = live.stream();
        assert!(rest.next().await.is_some() && rest.next().await.is_none());
        assert!(matches!(
            Pool::live_or_default(&store).await,
            Err(KvReadError::Store(KvError::Closed { .. }))
        ));
    }
    Ok(())
}

/// The status reports that a server is away, and since when. Writes of that time arrive after it is
/// back.
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
    // A value that is opened meanwhile begins with its default.
    let mut default = Pool::live_or_default(&apart).await?;
    assert_eq!((default.load().size, default.version()), (0, None));
    assert!(matches!(default.status().sync_state, LiveSyncState::Unknown));
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

/// A store that is deleted and recreated is followed again. Keys that it lacks are absent.
#[tokio::test]
async fn a_store_that_is_made_again_is_followed() -> Outcome {
    for (connection, store) in stores().await {
        put(&store, 1).await;
        let live = Pool::live(&store).await?;
        let optional = Pool::live_optional(&store).await?;
        connection.delete_store(store.name()).await?;
        until(&live, |live| !live.status().link.is_up()).await;
        let again = connection.store(store.name()).await?;
        // A handle of a deleted store may stay unusable, as the backend says.
        if store.get("config.pool").await.is_err() {
            continue;
        }
        until(&optional, |optional| optional.load().is_none()).await;
        until(&live, |live| {
            matches!(live.status().sync_state, LiveSyncState::Absent { tombstone: None, .. })
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
async fn awaited_value_may_come_in_a_recreated_store() -> Outcome {
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

/// Returns the number of consumers of a bucket on the server.
async fn consumers(server: &NatsServer, store: &Store) -> usize {
    let client = server.client().await;
    let stream = async_nats::jetstream::new(client)
        .get_stream(format!("KV_{}", store.name()))
        .await
        .unwrap();
    stream.consumer_names().count().await
}

/// While others write, no live value goes back, none reports a change twice, and each reaches the
/// last value.
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
                // Some of them are deleted and recreated meanwhile.
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
                let values = live.stream();
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
    // Its own live values end with the runtime.
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
        assert!(matches!(live.status().sync_state, LiveSyncState::Ended { .. }), "{live:?}");
        assert_eq!(live.load().size, 1);
    }
    Ok(())
}

/// A value on which the type's own code panics is rejected with `Panicked`.
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
        until(&live, |live| matches!(live.status().sync_state, LiveSyncState::Rejected { .. }))
            .await;
        let LiveSyncState::Rejected { error, .. } = live.status().sync_state else {
            panic!("it was rejected")
        };
        assert!(matches!(&*error, KvReadError::Panicked { during: "decoded", .. }), "{error:?}");
        assert!(
            error
                .to_string()
                .starts_with("the code of Fragile panicked while the record under key"),
            "{error}"
        );
        assert_eq!(live.load().0, 1);
        store.put("config.fragile", "ab").await?;
        assert_eq!(live.changed().await?.0, 2);
    }
    Ok(())
}

/// A panic in the value's `Drop` is logged, and the value that replaces it becomes current.
#[tokio::test]
async fn panicking_drop_is_reported_and_updates_continue() -> Outcome {
    #[derive(Debug, KeyValue)]
    #[kv(validate = Fragile::check)]
    struct Fragile {
        #[kv(key)]
        id: u64,
        #[kv(value)]
        length: Length,
    }

    impl Fragile {
        fn check(&self) -> Result<(), &'static str> {
            if self.length.0 == 5 { Err("five") } else { Ok(()) }
        }
    }

    #[derive(Debug, PartialEq)]
    struct Length(usize);

    impl Drop for Length {
        fn drop(&mut self) {
            assert!(self.0.is_multiple_of(2), "on purpose");
        }
    }

    impl shizuku_kv::ByteDeserialize for Length {
        fn from_bytes(bytes: &shizuku_kv::Bytes) -> Result<Self, shizuku_kv::DecodeError> {
            Ok(Self(bytes.len()))
        }
    }

    for (_connection, store) in stores().await {
        for key in 1..9 {
            store.put(key.to_string(), "a").await?;
        }
        let mut live = Fragile::live_at(&store, 1_u64).await?;
        let map = Fragile::live_map(&store).await?;
        for value in ["aba", "ab"] {
            for key in 1..9 {
                store.put(key.to_string(), value).await?;
            }
        }
        until(&live, |live| live.load().length.0 == 2).await;
        assert!(live.status().is_current(), "{:?}", live.status());
        eventually("the map follows", async || {
            map.snapshot().values().all(|value| value.length.0 == 2)
        })
        .await;
        assert!(map.status().is_current(), "{:?}", map.status());
        // A rejected value is dropped too.
        store.put("1", "fives").await?;
        until(&live, |live| matches!(live.status().sync_state, LiveSyncState::Rejected { .. }))
            .await;
        eventually("the map rejects it", async || map.rejections().len() == 1).await;
        // All remaining values are dropped, and every second one panics.
        for key in 1..9 {
            store.put(key.to_string(), "a").await?;
        }
        until(&live, |live| live.load().length.0 == 1).await;
        store.delete("1").await?;
        eventually("the map follows", async || map.len() == 7).await;
        assert!(live.changed().await.is_ok());
        assert!(map.status().is_current(), "{:?}", map.status());
    }
    Ok(())
}

/// A panic in the comparison of keys ends the map with the error `Panicked`.
#[tokio::test]
async fn panicking_comparison_ends_the_map_with_its_reason() -> Outcome {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Id(u64);

    impl PartialOrd for Id {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Id {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            assert!(self.0 != 13 && other.0 != 13, "on purpose");
            self.0.cmp(&other.0)
        }
    }

    impl std::fmt::Display for Id {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    impl std::str::FromStr for Id {
        type Err = std::num::ParseIntError;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            text.parse().map(Self)
        }
    }

    #[derive(Debug, KeyValue)]
    struct Unlucky {
        #[kv(key)]
        id: Id,
        #[kv(value)]
        text: String,
    }

    let (_connection, store) = stores().await.swap_remove(0);
    Unlucky { id: Id(7), text: "a".to_owned() }.write_to_anyway(&store).await?;
    let mut map = Unlucky::live_map(&store).await?;
    store.put("13", "b").await?;
    let error = loop {
        if let Err(error) = map.changed().await {
            break error;
        }
    };
    let expected =
        "live_map has ended: the code of Unlucky panicked; the panic's own message says where";
    assert_eq!(error.to_string(), expected);
    assert!(matches!(
        &map.status().sync_state,
        LiveMapSyncState::Ended { error, .. } if error.to_string() == expected
    ));
    assert_eq!(map.len(), 1);
    Ok(())
}

/// A key that changes all the time does not extend a deadline.
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

/// If the store has no record, `None` is the current value.
#[tokio::test]
async fn optional_value_is_current_while_absent() -> Outcome {
    for (_connection, store) in stores().await {
        let optional = Pool::live_optional(&store).await?;
        assert!(optional.load().is_none());
        assert!(optional.status().is_current(), "{optional:?}");
        put(&store, 1).await;
        until(&optional, |optional| optional.load().is_some()).await;
        assert!(optional.status().is_current());
        Pool::delete(&store).await?;
        until(&optional, |optional| optional.load().is_none()).await;
        assert!(optional.status().is_current(), "{optional:?}");
        // The status still shows how the value was removed.
        until(&optional, |optional| {
            matches!(optional.status().sync_state, LiveSyncState::Absent { tombstone: Some(_), .. })
        })
        .await;
        // A live value that is not optional keeps its last value or default, which is not the
        // store's.
        assert!(!Pool::live_or_default(&store).await?.status().is_current());
    }
    Ok(())
}
