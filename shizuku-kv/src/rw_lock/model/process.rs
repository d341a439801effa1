//! A process that uses a lock: the combination of coordinator, session and failure detector. It has
//! known state, sent requests, and a next action.

use std::sync::Arc;

use super::decisions::Decisions;
use super::server::{Server, Written, claim_id, process_of, session, token};
use super::world::{Clock, Event, Events, Plan};
use crate::rw_lock::record::{Claim, Extra, LockMode, LockRecord};
use crate::rw_lock::run::Run;
use crate::rw_lock::transition::{Change, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Running,
    /// Stopped for a while; its clock continues.
    Paused,
    /// The process knows that its session is over, and makes no more requests.
    Over,
    Crashed,
}

/// Progress of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ClaimState {
    /// Not made yet.
    Idle,
    /// Made, and not known to be in the record.
    Requested,
    /// In the queue.
    Queued,
    /// The claim does not wait, except for the sessions in its way, which may be dead.
    Deferred,
    /// The owner was notified of the grant.
    Granted(LockMode),
    /// The owner writes no more, and the record does not show that yet.
    Downgrading,
    /// The claim is abandoned, and may be in the record. `believes` is set only if the release is
    /// reported too early.
    /// `is_recorded` is set if the claim was in the record when it began to leave.
    Leaving { believes: Option<LockMode>, is_recorded: bool },
    /// Released, given up or rejected.
    Left,
    /// The session was over first, or an operator broke the lock.
    Lost,
}

impl ClaimState {
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Left | Self::Lost)
    }
}

/// A write that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Writing {
    pub(super) expected: u8,
    pub(super) record: Arc<LockRecord>,
    outcomes: Vec<Asked>,
    /// Whether the write has landed. Set while the answer is on its way back.
    pub(super) answer: Option<bool>,
}

/// A claim, its state when the request was made, and the outcome.
type Asked = (usize, ClaimState, Outcome);

/// A renewal that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Renewal {
    pub(super) expected: u8,
    /// Ticks since it was sent.
    pub(super) age: u8,
    pub(super) answer: Option<bool>,
}

/// The observed state of another process's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Observation {
    /// The version, and the ticks since it was first observed.
    Version(u8, u8),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) number: usize,
    pub(super) status: Status,
    pub(super) claims: Vec<ClaimState>,

    /// The version of its session's first entry; 0 if that does not exist yet.
    pub(super) first: u8,
    /// Ticks since the newest acknowledged renewal was sent.
    pub(super) since_sent: u8,
    /// Number of renewals left. `None` if the process always renews in time, as long as it runs.
    pub(super) renewals: Option<u8>,
    pub(super) renewing: Option<Renewal>,
    /// Renewals without a waiter for the answer, each by the version that it expects.
    pub(super) stray_renewals: Vec<u8>,
    /// The version of its session. `None` if it has to be read.
    pub(super) version: Option<u8>,
    /// Ticks since the last renewal was sent. Only a broken driver uses it.
    pub(super) last_sent: Option<u8>,

    /// The record as it was last observed.
    pub(super) known: Arc<LockRecord>,
    pub(super) known_version: u8,
    /// The version up to which the watch has delivered.
    pub(super) watched: u8,
    /// Whether the process has done nothing since it read the record.
    is_of_now: bool,
    /// Whether all requests were found to need no change.
    pub(super) needs_no_change: bool,
    pub(super) must_read: bool,
    pub(super) writing: Option<Writing>,
    /// Version that an unanswered write expects.
    pub(super) unsure: Option<u8>,
    pub(super) strays: Vec<Writing>,
    /// The newest known version, and the own writes before it.
    pub(super) run: Run,
    /// Whether another process may still apply a claim that this one has requested.
    pub(super) has_requested: bool,
    /// Whether the process waits until others have applied its requests.
    pub(super) is_patient: bool,

    pub(super) observed: Vec<Option<Observation>>,
    /// A write under the lock, in flight to the protected resource.
    pub(super) fenced: Option<Written>,
}

/// Further inputs of a step.
pub(super) struct StepInputs<'a> {
    pub(super) decisions: &'a Decisions,
    pub(super) clock: Clock,
    pub(super) plan: &'a [Plan],
    pub(super) events: &'a Events,
    /// Whether a claim that does not wait may wait for dead sessions.
    pub(super) hopes: bool,
}

