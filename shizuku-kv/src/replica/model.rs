//! A model of a replica's protocol, which is explored exhaustively. A bucket and its replica take
//! every course that is possible within some limits, and each state is checked against the
//! guarantees. The decisions are made by the functions of [`super::phase`], which the driver calls
//! too.
//!
//! Then a wrong decision replaces each decision in turn, and the exploration must find a broken
//! guarantee. Otherwise it would not check that decision.
//!
//! `SHIZUKU_LONG=1` explores worlds in which one more event of each kind can happen: millions of
//! states, in minutes.
//!
//! The model leaves out events that change no state: a batch that fails and is retried, and a full
//! batch. It tries every end of a batch, and every order of independent events.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeSet;

use self::decisions::{Decisions, PRODUCTION};
use self::world::{Beginning, Budget, RIGHT, World};
use crate::exploration::{self, Found, assert_each_breaks};

mod bucket;
mod decisions;
mod mutations;
mod replica;
mod world;

/// The initial state of a bucket and its replica, and the limits of the events.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    name: &'static str,
    budget: Budget,
    beginnings: &'static [Beginning],
    /// True if watches may leave out the tombstones of the initial state.
    skips: bool,
}

const BOTH: &[Beginning] = &[Beginning::Empty, Beginning::Filled];

const NOTHING: Budget = Budget {
    writes: 0,
    forgets: 0,
    vanishes: 0,
    makes_again: 0,
    crashes: 0,
    stops: 0,
    cuts: 0,
    reconciles: 0,
    scopes: 0,
};

/// The process ends, and `apply` rebuilds its state from the committed one.
const CRASHES: Scenario = Scenario {
    name: "crashes",
    budget: Budget { writes: 3, forgets: 1, crashes: 1, ..NOTHING },
    beginnings: BOTH,
    skips: true,
};

/// The bucket is deleted and recreated.
const MADE_AGAIN: Scenario = Scenario {
    name: "made again",
    budget: Budget { writes: 2, forgets: 1, makes_again: 1, crashes: 1, cuts: 1, ..NOTHING },
    beginnings: BOTH,
    skips: true,
};

/// Watches are lost, and the replica resyncs now and then.
const TROUBLE: Scenario = Scenario {
    name: "trouble",
    budget: Budget { writes: 2, forgets: 1, crashes: 1, cuts: 1, reconciles: 1, ..NOTHING },
    beginnings: BOTH,
    skips: true,
};

/// The replica is started for other keys than before.
const SCOPES: Scenario = Scenario {
    name: "scopes",
    budget: Budget { writes: 2, forgets: 1, crashes: 1, scopes: 2, ..NOTHING },
    beginnings: BOTH,
    skips: true,
};

/// Entries leave the bucket without a message. Its watches leave no tombstone out of the initial
/// state, as the contract requires for stores that count their keys.
const VANISHES: Scenario = Scenario {
    name: "vanishes",
    budget: Budget { writes: 2, vanishes: 1, crashes: 1, ..NOTHING },
    beginnings: BOTH,
    skips: false,
};

/// Applied but uncommitted updates stay applied. This is correct as long as tombstones come.
const STOPS: Scenario = Scenario {
    name: "stops",
    budget: Budget { writes: 3, stops: 1, reconciles: 1, ..NOTHING },
    beginnings: &[Beginning::Empty],
    skips: false,
};

impl Scenario {
    fn explore(self, decisions: Decisions, until: Option<&'static str>) -> Found {
        let Self { budget, beginnings, skips, .. } = self;
        let world = |&beginning| World { beginning, budget, skips, decisions };
        exploration::explore(beginnings.iter().map(world), until)
    }

    /// Returns the scenario with one more event of each kind, for a long run.
    fn larger(mut self) -> Self {
        let Budget { writes, crashes, .. } = &mut self.budget;
        *writes += 1;
        *crashes += 1;
        self
    }
}

#[test]
fn replica_keeps_its_promises_in_every_course() {
    let mut reached = BTreeSet::new();
    for scenario in [CRASHES, MADE_AGAIN, TROUBLE, SCOPES, VANISHES, STOPS] {
        let is_long = std::env::var_os("SHIZUKU_LONG").is_some();
        let scenario = if is_long { scenario.larger() } else { scenario };
        let found = scenario.explore(PRODUCTION, None);
        println!("{}: {} states", scenario.name, found.states);
        assert!(found.broken.is_empty(), "{scenario:?}: {:#?}", found.broken);
        reached.extend(found.reached);
    }
    let not_reached = world::TO_REACH.into_iter().filter(|name| !reached.contains(name));
    assert_eq!(not_reached.collect::<Vec<_>>(), [""; 0], "the worlds are too small");
}

#[test]
fn each_wrong_decision_breaks_a_promise() {
    assert_each_breaks(mutations::all(), world::PROMISES, |scenario, decisions, breaks| {
        scenario.explore(decisions, Some(breaks))
    });
}

/// A known limit: an update was applied and not committed, and its key vanished without a trace
/// before the next run. No committed data names the key.
#[test]
fn uncommitted_update_can_stay_if_its_key_leaves_no_tombstone() {
    let forgets =
        Scenario { budget: Budget { writes: 3, forgets: 1, stops: 1, ..NOTHING }, ..STOPS };
    let made_again =
        Scenario { budget: Budget { writes: 1, makes_again: 1, stops: 1, ..NOTHING }, ..STOPS };
    let skips =
        Scenario { budget: Budget { writes: 2, stops: 1, ..NOTHING }, skips: true, ..STOPS };
    for scenario in [forgets, made_again, skips] {
        let found = scenario.explore(PRODUCTION, Some(RIGHT));
        assert!(
            found.broken.contains_key(RIGHT),
            "{scenario:?}: say in the documentation that it is right now"
        );
    }
}

/// A known limit, and the reason why the contract forbids it: a counted but undelivered tombstone
/// can stand for a value that vanished.
#[test]
fn counted_tombstone_not_delivered_hides_a_vanished_value() {
    let budget = Budget { writes: 2, vanishes: 2, ..NOTHING };
    let scenario = Scenario { skips: true, budget, ..VANISHES };
    let found = scenario.explore(PRODUCTION, Some(RIGHT));
    assert!(found.broken.contains_key(RIGHT), "say in the contract that it is right now");
}
