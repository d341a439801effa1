//! A comparison of the log with a simple model: one list, which is searched completely for every
//! answer.
//!
//! `SHIZUKU_SEED=n` repeats a run; each run prints its seed.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::log::Log;
use super::log::follow::Next;
use crate::backend::embedded::{Limits, MARKER_TTL, Rejection};
use crate::store::{
    FencingToken, Key, KvEntry, KvOperation, VersionToken, WatchScope, Write, WriteCondition,
    WriteOperation,
};

struct Line {
    sequence: u64,
    key: Key,
    operation: KvOperation,
    value: Bytes,
    written: Instant,
    ttl: Option<Duration>,
    due: Option<Instant>,
    fence: Option<FencingToken>,
}

/// Lifetime of the tombstone of a write. `None` if the tombstone stays forever.
fn life(limits: &Limits, key: &str, fence: Option<FencingToken>) -> Option<Duration> {
    let forgets = limits.forgets && !never_forgets(limits, key, fence);
    forgets.then(|| limits.max_age.into_iter().fold(MARKER_TTL, Duration::min))
}

fn never_forgets(limits: &Limits, key: &str, fence: Option<FencingToken>) -> bool {
    limits.max_age.is_none() && (fence.is_some() || key.starts_with("rw_lock"))
}

struct Model {
    limits: Limits,
    lines: Vec<Line>,
    sequence: u64,
    forgotten: u64,
}

impl Model {
    fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.key == key)
    }

    fn newest(&self, key: &str) -> Option<&Line> {
        self.lines.iter().rfind(|line| line.key == key)
    }

    fn bytes(&self) -> u64 {
        self.lines.iter().map(|line| (line.key.len() + line.value.len()) as u64).sum()
    }

    fn append(&mut self, line: Line) {
        self.sequence += 1;
        let key = line.key.clone();
        let key = key.as_str();
        self.lines.push(Line { sequence: self.sequence, ..line });
        while self.of(key).count() > self.limits.history {
            let oldest = self.of(key).next().unwrap().sequence;
            self.lines.retain(|line| line.sequence != oldest);
        }
    }

    fn expire(&mut self, now: Instant) {
        let due = |line: &Line| line.due.filter(|due| *due <= now).map(|due| (due, line.sequence));
        while let Some((_, sequence)) = self.lines.iter().filter_map(due).min() {
            let at = self.lines.iter().position(|line| line.sequence == sequence).unwrap();
            let newest = self.newest(&self.lines[at].key).unwrap().sequence == sequence;
            let line = self.lines.remove(at);
            if !newest {
                continue;
            }
            if line.operation == KvOperation::Put {
                let due = life(&self.limits, &line.key, None).map(|life| now + life);
                let (operation, value) = (KvOperation::Expire, Bytes::new());
                self.append(Line {
                    operation,
                    value,
                    written: now,
                    ttl: None,
                    due,
                    fence: None,
                    ..line
                });
            } else {
                self.lines.retain(|other| other.key != line.key);
                self.forgotten = self.forgotten.max(sequence);
            }
        }
    }

    fn write(&mut self, key: &Key, write: Write, now: Instant) -> Result<VersionToken, Rejection> {
        let Write { operation, condition, ttl, fence, .. } = write;
        self.expire(now);
        match (fence, self.newest(key).and_then(|line| line.fence)) {
            (Some(token), Some(newest)) if token < newest => {
                return Err(Rejection::Fenced { token, newest });
            }
            _ => {}
        }
        let newest = self.newest(key);
        let version = newest.map(|line| VersionToken::from_u64(line.sequence));
        match condition {
            WriteCondition::Any => {}
            WriteCondition::Absent => {
                if newest.is_some_and(|line| line.operation == KvOperation::Put) {
                    return Err(Rejection::Exists(version.unwrap()));
                }
            }
            WriteCondition::Exactly(expected) => {
                if version != Some(expected) {
                    return Err(Rejection::Mismatch(version));
                }
            }
        }
        let (operation, value, life) = match operation {
            WriteOperation::Put(value) => {
                (KvOperation::Put, value, ttl.into_iter().chain(self.limits.max_age).min())
            }
            WriteOperation::Delete => {
                (KvOperation::Delete, Bytes::new(), life(&self.limits, key, fence))
            }
            WriteOperation::Purge => {
                let alike =
                    self.limits.forgets && self.limits.history == 1 && !key.starts_with("rw_lock");
                let operation = if alike { KvOperation::Delete } else { KvOperation::Purge };
                (operation, Bytes::new(), life(&self.limits, key, fence))
            }
        };
        if let (KvOperation::Put, Some(limit)) = (operation, self.limits.max_bytes) {
            let size = (key.len() + value.len()) as u64;
            let of_key: Vec<_> = self.of(key).collect();
            let dropped = of_key.len().saturating_sub(self.limits.history - 1);
            let room: u64 = of_key
                .iter()
                .take(dropped)
                .map(|line| (line.key.len() + line.value.len()) as u64)
                .sum();
            let after = self.bytes() + size - room;
            if after > limit && after > self.bytes() {
                return Err(Rejection::Full(limit));
            }
        }
        if operation == KvOperation::Purge {
            self.lines.retain(|line| line.key != *key);
        }
        let due = life.map(|life| now + life);
        self.append(Line {
            sequence: 0,
            key: key.clone(),
            operation,
            value,
            written: now,
            ttl,
            due,
            fence,
        });
        Ok(VersionToken::from_u64(self.sequence))
    }

    fn next_after(&self, position: u64, state: u64, scope: &WatchScope) -> Option<u64> {
        self.lines
            .iter()
            .filter(|line| line.sequence > position && scope.matches(&line.key))
            .find(|line| {
                line.sequence > state || self.newest(&line.key).unwrap().sequence == line.sequence
            })
            .map(|line| line.sequence)
    }

    fn resumes(&self, position: u64) -> bool {
        let first = self.lines.first().map_or(self.sequence + 1, |line| line.sequence);
        position <= self.sequence && position + 1 >= first && position >= self.forgotten
    }
}

