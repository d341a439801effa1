//! The keys that sessions leave in a store, and the number of messages for them.

use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use futures_util::future::join_all;
use shizuku_kv::rw_lock::{DistroRwLock, LeaderElection, LockOptions};
use shizuku_kv::{Connection, KvUpdate, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique, urls};

use crate::rw_lock::{
    LEASE, SHORT_LEASE, dies_holding, handles, in_line, options, runtime, start_waiting,
};

const PREFIX: &str = "rw_lock_session.";

fn lock(store: &Store, resource: &str, lease: Duration) -> DistroRwLock {
    DistroRwLock::with_options(store, resource, options().lease(lease)).unwrap()
}

/// Returns the keys that sessions have left, those of ended ones included.
async fn left(store: &Store) -> usize {
    let watch = store.watch(WatchScope::prefix(PREFIX)).await.unwrap();
    let mut keys = 0;
    while !matches!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp) {
        keys += 1;
    }
    keys
}

async fn alive(store: &Store) -> usize {
    store.keys(WatchScope::prefix(PREFIX)).try_collect().await.unwrap().len()
}

/// Returns the keys that the first few sessions of a store use.
async fn first_keys(lock: &DistroRwLock) -> Vec<String> {
    let session = lock.inspect().await.unwrap().holders[0].claim.session.clone();
    let (salt, _) = session.rsplit_once('.').unwrap();
    (0..8).map(|number| format!("{PREFIX}{salt}.{number}")).collect()
}

/// Waits until no session has one of these keys.
async fn no_session_is_left(store: &Store, keys: &[String]) {
    let ended = async || store.get_many(keys).await.unwrap().iter().all(Option::is_none);
    eventually("the sessions end", ended).await;
}

/// Returns the number of messages that the server has received from clients, or sent to them.
async fn messages(server: &NatsServer) -> u64 {
    let mut page = None;
    eventually("the server answers on its monitoring port", async || {
        page = server.page("/varz").await;
        page.is_some()
    })
    .await;
    let page = page.expect("it is answered");
    let number = |name: &str| page[name].as_u64().expect("it counts messages");
    number("in_msgs") + number("out_msgs")
}

/// Entries of a store, and resources of its server and this process, while no operation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Remains {
    keys: usize,
    messages: u64,
    consumers: usize,
    tasks: usize,
}

impl Remains {
    async fn look(store: &Store, stream: &Stream) -> Self {
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let state = stream.get_info().await.unwrap().state;
        let (messages, consumers) = (state.messages, state.consumer_count);
        Self { keys: left(store).await, messages, consumers, tasks }
    }
}

/// Opens a handle, locks, and drops the handle, repeatedly. Otherwise a store without times to live
/// would fill with tombstones, one for each process that ever existed.
#[tokio::test]
async fn successive_sessions_leave_one_key() {
    let server = NatsServer::shared();
    let name = unique("locks");
    for url in urls() {
        let connection = connect(&url).await.unwrap();
        let config = StoreConfig::new().history(5);
        let observer = connection.store_with_config(&name, config).await.unwrap();
        let mut keys = Vec::new();
        // Each round has several commits to a disk.
        for _ in 0..if url.starts_with("file:") { 100 } else { 1000 } {
            let store = connection.store(&name).await.unwrap();
            let lock = lock(&store, "r", 10 * LEASE);
            let held = lock.write().await.unwrap();
            if keys.is_empty() {
                keys = first_keys(&lock).await;
            }
            held.release().await.unwrap();
            drop((store, lock));
            no_session_is_left(&observer, &keys).await;
        }
        assert_eq!((alive(&observer).await, left(&observer).await), (0, 1), "{url}");
    }
    let context = async_nats::jetstream::new(server.client().await);
    let mut stream = context.get_stream(format!("KV_{name}")).await.unwrap();
    let state = &stream.info().await.unwrap().state;
    // Five of the record of the lock, and five of the key of the sessions.
    assert!(state.messages <= 10, "{} messages", state.messages);
}

