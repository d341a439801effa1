//! The decisions about a lock: the functions that production calls, each of which a test can
//! replace by a wrong one.

use std::time::Duration;

use crate::rw_lock::lease::{self, EntryMeaning};
use crate::rw_lock::record::LockRecord;
use crate::rw_lock::transition::{Change, Outcome};
use crate::store::VersionToken;

/// The version of an entry. `None` if no entry exists.
type Version = Option<VersionToken>;

#[derive(Clone, Copy)]
pub(super) struct Decisions {
    pub(super) apply: fn(&mut LockRecord, &Change) -> Outcome,
    pub(super) holds: fn(Duration, Duration) -> bool,
    pub(super) is_silent: fn(Duration, Duration) -> bool,
    pub(super) meaning: fn(Option<u64>, Option<u64>, bool) -> EntryMeaning,
    pub(super) may_land: fn(Version, Version) -> bool,
    pub(super) driver: TaskRules,
}

/// Rules that the tasks around these functions follow by the order of their lines.
#[derive(Clone, Copy)]
pub(super) struct TaskRules {
    /// The lease is counted from when a renewal was sent, not from when it was acknowledged.
    pub(super) counts_from_sending: bool,
    /// A rejected renewal does not count as acknowledged, even if its key has a newer version of
    /// this session.
    pub(super) trusts_acknowledgements_only: bool,
    /// A session is ended by deleting the version that was seen.
    pub(super) compares: bool,
    /// A session is ended before its claims are removed.
    pub(super) ends_session_first: bool,
    /// Age of a newly seen write, by a clock that is compared with another one. Production has no
    /// such comparison.
    pub(super) clock_is_ahead: u8,
    /// The same for claims that wait only for sessions that may be dead. The store's clock decides
    /// only whether they do.
    pub(super) clock_of_tries_is_ahead: u8,
    /// A waiting claim is notified by the watch of the record.
    pub(super) reads_watch: bool,
    /// A holder stops its work before it requests the release.
    pub(super) stops_first: bool,
    /// An older version than the known one is ignored.
    pub(super) keeps_newest: bool,
    /// An abandoned claim is removed, even if its position in the queue is unknown.
    pub(super) removes_abandoned: bool,
    /// An abandoned claim is not requested again.
    pub(super) forgets_abandoned: bool,
    /// A process whose session does not hold makes no request.
    pub(super) checks_session_first: bool,
    /// A waiting claim that is missing from the record is requested again.
    pub(super) claims_again: bool,
    /// A request of another process is applied only to a version that it admits.
    pub(super) checks_base: bool,
    /// A removal of a claim ends the versions to which earlier requests may be applied.
    pub(super) restarts_run: bool,
    /// A process whose abandoned claim was requested writes the record, even unchanged.
    pub(super) rewrites_after_request: bool,
    /// A process whose request is not applied swaps by itself.
    pub(super) loses_patience: bool,
}

pub(super) const PRODUCTION: Decisions = Decisions {
    apply: LockRecord::apply,
    holds: lease::holds,
    is_silent: lease::is_silent,
    meaning: lease::meaning,
    may_land: lease::may_land,
    driver: TaskRules {
        counts_from_sending: true,
        trusts_acknowledgements_only: true,
        compares: true,
        ends_session_first: true,
        clock_is_ahead: 0,
        clock_of_tries_is_ahead: 0,
        reads_watch: true,
        stops_first: true,
        keeps_newest: true,
        removes_abandoned: true,
        forgets_abandoned: true,
        checks_session_first: true,
        claims_again: true,
        checks_base: true,
        restarts_run: true,
        rewrites_after_request: true,
        loses_patience: true,
    },
};
