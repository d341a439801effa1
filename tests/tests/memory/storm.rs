//! Many watches over one connection, and a server that restarts repeatedly.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Connection, KeyValue, KeyValueRead, KvUpdate, Live, LiveRead, Store, TypedEntry, TypedUpdate,
    TypedWatch, VersionToken, Watch, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, is_long};
use tokio::task::JoinSet;

use super::{ALONE, MEMORY, REST, allocated, allocated_at_most};

const KEYS: u64 = 50;

/// Number of watches of a store, each with a consumer of its own.
const OWN: usize = 120;

/// Number of typed watches of each of two prefixes: the first has its own consumer, the others
/// share one.
const OF_PREFIX: usize = 20;

/// Number of typed watches of single keys, and of live values. All of them share a few consumers.
const OF_KEY: usize = 20;

/// Number of consumers for upstreams of prefixes.
const FOR_PREFIXES: usize = 4;

/// Number of consumers for upstreams of keys. With forty keys, up to four small upstreams are never
/// merged, beside the largest one.
const FOR_KEYS: RangeInclusive<usize> = 1..=5;

/// Number of restarts before the first measurement, so that one-time allocations are in both.
const WARM_UP: usize = 3;

/// Timeout, long enough for the server to delete unused consumers, which takes a minute.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "key.{id}", codec = json)]
struct Record {
    id: u64,
    text: String,
}

/// The values that a watch has, and its faults.
#[derive(Debug, Default)]
struct View {
    values: BTreeMap<u64, String>,
    versions: HashMap<u64, VersionToken>,
    markers: usize,
    trouble: Option<String>,
}

impl View {
    fn take(&mut self, id: u64, version: VersionToken, text: Option<String>) {
        let before = self.versions.insert(id, version);
        if before.is_some_and(|before| before.as_u64() >= version.as_u64()) {
            self.trouble = Some(format!("key.{id} has version {version:?} after {before:?}"));
        }
        match text {
            Some(text) => self.values.insert(id, text),
            None => self.values.remove(&id),
        };
    }

    fn take_raw(&mut self, update: KvUpdate) {
        let Some(entry) = update.into_entry() else { return self.mark() };
        let id = entry
            .key
            .strip_prefix("key.")
            .and_then(|id| id.parse().ok())
            .expect("a key of the test");
        let text = || serde_json::from_slice::<Record>(&entry.value).expect("a record").text;
        self.take(id, entry.version, (!entry.is_tombstone()).then(text));
    }

    fn take_typed(&mut self, update: TypedUpdate<Record>) {
        match update {
            TypedUpdate::Put(entry) => self.take(
                entry.id,
                TypedEntry::version(&entry),
                Some(TypedEntry::into_value(entry).text),
            ),
            TypedUpdate::Delete { key, version, .. } => self.take(key.id, version, None),
            TypedUpdate::CaughtUp => self.mark(),
            other => self.trouble = Some(format!("it delivered {other:?}")),
        }
    }

    fn mark(&mut self) {
        self.markers += 1;
        if self.markers > 1 {
            self.trouble = Some("it has caught up twice".to_owned());
        }
    }
}

async fn follow(watch: Watch, view: Arc<Mutex<View>>) {
    loop {
        match watch.next().await {
            Some(Ok(update)) => view.lock().unwrap().take_raw(update),
            ended => return view.lock().unwrap().trouble = Some(format!("it ended: {ended:?}")),
        }
    }
}

async fn follow_typed(watch: TypedWatch<Record>, view: Arc<Mutex<View>>) {
    loop {
        match watch.next().await {
            Some(Ok(update)) => view.lock().unwrap().take_typed(update),
            ended => return view.lock().unwrap().trouble = Some(format!("it ended: {ended:?}")),
        }
    }
}

/// All readers during a storm. Their tasks end with this.
#[derive(Default)]
struct Readers {
    views: Vec<(WatchScope, Arc<Mutex<View>>)>,
    lives: Vec<(u64, Live<Option<Record>>)>,
    tasks: JoinSet<()>,
}

