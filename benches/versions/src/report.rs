//! One case: its rounds, and the resulting line.

use std::time::Duration;

/// Maximum ratio of the present version's time to the earlier one's.
const TARGET: f64 = 1.03;

pub(crate) struct Case {
    name: String,
    rounds: Vec<[f64; 3]>,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rounds: Vec::new() }
    }

    pub(crate) fn add(&mut self, times: [Duration; 3]) {
        self.rounds.push(times.map(|time| time.as_secs_f64()));
    }

    pub(crate) fn line(&self) -> String {
        let column = |of: fn(&[f64; 3]) -> f64| {
            let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            let middle = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
            (middle, values[0], values[values.len() - 1])
        };
        let (after, ..) = column(|times| times[0]);
        let (before, ..) = column(|times| times[1]);
        // Both runs of the present version count, so that their noise is in both ratios.
        let (ratio, least, most) = column(|times| f64::midpoint(times[0], times[2]) / times[1]);
        let (same, same_least, same_most) = column(|times| times[0] / times[2]);
        let limit = TARGET + (same_most - same_least) / 2.0;
        format!(
            "{} | {:.2} us | {:.2} us | {ratio:.3} ({least:.3} to {most:.3}) | {same:.3} ({same_least:.3} to {same_most:.3}) | \
             <= {TARGET} | {}",
            self.name,
            after * 1e6,
            before * 1e6,
            if ratio <= limit { "yes" } else { "NO" },
        )
    }
}
