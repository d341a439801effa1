//! Maps that stay current.

mod comparison;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    KeyValue, KeyValueRead, KvError, KvReadError, LiveMap, LiveMapChanges, LiveMapSnapshot,
    LiveMapSyncState, LiveRead, LiveSnapshot, LiveStatic, LiveSyncState, Store, TypedEntry,
    WatchLink, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

use crate::value::Pool;
use crate::{Outcome, stores};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{tenant}.{id}", codec = json, validate = User::check)]
struct User {
    tenant: String,
    id: u32,
    age: u32,
}

impl User {
    fn check(&self) -> Result<(), &'static str> {
        if self.age > 150 { Err("at most 150") } else { Ok(()) }
    }
}

fn key(tenant: &str, id: u32) -> UserKey {
    UserKey { tenant: tenant.to_owned(), id }
}

async fn put(store: &Store, id: u32, age: u32) {
    User { tenant: "acme".to_owned(), id, age }.write_to_anyway(store).await.unwrap();
}

async fn delete(store: &Store, id: u32) {
    User::delete_anyway(store, key("acme", id)).await.unwrap();
}

/// Returns the ages by id.
fn ages(users: &LiveMapSnapshot<UserKey, User>) -> BTreeMap<u32, u32> {
    users.iter().map(|(key, user)| (key.id, user.age)).collect()
}

/// Returns the records of the store, read without a map.
async fn stored(store: &Store) -> BTreeMap<u32, u32> {
    let users = User::list(store).try_collect().await.unwrap();
    users.iter().map(|user| (user.id, user.age)).collect()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), future).await;
    waited.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Waits until the status of a map satisfies a condition.
#[track_caller]
fn until(
    users: &LiveMap<UserKey, User>,
    is_there: impl Fn(&LiveMap<UserKey, User>) -> bool,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let statuses = users.statuses();
        let reached = async {
            while !is_there(users) {
                statuses.next().await.expect("it has ended");
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), reached).await;
        waited.unwrap_or_else(|_| panic!("{caller}: {users:?}"));
    }
}

/// Returns the next change: the id, the age before it, and the age after it.
async fn told(changes: &mut LiveMapChanges<UserKey, User>) -> (u32, Option<u32>, Option<u32>) {
    let change = within("a change", changes.next()).await.expect("it has ended");
    let (old, new) = (change.old.map(|user| user.age), change.new.map(|user| user.age));
    (change.key.id, old, new)
}

/// Returns the changes that are ready now.
fn ready(changes: &mut LiveMapChanges<UserKey, User>) -> Vec<(u32, Option<u32>, Option<u32>)> {
    let next = || changes.next().now_or_never().map(|change| change.expect("it has ended"));
    let age = |user: Option<Arc<shizuku_kv::LiveSnapshot<User>>>| user.map(|user| user.age);
    std::iter::from_fn(next)
        .map(|change| (change.key.id, age(change.old), age(change.new)))
        .collect()
}

