//! The operations of clients on one key, and their answers.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::linearizability::register::{Answer, Operation};

/// The end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Told(Answer),
    /// The client was told that it did not take effect.
    NotDone,
    /// The outcome is unknown: it may take effect at any time from its start on, or never.
    Open,
}

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) operation: Operation,
    /// Position before it was sent, in the order of all events of the key.
    pub(crate) began: usize,
    /// Position after its answer. `None` without an answer.
    pub(crate) ended: Option<(usize, End)>,
    /// Times of both, since the run began.
    pub(crate) times: [Duration; 2],
}

impl Call {
    pub(crate) fn end(&self) -> End {
        self.ended.map_or(End::Open, |(_, end)| end)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [began, ended] = self.times;
        write!(
            f,
            "{:>4} to {:>4} ({began:.4?} to {ended:.4?}) client {}: {:?} -> {:?}",
            self.began,
            self.ended.map_or_else(String::new, |(tick, _)| tick.to_string()),
            self.client,
            self.operation,
            self.end()
        )
    }
}

/// All events of one key. A client has one call at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    next: usize,
}

impl History {
    /// Records an operation before it is sent.
    pub(crate) fn begin(&mut self, client: usize, operation: Operation, now: Duration) -> usize {
        let began = self.tick();
        self.calls.push(Call {
            client,
            operation,
            began,
            ended: None,
            times: [now, Duration::MAX],
        });
        self.calls.len() - 1
    }

    /// Records its end.
    pub(crate) fn end(&mut self, call: usize, end: End, now: Duration) {
        let tick = self.tick();
        let call = &mut self.calls[call];
        (call.ended, call.times[1]) = (Some((tick, end)), now);
    }

    fn tick(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    pub(crate) fn count(&self, rule: impl Fn(&Call) -> bool) -> usize {
        self.calls.iter().filter(|call| rule(call)).count()
    }

    /// Returns the beginning of the history, without any answer after this position.
    pub(crate) fn until(&self, tick: usize) -> Self {
        let mut calls = self.calls.clone();
        calls.retain(|call| call.began <= tick);
        for call in &mut calls {
            call.ended = call.ended.filter(|(ended, _)| *ended <= tick);
        }
        Self { calls, next: tick }
    }

    /// Returns the positions of all answers.
    pub(crate) fn ticks(&self) -> Vec<usize> {
        let mut ticks: Vec<_> =
            self.calls.iter().filter_map(|call| call.ended).map(|(tick, _)| tick).collect();
        ticks.sort_unstable();
        ticks
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.calls.iter().try_for_each(|call| writeln!(f, "    {call}"))
    }
}
