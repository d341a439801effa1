//! A process that wants a lock, as the coordinator, the session and the observer are together: what it knows, what it has
//! sent, and what it does next.

use std::sync::Arc;

use super::decisions::Decisions;
use super::server::{Server, Written, claim_id, process_of, session, token};
use super::world::{Clock, Event, Events, Plan};
use crate::rw_lock::record::{Claim, Extra, LockMode, LockRecord};
use crate::rw_lock::transition::{Change, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Running,
    /// Stopped for a while; its clock goes on.
    Paused,
    /// It knows that its session is over, and wants nothing any more.
    Over,
    Crashed,
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// Not made yet.
    Idle,
    /// Made, and not known to be in the record.
    Claiming,
    /// In line.
    Waiting,
    /// It does not wait, but for the sessions in its way, which may be dead.
    Hoping,
    /// Its owner was told of the grant.
    Held(LockMode),
    /// Its owner writes no more, and the record does not say so yet.
    Downgrading,
    /// Nobody wants it any more; it may be in the record. `believes` is set only where a release is told too early.
    Leaving { believes: Option<LockMode> },
    /// Released, given up or refused.
    Left,
    /// The session was over first, or an operator broke it.
    Lost,
}

impl Standing {
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
    /// Whether it has landed, on its way back.
    pub(super) answer: Option<bool>,
}

/// What was asked for a claim that stood like this, and what became of it.
type Asked = (usize, Standing, Outcome);

/// A renewal that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Renewal {
    pub(super) expected: u8,
    /// How long ago.
    pub(super) age: u8,
    pub(super) answer: Option<bool>,
}

/// What is known of another's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Seen {
    /// This version, first so long ago.
    Version(u8, u8),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) number: usize,
    pub(super) status: Status,
    pub(super) claims: Vec<Standing>,

    /// The version of its session's first entry; 0 where that is not there yet.
    pub(super) first: u8,
    /// How long ago the newest acknowledged renewal was sent.
    pub(super) since_sent: u8,
    /// How often it renews its session yet; none where it always does in time, as long as it runs.
    pub(super) renewals: Option<u8>,
    pub(super) renewing: Option<Renewal>,
    /// Renewals that nobody waits for any more, by what they expect.
    pub(super) stray_renewals: Vec<u8>,
    /// The version of its session; none where it has to be read.
    pub(super) version: Option<u8>,
    /// When the last renewal was sent. Only a broken driver wants to know.
    pub(super) last_sent: Option<u8>,

    /// The record as it was last seen.
    pub(super) known: Arc<LockRecord>,
    pub(super) known_version: u8,
    /// Up to where the watch has come.
    pub(super) watched: u8,
    /// Whether nothing was done since the record was read.
    is_of_now: bool,
    /// Whether all that is wanted was found to need no change.
    pub(super) is_settled: bool,
    pub(super) must_read: bool,
    pub(super) writing: Option<Writing>,
    /// A write on this version was not answered.
    pub(super) unsure: Option<u8>,
    pub(super) strays: Vec<Writing>,

    pub(super) seen: Vec<Option<Seen>>,
    /// On its way to what the lock protects.
    pub(super) fenced: Option<Written>,
}

