//! The guarantees of watches, as pure functions of the writes, the delivered updates and the final
//! content of the bucket. Each can fail: the tests below break a good run in every way that the
//! functions check.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::faults::history::{History, Key, Kind, Outcome, Write};
use crate::faults::log::{Content, Event, Form, Log, Sight};

/// The newest entry of each key in the bucket, tombstones included.
pub(crate) type Bucket = BTreeMap<Key, Sight>;

/// A violated guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Name of the watch.
    pub(crate) watch: Option<String>,
    pub(crate) key: Option<Key>,
    pub(crate) at: Option<Duration>,
    pub(crate) what: String,
}

impl Violation {
    /// Returns a violation that concerns no watch and no key.
    pub(crate) fn general(what: String) -> Self {
        Self { watch: None, key: None, at: None, what }
    }

    /// Returns a violation of a watch.
    pub(crate) fn of(log: &Log, what: String) -> Self {
        Self { watch: Some(log.name.clone()), ..Self::general(what) }
    }

    fn of_both(log: &Log, key: &Key, what: String) -> Self {
        Self { key: Some(Arc::clone(key)), ..Self::of(log, what) }
    }

    fn at(log: &Log, key: &Key, at: Duration, what: String) -> Self {
        Self { at: Some(at), ..Self::of_both(log, key, what) }
    }

    /// Returns a violation of a key, whatever watches it.
    pub(crate) fn of_key(key: &Key, what: String) -> Self {
        Self { key: Some(Arc::clone(key)), ..Self::general(what) }
    }
}

/// Checks everything after the end of a run.
pub(crate) fn all(history: &History, bucket: &Bucket, logs: &[Log]) -> Vec<Violation> {
    let mut found = Vec::new();
    let acknowledged = Acknowledged::new(history);
    for log in logs {
        found.extend(trouble(log));
        found.extend(order(log));
        found.extend(state(history, &acknowledged, log));
        found.extend(settled(history, bucket, log));
    }
    let sights = logs.iter().flat_map(|log| &log.events).filter_map(|(_, event)| match event {
        Event::Sight(sight) => Some(sight),
        _ => None,
    });
    let (landed, wrong) = genuine(history, sights.chain(bucket.values()));
    found.extend(wrong);
    found.extend(reached(history, bucket));
    found.extend(counted(history, bucket));
    found.extend(in_time(history, &landed));
    found
}

/// Checks that a watch does not end, and that its own statements are true.
fn trouble(log: &Log) -> Option<Violation> {
    Some(Violation::of(log, log.trouble.clone()?))
}

/// Checks that the versions of each key strictly grow, that nothing arrives twice, and that nothing
/// is from outside the scope.
pub(crate) fn order(log: &Log) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut last: HashMap<Key, u64> =
        log.inherited.iter().map(|(key, version)| (key.clone(), *version)).collect();
    for (at, event) in &log.events {
        let sight = match event {
            Event::Sight(sight) => sight,
            // Another watch, which delivers the whole state once more.
            Event::Afresh => {
                last.clear();
                continue;
            }
            // Between two of these a live value may have come and gone.
            Event::Gone(_) | Event::Resumed | Event::CaughtUp => continue,
        };
        let Sight { key, version, .. } = sight;
        if !log.scope.matches(key) {
            found.push(Violation::at(log, key, *at, "it arrives and is not in scope".to_owned()));
        }
        match last.insert(Arc::clone(key), *version) {
            Some(before) if *version < before => {
                let what = format!("it goes back from version {before} to {version}");
                found.push(Violation::at(log, key, *at, what));
            }
            Some(before) if *version == before => {
                found.push(Violation::at(
                    log,
                    key,
                    *at,
                    format!("version {version} arrives twice"),
                ));
            }
            _ => {}
        }
    }
    found
}

/// The newest version of each key that was acknowledged up to a moment.
struct Acknowledged<'h>(BTreeMap<&'h Key, Vec<(Duration, u64)>>);

impl<'h> Acknowledged<'h> {
    fn new(history: &'h History) -> Self {
        let mut keys: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for write in &history.writes {
            if let Outcome::Acknowledged(version) = write.outcome {
                keys.entry(&write.key).or_default().push((write.ended, version));
            }
        }
        for versions in keys.values_mut() {
            versions.sort_unstable();
            let mut newest = 0;
            for (_, version) in versions {
                newest = newest.max(*version);
                *version = newest;
            }
        }
        Self(keys)
    }

