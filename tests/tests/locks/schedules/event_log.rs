//! The events of all workers, in one order. The log samples every hold at each step, and the
//! checker of `locks::logs` judges the logs. In place of a time, a line has its position.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::Instant;

use crate::guard::{Guard, word};
use crate::logs::check;
use crate::logs::holds::History;
use crate::logs::line::Line;

/// Maximum number of events before a violation that a failure includes.
const TOLD: usize = 60;

/// A worker of a process. It has one claim at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) process: u64,
    pub(crate) worker: u64,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}.{}", self.process, self.worker)
    }
}

struct Inner {
    began: Instant,
    /// The workers that hold a lock, or believe that they do. A crashed worker stays.
    holders: Vec<(Who, Guard)>,
    logs: BTreeMap<u64, Vec<Line>>,
    events: Vec<String>,
    /// Violations that the checker cannot detect, each with its position.
    wrong: Vec<(u64, String)>,
}

/// Shared by all workers.
#[derive(Clone)]
pub(crate) struct EventLog(Arc<Mutex<Inner>>);

impl EventLog {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            began: Instant::now(),
            holders: Vec::new(),
            logs: BTreeMap::new(),
            events: Vec::new(),
            wrong: Vec::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn note(&self, event: impl fmt::Display) {
        self.inner().note(event);
    }

    /// Records a grant.
    pub(crate) fn enter(&self, who: Who, resource: &str, guard: Guard) {
        let mut inner = self.inner();
        let (mode, token, held) = (word(guard.mode()), guard.token().as_u64(), guard.is_held());
        inner.log(who, format!("asks {resource} {mode}"));
        inner.log(who, format!("entered {resource} {mode} {token} {held} 0"));
        inner.hold(who, guard);
    }

    /// Records a writer that left as a reader, under its own token.
    pub(crate) fn enter_again(&self, who: Who, guard: Guard) {
        let mut inner = self.inner();
        inner.log(who, format!("downgraded {}", guard.is_held()));
        inner.hold(who, guard);
    }

    /// Removes a holder that is about to release.
    pub(crate) fn leave(&self, who: Who) -> Guard {
        let mut inner = self.inner();
        inner.check();
        let index = inner.holders.iter().position(|(holder, _)| *holder == who);
        let (_, guard) = inner.holders.swap_remove(index.expect("it is there"));
        inner.log(who, format!("leaving {}", guard.is_held()));
        guard
    }

    /// Records that `release` reported that the lock was held to the end.
    pub(crate) fn released(&self, who: Who) {
        self.inner().log(who, "released".to_owned());
    }

    /// Returns true if a worker of this process holds a lock.
    pub(crate) fn holds(&self, process: u64) -> bool {
        self.inner().holders.iter().any(|(who, guard)| who.process == process && guard.is_held())
    }

    /// Samples all holds.
    pub(crate) fn check(&self) {
        self.inner().check();
    }

    pub(crate) fn wrong(&self, what: String) {
        let mut inner = self.inner();
        inner.note(format!("WRONG: {what}"));
        let at = inner.events.len() as u64;
        inner.wrong.push((at, what));
    }

    /// Returns the first violation, with the events before it.
    pub(crate) fn violation(&self) -> Option<String> {
        let inner = self.inner();
        let logs: Vec<_> = inner.logs.clone().into_iter().collect();
        let found = check::all(&History::of(&logs), &BTreeMap::new());
        let found = found.into_iter().map(|violation| (violation.at, violation.what));
        let (at, what) = found.chain(inner.wrong.iter().cloned()).min()?;
        let before = &inner.events[..inner.events.len().min(at as usize + 1)];
        let mut text = format!("{what}. What happened before:\n");
        for event in &before[before.len().saturating_sub(TOLD)..] {
            let _ = writeln!(text, "  {event}");
        }
        Some(text)
    }
}

impl Inner {
    fn note(&mut self, event: impl fmt::Display) {
        self.events.push(format!("{:>10.3?} {event}", self.began.elapsed()));
    }

    fn log(&mut self, who: Who, event: String) {
        let (at, worker) = (self.events.len() as u64, who.worker);
        self.note(format!("{who} {event}"));
        self.logs.entry(who.process).or_default().push(Line { at, worker, event });
    }

    fn hold(&mut self, who: Who, guard: Guard) {
        self.holders.push((who, guard));
        self.check();
    }

    fn check(&mut self) {
        let holds = self.holders.iter().map(|(who, guard)| (*who, guard.is_held()));
        for (who, held) in holds.collect::<Vec<_>>() {
            self.log(who, format!("held {held}"));
        }
    }
}
