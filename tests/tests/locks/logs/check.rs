//! The guarantees for all logs together. The checker does not depend on how locks are implemented.

use std::collections::{BTreeMap, HashMap};

use crate::logs::holds::{Grant, History, Hold, Outcome, Violation, Write};
use crate::logs::line::Mode;

#[cfg(test)]
mod tests;

/// The final value under the key that a resource guards, with its writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Last {
    pub(crate) token: u64,
    pub(crate) process: u64,
    pub(crate) worker: u64,
    pub(crate) number: u64,
}

/// Returns all violations. `last` is by resource, without an entry if nothing was ever written.
pub(crate) fn all(history: &History, last: &BTreeMap<String, Last>) -> Vec<Violation> {
    let mut found = history.violations.clone();
    let mut resources: Vec<_> =
        history.grants.iter().map(|grant| grant.resource.as_str()).collect();
    resources.sort_unstable();
    resources.dedup();
    for resource in resources {
        let grants: Vec<_> =
            history.grants.iter().filter(|grant| grant.resource == resource).collect();
        found.extend(repeated(&grants));
        let mut holds: Vec<_> =
            history.holds.iter().filter(|hold| hold.resource == resource).collect();
        holds.sort_by_key(|hold| hold.from);
        found.extend(overlaps(&holds));
        found.extend(tokens_that_go_back(grants, &holds));
        let writes: Vec<_> =
            history.writes.iter().filter(|write| write.resource == resource).collect();
        found.extend(stale(&writes));
        found.extend(rejected_wrongly(&writes));
        found.extend(last_is_wrong(resource, &writes, last.get(resource)));
    }
    found.sort_by_key(|violation| violation.at);
    found
}

/// Checks that no two grants have the same token.
fn repeated(grants: &[&Grant]) -> Vec<Violation> {
    let mut seen: HashMap<u64, &Grant> = HashMap::new();
    let mut found = Vec::new();
    for grant in grants {
        if let Some(other) = seen.insert(grant.token, grant) {
            found.push(Violation {
                what: format!(
                    "token {} of {} was given to process {} and to process {}",
                    grant.token, grant.resource, other.process, grant.process
                ),
                at: grant.at,
                processes: vec![other.process, grant.process],
            });
        }
    }
    found
}

/// Checks that a writer is alone. The holds are in the order in which they began.
fn overlaps(holds: &[&Hold]) -> Vec<Violation> {
    let mut found = Vec::new();
    // The earlier hold that ended last: of all holds, and of writers.
    let (mut anybody, mut writer): (Option<&Hold>, Option<&Hold>) = (None, None);
    for hold in holds {
        let in_the_way = if hold.mode == Mode::Write { anybody } else { writer };
        if let Some(other) = in_the_way.filter(|other| other.until >= hold.from) {
            found.push(between(other, hold, "hold it at a time"));
        }
        let later = |one: Option<&'_ Hold>| one.is_none_or(|one| one.until < hold.until);
        if later(anybody) {
            anybody = Some(hold);
        }
        if hold.mode == Mode::Write && later(writer) {
            writer = Some(hold);
        }
    }
    found
}

/// Checks that a holder has a larger token than all claims that were granted before, unless both
/// read.
fn tokens_that_go_back(mut grants: Vec<&Grant>, holds: &[&Hold]) -> Vec<Violation> {
    grants.sort_by_key(|grant| grant.at);
    let mut grants = grants.into_iter().peekable();
    let mut found = Vec::new();
    // The earlier grant with the largest token: of all, and of writers.
    let (mut anybody, mut writer): (Option<&Grant>, Option<&Grant>) = (None, None);
    for hold in holds {
        while let Some(grant) = grants.next_if(|grant| grant.at < hold.from) {
            let larger = |one: Option<&'_ Grant>| one.is_none_or(|one| one.token < grant.token);
            if larger(anybody) {
                anybody = Some(grant);
            }
            if grant.mode == Mode::Write && larger(writer) {
                writer = Some(grant);
            }
        }
        let before = if hold.mode == Mode::Write { anybody } else { writer };
        // An equal token is its own, from before a downgrade; or it was reported already.
        if let Some(other) = before.filter(|other| other.token > hold.token) {
            let Hold { resource, process, token, from, .. } = hold;
            found.push(Violation {
                what: format!(
                    "{resource}: tokens go back, from {} of process {} at {} to {token} of process {process} at {from}",
                    other.token, other.process, other.at
                ),
                at: *from,
                processes: vec![other.process, *process],
            });
        }
    }
    found
}

fn between(one: &Hold, other: &Hold, what: &str) -> Violation {
    let told = |hold: &Hold| {
        let Hold { process, worker, mode, token, from, until, .. } = hold;
        format!(
            "process {process}, worker {worker} ({mode:?}, token {token}, from {from} to {until})"
        )
    };
    Violation {
        what: format!("{}: {} and {} {what}", one.resource, told(one), told(other)),
        at: other.from,
        processes: vec![one.process, other.process],
    }
}