impl Process {
    pub(super) fn new(
        number: usize,
        processes: usize,
        claims: usize,
        renewals: Option<u8>,
    ) -> Self {
        Self {
            number,
            status: Status::Running,
            claims: vec![ClaimState::Idle; claims],
            first: 1,
            since_sent: 0,
            renewals,
            renewing: None,
            stray_renewals: Vec::new(),
            version: Some(1),
            last_sent: None,
            known: Arc::default(),
            known_version: 0,
            watched: 0,
            is_of_now: false,
            needs_no_change: false,
            must_read: false,
            writing: None,
            unsure: None,
            strays: Vec::new(),
            run: Run::default(),
            has_requested: false,
            is_patient: false,
            observed: vec![None; processes],
            fenced: None,
        }
    }

    /// Returns the same process, with a session that does not exist yet.
    pub(super) fn without_session(self, most: u8) -> Self {
        Self { first: 0, since_sent: most, ..self }
    }

    pub(super) fn is_running(&self) -> bool {
        self.status == Status::Running
    }

    /// Returns whether the process has no more requests.
    pub(super) fn is_done(&self) -> bool {
        self.claims.iter().all(|state| state.is_final())
    }

    /// Returns the mode for which the process considers a claim to be granted, if it does.
    pub(super) fn believes(&self, claim: usize, inputs: &StepInputs<'_>) -> Option<LockMode> {
        let mode = match self.claims[claim] {
            ClaimState::Granted(mode) => mode,
            ClaimState::Downgrading if inputs.decisions.driver.stops_first => LockMode::Read,
            ClaimState::Downgrading => LockMode::Write,
            ClaimState::Leaving { believes: Some(mode), .. } => mode,
            _ => return None,
        };
        let is_there = matches!(self.status, Status::Running | Status::Paused);
        (is_there && self.holds(inputs)).then_some(mode)
    }

    fn is_known(&self, claim: usize) -> bool {
        self.known.claims().any(|known| known.id == claim_id(self.number, claim))
    }

    /// Sets the wanted state of a claim, which then needs a write.
    pub(super) fn want(&mut self, claim: usize, state: ClaimState) {
        self.claims[claim] = state;
        (self.is_of_now, self.needs_no_change, self.is_patient) = (false, false, false);
    }

    /// Abandons a claim.
    pub(super) fn abandon(&mut self, claim: usize, inputs: &StepInputs<'_>) {
        if inputs.decisions.driver.removes_abandoned {
            let is_recorded = self.claims[claim] == ClaimState::Queued;
            self.want(claim, ClaimState::Leaving { believes: None, is_recorded });
        } else {
            self.claims[claim] = ClaimState::Left;
        }
    }

    pub(super) fn release(&mut self, claim: usize, inputs: &StepInputs<'_>) {
        let mode = match self.claims[claim] {
            ClaimState::Granted(mode) if !inputs.decisions.driver.stops_first => Some(mode),
            _ => None,
        };
        self.want(claim, ClaimState::Leaving { believes: mode, is_recorded: true });
    }

    /// Returns the changes that the record needs, each with the claim that it is for.
    fn requested_changes(&self, inputs: &StepInputs<'_>) -> Vec<(Change, Option<usize>)> {
        let mut requested_changes = Vec::new();
        let mut found_over = false;
        if self.waits() {
            for (other, observed) in self.observed.iter().enumerate() {
                let is_known = || self.known.claims().any(|claim| process_of(claim.id) == other);
                let is_over = *observed == Some(Observation::Over)
                    || !inputs.decisions.driver.ends_session_first && self.is_silent(other, inputs);
                found_over |= is_over && is_known();
                if is_over && is_known() {
                    requested_changes.push((Change::Evict(session(other)), None));
                }
            }
        }
        for (claim, state) in self.claims.iter().enumerate() {
            let id = claim_id(self.number, claim);
            let Plan { mode, waits } = inputs.plan[claim];
            let claims = || Change::Claim {
                claim: Claim { id, mode, label: None, extra: Extra::new() },
                waits,
            };
            match state {
                ClaimState::Requested => requested_changes.push((claims(), Some(claim))),
                ClaimState::Deferred if found_over || self.known.claims().next().is_none() => {
                    requested_changes.push((claims(), Some(claim)));
                }
                ClaimState::Downgrading => {
                    requested_changes.push((Change::Downgrade(id), Some(claim)))
                }
                ClaimState::Leaving { .. } => {
                    requested_changes.push((Change::Leave(id), Some(claim)));
                    // Behind its own leave, in one batch.
                    if !inputs.decisions.driver.forgets_abandoned && !self.is_known(claim) {
                        requested_changes.push((claims(), None));
                    }
                }
                _ => {}
            }
        }
        requested_changes
    }

