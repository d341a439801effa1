//! Operations of the memory backend that concern many entries, once for each version.
//!
//! A future of the memory backend holds no lock between two polls, because its guards cannot cross
//! an `await`. So its longest poll is at least as long as its longest hold of a lock. The poll is
//! measured in time of its thread on a core, because other processes add milliseconds to the time
//! of a clock. Pauses of a virtual machine by its host are in both times. A long poll during which
//! `/proc/stat` shows such a pause therefore does not count.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A measured operation, in the order in which they run. Each finds the content that the earlier
/// ones left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heavy {
    /// Fills, changes and empties a map of its own in pieces of 512 entries, as the backend does
    /// with a store. This measures the noise of the machine and the allocator.
    Nothing,
    Fill,
    Scan,
    Keys,
    Watch,
    Resume,
    PutMany,
    Purge,
    Overtaken,
    DropWatch,
    Shorten,
    Age,
    Expire,
    Forget,
    PurgeLarge,
    ShortenLarge,
    Delete,
}

impl Heavy {
    pub(crate) const ALL: [Self; 17] = [
        Self::Nothing,
        Self::Fill,
        Self::Scan,
        Self::Keys,
        Self::Watch,
        Self::Resume,
        Self::PutMany,
        Self::Purge,
        Self::Overtaken,
        Self::DropWatch,
        Self::Shorten,
        Self::Age,
        Self::Expire,
        Self::Forget,
        Self::PurgeLarge,
        Self::ShortenLarge,
        Self::Delete,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no store: a map that grows, changes and shrinks, 512 entries a poll",
            Self::Fill => "put_many of all keys into an empty store",
            Self::Scan => "scan of all",
            Self::Keys => "keys of all",
            Self::Watch => "watch of all until caught up",
            Self::Resume => "watch from a cursor in the middle",
            Self::PutMany => "put_many of 10000 existing keys",
            Self::Purge => "purge of 1 key in 100, one after the other",
            Self::Overtaken => "watch of all, every key written again meanwhile",
            Self::DropWatch => "drop of a watch with every key pending",
            Self::Shorten => "reconcile of history 2 to 1",
            Self::Age => "reconcile to a maximum age",
            Self::Expire => "all keys expire at one moment",
            Self::Forget => "all tombstones expire at one moment",
            Self::PurgeLarge => "purge of 64 values of 1 MiB",
            Self::ShortenLarge => "reconcile of 64 values of 1 MiB to 1",
            Self::Delete => "delete_store",
        }
    }
}

/// A store of a version.
pub(crate) trait Subject: Send + Sync + 'static {
    fn open() -> impl Future<Output = Self>;

    /// Prepares an operation.
    fn prepare(&mut self, what: Heavy, keys: usize) -> impl Future<Output = ()>;

    /// Runs an operation and returns its longest poll in time on a core.
    fn run(&mut self, what: Heavy, keys: usize) -> impl Future<Output = Longest>;

    /// Reads a key repeatedly until it is stopped, and returns the longest poll by the clock.
    fn reads(&self, stop: Arc<AtomicBool>) -> impl Future<Output = Longest> + Send + 'static;
}

/// The polls of several futures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Longest {
    /// The longest poll.
    pub(crate) poll: Duration,
    /// Number of long polls that do not count, because the host paused the machine meanwhile.
    pub(crate) discarded: usize,
    /// The longest of these.
    pub(crate) longest_discarded: Duration,
}

/// Measures the polls of several futures.
struct Polls {
    now: fn() -> Duration,
    longest: Longest,
    /// The pauses by the host before the present poll, as last read.
    paused: u64,
    paused_read: Instant,
}

/// Minimum duration of a long poll, for which pauses by the host are read.
const LONG: Duration = Duration::from_millis(1);

/// Maximum age of the earlier figure of these pauses, one tick of the kernel's accounting. A
/// reading before each poll would take longer than most polls.
const TICK: Duration = Duration::from_millis(10);

impl Polls {
    /// Measures the time of the thread on a core.
    fn on_core() -> Self {
        Self::by(|| {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            Duration::try_from(time).expect("a time after the start of the thread")
        })
    }

    /// Measures the time of a clock.
    fn by_clock() -> Self {
        Self::by(|| {
            let time = clock_gettime(ClockId::Monotonic);
            Duration::try_from(time).expect("a time after the start of the machine")
        })
    }

    fn by(now: fn() -> Duration) -> Self {
        let (paused, paused_read) = (pauses(), Instant::now());
        Self { now, longest: Longest::default(), paused, paused_read }
    }

