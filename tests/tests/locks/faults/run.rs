//! One run: faults of servers, networks and processes for a while, then a quiet time, then all logs
//! are checked.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream;
use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{Connection, Store, StoreConfig, connect};
use shizuku_kv_tests::{Faults, NatsCluster, NatsServer, Random};
use tokio::sync::Mutex;

use crate::faults::journal::Journal;
use crate::faults::process::Process;
use crate::faults::summary::{Injected, Summary};
use crate::faults::worker::{LEASE, RESOURCES, guarded};
use crate::logs::check::{self, Last};
use crate::logs::holds::History;
use crate::logs::line::now;

/// Timeout until a process acquires a lock after a fault, and until all do in the end. A half-dead
/// connection is noticed after 20 seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// Number of processes at a time.
const PROCESSES: usize = 5;

/// Maximum drift between the system clock and the monotonic one in a run. A larger drift means that
/// the system clock was set.
const DRIFT: Duration = Duration::from_millis(100);

const POLL: Duration = Duration::from_millis(20);

const BUCKET: &str = "locks";

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Number of servers. Without any, the store is in a shared folder, and only processes fail.
    pub(crate) nodes: usize,
    /// Minimum duration of the faults.
    pub(crate) length: Duration,
    /// Minimum number of granted locks.
    pub(crate) acquisitions: u64,
}

struct Run {
    start: Instant,
    end: Instant,
    /// Time after which the run does not wait for more acquisitions.
    latest: Instant,
    acquisitions: usize,
    is_in_folder: bool,
    home: tempfile::TempDir,
    url: String,
    journal: Mutex<Journal>,
    injected: Mutex<Vec<Injected>>,
    violations: Mutex<Vec<String>>,
}

/// Runs the plan.
pub(crate) async fn run(plan: Plan) -> Summary {
    let mut faults =
        Faults::new(plan.seed).lasting(Duration::from_millis(50)..=Duration::from_secs(2));
    let cluster = match plan.nodes {
        0 => None,
        1 => Some(NatsCluster::of(NatsServer::start()).await),
        nodes => Some(NatsCluster::builder().nodes(nodes).start().await),
    };
    let seed = faults.seed();
    let home = tempfile::tempdir().expect("a directory");
    let (backend, url) = match &cluster {
        Some(cluster) => {
            let version = cluster.client().await.server_info().version;
            (format!("nats-server {version}, {} nodes", plan.nodes), cluster.url())
        }
        None => {
            let url = format!("file:{}/data?shared=true", home.path().display());
            ("a shared folder".to_owned(), url)
        }
    };
    let mut summary = Summary { seed, backend, ..Summary::default() };
    let store = store(&url, plan.nodes.max(1)).await;
    let start = Instant::now();
    let (wall, start_at) = (SystemTime::now(), now());
    let run = Run {
        start,
        end: start + plan.length,
        latest: start + 6 * plan.length,
        acquisitions: usize::try_from(plan.acquisitions).expect("a number"),
        is_in_folder: cluster.is_none(),
        home,
        url,
        journal: Mutex::default(),
        injected: Mutex::default(),
        violations: Mutex::default(),
    };
    let mut fleet = Fleet::new(&run, seed).await;
    let disturb_servers = async {
        if let Some(cluster) = &cluster {
            run.disturb_servers(cluster, &mut faults).await;
        }
    };
    tokio::join!(disturb_servers, fleet.disturb());
    summary.length = start.elapsed();
    summary.faults = faults.counts().clone();

    let quiet = Instant::now();
    fleet.go_on();
    if let Some(cluster) = &cluster {
        cluster.wait_until_ready().await;
        cluster.wait_until_healthy(BUCKET).await;
    }
    fleet.end().await;
    summary.settling = quiet.elapsed();
    (summary.started, summary.kills, summary.pauses) = (fleet.started, fleet.kills, fleet.pauses);
    drop(fleet);
    run.leaves_nobody_behind(&store).await;

    let drift = start.elapsed().abs_diff(wall.elapsed().unwrap_or_default());
    assert!(
        drift < DRIFT,
        "the clock was set by {drift:?} while this went on: nothing can be said"
    );
    let logs = run.journal.into_inner().into_lines();
    let history = History::of(&logs);
    summary.count(&history);
    summary.injected = run.injected.into_inner();
    summary.injected.sort_by_key(|injected| injected.began);
    summary.violations = run.violations.into_inner();
    let last = match &cluster {
        Some(cluster) => last(cluster).await,
        None => last_in_folder(&store).await,
    };
    let found = check::all(&history, &last);
    summary.tell(&found, &logs, start_at);
    summary
}

