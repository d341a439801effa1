//! Processes, a store, and the events that happen to them, each a limited number of times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stateright::{Model, Property};

use super::decisions::Decisions;
use super::process::{ClaimState, Observation, Process, Status, StepInputs};
use super::requests::Request;
use super::server::{Memory, Server, Written, claim_id, process_of};
use crate::rw_lock::lease;
use crate::rw_lock::record::{LockMode, LockRecord};
use crate::rw_lock::transition::Change;
use crate::store::FencingToken;

/// A claim that a process will make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) mode: LockMode,
    pub(super) waits: bool,
}

/// The claims that a process will make, and the behaviour of its session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) claims: &'static [Plan],
    /// Number of renewals of its session. `None` if it always renews in time, as long as it runs.
    pub(super) renewals: Option<u8>,
    /// The process whose key its session takes over once that is free. `None` if it has a key of
    /// its own from the beginning.
    pub(super) takes_over: Option<usize>,
}

/// Maximum number of each optional event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// The answer to a write of the record is lost; the write may land later.
    pub(super) cuts: u8,
    /// The same for a renewal.
    pub(super) renewal_cuts: u8,
    /// A read is answered by a replica that is behind.
    pub(super) behind: u8,
    /// A claimant gives up waiting.
    pub(super) abandons: u8,
    pub(super) downgrades: u8,
    /// An operator breaks the lock.
    pub(super) breaks: u8,
    pub(super) crashes: u8,
    pub(super) pauses: u8,
    /// Writes under the lock, which its token fences.
    pub(super) fenced: u8,
    /// The watch of a session is behind.
    pub(super) late: u8,
    /// Whether claims that do not wait may wait for dead sessions. A clock that may be wrong
    /// decides when they do.
    pub(super) hopes: bool,
    /// Processes request their changes from others.
    pub(super) requests: u8,
}

/// Time in ticks of a second. A holder's clock is the slowest possible, a failure detector's the
/// fastest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) lease: Duration,
}

impl Clock {
    pub(super) fn of_holder(self, ticks: u8) -> Duration {
        Duration::from_secs(ticks.into())
    }

    pub(super) fn of_observer(self, ticks: u8) -> Duration {
        self.of_holder(ticks) * 9 / 8
    }

    /// Returns the number of ticks from which on more ticks make no difference.
    fn most(self) -> u8 {
        let is_over = |ticks: &u8| {
            let holds = lease::holds(self.of_holder(*ticks), self.lease);
            !holds && lease::is_silent(self.of_observer(*ticks), self.lease)
        };
        (0..u8::MAX).find(is_over).unwrap_or(u8::MAX)
    }
}

/// Events that have to be reached in some world. Otherwise the check says little.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    GrantedByRelease,
    RejectedTry,
    FoundItsGrant,
    StrayLanded,
    WroteTheSame,
    ClaimedAgain,
    ReturnedGrant,
    GrantedReaders,
    Evicted,
    EndRejected,
    RenewedTooLate,
    RenewedInTime,
    ResumedTooLate,
    FencedOff,
    TookOver,
    SawEarlierEntry,
    TriedAfterCrash,
    Combined,
}

pub(super) const TO_REACH: [(Event, &str); 18] = [
    (Event::Combined, "a process applies the request of another one"),
    (Event::TookOver, "a session takes over the key of one that is over"),
    (Event::SawEarlierEntry, "a watch delivers an entry from before a session"),
    (Event::TriedAfterCrash, "a try is granted after a crash"),
    (Event::GrantedByRelease, "a release grants a waiter, and its watch notifies it"),
    (Event::RejectedTry, "a try is rejected"),
    (Event::FoundItsGrant, "a claim whose acknowledgement was lost is found granted"),
    (Event::StrayLanded, "a write lands after its sender has given up"),
    (Event::WroteTheSame, "an unchanged record is written so that another write cannot land"),
    (Event::ClaimedAgain, "a grant is broken before its claimant is notified"),
    (Event::ReturnedGrant, "an abandoned claim is granted"),
    (Event::GrantedReaders, "a writer is downgraded, and readers are granted"),
    (Event::Evicted, "a dead session is evicted, and another claim is granted"),
    (Event::EndRejected, "the end of a session is rejected because it was renewed"),
    (Event::RenewedTooLate, "a renewal arrives after the session was ended"),
    (Event::RenewedInTime, "a renewal is acknowledged after the end of its lease"),
    (Event::ResumedTooLate, "a holder resumes after the end of its lease"),
    (Event::FencedOff, "a write of an earlier holder is rejected"),
];

