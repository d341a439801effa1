//! Compares stores in a folder with redb alone, in the same mode with the same tables and values,
//! and with SQLite. `benches/folders/run` says how.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot continue ends"
)]

mod hand_over;
mod large;
mod latency;
mod modes;
mod others;
mod ours;
#[allow(unused_imports, reason = "no server is needed here")]
#[path = "../../../shizuku-kv/benches/support/mod.rs"]
mod support;

/// The extent of the measurements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds, and puts of a round.
    puts: (usize, usize),
    /// Rounds, and gets of a round.
    gets: (usize, usize),
    /// Rounds of cases with many operations.
    rounds: usize,
    /// Number of keys of the large store.
    keys: usize,
}

const FULL: Effort = Effort { puts: (12, 100), gets: (20, 2000), rounds: 7, keys: 1_000_000 };
const QUICK: Effort = Effort { puts: (3, 20), gets: (3, 200), rounds: 3, keys: 100_000 };

/// Bytes of a value.
pub(crate) const VALUE: [u8; 200] = [7; 200];

#[tokio::main]
async fn main() {
    if let Some(result) = latency::child().await.or(large::child().await) {
        return println!("{result}");
    }
    let mut arguments = std::env::args().skip(1);
    let mut effort = FULL;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--keys" => effort.keys = arguments.next().unwrap().parse().unwrap(),
            _ => panic!("usage: folders [--quick] [--keys N]"),
        }
    }
    tokio::spawn(run(effort)).await.unwrap();
}

async fn run(effort: Effort) {
    println!("{} cores", support::cores());
    let mut lines = modes::measure(effort).await;
    lines.extend(latency::measure().await);
    lines.extend(large::measure(effort).await);
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}
