#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use super::follow::{Next, WALK};
use super::limits::MARKER_TTL;
use super::*;
use crate::backend::memory::selector::Selector;
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

fn version(sequence: u64) -> VersionToken {
    VersionToken::from_u64(sequence)
}

/// Returns an empty log and the moment of its creation.
fn log(limits: Limits) -> (Log, Instant) {
    let now = Instant::now();
    (Log::new(limits, now), now)
}

fn values(entries: &[KvEntry]) -> Vec<&str> {
    entries.iter().map(|entry| std::str::from_utf8(&entry.value).unwrap()).collect()
}

#[test]
fn history_keeps_the_newest_versions() {
    let (mut log, now) = log(Limits { history: 3, ..LIMITS });
    let a = key("a");
    for value in ["1", "2", "3", "4"] {
        log.write(&a, put(value), now).unwrap();
    }
    assert_eq!(values(&log.history("a")), ["2", "3", "4"]);
    assert_eq!(log.sequences(), [2, 3, 4]);
    log.write(&a, Write::delete(), now).unwrap();
    assert_eq!(values(&log.history("a")), ["3", "4", ""]);
    log.check();
}

#[test]
fn shrinking_the_history_drops_the_oldest() {
    let (mut log, now) = log(Limits { history: 5, ..LIMITS });
    for value in ["1", "2", "3", "4"] {
        log.write(&key("a"), put(value), now).unwrap();
    }
    log.write(&key("b"), put("5"), now).unwrap();
    log.set_limits(Limits { history: 2, ..LIMITS }, now);
    assert_eq!(values(&log.history("a")), ["3", "4"]);
    assert_eq!(values(&log.history("b")), ["5"]);
    log.check();
}

#[test]
fn update_needs_the_version_of_the_newest_entry() {
    let (mut log, now) = log(LIMITS);
    let a = key("a");
    let mut update = |expected| log.write(&a, Write::update("x", expected), now);
    assert_eq!(update(version(1)), Err(Refusal::Mismatch(None)));
    assert_eq!(update(version(0)), Err(Refusal::Mismatch(None)));
    assert_eq!(log.write(&a, put("1"), now), Ok(version(1)));
    let mut update = |expected| log.write(&a, Write::update("x", expected), now);
    assert_eq!(update(version(0)), Err(Refusal::Mismatch(Some(version(1)))));
    let opaque = VersionToken::opaque(&1_u64.to_be_bytes()).unwrap();
    assert_eq!(update(opaque), Err(Refusal::Mismatch(Some(version(1)))));
    assert_eq!(update(version(1)), Ok(version(2)));
    assert_eq!(update(version(1)), Err(Refusal::Mismatch(Some(version(2)))));
    let delete = log.write(&a, Write::delete_with_version(version(1)), now);
    assert_eq!(delete, Err(Refusal::Mismatch(Some(version(2)))));
    assert_eq!(log.sequence(), 2);
}

#[test]
fn newer_token_rejects_older_ones_before_anything_else() {
    let (mut log, now) = log(LIMITS);
    let (a, [five, six]) = (key("a"), [5, 6].map(FencingToken::from_u64));
    assert_eq!(log.write(&a, Write::create("1").with_fence(six), now), Ok(version(1)));
    let refused = Err(Refusal::Fenced { token: five, newest: six });
    for write in [put("x"), Write::create("x"), Write::update("x", version(9))] {
        assert_eq!(log.write(&a, write.with_fence(five), now), refused);
    }
    assert_eq!(log.write(&a, Write::delete().with_fence(six), now), Ok(version(2)));
    assert_eq!(log.write(&a, Write::create("x").with_fence(five), now), refused);
    assert_eq!(log.newest("a").unwrap().fence, Some(six));
    // A write without a token removes it.
    assert_eq!(log.write(&a, put("3"), now), Ok(version(3)));
    assert_eq!(log.newest("a").unwrap().fence, None);
    assert_eq!(log.write(&a, put("4").with_fence(five), now), Ok(version(4)));
    log.check();
}

