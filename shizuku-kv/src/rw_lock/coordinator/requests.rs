//! The requests by which processes that contend for a lock combine their changes (ADR 0116).
//!
//! A process that has lost a swap writes its changes under a key of its own, which cannot conflict.
//! The process that has written the record last applies them with its next swap. If it does not,
//! the other process swaps by itself after a short time.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::record_cache::CachedRecord;
use crate::rw_lock::record::{ClaimId, LockRecord, SessionId};
use crate::rw_lock::request::{self, Request};
use crate::rw_lock::run::Run;
use crate::store::{Key, KvEntry, KvError, Store, VersionToken, WatchScope};
use crate::watch::{Event, Follower};

/// Minimum time without news for which a process waits until others have applied its request. The
/// maximum is three times as long.
const PATIENCE: Duration = Duration::from_millis(5);

/// Maximum time for which a process waits in total, as a multiple of that minimum.
const MOST_WAITS: u32 = 10;

/// Maximum duration of the write of a request that makes the waits longer. A request that was slow
/// once would otherwise delay a release for seconds.
const LONGEST_TRIP: Duration = Duration::from_millis(100);

/// Time for which one lost swap is enough for a request, after one that was applied.
const HEARD: Duration = Duration::from_secs(10);

/// Time for which a process makes no request after one that was not applied.
const UNHEARD: Duration = Duration::from_millis(100);

/// Time for which a denied right is not tried again. It may have been granted since.
const DENIED: Duration = Duration::from_secs(60);

/// The requests of other processes, and the newest one of this process.
pub(super) struct Requests {
    lock: Key,
    /// The newest known version, and the own writes before it.
    run: Run,
    watch: Follower,
    /// Whether the watch is open. Other processes that have lost swaps before watch requests too.
    is_caught_up: bool,
    /// Requests of others that were not applied yet. `None` if the entry was not decoded yet.
    received: HashMap<Key, (KvEntry, Option<Request>)>,
    /// Whether a request has arrived since the last attempt to apply all of them.
    is_new: bool,
    /// The keys under which this process has made requests, and the last session of each.
    own: HashMap<Key, SessionId>,
    /// Whether another process may still apply a claim of a request of this one.
    may_be_applied: bool,
    /// Set while a request of this process is not applied: the time until which the process waits
    /// for others to apply it.
    patient_until: Option<Instant>,
    /// Whether the newest request of this process has all changes that it wants, and others may
    /// still apply it.
    is_complete: bool,
    /// Whether the newest request of this process has claims.
    has_claims: bool,
    /// Time of the first request among those that were not applied.
    asked: Option<Instant>,
    /// The claims of the newest known record, sorted, while this process waits for others.
    seen: Vec<ClaimId>,
    /// The duration of the last write of a request.
    trip: Duration,
    /// Whether the last request of this process was applied, and the time when that was known.
    last: Option<(bool, Instant)>,
    /// Time at which this user was last denied a write or a watch of requests.
    denied: Option<Instant>,
}

impl Requests {
    pub(super) fn new(store: &Store, lock: Key) -> Self {
        let mut watch = Follower::shared(store, WatchScope::Prefix(request::prefix_of(&lock)));
        watch.stop();
        Self {
            lock,
            run: Run::default(),
            watch,
            is_caught_up: false,
            received: HashMap::new(),
            is_new: false,
            own: HashMap::new(),
            may_be_applied: false,
            patient_until: None,
            is_complete: false,
            has_claims: false,
            asked: None,
            seen: Vec::new(),
            trip: Duration::ZERO,
            last: None,
            denied: None,
        }
    }

    /// Watches the requests of others while the lock is contended.
    pub(super) fn follow(&mut self, is_contended: bool) {
        let is_denied = self.denied.is_some_and(|at| at.elapsed() < DENIED);
        if is_contended && !is_denied {
            self.watch.start();
        } else if self.watch.is_started() {
            self.watch.stop();
            self.received.clear();
            (self.is_new, self.is_caught_up) = (false, false);
        }
    }