/// There are no more keys than sessions were alive at once.
#[tokio::test]
async fn concurrent_sessions_have_separate_keys() {
    let connection = connect("memory:").await.unwrap();
    let observer = connection.store("locks").await.unwrap();
    for _ in 0..3 {
        let stores = join_all((0..100).map(|_| connection.store("locks"))).await;
        let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
        let guards = join_all(stores.iter().enumerate().map(async |(number, store)| {
            lock(store, &format!("r{number}"), 10 * LEASE).write().await.unwrap()
        }));
        let guards = guards.await;
        assert_eq!(alive(&observer).await, 100);
        join_all(guards.into_iter().map(async |guard| guard.release().await.unwrap())).await;
        drop(stores);
        eventually("they end", async || alive(&observer).await == 0).await;
    }
    assert_eq!(left(&observer).await, 100);
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_session() {
    for stores in handles(2).await {
        let [one, observer] = <[Store; 2]>::try_from(stores).unwrap();
        let lock = lock(&one, "r", 60 * LEASE);
        lock.write().await.unwrap().release().await.unwrap();
        drop(one);
        // The lock is a handle as well.
        assert_eq!(alive(&observer).await, 1);
        drop(lock);
        eventually("the session ends", async || alive(&observer).await == 0).await;
    }
}

/// A process that crashes cannot delete its key. A later one does.
#[test]
fn keys_of_crashed_processes_are_deleted_by_a_later_session() {
    let living = runtime();
    for stores in living.block_on(handles(6)) {
        let (observer, dead) = stores.split_last().unwrap();
        for (number, store) in dead.iter().enumerate() {
            dies_holding(store, &format!("r{number}"), SHORT_LEASE);
        }
        living.block_on(async {
            assert_eq!(alive(observer).await, dead.len());
            let held = lock(observer, "another", LEASE).write().await.unwrap();
            eventually("only one is left", async || alive(observer).await == 1).await;
            held.release().await.unwrap();
        });
    }
}

/// Keys that no session reuses, for example of an earlier version of the library, are not read.
#[tokio::test]
async fn takeover_reads_no_old_sessions() {
    const OLD: usize = 2000;
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let [one, other] =
        [connection.store("locks").await.unwrap(), connection.store("locks").await.unwrap()];
    let old = r#"{"shizuku_lock_session":1,"lease_ms":10000,"renewal":0}"#;
    let keys = (0..OLD).map(|number| (format!("{PREFIX}{number:032x}"), old));
    one.put_many(keys).await;
    let guard = lock(&one, "r", LEASE).write().await.unwrap();
    let before = messages(&server).await;
    let waiting = start_waiting(&lock(&other, "r", LEASE));
    in_line(&lock(&one, "r", LEASE), 1).await;
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();
    let sent = messages(&server).await - before;
    // Reading them would take at least one message for each, in each of two processes.
    assert!(sent < OLD as u64, "{sent} messages to hand over");
}

/// The number of messages grows with the number of holders and waiters, not with their product.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: scripts/test --long"]
async fn many_holders_and_waiters_send_few_messages() {
    const EACH: usize = 100;
    const SECONDS: u64 = 15;
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let mut stores = Vec::new();
    for _ in 0..2 * EACH {
        stores.push(connection.store("locks").await.unwrap());
    }
    let options = LockOptions::new().wait(Duration::from_secs(600));
    let locks: Vec<_> = stores
        .iter()
        .map(|store| DistroRwLock::with_options(store, "r", options.clone()).unwrap())
        .collect();
    let (holders, waiters) = locks.split_at(EACH);
    let mut guards = Vec::new();
    for lock in holders {
        guards.push(lock.read().await.unwrap());
    }
    let mut waiting = Vec::new();
    for lock in waiters {
        waiting.push(start_waiting(lock));
        in_line(&locks[0], waiting.len()).await;
    }
    // Each process watches the record, because it holds its lock for long or waits. Each waiter
    // also watches the sessions before it, in at least one watch.
    eventually("all watches are open", async || server.consumers("locks").await.len() >= 3 * EACH)
        .await;
    let before = messages(&server).await;
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let sent = messages(&server).await - before;
    println!(
        "{:.2} messages for each session and second",
        sent as f64 / (2 * EACH) as f64 / SECONDS as f64
    );
    assert!(sent <= 5 * 2 * EACH as u64 * SECONDS, "{sent} messages in {SECONDS} s");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    drop(guards);
}

/// Successive processes open a handle, lock, hand over, are elected, and end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/test --long"]
async fn ten_thousand_sessions_leave_as_much_as_hundred() {
    const FIRST: usize = 100;
    const ROUNDS: usize = 10_000;
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let config = StoreConfig::new().history(5);
    let observer = connection.store_with_config("locks", config).await.unwrap();
    let context = async_nats::jetstream::new(server.client().await);
    let stream = context.get_stream("KV_locks").await.unwrap();
    let idle = Remains::look(&observer, &stream).await;
    let (mut keys, mut before) = (Vec::new(), None);
    for round in 1..=ROUNDS {
        let stores =
            [connection.store("locks").await.unwrap(), connection.store("locks").await.unwrap()];
        let [one, other] = [0, 1].map(|number| lock(&stores[number], "r", 10 * LEASE));
        let held = one.write().await.unwrap();
        if keys.is_empty() {
            keys = first_keys(&one).await;
        }
        let waiting = tokio::spawn(async move { other.read().await?.release().await });
        in_line(&one, 1).await;
        held.release().await.unwrap();
        waiting.await.unwrap().unwrap();
        if round % 10 == 0 {
            let term =
                LeaderElection::new(&stores[0], "job", "me").unwrap().campaign().await.unwrap();
            term.resign().await.unwrap();
        }
        drop((stores, one));
        no_session_is_left(&observer, &keys).await;
        if round == FIRST || round == ROUNDS {
            // Tasks and watches end some time after their last use.
            let mut remains = Remains::look(&observer, &stream).await;
            eventually("all tasks and watches end", async || {
                remains = Remains::look(&observer, &stream).await;
                remains.consumers == 0 && remains.tasks <= idle.tasks
            })
            .await;
            println!("after {round} rounds: {remains:?}");
            assert_eq!(*before.get_or_insert(remains.clone()), remains);
        }
    }
}
