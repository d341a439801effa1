//! The requests of processes that have lost a swap, and their combination by other processes.
//!
//! A request may be delivered at any time after it was made, and more than once. This covers
//! requests that land late, and watches that are late.

use super::process::{ClaimState, Process, StepInputs};
use super::server::{Server, claim_id, token};
use super::world::Event;
use crate::rw_lock::record::{Claim, Extra, LockMode, LockRecord};
use crate::rw_lock::transition::Change;

/// A request to change a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub(super) process: usize,
    pub(super) claim: usize,
    mode: LockMode,
    /// The version that the process knew. `None` for a claim that leaves.
    base: Option<u8>,
}

impl Request {
    pub(super) fn change(self) -> Change {
        let id = claim_id(self.process, self.claim);
        match self.base {
            None => Change::Leave(id),
            Some(_) => {
                let claim = Claim { id, mode: self.mode, label: None, extra: Extra::new() };
                Change::Claim { claim, waits: true }
            }
        }
    }
}

impl Process {
    /// Returns whether the process has a change that it may request from others.
    pub(super) fn may_request(&self, inputs: &StepInputs<'_>) -> bool {
        self.has_work(inputs) && !self.is_patient && !self.requests(inputs).is_empty()
    }

    fn requests(&self, inputs: &StepInputs<'_>) -> Vec<Request> {
        let request = |(claim, state): (usize, &ClaimState)| {
            let plan = inputs.plan[claim];
            let base = match state {
                ClaimState::Requested if plan.waits && self.known_version > 0 => {
                    Some(self.known_version)
                }
                ClaimState::Leaving { is_recorded: true, .. } => None,
                _ => return None,
            };
            Some(Request { process: self.number, claim, mode: plan.mode, base })
        };
        self.claims.iter().enumerate().filter_map(request).collect()
    }

    /// Requests the changes of this process from others.
    pub(super) fn request(&mut self, server: &mut Server, inputs: &StepInputs<'_>) {
        for request in self.requests(inputs) {
            self.has_requested |= request.base.is_some();
            if !server.requests.contains(&request) {
                server.requests.push(request);
            }
        }
        self.is_patient = true;
    }

    /// Returns whether the process may apply a request of another one.
    pub(super) fn may_combine(&self, request: Request, inputs: &StepInputs<'_>) -> bool {
        let is_free = self.is_running() && self.writing.is_none() && !self.must_read;
        let is_admitted = request.base.is_none_or(|base| {
            let admits = token(base).is_some_and(|base| self.run.admits(base));
            admits || !inputs.decisions.driver.checks_base
        });
        is_free && request.process != self.number && is_admitted && {
            let mut record = LockRecord::clone(&self.known);
            (inputs.decisions.apply)(&mut record, &request.change());
            record != *self.known
        }
    }

    /// Writes a request of another process, together with the changes of this one.
    pub(super) fn combine(&mut self, request: Request, inputs: &StepInputs<'_>) {
        inputs.events.happened(Event::Combined);
        let mut record = LockRecord::clone(&self.known);
        (inputs.decisions.apply)(&mut record, &request.change());
        self.write_over(record, inputs);
    }

    /// Records a successful write.
    pub(super) fn note_run(&mut self, old: &LockRecord, version: u8, inputs: &StepInputs<'_>) {
        let has = |id| self.known.claims().any(|claim| claim.id == id);
        let removes = old.claims().any(|claim| !has(claim.id));
        if let Some(version) = token(version) {
            self.run.wrote(version, removes && inputs.decisions.driver.restarts_run);
        }
        (self.has_requested, self.is_patient) = (false, false);
    }
}
