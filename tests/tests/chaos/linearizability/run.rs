//! One run: clients on a few keys, a calm time, faults, a calm time again. Then every history is
//! judged.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shizuku_kv::{ReadConsistency, Store, StoreConfig, connect};
use shizuku_kv_tests::{
    Fault, Faults, Injection, NatsCluster, NatsServer, Random, Victim, handles_at, number,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::journal::Clock;
use crate::linearizability::check::{Question, Verdict, first_wrong, judge};
use crate::linearizability::client::{Client, Common};
use crate::linearizability::history::{End, History};
use crate::linearizability::register::{Answer, Operation};
use crate::linearizability::table::{Sheet, Table};

const BUCKET: &str = "registers";

/// Number of clients, each on a connection of its own.
const CLIENTS: usize = 6;

/// Duration of the calm times before and after the faults.
const CALM: Duration = Duration::from_secs(2);

/// Number of operations that must be answered between two faults.
const ANSWERS: usize = 150;

/// Timeout for these answers: an election takes four to nine seconds, and can fail.
const PATIENCE: Duration = Duration::from_secs(60);

/// Maximum number of violations of a run that are reported in full.
const TOLD: usize = 3;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) faults: &'static [Fault],
    /// Duration of the faults.
    pub(crate) length: Duration,
}

/// Runs the plan.
pub(crate) async fn run(plan: Plan) -> Summary {
    // A pause of a leader beyond five seconds causes an election.
    let mut faults = Faults::new(plan.seed).only(plan.faults).lasting(
        Duration::from_millis(100)..=Duration::from_secs(if plan.nodes == 1 { 1 } else { 7 }),
    );
    let seed = faults.seed();
    let cluster = match plan.nodes {
        1 => NatsCluster::of(NatsServer::start()).await,
        nodes => NatsCluster::builder().nodes(nodes).start().await,
    };
    let mut summary = Summary { seed, nodes: plan.nodes, ..Summary::default() };
    let version = cluster.client().await.server_info().version;
    summary.backend = format!("nats-server {version}");
    let mut stores = Vec::new();
    for _ in 0..CLIENTS {
        stores.push(store(&cluster, plan.nodes).await);
    }
    let start = Instant::now();
    let clients = Clients::start(&stores, seed, start);
    let common = Arc::clone(&clients.common);

    let mut calm = Vec::new();
    cluster.wait_until_healthy(BUCKET).await;
    calm.extend(rest(&common.table, &cluster, start).await);
    let end = start.elapsed() + plan.length;
    while start.elapsed() < end {
        let mut injection = faults.next(&cluster);
        if plan.nodes > 1 && matches!(injection.fault, Fault::Kill | Fault::Pause) {
            // These faults matter most on the leader.
            injection = Injection { victim: Victim::Leader, ..injection };
        }
        summary.injected.push(format!("{:.3?}: {injection}", start.elapsed()));
        faults.inject(&injection, &cluster, BUCKET).await;
        answers(&common.table, start).await;
    }
    summary.faults = faults.counts().clone();
    cluster.wait_until_ready().await;
    cluster.wait_until_healthy(BUCKET).await;
    calm.extend(rest(&common.table, &cluster, start).await);
    clients.end(calm, summary).await
}

/// Runs clients in a folder, without faults.
pub(crate) async fn run_in_folder(url: &str, seed: u64, length: Duration) -> Summary {
    let seed = number("SHIZUKU_SEED").unwrap_or(seed);
    let (backend, start) = (url.to_owned(), Instant::now());
    let summary = Summary { seed, nodes: 1, backend, ..Summary::default() };
    let stores = handles_at(url, BUCKET, CLIENTS).await;
    let clients = Clients::start(&stores, seed, start);
    tokio::time::sleep(length).await;
    clients.end(vec![[Duration::ZERO, Duration::MAX]], summary).await
}

/// The clients of a run, each in a task of its own.
struct Clients {
    common: Arc<Common>,
    tasks: JoinSet<()>,
    over: watch::Sender<bool>,
}

