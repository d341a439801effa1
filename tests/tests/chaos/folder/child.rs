//! The work of one process of a shared folder.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions};
use shizuku_kv::{
    Connection, FileConnection, KvError, KvResult, Store, StoreConfig, WatchCursor, WatchScope,
};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::faults::history::Ledger;
use crate::faults::log::{Form, Log};
use crate::faults::watchers::{Habit, Interface, Reader};
use crate::faults::world::Phase;
use crate::faults::writers::{Task, Writer};
use crate::journal::{Clock, Journal, Line};
use crate::linearizability::client::{Client, Common};
use crate::linearizability::table::Table;

pub(crate) const PLAN: &str = "SHIZUKU_FOLDER_PLAN";

/// The path of the test below.
pub(crate) const MODULE: &str = module_path!();

/// Stores with watches, and one with the registers.
pub(crate) const STORES: [&str; 2] = ["main", "leases"];
pub(crate) const REGISTERS: &str = "registers";

/// Deadline of each operation, so short that many end beside a stopped process.
const DEADLINE: Duration = Duration::from_millis(200);

/// Lease of the lock, which is in the same store as the registers.
const LEASE: Duration = Duration::from_secs(2);

/// The watches of a process: the index of the store, the prefix of the scope, and the habit.
pub(crate) const WATCHES: [(usize, &str, Habit); 5] = [
    (0, "", Habit::Prompt),
    (0, "", Habit::Roaming),
    (0, "c", Habit::Restless),
    (1, "", Habit::Prompt),
    (1, "lease.", Habit::Slow),
];

pub(crate) fn scope(prefix: &str) -> WatchScope {
    if prefix.is_empty() { WatchScope::All } else { WatchScope::prefix(prefix) }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) url: String,
    pub(crate) has_events: bool,
    pub(crate) journal: PathBuf,
    /// Number of the process among all that were started, from 1.
    pub(crate) number: usize,
    pub(crate) seed: u64,
    /// Time since 1970 at which the run began.
    pub(crate) start: Duration,
    /// The first of the numbers of its watches, and the cursors of these watches.
    pub(crate) first_watch: usize,
    pub(crate) cursors: Vec<Option<Vec<u8>>>,
}

impl Plan {
    /// Returns the first number of the writes of this process.
    pub(crate) fn first_write(&self) -> usize {
        self.number << 32
    }
}

/// Opens the folder, with retries while other processes are stopped or repair it.
pub(crate) async fn open(url: &str, has_events: bool) -> FileConnection {
    loop {
        let opened = match has_events {
            true => FileConnection::open(url).await,
            false => FileConnection::open_without_events(url).await,
        };
        match opened {
            Ok(connection) => return connection,
            Err(error) => assert!(error.is_retryable(), "opening was answered {error}"),
        }
    }
}

/// Opens a store, with retries.
async fn store(connection: &FileConnection, name: &str) -> Store {
    let open = async || -> KvResult<Store> {
        connection.store_with_config(name, StoreConfig::new().must_exist()).await
    };
    loop {
        match open().await {
            Ok(store) => return store,
            Err(error) => assert!(error.is_retryable(), "{name} was answered {error}"),
        }
    }
}

/// Follows the phases that the test sends. Ends this process when the test ends in any way, because
/// the input then closes.
fn listen() -> watch::Receiver<Phase> {
    let (sender, receiver) = watch::channel(Phase::Faults);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            sender.send_replace(if line == "quiet" { Phase::Quiet } else { Phase::Over });
        }
        std::process::exit(1);
    });
    receiver
}

/// Returns the number of queues of file events of this process.
fn queues() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("a list of open files");
    let links = open.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("inotify")).count()
}

