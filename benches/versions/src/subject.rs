//! The measured operations, once for each version.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Size of a value in bytes.
pub(crate) const VALUE: usize = 200;

/// Number of keys with a common prefix.
pub(crate) const GROUP: usize = 64;

/// Number of entries that [`Subject::open`] writes.
pub(crate) const OPENED: usize = 2;

/// Returns the name of a key. Each [`GROUP`] of them has a prefix of its own.
pub(crate) fn key(number: usize) -> String {
    format!("k.{}.{}", number / GROUP, number % GROUP)
}

/// A part of a store.
pub(crate) enum Part {
    All,
    Prefix(String),
    Keys(Vec<String>),
    Key(String),
}

impl Part {
    pub(crate) fn prefix(prefix: &str) -> Self {
        Self::Prefix(prefix.to_owned())
    }

    pub(crate) fn key(number: usize) -> Self {
        Self::Key(key(number))
    }
}

/// The time that it took a replica to catch up, the longest `get` meanwhile, and the time of a
/// `get` afterwards.
pub(crate) type Replicated = [Duration; 3];

/// Returns keys that are spread over all keys, to be read from a replica.
pub(crate) fn sample(keys: usize) -> Vec<String> {
    (0..1000).map(|number| key(number * keys / 1000)).collect()
}

/// Returns the longest `get` on another thread while `work` runs.
///
/// The thread rests between two reads, so that it does not occupy a core. The result is at least a
/// microsecond, because ratios of shorter times say nothing.
pub(crate) async fn longest<T>(
    get: impl Fn() + Send + 'static,
    work: impl Future<Output = T>,
) -> (T, Duration) {
    let (stop, stopped) = mpsc::channel::<()>();
    let reader = thread::spawn(move || {
        let mut longest = Duration::from_micros(1);
        while stopped.recv_timeout(Duration::from_micros(200))
            == Err(mpsc::RecvTimeoutError::Timeout)
        {
            let start = Instant::now();
            get();
            longest = longest.max(start.elapsed());
        }
        longest
    });
    let done = work.await;
    drop(stop);
    (done, reader.join().expect("the reading thread"))
}

/// Returns the time of a `get`, on average over all keys.
pub(crate) fn average(keys: &[String], get: impl Fn(&str)) -> Duration {
    const TIMES: usize = 20;
    let start = Instant::now();
    for _ in 0..TIMES {
        keys.iter().for_each(|key| get(key));
    }
    start.elapsed() / u32::try_from(TIMES * keys.len()).expect("a small number")
}

/// The measured subject of a version.
pub(crate) trait Subject: Sized {
    fn open(url: &str, name: &str, history: u8) -> impl Future<Output = Self>;
    fn fill(&self, keys: Range<usize>) -> impl Future<Output = ()>;
    fn get(&self) -> impl Future<Output = ()>;
    fn get_absent(&self) -> impl Future<Output = ()>;
    fn put(&self) -> impl Future<Output = ()>;
    fn swap(&self) -> impl Future<Output = ()>;
    fn fenced(&self) -> impl Future<Output = ()>;
    fn read(&self) -> impl Future<Output = ()>;
    fn write(&self) -> impl Future<Output = ()>;
    fn lock(&self) -> impl Future<Output = ()>;
    fn get_many(&self, keys: usize) -> impl Future<Output = ()>;
    /// Scans a part that has this many keys.
    fn scan(&self, part: &Part, keys: usize) -> impl Future<Output = ()>;
    fn keys(&self, part: &Part, keys: usize) -> impl Future<Output = ()>;
    /// Watches a part that has this many keys until it has caught up.
    fn watch(&self, part: &Part, keys: usize) -> impl Future<Output = ()>;
    /// Replicates a store that was filled with this many keys into a log that is not synced.
    fn replicate(&self, keys: usize, log: &Path) -> impl Future<Output = Replicated>;
    /// Writes this many checkpoints of one entry to a log that is not synced.
    fn checkpoints(&self, count: usize);
}