impl Clients {
    fn start(stores: &[Store], seed: u64, start: Instant) -> Self {
        let common = Arc::new(Common {
            table: Table::new(Clock::Own(start), Random::new(seed, "keys")),
            next_write: AtomicUsize::new(0),
            oddities: Mutex::default(),
        });
        let (over, mut tasks) = (watch::Sender::new(false), JoinSet::new());
        for (number, store) in stores.iter().enumerate() {
            let random = Random::new(seed, &format!("client {number}"));
            tasks.spawn(Client::new(number, store, random, &common).run(over.subscribe()));
        }
        Self { common, tasks, over }
    }

    /// Ends the clients, and judges every history.
    async fn end(self, calm: Vec<[Duration; 2]>, summary: Summary) -> Summary {
        self.over.send_replace(true);
        let ended = tokio::time::timeout(PATIENCE, self.tasks.join_all()).await;
        assert!(ended.is_ok(), "clients hang");
        let judging = Instant::now();
        let sheets = self.common.table.all();
        let judged = tokio::task::spawn_blocking(move || judge_all(&sheets, &calm, summary)).await;
        let mut summary = judged.expect("the judge");
        summary.judging = judging.elapsed();
        summary.violations.extend(self.common.oddities.lock().unwrap().drain(..).take(20));
        summary
    }
}

async fn store(cluster: &NatsCluster, replicas: usize) -> Store {
    let connection = connect(&cluster.url()).await.expect("a connection");
    let config = StoreConfig::new().replicas(replicas).consistency(ReadConsistency::Leader);
    connection.store_with_config(BUCKET, config).await.expect("a bucket")
}

/// Lets the clients use new keys for a calm while, and returns its time. Returns `None` if an
/// overloaded machine has made another node the leader.
async fn rest(table: &Table, cluster: &NatsCluster, start: Instant) -> Option<[Duration; 2]> {
    let leader = cluster.leader_of(BUCKET).await;
    // Earlier operations may still be answered, but none has begun on these keys.
    table.turn();
    let began = start.elapsed();
    tokio::time::sleep(CALM).await;
    let ended = start.elapsed();
    table.turn();
    (cluster.leader_of(BUCKET).await == leader).then_some([began, ended])
}

/// Waits until clients are answered again.
async fn answers(table: &Table, start: Instant) {
    let since = start.elapsed();
    while table.answered_since(since) < ANSWERS {
        assert!(
            start.elapsed() - since < PATIENCE,
            "clients are not answered {PATIENCE:?} after a fault"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn judge_all(sheets: &[Arc<Sheet>], calm: &[[Duration; 2]], summary: Summary) -> Summary {
    let next = AtomicUsize::new(0);
    let summary = Mutex::new(summary);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(sheet) = sheets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let history = sheet.history();
                    let is_calm = calm.iter().any(|[from, to]| {
                        history
                            .calls
                            .iter()
                            .all(|call| call.times[0] >= *from && call.times[1] <= *to)
                    });
                    let found = Found::of(&history);
                    summary.lock().unwrap().add(&sheet.key, &history, is_calm, found);
                }
            });
        }
    });
    summary.into_inner().unwrap()
}

/// The verdicts on one history.
struct Found {
    everything: Verdict,
    /// The same if only reads or only mismatches must be linearizable.
    reads: Verdict,
    mismatches: Verdict,
    least: Verdict,
}

impl Found {
    fn of(history: &History) -> Self {
        let everything = judge(history, Question::EVERYTHING);
        let unless_all = |question| match everything {
            Verdict::Linearizable => everything,
            _ => judge(history, question),
        };
        let [reads, mismatches] = [Question::READS, Question::MISMATCHES].map(unless_all);
        let least = match (reads, mismatches) {
            (Verdict::Linearizable, _) | (_, Verdict::Linearizable) => Verdict::Linearizable,
            _ => judge(history, Question::LEAST),
        };
        Self { everything, reads, mismatches, least }
    }