    fn until(&self, moment: Duration) -> impl Iterator<Item = (&'h Key, u64)> {
        self.0.iter().filter_map(move |(key, versions)| {
            let many = versions.partition_point(|(ended, _)| *ended <= moment);
            Some((*key, versions[many.checked_sub(1)?].1))
        })
    }
}

/// Checks the caught-up marker. It comes once for each beginning, after everything that was in the
/// bucket before: the acknowledged writes, and the deliveries of earlier watches.
fn state(history: &History, acknowledged: &Acknowledged<'_>, log: &Log) -> Vec<Violation> {
    let (Form::Watch, Some(mut began)) = (log.form, log.began) else { return Vec::new() };
    let mut found = Vec::new();
    let mut is_caught_up = false;
    let mut last: HashMap<&Key, u64> = HashMap::new();
    let mut ever: HashMap<&Key, u64> = HashMap::new();
    let mut due: HashMap<&Key, u64> = acknowledged.until(began).collect();
    for (at, event) in &log.events {
        match event {
            Event::Sight(Sight { key, version, .. }) => {
                last.insert(key, *version);
                let most = ever.entry(key).or_default();
                *most = version.max(most).to_owned();
            }
            Event::Resumed | Event::Afresh => {
                (began, is_caught_up) = (*at, false);
                due = acknowledged.until(began).collect();
                for (key, version) in &ever {
                    let most = due.entry(key).or_default();
                    *most = version.max(most).to_owned();
                }
                if *event == Event::Afresh {
                    last.clear();
                }
            }
            Event::CaughtUp if is_caught_up => {
                let what = "it is caught up for a second time".to_owned();
                found.push(Violation { at: Some(*at), ..Violation::of(log, what) });
            }
            Event::CaughtUp => {
                is_caught_up = true;
                let due = due.iter().filter(|(key, _)| log.scope.matches(key));
                for (key, version) in due {
                    let is_right = match last.get(key) {
                        Some(last) => last >= version,
                        // A state may leave out tombstones.
                        None => history.of(key).any(|(_, write)| {
                            let is_mortal = write.kind.is_deletion() || write.kind == Kind::Lease;
                            is_mortal && write.outcome != Outcome::Refused && write.began <= *at
                        }),
                    };
                    if !is_right {
                        let last = last.get(key);
                        let what = format!(
                            "it is caught up with version {last:?}; when it began, at {began:.3?}, there was version {version}"
                        );
                        found.push(Violation::at(log, key, *at, what));
                    }
                }
            }
            Event::Gone(_) => {}
        }
    }
    found
}

/// Checks that the last update of each key arrives: each key is as in the bucket, deletions and
/// expiries included, and there is nothing else.
pub(crate) fn settled(history: &History, bucket: &Bucket, log: &Log) -> Vec<Violation> {
    let mut found = Vec::new();
    let keys: BTreeSet<_> =
        bucket.keys().chain(log.keys()).filter(|key| log.scope.matches(key)).collect();
    for key in keys {
        let newest = bucket.get(key);
        let last = log.last(key);
        let is_right = match (newest, last) {
            (Some(newest), Some(Some(last)))
                if log.form == Form::Watch || newest.content.is_value() =>
            {
                last == newest
            }
            // A live value that is none has no version.
            (newest, None | Some(None)) if log.form == Form::Live => {
                newest.is_none_or(|newest| !newest.content.is_value())
            }
            (Some(newest), None) => may_predate(history, newest, log),
            (None, None) => true,
            _ => false,
        };
        if !is_right {
            let (newest, last) = (shown(newest), shown(last.flatten()));
            found.push(Violation::of_both(
                log,
                key,
                format!("the last seen is {last}, the bucket has {newest}"),
            ));
        }
    }
    if log.form == Form::Watch && !log.is_caught_up {
        found.push(Violation::of(log, "it has never caught up".to_owned()));
    }
    found
}

/// Returns true if a key may have been gone before the watch began, because a state may leave out
/// existing tombstones.
fn may_predate(history: &History, newest: &Sight, log: &Log) -> bool {
    let began = |event: &Event| *event == Event::Afresh;
    let last_began =
        log.events.iter().rev().find(|(_, event)| began(event)).map(|(at, _)| *at).or(log.began);
    let causes = |write: &Write| match (newest.content, write.outcome) {
        (Content::Value(_), _) | (_, Outcome::Refused) => false,
        (Content::Expired, _) => write.kind == Kind::Lease,
        (_, Outcome::Acknowledged(version)) => version == newest.version,
        (_, Outcome::Unknown) => write.kind.is_deletion(),
    };
    history.of(&newest.key).any(|(_, write)| causes(write) && Some(write.began) <= last_began)
}

