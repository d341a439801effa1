//! Many watches over one connection, and a server that restarts again and again.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shizuku_kv::{Connection, KvUpdate, Store, Watch, WatchScope, connect};
use shizuku_kv_tests::NatsServer;
use tokio::task::JoinSet;

use crate::random::Random;

const WATCHES: usize = 200;

const KEYS: usize = 50;

/// Long enough for the server to forget what nobody deleted, which takes a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// The values that a watch has, and what it did wrong.
#[derive(Debug, Default)]
struct View {
    values: BTreeMap<String, String>,
    versions: HashMap<String, u64>,
    trouble: Option<String>,
}

impl View {
    fn take(&mut self, update: KvUpdate) {
        let Some(entry) = update.into_entry() else { return };
        let (key, version) = (entry.key.to_string(), entry.version.as_u64().expect("a number"));
        let before = self.versions.insert(key.clone(), version);
        if before.is_some_and(|before| before >= version) {
            self.trouble = Some(format!("{key} has version {version} after {before:?}"));
        }
        if entry.is_tombstone() {
            self.values.remove(&key);
        } else {
            self.values.insert(key, String::from_utf8_lossy(&entry.value).into_owned());
        }
    }
}

async fn follow(mut watch: Watch, view: Arc<Mutex<View>>) {
    loop {
        match watch.next().await {
            Some(Ok(update)) => view.lock().unwrap().take(update),
            ended => {
                view.lock().unwrap().trouble = Some(format!("it ended: {ended:?}"));
                return;
            }
        }
    }
}

fn scope(number: usize) -> WatchScope {
    match number % 4 {
        0 => WatchScope::All,
        1 => WatchScope::key(format!("key.{}", number % KEYS)).expect("a key"),
        2 => WatchScope::prefix("key.1"),
        _ => WatchScope::prefixes(["key.2", "key.3"]),
    }
}

/// Waits for a condition and gives how long that took.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) -> Duration {
    let start = Instant::now();
    while let Err(why) = condition().await {
        assert!(start.elapsed() < PATIENCE, "not so within {PATIENCE:?}: {what}: {why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

async fn values(store: &Store) -> BTreeMap<String, String> {
    let entries = store.scan(WatchScope::All).try_collect().await.expect("a listing");
    let value = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    entries.into_iter().map(|entry| (entry.key.to_string(), value(&entry.value))).collect()
}

/// After a storm of restarts there is one consumer for each watch and no other, all watches have everything, and when
/// they are dropped nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_restarts_leaves_one_consumer_for_each_watch() {
    let restarts = if std::env::var_os("SHIZUKU_LONG").is_some() { 50 } else { 10 };
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("storm").await.unwrap();
    let first = (0..KEYS).map(|number| (format!("key.{number}"), "first"));
    assert!(store.put_many(first).await.iter().all(Result::is_ok));
    let mut watches = JoinSet::new();
    let mut views = Vec::new();
    for number in 0..WATCHES {
        let view = Arc::<Mutex<View>>::default();
        watches.spawn(follow(store.watch(scope(number)).await.unwrap(), Arc::clone(&view)));
        views.push((scope(number), view));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, is_over) = (store.clone(), Arc::clone(&is_over));
        async move {
            for round in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                let key = format!("key.{}", round % KEYS);
                // Whether it took effect is of no matter here.
                let _ = match round % 11 {
                    0 => store.delete(&key).await,
                    _ => store.put(&key, format!("round {round}")).await,
                };
            }
        }
    });
    let mut random = Random::new(1, "storm");
    let start = Instant::now();
    for number in 0..restarts {
        // It returns when the server is up again. Half of them are killed at once; others when some of the watches, or
        // nearly all, have come back.
        tokio::task::block_in_place(|| server.restart());
        let back = random.below(WATCHES as u64);
        if number % 2 == 1 {
            until("watches come back", async || match server.consumers("storm").await.len() as u64 {
                found if found >= back => Ok(()),
                found => Err(format!("there are {found} consumers")),
            })
            .await;
        }
    }
    let stormed = start.elapsed();
    is_over.store(true, Ordering::Relaxed);
    writer.await.unwrap();

    let converged = until("every watch has everything", async || {
        let there = values(&store).await;
        for (number, (scope, view)) in views.iter().enumerate() {
            let view = view.lock().unwrap();
            assert_eq!(view.trouble, None, "watch {number}, {scope:?}");
            let wanted = there.iter().filter(|(key, _)| scope.matches(key));
            if !wanted.eq(&view.values) {
                return Err(format!("watch {number}, {scope:?}, has {:?}", view.values));
            }
        }
        Ok(())
    })
    .await;
    let count = async |wanted: usize| match server.consumers("storm").await.len() {
        found if found == wanted => Ok(()),
        found => Err(format!("there are {found} consumers")),
    };
    let cleared = until("there is one consumer for each watch", async || count(WATCHES).await).await;
    watches.shutdown().await;
    let gone = until("no consumer is left", async || count(0).await).await;
    println!(
        "{restarts} restarts in {stormed:.1?}; all watches had everything {converged:.1?} later, there was one consumer for \
         each {cleared:.1?} after that, and none {gone:.1?} after they were dropped"
    );
}