#[test]
fn tombstone_with_a_token_is_never_forgotten() {
    let (mut log, now) = log(LIMITS);
    let token = Some(FencingToken::from_u64(7));
    for fenced in ["before", "after"] {
        if fenced == "after" {
            log.set_limits(Limits { forgets: true, ..LIMITS }, now);
        }
        log.write(&key(fenced), Write { fence: token, ..Write::delete() }, now).unwrap();
    }
    log.write(&key("plain"), Write::delete(), now).unwrap();
    log.expire(now + 1000 * MARKER_TTL);
    assert!(log.newest("plain").is_none());
    for fenced in ["before", "after"] {
        assert_eq!(log.newest(fenced).unwrap().fence, token);
    }
    // If values age there are no fenced writes, and no token has to be remembered.
    log.set_limits(Limits { forgets: true, max_age: Some(SECOND), ..LIMITS }, now);
    log.expire(now + MARKER_TTL);
    assert!(log.newest("before").is_none());
    log.check();
}

#[test]
fn tombstone_has_a_version_like_any_other_entry() {
    let (mut log, now) = log(LIMITS);
    let a = key("a");
    log.write(&a, put("1"), now).unwrap();
    assert_eq!(log.write(&a, Write::delete_with_version(version(1)), now), Ok(version(2)));
    let late = log.write(&a, Write::update("2", version(1)), now);
    assert_eq!(late, Err(Refusal::Mismatch(Some(version(2)))));
    assert_eq!(log.write(&a, Write::update("2", version(2)), now), Ok(version(3)));
}

#[test]
fn create_succeeds_over_every_kind_of_tombstone() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    let a = key("a");
    let created = log.write(&a, Write::create("1").with_ttl(SECOND), now);
    assert_eq!(created, Ok(version(1)));
    assert_eq!(log.write(&a, Write::create("2"), now), Err(Refusal::Exists(version(1))));
    // 2 is the tombstone of the expiry, applied by the write itself.
    let over_expired = log.write(&a, Write::create("3"), now + SECOND);
    assert_eq!(over_expired, Ok(version(3)));
    log.write(&a, Write::delete(), now + SECOND).unwrap();
    assert_eq!(log.write(&a, Write::create("5"), now + SECOND), Ok(version(5)));
    log.write(&a, Write::purge(), now + SECOND).unwrap();
    assert_eq!(log.write(&a, Write::create("7"), now + SECOND), Ok(version(7)));
    log.check();
}

#[test]
fn deleting_an_absent_key_leaves_a_tombstone() {
    let (mut log, now) = log(LIMITS);
    assert_eq!(log.write(&key("a"), Write::delete(), now), Ok(version(1)));
    assert_eq!(log.newest("a").unwrap().operation, KvOperation::Delete);
    assert_eq!(log.write(&key("a"), Write::delete(), now), Ok(version(2)));
}

#[test]
fn purge_drops_the_history() {
    let (mut log, now) = log(Limits { history: 5, ..LIMITS });
    for value in ["1", "2"] {
        log.write(&key("a"), put(value), now).unwrap();
    }
    log.write(&key("a"), Write::purge(), now).unwrap();
    let history = log.history("a");
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].operation, KvOperation::Purge);
    assert_eq!(history[0].version, version(3));
    assert_eq!(log.bytes(), 1);
    log.check();
}

#[test]
fn values_expire_in_the_order_of_their_expiries() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    log.write(&key("late"), living("1", 3), now).unwrap();
    log.write(&key("early"), living("2", 1), now).unwrap();
    log.write(&key("stays"), put("3"), now).unwrap();
    log.write(&key("renewed"), living("4", 1), now).unwrap();
    log.write(&key("renewed"), living("5", 9), now).unwrap();
    assert_eq!(log.next_due(), Some(now + SECOND));
    log.expire(now + 2 * SECOND);
    assert_eq!(log.sequence(), 6);
    log.expire(now + 5 * SECOND);
    let (early, late) = (log.newest("early").unwrap(), log.newest("late").unwrap());
    assert_eq!((early.operation, early.version), (KvOperation::Expire, version(6)));
    assert_eq!((late.operation, late.version), (KvOperation::Expire, version(7)));
    assert_eq!(late.created.duration_since(early.created).unwrap(), 2 * SECOND);
    assert!(!log.newest("stays").unwrap().is_tombstone());
    assert!(!log.newest("renewed").unwrap().is_tombstone());
    log.check();
}

