//! Shared upstreams of many readers of one store: live values and typed watches, and their
//! observable effects.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Connection, KeyValue, KeyValueRead, KeyValueWrite, KvReadError, Live, LiveRead, LiveSnapshot,
    LiveSyncState, Store, TypedEntry, TypedUpdate, TypedWatch, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique};

/// Timeout of operations that take a moment if all is well.
const PATIENCE: Duration = Duration::from_secs(45);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "area.{area}.user.{id}", codec = json)]
struct User {
    area: u32,
    id: u32,
    count: u64,
}

/// Number of areas of the users.
const AREAS: u32 = 7;

fn user(id: u32, count: u64) -> User {
    User { area: id % AREAS, id, count }
}

fn key(id: u32) -> <User as KeyValue>::Key {
    user(id, 0).kv_key()
}

/// Returns a store of its own on the server that all tests share, and its connection.
async fn store() -> (Arc<dyn Connection>, Store) {
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let store = connection.store(&unique("shared")).await.unwrap();
    (connection, store)
}

async fn write(store: &Store, user: User) {
    user.write_to_anyway(store).await.unwrap();
}

async fn write_all(store: &Store, users: &[User]) {
    for written in User::write_many(store, users).await {
        written.unwrap();
    }
}

/// Opens a live value. For many at once a loaded machine needs longer than the default deadline.
async fn open(store: &Store, id: u32) -> Live<Option<User>> {
    User::live_at_optional(&store.with_deadline(PATIENCE), key(id)).await.unwrap()
}

async fn consumers(server: &NatsServer, store: &Store) -> usize {
    server.consumers(store.name()).await.len()
}

