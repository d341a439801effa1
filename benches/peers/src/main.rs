//! Compares replicas of shizuku-kv with those of beyond-slipstream (`slipstream` below) and with
//! the delivery of plain async-nats, and its locks with those of shizuku.
//!
//! `benches/peers/run [--quick] [--only replicas|locks]` runs it; `README.md` describes the
//! comparison. The sides of a case take turns, and the result is the ratio within a round. The last
//! lines are one for each case: `case | ours | other | ratio | target | met`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on ends"
)]

mod applied;
mod buckets;
mod lines;
mod locks;
mod logs;
mod memory;
mod ours;
mod rates;
mod slipstreams;
#[path = "../../../shizuku-kv/benches/support/mod.rs"]
mod support;
mod turns;

use std::path::PathBuf;

use buckets::Buckets;
use rates::Rates;
use support::{Server, cores};

/// The amount of measuring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// The numbers of keys for the chart of rates. The cases use two of them.
    sizes: &'static [usize],
    cases: [usize; 2],
    /// Maximum number of rounds of a case. Large cases have fewer.
    rounds: usize,
}

const FULL: Effort = Effort {
    sizes: &[1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000],
    cases: [100_000, 1_000_000],
    rounds: 10,
};
const QUICK: Effort =
    Effort { sizes: &[1000, 3000, 10_000, 30_000, 50_000], cases: [10_000, 50_000], rounds: 3 };

impl Effort {
    /// Returns the number of rounds for this number of keys.
    pub(crate) fn rounds(self, keys: usize) -> usize {
        match keys {
            0..=100_000 => self.rounds,
            100_001..=300_000 => self.rounds.min(6),
            _ => self.rounds.min(3),
        }
    }

    pub(crate) fn is_case(self, keys: usize) -> bool {
        self.cases.contains(&keys)
    }
}

const USAGE: &str = "usage: peers [--quick] [--only replicas|locks] [--csv FILE]";

/// The cases to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    Everything,
    Replicas,
    Locks,
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut quick, mut only, mut csv) = (false, Only::Everything, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--only" => match arguments.next().as_deref() {
                Some("replicas") => only = Only::Replicas,
                Some("locks") => only = Only::Locks,
                _ => refuse(),
            },
            "--csv" => csv = Some(PathBuf::from(arguments.next().expect(USAGE))),
            memory::CHILD => {
                let arguments = arguments.collect::<Vec<_>>();
                return tokio::spawn(memory::child(arguments)).await.expect("the measured process");
            }
            _ => refuse(),
        }
    }
    tokio::spawn(run(quick, only, csv)).await.expect("the benchmark");
}

fn refuse() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(2)
}

async fn run(quick: bool, only: Only, csv: Option<PathBuf>) {
    let server = Server::start();
    println!("nats-server {}, {} cores\n", server.version, cores());
    let mut lines = Vec::new();
    // The locks come first, while the server has no other content.
    if only != Only::Replicas {
        lines.extend(locks::measure(&server, if quick { locks::QUICK } else { locks::FULL }).await);
    }
    if only != Only::Locks {
        lines.extend(replicas(&server, if quick { QUICK } else { FULL }, csv).await);
    }
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}

async fn replicas(server: &Server, effort: Effort, csv: Option<PathBuf>) -> Vec<String> {
    let buckets = Buckets::fill(server, effort.sizes).await;
    let mut rates = Rates::default();
    let batch = applied::best_batch(&buckets, effort.cases[0]).await;
    let mut lines = applied::measure(&buckets, effort, batch, &mut rates).await;
    lines.extend(logs::measure(effort, &mut rates).await);
    if let Some(path) = csv {
        std::fs::write(&path, rates.csv())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    lines.extend(memory::measure(&buckets, effort, batch).await);
    lines
}
