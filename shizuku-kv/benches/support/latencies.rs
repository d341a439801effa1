//! Latencies of single operations, with their tail.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies from 1 ns to minutes, with three digits.
#[derive(Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("valid bounds"))
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn most(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        let mut latencies = Self::new();
        times.into_iter().for_each(|time| latencies.add(time));
        latencies
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        write!(f, "{:.1} us p50, {:.1} p99, {:.1} p99.9", at(0.5), at(0.99), at(0.999))
    }
}
