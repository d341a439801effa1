//! Changes of a log without a write: ends of life, and new settings. Both can concern all entries
//! at once, so they are applied in pieces. Every operation on the store applies the rest of them
//! first.

use std::collections::VecDeque;
use std::ops::Bound;

use tokio::time::Instant;

use super::{EXPIRY, Limits, Log};
use crate::store::{Key, KvEntry, KvOperation};

/// New settings that have been applied to some keys.
pub(super) struct Settling {
    /// The last of these keys, in order.
    after: Option<Key>,
    /// When the settings were made.
    since: Instant,
}

impl Log {
    /// Applies every end of life that is due by `now`.
    pub(in super::super) fn expire(&mut self, now: Instant) {
        while !self.expire_some(now) {}
    }

    /// Applies new settings, and then the next ends of life that are due by `now`, in the order in
    /// which they fall due, to about [`EXPIRY`] entries. Returns whether none is left. Until then
    /// the log shows as living what is not.
    ///
    /// A value that is the newest of its key gives way to a tombstone, an older one is dropped. A
    /// tombstone that is the newest of its key is forgotten together with what is left of the key's
    /// history, which would otherwise come back to life.
    pub(in super::super) fn expire_some(&mut self, now: Instant) -> bool {
        let mut left = EXPIRY;
        if !self.settle_some(&mut left) {
            return false;
        }
        while left > 0 {
            let Some((due, sequence)) = self.due.first().copied().filter(|&(due, _)| due <= now)
            else {
                return true;
            };
            self.due.pop_first();
            let effort = self.end_life(due, sequence, now);
            left = left.saturating_sub(effort.max(1));
        }
        self.next_due().is_none_or(|due| due > now)
    }

    /// Ends the life of an entry that was due. Returns the effort.
    fn end_life(&mut self, due: Instant, sequence: u64, now: Instant) -> usize {
        let Some(key) = self.order.get(&sequence).cloned() else { return 0 };
        let Some(versions) = self.keys.get_mut(key.as_bytes()) else { return 0 };
        if versions.newest.sequence != sequence {
            let at = versions.older.iter().position(|held| held.sequence == sequence);
            let held = at.and_then(|at| versions.older.remove(at));
            return held.map_or(0, |held| self.release(&held));
        }
        if versions.newest.entry.is_tombstone() {
            self.forgotten = self.forgotten.max(sequence);
            return self.drop_key(&key);
        }
        let effort = versions.newest.effort();
        // The tombstone says when the value's life ended, and is held from when anyone can see it:
        // however late that is, no watch misses it.
        let created = self.clock.system(due);
        let forget = self.limits.marker_ttl(&key, None).and_then(|ttl| now.checked_add(ttl));
        let version = self.next_version();
        self.append(KvEntry::tombstone(key, KvOperation::Expire, version, created), None, forget);
        effort
    }

    /// Applies new settings, also to existing entries: to some of them here, to the others with the
    /// next calls of [`expire_some`](Self::expire_some). A maximum age counts from the write of a
    /// value; a value that is older expires then. A tombstone with a longer lifetime is held for
    /// the new lifetime, counted from `now`.
    pub(in super::super) fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        self.settling = Some(Settling { after: None, since: now });
        let mut left = EXPIRY;
        self.settle_some(&mut left);
    }

    /// Applies new settings to the next keys, until `left` is used up. Returns whether none is
    /// left.
    fn settle_some(&mut self, left: &mut usize) -> bool {
        let Some(Settling { mut after, since }) = self.settling.take() else { return true };
        let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_str()));
        // Each takes an effort of 1 at least.
        let most = *left;
        let keys: Vec<_> =
            self.sorted.range::<str, _>((from, Bound::Unbounded)).take(most).cloned().collect();
        let is_last_page = keys.len() < most;
        for key in keys {
            if *left == 0 {
                self.settling = Some(Settling { after, since });
                return false;
            }
            let effort = self.settle(&key, since);
            *left = left.saturating_sub(effort);
            after = Some(key);
        }
        if !is_last_page {
            self.settling = Some(Settling { after, since });
        }
        is_last_page
    }

    /// Applies the settings to what is held of a key. Returns the effort.
    fn settle(&mut self, key: &Key, since: Instant) -> usize {
        let limits = self.limits;
        let Some(versions) = self.keys.get_mut(key.as_bytes()) else { return 1 };
        let excess = (versions.older.len() + 1).saturating_sub(limits.history);
        let dropped: Vec<_> = versions.older.drain(..excess).collect();
        if versions.older.is_empty() {
            versions.older = VecDeque::new();
        }
        let mut effort = 0;
        for held in versions.older.iter_mut().chain(std::iter::once(&mut versions.newest)) {
            effort += 1;
            let due = if held.entry.is_tombstone() {
                limits.due_of_held(held, since)
            } else {
                let written = self.clock.instant(held.entry.created);
                limits.life(held.ttl).and_then(|life| written.checked_add(life))
            };
            if due == held.due {
                continue;
            }
            if let Some(before) = held.due {
                self.due.remove(&(before, held.sequence));
            }
            self.due.extend(due.map(|due| (due, held.sequence)));
            held.due = due;
        }
        effort + dropped.iter().map(|held| self.release(held)).sum::<usize>()
    }
}
