//! One run: processes that are killed and stopped for a while, then a quiet time, then all checks.

use std::fmt;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shizuku_kv::{Connection, Store, StoreConfig};
use shizuku_kv_tests::{Random, number, rerun};
use tempfile::TempDir;

use crate::faults::check::{self, Bucket, Violation};
use crate::faults::cursors;
use crate::faults::history::{Kind, Ledger, Outcome};
use crate::faults::log::{Content, Log, Sight};
use crate::faults::run::told;
use crate::faults::watchers::sight;
use crate::faults::world::ANCHOR;
use crate::faults::writers::{COUNTERS, PLAIN, Writer};
use crate::folder::books::Books;
use crate::folder::child::{self, REGISTERS, STORES, WATCHES};
use crate::journal::{Clock, Journal};
use crate::linearizability::check::{Question, Verdict, first_wrong, judge};

/// Number of processes at a time.
const PROCESSES: usize = 4;

/// Timeout for everything that has to happen after a fault, and in the end.
const PATIENCE: Duration = Duration::from_secs(90);

/// Maximum drift between the system clock and the monotonic one in a run. A larger drift means that
/// the system clock was set.
const DRIFT: Duration = Duration::from_millis(100);

const POLL: Duration = Duration::from_millis(20);

/// Maximum number of violations of a store that are reported in full.
const TOLD: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Used unless `SHIZUKU_SEED` is set.
    pub(crate) seed: u64,
    /// Duration of the faults.
    pub(crate) length: Duration,
    pub(crate) has_events: bool,
}

/// A process, which does not outlive the test.
#[derive(Debug)]
struct Process {
    number: usize,
    child: Child,
}

impl Process {
    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([name, &id]).status().expect("`kill` runs");
        assert!(status.success(), "cannot send {name} to process {}", self.number);
    }

    fn tell(&mut self, word: &str) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        writeln!(input, "{word}").expect("the process listens");
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Run {
    plan: Plan,
    home: TempDir,
    start: SystemTime,
    clock: Clock,
    random: Random,
    books: Books,
    processes: Vec<Process>,
    /// Writes of the test itself, by store.
    writers: [Writer; STORES.len()],
    stores: [Store; STORES.len()],
    summary: Summary,
}

/// Runs the plan.
pub(crate) async fn run(plan: Plan) -> Summary {
    let seed = number("SHIZUKU_SEED").unwrap_or(plan.seed);
    let plan = Plan { seed, ..plan };
    let (start, monotonic) = (SystemTime::now(), Instant::now());
    let mut run = Run::new(plan, start).await;
    for slot in 0..PROCESSES {
        run.start(slot, vec![None; WATCHES.len()]);
    }
    let end = monotonic + plan.length;
    while Instant::now() < end {
        run.disturb().await;
    }
    run.end().await;
    let drift = monotonic.elapsed().abs_diff(start.elapsed().unwrap_or_default());
    assert!(drift < DRIFT, "the clock was set by {drift:?}: repeat the run");
    run.summary
}

