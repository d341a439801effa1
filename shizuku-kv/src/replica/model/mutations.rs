//! Wrong decisions, and the guarantee that each of them breaks.

use super::decisions::{Decisions, PRODUCTION, RunRules};
use super::world::{COMES_TO_REST, COVERS, DELETION_FIRST, GIVES_UP, IN_ORDER, RIGHT};
use super::{CRASHES, MADE_AGAIN, SCOPES, STOPS, Scenario, TROUBLE, VANISHES};
use crate::exploration;
use crate::replica::phase::{self, Next, Phase};
use crate::store::VersionToken;

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

fn in_driver(
    name: &'static str,
    scenario: Scenario,
    breaks: &'static str,
    mutate: impl FnOnce(&mut RunRules),
) -> Mutation {
    mutation(name, scenario, breaks, |decisions| mutate(&mut decisions.driver))
}

/// Returns all mutations. They concern the held state at the start, arriving entries, the end of
/// the initial state, comparisons, the end of the watch, and the driver.
pub(super) fn all() -> Vec<Mutation> {
    [begins(), entries(), completions(), comparisons(), ends(), drivers()]
        .into_iter()
        .flatten()
        .collect()
}

fn begins() -> Vec<Mutation> {
    vec![
        mutation("held keys are ignored at the start", SCOPES, COVERS, |it| {
            it.begin = |checkpoint, scope, _| phase::begin(checkpoint, scope, false);
        }),
        mutation("the checkpoint of another scope is used", SCOPES, COVERS, |it| {
            it.begin = |checkpoint, _, holds| match checkpoint {
                Some(checkpoint) => (Phase::Following, Some(checkpoint.cursor())),
                None => (phase::without_checkpoint(holds), None),
            };
        }),
        mutation("held keys are ignored after the cursor has expired", CRASHES, COVERS, |it| {
            it.go_on = |next, phase, kept, _| phase::go_on(next, phase, kept, false);
        }),
        mutation("the phase stays following after the cursor has expired", CRASHES, COVERS, |it| {
            it.go_on = |next, phase, kept, holds| {
                let (_, from) = phase::go_on(next, phase, kept, holds);
                (Phase::Following, from)
            };
        }),
    ]
}

fn entries() -> Vec<Mutation> {
    vec![
        mutation("a version is known whatever its time", MADE_AGAIN, COVERS, |it| {
            it.is_news = |phase, entry, held| {
                let version = held.map(|held| held.version);
                phase != Phase::Resyncing || entry.is_tombstone() || version != Some(entry.version)
            };
        }),
        mutation("a smaller version is skipped", MADE_AGAIN, COVERS, |it| {
            it.is_news = |phase, entry, held| {
                let number = |version: VersionToken| version.as_u64();
                let is_smaller =
                    held.is_some_and(|held| number(entry.version) < number(held.version));
                phase.is_news(entry, held) && !is_smaller
            };
        }),
        mutation("a resync skips deletions", CRASHES, COVERS, |it| {
            it.is_news = |phase, entry, held| {
                phase.is_news(entry, held) && !(phase == Phase::Resyncing && entry.is_tombstone())
            };
        }),
        mutation("deletions of keys that are not held are skipped", STOPS, COVERS, |it| {
            it.is_news = |phase, entry, held| {
                phase.is_news(entry, held)
                    && !(phase == Phase::Resyncing && entry.is_tombstone() && held.is_none())
            };
        }),
        mutation("a resync regards every held key as known", CRASHES, COVERS, |it| {
            it.is_news = |phase, entry, held| {
                phase != Phase::Resyncing || held.is_none() || entry.is_tombstone()
            };
        }),
        mutation("known versions are applied again", CRASHES, IN_ORDER, |it| {
            it.compares = |_| false
        }),
    ]
}

fn completions() -> Vec<Mutation> {
    vec![
        mutation("nothing is dropped at the end of a resync", CRASHES, COVERS, |it| {
            it.drops_the_rest = |_| false;
        }),
        mutation("nothing has ever vanished", CRASHES, COVERS, |it| it.has_vanished = |_| false),
        mutation("delivered keys have vanished", CRASHES, COVERS, |it| {
            it.has_vanished = |has_come| has_come
        }),
        mutation("the cursors of a resync are committed", CRASHES, COVERS, |it| {
            it.keeps_cursor = |_, _| true
        }),
        mutation("only the cursor of the marker is committed", CRASHES, RIGHT, |it| {
            it.keeps_cursor = |_, is_complete| is_complete;
        }),
        mutation("no cursor is committed", CRASHES, RIGHT, |it| it.keeps_cursor = |_, _| false),
        mutation("a resync never ends", CRASHES, RIGHT, |it| it.completed = |phase| phase),
    ]
}

fn comparisons() -> Vec<Mutation> {
    vec![
        mutation("figures always agree", VANISHES, RIGHT, |it| it.agrees = |_, _, _| true),
        mutation("figures agree although the store has fewer keys", VANISHES, RIGHT, |it| {
            it.agrees = |held, tombstones, keys| tombstones.is_some_and(|more| held + more >= keys);
        }),
        mutation("tombstones are not counted", VANISHES, RIGHT, |it| {
            it.agrees = |held, _, keys| held <= keys;
        }),
        in_driver("a run resumes from a checkpoint without a comparison", VANISHES, RIGHT, |it| {
            it.compares_at_start = false;
        }),
        in_driver("a checkpoint forgets the tombstones before it", VANISHES, RIGHT, |it| {
            it.keeps_tombstones = false;
        }),
    ]
}

fn ends() -> Vec<Mutation> {
    vec![
        mutation("a cursor that has expired is tried again", CRASHES, GIVES_UP, |it| {
            it.after = |error| match phase::after(error) {
                Next::Resync => Next::Again,
                next => next,
            };
        }),
        mutation("a resync resumes from the cursor before it", TROUBLE, COVERS, |it| {
            it.go_on = |next, phase, kept, holds| match (next, kept) {
                (Next::Again, Some(cursor)) => (phase, Some(cursor)),
                _ => phase::go_on(next, phase, kept, holds),
            };
        }),
    ]
}

fn drivers() -> Vec<Mutation> {
    vec![
        in_driver("a batch is committed before it is applied", CRASHES, COVERS, |it| {
            it.applies_first = false
        }),
        in_driver("vanished keys are dropped after later values", CRASHES, DELETION_FIRST, |it| {
            it.drops_first = false;
        }),
        in_driver("keys delivered before count for the next resync", TROUBLE, COVERS, |it| {
            it.forgets_what_came = false;
        }),
        in_driver("known versions do not count as delivered", CRASHES, COVERS, |it| {
            it.counts_what_is_known = false
        }),
        in_driver("collected updates stay for the next watch", TROUBLE, IN_ORDER, |it| {
            it.ends_batch_with_watch = false;
        }),
        in_driver("the marker is forgotten", CRASHES, COMES_TO_REST, |it| {
            it.applies_marker = false
        }),
    ]
}