    /// Returns whether a claim is in the queue, so that the process observes the claims before it.
    pub(super) fn waits(&self) -> bool {
        self.claims.contains(&ClaimState::Queued) || self.claims.contains(&ClaimState::Deferred)
    }

    pub(super) fn has_work(&self, inputs: &StepInputs<'_>) -> bool {
        let is_free = self.writing.is_none() && !self.must_read && !self.needs_no_change;
        self.is_running() && is_free && !self.requested_changes(inputs).is_empty()
    }

    /// Applies the requests to the known record, and sends the result if it differs.
    pub(super) fn write(&mut self, inputs: &StepInputs<'_>) {
        self.write_over(LockRecord::clone(&self.known), inputs);
    }

    /// Does the same for a record to which requests of others were applied.
    pub(super) fn write_over(&mut self, mut record: LockRecord, inputs: &StepInputs<'_>) {
        let mut outcomes = Vec::new();
        for (change, claim) in self.requested_changes(inputs) {
            let outcome = (inputs.decisions.apply)(&mut record, &change);
            outcomes.extend(claim.map(|claim| (claim, self.claims[claim], outcome)));
        }
        let may_land =
            |expected| (inputs.decisions.may_land)(token(expected), token(self.known_version));
        let leaves =
            |state: &ClaimState| matches!(state, ClaimState::Leaving { is_recorded: false, .. });
        let may_be_combined = self.has_requested
            && inputs.decisions.driver.rewrites_after_request
            && self.claims.iter().any(leaves);
        let must_write = self.unsure.is_some_and(may_land) || may_be_combined;
        let is_new = record != *self.known;
        if is_new || must_write {
            if !is_new {
                inputs.events.happened(Event::WroteTheSame);
            }
            self.is_of_now = false;
            let expected = self.known_version;
            self.writing =
                Some(Writing { expected, record: Arc::new(record), outcomes, answer: None });
        } else if self.is_of_now {
            self.needs_no_change = true;
            self.apply_outcomes(outcomes, inputs);
        } else {
            // The known record may be stale.
            self.must_read = true;
        }
    }

    /// Handles the answer to a write.
    pub(super) fn handle_answer(&mut self, inputs: &StepInputs<'_>) {
        let Some(Writing { expected, record, outcomes, answer }) = self.writing.take() else {
            return;
        };
        if answer == Some(true) {
            self.unsure = None;
            let old = std::mem::replace(&mut self.known, Arc::clone(&record));
            self.note_run(&old, expected + 1, inputs);
            self.know(record, expected + 1);
            self.apply_outcomes(outcomes, inputs);
            self.compare(inputs);
        } else {
            self.must_read = true;
        }
    }

    /// Handles a write without an answer in time.
    pub(super) fn lose_answer(&mut self) {
        if let Some(writing) = self.writing.take() {
            self.unsure = Some(writing.expected);
            self.must_read = true;
            self.strays.extend(writing.answer.is_none().then_some(writing));
        }
    }

    fn know(&mut self, record: Arc<LockRecord>, version: u8) {
        self.known = record;
        self.known_version = version;
        self.needs_no_change = false;
        self.run.observed(token(version));
        self.watched = self.watched.max(version);
        if self.unsure.is_some_and(|expected| expected != version) {
            self.unsure = None;
        }
    }

    /// Reads the record, or the older one of a replica that is behind.
    pub(super) fn read(&mut self, server: &Server, is_behind: bool, inputs: &StepInputs<'_>) {
        let old = server.previous.as_ref().filter(|_| is_behind);
        match old {
            Some(old) => self.know(Arc::clone(old), server.version - 1),
            None => self.know(Arc::clone(&server.record), server.version),
        }
        self.must_read = false;
        self.is_of_now = true;
        self.compare(inputs);
    }

    /// Delivers the newest record through the watch.
    pub(super) fn watch(&mut self, server: &Server, inputs: &StepInputs<'_>) {
        self.know(Arc::clone(&server.record), server.version);
        let waiting =
            |process: &Self| process.claims.iter().filter(|it| **it == ClaimState::Queued).count();
        let before = waiting(self);
        if inputs.decisions.driver.reads_watch {
            self.compare(inputs);
        }
        if waiting(self) < before {
            inputs.events.happened(Event::GrantedByRelease);
        }
    }

