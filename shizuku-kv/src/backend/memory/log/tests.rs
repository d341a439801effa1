//! Rules of the log that its model (`log_model.rs`) does not cover.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use super::follow::{Next, WALK};
use super::*;
use crate::backend::embedded::Selector;
use crate::store::WatchScope;

impl Log {
    /// [`next_after`](Self::next_after) in a scope.
    pub(crate) fn next_in(&self, position: u64, state: u64, scope: &WatchScope) -> Next {
        self.next_after(position, state, &Selector::new(scope))
    }

    /// Returns the sequence numbers of all entries, in order.
    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.order.keys().copied().collect()
    }

    /// Returns the size of all entries, as the limit counts it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Asserts that the indexes agree with the entries.
    pub(crate) fn check(&self) {
        let held: Vec<_> = self.keys.iter().flat_map(Versions::iter).collect();
        assert!(self.limits_change.is_none());
        assert_eq!(held.len(), self.order.len());
        assert_eq!(held.iter().map(|held| held.size()).sum::<u64>(), self.bytes);
        assert_eq!(held.iter().filter(|held| held.due.is_some()).count(), self.due.len());
        for held in &held {
            assert_eq!(self.order.get(&held.sequence), Some(&held.entry.key));
            assert!(held.due.is_none_or(|due| self.due.contains(&(due, held.sequence))));
        }
        let sorted: BTreeSet<_> =
            self.keys.iter().map(|held| held.newest.entry.key.clone()).collect();
        assert_eq!(sorted.len(), self.keys.len());
        assert_eq!(sorted, self.sorted);
        for versions in self.keys.iter() {
            assert!(versions.older.len() < self.limits.history);
            assert!(versions.iter().is_sorted_by_key(|held| held.sequence));
        }
    }
}

const LIMITS: Limits = Limits { history: 1, max_bytes: None, max_age: None, forgets: false };
const SECOND: Duration = Duration::from_secs(1);

fn key(key: &str) -> Key {
    Key::new(key).unwrap()
}

fn put(value: &'static str) -> Write {
    Write::put(value)
}

fn living(value: &'static str, seconds: u64) -> Write {
    put(value).with_ttl(Duration::from_secs(seconds))
}

/// Returns an empty log and the moment of its creation.
fn log(limits: Limits) -> (Log, Instant) {
    let now = Instant::now();
    (Log::new(limits, now), now)
}

/// The model does not compare times of entries.
#[test]
fn tombstone_of_an_expiry_has_the_time_of_the_expiry() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    log.write(&key("late"), living("1", 3), now).unwrap();
    log.write(&key("early"), living("2", 1), now).unwrap();
    log.expire(now + 5 * SECOND);
    let (early, late) = (log.newest("early").unwrap(), log.newest("late").unwrap());
    assert_eq!([early, late].map(|entry| entry.operation), [KvOperation::Expire; 2]);
    assert_eq!(late.created.duration_since(early.created).unwrap(), 2 * SECOND);
}

#[test]
fn many_expiries_are_applied_in_pieces() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    for number in 0..2 * EXPIRY + 1 {
        log.write(&key(&format!("k.{number}")), living("", 1), now).unwrap();
    }
    assert!(log.expire_some(now));
    let due = (2 * EXPIRY + 1) as u64;
    for (done, expired) in [(false, EXPIRY as u64), (false, 2 * EXPIRY as u64), (true, due)] {
        assert_eq!(log.expire_some(now + SECOND), done);
        assert_eq!(log.sequence(), due + expired);
    }
    log.check();
}

#[test]
fn long_walk_is_cut_into_pieces() {
    let (mut log, now) = log(LIMITS);
    for number in 0..WALK {
        log.write(&key(&format!("other.{number}")), put(""), now).unwrap();
    }
    log.write(&key("mine"), put(""), now).unwrap();
    let scope = WatchScope::prefix("mine");
    let Next::More(position) = log.next_in(0, 0, &scope) else { panic!("a piece") };
    assert_eq!(position, WALK as u64);
    assert!(matches!(log.next_in(position, 0, &scope), Next::Entry(1025, _)));
    assert_eq!(log.next_in(position + 1, 0, &scope), Next::End);
    let one = WatchScope::key("mine").unwrap();
    assert!(matches!(log.next_in(0, 0, &one), Next::Entry(1025, _)));
}
