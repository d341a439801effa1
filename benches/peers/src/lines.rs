//! The format of results: `case | ours | other | ratio | target | met`.

use crate::support::{median, met, sorted};
use crate::turns::Times;

/// The meaning of a line's numbers, and their format.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Figure {
    /// Seconds for this number of keys.
    Keys(usize),
    /// The same, read from files of these numbers of bytes: ours and the other's.
    Loaded { keys: usize, bytes: [u64; 2] },
    /// Bytes of memory.
    Memory,
    /// Seconds for one operation.
    Each,
}

impl Figure {
    fn show(self, value: f64, side: usize) -> String {
        let item = |keys: usize| {
            let seconds = value / keys as f64;
            (seconds * 1e6, 1e-3 / seconds)
        };
        match self {
            Self::Keys(keys) => {
                let (each, rate) = item(keys);
                format!("{each:.2} us/key ({rate:.0} k/s)")
            }
            Self::Loaded { keys, bytes } => {
                let (each, rate) = item(keys);
                let volume = bytes[side] as f64 / value / 1e6;
                format!("{each:.3} us/key ({rate:.0} k/s, {volume:.0} MB/s)")
            }
            Self::Memory => format!("{:.0} MiB", value / f64::from(1 << 20)),
            Self::Each => format!("{:.0} us", value * 1e6),
        }
    }
}

/// Formats a line, without a verdict if it has no target. The ratio is the median of the ratios of
/// the rounds, with the smallest and the largest of them.
pub(crate) fn line(
    case: &str,
    figure: Figure,
    ours: &Times,
    other: &Times,
    target: Option<f64>,
) -> String {
    let ratios = sorted(ours.iter().zip(other).map(|(ours, other)| ours / other));
    let ratio = median(&ratios);
    let middle = |times: &Times| median(&sorted(times.iter().copied()));
    let (limit, verdict) = match target {
        Some(target) => (format!("<= {target}"), met(ratio <= target)),
        None => ("-".to_owned(), "-"),
    };
    let rounds = if ratios.len() == 1 { "round" } else { "rounds" };
    let line = format!(
        "{case} | {} | {} | {ratio:.3} ({:.3} to {:.3}, {} {rounds}) | {limit} | {verdict}",
        figure.show(middle(ours), 0),
        figure.show(middle(other), 1),
        ratios[0],
        ratios[ratios.len() - 1],
        ratios.len(),
    );
    println!("measured: {line}");
    line
}

/// Formats a line of ours that has no counterpart.
pub(crate) fn alone(case: &str, ours: &str) -> String {
    let line = format!("{case} | {ours} | n/a | - | - | -");
    println!("measured: {line}");
    line
}
