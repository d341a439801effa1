//! Values that stay current.

mod followers;
mod panics;
mod sharing;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    KeyValue, KeyValueWrite, KvError, KvOperation, KvReadError, Live, LiveMapSyncState, LiveRead,
    LiveSnapshot, LiveStatic, LiveSyncState, StaticKeyIndexedValue, Store, TypedEntry, connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use crate::{Outcome, runtime, stores};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.pool", codec = json, validate = Pool::check)]
pub(crate) struct Pool {
    pub(crate) size: u32,
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

async fn put(store: &Store, size: u32) {
    Pool { size }.write_to_anyway(store).await.unwrap();
}

/// Waits until the status of a live value satisfies a condition.
#[track_caller]
fn until<T: Send + Sync + 'static>(
    live: &Live<T>,
    is_there: impl Fn(&Live<T>) -> bool,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let statuses = live.statuses();
        let reached = async {
            while !is_there(live) {
                statuses.next().await.expect("it has ended");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached)
            .await
            .unwrap_or_else(|_| panic!("{caller}: {live:?}"));
    }
}

#[tokio::test]
async fn live_value_follows_the_store() -> Outcome {
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
async fn live_record_has_its_key() -> Outcome {
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
async fn deletion_leaves_the_last_value_or_none() -> Outcome {
    for (_connection, store) in stores().await {
        let mut optional = Pool::live_optional(&store).await?;
        // `None` is the current value of a store without the record.
        assert!(optional.load().is_none() && optional.status().is_current(), "{optional:?}");
        put(&store, 1).await;
        assert_eq!(**optional.changed().await?, Some(Pool { size: 1 }));
        assert!(optional.status().is_current(), "{optional:?}");
        let live = Pool::live(&store).await?;
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
        // `None` is the state of the store. The last value or a default is not.
        assert_eq!((live.load().size, live.status().is_current()), (1, false));
        assert!(!Pool::live_or_default(&store).await?.status().is_current());
        until(&optional, |optional| {
            let state = optional.status().sync_state;
            matches!(state, LiveSyncState::Absent { tombstone: Some(_), .. })
        })
        .await;
        assert!(optional.status().is_current(), "{optional:?}");
        put(&store, 2).await;
        assert_eq!(**optional.changed().await?, Some(Pool { size: 2 }));
        until(&live, |live| live.load().size == 2).await;
        assert!(live.status().is_current());
    }
    Ok(())
}

#[tokio::test]
async fn opening_without_good_value_is_as_its_method_says() -> Outcome {
    let opened = stores().await.into_iter().map(async |(_connection, store)| -> Outcome {
        // The whole deadline is waited, in which a loaded machine has to read the value.
        let brief = store.with_deadline(Duration::from_secs(2));
        // The store has no value, then a bad one.
        assert!(matches!(Pool::live(&brief).await, Err(KvReadError::Absent { .. })));
        store.put("config.pool", "{\"size\":101}").await?;
        let (live, optional, default) = tokio::join!(
            Pool::live(&brief),
            Pool::live_optional(&brief),
            Pool::live_or_default(&brief)
        );
        assert!(matches!(live, Err(KvReadError::Invalid { .. })), "{live:?}");
        assert!(matches!(optional, Err(KvReadError::Invalid { .. })), "{optional:?}");
        let mut default = default?;
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
        Ok(())
    });
    futures_util::future::try_join_all(opened).await?;
    Ok(())
}

/// Clones, streams of changes and streams of statuses are handles, too.
#[tokio::test]
async fn last_handle_ends_the_task_and_its_consumer() -> Outcome {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await?;
    let store = connection.store(&unique("live")).await?;
    put(&store, 1).await;
    let consumers = async || server.consumers(store.name()).await.len();
    let live = Pool::live(&store).await?;
    let (other, values) = (live.clone(), live.stream());
    drop((live, other));
    put(&store, 2).await;
    while values.next().await.ok_or("it has ended")?.size != 2 {}
    assert_eq!(consumers().await, 1);
    drop(values);
    eventually("the consumer is gone", async || consumers().await == 0).await;

    // The first comparison of the map meets a new key, which must not make the map read the store
    // again with another consumer.
    let user = |name: &str| User { id: 1, name: name.to_owned() };
    let users = User::live_map(&store).await?;
    let (other, changes, statuses) = (users.clone(), users.changes(), users.statuses());
    assert_eq!(consumers().await, 1);
    drop((users, other));
    user("Ann").write_to_anyway(&store).await?;
    assert_eq!(changes.next().await.ok_or("it has ended")?.key, UserKey { id: 1 });
    drop(changes);
    user("Anne").write_to_anyway(&store).await?;
    statuses.next().await.ok_or("it has ended")?;
    assert_eq!(consumers().await, 1);
    drop(statuses);
    eventually("the consumer is gone", async || consumers().await == 0).await;
    Ok(())
}

#[tokio::test]
async fn closed_connection_ends_live_values_and_maps() -> Outcome {
    for (connection, store) in stores().await {
        put(&store, 1).await;
        User { id: 1, name: "Ann".to_owned() }.write_to_anyway(&store).await?;
        let mut live = Pool::live(&store).await?;
        let mut users = User::live_map(&store).await?;
        let (changes, statuses) = (users.changes(), users.statuses());
        connection.shutdown().await?;
        let ended = tokio::time::timeout(Duration::from_secs(30), live.changed()).await?;
        assert!(matches!(ended, Err(KvError::Closed { .. })), "{ended:?}");
        assert!(matches!(live.status().sync_state, LiveSyncState::Ended { .. }), "{live:?}");
        assert_eq!(live.load().size, 1);
        let rest = live.stream();
        assert!(rest.next().await.is_some() && rest.next().await.is_none());
        let again = Pool::live_or_default(&store).await;
        assert!(matches!(again, Err(KvReadError::Store(KvError::Closed { .. }))));

        let ended = tokio::time::timeout(Duration::from_secs(30), users.changed()).await?;
        assert!(matches!(ended, Err(KvError::Closed { .. })), "{ended:?}");
        let state = users.status().sync_state;
        assert!(matches!(state, LiveMapSyncState::Ended { .. }), "{users:?}");
        assert!(!users.status().is_current());
        assert!(users.snapshot().keys().map(|key| key.id).eq([1]));
        // Every later call returns the end.
        while statuses.next().await.is_some() {}
        for _ in 0..3 {
            assert!(changes.next().await.is_none() && statuses.next().await.is_none());
        }
        assert!(users.changes().next().await.is_none());
        let again = User::live_map(&store).await;
        assert!(matches!(again, Err(KvReadError::Store(KvError::Closed { .. }))));
    }
    Ok(())
}

/// A store that is deleted and recreated is followed again. Keys that it lacks are absent.
#[tokio::test]
async fn recreated_store_is_followed() -> Outcome {
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
    let consumers = async || server.consumers(store.name()).await.len();
    eventually("it watches", async || consumers().await == 1).await;
    let streams = async_nats::jetstream::new(server.client().await);
    let name = format!("KV_{}", store.name());
    let config = streams.get_stream(&name).await?.info().await?.config.clone();
    streams.delete_stream(&name).await?;
    streams.create_stream(config).await?;
    put(&store, 5).await;
    assert_eq!(waiting.await??.load().size, 5);
    Ok(())
}

/// While others write, no live value goes back, none reports a change twice, and each reaches the
/// last value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_values_move_forward_and_report_once() -> Outcome {
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
fn live_value_needs_no_runtime_of_another() -> Outcome {
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
    // Its own live values and live maps end with the runtime.
    for (_connection, store) in own.block_on(stores()) {
        own.block_on(put(&store, 1));
        let first = runtime()?;
        let live = first.block_on(Pool::live(&store))?;
        let mut users = first.block_on(User::live_map(&store))?;
        let changes = users.changes();
        let mut second = own.block_on(Pool::live(&store))?;
        first.shutdown_timeout(Duration::from_secs(10));
        own.block_on(async {
            put(&store, 2).await;
            assert_eq!(second.changed().await?.size, 2);
            assert!(matches!(users.changed().await, Err(KvError::Closed { .. })));
            assert!(changes.next().await.is_none());
            Ok::<_, KvError>(())
        })?;
        let state = users.status().sync_state;
        assert!(matches!(state, LiveMapSyncState::Ended { .. }), "{users:?}");
        assert!(matches!(live.status().sync_state, LiveSyncState::Ended { .. }), "{live:?}");
        assert_eq!(live.load().size, 1);
    }
    Ok(())
}

/// A key that changes all the time does not extend a deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_key_does_not_extend_a_deadline() -> Outcome {
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
    let brief = store.with_deadline(Duration::from_secs(1));
    let refused = tokio::time::timeout(Duration::from_secs(30), Pool::live(&brief)).await?;
    assert!(matches!(refused, Err(KvReadError::Invalid { .. })), "{refused:?}");
    writer.abort();
    Ok(())
}