    async fn of<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        // A poll stays on its thread.
        poll_fn(|context| self.now(|| future.as_mut().poll(context))).await
    }

    fn now<T>(&mut self, work: impl FnOnce() -> T) -> T {
        if self.paused_read.elapsed() > TICK {
            (self.paused, self.paused_read) = (pauses(), Instant::now());
        }
        let start = (self.now)();
        let done = work();
        let took = (self.now)().saturating_sub(start);
        if took >= LONG && pauses() != self.paused {
            self.longest.discarded += 1;
            self.longest.longest_discarded = self.longest.longest_discarded.max(took);
        } else {
            self.longest.poll = self.longest.poll.max(took);
        }
        done
    }
}

/// Returns the time for which the host has paused the virtual machine, in ticks on all cores.
/// Returns 0 if the kernel does not report this time.
fn pauses() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let cores = stat.lines().next().unwrap_or_default();
    cores.split_whitespace().nth(8).and_then(|steal| steal.parse().ok()).unwrap_or(0)
}

macro_rules! subject {
    ($name:ident, $krate:ident, $module:ident) => {
        pub(crate) use $module::$name;

        #[allow(unused_mut, reason = "streams of earlier versions are read through `&mut self`")]
        mod $module {
            use std::collections::BTreeMap;
            use std::sync::atomic::{AtomicBool, Ordering};
            use std::sync::{Arc, Mutex};
            use std::time::Duration;

            use bytes::Bytes;
            use $krate::{
                Connection, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
            };

            use super::{Heavy, Longest, Polls, Subject};
            use crate::subject::{VALUE, key};

            const NAME: &str = "store";
            const LARGE: &str = "large";

            pub(crate) struct $name {
                connection: Arc<dyn Connection>,
                store: Store,
                value: Bytes,
                /// A mutex is needed only because a `Watch` of earlier versions is not `Sync`.
                watch: Mutex<Option<Watch>>,
                cursor: Option<WatchCursor>,
            }

            /// Returns pieces with about as much memory as a store needs for a key.
            fn entry() -> [Vec<u8>; 3] {
                [32, 64, 200].map(|len| vec![b'v'; len])
            }

            fn config() -> StoreConfig {
                StoreConfig::new().deadline(Duration::from_secs(60))
            }

            impl $name {
                async fn put_many(&self, keys: usize, polls: &mut Polls) {
                    for start in (0..keys).step_by(10_000) {
                        let items = start..keys.min(start + 10_000);
                        let items: Vec<_> =
                            items.map(|number| (key(number), self.value.clone())).collect();
                        for answer in polls.of(self.store.put_many(items)).await {
                            answer.expect("put");
                        }
                    }
                }

                /// Opens a watch that has delivered one key when all keys are written again.
                async fn overtaken(&mut self, keys: usize) {
                    let mut watch = self.store.watch(WatchScope::All).await.expect("watch");
                    watch.next().await.expect("an item").expect("an update");
                    self.put_many(keys, &mut Polls::on_core()).await;
                    *self.watch.get_mut().expect("a lock") = Some(watch);
                }

                async fn catch_up(watch: &mut Watch, polls: &mut Polls) {
                    loop {
                        let update =
                            polls.of(watch.next()).await.expect("an item").expect("an update");
                        if update == KvUpdate::CaughtUp {
                            return;
                        }
                    }
                }

                async fn reconcile(&self, config: StoreConfig, polls: &mut Polls) {
                    let opened = self.connection.store_with_config(NAME, config.reconcile());
                    polls.of(opened).await.expect("reconcile");
                }

                /// Fills a store with one key that has 64 values of 1 MiB.
                async fn fill_large(&self) {
                    let config = config().history(64).max_value_size(2 << 20);
                    let store =
                        self.connection.store_with_config(LARGE, config).await.expect("a store");
                    for number in 0..64_u8 {
                        store.put(LARGE, vec![number; 1 << 20]).await.expect("put");
                    }
                }
            }

            impl Subject for $name {
                async fn open() -> Self {
                    let connection = connect("memory:").await.expect("connect");
                    let config = config().history(2);
                    let store = connection.store_with_config(NAME, config).await.expect("a store");
                    let value = Bytes::from(vec![b'v'; VALUE]);
                    Self { connection, store, value, watch: Mutex::new(None), cursor: None }
                }

                async fn prepare(&mut self, what: Heavy, keys: usize) {
                    match what {
                        Heavy::Resume => {
                            let mut watch = self.store.watch(WatchScope::All).await.expect("watch");
                            for _ in 0..keys / 2 {
                                watch.next().await.expect("an item").expect("an update");
                            }
                            self.cursor = watch.cursor();
                        }
                        Heavy::Overtaken => self.overtaken(keys).await,
                        Heavy::DropWatch => {
                            self.overtaken(keys).await;
                            let watch =
                                self.watch.get_mut().expect("a lock").as_mut().expect("a watch");
                            watch.next().await.expect("an item").expect("an update");
                        }
                        Heavy::Shorten => self.put_many(keys, &mut Polls::on_core()).await,
                        // The tombstones live for a second, too.
                        Heavy::Expire | Heavy::Forget => {
                            tokio::time::sleep(Duration::from_millis(1100)).await
                        }
                        Heavy::PurgeLarge => self.fill_large().await,
                        Heavy::ShortenLarge => {
                            // The store exists only if the purge is measured too.
                            let _ = self.connection.delete_store(LARGE).await;
                            self.fill_large().await;
                        }
                        Heavy::Delete => {
                            self.connection.delete_store(NAME).await.expect("delete");
                            self.store = self
                                .connection
                                .store_with_config(NAME, config())
                                .await
                                .expect("a store");
                            self.put_many(keys, &mut Polls::on_core()).await;
                        }
                        _ => {}
                    }
                }

                async fn run(&mut self, what: Heavy, keys: usize) -> Longest {
                    let mut polls = Polls::on_core();
                    let store = &self.store;
                    match what {
                        Heavy::Nothing => {
                            let mut map = BTreeMap::new();
                            let pieces = || {
                                let piece = move |start| start..keys.min(start + 512);
                                (0..keys).step_by(512).map(piece)
                            };
                            // Grows the map, replaces its entries, and shrinks it.
                            for piece in pieces().chain(pieces()) {
                                polls.now(|| map.extend(piece.map(|number| (number, entry()))));
                            }
                            for piece in pieces() {
                                polls.now(|| piece.for_each(|number| drop(map.remove(&number))));
                            }
                        }
                        Heavy::Fill => self.put_many(keys, &mut polls).await,
                        Heavy::Scan => {
                            let mut entries = store.scan(WatchScope::All);
                            while let Some(entry) = polls.of(entries.next()).await {
                                entry.expect("an entry");
                            }
                        }
                        Heavy::Keys => {
                            let mut listed = store.keys(WatchScope::All);
                            while let Some(key) = polls.of(listed.next()).await {
                                key.expect("a key");
                            }
                        }
                        Heavy::Watch => {
                            let mut watch =
                                polls.of(store.watch(WatchScope::All)).await.expect("watch");
                            Self::catch_up(&mut watch, &mut polls).await;
                        }
                        Heavy::Resume => {
                            let cursor = self.cursor.take().expect("a cursor");
                            let watch = store.watch_from(WatchScope::All, cursor);
                            let mut watch = polls.of(watch).await.expect("watch");
                            Self::catch_up(&mut watch, &mut polls).await;
                        }
                        Heavy::PutMany => self.put_many(10_000.min(keys), &mut polls).await,
                        Heavy::Purge => {
                            for number in (0..keys).step_by(100) {
                                polls.of(store.purge(key(number))).await.expect("purge");
                            }
                        }
                        Heavy::Overtaken => {
                            let watch = self.watch.get_mut().expect("a lock").take();
                            let mut watch = watch.expect("a watch");
                            Self::catch_up(&mut watch, &mut polls).await;
                        }
                        // Freeing the undelivered updates of the watch takes long, but does not
                        // hold the lock, as the reads show.
                        Heavy::DropWatch => {
                            let watch = self.watch.get_mut().expect("a lock").take();
                            polls.now(|| drop(watch));
                        }
                        Heavy::Shorten => self.reconcile(config().history(1), &mut polls).await,
                        Heavy::Age => {
                            let age = Duration::from_secs(3600);
                            self.reconcile(config().max_age(age), &mut polls).await;
                        }
                        Heavy::Expire => {
                            let age = Duration::from_secs(1);
                            self.reconcile(config().max_age(age), &mut polls).await;
                            let found = polls.of(store.get(key(1))).await.expect("get");
                            assert!(found.is_none());
                        }
                        Heavy::Forget => {
                            let found = polls.of(store.get(key(1))).await.expect("get");
                            assert!(found.is_none());
                        }
                        Heavy::PurgeLarge => {
                            let large = self.connection.store_with_config(LARGE, config());
                            let large = large.await.expect("a store");
                            polls.of(large.purge(LARGE)).await.expect("purge");
                        }
                        Heavy::ShortenLarge => {
                            let config = config().history(1).reconcile();
                            let opened = self.connection.store_with_config(LARGE, config);
                            polls.of(opened).await.expect("reconcile");
                        }
                        Heavy::Delete => {
                            polls.of(self.connection.delete_store(NAME)).await.expect("delete");
                        }
                    }
                    polls.longest
                }

                fn reads(
                    &self,
                    stop: Arc<AtomicBool>,
                ) -> impl Future<Output = Longest> + Send + 'static {
                    let store = self.store.clone();
                    async move {
                        let mut polls = Polls::by_clock();
                        while !stop.load(Ordering::Relaxed) {
                            // The read fails after the store was deleted.
                            if polls.of(store.get("k.0.7")).await.is_err() {
                                break;
                            }
                        }
                        polls.longest
                    }
                }
            }
        }
    };
}

subject!(After, after, after_);
subject!(Before, before, before_);