#[tokio::test]
async fn live_map_follows_the_store() -> Outcome {
    for (_connection, store) in stores().await {
        for id in [3, 1, 2] {
            put(&store, id, id * 10).await;
        }
        User { tenant: "zeta".to_owned(), id: 1, age: 7 }.write_to_anyway(&store).await?;
        let mut users = User::live_map(&store).await?;
        let mut acme = User::live_map_scope(&store, UserKey::scope_tenant("acme")).await?;
        assert_eq!((users.len(), acme.len(), users.is_empty()), (4, 3, false));
        assert!(users.status().is_current() && users.rejections().is_empty());

        let user = users.get(&key("acme", 2)).ok_or("it is absent")?;
        let entry = User::atomic_read_from(&store, key("acme", 2)).await?.ok_or("it is absent")?;
        assert_eq!(
            (user.age, LiveSnapshot::version(&user), LiveSnapshot::created(&user)),
            (20, Some(TypedEntry::version(&entry)), TypedEntry::created(&entry))
        );
        assert!(users.contains_key(&key("zeta", 1)) && !acme.contains_key(&key("zeta", 1)));
        assert!(users.get(&key("acme", 4)).is_none());

        // A handle reports each unreported change once.
        let mut other = users.clone();
        put(&store, 4, 40).await;
        assert_eq!(ages(&within("a change", acme.changed()).await?).len(), 4);
        assert_eq!(users.changed().await?.len(), 5);
        delete(&store, 4).await;
        assert_eq!(users.changed().await?.len(), 4);
        assert!(users.get(&key("acme", 4)).is_none());
        while within("a change", other.changed()).await?.len() != 4 {}
        let later = tokio::time::timeout(Duration::from_millis(50), other.changed()).await;
        assert!(later.is_err(), "{later:?}");
        assert!(User::live_map_scope(&store, WatchScope::prefix("user.nobody.")).await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn changes_have_the_old_and_the_new_value() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 1, 10).await;
        let users = User::live_map(&store).await?;
        let mut changes = users.changes();
        assert_eq!(ages(&changes.snapshot()), BTreeMap::from([(1, 10)]));
        put(&store, 1, 11).await;
        assert_eq!(told(&mut changes).await, (1, Some(10), Some(11)));
        put(&store, 2, 20).await;
        assert_eq!(told(&mut changes).await, (2, None, Some(20)));
        assert_eq!(ages(&changes.snapshot()), BTreeMap::from([(1, 11), (2, 20)]));
        delete(&store, 1).await;
        assert_eq!(told(&mut changes).await, (1, Some(11), None));
        assert_eq!(ages(&changes.snapshot()), ages(&users.snapshot()));
        // Deletes an absent key, and writes a bad and then a good value.
        delete(&store, 9).await;
        store.put("user.acme.2", "{}").await?;
        put(&store, 2, 21).await;
        assert_eq!(told(&mut changes).await, (2, Some(20), Some(21)));
        assert_eq!(ready(&mut changes), []);
        let change = {
            put(&store, 2, 22).await;
            changes.next().await.ok_or("it has ended")?
        };
        assert!(format!("{change:?}").contains("user.acme.2"), "{change:?}");
        assert!(!format!("{change:?} {changes:?} {users:?}").contains("22"), "{change:?}");
    }
    Ok(())
}

#[tokio::test]
async fn rejected_value_never_replaces_current_value() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 1, 10).await;
        store.put("user.settings", "hunter2").await?;
        let users = User::live_map(&store).await?;
        let mut changes = users.changes();
        // A record that existed before, under a key that is not one of the type.
        let foreign = users.rejections();
        assert_eq!((foreign.len(), users.status().rejected, users.len()), (1, 1, 1));
        assert_eq!(foreign[0].key, "user.settings");
        assert!(matches!(*foreign[0].error, KvReadError::InvalidRecordKey { .. }));
        assert!(users.status().is_current());
        assert!(users.rejection(&key("acme", 1)).is_none());

        let good = users.get(&key("acme", 1)).and_then(|user| LiveSnapshot::version(&user));
        let elsewhere = "{\"tenant\":\"acme\",\"id\":2,\"age\":1}";
        let broken = "{\"tenant\":\"acme\",\"id\":1,\"age\":151}";
        for bad in ["hunter2", "", "{\"tenant\":\"hunter2\"}", broken, elsewhere] {
            let refused = store.put("user.acme.1", bad).await?;
            let rejection = |users: &LiveMap<UserKey, User>| users.rejection(&key("acme", 1));
            until(&users, |users| rejection(users).is_some_and(|bad| bad.version == refused)).await;
            let error = rejection(&users).ok_or("it is not refused")?.error;
            match bad {
                _ if bad == broken => {
                    assert!(matches!(*error, KvReadError::Invalid { .. }), "{error}")
                }
                _ if bad == elsewhere => {
                    assert!(matches!(*error, KvReadError::KeyMismatch { .. }), "{error}")
                }
                _ => assert!(matches!(*error, KvReadError::Decode { .. }), "{error}"),
            }
            let user = users.get(&key("acme", 1)).ok_or("it is gone")?;
            assert_eq!((user.age, LiveSnapshot::version(&user)), (10, good));
            assert_eq!((users.len(), users.status().rejected, users.rejections().len()), (1, 2, 2));
            assert!(!format!("{users:?} {:?} {error}", users.rejections()).contains("hunter2"));
        }
        assert_eq!(ready(&mut changes), []);
        // A good value or a deletion ends the rejection, even for a key that is not one of the
        // type.
        put(&store, 1, 11).await;
        until(&users, |users| users.rejection(&key("acme", 1)).is_none()).await;
        assert_eq!(ready(&mut changes), [(1, Some(10), Some(11))]);
        store.delete("user.settings").await?;
        until(&users, |users| users.status().rejected == 0).await;
        // A record that never was good.
        store.put("user.acme.3", "hunter2").await?;
        until(&users, |users| users.rejection(&key("acme", 3)).is_some()).await;
        assert!(!users.contains_key(&key("acme", 3)));
        store.put("user.acme.1", "hunter2").await?;
        until(&users, |users| users.status().rejected == 2).await;
        delete(&store, 1).await;
        delete(&store, 3).await;
        until(&users, |users| users.status().rejected == 0).await;
        assert!(users.is_empty() && users.rejections().is_empty());
        assert_eq!(ready(&mut changes), [(1, Some(11), None)]);
    }
    Ok(())
}