fn shape(entry: &KvEntry) -> (u64, KvOperation, Bytes, Option<FencingToken>) {
    (entry.version.as_u64().unwrap(), entry.operation, entry.value.clone(), entry.fence)
}

fn seed() -> u64 {
    let given = std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| fastrand::u64(..))
}

#[test]
fn log_equals_the_model() {
    let seed = seed();
    println!("SHIZUKU_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..60 {
        run(&mut random);
    }
}

fn limits(random: &mut fastrand::Rng) -> Limits {
    let max_age = random.bool().then(|| Duration::from_secs(random.u64(1..5000)));
    Limits {
        history: random.usize(1..5),
        max_bytes: random.bool().then(|| random.u64(10..80)),
        max_age,
        forgets: max_age.is_some() || random.bool(),
    }
}

fn run(random: &mut fastrand::Rng) {
    let mut now = Instant::now();
    let limits_now = limits(random);
    let mut log = Log::new(limits_now, now);
    let mut model = Model { limits: limits_now, lines: Vec::new(), sequence: 0, forgotten: 0 };
    let keys: Vec<Key> = ["a", "a.a", "a.b", "b", "b.a", "ab", "rw_lock.a"]
        .into_iter()
        .map(|key| Key::new(key).unwrap())
        .collect();
    for _ in 0..300 {
        let key = random.choice(&keys).unwrap();
        if random.u8(..20) == 0 {
            let changed = limits(random);
            log.set_limits(changed, now);
            model.limits = changed;
            for line in &mut model.lines {
                line.due = if line.operation == KvOperation::Put {
                    line.ttl
                        .into_iter()
                        .chain(changed.max_age)
                        .min()
                        .map(|life| line.written + life)
                } else {
                    let due = life(&changed, &line.key, line.fence).map(|life| now + life);
                    let kept = never_forgets(&changed, &line.key, line.fence);
                    line.due.into_iter().chain(due).min().filter(|_| !kept)
                };
            }
            for key in &keys {
                while model.of(key).count() > changed.history {
                    let oldest = model.of(key).next().unwrap().sequence;
                    model.lines.retain(|line| line.sequence != oldest);
                }
            }
        }
        if random.u8(..4) == 0 {
            now += Duration::from_secs(random.u64(0..3000));
        }
        if random.bool() {
            log.expire(now);
            model.expire(now);
        }
        let mut write = match random.u8(..8) {
            0 | 1 => Write::delete(),
            2 => Write::purge(),
            _ => {
                let ttl = (limits_now.forgets && random.bool())
                    .then(|| Duration::from_secs(random.u64(1..5000)));
                Write { ttl, ..Write::put(vec![random.u8(..); random.usize(0..12)]) }
            }
        };
        write.condition = match random.u8(..4) {
            0 => WriteCondition::Absent,
            1 => WriteCondition::Exactly(VersionToken::from_u64(
                model.newest(key).map_or(0, |line| line.sequence) + u64::from(random.u8(..4) == 0),
            )),
            _ => WriteCondition::Any,
        };
        write.fence = random.bool().then(|| FencingToken::from_u64(random.u64(..5)));
        assert_eq!(log.write(key, write.clone(), now), model.write(key, write, now));
        compare(&log, &model, &keys, random);
    }
}

fn compare(log: &Log, model: &Model, keys: &[Key], random: &mut fastrand::Rng) {
    log.check();
    assert_eq!(log.sequence(), model.sequence);
    assert_eq!(log.sequences(), model.lines.iter().map(|line| line.sequence).collect::<Vec<_>>());
    assert_eq!(log.bytes(), model.bytes());
    assert_eq!(log.next_due(), model.lines.iter().filter_map(|line| line.due).min());
    for key in keys {
        let held: Vec<_> = log.history(key).iter().map(shape).collect();
        let expected: Vec<_> = model
            .of(key)
            .map(|line| (line.sequence, line.operation, line.value.clone(), line.fence))
            .collect();
        assert_eq!(held, expected);
        assert_eq!(log.newest(key).map(shape), expected.last().cloned());
    }
    let sorted: Vec<_> = log.newest_from(Bound::Unbounded).map(|entry| entry.key.clone()).collect();
    let expected: BTreeSet<_> = model.lines.iter().map(|line| line.key.clone()).collect();
    assert_eq!(sorted, expected.into_iter().collect::<Vec<_>>());

    let (position, state) = (random.u64(..=model.sequence + 1), random.u64(..=model.sequence));
    assert_eq!(log.resume(position).is_ok(), model.resumes(position));
    let one = random.choice(keys).unwrap().clone();
    for scope in [
        WatchScope::All,
        WatchScope::Key(one),
        WatchScope::prefix("a"),
        WatchScope::prefixes(["a.", "b"]),
    ] {
        let found = match log.next_in(position, state, &scope) {
            Next::Entry(sequence, entry) => {
                assert_eq!(entry.version.as_u64(), Some(sequence));
                Some(sequence)
            }
            Next::End => None,
            Next::More(_) => panic!("too few entries for a second piece"),
        };
        assert_eq!(found, model.next_after(position, state, &scope));
    }
}
