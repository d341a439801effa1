//! Tests the map and its readers against a model that is too simple to be wrong: a `BTreeMap` of
//! the expected current values.
//!
//! `SHIZUKU_SEED=n` repeats a run; the seed of each is printed.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;

use super::changes::Reader;
use super::snapshot::LiveMapSnapshot;
use super::status::LiveRejection;
use super::table::{Finding, Table, Unseen};
use crate::live::snapshot::LiveSnapshot;
use crate::record::KvReadError;
use crate::store::{Key, KvError, VersionToken};

const KEYS: u8 = 40;
const REMEMBERED: usize = 16;

/// An entry: its version, and the incarnation of its store.
type Entry = (u64, u64);

/// A reader, and the map that it builds from the changes.
struct Observer {
    reader: Reader<u8, Entry>,
    own: BTreeMap<u8, Entry>,
}

/// A snapshot, and the content that it has to keep.
type Kept = (LiveMapSnapshot<u8, Entry>, BTreeMap<u8, Entry>);

struct World {
    rng: Rng,
    table: Table<u8, Entry>,
    model: BTreeMap<u8, Entry>,
    rejected: BTreeMap<Key, Entry>,
    /// The values that were current and have not come again while the store is read again.
    gone: BTreeMap<u8, Entry>,
    /// The version and the incarnation of the store.
    now: Entry,
    observers: Vec<Observer>,
    kept: Vec<Kept>,
}

fn name(key: u8) -> Key {
    Key::new(format!("key.{key}")).unwrap()
}

fn good(key: u8, entry: Entry) -> Finding<u8, Entry> {
    let created = UNIX_EPOCH + Duration::from_secs(entry.1);
    let value = LiveSnapshot::of(entry, VersionToken::from_u64(entry.0), created);
    Finding::Good { key: name(key), own: key, value }
}

fn bad(key: u8, entry: Entry) -> Finding<u8, Entry> {
    // Every fifth key is not a key of the type.
    let own = (!key.is_multiple_of(5)).then_some(key);
    let created = UNIX_EPOCH + Duration::from_secs(entry.1);
    let error = Arc::new(KvReadError::Store(KvError::Closed { operation: "test" }));
    let rejection =
        LiveRejection { key: name(key), version: VersionToken::from_u64(entry.0), error, created };
    Finding::Bad { own, rejection }
}

fn absent(key: u8) -> Finding<u8, Entry> {
    Finding::Absent { key: name(key), own: Some(key) }
}

