//! One bucket with its writers and watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shizuku_kv::{Connection, LiveRead, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::faults::history::{Key, Ledger};
use crate::faults::log::{Form, Log};
use crate::faults::record::Cell;
use crate::faults::watchers::{Habit, Interface, Reader};
use crate::faults::writers::{COUNTERS, PLAIN, Task, Writer};
use crate::journal::Clock;

/// The phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Faults are injected, and all writers write.
    Faults,
    /// Only the run itself writes, and every watch is read.
    Quiet,
    /// Watches are dropped.
    Over,
}

/// The settings of a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) replicas: usize,
    pub(crate) history: u8,
    /// True if there are keys with a time to live. Otherwise there are counters.
    pub(crate) leases: bool,
}

/// Key that is written first and never again, until cursors must expire. While its entry exists, no
/// cursor expires.
pub(crate) const ANCHOR: &str = "anchor.0";

pub(crate) struct World {
    pub(crate) bucket: String,
    pub(crate) settings: Settings,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) logs: Vec<Arc<Mutex<Log>>>,
    pub(crate) writers: JoinSet<()>,
    pub(crate) readers: JoinSet<()>,
    phase: watch::Sender<Phase>,
    url: String,
    seed: u64,
    start: Instant,
    /// One for writers, and two for watches.
    stores: [Store; 3],
}

impl World {
    /// Creates the bucket, and writes its initial content.
    pub(crate) async fn new(
        url: &str,
        bucket: &str,
        settings: Settings,
        seed: u64,
        start: Instant,
    ) -> Self {
        let ledger = Arc::new(Ledger::new(Clock::Own(start)));
        let config = StoreConfig::new().replicas(settings.replicas).history(settings.history);
        let ttl =
            settings.leases && connect(url).await.expect("a connection").capabilities().key_ttl;
        let config = if ttl { config.key_ttl(true) } else { config };
        let mut stores = Vec::new();
        for _ in 0..3 {
            let connection = connect(url).await.expect("a connection");
            stores.push(
                connection.store_with_config(bucket, config.clone()).await.expect("a bucket"),
            );
        }
        let stores = stores.try_into().expect("three of them");
        let world = Self {
            bucket: bucket.to_owned(),
            settings,
            ledger,
            logs: Vec::new(),
            writers: JoinSet::new(),
            readers: JoinSet::new(),
            phase: watch::Sender::new(Phase::Faults),
            url: url.to_owned(),
            seed,
            start,
            stores,
        };
        let mut writer = world.writer("first");
        writer.put_for_sure(ANCHOR).await;
        for number in 0..PLAIN {
            writer.put_for_sure(&format!("plain.{number}")).await;
        }
        for number in 0..4 {
            writer.put_for_sure(&format!("churn.{number}")).await;
        }
        writer.delete_for_sure("churn.3").await;
        if settings.leases {
            writer.lease_of("lease.0", 3, Duration::from_secs(1)).await;
        } else {
            for number in 0..COUNTERS {
                writer.count_for_sure(&format!("count.{number}")).await;
            }
        }
        world
    }

    /// Returns a store on a connection of its own.
    pub(crate) async fn store(&self) -> Store {
        let connection = connect(&self.url).await.expect("a connection");
        connection
            .store_with_config(&self.bucket, StoreConfig::new().must_exist())
            .await
            .expect("the bucket")
    }

    pub(crate) fn writer(&self, name: &str) -> Writer {
        let random = Random::new(self.seed, &format!("{} {name}", self.bucket));
        Writer::new(&self.stores[0], &self.ledger, random)
    }

    pub(crate) fn start_writers(&mut self) {
        let tasks: &[Task] = if self.settings.leases {
            &[Task::Lease, Task::Churn, Task::Plain]
        } else {
            &[
                Task::Plain,
                Task::Plain,
                Task::Count,
                Task::Count,
                Task::Count,
                Task::Churn,
                Task::Churn,
            ]
        };
        for (number, task) in tasks.iter().enumerate() {
            let writer = self.writer(&format!("writer {number}"));
            self.writers.spawn(writer.run(*task, self.phase.subscribe()));
        }
    }

