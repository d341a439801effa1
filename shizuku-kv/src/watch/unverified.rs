//! Detects a store that was restored from an older copy than a follower knew (ADR 0048).
//!
//! After a loss of the connection, another server may answer with an older copy of the store. A
//! follower remembers its last deliveries, and reads them again before the follower relies on the
//! store.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use crate::store::{
    Key, KvEntry, KvError, KvOperation, KvResult, KvUpdate, Store, VersionToken, WatchCursor,
    WatchScope,
};

/// Number of remembered deliveries.
const REMEMBERED: usize = 16;

/// Maximum number of entries that are read again after a remembered delivery.
const MOST_REREAD: usize = 4096;

/// The compared parts of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Delivered {
    key: Key,
    version: VersionToken,
    created: SystemTime,
    is_tombstone: bool,
}

impl Delivered {
    fn is(&self, entry: &KvEntry) -> bool {
        (&self.key, self.version, self.created) == (&entry.key, entry.version, entry.created)
    }

    /// Returns whether this is a tombstone that has expired since. No update is delivered for its
    /// expiry, nor for the marker that follows.
    fn has_ended(&self, entry: Option<&KvEntry>) -> bool {
        self.is_tombstone && entry.is_none_or(|entry| entry.operation == KvOperation::Expire)
    }
}

/// The newest deliveries of a watch, one for each key, the oldest first. They have no gap: every
/// key that was delivered after the oldest of them is included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    delivered: VecDeque<Delivered>,
    /// Whether tombstones are missing, because only the values of a stored state were known.
    lacks_tombstones: bool,
}