fn shown(sight: Option<&Sight>) -> String {
    sight.map_or_else(
        || "nothing".to_owned(),
        |sight| format!("{:?} at version {}", sight.content, sight.version),
    )
}

/// Checks that every update comes from a write that took effect, once, and with the reported
/// version. Returns the version of each write, as far as it is known.
fn genuine<'s>(
    history: &History,
    sights: impl Iterator<Item = &'s Sight>,
) -> (HashMap<usize, u64>, Vec<Violation>) {
    let mut found = Vec::new();
    let mut landed: HashMap<usize, u64> = HashMap::new();
    let mut acknowledged: HashMap<u64, usize> = HashMap::new();
    for (number, write) in history.writes.iter().enumerate() {
        let Outcome::Acknowledged(version) = write.outcome else { continue };
        landed.insert(number, version);
        if let Some(other) = acknowledged.insert(version, number) {
            let what = format!(
                "writes {other} and {number} were both acknowledged with version {version}"
            );
            found.push(Violation::of_key(&write.key, what));
        }
    }
    let mut seen: HashMap<u64, &Sight> = HashMap::new();
    // Deletions that took effect without an acknowledgement.
    let mut unclaimed: HashMap<(Key, bool), u64> = HashMap::new();
    for sight in sights {
        let Sight { key, version, content } = sight;
        if let Some(before) = seen.get(version) {
            if *before != sight {
                let what = format!(
                    "version {version} is {:?} of {} and {content:?} of {key}",
                    before.content, before.key
                );
                found.push(Violation::of_key(key, what));
            }
            continue;
        }
        let owner = acknowledged.get(version).map(|number| (*number, &history.writes[*number]));
        let wrong = match *content {
            Content::Value(number) => match owner {
                Some((other, write)) if other != number => Some(format!(
                    "version {version} is of write {number}, but that of write {other}, {write:?}"
                )),
                _ => value(history, &mut landed, sight, number),
            },
            Content::Deleted | Content::Purged => {
                let kind = if *content == Content::Deleted { Kind::Delete } else { Kind::Purge };
                match owner {
                    Some((_, write)) if write.kind == kind && write.key == *key => None,
                    Some((number, write)) => Some(format!(
                        "version {version} is {content:?}, but that of write {number}, {write:?}"
                    )),
                    None => {
                        *unclaimed.entry((Arc::clone(key), kind == Kind::Delete)).or_default() += 1;
                        None
                    }
                }
            }
            Content::Expired => {
                let leased = history.of(key).any(|(_, write)| {
                    write.kind == Kind::Lease && write.outcome != Outcome::Refused
                });
                match owner {
                    Some((number, write)) => Some(format!(
                        "version {version} is an expiry, but that of write {number}, {write:?}"
                    )),
                    None if !leased => {
                        Some(format!("it expires at version {version} and had no time to live"))
                    }
                    None => None,
                }
            }
        };
        found.extend(wrong.map(|what| Violation::of_key(key, what)));
        seen.insert(*version, sight);
    }
    for ((key, is_delete), many) in unclaimed {
        let kind = if is_delete { Kind::Delete } else { Kind::Purge };
        let possible = history
            .of(&key)
            .filter(|(_, write)| write.kind == kind && write.outcome == Outcome::Unknown);
        let possible = possible.count() as u64;
        if many > possible {
            let what = format!(
                "{many} versions are {kind:?} that nobody was told of, and {possible} may have happened"
            );
            found.push(Violation::of_key(&key, what));
        }
    }
    (landed, found)
}

/// Returns the fault of a value that was seen, if any.
fn value(
    history: &History,
    landed: &mut HashMap<usize, u64>,
    sight: &Sight,
    number: usize,
) -> Option<String> {
    let Sight { key, version, .. } = sight;
    let Some(write) = history.writes.get(number) else {
        return Some(format!("version {version} is of write {number}, which there is not"));
    };
    if write.key != *key || write.kind.is_deletion() {
        return Some(format!("version {version} is of write {number}, which is {write:?}"));
    }
    if write.outcome == Outcome::Refused {
        return Some(format!(
            "write {number} was refused, and took effect at version {version}: {write:?}"
        ));
    }
    match landed.insert(number, *version) {
        Some(before) if before != *version => Some(format!(
            "write {number} took effect at version {before} and at {version}: {write:?}"
        )),
        _ => None,
    }
}

