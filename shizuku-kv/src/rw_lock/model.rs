//! Checks the protocol of locks exhaustively. Processes and a store take every schedule that is
//! possible within some limits, and the promises are checked in each state. [`LockRecord::apply`]
//! changes the record, and the functions of [`super::lease`] decide, as in production.
//!
//! Then each decision is replaced by a wrong one, and the check has to find one of the promises
//! broken. Otherwise the promise would not have been checked.
//!
//! `SHIZUKU_LONG=1` checks larger worlds: millions of states, in minutes.
//!
//! The omissions change no promise. A watch may be arbitrarily late, and skips superseded entries.
//! A watch that delivers a superseded entry equals one that was in time for a process that was
//! late. The end of a session takes effect at once: a later end is only safer, because it compares
//! versions. Sessions exist from the beginning, or take over the key of one that is over.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::time::Duration;

use self::decisions::{Decisions, PRODUCTION};
use self::world::{Budget, Events, Part, Plan, TO_REACH, World};
use super::record::LockMode;
use crate::exploration::{self, Found, assert_each_breaks};

mod decisions;
mod mutations;
mod process;
mod promises;
mod requests;
mod server;
mod session;
mod world;

/// Processes that use a lock, and the events that can happen to them.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    name: &'static str,
    parts: &'static [Part],
    budget: Budget,
    lease: Duration,
    /// Enlarges the scenario for a long run.
    more: fn(&mut Self),
}

const READS: Plan = Plan { mode: LockMode::Read, waits: true };
const WRITES: Plan = Plan { mode: LockMode::Write, waits: true };
const TRIES_TO_READ: Plan = Plan { mode: LockMode::Read, waits: false };

const TRIES_TO_WRITE: Plan = Plan { mode: LockMode::Write, waits: false };

const READER: Part = Part { claims: &[READS], renewals: None, takes_over: None };
const WRITER: Part = Part { claims: &[WRITES], renewals: None, takes_over: None };
const WRITER_AND_READER: Part = Part { claims: &[WRITES, READS], renewals: None, takes_over: None };
const WRITER_AND_TRIER: Part =
    Part { claims: &[WRITES, TRIES_TO_READ], renewals: None, takes_over: None };
const TRIER: Part = Part { claims: &[TRIES_TO_WRITE], renewals: None, takes_over: None };
/// A process whose session takes over the key of the first process.
const HEIR: Part = Part { takes_over: Some(0), ..WRITER };
/// A process whose session is renewed only explicitly, and once.
const RENEWED_ONCE: Part = Part { claims: &[WRITES], renewals: Some(1), takes_over: None };

const NOTHING: Budget = Budget {
    cuts: 0,
    renewal_cuts: 0,
    behind: 0,
    abandons: 0,
    downgrades: 0,
    breaks: 0,
    crashes: 0,
    pauses: 0,
    fenced: 0,
    late: 0,
    hopes: false,
    requests: 0,
};

/// Longer than one tick by less than an eighth: a fast clock has counted it when a slow one has
/// not.
const LEASE: Duration = Duration::from_millis(1100);

/// Readers and writers arrive, and some give up.
const LINE: Scenario = Scenario {
    name: "line",
    parts: &[READER, WRITER, READER],
    budget: Budget { abandons: 1, ..NOTHING },
    lease: LEASE,
    more: |it| (it.budget.cuts, it.budget.abandons) = (1, 2),
};

/// A claim does not wait, and its process also has one that waits.
const TRIES: Scenario = Scenario {
    name: "tries",
    parts: &[WRITER_AND_TRIER, WRITER],
    budget: Budget { behind: 1, ..NOTHING },
    lease: LEASE,
    more: |it| (it.budget.cuts, it.budget.behind) = (1, 2),
};

/// Acknowledgements are lost, and writes land late.
const UNKNOWN: Scenario = Scenario {
    name: "unknown",
    parts: &[WRITER, READER],
    budget: Budget { cuts: 2, behind: 1, ..NOTHING },
    lease: LEASE,
    more: |it| it.parts = &[WRITER, READER, WRITER],
};

/// A waiter gives up, also while the outcome of its claim is unknown.
const ABANDONED: Scenario = Scenario {
    name: "abandoned",
    parts: &[WRITER, WRITER],
    budget: Budget { cuts: 2, behind: 1, abandons: 2, ..NOTHING },
    lease: LEASE,
    more: |it| (it.parts, it.budget.cuts) = (&[WRITER, WRITER, READER], 1),
};

/// An operator breaks the lock, and a writer continues as a reader.
const BROKEN: Scenario = Scenario {
    name: "broken",
    parts: &[WRITER, READER],
    budget: Budget { breaks: 1, downgrades: 1, fenced: 1, ..NOTHING },
    lease: LEASE,
    more: |it| it.parts = &[WRITER, READER, WRITER],
};

/// Processes that hold or wait stop forever.
const CRASHED: Scenario = Scenario {
    name: "crashed",
    parts: &[WRITER, WRITER, READER],
    budget: Budget { crashes: 1, ..NOTHING },
    lease: LEASE,
    more: |it| it.budget.cuts = 1,
};