impl Readers {
    async fn open(store: &Store) -> Self {
        let mut readers = Self::default();
        for number in 0..OWN {
            let key = || WatchScope::key(format!("key.{}", number as u64 % KEYS)).expect("a key");
            let scope = match number % 4 {
                0 => WatchScope::All,
                1 => key(),
                2 => WatchScope::prefix("key.1"),
                _ => WatchScope::prefixes(["key.2", "key.3"]),
            };
            let watch = store.watch(scope.clone()).await.unwrap();
            let view = readers.view(scope);
            readers.tasks.spawn(follow(watch, view));
        }
        for scope in [Record::kv_scope().unwrap(), WatchScope::prefix("key.4")] {
            for _ in 0..OF_PREFIX {
                let watch = Record::watch_scope(store, scope.clone()).await.unwrap();
                let view = readers.view(scope.clone());
                readers.tasks.spawn(follow_typed(watch, view));
            }
        }
        for id in (0..KEYS).cycle().step_by(3).take(OF_KEY) {
            let watch = Record::watch(store, id).await.unwrap();
            let view = readers.view(WatchScope::key(format!("key.{id}")).expect("a key"));
            readers.tasks.spawn(follow_typed(watch, view));
            let live = Record::live_at_optional(store, (id + 1) % KEYS).await.unwrap();
            readers.lives.push(((id + 1) % KEYS, live));
        }
        readers
    }

    fn view(&mut self, scope: WatchScope) -> Arc<Mutex<View>> {
        let view = Arc::<Mutex<View>>::default();
        self.views.push((scope, Arc::clone(&view)));
        view
    }

    fn len(&self) -> usize {
        self.views.len() + self.lives.len()
    }

    /// Returns the reason why a reader does not have the present values, if any.
    fn compare(&self, there: &BTreeMap<u64, String>) -> Result<(), String> {
        for (number, (scope, view)) in self.views.iter().enumerate() {
            let view = view.lock().unwrap();
            assert_eq!(view.trouble, None, "watch {number}, {scope:?}");
            let wanted = there.iter().filter(|(id, _)| scope.matches(&format!("key.{id}")));
            if !wanted.eq(&view.values) || view.markers != 1 {
                return Err(format!("watch {number}, {scope:?}, has {view:?}"));
            }
        }
        for (id, live) in &self.lives {
            let value = live.load();
            if value.as_ref().map(|record| &record.text) != there.get(id)
                || !live.status().is_current()
            {
                return Err(format!("the live value of {id}: {live:?}"));
            }
        }
        Ok(())
    }
}

/// Waits for a condition and returns the duration.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) -> Duration {
    let start = Instant::now();
    while let Err(why) = condition().await {
        assert!(start.elapsed() < PATIENCE, "not so within {PATIENCE:?}: {what}: {why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

/// Returns the number of consumers of the server, by its monitoring.
async fn consumers(server: &NatsServer) -> usize {
    let page = server.page("/jsz").await.expect("the server answers");
    page["consumers"].as_u64().expect("a number of consumers").try_into().unwrap()
}

/// Returns the number of pending requests at each consumer of the server. A consumer without one
/// has no reader.
async fn requests(server: &NatsServer) -> Vec<u64> {
    let page = server.page("/jsz?consumers=true").await.expect("the server answers");
    let accounts = page["account_details"].as_array().into_iter().flatten();
    let streams =
        accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
    let consumers =
        streams.flat_map(|stream| stream["consumer_detail"].as_array().into_iter().flatten());
    consumers
        .map(|consumer| consumer["num_waiting"].as_u64().expect("a number of requests"))
        .collect()
}

/// Returns the memory that the system has given to the process, if it reports that.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or_else(|| "unknown".to_owned(), |size| size.trim().to_owned())
}

struct Storm {
    server: NatsServer,
    store: Store,
    restarts: usize,
    /// Maximum number of consumers at a time.
    most: usize,
}

/// The process at rest.
struct Rest {
    allocated: usize,
    consumers: usize,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes and {} consumers", self.allocated, self.consumers)
    }
}