/// The events that have happened in any schedule. They are not part of a state: only the
/// possibility matters.
#[derive(Clone, Debug, Default)]
pub(super) struct Events(Arc<AtomicU32>);

impl Events {
    pub(super) fn happened(&self, event: Event) {
        self.0.fetch_or(1 << event as u32, Ordering::Relaxed);
    }

    pub(super) fn have(&self, event: Event) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << event as u32 != 0
    }
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) parts: &'static [Part],
    pub(super) budget: Budget,
    pub(super) lease: Duration,
    pub(super) decisions: Decisions,
    pub(super) events: Events,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) server: Server,
    pub(super) processes: Vec<Process>,
    pub(super) left: Budget,
}

/// An action. The first number is that of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    // Actions that continue by themselves.
    Ask(usize, usize),
    Release(usize, usize),
    Write(usize),
    Land(usize),
    Hear(usize),
    Read(usize),
    Watch(usize),
    RenewalLands(usize),
    HearRenewal(usize),
    ReadSession(usize),
    /// The process finds its lease over.
    Notice(usize),
    Resume(usize),
    Observe(usize, usize),
    /// The session of the process takes over a key.
    Open(usize),
    /// The claim does not wait for dead sessions any more.
    GiveUp(usize, usize),
    Kill(usize, usize),
    Tick,
    // Actions that may happen.
    Renew(usize),
    Abandon(usize, usize),
    Downgrade(usize, usize),
    Break,
    Cut(usize),
    CutRenewal(usize),
    StrayLands(usize, usize),
    StrayRenewalLands(usize, usize),
    ReadBehind(usize),
    ObserveBehind(usize, usize),
    Crash(usize),
    Pause(usize),
    /// A write under the lock is sent.
    Send(usize, usize),
    /// The write arrives.
    Arrive(usize),
    /// The process requests its changes from others.
    Request(usize),
    /// The process applies a request.
    Combine(usize, Request),
}

impl World {
    fn clock(&self) -> Clock {
        Clock { lease: self.lease }
    }

    fn memory(&self, left: &Budget) -> Memory {
        Memory { previous: left.behind > 0, grants: self.budget.fenced > 0 }
    }

