//! The charted rates over the number of keys.

use std::fmt::Write;

use crate::support::{median, sorted};
use crate::turns::Times;

#[derive(Debug, Default)]
pub(crate) struct Rates(Vec<Rate>);

#[derive(Debug)]
struct Rate {
    /// The measured work: `applied` or `loaded`.
    work: &'static str,
    side: &'static str,
    keys: usize,
    /// Keys per second in each round, sorted.
    rounds: Vec<f64>,
}

impl Rates {
    pub(crate) fn note(
        &mut self,
        work: &'static str,
        side: &'static str,
        keys: usize,
        times: &Times,
    ) {
        let rounds = sorted(times.iter().map(|seconds| keys as f64 / seconds));
        self.0.push(Rate { work, side, keys, rounds });
    }

    pub(crate) fn csv(&self) -> String {
        let mut csv =
            "work,side,keys,rounds,lowest_keys_per_s,median_keys_per_s,highest_keys_per_s\n"
                .to_owned();
        for Rate { work, side, keys, rounds } in &self.0 {
            let (lowest, highest) = (rounds[0], rounds[rounds.len() - 1]);
            let (count, middle) = (rounds.len(), median(rounds));
            writeln!(csv, "{work},{side},{keys},{count},{lowest:.0},{middle:.0},{highest:.0}")
                .expect("a string takes everything");
        }
        csv
    }
}
