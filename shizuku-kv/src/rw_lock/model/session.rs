//! The session of a process, and its observations of other sessions.

use super::process::{ClaimState, Observation, Process, Renewal, Status, StepInputs};
use super::server::Server;
use super::world::Event;
use crate::rw_lock::lease::EntryMeaning;

impl Process {
    /// Returns whether the session holds, by the process's own clock.
    pub(super) fn holds(&self, inputs: &StepInputs<'_>) -> bool {
        (inputs.decisions.holds)(inputs.clock.of_holder(self.since_sent), inputs.clock.lease)
    }

    pub(super) fn renew(&mut self, inputs: &StepInputs<'_>) {
        let Some(expected) = self.version else { return };
        self.renewals = self.renewals.map(|left| left - 1);
        self.renewing = Some(Renewal { expected, age: 0, answer: None });
        if !inputs.decisions.driver.trusts_acknowledgements_only {
            self.last_sent = Some(0);
        }
    }

    pub(super) fn hear_renewal(&mut self, inputs: &StepInputs<'_>) {
        let Some(renewal) = self.renewing.take() else { return };
        if renewal.answer == Some(true) {
            self.version = Some(renewal.expected + 1);
            // The renewal counts from when it was sent.
            self.since_sent =
                if inputs.decisions.driver.counts_from_sending { renewal.age } else { 0 };
        } else {
            self.version = None;
        }
    }

    pub(super) fn lose_renewal(&mut self) {
        if let Some(renewal) = self.renewing.take() {
            self.version = None;
            self.stray_renewals.extend(renewal.answer.is_none().then_some(renewal.expected));
        }
    }

    /// Reads the key of its session, after a renewal that was not acknowledged.
    pub(super) fn read_session(&mut self, server: &Server) {
        let key = server.session(self.number);
        if key.is_over {
            return self.end();
        }
        self.version = Some(key.version);
        if let Some(sent) = self.last_sent.filter(|_| key.version > self.first) {
            self.since_sent = sent;
        }
    }

    /// Continues after a pause.
    pub(super) fn resume(&mut self, server: &mut Server, inputs: &StepInputs<'_>) {
        self.status = Status::Running;
        if self.renewals.is_none() {
            if !self.holds(inputs) {
                self.end();
            } else if server.renew(self.number, server.session(self.number).version) {
                self.since_sent = 0;
            }
        }
    }

    /// Returns whether the session is renewed without a further event.
    pub(super) fn is_renewed(&self, server: &Server) -> bool {
        self.renewals.is_none() && self.is_running() && !server.session(self.number).is_over
    }

    /// Returns whether another session has been silent for so long that it may be ended.
    pub(super) fn is_silent(&self, other: usize, inputs: &StepInputs<'_>) -> bool {
        matches!(self.observed[other], Some(Observation::Version(_, age))
            if (inputs.decisions.is_silent)(inputs.clock.of_observer(age), inputs.clock.lease))
    }

    /// Opens the session. Earlier entries of its key do not belong to it.
    pub(super) fn open(&mut self, first: u8) {
        (self.first, self.version) = (first, Some(first));
        self.since_sent = 0;
    }

    /// Delivers the newest entry of another session through the watch.
    pub(super) fn observe(
        &mut self,
        other: usize,
        first: u8,
        server: &Server,
        inputs: &StepInputs<'_>,
    ) {
        let key = server.session(other);
        self.take(other, first, key.version, !key.is_over, inputs);
    }

    /// Delivers, through a watch that is behind, the tombstone that another session has replaced.
    pub(super) fn observe_behind(
        &mut self,
        other: usize,
        first: u8,
        server: &Server,
        inputs: &StepInputs<'_>,
    ) {
        if let Some(tombstone) = server.session(other).tombstone {
            self.take(other, first, tombstone, false, inputs);
        }
    }

    fn take(
        &mut self,
        other: usize,
        first: u8,
        version: u8,
        is_its_own: bool,
        inputs: &StepInputs<'_>,
    ) {
        let driver = inputs.decisions.driver;
        let hopes = self.claims.contains(&ClaimState::Deferred);
        let age = if hopes { driver.clock_of_tries_is_ahead } else { driver.clock_is_ahead };
        self.needs_no_change = false;
        match (inputs.decisions.meaning)(Some(first.into()), Some(version.into()), is_its_own) {
            EntryMeaning::Older => inputs.events.happened(Event::SawEarlierEntry),
            EntryMeaning::Alive => self.observed[other] = Some(Observation::Version(version, age)),
            EntryMeaning::Ended => self.observed[other] = Some(Observation::Over),
        }
    }

    /// Ends another session, if it has the version that was seen.
    pub(super) fn kill(
        &mut self,
        other: usize,
        first: u8,
        server: &mut Server,
        inputs: &StepInputs<'_>,
    ) {
        let Some(Observation::Version(version, _)) = self.observed[other] else { return };
        if server.session(other).version == version || !inputs.decisions.driver.compares {
            server.end(other);
        } else {
            inputs.events.happened(Event::EndRejected);
        }
        self.observe(other, first, server, inputs);
    }

    /// Lets time pass. Returns whether that makes a difference.
    pub(super) fn grow_older(&mut self, server: &Server, most: u8) -> bool {
        let mut has_changed = false;
        let mut grow = |age: &mut u8| {
            has_changed |= *age < most;
            *age = most.min(*age + 1);
        };
        if !self.is_renewed(server) && matches!(self.status, Status::Running | Status::Paused) {
            grow(&mut self.since_sent);
        }
        self.renewing.iter_mut().for_each(|renewal| grow(&mut renewal.age));
        self.last_sent.iter_mut().for_each(&mut grow);
        for seen in self.observed.iter_mut().flatten() {
            if let Observation::Version(_, age) = seen {
                grow(age);
            }
        }
        has_changed
    }
}
