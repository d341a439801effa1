//! What a replica decides: the functions that production calls, each of which a test can replace by a wrong one.

use crate::replica::course::{self, Next, Phase};
use crate::replica::storage::ScopeId;
use crate::replica::{Held, ReplicaPlace};
use crate::store::{KvEntry, KvError, WatchCursor};

/// In what a replica is, and with which cursor it watches.
type Standing = (Phase, Option<WatchCursor>);

#[derive(Clone, Copy)]
pub(super) struct Decisions {
    pub(super) begin: fn(Option<ReplicaPlace>, ScopeId, bool) -> Standing,
    pub(super) is_news: fn(Phase, &KvEntry, Option<Held>) -> bool,
    pub(super) compares: fn(Phase) -> bool,
    pub(super) drops_the_rest: fn(Phase) -> bool,
    pub(super) keeps_cursor: fn(Phase, bool) -> bool,
    pub(super) completed: fn(Phase) -> Phase,
    pub(super) has_vanished: fn(bool) -> bool,
    pub(super) after: fn(&KvError) -> Next,
    pub(super) go_on: fn(Next, Phase, Option<WatchCursor>, bool) -> Standing,
    pub(super) agrees: fn(u64, Option<u64>, u64) -> bool,
    pub(super) driver: Driver,
}

/// What the driver does by the order of its lines.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    /// A batch is applied before it is kept.
    pub(super) applies_first: bool,
    /// What has vanished is dropped before the marker, and so before what follows it.
    pub(super) drops_first: bool,
    /// The keys that have come are forgotten with the watch by which they came.
    pub(super) forgets_what_came: bool,
    /// A key has come also where its entry is no news.
    pub(super) counts_what_is_known: bool,
    /// What was collected does not outlive the watch by which it came.
    pub(super) ends_batch_with_watch: bool,
    /// The marker ends the state.
    pub(super) applies_marker: bool,
    /// A run resumes from a place only after a comparison with the store.
    pub(super) compares_at_start: bool,
    /// A place stores the number of tombstones known up to it.
    pub(super) keeps_tombstones: bool,
}

pub(super) const PRODUCTION: Decisions = Decisions {
    begin: course::begin,
    is_news: Phase::is_news,
    compares: Phase::compares,
    drops_the_rest: Phase::drops_the_rest,
    keeps_cursor: Phase::keeps_cursor,
    completed: Phase::completed,
    has_vanished: course::has_vanished,
    after: course::after,
    go_on: course::go_on,
    agrees: course::agrees,
    driver: Driver {
        applies_first: true,
        drops_first: true,
        forgets_what_came: true,
        counts_what_is_known: true,
        ends_batch_with_watch: true,
        applies_marker: true,
        compares_at_start: true,
        keeps_tombstones: true,
    },
};