/// Waits until live values, one for each of these users, have them.
async fn until_all(lives: &[Live<Option<User>>], wanted: &[Option<User>]) {
    assert_eq!(lives.len(), wanted.len());
    let all = lives.iter().zip(wanted).map(async |(live, wanted)| {
        let statuses = live.statuses();
        let reached = async {
            while live.load().as_ref() != wanted.as_ref()
                || !live.status().is_current() && wanted.is_some()
            {
                statuses.next().await.expect("it has ended");
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{wanted:?} is awaited by {live:?}");
    });
    join_all(all).await;
}

fn present(users: impl IntoIterator<Item = User>) -> Vec<Option<User>> {
    users.into_iter().map(Some).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_values_of_many_keys_share_few_consumers() {
    const MANY: u32 = 2_000;
    let (server, (_connection, store)) = (NatsServer::shared(), store().await);
    let users: Vec<_> = (0..MANY).map(|id| user(id, 1)).collect();
    write_all(&store, &users).await;
    // Some are opened one by one, the others at once, and some one by one again.
    let mut lives = Vec::new();
    for id in 0..40 {
        lives.push(open(&store, id).await);
    }
    eventually("there are a few consumers", async || consumers(server, &store).await <= 16).await;
    lives.extend(join_all((40..MANY - 20).map(|id| open(&store, id))).await);
    for id in MANY - 20..MANY {
        lives.push(open(&store, id).await);
    }
    for (live, user) in lives.iter().zip(&users) {
        assert_eq!(live.load().as_ref(), Some(user));
    }
    eventually("there are a few consumers", async || consumers(server, &store).await <= 16).await;

    // Each write arrives at its readers, once, and at no others.
    let mut changes: Vec<_> = lives.iter().map(Live::stream).collect();
    for (changes, user) in changes.iter_mut().zip(&users) {
        let heard = changes.next().await.unwrap();
        assert_eq!(LiveSnapshot::value(&heard).as_ref(), Some(user));
    }
    let mut wanted = present(users);
    for id in (0..MANY).step_by(37) {
        write(&store, user(id, 2)).await;
        wanted[id as usize] = Some(user(id, 2));
    }
    until_all(&lives, &wanted).await;
    for (id, changes) in changes.iter_mut().enumerate() {
        let next = tokio::time::timeout(Duration::ZERO, changes.next()).await;
        let heard = next.ok().map(|next| LiveSnapshot::value(&next.expect("it goes on")).clone());
        assert_eq!(heard, id.is_multiple_of(37).then(|| wanted[id].clone()), "user {id}");
        let again = tokio::time::timeout(Duration::ZERO, changes.next()).await;
        assert!(again.is_err(), "user {id}: {again:?}");
    }
    drop(changes);

    let kept = lives.into_iter().step_by(200).collect::<Vec<_>>();
    eventually("there are fewer consumers", async || consumers(server, &store).await <= 8).await;
    let ids: Vec<_> = (0..MANY).step_by(200).collect();
    assert_eq!(kept.len(), 10);
    for count in 3..6 {
        write_all(&store, &ids.iter().map(|id| user(*id, count)).collect::<Vec<_>>()).await;
        until_all(&kept, &present(ids.iter().map(|id| user(*id, count)))).await;
    }
    drop(kept);
    eventually("no consumer is left", async || consumers(server, &store).await == 0).await;
}

/// The deliveries of a typed watch.
#[derive(Debug, Default)]
struct Seen {
    newest: HashMap<u32, (u64, Option<User>)>,
    updates: HashMap<u32, usize>,
    markers: usize,
}

impl Seen {
    fn take(&mut self, update: TypedUpdate<User>) {
        let (id, version, user) = match update {
            TypedUpdate::Put(entry) => {
                (entry.id, TypedEntry::version(&entry), Some(TypedEntry::into_value(entry)))
            }
            TypedUpdate::Delete { key, version, .. } => (key.id, version, None),
            other => {
                assert!(matches!(other, TypedUpdate::CaughtUp), "{other:?}");
                self.markers += 1;
                assert_eq!(self.markers, 1, "it has caught up twice");
                return;
            }
        };
        let version = version.as_u64().unwrap();
        let before = self.newest.insert(id, (version, user));
        assert!(
            before.as_ref().is_none_or(|(before, _)| *before < version),
            "{version} after {before:?}"
        );
        *self.updates.entry(id).or_default() += 1;
    }

    fn users(&self) -> BTreeMap<u32, User> {
        let users = self.newest.iter().filter_map(|(id, (_, user))| Some((*id, user.clone()?)));
        users.collect()
    }

    async fn take_next(&mut self, watch: &TypedWatch<User>) {
        let next = tokio::time::timeout(PATIENCE, watch.next()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing comes after {self:?}"));
        self.take(next.expect("the watch goes on").unwrap());
    }

    async fn until_caught_up(&mut self, watch: &TypedWatch<User>) {
        while self.markers == 0 {
            self.take_next(watch).await;
        }
    }

    async fn until_users(&mut self, watch: &TypedWatch<User>, wanted: &BTreeMap<u32, User>) {
        while self.users() != *wanted {
            self.take_next(watch).await;
        }
    }
}

/// Returns the initial state of a watch.
async fn state(watch: Result<TypedWatch<User>, KvReadError>) -> BTreeMap<u32, User> {
    let (watch, mut seen) = (watch.unwrap(), Seen::default());
    seen.until_caught_up(&watch).await;
    seen.users()
}

/// Returns the stored records.
async fn stored(store: &Store) -> BTreeMap<u32, User> {
    let users = User::list(store).try_collect().await.unwrap();
    users.into_iter().map(|entry| (entry.id, TypedEntry::into_value(entry))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_prefix_share_three_consumers_with_a_slow_one() {
    const USERS: u32 = 40;
    const ROUNDS: u64 = 60;
    let (server, (_connection, store)) = (NatsServer::shared(), store().await);
    write_all(&store, &(0..USERS).map(|id| user(id, 0)).collect::<Vec<_>>()).await;
    let before = stored(&store).await;
    let watch = async || User::watch_scope(&store, WatchScope::prefix("area.")).await.unwrap();
    // The first has its upstream alone, but the slow ones must share one.
    let mut watches = vec![watch().await];
    watches.extend(join_all((0..48).map(|_| watch())).await);
    watches.push(watch().await);
    let slow = watches.split_off(48);
    assert_eq!((watches.len(), slow.len()), (48, 2));

    let mut all = Vec::new();
    for watch in watches {
        let mut seen = Seen::default();
        seen.until_caught_up(&watch).await;
        assert_eq!(seen.users(), before);
        all.push((watch, seen));
    }
    eventually("there are three consumers at most", async || consumers(server, &store).await <= 3)
        .await;
    for round in 1..=ROUNDS {
        let records: Vec<_> = (0..USERS).map(|id| user(id, round)).collect();
        write_all(&store, &records).await;
        if round % 20 == 0 {
            User::delete_anyway(&store, key((round % u64::from(USERS)).try_into().unwrap()))
                .await
                .unwrap();
        }
    }
    write(&store, user(USERS, ROUNDS)).await;
    let after = stored(&store).await;
    let followed = all.iter_mut().map(async |(watch, seen)| {
        seen.until_users(watch, &after).await;
        assert_eq!(seen.markers, 1);
    });
    join_all(followed).await;
    // All writes have passed the others, and so the upstream of these.
    for watch in &slow {
        let mut seen = Seen::default();
        seen.until_caught_up(watch).await;
        assert_eq!(seen.users(), before);
        seen.until_users(watch, &after).await;
        let most = seen.updates.values().max();
        assert!(most <= Some(&2), "a reader that was away is told of {most:?} changes of a key");
    }
    assert!(consumers(server, &store).await <= 3);
    drop((all, slow));
    eventually("no consumer is left", async || consumers(server, &store).await == 0).await;
}

/// Holds whatever is shared already, and whatever others write and open meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_write_before_watch_is_never_missed() {
    const ROUNDS: u64 = 300;
    const WRITERS: u32 = 6;
    let (_connection, store) = store().await;
    let others: Vec<_> = (100..180).map(|id| user(id, 0)).collect();
    write_all(&store, &others).await;
    // Already open: live values of these keys and others, and watches of their prefix.
    let mut sync_state = join_all((100..180).map(|id| open(&store, id))).await;
    sync_state.extend(join_all((0..WRITERS).map(|id| open(&store, id))).await);
    let watches = join_all((0..3).map(|_| User::watch_all(&store))).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let noise = tokio::spawn({
        let (store, is_over) = (store.clone(), Arc::clone(&is_over));
        async move {
            for count in (1..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                write(&store, user(100 + (count % 80) as u32, count)).await;
            }
        }
    });
    // Others open the same all the time, so that almost always one is just being opened.
    let crowd: Vec<_> = (0..WRITERS)
        .map(|id| {
            let (store, is_over) = (store.clone(), Arc::clone(&is_over));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let _watch = User::watch(&store, key(id)).await.unwrap();
                    let _all = User::watch_all(&store).await.unwrap();
                }
            })
        })
        .collect();
    let rounds = (0..WRITERS).map(|id| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in (1..=ROUNDS).filter(|round| round % u64::from(WRITERS) == u64::from(id)) {
                let wanted = user(id, round);
                write(&store, wanted.clone()).await;
                assert_eq!(open(&store, id).await.load().as_ref(), Some(&wanted), "a live value");
                let wanted = user(id, round + ROUNDS);
                write(&store, wanted.clone()).await;
                let seen = state(User::watch(&store, key(id)).await).await;
                assert_eq!(seen.get(&id), Some(&wanted), "a watch of the key");
                let wanted = user(id, round + 2 * ROUNDS);
                write(&store, wanted.clone()).await;
                let seen = state(User::watch_all(&store).await).await;
                assert_eq!(seen.get(&id), Some(&wanted), "a watch of the prefix");
                if round % 5 == 0 {
                    User::delete_anyway(&store, key(id)).await.unwrap();
                    assert_eq!(
                        open(&store, id).await.load().as_ref(),
                        None,
                        "a live value after a deletion"
                    );
                }
            }
        })
    });
    for round in join_all(rounds).await {
        round.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    noise.await.unwrap();
    for asked in join_all(crowd).await {
        asked.unwrap();
    }
    let there = stored(&store).await;
    let wanted = (100..180).chain(0..WRITERS).map(|id| there.get(&id).cloned()).collect::<Vec<_>>();
    until_all(&sync_state, &wanted).await;
    for watch in watches {
        let watch = watch.unwrap();
        let mut seen = Seen::default();
        seen.until_users(&watch, &there).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreated_bucket_is_followed_by_all() {
    const MANY: u32 = 300;
    let (server, (connection, store)) = (NatsServer::shared(), store().await);
    write_all(&store, &(0..MANY).map(|id| user(id, 1)).collect::<Vec<_>>()).await;
    let lives = join_all((0..MANY).map(|id| open(&store, id))).await;
    connection.delete_store(store.name()).await.unwrap();
    let again = connection.store(store.name()).await.unwrap();
    // Half of them exist again: some unchanged, with the version they had, others with new values.
    let users: Vec<_> =
        (0..MANY).step_by(2).map(|id| user(id, u64::from(id % 4 / 2) + 1)).collect();
    write_all(&again, &users).await;
    let there: BTreeMap<_, _> = users.into_iter().map(|user| (user.id, user)).collect();
    let wanted: Vec<_> = (0..MANY).map(|id| there.get(&id).cloned()).collect();
    until_all(&lives, &wanted).await;
    for (live, wanted) in lives.iter().zip(&wanted) {
        let stored = live.version();
        assert_eq!(stored.is_some(), wanted.is_some(), "{live:?}");
        let is_absent = matches!(live.status().sync_state, LiveSyncState::Absent { .. });
        assert_eq!(is_absent, wanted.is_none(), "{live:?}");
    }
    // Updates continue.
    let users: Vec<_> = (0..MANY).map(|id| user(id, 7)).collect();
    write_all(&again, &users).await;
    until_all(&lives, &present(users)).await;
    eventually("there are a few consumers", async || consumers(server, &again).await <= 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursor_of_a_shared_watch_resumes_without_a_gap() {
    const USERS: u32 = 20;
    let (_connection, store) = store().await;
    // While this entry exists, which is the first, no cursor expires.
    write(&store, user(999, 0)).await;
    write_all(&store, &(0..USERS + 30).map(|id| user(id, 0)).collect::<Vec<_>>()).await;
    let scope = || WatchScope::prefix("area.");
    let _alone = User::watch_scope(&store, scope()).await.unwrap();
    let watches = join_all((0..5).map(|_| User::watch_scope(&store, scope()))).await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            // Each has its last write at another moment, so that a missed write is not hidden by a
            // later one.
            for count in 1..=60 {
                for id in (count / 3).try_into().unwrap()..USERS {
                    write(&store, user(id, count)).await;
                    if (count + u64::from(id)) % 13 == 0 {
                        User::delete_anyway(&store, key(id)).await.unwrap();
                    }
                }
            }
        }
    });
    // Each stops at another position, some within the state.
    let mut kept = Vec::new();
    for (number, watch) in watches.into_iter().enumerate() {
        let watch = watch.unwrap();
        let mut seen = Seen::default();
        for _ in 0..3 + 40 * number {
            seen.take_next(&watch).await;
        }
        kept.push((seen, watch.cursor().unwrap()));
    }
    writer.await.unwrap();
    let there = stored(&store).await;
    for (mut seen, cursor) in kept {
        seen.markers = 0;
        match User::watch_scope_from(&store, scope(), cursor).await {
            Ok(watch) => {
                seen.until_caught_up(&watch).await;
                assert_eq!(seen.users(), there, "resumed at {cursor:?}");
            }
            Err(KvReadError::Store(error)) => panic!("{error}: {cursor:?}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn live_values_of_one_runtime_outlive_another() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let own = runtime();
    let server = NatsServer::shared();
    let (_connection, store) = own.block_on(store());
    let users: Vec<_> = (0..100).map(|id| user(id, 0)).collect();
    own.block_on(write_all(&store, &users));
    let other = runtime();
    // Opens them in turns, so that each could share an upstream of the other runtime.
    let (mut staying, mut ending) = (Vec::new(), Vec::new());
    for part in 0..5 {
        let ids = || (part * 20..part * 20 + 20).map(|id| open(&store, id));
        ending.extend(other.block_on(join_all(ids())));
        staying.extend(own.block_on(join_all(ids())));
    }
    other.shutdown_timeout(Duration::from_secs(10));
    // Not earlier, because the other runtime may have been replacing consumers.
    let before = own.block_on(server.consumers(store.name()));
    own.block_on(async {
        let users: Vec<_> = (0..100).map(|id| user(id, 1)).collect();
        write_all(&store, &users).await;
        until_all(&staying, &present(users)).await;
        for live in &ending {
            assert!(matches!(live.status().sync_state, LiveSyncState::Ended { .. }), "{live:?}");
            assert_eq!(live.load().as_ref().map(|user| user.count), Some(0));
        }
        let more = join_all((0..100).map(|id| open(&store, id))).await;
        drop((staying, ending));
        write(&store, user(3, 2)).await;
        until_all(&more[3..4], &[Some(user(3, 2))]).await;
        drop(more);
        // Consumers of the other runtime may stay on the server, until no request has come for a
        // minute.
        eventually("the watches from here have ended", async || {
            let left = server.consumers(store.name()).await;
            left.len() < before.len() && left.iter().all(|name| before.contains(name))
        })
        .await;
    });
}

/// Readers that wait for a shared upstream do not wait for one that can no longer be opened.
#[test]
fn runtime_can_end_while_watches_are_opened() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (own, other) = (runtime(), runtime());
    let mut server = NatsServer::start();
    let store = own.block_on(async {
        let connection = connect(&server.url()).await.unwrap();
        let store = connection.store("b").await.unwrap();
        write_all(&store, &[user(0, 0), user(1, 1)]).await;
        store
    });
    server.pause();
    for id in 0..20 {
        let store = store.clone();
        other.spawn(async move { User::live_at(&store, key(id)).await });
    }
    // Some are being opened, and the others wait for their turn.
    other.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    other.shutdown_timeout(Duration::from_secs(10));
    server.resume();
    own.block_on(async { until_all(&[open(&store, 1).await], &[Some(user(1, 1))]).await });
}