macro_rules! subject {
    ($name:ident, $krate:ident, $module:ident) => {
        pub(crate) use $module::$name;

        #[allow(unused_mut, reason = "streams of earlier versions are read through `&mut self`")]
        mod $module {
            use std::convert::Infallible;
            use std::future::ready;
            use std::hint::black_box;
            use std::ops::Range;
            use std::path::Path;
            use std::sync::Mutex;
            use std::time::{Instant, SystemTime};

            use bytes::Bytes;
            use serde::{Deserialize, Serialize};
            use $krate::replica::{Batch, CancellationToken, LogStorage, Replica};
            use $krate::rw_lock::DistroRwLock;
            use $krate::snapshot::{SnapshotOptions, SnapshotWriter, SyncPolicy};
            use $krate::{
                FencingToken, JsonByteDes, JsonByteSer, Key, KeyValue, KvEntry, KvUpdate,
                StaticKeyIndexedValue, Store, StoreConfig, VersionToken, WatchCursor, WatchScope,
            };

            use super::{OPENED, Part, Replicated, Subject, VALUE, average, key, longest, sample};

            fn scope(part: &Part) -> WatchScope {
                match part {
                    Part::All => WatchScope::All,
                    Part::Prefix(prefix) => WatchScope::prefix(prefix),
                    Part::Keys(keys) => {
                        WatchScope::keys(keys.iter().map(|key| key.as_str())).expect("keys")
                    }
                    Part::Key(key) => WatchScope::key(key.as_str()).expect("a key"),
                }
            }

            fn options() -> SnapshotOptions {
                SnapshotOptions::new().sync(SyncPolicy::Never).compaction_threshold(u64::MAX)
            }

            #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
            #[kv(key = "config.database", crate = $krate)]
            struct Config {
                url: String,
                user: String,
                pool_size: u32,
                connect_timeout_ms: u64,
                replicas: Vec<String>,
            }

            impl Config {
                fn example() -> Self {
                    Self {
                        url: "postgres://db.internal:5432/billing".to_owned(),
                        user: "billing".to_owned(),
                        pool_size: 8,
                        connect_timeout_ms: 2500,
                        replicas: vec!["db-1.internal".to_owned(), "db-2.internal".to_owned()],
                    }
                }
            }

            pub(crate) struct $name {
                store: Store,
                lock: DistroRwLock,
                version: Mutex<VersionToken>,
                value: Bytes,
            }

            impl Subject for $name {
                async fn open(url: &str, name: &str, history: u8) -> Self {
                    let connection = $krate::connect(url).await.expect("connect");
                    let config = StoreConfig::new().history(history);
                    let store = connection.store_with_config(name, config).await.expect("a store");
                    let value = Bytes::from(vec![b'v'; VALUE]);
                    let version = store.put("swapped", value.clone()).await.expect("put");
                    Config::example().write_to_anyway(&store).await.expect("write");
                    let lock = DistroRwLock::new(&store, "resource").expect("a lock");
                    Self { store, lock, version: Mutex::new(version), value }
                }

                async fn fill(&self, keys: Range<usize>) {
                    let items: Vec<_> =
                        keys.map(|number| (key(number), self.value.clone())).collect();
                    for answer in self.store.put_many(items).await {
                        answer.expect("put");
                    }
                }

                async fn get(&self) {
                    self.store.get("k.0.7").await.expect("get").expect("a value");
                }

                async fn get_absent(&self) {
                    assert!(self.store.get("absent").await.expect("get").is_none());
                }

                async fn put(&self) {
                    self.store.put("k.0.7", self.value.clone()).await.expect("put");
                }

                async fn swap(&self) {
                    let version = *self.version.lock().expect("a lock");
                    let next = self
                        .store
                        .update("swapped", self.value.clone(), version)
                        .await
                        .expect("update");
                    *self.version.lock().expect("a lock") = next;
                }

                async fn fenced(&self) {
                    let fenced = self.store.fenced().expect("fenced writes");
                    fenced
                        .put("fenced", self.value.clone(), FencingToken::from_u64(1))
                        .await
                        .expect("put");
                }

                async fn read(&self) {
                    Config::read(&self.store).await.expect("read").expect("a record");
                }

                async fn write(&self) {
                    Config::example().write_to_anyway(&self.store).await.expect("write");
                }

                async fn lock(&self) {
                    self.lock.write().await.expect("acquire").release().await.expect("release");
                }

                async fn get_many(&self, keys: usize) {
                    let keys: Vec<_> = (0..keys).map(key).collect();
                    let found = self.store.get_many(&keys).await.expect("get_many");
                    assert!(found.iter().all(Option::is_some));
                }

                async fn scan(&self, part: &Part, keys: usize) {
                    let mut entries = self.store.scan(scope(part));
                    for _ in 0..keys {
                        entries.next().await.expect("an item").expect("an entry");
                    }
                    assert!(entries.next().await.is_none());
                }

                async fn keys(&self, part: &Part, keys: usize) {
                    let mut listed = self.store.keys(scope(part));
                    for _ in 0..keys {
                        listed.next().await.expect("an item").expect("a key");
                    }
                    assert!(listed.next().await.is_none());
                }

                async fn watch(&self, part: &Part, keys: usize) {
                    let mut watch = self.store.watch(scope(part)).await.expect("watch");
                    let mut seen = 0;
                    while watch.next().await.expect("an item").expect("an update")
                        != KvUpdate::CaughtUp
                    {
                        seen += 1;
                    }
                    assert_eq!(seen, keys);
                }

                async fn replicate(&self, keys: usize, log: &Path) -> Replicated {
                    let storage = LogStorage::open(log, options()).await.expect("a log");
                    let (state, probed) = (storage.reader(), storage.reader());
                    let stop = CancellationToken::new();
                    let mut replica = Replica::new(&self.store, WatchScope::All)
                        .storage(storage)
                        .stop_on(stop.clone());
                    let apply = |batch: Batch| {
                        if batch.is_caught_up() {
                            stop.cancel();
                        }
                        ready(Ok::<_, Infallible>(()))
                    };
                    let probe = move || drop(black_box(probed.get("k.0.7")));
                    let start = Instant::now();
                    let (end, most) = longest(probe, replica.run(apply)).await;
                    let took = start.elapsed();
                    end.expect("a replica");
                    assert_eq!(state.len(), keys + OPENED);
                    let get = average(&sample(keys), |key| {
                        black_box(state.get(key)).expect("an entry");
                    });
                    replica.close().await;
                    [took, most, get]
                }

                fn checkpoints(&self, count: usize) {
                    let directory = tempfile::tempdir().expect("a directory");
                    let (mut writer, _) =
                        SnapshotWriter::open(directory.path().join("log"), options())
                            .expect("a log");
                    let cursor = WatchCursor::new([1; 16], 1, SystemTime::now());
                    let key = Key::new("device.7.state").expect("a key");
                    let version = VersionToken::from_u64(1);
                    let update = KvUpdate::Put(KvEntry::put(
                        key,
                        self.value.clone(),
                        version,
                        SystemTime::now(),
                    ));
                    for _ in 0..count {
                        writer.append(&update).expect("append");
                        writer.checkpoint(Some(&cursor)).expect("checkpoint");
                    }
                }
            }
        }
    };
}

subject!(After, after, after_);
subject!(Before, before, before_);