async fn store(url: &str, replicas: usize) -> Store {
    let connection = connect(url).await.expect("a connection");
    let config = StoreConfig::new().replicas(replicas);
    connection.store_with_config(BUCKET, config).await.expect("a bucket")
}

/// Returns the last value under each lock, read without the library.
async fn last(cluster: &NatsCluster) -> BTreeMap<String, Last> {
    let context = jetstream::new(cluster.client().await);
    let stream = context.get_stream(format!("KV_{BUCKET}")).await.expect("the bucket is there");
    let mut found = BTreeMap::new();
    for resource in RESOURCES {
        let subject = format!("$KV.{BUCKET}.{}", guarded(resource));
        let Ok(message) = stream.get_last_raw_message_by_subject(&subject).await else { continue };
        found.insert(resource.to_owned(), parsed(&message.payload));
    }
    found
}

/// The same in a folder, whose format only the library knows.
async fn last_in_folder(store: &Store) -> BTreeMap<String, Last> {
    let mut found = BTreeMap::new();
    for resource in RESOURCES {
        let entry = store.get(guarded(resource)).await.expect("an answer");
        found.extend(entry.map(|entry| (resource.to_owned(), parsed(&entry.value))));
    }
    found
}

fn parsed(value: &[u8]) -> Last {
    let text = std::str::from_utf8(value).expect("text");
    let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().expect("a number")).collect();
    let [token, process, worker, number] = numbers[..] else {
        panic!("{text:?} was not written here")
    };
    Last { token, process, worker, number }
}

impl Run {
    async fn goes_on(&self) -> bool {
        let now = Instant::now();
        now < self.end || (now < self.latest && self.grants().await < self.acquisitions)
    }

    async fn grants(&self) -> usize {
        let mut journal = self.journal.lock().await;
        journal.read_on();
        journal.grants()
    }

    async fn wrong(&self, what: String) {
        let at = self.start.elapsed();
        self.violations.lock().await.push(format!("at {at:.3?} {what}"));
    }

