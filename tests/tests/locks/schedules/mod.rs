//! Locks in memory under a clock that stands still between events. A thousand random schedules of
//! processes claim, hold, wait, give up, crash and are cut off, over a store that loses
//! acknowledgements and makes writes late.
//!
//! The processes share nothing except the store. All is single-threaded, and a seed decides a
//! schedule. Two things are not decided by it, because the library draws them itself: the names of
//! sessions and the pauses between tries. So a seed of `SHIZUKU_SEED` is run many times.

mod can_fail;
mod comes_back;
mod event_log;
mod link;
mod schedule;
mod worker;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use link::Broken;
use schedule::Tally;

const SCHEDULES: u64 = 1000;

/// Number of schedules with `SHIZUKU_LONG=1`.
const MANY_SCHEDULES: u64 = 10_000;

/// Number of runs of a requested seed.
const AGAIN: u64 = 100;

/// Maximum number of failed schedules that are reported, because others are likely to be the same.
const TOLD: usize = 3;

fn is_long() -> bool {
    std::env::var("SHIZUKU_LONG").is_ok_and(|long| long == "1")
}

#[test]
fn random_schedules_keep_the_promises_of_locks() {
    let seeds: Vec<u64> = match std::env::var("SHIZUKU_SEED").ok().filter(|text| !text.is_empty()) {
        Some(text) => vec![text.parse().expect("SHIZUKU_SEED is a number"); AGAIN as usize],
        None => (0..if is_long() { MANY_SCHEDULES } else { SCHEDULES }).collect(),
    };
    let began = std::time::Instant::now();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    let failures = Mutex::new(Vec::new());
    let take = || {
        // Each schedule is in one thread. Several threads take them in turn.
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            match schedule::run(*seed, Broken::Nothing) {
                Ok(seen) => tally.lock().unwrap().add(&seen),
                Err(why) => failures
                    .lock()
                    .unwrap()
                    .push(format!("SHIZUKU_SEED={seed} has this schedule again.\n{why}")),
            }
            if failures.lock().unwrap().len() >= TOLD {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(take);
        }
    });
    let (tally, failures) = (tally.into_inner().unwrap(), failures.into_inner().unwrap());
    println!("{} schedules in {:.1?}: {tally}", seeds.len(), began.elapsed());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    tally.assert_that_enough_has_happened(seeds.len() as u64);
}