impl Recent {
    /// Records deliveries, in their order.
    pub(crate) fn extend(&mut self, updates: &[KvUpdate]) {
        let start = updates.len().saturating_sub(REMEMBERED + 1);
        if start > 0 {
            *self = Self::default();
        }
        for update in &updates[start..] {
            if let Some(entry) = update.entry() {
                self.push(entry);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.delivered.is_empty()
    }

    pub(crate) fn push(&mut self, entry: &KvEntry) {
        self.delivered.retain(|known| known.key != entry.key);
        if self.delivered.len() == REMEMBERED {
            self.delivered.pop_front();
        }
        self.delivered.push_back(Delivered {
            key: entry.key.clone(),
            version: entry.version,
            created: entry.created,
            is_tombstone: entry.is_tombstone(),
        });
    }
}

/// Finds the newest values of a stored state, up to a position.
#[derive(Debug)]
pub(crate) struct NewestHeld {
    position: u64,
    newest: BTreeMap<u64, Delivered>,
}

impl NewestHeld {
    pub(crate) fn up_to(position: u64) -> Self {
        Self { position, newest: BTreeMap::new() }
    }

    pub(crate) fn visit(&mut self, key: &Key, version: VersionToken, created: SystemTime) {
        let Some(number) = version.as_u64().filter(|number| *number <= self.position) else {
            return;
        };
        let is_full = self.newest.len() == REMEMBERED;
        if is_full && self.newest.first_key_value().is_some_and(|(oldest, _)| *oldest > number) {
            return;
        }
        let value = Delivered { key: key.clone(), version, created, is_tombstone: false };
        self.newest.insert(number, value);
        if self.newest.len() > REMEMBERED {
            self.newest.pop_first();
        }
    }

    pub(crate) fn into_recent(self) -> Recent {
        Recent { delivered: self.newest.into_values().collect(), lacks_tombstones: true }
    }
}

/// A position up to which a follower received every update, before its watch was lost.
#[derive(Clone, Debug)]
pub(crate) struct UnverifiedPosition {
    pub(crate) cursor: WatchCursor,
    /// The newest deliveries up to that position.
    pub(crate) recent: Recent,
}

/// Outcome of [`UnverifiedPosition::verify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verification {
    /// The store still has all delivered updates.
    Same,
    /// The store has lost delivered updates, or has accepted other changes at positions that the
    /// follower had passed.
    Other,
    /// No proof is left: all remembered keys were overwritten, or the later changes can no longer
    /// be read, or are too many.
    Unproven,
    /// Like `Unproven`, but the remembered deliveries are from before this process. The store may
    /// have changed as much since then.
    Unremembered,
}

impl UnverifiedPosition {
    /// Checks whether the store is the one that the follower knew, and not an older copy of it.
    ///
    /// An older copy lacks the last changes. So the deliveries are read from the leader, the newest
    /// first. The first one that still exists proves that the store has all changes up to it. Later
    /// changes are read again.
    pub(crate) async fn verify(&self, store: &Store, scope: &WatchScope) -> KvResult<Verification> {
        let position = self.cursor.position();
        let is_later =
            |version: VersionToken| version.as_u64().is_some_and(|number| number > position);
        let mut shown = None;
        let unproven = if self.recent.lacks_tombstones {
            Verification::Unremembered
        } else {
            Verification::Unproven
        };
        for known in self.recent.delivered.iter().rev() {
            match store.leader_entry(&known.key).await? {
                Some(entry) if known.is(&entry) => {
                    shown = Some(known);
                    break;
                }
                Some(entry) if is_later(entry.version) => {}
                entry if known.has_ended(entry.as_ref()) => {}
                _ => return Ok(Verification::Other),
            }
        }
        let Some(shown) = shown else { return Ok(unproven) };
        let Some(number) = shown.version.as_u64() else { return Ok(unproven) };
        if number == position {
            return Ok(Verification::Same);
        }
        let from = WatchCursor::new(*self.cursor.incarnation(), number, shown.created);
        let watch = match store.watch_from(scope.clone(), from).await {
            Ok(watch) => watch,
            Err(KvError::CursorExpired { .. }) => return Ok(unproven),
            Err(error) => return Err(error),
        };
        for _ in 0..MOST_REREAD {
            let deadline = store.deadline_of("figures", None)?;
            let update = deadline.bound("figures", None, async {
                watch.next().await.unwrap_or(Err(KvError::Closed { operation: "figures" }))
            });
            let update = match update.await {
                Ok(update) => update,
                Err(KvError::CursorExpired { .. }) => return Ok(unproven),
                Err(error) => return Err(error),
            };
            let Some(entry) = update.into_entry() else { return Ok(Verification::Same) };
            let is_known = || {
                let mut all = self.recent.delivered.iter().filter(|known| known.key == entry.key);
                all.any(|known| known.is(&entry) || known.has_ended(Some(&entry)))
            };
            let is_unremembered = entry.is_tombstone() && self.recent.lacks_tombstones;
            if !is_later(entry.version) && !is_unremembered && !is_known() {
                return Ok(Verification::Other);
            }
        }
        Ok(unproven)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key::new(format!("k{number}")).unwrap()
    }

    fn value(number: u64, version: u64) -> KvEntry {
        let version = VersionToken::from_u64(version);
        KvEntry::tombstone(key(number), KvOperation::Delete, version, SystemTime::UNIX_EPOCH)
    }

    fn keys(recent: &Recent) -> Vec<u64> {
        recent.delivered.iter().filter_map(|known| known.version.as_u64()).collect()
    }

    #[test]
    fn recent_keeps_one_of_each_key_without_a_gap() {
        let mut recent = Recent::default();
        for number in 1..=40 {
            recent.push(&value(number % 20, number));
        }
        assert_eq!(keys(&recent), (25..=40).collect::<Vec<_>>());
        recent.push(&value(30 % 20, 41));
        assert_eq!(keys(&recent), (25..=41).filter(|number| *number != 30).collect::<Vec<_>>());
    }

    #[test]
    fn recent_of_held_has_the_newest_up_to_a_position() {
        let mut newest = NewestHeld::up_to(30);
        for number in [7, 3, 90, 4, 1, 8, 2, 6, 5].into_iter().chain(20..60) {
            newest.visit(&key(number), VersionToken::from_u64(number), SystemTime::UNIX_EPOCH);
        }
        assert_eq!(keys(&newest.into_recent()), (4..=8).chain(20..=30).collect::<Vec<_>>());
    }
}