    /// Waits until this many more locks were granted.
    async fn progress(&self, many: u64, after: &str) {
        let goal = self.grants().await + usize::try_from(many).expect("a small number");
        let deadline = Instant::now() + PATIENCE;
        while self.grants().await < goal {
            if Instant::now() > deadline {
                let reached = self.grants().await;
                self.wrong(format!(
                    "too few are granted within {PATIENCE:?} after {after}: {reached}/{goal}"
                ))
                .await;
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn took(&self, began: Duration, what: String) {
        let ended = self.start.elapsed();
        self.injected.lock().await.push(Injected { began, ended, what });
    }

    async fn disturb_servers(&self, cluster: &NatsCluster, faults: &mut Faults) {
        let mut random = Random::new(faults.seed(), "servers");
        while self.goes_on().await {
            let injection = faults.next(cluster);
            let began = self.start.elapsed();
            faults.inject(&injection, cluster, BUCKET).await;
            self.took(began, injection.to_string()).await;
            // Sometimes the next fault comes while this one still has effects.
            let many = if random.once_in(3) { 1 } else { 10 + random.below(80) };
            self.progress(many, &injection.to_string()).await;
        }
    }

    /// Checks that a final claim succeeds, whatever processes have crashed, and that no other
    /// remains.
    async fn leaves_nobody_behind(&self, store: &Store) {
        for resource in RESOURCES {
            let options = LockOptions::new().lease(LEASE).wait(PATIENCE);
            let lock = DistroRwLock::with_options(store, resource, options).expect("a lock");
            let got = match lock.write().await {
                Ok(guard) => guard.release().await,
                Err(error) => Err(error),
            };
            let state = lock.inspect().await;
            let is_left = state
                .as_ref()
                .is_ok_and(|state| state.holders.is_empty() && state.waiting.is_empty());
            if got.is_err() || !is_left {
                self.wrong(format!(
                    "the last one on {resource} finds {got:?}, and leaves {state:?}"
                ))
                .await;
            }
        }
    }
}

/// The processes that acquire locks.
struct Fleet<'a> {
    run: &'a Run,
    random: Random,
    processes: Vec<Process>,
    started: u64,
    kills: u64,
    pauses: u64,
}

impl<'a> Fleet<'a> {
    async fn new(run: &'a Run, seed: u64) -> Self {
        let random = Random::new(seed, "processes");
        let mut fleet =
            Self { run, random, processes: Vec::new(), started: 0, kills: 0, pauses: 0 };
        for _ in 0..PROCESSES {
            fleet.start().await;
        }
        fleet
    }

    async fn start(&mut self) {
        self.started += 1;
        let log = path(self.run.home.path(), self.started);
        let process =
            Process::start(&self.run.url, BUCKET, &log, self.started, self.random.number());
        self.run.journal.lock().await.follow(self.started, log);
        self.processes.push(process);
    }

    fn anybody(&mut self) -> usize {
        usize::try_from(self.random.below(self.processes.len() as u64)).expect("an index")
    }

    async fn disturb(&mut self) {
        while self.run.goes_on().await {
            // Locks in a folder are granted less often, because each commit goes to a disk.
            let most = if self.run.is_in_folder { 20 } else { 80 };
            let progress = 1 + self.random.below(most);
            self.run.progress(progress, "faults of processes").await;
            self.look_for_dead().await;
            let index = self.anybody();
            match self.random.below(6) {
                0..3 => self.kill(index).await,
                3 => {
                    let length = Duration::from_millis(200 + self.random.below(5000));
                    self.pause(index, length, "").await;
                }
                _ => {
                    let length =
                        LEASE + LEASE / 8 + Duration::from_millis(200 + self.random.below(2500));
                    if let Some(index) = self.a_writer_amid_its_section().await {
                        self.pause(index, length, ", which holds a lock to write").await;
                    }
                }
            }
        }
    }

    async fn kill(&mut self, index: usize) {
        let began = self.run.start.elapsed();
        let mut process = self.processes.swap_remove(index);
        process.crash();
        self.kills += 1;
        self.run.took(began, format!("process {} is killed", process.number)).await;
        self.start().await;
    }

    async fn pause(&mut self, index: usize, length: Duration, which: &str) {
        let began = self.run.start.elapsed();
        self.processes[index].stop();
        tokio::time::sleep(length).await;
        self.processes[index].go_on();
        self.pauses += 1;
        let what =
            format!("process {}{which} is paused for {length:?}", self.processes[index].number);
        self.run.took(began, what).await;
    }

    /// Waits for a process that has just entered a long section as a writer.
    async fn a_writer_amid_its_section(&self) -> Option<usize> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            let mut journal = self.run.journal.lock().await;
            journal.read_on();
            let writes = |process: &Process| journal.writes_for_a_while(process.number);
            let writer = self.processes.iter().position(writes);
            drop(journal);
            if writer.is_some() {
                return writer;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        None
    }

    /// Checks that no process has ended on its own.
    async fn look_for_dead(&mut self) {
        let mut dead = Vec::new();
        self.processes.retain_mut(|process| {
            let ended = process.ended();
            dead.extend(
                ended.map(|status| format!("process {} has ended: {status}", process.number)),
            );
            ended.is_none()
        });
        for what in dead {
            self.run.wrong(what).await;
            self.start().await;
        }
    }

    fn go_on(&mut self) {
        for process in self.processes.iter_mut().filter(|process| process.is_stopped) {
            process.go_on();
        }
    }

    /// Lets every live process acquire a lock once more, and end.
    async fn end(&mut self) {
        self.look_for_dead().await;
        self.processes.iter_mut().for_each(Process::tell_of_quiet);
        let deadline = Instant::now() + PATIENCE;
        let mut left: Vec<_> = self.processes.drain(..).collect();
        while !left.is_empty() && Instant::now() < deadline {
            let mut failed = Vec::new();
            left.retain_mut(|process| {
                let ended = process.ended();
                if let Some(status) = ended.filter(|status| !status.success()) {
                    failed.push(format!("process {} has failed: {status}", process.number));
                }
                ended.is_none()
            });
            for what in failed {
                self.run.wrong(what).await;
            }
            tokio::time::sleep(POLL).await;
        }
        self.run.journal.lock().await.read_on();
        for process in left {
            let last = format!("{:?}", self.run.journal.lock().await.last(process.number));
            let what = format!(
                "process {} is not granted within {PATIENCE:?}; its last lines are {last}",
                process.number
            );
            self.run.wrong(what).await;
        }
    }
}

fn path(home: &Path, process: u64) -> std::path::PathBuf {
    home.join(format!("process-{process}.log"))
}