#[test]
fn value_expires_after_the_shorter_of_age_and_ttl() {
    let (mut log, now) = log(Limits { max_age: Some(2 * SECOND), forgets: true, ..LIMITS });
    log.write(&key("a"), living("1", 1), now).unwrap();
    log.write(&key("b"), living("2", 60), now).unwrap();
    log.write(&key("c"), put("3"), now).unwrap();
    log.expire(now + SECOND);
    assert!(log.newest("a").unwrap().is_tombstone());
    assert!(!log.newest("b").unwrap().is_tombstone());
    log.expire(now + 2 * SECOND);
    assert!(log.newest("b").unwrap().is_tombstone());
    assert!(log.newest("c").unwrap().is_tombstone());
}

#[test]
fn new_maximum_age_counts_from_the_write() {
    let (mut log, now) = log(LIMITS);
    log.write(&key("old"), put("1"), now).unwrap();
    log.write(&key("lease"), living("2", 2), now).unwrap();
    log.write(&key("gone"), Write::delete(), now).unwrap();
    log.write(&key("young"), put("3"), now + 3 * SECOND / 2).unwrap();
    let aged = |seconds: u32| Limits { max_age: Some(seconds * SECOND), forgets: true, ..LIMITS };
    let expired = |log: &Log, key| log.newest(key).unwrap().operation == KvOperation::Expire;
    log.set_limits(aged(1), now + 3 * SECOND / 2);
    log.check();
    log.set_limits(aged(3), now + 3 * SECOND / 2);
    log.check();
    // The shorter one counts. The time to live is still known after the time in which the age was
    // shorter.
    assert_eq!(log.next_due(), Some(now + 2 * SECOND));
    log.expire(now + 2 * SECOND);
    assert!(expired(&log, "lease") && !expired(&log, "old") && !expired(&log, "young"));
    log.expire(now + 3 * SECOND);
    assert!(expired(&log, "old") && !expired(&log, "young"));
    log.set_limits(aged(1), now + 3 * SECOND);
    log.expire(now + 3 * SECOND);
    assert!(expired(&log, "young"));
    // Tombstones stay for the same time, counted from the change of the age.
    assert_eq!(log.newest("gone"), None);
    log.check();
}

#[test]
fn tombstone_is_held_no_longer_than_the_maximum_age() {
    let (mut log, now) = log(Limits { max_age: Some(2 * SECOND), forgets: true, ..LIMITS });
    log.write(&key("deleted"), Write::delete(), now).unwrap();
    log.write(&key("expired"), put("1"), now).unwrap();
    log.expire(now + 2 * SECOND);
    assert_eq!(log.newest("deleted"), None);
    assert_eq!(log.newest("expired").unwrap().operation, KvOperation::Expire);
    log.expire(now + 4 * SECOND);
    assert_eq!(log.newest("expired"), None);
    log.check();
}

#[test]
fn tombstone_of_a_lock_is_never_forgotten() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    for lock in ["rw_lock.job", "rw_lock_session.1", "rw_lock_leader.job"] {
        log.write(&key(lock), Write::purge(), now).unwrap();
    }
    log.write(&key("plain"), Write::purge(), now).unwrap();
    assert_eq!(log.newest("plain").unwrap().operation, KvOperation::Delete);
    log.expire(now + 1000 * MARKER_TTL);
    assert_eq!(log.newest("plain"), None);
    for lock in ["rw_lock.job", "rw_lock_session.1", "rw_lock_leader.job"] {
        assert_eq!(log.newest(lock).unwrap().operation, KvOperation::Purge);
    }
    log.check();
}