#[tokio::test]
async fn opening_waits_for_the_state_until_its_deadline() -> Outcome {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await?;
    let store = connection.store("live_map").await?;
    assert!(User::live_map(&store).await?.is_empty());
    for id in 0..300 {
        put(&store, id, 1).await;
    }
    assert_eq!(User::live_map(&store).await?.len(), 300);
    eventually("the consumers are gone", async || server.consumers("live_map").await.is_empty())
        .await;
    // An opening that is dropped leaves nothing behind.
    let proxy = TcpProxy::start(server.port()).await;
    let apart = connect(&proxy.url()).await?.store("live_map").await?;
    // The delay is so long that the opening is still pending when its consumer is seen.
    proxy.delay_answers(Duration::from_secs(1));
    tokio::select! {
        opened = User::live_map(&apart) => panic!("{opened:?}"),
        () = eventually("there is a consumer", async || server.consumers("live_map").await.len() == 1) => {}
    }
    eventually("the consumer is gone", async || server.consumers("live_map").await.is_empty())
        .await;

    server.pause();
    let brief = store.with_deadline(Duration::from_millis(300));
    let late = within("the deadline", User::live_map(&brief)).await;
    assert!(matches!(late, Err(KvReadError::Store(KvError::Timeout { .. }))), "{late:?}");
    server.resume();
    Ok(())
}

/// The status reports that the server is unreachable, and since when. Writes of other processes
/// arrive in the end: during an outage, and while only the followers cannot reach the server.
#[tokio::test]
async fn live_values_and_maps_outlive_their_server() -> Outcome {
    let mut server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let connection = connect(&proxy.url()).await?;
    let store = connection.store("live_map").await?;
    for id in 0..10 {
        put(&store, id, 1).await;
    }
    let users = User::live_map(&store).await?;
    let mut changes = users.changes();
    Pool { size: 1 }.write_to_anyway(&store).await?;
    let live = Pool::live(&store).await?;
    proxy.refuse(true);
    server.kill();
    until(&users, |users| !users.status().link.is_up()).await;
    eventually("the value is cut off too", async || !live.status().link.is_up()).await;
    for link in [users.status().link, live.status().link] {
        let WatchLink::Down { since, reason, .. } = link else { panic!("{link:?}") };
        assert!(since.elapsed().is_ok() && !reason.is_empty());
    }
    assert!(!users.status().is_current() && !live.status().is_current());
    assert_eq!((users.len(), live.load().size), (10, 1));
    // A value that is opened meanwhile begins with its default.
    let apart = store.with_deadline(Duration::from_millis(200));
    let mut default = Pool::live_or_default(&apart).await?;
    assert_eq!((default.load().size, default.version()), (0, None));
    assert!(matches!(default.status().sync_state, LiveSyncState::Unknown));
    assert!(!default.status().link.is_up());
    assert!(Pool::live(&apart).await.is_err() && Pool::live_optional(&apart).await.is_err());
    server.restart();
    // The followers are still cut off.
    let others = connect(&server.url()).await?.store("live_map").await?;
    for id in 0..3 {
        delete(&others, id).await;
        put(&others, id + 3, 2).await;
        put(&others, id + 20, 3).await;
    }
    Pool { size: 2 }.write_to_anyway(&others).await?;
    assert_eq!(ready(&mut changes), []);
    assert_eq!((users.len(), live.load().size), (10, 1));
    proxy.refuse(false);
    until(&users, |users| users.status().is_current()).await;
    let expected = stored(&others).await;
    until(&users, |users| ages(&users.snapshot()) == expected).await;
    let mut seen = ready(&mut changes);
    seen.sort();
    let gone = (0..3).map(|id| (id, Some(1), None));
    let changed = (3..6).map(|id| (id, Some(1), Some(2)));
    let new = (20..23).map(|id| (id, None, Some(3)));
    assert!(seen.iter().copied().eq(gone.chain(changed).chain(new)), "{seen:?}");
    put(&others, 0, 4).await;
    assert_eq!(told(&mut changes).await, (0, None, Some(4)));
    assert_eq!(default.changed().await?.size, 2);
    eventually("the values are current", async || {
        live.load().size == 2 && live.status().is_current() && default.status().is_current()
    })
    .await;
    Ok(())
}

