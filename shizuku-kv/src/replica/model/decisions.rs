//! The decisions of a replica: the functions that production calls. A test can replace each of them
//! by a wrong one.

use crate::replica::phase::{self, Next, Phase};
use crate::replica::storage::ScopeId;
use crate::replica::{Checkpoint, StoredVersion};
use crate::store::{KvEntry, KvError, WatchCursor};

/// The phase of a replica, and the cursor of its watch.
type Start = (Phase, Option<WatchCursor>);

#[derive(Clone, Copy)]
pub(super) struct Decisions {
    pub(super) begin: fn(Option<Checkpoint>, ScopeId, bool) -> Start,
    pub(super) is_news: fn(Phase, &KvEntry, Option<StoredVersion>) -> bool,
    pub(super) compares: fn(Phase) -> bool,
    pub(super) drops_the_rest: fn(Phase) -> bool,
    pub(super) keeps_cursor: fn(Phase, bool) -> bool,
    pub(super) completed: fn(Phase) -> Phase,
    pub(super) has_vanished: fn(bool) -> bool,
    pub(super) after: fn(&KvError) -> Next,
    pub(super) go_on: fn(Next, Phase, Option<WatchCursor>, bool) -> Start,
    pub(super) agrees: fn(u64, Option<u64>, u64) -> bool,
    pub(super) driver: RunRules,
}

/// The behaviour of the driver that follows from the order of its statements.
#[derive(Clone, Copy)]
pub(super) struct RunRules {
    /// A batch is applied before it is committed.
    pub(super) applies_first: bool,
    /// Vanished keys are dropped before the marker, and so before later updates.
    pub(super) drops_first: bool,
    /// The seen keys are forgotten together with the watch that delivered them.
    pub(super) forgets_what_came: bool,
    /// A key is seen even if its entry is not news.
    pub(super) counts_what_is_known: bool,
    /// Collected updates do not outlive the watch that delivered them.
    pub(super) ends_batch_with_watch: bool,
    /// The marker ends the initial state.
    pub(super) applies_marker: bool,
    /// A run resumes from a checkpoint only after a comparison with the store.
    pub(super) compares_at_start: bool,
    /// A checkpoint stores the number of tombstones known up to it.
    pub(super) keeps_tombstones: bool,
}

pub(super) const PRODUCTION: Decisions = Decisions {
    begin: phase::begin,
    is_news: Phase::is_news,
    compares: Phase::compares,
    drops_the_rest: Phase::drops_the_rest,
    keeps_cursor: Phase::keeps_cursor,
    completed: Phase::completed,
    has_vanished: phase::has_vanished,
    after: phase::after,
    go_on: phase::go_on,
    agrees: phase::agrees,
    driver: RunRules {
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