    /// Opens watches of every scope through every interface. Some start later, within this time.
    pub(crate) async fn start_watches(&mut self, length: Duration) {
        use Habit::{Asleep, Late, Prompt, Restless, Roaming, Slow};
        use Interface::{Raw, Typed};
        let key = |key: &str| WatchScope::key(key).expect("a key");
        let prefix = |prefix: &str| WatchScope::prefix(prefix);
        let mut watches = vec![
            (Raw, Prompt, WatchScope::All),
            (Raw, Restless, WatchScope::All),
            (Raw, Roaming, WatchScope::All),
            (Raw, Late, WatchScope::All),
            (Raw, Prompt, key("churn.0")),
            (Raw, Prompt, prefix("churn.")),
            (Raw, Late, prefix("churn.")),
            (Typed, Prompt, WatchScope::All),
            (Typed, Roaming, prefix("plain.")),
        ];
        watches.extend(match self.settings.leases {
            true => vec![
                (Raw, Slow, WatchScope::All),
                (Raw, Prompt, key("lease.0")),
                (Raw, Prompt, prefix("lease.")),
                (Raw, Prompt, WatchScope::prefixes(["lease.", "churn.1"])),
                (Raw, Roaming, prefix("lease.")),
                (Typed, Restless, prefix("lease.")),
                (Typed, Late, prefix("l")),
            ],
            false => vec![
                (Raw, Slow, WatchScope::All),
                (Raw, Asleep, WatchScope::All),
                (Raw, Prompt, key("count.0")),
                (Raw, Late, key("count.1")),
                // The server cannot filter this scope.
                (Raw, Prompt, prefix("c")),
                (Raw, Prompt, WatchScope::prefixes(["plain.", "count."])),
                (Raw, Roaming, WatchScope::prefixes(["count.", "churn.1"])),
                (Typed, Prompt, key("count.2")),
                (Typed, Prompt, prefix("count.")),
                (Typed, Restless, WatchScope::prefixes(["plain.1", "churn."])),
            ],
        });
        let length = u64::try_from(length.as_millis()).expect("a short time");
        for (number, (interface, habit, scope)) in watches.into_iter().enumerate() {
            let name =
                format!("watch {number} of {}, {interface:?}, {habit:?}, {scope:?}", self.bucket);
            let mut reader = self.reader(name, Form::Watch, scope, 1 + number % 2);
            reader.log.lock().unwrap().lags = matches!(habit, Slow | Asleep);
            let late = Duration::from_millis(reader.random.below(length));
            self.readers.spawn(reader.watch(interface, habit, late, None));
        }
        self.start_live_values().await;
    }

    /// Opens more live values than watches, so that some are moved to a wider watch.
    async fn start_live_values(&mut self) {
        let mut keys: Vec<_> = (0..PLAIN).map(|number| ("plain", number)).collect();
        if !self.settings.leases {
            keys.extend((0..COUNTERS).map(|number| ("count", number)));
        }
        let mut optional: Vec<_> = (0..4).map(|number| ("churn", number)).collect();
        if self.settings.leases {
            optional.extend((0..4).map(|number| ("lease", number)));
        }
        for (group, number) in keys {
            let (key, reader) = self.live_reader(group, number);
            let live =
                Cell::live_at(&reader.store, cell_key(group, number)).await.expect("a live value");
            self.readers.spawn(reader.live(key, live, |cell| Some(cell)));
        }
        for (group, number) in optional {
            let (key, reader) = self.live_reader(group, number);
            let live = Cell::live_at_optional(&reader.store, cell_key(group, number))
                .await
                .expect("a live value");
            self.readers.spawn(reader.live(key, live, Option::as_ref));
        }
    }

    fn live_reader(&mut self, group: &str, number: u64) -> (String, Reader) {
        let key = format!("{group}.{number}");
        let name = format!("live value of {}, {key}", self.bucket);
        let scope = WatchScope::key(&key).expect("a key");
        let reader = self.reader(name, Form::Live, scope, 1);
        reader.log.lock().unwrap().began = Some(self.start.elapsed());
        (key, reader)
    }

    fn reader(&mut self, name: String, form: Form, scope: WatchScope, store: usize) -> Reader {
        let random = Random::new(self.seed, &name);
        let log = Arc::new(Mutex::new(Log::new(name, form, scope)));
        self.logs.push(Arc::clone(&log));
        let (store, phase) = (self.stores[store].clone(), self.phase.subscribe());
        Reader { store, log, clock: Clock::Own(self.start), journal: None, phase, random }
    }

    /// Makes the last writes, and repeats them until they are acknowledged.
    pub(crate) async fn write_last(&self) {
        let mut writer = self.writer("last");
        for number in 0..PLAIN {
            writer.put_for_sure(&format!("plain.{number}")).await;
        }
        writer.put_for_sure("churn.0").await;
        writer.delete_for_sure("churn.1").await;
        if self.settings.leases {
            writer.delete_for_sure("lease.0").await;
        } else {
            for number in 0..COUNTERS {
                writer.count_for_sure(&format!("count.{number}")).await;
            }
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Returns the watches without all updates up to these versions, among those that should keep
    /// up.
    pub(crate) fn behind(&self, newest: &HashMap<Key, u64>) -> Vec<String> {
        let mut behind = Vec::new();
        for log in &self.logs {
            let log = log.lock().unwrap();
            if log.lags || log.began.is_none() || log.trouble.is_some() {
                continue;
            }
            let is_behind = newest.iter().any(|(key, version)| {
                // A live value does not show the versions of deletions.
                let counts =
                    log.scope.matches(key) && (log.form == Form::Watch || never_deleted(key));
                counts && log.last(key).flatten().is_none_or(|last| last.version < *version)
            });
            if is_behind {
                behind.push(log.name.clone());
            }
        }
        behind
    }
}

fn never_deleted(key: &str) -> bool {
    !key.starts_with("churn.") && !key.starts_with("lease.")
}

fn cell_key(group: &str, number: u64) -> (String, u32) {
    (group.to_owned(), u32::try_from(number).expect("a small number"))
}