/// A store that is deleted and recreated is followed again. The map has none of its earlier
/// records, not even one with the same version now.
#[tokio::test]
async fn recreated_store_is_followed() -> Outcome {
    for (connection, store) in stores().await {
        put(&store, 1, 10).await;
        put(&store, 2, 20).await;
        put(&store, 3, 30).await;
        let users = User::live_map(&store).await?;
        let mut changes = users.changes();
        store.put("user.acme.2", "hunter2").await?;
        until(&users, |users| users.status().rejected == 1).await;
        let first = users.get(&key("acme", 1)).ok_or("it is absent")?;
        connection.delete_store(store.name()).await?;
        until(&users, |users| matches!(users.status().sync_state, LiveMapSyncState::Rereading))
            .await;
        assert!(!users.status().is_current());
        assert_eq!((users.len(), users.status().rejected), (3, 1));
        let again = connection.store(store.name()).await?;
        // A handle of a deleted store may stay unusable, as the backend says.
        if store.keys(WatchScope::All).try_collect().await.is_err() {
            continue;
        }
        put(&again, 1, 11).await;
        until(&users, |users| users.status().is_current() && users.len() == 1).await;
        until(&users, |users| users.get(&key("acme", 1)).is_some_and(|user| user.age == 11)).await;
        let user = users.get(&key("acme", 1)).ok_or("it is absent")?;
        assert_eq!(LiveSnapshot::version(&user), LiveSnapshot::version(&first));
        assert_ne!(LiveSnapshot::created(&user), LiveSnapshot::created(&first));
        assert_eq!(users.status().rejected, 0);
        let mut seen = ready(&mut changes);
        seen.sort();
        assert_eq!(seen, [(1, Some(10), Some(11)), (2, Some(20), None), (3, Some(30), None)]);
        put(&again, 4, 40).await;
        assert_eq!(told(&mut changes).await, (4, None, Some(40)));
    }
    Ok(())
}

/// While others write, applying the changes to a snapshot gives the map in the end, for each
/// reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_and_changes_together_are_exact() -> Outcome {
    const USERS: u32 = 50;
    for (_connection, store) in stores().await {
        for id in 0..USERS / 2 {
            put(&store, id, 0).await;
        }
        let users = User::live_map(&store).await?;
        let readers = [0_u32, 1, 20].map(|pauses| {
            let mut changes = users.changes();
            tokio::spawn(async move {
                let mut own = ages(&changes.snapshot());
                while !own.contains_key(&1000) {
                    let (id, old, new) = told(&mut changes).await;
                    assert_eq!(own.get(&id).copied(), old);
                    match new {
                        Some(new) => own.insert(id, new),
                        None => own.remove(&id),
                    };
                    for _ in 0..pauses {
                        tokio::task::yield_now().await;
                    }
                }
                while let Some(change) = changes.next().now_or_never().flatten() {
                    match change.new {
                        Some(new) => own.insert(change.key.id, new.age),
                        None => own.remove(&change.key.id),
                    };
                }
                assert_eq!(own, ages(&changes.snapshot()));
                own
            })
        });
        let writers = (0..4).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for step in 0..300 {
                    let id = (step * 7 + writer * 13) % USERS;
                    if step % 3 == 0 {
                        delete(&store, id).await
                    } else {
                        put(&store, id, step % 150).await
                    }
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await?;
        }
        put(&store, 1000, 1).await;
        let expected = stored(&store).await;
        for reader in readers {
            assert_eq!(within("a reader", reader).await?, expected);
        }
        assert_eq!(ages(&users.snapshot()), expected);
    }
    Ok(())
}