    /// Applies the outcomes to the claims that have not changed since the request.
    fn apply_outcomes(&mut self, outcomes: Vec<Asked>, inputs: &StepInputs<'_>) {
        for (claim, asked, outcome) in outcomes {
            if self.claims[claim] != asked {
                continue;
            }
            self.claims[claim] = match (asked, outcome) {
                (ClaimState::Requested, Outcome::Granted(_)) => {
                    ClaimState::Granted(inputs.plan[claim].mode)
                }
                (ClaimState::Requested, Outcome::Queued) => ClaimState::Queued,
                (ClaimState::Deferred, Outcome::Granted(_)) => {
                    inputs.events.happened(Event::TriedAfterCrash);
                    ClaimState::Granted(inputs.plan[claim].mode)
                }
                (ClaimState::Deferred, _) => ClaimState::Deferred,
                (ClaimState::Requested, Outcome::Busy) if inputs.hopes => ClaimState::Deferred,
                (ClaimState::Requested, _) => {
                    inputs.events.happened(Event::RejectedTry);
                    ClaimState::Left
                }
                (ClaimState::Downgrading, Outcome::Done) => ClaimState::Granted(LockMode::Read),
                (ClaimState::Downgrading, _) => ClaimState::Lost,
                (ClaimState::Leaving { .. }, _) => ClaimState::Left,
                (state, _) => state,
            };
        }
    }

    /// Compares the known record with the claims that were in it before.
    fn compare(&mut self, inputs: &StepInputs<'_>) {
        for claim in 0..self.claims.len() {
            let grant =
                self.known.grant(claim_id(self.number, claim)).map(|grant| grant.claim.mode);
            self.claims[claim] = match (self.claims[claim], grant) {
                (ClaimState::Queued, Some(mode)) => ClaimState::Granted(mode),
                (ClaimState::Requested, Some(mode)) => {
                    if !self.has_requested {
                        inputs.events.happened(Event::FoundItsGrant);
                    }
                    ClaimState::Granted(mode)
                }
                (ClaimState::Requested, None) if self.is_known(claim) => ClaimState::Queued,
                (ClaimState::Leaving { is_recorded: true, .. }, None) if !self.is_known(claim) => {
                    ClaimState::Left
                }
                (ClaimState::Queued, None)
                    if !self.is_known(claim) && inputs.decisions.driver.claims_again =>
                {
                    inputs.events.happened(Event::ClaimedAgain);
                    ClaimState::Requested
                }
                (ClaimState::Granted(_), None) => ClaimState::Lost,
                (state, _) => state,
            };
        }
    }

    /// Ends the process's part, because it knows that its session is over.
    pub(super) fn end(&mut self) {
        self.stop(Status::Over);
    }

    pub(super) fn crash(&mut self) {
        self.stop(Status::Crashed);
    }

    fn stop(&mut self, status: Status) {
        self.lose_answer();
        self.lose_renewal();
        self.status = status;
        for state in &mut self.claims {
            if !state.is_final() {
                *state = ClaimState::Lost;
            }
        }
    }

    /// Drops the state that makes no difference any more, so that equal states are recognized.
    pub(super) fn forget(&mut self, server: &Server, renewed: &[bool], most: u8) {
        self.strays.retain(|stray| stray.expected == server.version);
        let key = server.session(self.number);
        self.stray_renewals.retain(|expected| !key.is_over && *expected == key.version);
        let may_observe = self.is_running() && self.waits();
        for (other, observed) in self.observed.iter_mut().enumerate() {
            let is_there = || self.known.claims().any(|claim| process_of(claim.id) == other);
            let is_of_use = !renewed[other] || *observed == Some(Observation::Over);
            if !may_observe || other == self.number || !is_of_use || !is_there() {
                *observed = None;
            }
        }
        if self.is_done() && self.writing.is_none() {
            self.known = Arc::default();
            (self.known_version, self.watched) = (0, 0);
            (self.must_read, self.is_of_now, self.needs_no_change) = (false, false, false);
            self.unsure = None;
            (self.run, self.has_requested, self.is_patient) = (Run::default(), false, false);
            self.since_sent = most;
            self.renewals = self.renewals.map(|_| 0);
            self.lose_renewal();
            self.version = Some(1);
            self.first = 1;
            self.last_sent = None;
            if self.status == Status::Paused {
                self.status = Status::Running;
            }
        }
    }
}