impl Run {
    async fn new(plan: Plan, start: SystemTime) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mut random = Random::new(plan.seed, "run");
        let connection = child::open(&url(&home), true).await;
        let history = if random.once_in(2) { 1 } else { 3 };
        let [main, leases] =
            [StoreConfig::new().history(history), StoreConfig::new().key_ttl(true)];
        let stores = [
            connection.store_with_config(STORES[0], main).await.expect("a store"),
            connection.store_with_config(STORES[1], leases).await.expect("a store"),
        ];
        connection.store(REGISTERS).await.expect("a store");
        let (clock, path) = (Clock::Shared(start), home.path().join("journal-0"));
        let (journal, mut books) = (Journal::open(&path), Books::new(PROCESSES));
        books.follow(0, path);
        let writers = [0, 1].map(|index: usize| {
            let ledger = Ledger::journaled(clock, STORES[index], &journal, index << 31);
            let random = Random::new(plan.seed, &format!("writer of {}", STORES[index]));
            Writer::new(&stores[index], &Arc::new(ledger), random)
        });
        let summary = Summary::new(plan);
        let mut run = Self {
            plan,
            home,
            start,
            clock,
            random,
            books,
            processes: Vec::new(),
            writers,
            stores,
            summary,
        };
        for writer in &mut run.writers {
            writer.put_for_sure(ANCHOR).await;
        }
        run
    }

    /// Starts a process in place of an earlier one.
    fn start(&mut self, slot: usize, cursors: Vec<Option<Vec<u8>>>) {
        self.summary.started += 1;
        let number = self.summary.started;
        let journal = self.home.path().join(format!("journal-{number}"));
        self.books.follow(number, journal.clone());
        let plan = child::Plan {
            url: url(&self.home),
            has_events: self.plan.has_events,
            journal,
            number,
            seed: self.plan.seed,
            start: self.start.duration_since(UNIX_EPOCH).expect("a clock after 1970"),
            first_watch: slot * WATCHES.len(),
            cursors,
        };
        let child = rerun(child::MODULE, "process_of_a_shared_folder")
            .env(child::PLAN, serde_json::to_string(&plan).expect("it can be encoded"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let process = Process { number, child: child.expect("it can be started") };
        if slot < self.processes.len() {
            self.processes[slot] = process;
        } else {
            self.processes.push(process);
        }
    }

    /// Kills a process or stops it for a while, and lets the others work meanwhile.
    async fn disturb(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.below(150))).await;
        let slot = self.random.index(PROCESSES);
        let number = self.processes[slot].number;
        let began = self.clock.elapsed();
        let kills = !self.random.once_in(3);
        let stops = !kills || self.random.once_in(3);
        if stops {
            self.summary.stops += 1;
            self.processes[slot].signal("-STOP");
            let pause = if self.random.once_in(4) { 3000 } else { 300 };
            tokio::time::sleep(Duration::from_millis(self.random.below(pause))).await;
        }
        if kills {
            self.summary.kills += 1;
            self.processes[slot].kill();
            self.books.read_on();
            let cursors = self.books.restart(slot * WATCHES.len(), self.clock.elapsed());
            // The others also work without it.
            tokio::time::sleep(Duration::from_millis(self.random.below(100))).await;
            self.start(slot, cursors);
        } else {
            self.processes[slot].signal("-CONT");
        }
        let what = format!("process {number}: stopped {stops}, killed {kills}");
        self.summary.injected.push(format!("{began:.3?}: {what}"));
        if self.random.once_in(2) {
            self.converge(&what).await;
        }
    }

    /// Waits until every group of keys has been written since now, and all watches have that.
    async fn converge(&mut self, after: &str) {
        let since = self.clock.elapsed();
        let is_written = |books: &Books| books.all_groups_written_since(since);
        if !self.until(is_written).await {
            let what = format!("not every key can be written {PATIENCE:?} after {after}");
            return self.summary.violations.push(what);
        }
        let newest = self.books.newest();
        if !self.until(|books| books.behind(&newest).is_empty()).await {
            let behind = self.books.behind(&newest);
            let what = format!("watches {behind:?} are behind {PATIENCE:?} after {after}");
            self.summary.violations.push(what);
        }
        self.summary.slowest = self.summary.slowest.max(self.clock.elapsed() - since);
    }

    async fn until(&mut self, condition: impl Fn(&Books) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.books.read_on();
            if condition(&self.books) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the faults, and makes all checks.
    async fn end(&mut self) {
        self.processes.iter_mut().for_each(|process| process.tell("quiet"));
        let numbers: Vec<_> = self.processes.iter().map(|process| process.number).collect();
        let are_quiet = |books: &Books| numbers.iter().all(|number| books.is_quiet(*number));
        assert!(self.until(are_quiet).await, "writers hang");
        for writer in &mut self.writers {
            for number in 0..PLAIN {
                writer.put_for_sure(&format!("plain.{number}")).await;
            }
            for number in 0..COUNTERS {
                writer.count_for_sure(&format!("count.{number}")).await;
            }
            writer.delete_for_sure("churn.1").await;
        }
        let mut contents = Vec::new();
        for store in 0..STORES.len() {
            contents.push(self.settle(store).await);
        }
        self.processes.iter_mut().for_each(|process| process.tell("over"));
        for process in &mut self.processes {
            // Waiting would otherwise close the input, which ends the process.
            let _input = process.child.stdin.take();
            let status = process.child.wait().expect("a child can be waited for");
            if !status.success() {
                let what = format!("process {} has failed: {status}", process.number);
                self.summary.violations.push(what);
            }
        }
        self.books.read_on();
        for (store, bucket) in contents.iter().enumerate() {
            self.check(store, bucket).await;
        }
        self.judge().await;
        self.summary.grants = self.books.grants();
        self.summary.violations.extend(self.books.overlaps().into_iter().take(TOLD));
        let oddities = std::mem::take(&mut self.books.oddities);
        self.summary.violations.extend(oddities.into_iter().take(20));
    }

    /// Waits until every value with a time to live has expired, and every watch agrees with the
    /// store. Returns the content of the store.
    async fn settle(&mut self, store: usize) -> Bucket {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.books.read_on();
            let (bucket, history) = (self.content(store).await, self.books.history(store));
            let lives = |newest: &Sight| match newest.content {
                Content::Value(write) => {
                    history.writes.get(write).is_some_and(|write| write.kind == Kind::Lease)
                }
                _ => false,
            };
            let is_settled = !bucket.values().any(lives)
                && self
                    .books
                    .logs(store)
                    .iter()
                    .all(|log| check::settled(history, &bucket, log).is_empty());
            // The checks name what has not settled.
            if is_settled || Instant::now() > deadline {
                return bucket;
            }
            tokio::time::sleep(5 * POLL).await;
        }
    }

    /// Returns the newest entry of every key that was ever written.
    async fn content(&self, store: usize) -> Bucket {
        let mut bucket = Bucket::new();
        for write in &self.books.history(store).writes {
            if bucket.contains_key(&write.key) {
                continue;
            }
            let entry = self.stores[store].entry(&*write.key).await.expect("an answer");
            let Some(entry) = entry else { continue };
            let found = sight(&entry).expect("a value of this run");
            let content = self.books.content(store, found.content);
            bucket.insert(Arc::clone(&write.key), Sight { content, ..found });
        }
        bucket
    }

    async fn check(&mut self, store: usize, bucket: &Bucket) {
        let (history, logs) = (self.books.history(store), self.books.logs(store));
        let mut found = check::all(history, bucket, &logs);
        let (resumed, wrong) = self.resume(store, &logs, bucket).await;
        found.extend(wrong);
        let summary = &mut self.summary;
        summary.acknowledged +=
            history.count(|outcome| matches!(outcome, Outcome::Acknowledged(_)));
        summary.refused += history.count(|outcome| outcome == Outcome::Refused);
        summary.unknown += history.count(|outcome| outcome == Outcome::Unknown);
        summary.events += logs.iter().map(Log::entries).sum::<u64>();
        summary.resumed += resumed;
        let left_out = found.len().saturating_sub(TOLD);
        for violation in found.iter().take(TOLD) {
            summary.violations.push(told(STORES[store], violation, &logs, history));
        }
        if left_out > 0 {
            summary.violations.push(format!("{}: and {left_out} more", STORES[store]));
        }
    }

    /// Resumes some cursors of each watch. None has expired, because the first entry exists.
    async fn resume(&self, store: usize, logs: &[Log], bucket: &Bucket) -> (u64, Vec<Violation>) {
        let history = self.books.history(store);
        let mut random = Random::new(self.plan.seed, "cursors");
        // The values name their writes, and the checks know them by the index in the history.
        let translate = |content| self.books.content(store, content);
        let resumed = cursors::resume(
            &self.stores[store],
            logs,
            history,
            bucket,
            0,
            3,
            &mut random,
            &translate,
        );
        let (resumed, wrong) = resumed.await;
        (resumed.continued, wrong)
    }

    /// Judges the history of each register.
    async fn judge(&mut self) {
        let registers = self.books.registers();
        self.summary.registers = registers.len();
        self.summary.calls = registers.iter().map(|(_, history)| history.calls.len()).sum();
        let judged = tokio::task::spawn_blocking(move || {
            let mut wrong = Vec::new();
            for (key, history) in registers {
                let verdict = judge(&history, Question::EVERYTHING);
                if verdict != Verdict::Linearizable {
                    let beginning = first_wrong(&history, Question::EVERYTHING);
                    wrong.push(format!(
                        "{key} is {verdict:?}; its shortest beginning that is wrong:\n{beginning}"
                    ));
                }
            }
            wrong
        });
        let wrong = judged.await.expect("the judge");
        self.summary.violations.extend(wrong.into_iter().take(TOLD));
    }
}