/// Checks that no write was accepted after one with a newer token was, by the order of versions,
/// and by the order of time.
fn stale(writes: &[&Write]) -> Vec<Violation> {
    let mut accepted: Vec<_> = writes
        .iter()
        .filter_map(|write| match write.outcome {
            Outcome::Accepted(version) => Some((version, *write)),
            _ => None,
        })
        .collect();
    accepted.sort_by_key(|(version, _)| *version);
    let mut found = after_newer(&accepted);
    accepted.sort_by_key(|(_, write)| write.ended);
    let mut by_time: Vec<_> = accepted.clone();
    by_time.sort_by_key(|(_, write)| write.began);
    let (mut newest, mut ended): (Option<&Write>, usize) = (None, 0);
    for (_, write) in by_time {
        while accepted.get(ended).is_some_and(|(_, other)| other.ended < write.began) {
            let other = accepted[ended].1;
            if newest.is_none_or(|newest| newest.token < other.token) {
                newest = Some(other);
            }
            ended += 1;
        }
        if let Some(newest) = newest.filter(|newest| newest.token > write.token) {
            found.push(too_late(newest, write));
        }
    }
    found.sort_by(|one, other| one.what.cmp(&other.what));
    found.dedup();
    found
}

fn after_newer(ordered: &[(u64, &Write)]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut newest: Option<&Write> = None;
    for (_, write) in ordered {
        match newest {
            Some(newest) if newest.token > write.token => found.push(too_late(newest, write)),
            _ => newest = Some(write),
        }
    }
    found
}

fn too_late(newest: &Write, write: &Write) -> Violation {
    Violation {
        what: format!(
            "a write to what {} guards was accepted with token {} of process {}, after one with token {} of process {}",
            write.resource, write.token, write.process, newest.token, newest.process
        ),
        at: write.ended,
        processes: vec![newest.process, write.process],
    }
}

/// Checks that a rejected writer was overtaken: a larger token was used for a write, and the
/// rejected one does not hold the lock any more.
fn rejected_wrongly(writes: &[&Write]) -> Vec<Violation> {
    let mut first: HashMap<u64, u64> = HashMap::new();
    for write in writes {
        let began = first.entry(write.token).or_insert(write.began);
        *began = write.began.min(*began);
    }
    let mut found = Vec::new();
    for write in writes {
        let Outcome::Rejected(newest) = write.outcome else { continue };
        let was_written = first.get(&newest).is_some_and(|began| *began < write.ended);
        let still_held = write.held_until > write.ended;
        let why = match (newest > write.token, was_written, still_held) {
            (false, _, _) => "which is not newer",
            (true, false, _) => "with which no process has written",
            (true, true, true) => "while it holds the lock",
            (true, true, false) => continue,
        };
        let Write { resource, token, process, .. } = write;
        let what = format!(
            "a write under {resource} with token {token} of process {process} was rejected for token {newest}, {why}"
        );
        found.push(Violation { what, at: write.ended, processes: vec![*process] });
    }
    found
}

/// Checks that the final value is the last accepted one, or one with an unknown outcome.
fn last_is_wrong(resource: &str, writes: &[&Write], last: Option<&Last>) -> Option<Violation> {
    let accepted = writes.iter().filter_map(|write| match write.outcome {
        Outcome::Accepted(version) => Some((version, *write)),
        _ => None,
    });
    let newest = accepted.max_by_key(|(version, _)| *version).map(|(_, write)| write);
    let wrong = |why: String| {
        let at = newest.map_or(u64::MAX, |write| write.ended);
        let processes = newest.iter().map(|write| write.process).collect();
        let what = format!(
            "the last value under {resource} is {last:?}, {why}; the last accepted is {newest:?}"
        );
        Some(Violation { what, at, processes })
    };
    let Some(last) = last else {
        return newest.and_then(|_| wrong("which is nothing".to_owned()));
    };
    let is_it = |write: &&&Write| {
        (write.process, write.worker, write.number) == (last.process, last.worker, last.number)
    };
    let Some(write) = writes.iter().find(is_it) else {
        return wrong("which no process wrote".to_owned());
    };
    let is_newest = newest.is_some_and(|newest| std::ptr::eq(newest, *write));
    match write.outcome {
        _ if write.token != last.token => wrong("with another token".to_owned()),
        Outcome::Accepted(_) if is_newest => None,
        // It may have come last.
        Outcome::Unknown if newest.is_none_or(|newest| newest.token <= write.token) => None,
        outcome => wrong(format!("whose outcome was {outcome:?}")),
    }
}
