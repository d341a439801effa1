//! Reads of stores of several sizes, next to plain async-nats.
//!
//! Plain async-nats has no equal of a scan, a replica or a caught-up marker; `plain.rs` has the
//! nearest to them.

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Arguments;
use crate::plain::Plain;
use crate::report::{Case, exponent};
use crate::server::Server;
use crate::subject::{After, Before, GROUP, OPENED, Part, Subject, key};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// Number of items of one `put_many`.
const CHUNK: usize = 10_000;

/// Number of runs on a side in a round if a run takes microseconds; the median counts.
const REPEATS: usize = 11;

/// A run that takes longer happens twice only on each side.
const LONG: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Effort {
    /// Maximum number of counted rounds.
    rounds: usize,
    /// Time of a case, after which no further round begins once two were counted.
    budget: Duration,
}

const FULL: Effort = Effort { rounds: 20, budget: Duration::from_secs(10) };
const QUICK: Effort = Effort { rounds: 4, budget: Duration::from_secs(2) };

#[derive(Clone, Copy)]
enum Action {
    Scan,
    Keys,
    Watch,
    Replicate,
}

/// A measured action on a part of a store. It gives one time for each name.
struct Work {
    names: Vec<&'static str>,
    action: Action,
    part: Part,
    /// Number of keys of the part.
    keys: usize,
}

impl Work {
    fn all(size: usize, has_replica: bool) -> Vec<Self> {
        // In the middle of the keys, because the first and the last ones can be found sooner.
        let group = size / GROUP / 2;
        let prefix = || Part::Prefix(format!("k.{group}."));
        let exact = || Part::Keys((0..GROUP).map(|number| key(number * size / GROUP)).collect());
        let work = |name, action, part, keys| Self { names: vec![name], action, part, keys };
        let all = size + OPENED;
        let mut works = vec![
            work("scan of all", Action::Scan, Part::All, all),
            work("keys of all", Action::Keys, Part::All, all),
            work("scan of a prefix of 64 keys", Action::Scan, prefix(), GROUP),
            work("scan of 64 exact keys", Action::Scan, exact(), GROUP),
            work("watch of all until caught up", Action::Watch, Part::All, all),
            work("watch of a prefix of 64 keys until caught up", Action::Watch, prefix(), GROUP),
            work("watch of 64 exact keys until caught up", Action::Watch, exact(), GROUP),
            work("watch of one key until caught up", Action::Watch, Part::key(size / 2), 1),
        ];
        if has_replica {
            works.push(Self {
                names: vec![
                    "replica until caught up",
                    "replica, longest get until caught up",
                    "replica, get",
                ],
                action: Action::Replicate,
                part: Part::All,
                keys: size,
            });
        }
        works
    }

    fn repeats(&self) -> usize {
        if self.keys > GROUP { 1 } else { REPEATS }
    }

    async fn once(&self, side: &impl Subject, log: &Path) -> Vec<Duration> {
        let start = Instant::now();
        match self.action {
            Action::Scan => side.scan(&self.part, self.keys).await,
            Action::Keys => side.keys(&self.part, self.keys).await,
            Action::Watch => side.watch(&self.part, self.keys).await,
            Action::Replicate => return side.replicate(self.keys, log).await.to_vec(),
        }
        vec![start.elapsed()]
    }

    async fn once_plain(&self, side: &Plain) -> Vec<Duration> {
        let start = Instant::now();
        match self.action {
            Action::Scan => side.scan(&self.part, self.keys).await,
            Action::Keys => side.keys(self.keys).await,
            Action::Watch => side.watch(&self.part, self.keys).await,
            Action::Replicate => return side.replicate(self.keys).await.to_vec(),
        }
        vec![start.elapsed()]
    }

    /// Returns the median of some runs on a side.
    async fn run(&self, sides: &Sides, at: usize) -> Vec<Duration> {
        let mut runs = Vec::new();
        for _ in 0..self.repeats() {
            let directory = TempDir::new().expect("a directory");
            let log = directory.path().join("log");
            runs.push(match at {
                0 => self.once(&sides.after, &log).await,
                1 => self.once(&sides.before, &log).await,
                2 => self.once(&sides.again, &log).await,
                _ => self.once_plain(sides.plain.as_ref().expect("a fourth side")).await,
            });
        }
        runs.sort();
        runs.swap_remove(runs.len() / 2)
    }
}

struct Sides {
    after: After,
    before: Before,
    again: After,
    plain: Option<Plain>,
}

impl Sides {
    /// Returns a bucket for all sides, which the present version fills.
    async fn nats(url: &str, size: usize, history: u8) -> Self {
        let name = format!("keys-{size}-history-{history}");
        let after = After::open(url, &name, history).await;
        fill(&after, size, history).await;
        Self {
            after,
            before: Before::open(url, &name, history).await,
            again: After::open(url, &name, history).await,
            plain: Some(Plain::open(url, &name).await),
        }
    }