    /// Returns the next event of the watch of requests.
    ///
    /// Cancel safe: the next call continues the wait.
    pub(super) async fn next(&mut self) -> Event {
        self.watch.next().await
    }

    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Update(update) => {
                if let Some(entry) = update.into_entry() {
                    self.is_new = true;
                    self.received.insert(entry.key.clone(), (entry, None));
                }
            }
            Event::CaughtUp { .. } => self.is_caught_up = true,
            Event::Lost(KvError::Unauthorized { .. }) => self.deny(),
            Event::Lost(_) | Event::Closed(_) => self.is_caught_up = false,
            Event::Opened | Event::LinkChanged => {}
        }
    }

    /// Makes no requests and applies none for some time, because this user has no right to them.
    pub(super) fn deny(&mut self) {
        self.denied = Some(Instant::now());
        self.follow(false);
    }

    /// Records the newest version, from a read or from the watch.
    pub(super) fn observed(&mut self, known: Option<&CachedRecord>) {
        self.run.observed(known.and_then(|known| known.version));
        if let Some(CachedRecord { record, .. }) = known.filter(|_| self.patient_until.is_some()) {
            let ids = sorted_ids(record);
            let is_new = |id: &&ClaimId| self.seen.binary_search(id).is_err();
            let is_gone = |id: &&ClaimId| ids.binary_search(id).is_err();
            let mut by: Vec<_> = ids.iter().filter(is_new).map(|id| id.session).collect();
            by.dedup();
            let removed: Vec<_> = self.seen.iter().filter(is_gone).map(|id| id.session).collect();
            // The version matters to claims only. A process that has added claims of several
            // others applies requests, and may still apply this one. While claims wait, a swap is
            // better than a request.
            let may_apply = by.len() > 1 && removed.is_empty();
            self.is_complete &= record.queue.is_empty() && (!self.has_claims || may_apply);
            by.extend(removed);
            by.sort_unstable();
            by.dedup();
            // The writer of changes of one process may apply no requests.
            if by.len() > 1 {
                self.patient_until = Some(Instant::now() + self.patience());
            }
            self.seen = ids;
        }
    }

    fn patience(&self) -> Duration {
        let least = PATIENCE.max(3 * self.trip);
        least + least.mul_f64(2.0 * fastrand::f64())
    }

    /// Records a write of this process, which has applied the requests of others.
    pub(super) fn wrote(&mut self, version: VersionToken, has_removed: bool) {
        self.run.wrote(version, has_removed);
        self.received.retain(|_, (_, request)| request.is_none());
        if self.has_waited() {
            self.last = Some((false, Instant::now()));
        }
        (self.may_be_applied, self.patient_until, self.asked) = (false, None, None);
    }

    /// Returns whether this process has to apply the requests of others, because it has written
    /// the record last.
    pub(super) fn has_work(&self) -> bool {
        self.is_new && self.run.is_own()
    }

    /// Returns whether a claim of a request may still be added to the record, even if it is absent
    /// there. A write of this process ends that.
    pub(super) fn may_be_applied(&self) -> bool {
        self.may_be_applied
    }

    /// Applies the requests of others. No claim is added after it was removed: all claims are added
    /// first, and the owner makes further removals afterwards.
    ///
    /// Requests with claims of the `own` sessions are dropped. Each process makes the changes of
    /// its claims itself, and a user that may write requests could make others otherwise.
    pub(super) fn apply(&mut self, record: &mut LockRecord, own: &[SessionId]) {
        self.is_new = false;
        let (lock, made) = (&self.lock, &self.own);
        let is_own = |session| own.contains(&session) || made.values().any(|own| *own == session);
        self.received.retain(|_, (entry, request)| {
            *request = request.take().or_else(|| Request::of(entry, lock));
            request.as_ref().is_some_and(|request| !request.sessions().any(is_own))
        });
        let requests = || self.received.values().filter_map(|(_, request)| request.as_ref());
        requests().for_each(|request| request.apply_claims(record, &self.run));
        requests().for_each(|request| request.apply_leaves(record));
    }

    /// Drops the requests of others, because their claims may not fit into the store. Returns
    /// whether there were any.
    pub(super) fn drop_received(&mut self) -> bool {
        self.is_new = false;
        !std::mem::take(&mut self.received).is_empty()
    }

    /// Returns the time until which this process waits for others to apply its request.
    pub(super) fn patient_until(&self) -> Option<Instant> {
        self.patient_until.filter(|_| self.is_complete && !self.has_waited())
    }

    /// Records that this process wants a further change.
    pub(super) fn note_change(&mut self) {
        self.is_complete = false;
    }

    fn has_waited(&self) -> bool {
        let is_long = |asked: Instant| asked.elapsed() > MOST_WAITS * PATIENCE.max(3 * self.trip);
        let is_over = |until: Instant| until <= Instant::now();
        self.patient_until.is_some_and(is_over) || self.asked.is_some_and(is_long)
    }

    /// Records that others have made all changes of this process. Returns whether this process
    /// waited for that.
    pub(super) fn note_applied(&mut self) -> bool {
        let was_waiting = self.patient_until.take().is_some();
        self.asked = None;
        if was_waiting {
            self.last = Some((true, Instant::now()));
        }
        was_waiting
    }

    /// Returns whether this process may make a request: others seem to watch requests, no wait for
    /// a request has timed out, and another process has written the record last.
    pub(super) fn may_ask(&self) -> bool {
        self.is_caught_up && !self.has_waited() && !self.run.is_own()
    }

    /// Records that this process makes a request under a key. `known` is the newest known record.
    pub(super) fn sent(
        &mut self,
        key: &Key,
        session: SessionId,
        has_claims: bool,
        known: Option<&CachedRecord>,
    ) {
        self.own.insert(key.clone(), session);
        self.has_claims = has_claims;
        self.may_be_applied |= has_claims;
        self.seen = known.map(|known| sorted_ids(&known.record)).unwrap_or_default();
        self.asked.get_or_insert_with(Instant::now);
    }

    /// Records that the store has the request, which was written within this time.
    pub(super) fn acknowledged(&mut self, trip: Duration) {
        self.trip = trip.min(LONGEST_TRIP);
        self.patient_until = Some(Instant::now() + self.patience());
        self.is_complete = true;
    }

    /// Records that a request was not acknowledged. The next attempt is a swap.
    pub(super) fn failed(&mut self) {
        self.last = Some((false, Instant::now()));
    }

    /// Removes and returns the keys of the requests of this process.
    pub(super) fn take_own(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.own).into_keys().collect()
    }

    /// Returns whether requests of others wait to be applied.
    pub(super) fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// Returns whether a request of this process was applied a short time ago. Returns `None` if
    /// that is unknown.
    pub(super) fn are_applied(&self) -> Option<bool> {
        let (is_applied, at) = self.last?;
        let valid = if is_applied { HEARD } else { UNHEARD };
        (at.elapsed() < valid).then_some(is_applied)
    }
}

fn sorted_ids(record: &LockRecord) -> Vec<ClaimId> {
    let mut ids: Vec<_> = record.claims().map(|claim| claim.id).collect();
    ids.sort_unstable();
    ids
}