#[test]
fn token_stays_after_the_maximum_age_is_removed() {
    let (mut log, now) = log(Limits { max_age: Some(5 * SECOND), forgets: true, ..LIMITS });
    log.write(&key("a"), Write::delete().with_fence(FencingToken::from_u64(7)), now).unwrap();
    log.set_limits(LIMITS, now + SECOND);
    log.expire(now + 1000 * MARKER_TTL);
    assert_eq!(log.newest("a").unwrap().fence, Some(FencingToken::from_u64(7)));
    log.check();
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
fn older_versions_expire_without_a_tombstone() {
    let (mut log, now) =
        log(Limits { history: 5, max_age: Some(2 * SECOND), forgets: true, ..LIMITS });
    log.write(&key("a"), put("1"), now).unwrap();
    log.write(&key("a"), put("2"), now + SECOND).unwrap();
    log.expire(now + 2 * SECOND);
    assert_eq!(values(&log.history("a")), ["2"]);
    log.expire(now + 3 * SECOND);
    assert_eq!(log.sequences(), [3]);
    assert!(log.newest("a").unwrap().is_tombstone());
    log.check();
}

#[test]
fn forgotten_tombstone_drops_the_history() {
    let day = Duration::from_secs(86_400);
    let (mut log, now) = log(Limits { history: 5, max_age: Some(day), forgets: true, ..LIMITS });
    log.write(&key("a"), put("1"), now).unwrap();
    log.write(&key("a"), Write::delete(), now).unwrap();
    log.expire(now + MARKER_TTL);
    assert_eq!(log.newest("a"), None);
    assert!(log.sequences().is_empty());
    log.check();
}

#[test]
fn tombstones_are_held_forever_if_nothing_expires() {
    let (mut log, now) = log(LIMITS);
    log.write(&key("a"), Write::delete(), now).unwrap();
    assert_eq!(log.next_due(), None);
}

#[test]
fn expiry_noticed_late_is_still_visible() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    log.write(&key("a"), living("1", 1), now).unwrap();
    log.expire(now + 10 * MARKER_TTL);
    assert_eq!(log.newest("a").unwrap().operation, KvOperation::Expire);
}

#[test]
fn limit_counts_the_bytes_held_after_the_write() {
    let (mut log, now) = log(Limits { max_bytes: Some(10), ..LIMITS });
    assert_eq!(log.write(&key("a"), put("12345678"), now), Ok(version(1)));
    assert_eq!(log.write(&key("b"), put("1"), now), Err(Refusal::Full(10)));
    assert_eq!(log.write(&key("a"), put("123456789"), now), Ok(version(2)));
    assert_eq!(log.write(&key("a"), put("1234567890"), now), Err(Refusal::Full(10)));
    assert_eq!(log.write(&key("a"), Write::delete(), now), Ok(version(3)));
    assert_eq!(log.write(&key("b"), put("12345678"), now), Ok(version(4)));
    assert_eq!(log.bytes(), 10);
    assert_eq!(log.write(&key("c"), Write::delete(), now), Ok(version(5)));
    // A tombstone has exceeded the limit. A value of the same size is still accepted.
    assert_eq!(log.write(&key("b"), put("87654321"), now), Ok(version(6)));
    log.check();
}

#[test]
fn cursor_resumes_only_without_a_gap() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    assert_eq!(log.resume(0), Ok(()));
    assert!(log.resume(1).unwrap_err().contains("ahead"));
    log.write(&key("a"), put("1"), now).unwrap();
    log.write(&key("b"), put("2"), now).unwrap();
    assert_eq!(log.resume(0), Ok(()));
    log.write(&key("a"), put("3"), now).unwrap();
    assert!(log.resume(0).unwrap_err().contains("no longer holds"));
    assert_eq!(log.resume(1), Ok(()));
    log.write(&key("a"), Write::delete(), now).unwrap();
    assert_eq!(log.resume(1), Ok(()));
    log.expire(now + MARKER_TTL);
    // 2 is still the first that is held, but the deletion of `a` at 4 is not.
    assert!(log.resume(3).unwrap_err().contains("forgotten"));
    assert_eq!(log.resume(4), Ok(()));
    assert!(log.resume(u64::MAX).unwrap_err().contains("ahead"));
}

#[test]
fn emptied_log_remembers_its_position() {
    let (mut log, now) = log(Limits { forgets: true, ..LIMITS });
    log.write(&key("a"), put("1"), now).unwrap();
    log.write(&key("a"), Write::purge(), now).unwrap();
    log.expire(now + MARKER_TTL);
    assert!(log.sequences().is_empty());
    assert!(log.resume(1).is_err());
    assert_eq!(log.resume(2), Ok(()));
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
