//! The results of a run, or of many.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use shizuku_kv_tests::Fault;

use crate::faults::cursors::Resumed;

/// An injected fault.
#[derive(Clone, Debug)]
pub(crate) struct Injected {
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) what: String,
}

/// The longest time to converge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slowest {
    /// Time until every group of keys was written again, and all watches had received that.
    pub(crate) whole: Duration,
    /// The part of it until every group of keys was written again.
    pub(crate) writing: Duration,
    /// The preceding fault.
    pub(crate) after: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) seed: u64,
    pub(crate) version: String,
    pub(crate) runs: BTreeMap<&'static str, u64>,
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) injected: Vec<Injected>,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) watches: u64,
    /// Entries delivered to all watches.
    pub(crate) events: u64,
    /// Number of consumers that replaced lost ones.
    pub(crate) remade: u64,
    pub(crate) resumed: Resumed,
    pub(crate) slowest: Slowest,
    /// Time from the last fault until every watch had everything.
    pub(crate) settling: Duration,
    pub(crate) violations: Vec<String>,
}

impl Summary {
    pub(crate) fn total(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Adds another run to this one.
    pub(crate) fn add(&mut self, other: Self) {
        self.version = other.version;
        for (kind, runs) in other.runs {
            *self.runs.entry(kind).or_default() += runs;
        }
        for (fault, times) in other.faults {
            *self.faults.entry(fault).or_default() += times;
        }
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.watches += other.watches;
        self.events += other.events;
        self.remade += other.remade;
        self.resumed.continued += other.resumed.continued;
        self.resumed.expired += other.resumed.expired;
        if other.slowest.whole > self.slowest.whole {
            self.slowest = other.slowest;
        }
        self.settling = self.settling.max(other.settling);
        self.violations.extend(other.violations);
    }

    /// Describes a failed run: how to repeat it, and the times of its faults.
    pub(crate) fn failure(&self) -> String {
        let mut text = format!("SHIZUKU_SEED={} makes the same decisions. Faults:\n", self.seed);
        for Injected { began, ended, what } in &self.injected {
            text += &format!("  {began:>9.3?} to {ended:>9.3?}: {what}\n");
        }
        text + &format!("{} violations:\n{}", self.violations.len(), self.violations.join("\n"))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs: Vec<_> =
            self.runs.iter().map(|(kind, runs)| format!("{runs} of {kind}")).collect();
        let faults: Vec<_> =
            self.faults.iter().map(|(fault, times)| format!("{times} {fault:?}")).collect();
        let Slowest { whole, writing, after } = &self.slowest;
        writeln!(f, "nats-server {}, seed {}, runs: {}", self.version, self.seed, runs.join(", "))?;
        writeln!(f, "faults: {} ({})", self.total(), faults.join(", "))?;
        writeln!(
            f,
            "writes: {} acknowledged, {} refused, {} unknown",
            self.acknowledged, self.refused, self.unknown
        )?;
        writeln!(
            f,
            "events: {} delivered to {} watches and live values",
            self.events, self.watches
        )?;
        writeln!(f, "reconnects: {} consumers made in place of lost ones", self.remade)?;
        let Resumed { continued, expired } = self.resumed;
        writeln!(f, "cursors resumed: {continued} went on without a gap, {expired} had expired")?;
        writeln!(
            f,
            "longest time to converge after a fault: {whole:.1?} ({writing:.1?} of it until all keys could be written again), after {after}"
        )?;
        write!(f, "longest time to settle at the end of a run: {:.1?}", self.settling)
    }
}
