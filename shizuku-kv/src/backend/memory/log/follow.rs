//! Reads of a log for watches, in the order of sequence numbers.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::ops::Bound;

use super::{Log, StoredEntry, Versions};
use crate::backend::embedded::Selector;
use crate::store::{Key, KvEntry};

/// Maximum number of entries that [`Log::next_after`] and [`Log::superseded`] visit in one call.
/// With any scope, the caller therefore locks the store for a short time only.
pub(crate) const WALK: usize = 1024;

/// Maximum number of entries that [`Log::look_ahead`] reads.
const AHEAD: usize = 32;

/// Minimum number of entries of a log that may not fit into the caches of a processor. Small in
/// tests, so that small logs look ahead.
const LARGE: usize = if cfg!(test) { 4 } else { 16 * 1024 };

/// The result of [`Log::next_after`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// An entry in scope, with its sequence number.
    Entry(u64, KvEntry),
    /// No entry in scope up to this sequence number. More entries follow.
    More(u64),
    /// No entry in scope.
    End,
}

/// Keys that a watch has to deliver before it has caught up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PendingKeys {
    /// All of these keys.
    All(BTreeSet<Key>),
    /// The pending keys up to this key, in the order of keys. `None` if the search has not begun.
    UpTo(Option<Key>, BTreeSet<Key>),
}

impl Log {
    /// Returns the first selected entry after `position`. Up to the sequence number `state`, only
    /// the newest entry of a key counts.
    pub(crate) fn next_after(&self, position: u64, state: u64, selector: &Selector) -> Next {
        let wanted = |held: &StoredEntry, versions: &Versions| {
            held.sequence > position
                && (held.sequence > state || held.sequence == versions.newest.sequence)
        };
        // A watch of a single key reads only this key, because most stores have many keys.
        if let Some(key) = selector.only_key() {
            let versions = self.versions(key);
            let held =
                versions.and_then(|versions| versions.iter().find(|held| wanted(held, versions)));
            return held.map_or(Next::End, |held| Next::Entry(held.sequence, held.entry.clone()));
        }
        let mut walked = 0;
        for (&sequence, key) in self.order.range((Bound::Excluded(position), Bound::Unbounded)) {
            walked += 1;
            if selector.contains(key)
                && let Some(versions) = self.versions(key)
                && let Some(held) = versions.iter().find(|held| held.sequence == sequence)
                && wanted(held, versions)
            {
                return Next::Entry(sequence, held.entry.clone());
            }
            if walked == WALK {
                return Next::More(sequence);
            }
        }
        Next::End
    }

    /// Reads the selected keys of the next entries after `position`. The following calls of
    /// [`next_after`](Self::next_after) then find them in the caches of the processor. Returns the
    /// sequence number of the last of these entries, or the highest possible one for a small log.
    ///
    /// The keys of adjacent entries are far apart in the table. A processor can wait for the memory
    /// of several reads at once if no other work is between them (ADR 0078).
    pub(crate) fn look_ahead(&self, position: u64, selector: &Selector) -> u64 {
        if self.order.len() < LARGE {
            return u64::MAX;
        }
        let ahead = self.order.range((Bound::Excluded(position), Bound::Unbounded)).take(AHEAD);
        ahead.fold(position, |last, (&sequence, key)| {
            if selector.contains(key) {
                // The compiler must not remove the read.
                black_box(self.versions(key).map(|versions| versions.newest.sequence));
            }
            last.max(sequence)
        })
    }

    /// Returns the selected keys that had an entry at the sequence number `start`, and whose newest
    /// entry a reader at `position` has not reached yet. If more than [`WALK`] entries follow
    /// `position`, returns no key yet, and [`superseded_more`](Self::superseded_more) finds the
    /// keys.
    pub(crate) fn superseded(&self, start: u64, position: u64, selector: &Selector) -> PendingKeys {
        let is_superseded = |key: &&Key| self.is_superseded(key, start, position);
        if let Some(key) = selector.only_key() {
            return PendingKeys::All(std::iter::once(key).filter(is_superseded).cloned().collect());
        }
        let mut to_come =
            self.order.range((Bound::Excluded(position), Bound::Unbounded)).map(|(_, key)| key);
        let first =
            to_come.by_ref().take(WALK).filter(|key| selector.contains(key)).filter(is_superseded);
        let pending = first.cloned().collect();
        if to_come.next().is_none() {
            PendingKeys::All(pending)
        } else {
            PendingKeys::UpTo(None, BTreeSet::new())
        }
    }

    /// Adds more of the keys of [`superseded`](Self::superseded), for the same reader at the same
    /// position.
    ///
    /// The search is in the order of keys, because writes between two calls do not move a key in
    /// this order. A key that was delivered and written again meanwhile is added too, because the
    /// reader will reach the new entry.
    pub(crate) fn superseded_more(
        &self,
        start: u64,
        position: u64,
        selector: &Selector,
        after: Option<&Key>,
        mut pending: BTreeSet<Key>,
    ) -> PendingKeys {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_str()));
        let mut last: Option<&Key> = None;
        for (walked, key) in self.sorted.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if walked == WALK {
                return PendingKeys::UpTo(last.cloned(), pending);
            }
            last = Some(key);
            if selector.contains(key) && self.is_superseded(key, start, position) {
                pending.insert(key.clone());
            }
        }
        PendingKeys::All(pending)
    }

    fn is_superseded(&self, key: &str, start: u64, position: u64) -> bool {
        self.versions(key)
            .is_some_and(|versions| versions.since <= start && versions.newest.sequence > position)
    }

    /// Checks that the entries after `position` are known without a gap.
    ///
    /// # Errors
    /// Returns the reason if there is a gap.
    pub(crate) fn resume(&self, position: u64) -> Result<(), &'static str> {
        if position > self.sequence {
            return Err("the cursor is ahead of everything that the store has seen");
        }
        // Some of the missing entries before the first one were only superseded. The store cannot
        // distinguish them, and neither can a server.
        let first = self.order.first_key_value().map_or(self.sequence + 1, |(&first, _)| first);
        if position + 1 < first {
            return Err("the store no longer holds everything that followed the cursor");
        }
        self.remembers(position)
    }

    /// Checks that every tombstone after `position` is still stored or was superseded.
    ///
    /// # Errors
    /// Returns the reason why a reader at this position, which has received entries, has missed a
    /// deletion.
    pub(crate) fn remembers(&self, position: u64) -> Result<(), &'static str> {
        if position < self.forgotten {
            return Err("a deletion that followed the cursor has been forgotten");
        }
        Ok(())
    }
}