/// A process that holds and waits at once stops forever.
const ESTATE: Scenario = Scenario {
    name: "estate",
    parts: &[WRITER_AND_READER, WRITER],
    budget: Budget { crashes: 1, ..NOTHING },
    lease: LEASE,
    more: |it| it.parts = &[WRITER_AND_READER, WRITER, READER],
};

/// A holder stops for a while, and its renewals are late.
const PAUSED: Scenario = Scenario {
    name: "paused",
    parts: &[RENEWED_ONCE, WRITER],
    budget: Budget { pauses: 1, ..NOTHING },
    lease: LEASE,
    more: |it| it.budget = Budget { cuts: 1, renewal_cuts: 1, fenced: 2, ..it.budget },
};

/// A writer stops between the check and the write.
const FENCES: Scenario = Scenario {
    name: "fences",
    parts: &[WRITER, WRITER],
    budget: Budget { pauses: 1, fenced: 2, ..NOTHING },
    lease: LEASE,
    more: |it| (it.budget.crashes, it.budget.breaks) = (1, 1),
};

/// A process is granted the lock while it is stopped, or while its session ends.
const LATE: Scenario = Scenario {
    name: "late",
    parts: &[WRITER, Part { renewals: Some(0), ..RENEWED_ONCE }, READER],
    budget: NOTHING,
    lease: Duration::from_secs(1),
    more: |it| it.budget.pauses = 1,
};

/// Renewals are not acknowledged.
const DRIFT: Scenario = Scenario {
    name: "drift",
    parts: &[Part { renewals: Some(2), ..RENEWED_ONCE }, WRITER],
    budget: Budget { renewal_cuts: 1, ..NOTHING },
    lease: LEASE,
    more: |it| (it.budget.renewal_cuts, it.budget.pauses) = (2, 1),
};

/// The lease is a whole tick: the times of holder and failure detector end in the same moment.
const EDGE: Scenario = Scenario {
    name: "edge",
    parts: &[RENEWED_ONCE, READER],
    budget: Budget { pauses: 1, ..NOTHING },
    lease: Duration::from_secs(1),
    more: |it| it.parts = &[RENEWED_ONCE, READER, WRITER],
};

/// A session takes over the key of one that is over, and a watch of that key is behind.
const REUSED: Scenario = Scenario {
    name: "reused",
    parts: &[WRITER, WRITER_AND_READER, HEIR],
    budget: Budget { crashes: 1, late: 1, ..NOTHING },
    lease: LEASE,
    more: |it| (it.budget.late, it.budget.cuts) = (2, 1),
};

/// A claim that does not wait finds a holder that may be dead, by a clock that may be wrong.
const HOPES: Scenario = Scenario {
    name: "hopes",
    parts: &[RENEWED_ONCE, TRIER],
    budget: Budget { pauses: 1, crashes: 1, hopes: true, ..NOTHING },
    lease: LEASE,
    more: |it| (it.parts, it.budget.cuts) = (&[RENEWED_ONCE, TRIER, WRITER], 1),
};

/// A process requests its changes from others, and may abandon its claim.
const REQUESTED: Scenario = Scenario {
    name: "requested",
    parts: &[READER, READER],
    budget: Budget { requests: 2, abandons: 1, cuts: 1, ..NOTHING },
    lease: LEASE,
    more: |it| (it.parts, it.budget) = (&[READER, WRITER, READER], Budget { cuts: 0, ..it.budget }),
};

/// A process with a request stops forever, or the process that could apply it does.
const UNHEARD: Scenario = Scenario {
    name: "unheard",
    parts: &[READER, WRITER],
    budget: Budget { requests: 1, crashes: 1, ..NOTHING },
    lease: LEASE,
    more: |it| (it.budget.breaks, it.budget.cuts) = (1, 1),
};

const ALL: [Scenario; 16] = [
    LINE, TRIES, UNKNOWN, ABANDONED, BROKEN, CRASHED, ESTATE, PAUSED, FENCES, LATE, DRIFT, EDGE,
    REUSED, HOPES, REQUESTED, UNHEARD,
];

impl Scenario {
    fn explore(self, decisions: Decisions, events: &Events, until: Option<&'static str>) -> Found {
        let Self { parts, budget, lease, .. } = self;
        exploration::explore(
            [World { parts, budget, lease, decisions, events: events.clone() }],
            until,
        )
    }
}

#[test]
fn protocol_keeps_its_promises_in_every_schedule() {
    let (mut not_reached, events) = (Vec::from(TO_REACH), Events::default());
    for mut scenario in ALL {
        if std::env::var_os("SHIZUKU_LONG").is_some() {
            (scenario.more)(&mut scenario);
        }
        let found = scenario.explore(PRODUCTION, &events, None);
        println!("{}: {} states", scenario.name, found.states);
        assert!(found.broken.is_empty(), "{scenario:?}: {:#?}", found.broken);
    }
    not_reached.retain(|(event, _)| !events.have(*event));
    assert!(not_reached.is_empty(), "the worlds are too small for {not_reached:?}");
}

#[test]
fn mutation_of_each_decision_breaks_a_promise() {
    assert_each_breaks(mutations::all(), promises::PROMISES, |scenario, decisions, breaks| {
        scenario.explore(decisions, &Events::default(), Some(breaks))
    });
}
