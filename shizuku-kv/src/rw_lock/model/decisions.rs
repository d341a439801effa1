//! What decides over a lock: the functions that production calls, each of which a test can replace by a wrong one.

use std::time::Duration;

use crate::rw_lock::course::{self, Sign};
use crate::rw_lock::record::LockRecord;
use crate::rw_lock::transition::{Change, Outcome};
use crate::store::VersionToken;

/// The version of an entry; none where there is no entry.
type Version = Option<VersionToken>;

#[derive(Clone, Copy)]
pub(super) struct Decisions {
    pub(super) apply: fn(&mut LockRecord, &Change) -> Outcome,
    pub(super) holds: fn(Duration, Duration) -> bool,
    pub(super) is_silent: fn(Duration, Duration) -> bool,
    pub(super) sign: fn(Option<u64>, Option<u64>, bool) -> Sign,
    pub(super) may_land: fn(Version, Version) -> bool,
    pub(super) driver: Driver,
}

/// What the tasks around these functions do by the order of their lines.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    /// The lease is counted from when a renewal was sent, not from when it was acknowledged.
    pub(super) counts_from_sending: bool,
    /// A renewal that was refused, and whose key has a newer version of this session, is not acknowledged by that.
    pub(super) trusts_acknowledgements_only: bool,
    /// A session is ended by deleting the version that was seen.
    pub(super) compares: bool,
    /// A session is ended before its claims are taken out.
    pub(super) kills_first: bool,
    /// How long ago something was written that is seen now, by a clock that is compared with another's. Nobody does.
    pub(super) clock_is_ahead: u8,
    /// The same of those who do not wait, but for what may be dead. What the store's clock says decides only whether they
    /// do.
    pub(super) clock_of_tries_is_ahead: u8,
    /// A claim that waits learns from the watch of the record.
    pub(super) reads_watch: bool,
    /// Who lets go has stopped before it says so.
    pub(super) stops_first: bool,
    /// What is older than what is known is not taken.
    pub(super) keeps_newest: bool,
    /// A claim that was given up is taken out, wherever it may be.
    pub(super) takes_out_abandoned: bool,
    /// It is not asked for any more.
    pub(super) forgets_abandoned: bool,
    /// Who does not hold any more asks for nothing.
    pub(super) looks_before_asking: bool,
    /// A claim that is not in the record any more though it waited is made again.
    pub(super) claims_again: bool,
}

pub(super) const PRODUCTION: Decisions = Decisions {
    apply: LockRecord::apply,
    holds: course::holds,
    is_silent: course::is_silent,
    sign: course::sign,
    may_land: course::may_land,
    driver: Driver {
        counts_from_sending: true,
        trusts_acknowledgements_only: true,
        compares: true,
        kills_first: true,
        clock_is_ahead: 0,
        clock_of_tries_is_ahead: 0,
        reads_watch: true,
        stops_first: true,
        keeps_newest: true,
        takes_out_abandoned: true,
        forgets_abandoned: true,
        looks_before_asking: true,
        claims_again: true,
    },
};