    pub(super) fn inputs(&self, process: usize) -> StepInputs<'_> {
        StepInputs {
            decisions: &self.decisions,
            clock: self.clock(),
            plan: self.parts[process].claims,
            events: &self.events,
            hopes: self.budget.hopes,
        }
    }

    /// Adds all actions that continue by themselves. Without any, everything was delivered and
    /// done.
    pub(super) fn goes_on(&self, state: &State, actions: &mut Vec<Action>) {
        let server = &state.server;
        for (number, process) in state.processes.iter().enumerate() {
            let inputs = self.inputs(number);
            match process.writing.as_ref().map(|writing| writing.answer) {
                Some(None) => actions.push(Action::Land(number)),
                Some(Some(_)) if process.is_running() => actions.push(Action::Hear(number)),
                _ => {}
            }
            match process.renewing.map(|renewal| renewal.answer) {
                Some(None) => actions.push(Action::RenewalLands(number)),
                Some(Some(_)) if process.is_running() => actions.push(Action::HearRenewal(number)),
                _ => {}
            }
            actions.extend((process.status == Status::Paused).then_some(Action::Resume(number)));
            if !process.is_running() || process.is_done() {
                continue;
            }
            if process.first == 0 {
                actions.extend(server.is_free(number).then_some(Action::Open(number)));
                continue;
            }
            for (claim, claim_state) in process.claims.iter().enumerate() {
                match claim_state {
                    ClaimState::Deferred => actions.push(Action::GiveUp(number, claim)),
                    ClaimState::Idle => actions.push(Action::Ask(number, claim)),
                    ClaimState::Granted(_) => actions.push(Action::Release(number, claim)),
                    _ => {}
                }
            }
            let may_ask = process.holds(&inputs) || !self.decisions.driver.checks_session_first;
            let is_patient = process.is_patient && !self.decisions.driver.loses_patience;
            let asks = may_ask && !is_patient && process.has_work(&inputs);
            actions.extend(asks.then_some(Action::Write(number)));
            actions.extend(process.must_read.then_some(Action::Read(number)));
            let is_free = process.writing.is_none() && !process.must_read;
            let follows = process.waits() || process.is_patient;
            if is_free && follows && process.watched < server.version {
                actions.push(Action::Watch(number));
            }
            actions.extend(process.version.is_none().then_some(Action::ReadSession(number)));
            if !process.is_renewed(server) && !process.holds(&inputs) {
                actions.push(Action::Notice(number));
            }
            self.add_observations(state, number, actions);
        }
        let most = self.clock().most();
        let mut processes = state.processes.clone();
        let grows = processes.iter_mut().map(|process| process.grow_older(server, most));
        actions.extend(grows.fold(false, |any, grows| any | grows).then_some(Action::Tick));
    }

    /// Adds the observations of a waiting process: the sessions of the claims in the record.
    fn add_observations(&self, state: &State, number: usize, actions: &mut Vec<Action>) {
        let process = &state.processes[number];
        if !process.waits() {
            return;
        }
        let inputs = self.inputs(number);
        for other in 0..state.processes.len() {
            let key = state.server.session(other);
            let is_there = process.known.claims().any(|claim| process_of(claim.id) == other);
            if other == number || !is_there || state.processes[other].is_renewed(&state.server) {
                continue;
            }
            let is_news = match process.observed[other] {
                Some(Observation::Over) => false,
                Some(Observation::Version(version, _)) => key.is_over || version != key.version,
                None => true,
            };
            actions.extend(is_news.then_some(Action::Observe(number, other)));
            if self.decisions.driver.ends_session_first && process.is_silent(other, &inputs) {
                actions.push(Action::Kill(number, other));
            }
        }
    }

    fn may_happen(&self, state: &State, actions: &mut Vec<Action>) {
        let State { server, processes, left } = state;
        for (number, process) in processes.iter().enumerate() {
            let inputs = self.inputs(number);
            let strays = process.strays.iter().enumerate();
            actions.extend(strays.map(|(stray, _)| Action::StrayLands(number, stray)));
            let strays = process.stray_renewals.iter().enumerate();
            actions.extend(strays.map(|(stray, _)| Action::StrayRenewalLands(number, stray)));
            actions.extend(process.fenced.map(|_| Action::Arrive(number)));
            if !process.is_running() || process.is_done() || process.first == 0 {
                continue;
            }
            for (other, seen) in process.observed.iter().enumerate() {
                let is_there = || process.known.claims().any(|claim| process_of(claim.id) == other);
                let is_behind = seen.is_none() && server.session(other).tombstone.is_some();
                if left.late > 0 && is_behind && process.waits() && other != number && is_there() {
                    actions.push(Action::ObserveBehind(number, other));
                }
            }
            let may_renew =
                process.renewals.is_some_and(|left| left > 0) && process.version.is_some();
            if may_renew && process.renewing.is_none() && process.holds(&inputs) {
                actions.push(Action::Renew(number));
            }
            for (claim, claim_state) in process.claims.iter().enumerate() {
                if left.abandons > 0
                    && matches!(claim_state, ClaimState::Requested | ClaimState::Queued)
                {
                    actions.push(Action::Abandon(number, claim));
                }
                if *claim_state == ClaimState::Granted(LockMode::Write) {
                    actions
                        .extend((left.downgrades > 0).then_some(Action::Downgrade(number, claim)));
                    let believes = process.believes(claim, &inputs).is_some();
                    if left.fenced > 0 && believes && process.fenced.is_none() {
                        actions.push(Action::Send(number, claim));
                    }
                }
            }
            actions.extend(
                (left.cuts > 0 && process.writing.is_some()).then_some(Action::Cut(number)),
            );
            let may_cut = left.renewal_cuts > 0 && process.renewing.is_some();
            actions.extend(may_cut.then_some(Action::CutRenewal(number)));
            if left.behind > 0 && process.must_read && server.previous.is_some() {
                let is_older = server.version - 1 < process.known_version;
                if !is_older || !self.decisions.driver.keeps_newest {
                    actions.push(Action::ReadBehind(number));
                }
            }
            if left.requests > 0 && process.holds(&inputs) && process.may_request(&inputs) {
                actions.push(Action::Request(number));
            }
            let requests = server.requests.iter().copied();
            let may_combine = |request: &Request| process.may_combine(*request, &inputs);
            actions.extend(requests.filter(may_combine).map(|it| Action::Combine(number, it)));
            actions.extend((left.crashes > 0).then_some(Action::Crash(number)));
            actions.extend((left.pauses > 0).then_some(Action::Pause(number)));
        }
        actions.extend(
            (left.breaks > 0 && !server.record.holders.is_empty()).then_some(Action::Break),
        );
    }

    fn perform(&self, state: &mut State, action: Action) {
        let memory = self.memory(&state.left);
        let State { server, processes, left } = state;
        let inputs = |number| self.inputs(number);
        match action {
            Action::Ask(p, claim) => processes[p].want(claim, ClaimState::Requested),
            Action::Release(p, claim) => processes[p].release(claim, &inputs(p)),
            Action::Write(p) => processes[p].write(&inputs(p)),
            Action::Request(p) => {
                left.requests -= 1;
                processes[p].request(server, &inputs(p));
            }
            Action::Combine(p, request) => processes[p].combine(request, &inputs(p)),
            Action::Land(p) => self.land(server, &mut processes[p], memory),
            Action::Hear(p) => processes[p].handle_answer(&inputs(p)),
            Action::Read(p) => processes[p].read(server, false, &inputs(p)),
            Action::Watch(p) => processes[p].watch(server, &inputs(p)),
            Action::RenewalLands(p) => {
                let Some(renewal) = &mut processes[p].renewing else { return };
                renewal.answer = Some(server.renew(p, renewal.expected));
                if server.session(p).is_over {
                    self.events.happened(Event::RenewedTooLate);
                }
            }
            Action::HearRenewal(p) => {
                let was_over = !processes[p].holds(&inputs(p));
                processes[p].hear_renewal(&inputs(p));
                if was_over && processes[p].holds(&inputs(p)) {
                    self.events.happened(Event::RenewedInTime);
                }
            }
            Action::ReadSession(p) => processes[p].read_session(server),
            Action::Notice(p) => {
                if processes[p]
                    .claims
                    .iter()
                    .any(|claim_state| matches!(claim_state, ClaimState::Granted(_)))
                {
                    self.events.happened(Event::ResumedTooLate);
                }
                processes[p].end();
            }
            Action::Resume(p) => processes[p].resume(server, &inputs(p)),
            Action::Observe(p, other) => {
                let first = processes[other].first;
                processes[p].observe(other, first, server, &inputs(p));
            }
            Action::ObserveBehind(p, other) => {
                left.late -= 1;
                let first = processes[other].first;
                processes[p].observe_behind(other, first, server, &inputs(p));
            }
            Action::Kill(p, other) => {
                let first = processes[other].first;
                processes[p].kill(other, first, server, &inputs(p));
            }
            Action::Open(p) => {
                self.events.happened(Event::TookOver);
                let first = server.open(p, left.late > 0);
                processes[p].open(first);
            }
            Action::GiveUp(p, claim) => processes[p].abandon(claim, &inputs(p)),
            Action::Tick => {
                let most = self.clock().most();
                for process in processes {
                    process.grow_older(server, most);
                }
            }
            Action::Renew(p) => processes[p].renew(&inputs(p)),
            Action::Abandon(p, claim) => {
                left.abandons -= 1;
                if server.record.grant(claim_id(p, claim)).is_some() {
                    self.events.happened(Event::ReturnedGrant);
                }
                processes[p].abandon(claim, &inputs(p));
            }
            Action::Downgrade(p, claim) => {
                left.downgrades -= 1;
                processes[p].want(claim, ClaimState::Downgrading);
            }
            Action::Break => {
                left.breaks -= 1;
                let mut record = LockRecord::clone(&server.record);
                let newest = FencingToken::from_u64(record.fence);
                (self.decisions.apply)(&mut record, &Change::Break { newest });
                server.put_broken(&Arc::new(record), memory);
            }
            Action::Cut(p) => {
                left.cuts -= 1;
                processes[p].lose_answer();
            }
            Action::CutRenewal(p) => {
                left.renewal_cuts -= 1;
                processes[p].lose_renewal();
            }
            Action::StrayLands(p, stray) => {
                let stray = processes[p].strays.remove(stray);
                if server.swap(p, stray.expected, &stray.record, memory) {
                    self.events.happened(Event::StrayLanded);
                }
            }
            Action::StrayRenewalLands(p, stray) => {
                let expected = processes[p].stray_renewals.remove(stray);
                server.renew(p, expected);
            }
            Action::ReadBehind(p) => {
                left.behind -= 1;
                processes[p].read(server, true, &inputs(p));
            }
            Action::Crash(p) => {
                left.crashes -= 1;
                processes[p].crash();
            }
            Action::Pause(p) => {
                left.pauses -= 1;
                processes[p].status = Status::Paused;
            }
            Action::Send(p, claim) => {
                left.fenced -= 1;
                let id = claim_id(p, claim);
                let grant = processes[p].known.grant(id).map(|grant| grant.token);
                let grant_of = server.truth.grant_of(id);
                processes[p].fenced = grant.map(|token| Written { token, grant: grant_of });
            }
            Action::Arrive(p) => {
                if processes[p].fenced.take().is_some_and(|write| !server.write(write)) {
                    self.events.happened(Event::FencedOff);
                }
            }
        }
    }

    fn land(&self, server: &mut Server, process: &mut Process, memory: Memory) {
        let Some(writing) = &mut process.writing else { return };
        let old = Arc::clone(&server.record);
        let is_taken = server.swap(process.number, writing.expected, &writing.record, memory);
        writing.answer = Some(is_taken);
        if !is_taken {
            return;
        }
        let new = &server.record;
        let is_new = |id| old.grant(id).is_none();
        let comes_in = new.holders.iter().any(|grant| is_new(grant.claim.id));
        let was_over = |id| server.session(process_of(id)).is_over && new.grant(id).is_none();
        if comes_in && old.holders.iter().any(|grant| was_over(grant.claim.id)) {
            self.events.happened(Event::Evicted);
        }
        if comes_in && process.claims.contains(&ClaimState::Downgrading) {
            self.events.happened(Event::GrantedReaders);
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let many = self.parts.len();
        let most = self.clock().most();
        let new = |(number, part): (usize, &Part)| {
            let process = Process::new(number, many, part.claims.len(), part.renewals);
            if part.takes_over.is_some() { process.without_session(most) } else { process }
        };
        let processes = self.parts.iter().enumerate().map(new).collect();
        let takes_over: Vec<_> = self.parts.iter().map(|part| part.takes_over).collect();
        vec![State { server: Server::new(&takes_over), processes, left: self.budget }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.goes_on(state, actions);
        self.may_happen(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.perform(&mut next, action);
        let State { server, processes, left } = &mut next;
        if left.behind == 0 {
            server.previous = None;
        }
        if left.late == 0 {
            server.forget_tombstones();
        }
        let renewed: Vec<_> = processes.iter().map(|process| process.is_renewed(server)).collect();
        let most = self.clock().most();
        processes.iter_mut().for_each(|process| process.forget(server, &renewed, most));
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        super::promises::all()
    }
}
