//! Wrong decisions, and the promise that each of them breaks. The function that changes the record
//! is not copied: the mutation acts before or after it.

use std::time::Duration;

use super::decisions::{Decisions, PRODUCTION, TaskRules};
use super::promises::{
    ALONE, EVICTED, FENCED, IN_ORDER, NO_LOOP, NO_TRACE, NOTIFIED, PROMPT, SERVED, SOUND, TOKENS,
};
use super::{
    ABANDONED, BROKEN, CRASHED, DRIFT, EDGE, ESTATE, FENCES, HOPES, LATE, LINE, PAUSED, REQUESTED,
    REUSED, Scenario, TRIES, UNHEARD,
};
use crate::exploration;
use crate::rw_lock::lease::{self, EntryMeaning};
use crate::rw_lock::record::{Claim, Grant, LockMode, LockRecord};
use crate::rw_lock::transition::{Change, Outcome};
use crate::store::FencingToken;

type Mutation = exploration::Mutation<Decisions, Scenario>;

fn mutation(
    name: &'static str,
    scenario: Scenario,
    breaks: &'static str,
    mutate: impl FnOnce(&mut Decisions),
) -> Mutation {
    let mut decisions = PRODUCTION;
    mutate(&mut decisions);
    Mutation { name, decisions, scenario, breaks }
}

fn in_apply(
    name: &'static str,
    scenario: Scenario,
    breaks: &'static str,
    apply: fn(&mut LockRecord, &Change) -> Outcome,
) -> Mutation {
    mutation(name, scenario, breaks, |it| it.apply = apply)
}

fn in_driver(
    name: &'static str,
    scenario: Scenario,
    breaks: &'static str,
    mutate: impl FnOnce(&mut TaskRules),
) -> Mutation {
    mutation(name, scenario, breaks, |it| mutate(&mut it.driver))
}

/// Returns all mutations: of claims, departures, tokens, times, unknown outcomes, and task rules.
pub(super) fn all() -> Vec<Mutation> {
    [claims(), departures(), tokens(), times(), unknowns(), drivers(), requests()]
        .into_iter()
        .flatten()
        .collect()
}

/// Grants a claim, whether or not the holders leave room.
fn grant(record: &mut LockRecord, claim: &Claim) -> Outcome {
    record.fence += 1;
    let token = FencingToken::from_u64(record.fence);
    record.queue.retain(|waiting| waiting.id != claim.id);
    record.holders.push(Grant { claim: claim.clone(), token, since: None });
    Outcome::Granted(token)
}

fn has_readers_only(record: &LockRecord) -> bool {
    record.holders.iter().all(|grant| grant.claim.mode == LockMode::Read)
}

fn claims() -> Vec<Mutation> {
    vec![
        in_apply(
            "a reader is granted before a waiting writer",
            LINE,
            IN_ORDER,
            |record, change| match change {
                Change::Claim { claim, .. }
                    if claim.mode == LockMode::Read
                        && has_readers_only(record)
                        && record.claims().all(|other| other.id != claim.id) =>
                {
                    grant(record, claim)
                }
                _ => record.apply(change),
            },
        ),
        in_apply("a new claim queues before earlier ones", LINE, IN_ORDER, |record, change| {
            let waiting = record.queue.len();
            let outcome = record.apply(change);
            if record.queue.len() > waiting {
                record.queue.rotate_right(1);
            }
            outcome
        }),
        in_apply(
            "a granted claim is granted again",
            REQUESTED,
            SOUND,
            |record, change| match change {
                Change::Claim { claim, .. } if record.grant(claim.id).is_some() => {
                    grant(record, claim)
                }
                _ => record.apply(change),
            },
        ),
        in_apply("a queued claim queues again", UNHEARD, SOUND, |record, change| match change {
            Change::Claim { claim, .. }
                if record.queue.iter().any(|waiting| waiting.id == claim.id) =>
            {
                record.queue.push(claim.clone());
                Outcome::Queued
            }
            _ => record.apply(change),
        }),
        in_apply("a try joins the queue", TRIES, NO_TRACE, |record, change| match change {
            Change::Claim { claim, waits: false } => {
                let waits = record.apply(&Change::Claim { claim: claim.clone(), waits: true });
                if waits == Outcome::Queued { Outcome::Busy } else { waits }
            }
            _ => record.apply(change),
        }),
    ]
}

