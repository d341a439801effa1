//! The results of a run, and the output of a failed one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use shizuku_kv_tests::Fault;

use crate::logs::holds::{History, Outcome, Violation};
use crate::logs::line::{Line, Mode};

/// Maximum number of violations of a run that are reported in full.
const TOLD: usize = 8;

/// Number of lines of each process before a violation, and after it.
const CONTEXT: usize = 12;

/// An injected fault of servers, networks or processes.
#[derive(Clone, Debug)]
pub(crate) struct Injected {
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) what: String,
}

#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) seed: u64,
    pub(crate) backend: String,
    pub(crate) length: Duration,
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) injected: Vec<Injected>,
    pub(crate) started: u64,
    pub(crate) kills: u64,
    pub(crate) pauses: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) lost: u64,
    pub(crate) not_granted: u64,
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
    pub(crate) unknown: u64,
    pub(crate) longest_wait: Duration,
    /// Time from the last fault until all processes had acquired a lock.
    pub(crate) settling: Duration,
    pub(crate) violations: Vec<String>,
}

impl Summary {
    pub(crate) fn acquisitions(&self) -> u64 {
        self.reads + self.writes
    }

    pub(crate) fn count(&mut self, history: &History) {
        let of = |mode| history.grants.iter().filter(|grant| grant.mode == mode).count() as u64;
        (self.reads, self.writes) = (of(Mode::Read), of(Mode::Write));
        (self.lost, self.not_granted) = (history.lost, history.not_granted);
        let longest = history.grants.iter().map(|grant| grant.waited).max();
        self.longest_wait = Duration::from_nanos(longest.unwrap_or_default());
        for write in &history.writes {
            match write.outcome {
                Outcome::Accepted(_) => self.accepted += 1,
                Outcome::Rejected(_) => self.rejected += 1,
                Outcome::Unknown => self.unknown += 1,
                Outcome::NotWritten => {}
            }
        }
    }

    /// Formats violations with the lines around them, with times counted from the start of the run.
    pub(crate) fn tell(&mut self, violations: &[Violation], logs: &[(u64, Vec<Line>)], start: u64) {
        for violation in violations.iter().take(TOLD) {
            self.violations.push(told(violation, logs, start));
        }
        if violations.len() > TOLD {
            self.violations.push(format!("and {} more", violations.len() - TOLD));
        }
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

fn told(violation: &Violation, logs: &[(u64, Vec<Line>)], start: u64) -> String {
    let since = |at: u64| Duration::from_nanos(at.saturating_sub(start));
    let Violation { what, at, processes } = violation;
    let mut lines = Vec::new();
    for (process, log) in logs.iter().filter(|(process, _)| processes.contains(process)) {
        let index = log.partition_point(|line| line.at <= *at);
        let range = index.saturating_sub(CONTEXT)..(index + CONTEXT).min(log.len());
        lines.extend(log[range].iter().map(|line| (line.at, process, line)));
    }
    lines.sort_by_key(|(at, ..)| *at);
    let mut text = format!("at {:.3?} (of the clock {at}): {what}", since(*at));
    for (at, process, line) in lines {
        text += &format!(
            "\n    {:>12.6?} process {process}: {} {}",
            since(at),
            line.worker,
            line.event
        );
    }
    text
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, backend, length, .. } = self;
        let faults: Vec<_> =
            self.faults.iter().map(|(fault, times)| format!("{times} {fault:?}")).collect();
        writeln!(f, "{backend}, seed {seed}, {length:.0?} of faults")?;
        writeln!(f, "faults: {} ({})", self.faults.values().sum::<u64>(), faults.join(", "))?;
        writeln!(
            f,
            "processes: {} started, {} killed, {} pauses",
            self.started, self.kills, self.pauses
        )?;
        writeln!(
            f,
            "locks: {} granted ({} to read, {} to write), {} lost, {} not granted; longest wait {:.1?}",
            self.acquisitions(),
            self.reads,
            self.writes,
            self.lost,
            self.not_granted,
            self.longest_wait
        )?;
        writeln!(
            f,
            "fenced writes: {} accepted, {} rejected, {} unknown",
            self.accepted, self.rejected, self.unknown
        )?;
        write!(
            f,
            "all were granted within {:.1?} after the last fault; {} violations",
            self.settling,
            self.violations.len()
        )
    }
}