/// Checks that the bucket is not behind the last acknowledged state.
fn reached(history: &History, bucket: &Bucket) -> Vec<Violation> {
    let mut newest: BTreeMap<&Key, (u64, usize)> = BTreeMap::new();
    for (number, write) in history.writes.iter().enumerate() {
        if let Outcome::Acknowledged(version) = write.outcome {
            let known = newest.entry(&write.key).or_default();
            *known = (*known).max((version, number));
        }
    }
    let behind = newest.into_iter().filter_map(|(key, (version, number))| {
        let found = bucket.get(key);
        let is_behind = found.is_none_or(|found| found.version < version);
        is_behind.then(|| {
            let found = shown(found);
            let what = format!(
                "write {number} was acknowledged with version {version}, the bucket has {found}"
            );
            Violation::of_key(key, what)
        })
    });
    behind.collect()
}

/// Group of the counters: each write of one adds one to its value, by compare-and-swap.
const COUNTERS: &str = "count.";

/// Checks that no acknowledged increment of a counter is lost, and that none is counted that was
/// not made.
fn counted(history: &History, bucket: &Bucket) -> Vec<Violation> {
    let mut found = Vec::new();
    let keys: BTreeSet<_> = history
        .writes
        .iter()
        .map(|write| &write.key)
        .filter(|key| key.starts_with(COUNTERS))
        .collect();
    for key in keys {
        // The count of each acknowledged write, by version.
        let mut acknowledged = BTreeMap::new();
        let mut possible = HashSet::new();
        for (number, write) in history.of(key) {
            match (write.kind, write.outcome) {
                (Kind::Put { count }, Outcome::Acknowledged(version)) => {
                    acknowledged.insert(version, (count, number));
                }
                (Kind::Put { count }, Outcome::Unknown) => {
                    possible.insert(count);
                }
                _ => {}
            }
        }
        let mut before: Option<(u64, usize)> = None;
        for &(count, number) in acknowledged.values() {
            if let Some((last, other)) = before.filter(|(last, _)| *last >= count) {
                let what = format!(
                    "writes {other} and {number} were acknowledged in this order and counted to {last} and {count}: one is lost"
                );
                found.push(Violation::of_key(key, what));
            }
            before = Some((count, number));
        }
        let end = match bucket.get(key).map(|newest| newest.content) {
            Some(Content::Value(number)) => {
                match history.writes.get(number).map(|write| write.kind) {
                    Some(Kind::Put { count }) => count,
                    _ => 0,
                }
            }
            _ => 0,
        };
        let made: HashSet<_> = acknowledged.values().map(|(count, _)| *count).collect();
        if let Some(beyond) = made.iter().find(|count| **count > end) {
            found.push(Violation::of_key(
                key,
                format!("it was acknowledged to count to {beyond}, and is {end}"),
            ));
        }
        let unexplained: Vec<_> =
            (1..=end).filter(|count| !made.contains(count) && !possible.contains(count)).collect();
        if !unexplained.is_empty() {
            found.push(Violation::of_key(
                key,
                format!("it is {end}, and nobody can have counted to {unexplained:?}"),
            ));
        }
    }
    found
}

/// Checks that a write that was acknowledged before another began has a lower version.
fn in_time(history: &History, landed: &HashMap<usize, u64>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut by_key: BTreeMap<&Key, Vec<(usize, &Write)>> = BTreeMap::new();
    for (number, write) in history.writes.iter().enumerate() {
        by_key.entry(&write.key).or_default().push((number, write));
    }
    for (key, writes) in by_key {
        let mut ended: Vec<(Duration, u64, usize)> = writes
            .iter()
            .filter_map(|(number, write)| match write.outcome {
                Outcome::Acknowledged(version) => Some((write.ended, version, *number)),
                _ => None,
            })
            .collect();
        ended.sort_unstable();
        let mut began: Vec<_> =
            writes.iter().map(|(number, write)| (write.began, *number)).collect();
        began.sort_unstable();
        let mut ended = ended.into_iter().peekable();
        let mut newest: Option<(u64, usize)> = None;
        for (moment, number) in began {
            while let Some((_, version, other)) = ended.next_if(|(end, ..)| *end < moment) {
                newest = newest.max(Some((version, other)));
            }
            let Some(version) = landed.get(&number) else { continue };
            if let Some((before, other)) = newest.filter(|(before, _)| before >= version) {
                let what = format!(
                    "write {other} had version {before} before write {number} began, which has {version}"
                );
                found.push(Violation::of_key(key, what));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