fn departures() -> Vec<Mutation> {
    vec![
        in_apply("a release grants no waiter", LINE, PROMPT, |record, change| match change {
            Change::Leave(id) => {
                record.holders.retain(|grant| grant.claim.id != *id);
                record.queue.retain(|claim| claim.id != *id);
                Outcome::Done
            }
            _ => record.apply(change),
        }),
        in_apply("a waiter cannot leave", ABANDONED, NO_TRACE, |record, change| match change {
            Change::Leave(id) if record.grant(*id).is_none() => Outcome::NotThere,
            _ => record.apply(change),
        }),
        in_apply("a writer is granted beside readers", LINE, ALONE, |record, change| {
            let outcome = record.apply(change);
            if let (Change::Leave(_), Some(next)) = (change, record.queue.first().cloned())
                && has_readers_only(record)
            {
                grant(record, &next);
            }
            outcome
        }),
        in_apply("a downgrade grants no reader", BROKEN, PROMPT, |record, change| {
            let Change::Downgrade(id) = change else { return record.apply(change) };
            let held = record.holders.iter_mut().find(|grant| grant.claim.id == *id);
            held.into_iter().for_each(|grant| grant.claim.mode = LockMode::Read);
            Outcome::Done
        }),
        in_apply("an eviction leaves waiters of the session", ESTATE, EVICTED, |record, change| {
            let Change::Evict(session) = change else { return record.apply(change) };
            let held =
                record.holders.iter().map(|grant| grant.claim.id).find(|id| id.session == *session);
            held.map_or(Outcome::NotThere, |id| record.apply(&Change::Leave(id)))
        }),
        in_apply("an eviction leaves holders of the session", CRASHED, SERVED, |record, change| {
            match change {
                Change::Evict(_) => Outcome::NotThere,
                _ => record.apply(change),
            }
        }),
    ]
}

fn tokens() -> Vec<Mutation> {
    vec![
        in_apply("a grant keeps the last token", LINE, TOKENS, keep_token),
        in_apply(
            "a grant keeps the last token, and its holder writes",
            FENCES,
            FENCED,
            |record, change| {
                let fence = record.fence;
                let outcome = keep_token(record, change);
                // Its writes count as those of the previous holder.
                record.fence = fence.max(1);
                record
                    .holders
                    .iter_mut()
                    .for_each(|grant| grant.token = FencingToken::from_u64(record.fence));
                outcome
            },
        ),
        in_apply("a break keeps the last token", BROKEN, TOKENS, |record, change| match change {
            Change::Break { newest } => {
                // One less than the token that moves the fence.
                let newest = FencingToken::from_u64(newest.as_u64().saturating_sub(1));
                record.holders.clear();
                record.apply(&Change::Break { newest })
            }
            _ => record.apply(change),
        }),
        in_apply("the token of a dead holder is reused", CRASHED, TOKENS, |record, change| {
            match change {
                Change::Evict(session) => {
                    record.fence -= record
                        .holders
                        .iter()
                        .filter(|grant| grant.claim.id.session == *session)
                        .count() as u64;
                    record.apply(change)
                }
                _ => record.apply(change),
            }
        }),
    ]
}

/// Applies the change, and lets all new holders hold under the token of the last grant before.
fn keep_token(record: &mut LockRecord, change: &Change) -> Outcome {
    let before = record.clone();
    let outcome = record.apply(change);
    if before.fence > 0 && !matches!(change, Change::Break { .. }) {
        record.fence = before.fence;
        let token = FencingToken::from_u64(before.fence);
        let is_new = |grant: &&mut Grant| before.grant(grant.claim.id).is_none();
        record.holders.iter_mut().filter(is_new).for_each(|grant| grant.token = token);
    }
    outcome
}