    /// Returns the violated guarantee, if any. A single server, which has no replica that could be
    /// behind, guarantees everything. A calm cluster guarantees reads and mismatches, each on its
    /// own.
    fn wrong(&self, nodes: usize, is_calm: bool) -> Option<(Question, Verdict)> {
        let promised = [
            (true, Question::LEAST, self.least),
            (is_calm || nodes == 1, Question::READS, self.reads),
            (is_calm || nodes == 1, Question::MISMATCHES, self.mismatches),
            (nodes == 1, Question::EVERYTHING, self.everything),
        ];
        let wrong = promised
            .into_iter()
            .find(|(is_promised, _, verdict)| *is_promised && *verdict != Verdict::Linearizable);
        wrong.map(|(_, question, verdict)| (question, verdict))
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) seed: u64,
    nodes: usize,
    backend: String,
    faults: BTreeMap<Fault, u64>,
    injected: Vec<String>,
    /// Number of histories; of those in calm times; and of those with operations of unknown
    /// outcome.
    keys: usize,
    pub(crate) calm: usize,
    with_open: usize,
    written: usize,
    rejected: usize,
    open: usize,
    not_done: usize,
    pub(crate) reads: usize,
    /// Number of histories that are linearizable only if reads may be old; only if mismatches are
    /// left out; only if the two are not judged together.
    old_reads: usize,
    lost_reasons: usize,
    late_reasons: usize,
    judging: Duration,
    pub(crate) violations: Vec<String>,
}

impl Summary {
    fn add(&mut self, key: &str, history: &History, is_calm: bool, found: Found) {
        if history.calls.is_empty() {
            return;
        }
        let is_write = |operation: &Operation| *operation != Operation::Read;
        let open = history.count(|call| is_write(&call.operation) && call.end() == End::Open);
        self.keys += 1;
        self.calm += usize::from(is_calm);
        self.with_open += usize::from(open > 0);
        self.open += open;
        self.written += history.count(|call| matches!(call.end(), End::Told(Answer::Written(_))));
        self.rejected += history.count(|call| matches!(call.end(), End::Told(Answer::Mismatch)));
        self.reads += history.count(|call| matches!(call.end(), End::Told(Answer::Found(_))));
        self.not_done +=
            history.count(|call| is_write(&call.operation) && call.end() == End::NotDone);

        let holds = |verdict: Verdict| verdict == Verdict::Linearizable;
        self.old_reads += usize::from(!holds(found.reads));
        self.lost_reasons += usize::from(!holds(found.mismatches));
        let is_late = !holds(found.everything) && holds(found.reads) && holds(found.mismatches);
        self.late_reasons += usize::from(is_late);
        let Some((question, verdict)) = found.wrong(self.nodes, is_calm) else { return };
        let mut text = format!("{key} is {verdict:?} where this is asked: {question:?}");
        if verdict == Verdict::Not && self.violations.len() < TOLD {
            text += &format!(
                "; all of it:\n{history}  and its shortest beginning that is wrong:\n{}",
                first_wrong(history, question)
            );
        }
        self.violations.push(text);
    }

    /// Returns the output of a failed run.
    pub(crate) fn failure(&self) -> String {
        format!(
            "SHIZUKU_SEED={} makes the same decisions. Faults:\n  {}\n{} violations:\n{}",
            self.seed,
            self.injected.join("\n  "),
            self.violations.len(),
            self.violations.join("\n")
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> =
            self.faults.iter().map(|(fault, times)| format!("{times} {fault:?}")).collect();
        let total: u64 = self.faults.values().sum();
        writeln!(f, "{}, seed {}, nodes: {}", self.backend, self.seed, self.nodes)?;
        writeln!(f, "faults: {total} ({})", faults.join(", "))?;
        writeln!(
            f,
            "operations: {} written, {} mismatches, {} unknown, {} not done, {} reads",
            self.written, self.rejected, self.open, self.not_done, self.reads
        )?;
        writeln!(
            f,
            "histories: {} ({} in calm, {} with unknown outcomes), judged in {:.1?}",
            self.keys, self.calm, self.with_open, self.judging
        )?;
        writeln!(
            f,
            "not linearizable as a whole: {} for old reads, {} for mismatches whose reason was lost, {} for mismatches \
             whose reason could not be read yet",
            self.old_reads, self.lost_reasons, self.late_reasons
        )?;
        write!(f, "violations: {}", self.violations.len())
    }
}