/// What a step needs to know besides.
pub(super) struct Around<'a> {
    pub(super) decisions: &'a Decisions,
    pub(super) clock: Clock,
    pub(super) plan: &'a [Plan],
    pub(super) events: &'a Events,
    /// Whether one who does not wait may wait for the dead.
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
            claims: vec![Standing::Idle; claims],
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
            is_settled: false,
            must_read: false,
            writing: None,
            unsure: None,
            strays: Vec::new(),
            seen: vec![None; processes],
            fenced: None,
        }
    }

    /// The same, with a session that is not there yet.
    pub(super) fn without_session(self, most: u8) -> Self {
        Self { first: 0, since_sent: most, ..self }
    }

    pub(super) fn is_running(&self) -> bool {
        self.status == Status::Running
    }

    /// Whether it wants nothing any more.
    pub(super) fn is_done(&self) -> bool {
        self.claims.iter().all(|standing| standing.is_final())
    }

    /// What it takes a claim to be granted for, if it does.
    pub(super) fn believes(&self, claim: usize, around: &Around<'_>) -> Option<LockMode> {
        let mode = match self.claims[claim] {
            Standing::Held(mode) => mode,
            Standing::Downgrading if around.decisions.driver.stops_first => LockMode::Read,
            Standing::Downgrading => LockMode::Write,
            Standing::Leaving { believes: Some(mode) } => mode,
            _ => return None,
        };
        let is_there = matches!(self.status, Status::Running | Status::Paused);
        (is_there && self.holds(around)).then_some(mode)
    }

    fn is_known(&self, claim: usize) -> bool {
        self.known.claims().any(|known| known.id == claim_id(self.number, claim))
    }

    /// Wants something of the record, from now on.
    pub(super) fn want(&mut self, claim: usize, standing: Standing) {
        self.claims[claim] = standing;
        (self.is_of_now, self.is_settled) = (false, false);
    }

    /// Nobody waits for a claim any more.
    pub(super) fn abandon(&mut self, claim: usize, around: &Around<'_>) {
        if around.decisions.driver.takes_out_abandoned {
            self.want(claim, Standing::Leaving { believes: None });
        } else {
            self.claims[claim] = Standing::Left;
        }
    }

    pub(super) fn release(&mut self, claim: usize, around: &Around<'_>) {
        let mode = match self.claims[claim] {
            Standing::Held(mode) if !around.decisions.driver.stops_first => Some(mode),
            _ => None,
        };
        self.want(claim, Standing::Leaving { believes: mode });
    }

    /// What has to become of the record, and for which of its claims.
    fn wishes(&self, around: &Around<'_>) -> Vec<(Change, Option<usize>)> {
        let mut wishes = Vec::new();
        let mut finds_dead = false;
        if self.waits() {
            for (other, seen) in self.seen.iter().enumerate() {
                let is_known = || self.known.claims().any(|claim| process_of(claim.id) == other);
                let is_over = *seen == Some(Seen::Over)
                    || !around.decisions.driver.kills_first && self.is_silent(other, around);
                finds_dead |= is_over && is_known();
                if is_over && is_known() {
                    wishes.push((Change::Evict(session(other)), None));
                }
            }
        }
        for (claim, standing) in self.claims.iter().enumerate() {
            let id = claim_id(self.number, claim);
            let Plan { mode, waits } = around.plan[claim];
            let claims = || Change::Claim {
                claim: Claim { id, mode, label: None, extra: Extra::new() },
                waits,
            };
            match standing {
                Standing::Claiming => wishes.push((claims(), Some(claim))),
                Standing::Hoping if finds_dead || self.known.claims().next().is_none() => {
                    wishes.push((claims(), Some(claim)));
                }
                Standing::Downgrading => wishes.push((Change::Downgrade(id), Some(claim))),
                Standing::Leaving { .. } => {
                    wishes.push((Change::Leave(id), Some(claim)));
                    // Behind its own leave, in one batch.
                    if !around.decisions.driver.forgets_abandoned && !self.is_known(claim) {
                        wishes.push((claims(), None));
                    }
                }
                _ => {}
            }
        }
        wishes
    }

    /// Whether it is in line, and so looks at who is before it.
    pub(super) fn waits(&self) -> bool {
        self.claims.contains(&Standing::Waiting) || self.claims.contains(&Standing::Hoping)
    }

    pub(super) fn has_work(&self, around: &Around<'_>) -> bool {
        let is_free = self.writing.is_none() && !self.must_read && !self.is_settled;
        self.is_running() && is_free && !self.wishes(around).is_empty()
    }

    /// Applies what it wants to what it knows, and sends that, if it is anything new.
    pub(super) fn write(&mut self, around: &Around<'_>) {
        let mut record = LockRecord::clone(&self.known);
        let mut outcomes = Vec::new();
        for (wish, claim) in self.wishes(around) {
            let outcome = (around.decisions.apply)(&mut record, &wish);
            outcomes.extend(claim.map(|claim| (claim, self.claims[claim], outcome)));
        }
        let may_land =
            |expected| (around.decisions.may_land)(token(expected), token(self.known_version));
        let must_write = self.unsure.is_some_and(may_land);
        let is_new = record != *self.known;
        if is_new || must_write {
            if !is_new {
                around.events.happened(Event::WroteTheSame);
            }
            self.is_of_now = false;
            let expected = self.known_version;
            self.writing =
                Some(Writing { expected, record: Arc::new(record), outcomes, answer: None });
        } else if self.is_of_now {
            self.is_settled = true;
            if outcomes.iter().any(|(_, _, outcome)| matches!(outcome, Outcome::Granted(_))) {
                around.events.happened(Event::FoundItsGrant);
            }
            self.settle(outcomes, around);
        } else {
            // What is known may be of long ago.
            self.must_read = true;
        }
    }

    /// The answer to a write has come.
    pub(super) fn hear(&mut self, around: &Around<'_>) {
        let Some(Writing { expected, record, outcomes, answer }) = self.writing.take() else {
            return;
        };
        if answer == Some(true) {
            self.unsure = None;
            self.know(record, expected + 1);
            self.settle(outcomes, around);
            self.compare(around);
        } else {
            self.must_read = true;
        }
    }

    /// No answer has come in time.
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
        self.is_settled = false;
        self.watched = self.watched.max(version);
        if self.unsure.is_some_and(|expected| expected != version) {
            self.unsure = None;
        }
    }

    /// Reads the record, or what a replica has of it that is behind.
    pub(super) fn read(&mut self, server: &Server, is_behind: bool, around: &Around<'_>) {
        let old = server.previous.as_ref().filter(|_| is_behind);
        match old {
            Some(old) => self.know(Arc::clone(old), server.version - 1),
            None => self.know(Arc::clone(&server.record), server.version),
        }
        self.must_read = false;
        self.is_of_now = true;
        self.compare(around);
    }

    /// The watch of the record brings the newest.
    pub(super) fn watch(&mut self, server: &Server, around: &Around<'_>) {
        self.know(Arc::clone(&server.record), server.version);
        let waiting =
            |process: &Self| process.claims.iter().filter(|it| **it == Standing::Waiting).count();
        let before = waiting(self);
        if around.decisions.driver.reads_watch {
            self.compare(around);
        }
        if waiting(self) < before {
            around.events.happened(Event::HandedOver);
        }
    }

    /// What became of what was asked, unless something else is wanted meanwhile.
    fn settle(&mut self, outcomes: Vec<Asked>, around: &Around<'_>) {
        for (claim, asked, outcome) in outcomes {
            if self.claims[claim] != asked {
                continue;
            }
            self.claims[claim] = match (asked, outcome) {
                (Standing::Claiming, Outcome::Granted(_)) => {
                    Standing::Held(around.plan[claim].mode)
                }
                (Standing::Claiming, Outcome::Queued) => Standing::Waiting,
                (Standing::Hoping, Outcome::Granted(_)) => {
                    around.events.happened(Event::OutlivedTheDead);
                    Standing::Held(around.plan[claim].mode)
                }
                (Standing::Hoping, _) => Standing::Hoping,
                (Standing::Claiming, Outcome::Busy) if around.hopes => Standing::Hoping,
                (Standing::Claiming, _) => {
                    around.events.happened(Event::Refused);
                    Standing::Left
                }
                (Standing::Downgrading, Outcome::Done) => Standing::Held(LockMode::Read),
                (Standing::Downgrading, _) => Standing::Lost,
                (Standing::Leaving { .. }, _) => Standing::Left,
                (standing, _) => standing,
            };
        }
    }

    /// What the record that is known says of claims that were in it before.
    fn compare(&mut self, around: &Around<'_>) {
        for claim in 0..self.claims.len() {
            let grant =
                self.known.grant(claim_id(self.number, claim)).map(|grant| grant.claim.mode);
            self.claims[claim] = match (self.claims[claim], grant) {
                (Standing::Waiting, Some(mode)) => Standing::Held(mode),
                (Standing::Waiting, None)
                    if !self.is_known(claim) && around.decisions.driver.claims_again =>
                {
                    around.events.happened(Event::ClaimedAgain);
                    Standing::Claiming
                }
                (Standing::Held(_), None) => Standing::Lost,
                (standing, _) => standing,
            };
        }
    }

    /// Its session is over, and it knows it.
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
        for standing in &mut self.claims {
            if !standing.is_final() {
                *standing = Standing::Lost;
            }
        }
    }

    /// Forgets what makes no difference any more, so that the same states are seen to be the same.
    pub(super) fn forget(&mut self, server: &Server, renewed: &[bool], most: u8) {
        self.strays.retain(|stray| stray.expected == server.version);
        let key = server.session(self.number);
        self.stray_renewals.retain(|expected| !key.is_over && *expected == key.version);
        let looks = self.is_running() && self.waits();
        for (other, seen) in self.seen.iter_mut().enumerate() {
            let is_there = || self.known.claims().any(|claim| process_of(claim.id) == other);
            let is_of_use = !renewed[other] || *seen == Some(Seen::Over);
            if !looks || other == self.number || !is_of_use || !is_there() {
                *seen = None;
            }
        }
        if self.is_done() && self.writing.is_none() {
            self.known = Arc::default();
            (self.known_version, self.watched) = (0, 0);
            (self.must_read, self.is_of_now, self.is_settled) = (false, false, false);
            self.unsure = None;
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