/// Acquires a lock repeatedly, and once more when faults are over.
async fn lock_on(
    store: Store,
    journal: Journal,
    clock: Clock,
    mut random: Random,
    phase: watch::Receiver<Phase>,
) {
    let options = LockOptions::new().lease(LEASE).wait(5 * LEASE);
    let lock = DistroRwLock::with_options(&store, "r", options).expect("a lock");
    let mut is_last = false;
    while !is_last {
        is_last = *phase.borrow() != Phase::Faults;
        match lock.write().await {
            Ok(guard) => {
                let token = guard.fencing_token().as_u64();
                for _ in 0..=random.below(5) {
                    // Read first, so that the lock is held at that time.
                    let at = clock.elapsed();
                    if guard.is_held() {
                        journal.note(&Line::Held { token, at });
                    }
                    tokio::time::sleep(Duration::from_millis(random.below(20))).await;
                }
                if let Err(error) = guard.release().await
                    && !is_explained(&error)
                {
                    journal.note(&Line::Odd(format!("a release was answered {error}")));
                }
            }
            Err(error) => {
                is_last = false;
                if !is_explained(&error) {
                    return journal.note(&Line::Odd(format!("a lock was answered {error}")));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.below(10))).await;
    }
}

/// Returns whether stopped and killed processes, or other claims, can cause this error.
fn is_explained(error: &DistroRwLockError) -> bool {
    match error {
        DistroRwLockError::Store { source, .. } => {
            source.is_retryable() || matches!(source, KvError::OutcomeUnknown { .. })
        }
        DistroRwLockError::Timeout { .. } | DistroRwLockError::LeaseLost { .. } => true,
        _ => false,
    }
}

#[test]
#[ignore = "the tests of folders start it as a process of its own; by itself it does nothing"]
fn process_of_a_shared_folder() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let plan: Plan = serde_json::from_str(&plan).expect("a plan");
    let phase = listen();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(run(plan, phase));
}

async fn run(plan: Plan, phase: watch::Receiver<Phase>) {
    let clock = Clock::Shared(UNIX_EPOCH + plan.start);
    let journal = Journal::open(&plan.journal);
    let connection = open(&plan.url, plan.has_events).await;
    let [main, leases] = [store(&connection, STORES[0]).await, store(&connection, STORES[1]).await];
    let registers = store(&connection, REGISTERS).await;
    let stores = [main, leases];
    let random = |name: &str| Random::new(plan.seed, &format!("process {} {name}", plan.number));

    let mut readers = JoinSet::new();
    for (number, (index, prefix, habit)) in WATCHES.into_iter().enumerate() {
        let cursor = plan.cursors[number].as_ref();
        let cursor = cursor.map(|bytes| WatchCursor::from_bytes(bytes).expect("a cursor"));
        let reader = Reader {
            store: stores[index].clone(),
            log: Arc::new(Mutex::new(Log::new("", Form::Watch, scope(prefix)))),
            clock,
            journal: Some((plan.first_watch + number, journal.clone())),
            phase: phase.clone(),
            random: random(&format!("watch {number}")),
        };
        readers.spawn(reader.watch(Interface::Raw, habit, Duration::ZERO, cursor));
    }

    // Both ledgers draw from the same numbers, in halves.
    let ledgers = [0, 1].map(|index| {
        let first = plan.first_write() + (index << 31);
        Arc::new(Ledger::journaled(clock, STORES[index], &journal, first))
    });
    let mut writers = JoinSet::new();
    let tasks = [(0, Task::Plain), (0, Task::Count), (0, Task::Churn), (1, Task::Lease)];
    for (number, (index, task)) in tasks.into_iter().enumerate() {
        let random = random(&format!("writer {number}"));
        let writer = Writer::new(&stores[index], &ledgers[index], random).deadline(DEADLINE);
        writers.spawn(writer.run(task, phase.clone()));
    }
    let common = Arc::new(Common {
        table: Table::shared(clock, random("keys"), &journal),
        next_write: AtomicUsize::new(plan.first_write()),
        oddities: Mutex::default(),
    });
    writers.spawn(lock_on(
        registers.clone(),
        journal.clone(),
        clock,
        random("lock"),
        phase.clone(),
    ));
    let (is_over, mut calm) = (watch::Sender::new(false), phase.clone());
    let mut client = Client::new(plan.number, &registers, random("client"), &common);
    client.store = registers.with_deadline(DEADLINE);
    writers.spawn(client.run(is_over.subscribe()));
    let _ = calm.wait_for(|phase| *phase != Phase::Faults).await;
    is_over.send_replace(true);
    writers.join_all().await;
    if cfg!(target_os = "linux") {
        assert_eq!(queues() > 0, plan.has_events, "{} queues of events", queues());
    }
    journal.note(&Line::Quiet);
    readers.join_all().await;
    connection.shutdown().await.expect("the folder is closed");
}
