//! Changes of a log without a write: expiries and new settings.
//!
//! Both can concern all entries at once, so they are applied in pieces. Every operation on the
//! store first applies the remaining pieces.

use std::collections::VecDeque;
use std::ops::Bound;

use tokio::time::Instant;

use super::{EXPIRY, LimitsChange, Log, StoredEntry};
use crate::backend::embedded::Limits;
use crate::store::{Key, KvEntry, KvOperation};

impl Log {
    /// Applies every expiry that is due by `now`.
    pub(crate) fn expire(&mut self, now: Instant) {
        while !self.expire_some(now) {}
    }

    /// Applies new settings, and then the next expiries that are due by `now`, in the order in
    /// which they fall due, to about [`EXPIRY`] entries. Returns whether none is left. Until then
    /// the log shows expired entries as live.
    ///
    /// A tombstone supersedes an expired value that is the newest entry of its key. An expired
    /// older value is dropped. An expired tombstone that is the newest entry is forgotten together
    /// with the key's history, which would otherwise be live again.
    pub(crate) fn expire_some(&mut self, now: Instant) -> bool {
        let mut left = EXPIRY;
        if !self.apply_limits_to_some(&mut left) {
            return false;
        }
        while left > 0 {
            let Some((due, sequence)) = self.due.first().copied().filter(|&(due, _)| due <= now)
            else {
                return true;
            };
            self.due.pop_first();
            let effort = self.expire_entry(due, sequence, now);
            left = left.saturating_sub(effort.max(1));
        }
        self.next_due().is_none_or(|due| due > now)
    }

    /// Expires an entry that was due. Returns the effort.
    fn expire_entry(&mut self, due: Instant, sequence: u64, now: Instant) -> usize {
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
        // The tombstone has the time of the expiry. The lifetime of the tombstone begins when it
        // becomes visible, however late, so that no watch misses it.
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
    pub(crate) fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        self.limits_change = Some(LimitsChange { after: None, since: now });
        let mut left = EXPIRY;
        self.apply_limits_to_some(&mut left);
    }

    /// Applies new settings to the next keys, until `left` is used up. Returns whether none is
    /// left.
    fn apply_limits_to_some(&mut self, left: &mut usize) -> bool {
        let Some(LimitsChange { mut after, since }) = self.limits_change.take() else {
            return true;
        };
        let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_str()));
        // Each key takes an effort of at least 1.
        let most = *left;
        let keys: Vec<_> =
            self.sorted.range::<str, _>((from, Bound::Unbounded)).take(most).cloned().collect();
        let is_last_page = keys.len() < most;
        for key in keys {
            if *left == 0 {
                self.limits_change = Some(LimitsChange { after, since });
                return false;
            }
            let effort = self.apply_limits_to(&key, since);
            *left = left.saturating_sub(effort);
            after = Some(key);
        }
        if !is_last_page {
            self.limits_change = Some(LimitsChange { after, since });
        }
        is_last_page
    }

    /// Applies the settings to the entries of a key. Returns the effort.
    fn apply_limits_to(&mut self, key: &Key, since: Instant) -> usize {
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
                due_of_tombstone(&limits, held, since)
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

/// Returns the expiry of a tombstone that exists when these limits come into force.
fn due_of_tombstone(limits: &Limits, held: &StoredEntry, now: Instant) -> Option<Instant> {
    let (key, fence) = (&held.entry.key, held.entry.fence);
    if limits.never_forgets(key, fence) {
        return None;
    }
    let due = limits.marker_ttl(key, fence).and_then(|life| now.checked_add(life));
    [held.due, due].into_iter().flatten().min()
}
