//! The longest time for which the memory backend blocks others from a store.
//!
//! Two figures bound it. The longest poll of an operation, in time on a core, bounds each hold of a
//! lock from above (see `heavy.rs`). It includes all other work of the operation. The longest poll
//! of a `get` on another thread meanwhile, by the clock, is the effect on others: its wait for the
//! lock, and its own work. It can wait for several holds in a row, because the lock is not fair. It
//! also contains delays of the operating system, which the row `no store` shows. Long polls during
//! which the host paused the machine are discarded and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::Arguments;
use crate::heavy::{After, Before, Heavy, Longest, Subject};
use crate::report::spread;

/// Maximum time for which an operation may hold the lock, in milliseconds.
const TARGET: f64 = 5.0;

/// The polls of an operation, and of a `get` meanwhile.
type Round = (Longest, Longest);

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Runs all operations on a new store.
async fn round<S: Subject>(keys: usize, selects: impl Fn(Heavy) -> bool) -> Vec<Round> {
    let mut side = S::open().await;
    let mut all = Vec::new();
    for what in Heavy::ALL {
        if !selects(what) {
            continue;
        }
        side.prepare(what, keys).await;
        let stop = Arc::new(AtomicBool::new(false));
        let (runtime, reads) = (Handle::current(), side.reads(Arc::clone(&stop)));
        let reader = thread::spawn(move || runtime.block_on(reads));
        let longest = side.run(what, keys).await;
        stop.store(true, Ordering::Relaxed);
        let wait = reader.join().expect("the reading thread");
        all.push((longest, wait));
    }
    all
}

pub(crate) async fn measure(arguments: Arguments) {
    let (keys, rounds) = if arguments.quick { (100_000, 3) } else { (1_000_000, 10) };
    for keys in arguments.sizes.clone().unwrap_or_else(|| vec![keys]) {
        measure_at(keys, rounds, &arguments).await;
    }
}

async fn measure_at(keys: usize, rounds: usize, arguments: &Arguments) {
    // All runs fill the store, whatever is selected.
    let selects = |what: Heavy| what == Heavy::Fill || arguments.selects(what.name());
    let (mut after, mut before) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        // Each version begins every other round.
        if number % 2 == 0 {
            after.push(round::<After>(keys, selects).await);
            before.push(round::<Before>(keys, selects).await);
        } else {
            before.push(round::<Before>(keys, selects).await);
            after.push(round::<After>(keys, selects).await);
        }
        println!("round {} of {rounds}", number + 1);
    }
    println!(
        "\n{keys} keys in memory, {rounds} rounds: the longest of each round in ms, middle (least to most) of the rounds"
    );
    println!(
        "operation | keys | poll after | poll before | get meanwhile after | get meanwhile before | discarded after | discarded before | target | met"
    );
    for (at, what) in Heavy::ALL.into_iter().filter(|what| selects(*what)).enumerate() {
        let of = |rounds: &[Vec<Round>], part: fn(&Round) -> Longest| {
            spread(rounds.iter().map(|round| ms(part(&round[at]).poll)))
        };
        let shown = |(middle, least, most): (f64, f64, f64)| {
            format!("{middle:.3} ({least:.3} to {most:.3})")
        };
        let discarded = |rounds: &[Vec<Round>]| {
            let all = || rounds.iter().flat_map(|round| [round[at].0, round[at].1]);
            let number: usize = all().map(|longest| longest.discarded).sum();
            let longest = all().map(|longest| longest.longest_discarded).max().unwrap_or_default();
            format!("{number} (to {:.3})", ms(longest))
        };
        let (poll, wait) = (of(&after, |round| round.0), of(&after, |round| round.1));
        // Each of the two bounds the longest hold, because a read comes at any moment.
        let met = poll.2.min(wait.2) <= TARGET;
        println!(
            "{} | {keys} | {} | {} | {} | {} | {} | {} | <= {TARGET} ms | {}",
            what.name(),
            shown(poll),
            shown(of(&before, |round| round.0)),
            shown(wait),
            shown(of(&before, |round| round.1)),
            discarded(&after),
            discarded(&before),
            if met { "yes" } else { "NO" },
        );
    }
}