fn url(home: &TempDir) -> String {
    format!("file:{}/data?shared=true", home.path().display())
}

/// The results of a run.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    plan: Plan,
    started: usize,
    pub(crate) kills: u64,
    stops: u64,
    acknowledged: u64,
    refused: u64,
    unknown: u64,
    events: u64,
    resumed: u64,
    pub(crate) registers: usize,
    calls: usize,
    pub(crate) grants: usize,
    slowest: Duration,
    injected: Vec<String>,
    pub(crate) violations: Vec<String>,
}

impl Summary {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            started: 0,
            kills: 0,
            stops: 0,
            acknowledged: 0,
            refused: 0,
            unknown: 0,
            events: 0,
            resumed: 0,
            registers: 0,
            calls: 0,
            grants: 0,
            slowest: Duration::ZERO,
            injected: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Returns the output of a failed run.
    pub(crate) fn failure(&self) -> String {
        format!(
            "SHIZUKU_SEED={} makes the same decisions. Faults:\n  {}\n{} violations:\n{}",
            self.plan.seed,
            self.injected.join("\n  "),
            self.violations.len(),
            self.violations.join("\n")
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, length, has_events } = self.plan;
        writeln!(f, "seed {seed}, {length:.0?} of faults, events of the file: {has_events}")?;
        writeln!(
            f,
            "processes: {} started, {} killed, {} stops; all were current within {:.1?}",
            self.started, self.kills, self.stops, self.slowest
        )?;
        writeln!(
            f,
            "writes: {} acknowledged, {} rejected, {} unknown; {} entries delivered, {} cursors resumed",
            self.acknowledged, self.refused, self.unknown, self.events, self.resumed
        )?;
        let Self { registers, calls, grants, .. } = self;
        writeln!(f, "registers: {registers} with {calls} calls; locks: {grants} granted")?;
        write!(f, "violations: {}", self.violations.len())
    }
}