impl Storm {
    /// Restarts the server while others write.
    async fn rage(&mut self, restarts: usize) {
        let is_over = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn({
            let (store, is_over) = (self.store.clone(), Arc::clone(&is_over));
            async move {
                for round in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let record = Record { id: round % KEYS, text: format!("round {round}") };
                    // The outcome does not matter here.
                    let _ = match round % 11 {
                        0 => Record::delete_anyway(&store, record.id).await,
                        _ => record.write_to_anyway(&store).await,
                    };
                }
            }
        });
        for _ in 0..restarts {
            // Returns when the server is up again. Half of the servers are killed at once, and
            // others when some of the watches, or nearly all, have come back.
            tokio::task::block_in_place(|| self.server.restart());
            self.restarts += 1;
            if self.restarts.is_multiple_of(2) {
                let back = self.restarts * 37 % OWN;
                until("watches come back", async || self.sample(back..=usize::MAX).await).await;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        writer.await.unwrap();
    }

    /// Counts the consumers, and compares their number.
    async fn sample(&mut self, wanted: RangeInclusive<usize>) -> Result<(), String> {
        let there = consumers(&self.server).await;
        self.most = self.most.max(there);
        if wanted.contains(&there) { Ok(()) } else { Err(format!("there are {there} consumers")) }
    }

    /// Waits until every reader has the present values, and the server has exactly the consumers
    /// that are read from.
    async fn calm(&mut self, readers: &Readers) -> Rest {
        let mut there = BTreeMap::new();
        for id in 0..KEYS {
            let text = format!("after restart {}", self.restarts);
            let record = Record { id, text: text.clone() };
            let write = async || record.write_to_anyway(&self.store).await.map(drop);
            until("a write succeeds", async || write().await.map_err(|error| error.to_string()))
                .await;
            there.insert(id, text);
        }
        until("everyone has everything", async || {
            // Counts consumers while the readers come back.
            let _ = self.sample(0..=0).await;
            readers.compare(&there)
        })
        .await;
        let shared = FOR_PREFIXES + FOR_KEYS.start()..=FOR_PREFIXES + FOR_KEYS.end();
        let mut consumers = 0;
        until("the consumers are those that are read from", async || {
            let _ = self.sample(0..=0).await;
            let requests = requests(&self.server).await;
            consumers = requests.len();
            let unread = requests.iter().filter(|waiting| **waiting == 0).count();
            if unread == 0 && shared.contains(&consumers.wrapping_sub(OWN)) {
                return Ok(());
            }
            Err(format!("there are {consumers}, {unread} without a reader"))
        })
        .await;
        Rest { allocated: allocated(REST).await, consumers }
    }
}

/// After a storm of restarts the server has exactly the consumers that are read from. Every watch
/// and every live value has everything, and the client has no more memory than before. When they
/// are dropped nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_restarts_leaves_nothing_behind() {
    let _alone = ALONE.lock().await;
    let restarts = if is_long() { 250 } else { 20 };
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("storm").await.unwrap();
    let mut storm = Storm { server, store: store.clone(), restarts: 0, most: 0 };
    let alone = allocated(REST).await;
    for id in 0..KEYS {
        Record { id, text: "first".to_owned() }.write_to_anyway(&store).await.unwrap();
    }
    let readers = Readers::open(&store).await;
    assert_eq!(readers.len(), 200);

    storm.rage(WARM_UP).await;
    let before = storm.calm(&readers).await;
    let resident_before = resident();
    MEMORY.reset_peak_usage();
    storm.most = 0;
    let start = Instant::now();
    storm.rage(restarts).await;
    let stormed = start.elapsed();
    let limit = before.allocated + before.allocated / 10;
    let mut after = storm.calm(&readers).await;
    after.allocated = allocated_at_most(limit, REST).await;
    println!(
        "{restarts} restarts in {stormed:.1?}, and all was measured after {:.1?}; before {before}, after {after}, meanwhile \
         at most {} bytes and {} consumers; resident before {resident_before}, after {}; {alone} bytes without watches",
        start.elapsed(),
        MEMORY.peak_usage(),
        storm.most,
        resident()
    );
    assert!(after.allocated <= limit, "before {before}, after {after}");
    // Readers that came back leave none behind, because the storm would add up those of all
    // restarts. One more may exist while it replaces others, and for each reader the consumer of an
    // attempt whose answer was late.
    let bound = 2 * OWN + FOR_PREFIXES + FOR_KEYS.end() + 1;
    assert!(storm.most <= bound, "there were {} consumers at a time", storm.most);

    drop(readers);
    let gone = until("no consumer is left", async || storm.sample(0..=0).await).await;
    println!("none {gone:.1?} after the watches were dropped, and {} bytes", allocated(REST).await);
}
