//! The comparison of two sides, and a server, for all benchmarks.

#![allow(dead_code, reason = "not every benchmark uses all of it")]

pub(crate) mod cost;
mod latencies;
mod server;

use std::time::{Duration, Instant};

pub(crate) use latencies::Latencies;
pub(crate) use server::Server;

/// Single operations that one side does before it is the other's turn.
const BLOCK: usize = 10;

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One round: the time of an operation on each side.
#[derive(Clone, Copy)]
pub(crate) struct Round {
    pub(crate) ours: Duration,
    pub(crate) other: Duration,
}

/// All rounds of a case, and the latencies of both sides if it consists of single operations.
pub(crate) struct Comparison(pub(crate) Vec<Round>, Option<[Latencies; 2]>);

/// The thing that a time measures.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Unit {
    /// One operation. A round has the median of its operations.
    Each,
    /// An item among many.
    Item,
}

impl Comparison {
    pub(crate) fn of(rounds: Vec<Round>) -> Self {
        Self(rounds, None)
    }

    /// Lets the sides take turns. A first round of each is not counted.
    pub(crate) async fn run<A, B>(
        rounds: usize,
        mut ours: impl FnMut() -> A,
        mut other: impl FnMut() -> B,
    ) -> Self
    where
        A: Future<Output = Duration>,
        B: Future<Output = Duration>,
    {
        ours().await;
        other().await;
        let mut all = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let (first, second);
            all.push(if round % 2 == 0 {
                (first, second) = (ours().await, other().await);
                Round { ours: first, other: second }
            } else {
                (first, second) = (other().await, ours().await);
                Round { ours: second, other: first }
            });
        }
        Self::of(all)
    }

    /// The same for single operations: `count` a round on each side, of which a round has the
    /// median.
    pub(crate) async fn singles<A, B>(
        (rounds, count): (usize, usize),
        mut ours: impl FnMut() -> A,
        mut other: impl FnMut() -> B,
    ) -> Self
    where
        A: Future<Output = ()>,
        B: Future<Output = ()>,
    {
        let mut all = Vec::with_capacity(rounds);
        let mut latencies = [Latencies::new(), Latencies::new()];
        for round in 0..=rounds {
            let (mut our_times, mut other_times) = (Vec::new(), Vec::new());
            for block in 0..count / BLOCK {
                if (round + block) % 2 == 0 {
                    timed(BLOCK, &mut our_times, &mut ours).await;
                    timed(BLOCK, &mut other_times, &mut other).await;
                } else {
                    timed(BLOCK, &mut other_times, &mut other).await;
                    timed(BLOCK, &mut our_times, &mut ours).await;
                }
            }
            // The first round is not counted.
            if round > 0 {
                our_times.iter().for_each(|time| latencies[0].add(*time));
                other_times.iter().for_each(|time| latencies[1].add(*time));
                all.push(Round { ours: middle(our_times), other: middle(other_times) });
            }
        }
        Self(all, Some(latencies))
    }

    /// The ratios within a round.
    fn ratios(&self) -> Vec<f64> {
        sorted(self.0.iter().map(|round| round.ours.as_secs_f64() / round.other.as_secs_f64()))
    }

    /// Returns the line of a case. An infinite target is none.
    pub(crate) fn line(&self, case: &str, unit: Unit, target: f64) -> String {
        self.line_within(None, case, unit, target)
    }

    /// Like [`line`](Self::line), beside an A/A comparison of one operation on both sides. The
    /// target is met if the ratio exceeds it by at most half of the spread of that comparison.
    pub(crate) fn line_beside(&self, same: &Self, case: &str, unit: Unit, target: f64) -> String {
        let ratios = same.ratios();
        self.line_within(Some((at(&ratios, 0.05), at(&ratios, 0.95))), case, unit, target)
    }

    fn line_within(
        &self,
        noise: Option<(f64, f64)>,
        case: &str,
        unit: Unit,
        target: f64,
    ) -> String {
        let ours = sorted(self.0.iter().map(|round| round.ours.as_secs_f64()));
        let other = sorted(self.0.iter().map(|round| round.other.as_secs_f64()));
        let ratios = self.ratios();
        let ratio = median(&ratios);
        let (most, noise) = match noise {
            Some((least, most)) => {
                (target + (most - least) / 2.0, format!(", A/A {least:.3} to {most:.3}"))
            }
            None => (target, String::new()),
        };
        let shown = |times: &[f64], side: usize| match (unit, &self.1) {
            (Unit::Each, Some(latencies)) => latencies[side].to_string(),
            // Rounds of few operations are too few for a tail.
            (Unit::Each, None) => format!("{:.1} us p50", median(times) * 1e6),
            (Unit::Item, _) => {
                format!("{:.2} us/item ({:.0} k/s)", median(times) * 1e6, 1e-3 / median(times))
            }
        };
        let line = format!(
            "{case} | {} | {} | {ratio:.3} ({:.3} to {:.3}{noise}) | {} | {}",
            shown(&ours, 0),
            shown(&other, 1),
            ratios[0],
            ratios[ratios.len() - 1],
            if target.is_finite() { format!("<= {target}") } else { "-".to_owned() },
            if target.is_finite() { met(ratio <= most) } else { "-" },
        );
        println!("measured: {line}");
        line
    }
}

/// The value at a share of sorted ones.
fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

pub(crate) fn met(met: bool) -> &'static str {
    if met { "yes" } else { "NO" }
}

pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

pub(crate) fn median(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// The times of `count` operations one after the other.
pub(crate) async fn timed<F: Future<Output = ()>>(
    count: usize,
    times: &mut Vec<Duration>,
    mut operation: impl FnMut() -> F,
) {
    for _ in 0..count {
        let start = Instant::now();
        operation().await;
        times.push(start.elapsed());
    }
}

pub(crate) fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The median time of `count` operations one after the other.
pub(crate) async fn p50<F: Future<Output = ()>>(
    count: usize,
    mut operation: impl FnMut() -> F,
) -> Duration {
    let mut times = Vec::with_capacity(count);
    timed(count, &mut times, &mut operation).await;
    middle(times)
}

/// The time of each of `count` items that are handled together.
pub(crate) async fn per_item(count: usize, together: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    together.await;
    start.elapsed() / u32::try_from(count).expect("a small number")
}