fn contents(snapshot: &LiveMapSnapshot<u8, Entry>) -> BTreeMap<u8, Entry> {
    snapshot.iter().map(|(key, value)| (*key, *value.value)).collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let table = Table::remembering(REMEMBERED);
        let observer = || Observer { reader: Reader::new(&table), own: BTreeMap::new() };
        let observers = std::iter::repeat_with(observer).take(3).collect();
        Self {
            rng: Rng::with_seed(seed),
            table,
            model: BTreeMap::new(),
            rejected: BTreeMap::new(),
            gone: BTreeMap::new(),
            now: (0, 0),
            observers,
            kept: Vec::new(),
        }
    }

    /// Changes a random key.
    fn change(&mut self, unseen: &mut Option<Unseen<u8, Entry>>) {
        let key = self.rng.u8(..KEYS);
        let is_readable = !key.is_multiple_of(5);
        let finding = match self.rng.u8(..10) {
            0..5 if is_readable => {
                self.now.0 += 1;
                self.model.insert(key, self.now);
                self.rejected.remove(&name(key));
                self.gone.remove(&key);
                good(key, self.now)
            }
            // The same entry again.
            5 => match self.model.get(&key) {
                Some(entry) if !self.rejected.contains_key(&name(key)) => good(key, *entry),
                _ => return,
            },
            6 => {
                self.now.0 += 1;
                self.rejected.insert(name(key), self.now);
                // An entry exists, so the last good value stays.
                if let Some(held) = self.gone.remove(&key) {
                    self.model.insert(key, held);
                }
                bad(key, self.now)
            }
            _ => {
                self.model.remove(&key);
                self.rejected.remove(&name(key));
                self.gone.remove(&key);
                absent(key)
            }
        };
        if let Some(unseen) = unseen {
            unseen.see(&finding);
        }
        self.table.apply(finding);
    }

    /// Reads the store again. Some keys are gone; in a recreated store, all versions differ.
    fn reread(&mut self) {
        let before = self.table.clone();
        let mut unseen = before.unseen();
        let is_new = self.rng.bool();
        let (rng, now) = (&mut self.rng, &mut self.now);
        if is_new {
            *now = (0, now.1 + 1);
        }
        self.rejected.retain(|_, _| rng.bool());
        let rejected = &self.rejected;
        let is_gone = |key: &u8, _: &mut Entry| !rejected.contains_key(&name(*key)) && rng.bool();
        self.gone = self.model.extract_if(.., is_gone).collect();
        for (key, entry) in &mut self.model {
            if self.rejected.contains_key(&name(*key)) {
                continue;
            }
            if is_new {
                now.0 += 1;
                *entry = *now;
            }
            let finding = good(*key, *entry);
            unseen.see(&finding);
            self.table.apply(finding);
        }
        for (key, entry) in &self.rejected {
            let finding = bad(key.trim_start_matches("key.").parse().unwrap(), *entry);
            unseen.see(&finding);
            self.table.apply(finding);
        }
        let mut unseen = Some(unseen);
        for _ in 0..self.rng.u8(..5) {
            self.change(&mut unseen);
        }
        self.gone.clear();
        if self.rng.u8(..4) == 0 {
            // The reading was interrupted; the next one begins with the current values.
            self.table = before;
            self.model = contents(&self.table.entries);
            let rejections = self.table.rejections.iter();
            let entry = |rejection: &LiveRejection| {
                let created = rejection.created.duration_since(UNIX_EPOCH).unwrap().as_secs();
                (rejection.version.as_u64().unwrap(), created)
            };
            self.rejected =
                rejections.map(|(key, rejection)| (key.clone(), entry(rejection))).collect();
            // A new incarnation, so that no later entry has a version of a forgotten one.
            self.now = (0, self.now.1 + 1);
            return;
        }
        self.table.sweep(&unseen.unwrap());
    }

    /// Reads some changes of a reader, or all of them.
    fn read(&mut self, index: usize, most: usize) {
        let observer = &mut self.observers[index];
        for _ in 0..most {
            let Some(change) = observer.reader.next(&self.table) else {
                assert_eq!(observer.own, self.model);
                break;
            };
            let (old, new) = (change.old.map(|old| *old.value), change.new.map(|new| *new.value));
            assert_eq!(old, observer.own.get(&change.key).copied());
            assert_ne!(old, new);
            assert_eq!(new, self.model.get(&change.key).copied());
            match new {
                Some(new) => observer.own.insert(change.key, new),
                None => observer.own.remove(&change.key),
            };
            let bound = REMEMBERED.max(usize::from(KEYS) * 2);
            assert!(observer.reader.due.len() <= bound);
        }
        assert_eq!(contents(&observer.reader.known), observer.own);
    }

    fn check(&self) {
        assert_eq!(contents(&self.table.entries), self.model);
        assert!(self.table.rejections.keys().eq(self.rejected.keys()));
        assert!(self.table.recent() <= REMEMBERED);
        for (snapshot, expected) in &self.kept {
            assert_eq!(contents(snapshot), *expected);
            assert_eq!(snapshot.len(), expected.len());
        }
    }

    fn run(&mut self) {
        for _ in 0..60 {
            match self.rng.u8(..10) {
                0 => self.reread(),
                1 => self.kept.push((self.table.entries.clone(), self.model.clone())),
                // In quick succession, including changes back to the value that the reader knows.
                2..7 => (0..self.rng.usize(..2 * REMEMBERED)).for_each(|_| self.change(&mut None)),
                // One reader keeps up, one does not, and one is away for long.
                7 => self.read(0, usize::MAX),
                8 => self.read(1, 3),
                _ => (0..2).for_each(|index| self.read(index, index + 1)),
            }
            self.check();
        }
        (0..3).for_each(|index| self.read(index, usize::MAX));
    }
}

#[test]
fn readers_receive_exactly_the_changes() {
    let seeds = match std::env::var("SHIZUKU_SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..seed + 1).unwrap(),
        Err(_) => 0..300,
    };
    for seed in seeds {
        println!("SHIZUKU_SEED={seed}");
        World::new(seed).run();
    }
}

/// A key that changes all the time does not block the others.
#[test]
fn hot_key_does_not_delay_changes_of_others() {
    let mut table = Table::remembering(REMEMBERED);
    let mut reader = Reader::new(&table);
    table.apply(good(2, (1, 0)));
    let mut changed = Vec::new();
    for version in 2..6 {
        table.apply(good(1, (version, 0)));
        changed.extend(reader.next(&table).map(|change| change.key));
    }
    assert!(
        changed.contains(&2) && changed.iter().filter(|key| **key == 1).count() > 1,
        "{changed:?}"
    );
}

/// A rejected entry that comes repeatedly is reported once for each version.
#[test]
fn rejection_is_new_once() {
    let mut table = Table::new();
    assert!(table.apply(bad(1, (1, 0))).is_some());
    assert!(table.apply(bad(1, (1, 0))).is_none());
    assert!(table.apply(bad(1, (1, 1))).is_some());
    assert!(table.apply(bad(1, (2, 1))).is_some());
    assert!(table.apply(good(1, (3, 1))).is_none() && table.rejections.is_empty());
}