    /// Returns a store for each side.
    async fn memory(size: usize, history: u8) -> Self {
        let sides = Self {
            after: After::open("memory:", "1", history).await,
            before: Before::open("memory:", "2", history).await,
            again: After::open("memory:", "3", history).await,
            plain: None,
        };
        fill(&sides.after, size, history).await;
        fill(&sides.before, size, history).await;
        fill(&sides.again, size, history).await;
        sides
    }

    fn count(&self) -> usize {
        3 + usize::from(self.plain.is_some())
    }
}

async fn fill(side: &impl Subject, size: usize, history: u8) {
    for _ in 0..history {
        for start in (0..size).step_by(CHUNK) {
            side.fill(start..size.min(start + CHUNK)).await;
        }
    }
}

/// Runs an action on all sides, in another order each round. The first round is not counted, unless
/// it is long.
async fn cases(work: &Work, suffix: &str, sides: &Sides, effort: Effort) -> Vec<Case> {
    let mut cases: Vec<_> =
        work.names.iter().map(|name| Case::new(format!("{name}{suffix}"))).collect();
    let begin = Instant::now();
    let mut counts_first = false;
    for round in 0..=effort.rounds {
        let mut times = vec![Vec::new(); sides.count()];
        for turn in 0..sides.count() {
            let at = (round + turn) % sides.count();
            let start = Instant::now();
            times[at] = work.run(sides, at).await;
            counts_first |= start.elapsed() > LONG;
        }
        for (number, case) in cases.iter_mut().enumerate() {
            case.add(&times.iter().map(|times| times[number]).collect::<Vec<_>>());
        }
        let counted = round + usize::from(counts_first);
        if counted >= 2 && (begin.elapsed() > effort.budget || counts_first) {
            break;
        }
    }
    if !counts_first {
        cases.iter_mut().for_each(Case::forget_first);
    }
    cases
}

pub(crate) async fn measure(arguments: Arguments) {
    let effort = if arguments.quick { QUICK } else { FULL };
    let server = Server::start();
    println!("nats-server {}\n", server.version);
    let url = format!("nats://127.0.0.1:{}", server.port);
    let mut measured = Vec::new();
    for size in arguments.sizes.clone().unwrap_or_else(|| SIZES.to_vec()) {
        // A prefix has its number of keys from here on.
        assert!(size >= 2 * GROUP, "too few keys: {size}");
        for (backend, history) in [("NATS", 1), ("NATS", 5), ("memory", 1)] {
            if history > 1 && size != 10_000 {
                continue;
            }
            let suffix = match history {
                1 => format!(", {backend}"),
                _ => format!(", history {history}, {backend}"),
            };
            let is_nats = backend == "NATS";
            let works = Work::all(size, is_nats);
            let is_selected = |work: &Work| {
                work.names.iter().any(|name| arguments.selects(&format!("{name}{suffix}")))
            };
            if !works.iter().any(is_selected) {
                continue;
            }
            let start = Instant::now();
            let sides = if is_nats {
                Sides::nats(&url, size, history).await
            } else {
                Sides::memory(size, history).await
            };
            println!("filled: {size} keys{suffix} in {:.1} s", start.elapsed().as_secs_f64());
            for work in works.into_iter().filter(is_selected) {
                for case in cases(&work, &suffix, &sides, effort).await {
                    println!("measured: {}", case.line_at(size));
                    measured.push((size, case));
                }
            }
        }
    }
    println!("\ncase | keys | after | before | plain | after/before | A/A | after/plain");
    for (size, case) in &measured {
        println!("{}", case.line_at(*size));
    }
    summary(&measured);
}

/// The time of each case at all sizes with the exponent of its growth, and the cases that are
/// slower than before beyond the noise of their A/A row.
fn summary(measured: &[(usize, Case)]) {
    println!("\nsummary: case | after in us, at each number of keys (after/before)");
    let mut names: Vec<_> = measured.iter().map(|(_, case)| &case.name).collect();
    names.sort();
    names.dedup();
    for name in names {
        let sizes: Vec<_> = measured.iter().filter(|(_, case)| &case.name == name).collect();
        let at = sizes.iter().map(|(size, case)| {
            format!("{size}: {:.2} ({:.2})", case.after() * 1e6, case.ratio().0)
        });
        let at = at.collect::<Vec<_>>().join(", ");
        let points = sizes.iter().map(|(size, case)| (*size as f64, case.after()));
        match exponent(&points.collect::<Vec<_>>()) {
            Some(exponent) => println!("summary: {name} | {at} | exponent {exponent:.2}"),
            None => println!("summary: {name} | {at}"),
        }
    }
    let is_slower = |case: &Case| {
        let (_, least, most) = case.same();
        case.ratio().0 > 1.03 + (most - least) / 2.0
    };
    let slower = measured.iter().filter(|(_, case)| is_slower(case));
    let slower: Vec<_> = slower.map(|(size, case)| format!("{} at {size}", case.name)).collect();
    println!(
        "slower than before beyond the noise: {}",
        if slower.is_empty() { "none".to_owned() } else { slower.join("; ") }
    );
}