fn times() -> Vec<Mutation> {
    vec![
        mutation("a lease never ends", PAUSED, ALONE, |it| it.holds = |_, _| true),
        mutation("a lease holds at its end", EDGE, ALONE, |it| {
            it.holds = |since, lease| since <= lease
        }),
        mutation("patience is no longer than the lease", DRIFT, ALONE, |it| {
            it.is_silent = |since, lease| since >= lease;
        }),
        mutation("patience is counted in whole seconds", DRIFT, ALONE, |it| {
            it.is_silent =
                |since, lease| since >= Duration::from_secs(lease::patience(lease).as_secs());
        }),
        mutation("no session is ever silent", CRASHED, SERVED, |it| it.is_silent = |_, _| false),
        in_driver("the lease is counted from the acknowledgement", PAUSED, ALONE, |it| {
            it.counts_from_sending = false;
        }),
        in_driver("a rejected renewal counts if an earlier one has landed", DRIFT, ALONE, |it| {
            it.trusts_acknowledgements_only = false;
        }),
        in_driver(
            "silence is counted from the write, by the clock of its writer",
            PAUSED,
            ALONE,
            |it| {
                it.clock_is_ahead = 1;
            },
        ),
        in_driver("a try counts silence by the clock of the store", HOPES, ALONE, |it| {
            it.clock_of_tries_is_ahead = 1;
        }),
        mutation("an entry from before a session counts as its end", REUSED, ALONE, |it| {
            it.meaning = |_, _, is_its_own| {
                if is_its_own { EntryMeaning::Alive } else { EntryMeaning::Ended }
            };
        }),
        in_driver("a session is ended whatever its version", PAUSED, ALONE, |it| {
            it.compares = false
        }),
        in_driver("a silent holder is evicted without ending its session", PAUSED, ALONE, |it| {
            it.ends_session_first = false;
        }),
    ]
}

fn unknowns() -> Vec<Mutation> {
    vec![
        mutation("an unknown outcome counts as a rejection", ABANDONED, NO_TRACE, |it| {
            it.may_land = |_, _| false;
        }),
        in_driver("an abandoned claim is not removed", ABANDONED, NO_TRACE, |it| {
            it.removes_abandoned = false;
        }),
        in_driver("a claim is requested after its own release", ABANDONED, NO_TRACE, |it| {
            it.forgets_abandoned = false;
        }),
    ]
}

fn drivers() -> Vec<Mutation> {
    vec![
        in_driver("a waiter is not notified by its watch", LINE, NOTIFIED, |it| {
            it.reads_watch = false
        }),
        in_driver("a holder stops after its release is acknowledged", LINE, ALONE, |it| {
            it.stops_first = false
        }),
        in_driver("an older version replaces a newer one", TRIES, NO_TRACE, |it| {
            it.keeps_newest = false
        }),
        in_driver("an evicted waiter claims again without a session", LATE, NO_LOOP, |it| {
            it.checks_session_first = false;
        }),
        in_driver("a waiter waits for a grant that was broken unseen", BROKEN, SERVED, |it| {
            it.claims_again = false
        }),
    ]
}

fn requests() -> Vec<Mutation> {
    vec![
        in_driver("a request is applied to any version", REQUESTED, NO_TRACE, |it| {
            it.checks_base = false;
        }),
        in_driver("a request is applied again after a removal", REQUESTED, NO_TRACE, |it| {
            it.restarts_run = false;
        }),
        in_driver("an abandoned request is forgotten", REQUESTED, NO_TRACE, |it| {
            it.rewrites_after_request = false;
        }),
        in_driver("a process waits for its request without a limit", UNHEARD, SERVED, |it| {
            it.loses_patience = false;
        }),
    ]
}
