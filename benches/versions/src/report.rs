//! One case: its rounds, and the resulting line.

use std::time::Duration;

/// Maximum ratio of the present version's time to the earlier one's.
const TARGET: f64 = 1.03;

/// The times of a round: the present version, the earlier one, the present one again, and plain
/// async-nats if it takes part.
type Round = Vec<f64>;

pub(crate) struct Case {
    pub(crate) name: String,
    rounds: Vec<Round>,
}

/// The median, the minimum and the maximum.
type Spread = (f64, f64, f64);

pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
    (middle, values[0], values[values.len() - 1])
}

/// Returns the slope of the line through points on two logarithmic axes, by least squares. Returns
/// `None` if fewer than two numbers of keys were measured.
pub(crate) fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<_> = points.iter().map(|(keys, time)| (keys.ln(), time.ln())).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / logs.len() as f64;
    let (x, y) = (mean(|log| log.0), mean(|log| log.1));
    let across: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
    let both: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
    (across > 0.0).then(|| both / across)
}

fn shown((middle, least, most): Spread) -> String {
    format!("{middle:.3} ({least:.3} to {most:.3})")
}

// Both runs of the present version count, so that their noise is in all ratios.
fn present(times: &Round) -> f64 {
    f64::midpoint(times[0], times[2])
}

impl Case {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rounds: Vec::new() }
    }

    pub(crate) fn add(&mut self, times: &[Duration]) {
        self.rounds.push(times.iter().map(Duration::as_secs_f64).collect());
    }

    pub(crate) fn forget_first(&mut self) {
        self.rounds.remove(0);
    }

    fn column(&self, of: impl Fn(&Round) -> f64) -> Spread {
        spread(self.rounds.iter().map(of))
    }

    /// Returns the time of the present version in seconds.
    pub(crate) fn after(&self) -> f64 {
        self.column(|times| times[0]).0
    }

    pub(crate) fn ratio(&self) -> Spread {
        self.column(|times| present(times) / times[1])
    }

    pub(crate) fn same(&self) -> Spread {
        self.column(|times| times[0] / times[2])
    }

    pub(crate) fn line(&self) -> String {
        let before = self.column(|times| times[1]).0;
        let (ratio, same) = (self.ratio(), self.same());
        let limit = TARGET + (same.2 - same.1) / 2.0;
        format!(
            "{} | {:.2} us | {:.2} us | {} | {} | <= {TARGET} | {}",
            self.name,
            self.after() * 1e6,
            before * 1e6,
            shown(ratio),
            shown(same),
            if ratio.0 <= limit { "yes" } else { "NO" },
        )
    }

    /// Returns the line of a case at a number of keys, next to plain async-nats.
    pub(crate) fn line_at(&self, keys: usize) -> String {
        let before = self.column(|times| times[1]).0;
        let (mut plain, mut to_plain) = ("-".to_owned(), "-".to_owned());
        if self.rounds.iter().all(|times| times.len() > 3) {
            plain = format!("{:.2} us", self.column(|times| times[3]).0 * 1e6);
            to_plain = shown(self.column(|times| present(times) / times[3]));
        }
        format!(
            "{} | {keys} | {:.2} us | {:.2} us | {plain} | {} | {} | {to_plain}",
            self.name,
            self.after() * 1e6,
            before * 1e6,
            shown(self.ratio()),
            shown(self.same()),
        )
    }
}
