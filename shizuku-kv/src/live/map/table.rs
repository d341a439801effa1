//! The current values, the rejected entries, and the keys that changed last. It has no clock, and
//! no input or output.

use std::collections::VecDeque;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::snapshot::LiveMapSnapshot;
use super::status::LiveRejection;
use crate::live::snapshot::LiveSnapshot;
use crate::store::Key;

/// Maximum number of remembered changes. A reader that is further behind compares all keys, which
/// takes longer.
const REMEMBERED: usize = 1024;

/// A current value.
pub(super) type Value<T> = Arc<LiveSnapshot<T>>;

/// Result of reading an entry of the store.
pub(super) enum Finding<K, T> {
    Good { key: Key, own: K, value: LiveSnapshot<T> },
    Bad { own: Option<K>, rejection: LiveRejection },
    Absent { key: Key, own: Option<K> },
}

/// A live map. It is persistent: a clone costs next to nothing and does not change with the
/// original.
pub(super) struct Table<K, T> {
    pub(super) entries: LiveMapSnapshot<K, T>,
    pub(super) rejections: RedBlackTreeMapSync<Key, LiveRejection>,
    /// Number of changes of entries so far.
    pub(super) generation: u64,
    /// The keys of the last changes, each under the generation that it began.
    recent: RedBlackTreeMapSync<u64, K>,
    remembered: usize,
}

impl<K: Ord + Clone, T> Table<K, T> {
    pub(super) fn new() -> Self {
        Self::remembering(REMEMBERED)
    }

    pub(super) fn remembering(remembered: usize) -> Self {
        Self {
            entries: LiveMapSnapshot::default(),
            rejections: RedBlackTreeMapSync::default(),
            generation: 0,
            recent: RedBlackTreeMapSync::default(),
            remembered,
        }
    }

    /// Applies the result of an entry. Returns a rejection that is new.
    pub(super) fn apply(&mut self, finding: Finding<K, T>) -> Option<LiveRejection> {
        match finding {
            Finding::Good { key, own, value } => {
                self.rejections.remove_mut(&key);
                let is_known = self.entries.get(&own).is_some_and(|held| is_same(held, &value));
                if !is_known {
                    self.changed(own.clone());
                    self.entries.entries.insert_mut(own, Arc::new(value));
                }
                None
            }
            // The last good value stays current.
            Finding::Bad { rejection, .. } => {
                let held = self.rejections.get(&rejection.key);
                if held.is_some_and(|held| held.is_same(&rejection)) {
                    return None;
                }
                self.rejections.insert_mut(rejection.key.clone(), rejection.clone());
                Some(rejection)
            }
            Finding::Absent { key, own } => {
                self.rejections.remove_mut(&key);
                if let Some(own) = own {
                    self.remove(&own);
                }
                None
            }
        }
    }

    /// Returns all keys, to be compared with a new reading of the store. Keys that it does not
    /// bring are gone.
    pub(super) fn unseen(&self) -> Unseen<K, T> {
        Unseen { entries: self.entries.clone(), rejections: self.rejections.clone() }
    }

    /// Ends a new reading of the store, by removing the unseen keys.
    pub(super) fn sweep(&mut self, unseen: &Unseen<K, T>) {
        for key in unseen.entries.keys() {
            self.remove(key);
        }
        for key in unseen.rejections.keys() {
            self.rejections.remove_mut(key);
        }
    }

    /// Returns the keys that can have changed between a generation and now, for a reader that knows
    /// `known`.
    pub(super) fn changed_since(
        &self,
        generation: u64,
        known: &LiveMapSnapshot<K, T>,
    ) -> VecDeque<K> {
        let missed = self.generation.saturating_sub(generation);
        if missed <= self.recent.size() as u64 {
            let keys =
                self.recent.range(generation.saturating_add(1)..).map(|(_, key)| key.clone());
            return keys.collect();
        }
        different(known, &self.entries).cloned().collect()
    }

    fn remove(&mut self, key: &K) {
        if self.entries.entries.remove_mut(key) {
            self.changed(key.clone());
        }
    }

    fn changed(&mut self, key: K) {
        self.generation += 1;
        self.recent.insert_mut(self.generation, key);
        if self.recent.size() > self.remembered {
            let oldest = self.recent.first().map(|(generation, _)| *generation);
            self.recent.remove_mut(&oldest.unwrap_or_default());
        }
    }

    #[cfg(test)]
    pub(super) fn recent(&self) -> usize {
        self.recent.size()
    }
}

impl<K: Ord, T> Clone for Table<K, T> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
            rejections: self.rejections.clone(),
            generation: self.generation,
            recent: self.recent.clone(),
            remembered: self.remembered,
        }
    }
}

/// The keys that a new reading of the store has not brought yet.
pub(super) struct Unseen<K, T> {
    entries: LiveMapSnapshot<K, T>,
    rejections: RedBlackTreeMapSync<Key, LiveRejection>,
}

impl<K: Ord, T> Unseen<K, T> {
    pub(super) fn see(&mut self, finding: &Finding<K, T>) {
        let (key, own) = match finding {
            Finding::Good { key, own, .. } => (key, Some(own)),
            // An entry exists, so the key is not gone.
            Finding::Bad { own, rejection } => (&rejection.key, own.as_ref()),
            Finding::Absent { key, own } => (key, own.as_ref()),
        };
        self.rejections.remove_mut(key);
        if let Some(own) = own {
            self.entries.entries.remove_mut(own);
        }
    }
}

/// Returns whether both are the same entry. In a recreated store, versions start again. The time
/// distinguishes an entry from an earlier one with the same version (ADR 0027).
pub(super) fn is_same<T>(one: &LiveSnapshot<T>, other: &LiveSnapshot<T>) -> bool {
    (one.version, one.created) == (other.version, other.created)
}

/// Returns the keys that are missing in one of both, or have different values, in order.
fn different<'a, K: Ord, T>(
    old: &'a LiveMapSnapshot<K, T>,
    new: &'a LiveMapSnapshot<K, T>,
) -> impl Iterator<Item = &'a K> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            // Advances the smaller key, or both if they are equal.
            let order = match (old.peek(), new.peek()) {
                (Some((one, _)), Some((other, _))) => one.cmp(other),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, _) => std::cmp::Ordering::Greater,
            };
            let gone = if order.is_le() { old.next() } else { None };
            let come = if order.is_ge() { new.next() } else { None };
            match (gone, come) {
                (Some((_, gone)), Some((_, come))) if is_same(gone, come) => {}
                (gone, come) => return come.or(gone).map(|(key, _)| key),
            }
        }
    })
}
