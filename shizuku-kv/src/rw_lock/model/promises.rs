//! The promises of a lock, checked in every state.

use stateright::Property;

use super::process::{ClaimState, Process};
use super::server::{claim_id, process_of};
use super::world::{State, World};
use crate::rw_lock::record::LockMode;

// Promises that always hold.
pub(super) const ALONE: &str = "a writer whose lease has not ended is alone";
pub(super) const TOKENS: &str = "each grant has a larger token than all earlier ones";
pub(super) const IN_ORDER: &str = "no waiter is overtaken";
pub(super) const SOUND: &str = "the record keeps its invariants";
pub(super) const PROMPT: &str = "no waiter waits for a free lock";
pub(super) const FENCED: &str =
    "no write of an earlier holder is accepted after one of a later holder";

pub(super) const EVICTED: &str = "an eviction removes all claims of a session";
pub(super) const NO_LOOP: &str = "no request is written endlessly";

// Promises that hold once everything was delivered and done, and stopped processes were given up.
pub(super) const NOTIFIED: &str = "a granted claimant is notified";
pub(super) const SERVED: &str = "each live claim is granted or leaves";
pub(super) const NO_TRACE: &str = "an abandoned claim of a live process leaves no trace";

pub(super) const PROMISES: [&str; 11] =
    [ALONE, TOKENS, IN_ORDER, SOUND, PROMPT, FENCED, EVICTED, NO_LOOP, NOTIFIED, SERVED, NO_TRACE];

/// More writes than any world needs.
const MOST_WRITES: u8 = 16;

pub(super) fn all() -> Vec<Property<World>> {
    vec![
        Property::always(ALONE, is_alone),
        Property::always(TOKENS, |_, state: &State| !state.server.truth.faults.token_was_reused),
        Property::always(IN_ORDER, |_, state: &State| !state.server.truth.faults.was_overtaken),
        Property::always(SOUND, |_, state: &State| state.server.record.is_sound()),
        Property::always(PROMPT, |_, state: &State| {
            !state.server.truth.faults.free_lock_was_waited_for
        }),
        Property::always(FENCED, |_, state: &State| {
            !state.server.truth.faults.old_write_was_accepted
        }),
        Property::always(EVICTED, |_, state: &State| {
            !state.server.truth.faults.eviction_left_claims
        }),
        Property::always(NO_LOOP, |_, state: &State| state.server.version < MOST_WRITES),
        Property::always(NOTIFIED, |world: &World, state: &State| {
            let knows = |process: &Process, claim: usize| {
                !matches!(
                    process.claims[claim],
                    ClaimState::Requested | ClaimState::Queued | ClaimState::Deferred
                )
            };
            let is_told = state.server.record.holders.iter().all(|grant| {
                let process = &state.processes[process_of(grant.claim.id)];
                !process.is_running() || knows(process, grant.claim.id.number as usize)
            });
            is_told || !is_quiet(world, state)
        }),
        Property::always(SERVED, |world: &World, state: &State| {
            let has_begun = |process: &Process| process.first > 0;
            let is_served = |process: &Process| {
                !process.is_running() || process.is_done() || !has_begun(process)
            };
            state.processes.iter().all(is_served) || !is_quiet(world, state)
        }),
        Property::always(NO_TRACE, |world: &World, state: &State| {
            let stays = |process: usize| {
                let is_alive =
                    state.processes[process].is_running() && !state.server.session(process).is_over;
                is_alive && state.processes[process].is_done() && state.server.has(process)
            };
            !(0..state.processes.len()).any(stays) || !is_quiet(world, state)
        }),
    ]
}

/// Returns whether no action continues by itself.
fn is_quiet(world: &World, state: &State) -> bool {
    let mut actions = Vec::new();
    world.goes_on(state, &mut actions);
    actions.is_empty()
}

/// Counts by the holders' own clocks. Holders whose lock an operator broke do not count, because
/// their tokens protect the resource from them.
fn is_alone(world: &World, state: &State) -> bool {
    let (mut readers, mut writers) = (0, 0);
    for (number, process) in state.processes.iter().enumerate() {
        let inputs = world.inputs(number);
        for claim in 0..process.claims.len() {
            if state.server.truth.broken.contains(&claim_id(number, claim)) {
                continue;
            }
            match process.believes(claim, &inputs) {
                Some(LockMode::Read) => readers += 1,
                Some(LockMode::Write) => writers += 1,
                None => {}
            }
        }
    }
    writers == 0 || writers == 1 && readers == 0
}
