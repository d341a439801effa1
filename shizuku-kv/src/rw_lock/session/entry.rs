//! The stored form of a session: the entry under its key. A renewal of the entry proves that the
//! process is alive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rw_lock::lease::{self, EntryMeaning};
use crate::rw_lock::options::{LONGEST_LEASE, SHORTEST_LEASE};
use crate::rw_lock::record::{SessionId, Slot, padded};
use crate::store::{Key, KvEntry, KvResult, VersionToken};

/// Prefix of the keys of sessions.
const PREFIX: &str = "rw_lock_session.";

/// Format of an entry whose key serves one session only, and names this session.
const FORMAT_OF_ONE: u32 = 1;

/// Format of an entry whose key serves successive sessions.
const FORMAT: u32 = 2;

/// Length of the longest entry in bytes.
const LENGTH: usize = 112;

/// An entry under the key of a session. Each renewal has a different number, so that the writer
/// recognizes its own entry.
#[derive(Serialize, Deserialize)]
pub(super) struct SessionEntry {
    shizuku_lock_session: u32,
    /// Random number that distinguishes the sessions of a key, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    lease_ms: u64,
    pub(super) renewal: u64,
}

impl SessionEntry {
    /// Returns an entry of the session with this random number. Without a number, the session is
    /// the one that the key names.
    pub(super) fn of_session(nonce: Option<u64>, lease: Duration, renewal: u64) -> Self {
        let shizuku_lock_session = if nonce.is_some() { FORMAT } else { FORMAT_OF_ONE };
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Self {
            shizuku_lock_session,
            nonce: nonce.map(|nonce| format!("{nonce:016x}")),
            lease_ms,
            renewal,
        }
    }

    /// Returns the entry with padding, so that the length of the entry and of the expected version
    /// together is constant. A full store therefore accepts a renewal.
    pub(super) fn to_bytes(&self, expected: Option<VersionToken>) -> Vec<u8> {
        // Serializing numbers and strings does not fail.
        padded(serde_json::to_vec(self).unwrap_or_default(), LENGTH, expected)
    }

    pub(super) fn of(entry: &KvEntry) -> Option<Self> {
        let is_known =
            |stored: &Self| matches!(stored.shizuku_lock_session, FORMAT_OF_ONE | FORMAT);
        let is_live = !entry.is_tombstone();
        serde_json::from_slice::<Self>(&entry.value)
            .ok()
            .filter(|stored| is_live && is_known(stored))
    }

    pub(super) fn is_of(&self, session: SessionId) -> bool {
        let nonce = self.nonce.as_ref().and_then(|nonce| u64::from_str_radix(nonce, 16).ok());
        match session.slot_use() {
            Some(_) => nonce.is_some_and(|nonce| u128::from(nonce) == session.number()),
            None => true,
        }
    }
}

/// Returns the lease of the session under a key. Returns the longest lease if the entry cannot be
/// read, because a later version may have written it.
pub(in crate::rw_lock) fn lease_of(entry: &KvEntry) -> Duration {
    let stored = SessionEntry::of(entry).map(|stored| Duration::from_millis(stored.lease_ms));
    stored.map_or(LONGEST_LEASE, |lease| lease.min(LONGEST_LEASE))
}

/// Classifies an entry under the key of a session. An unreadable entry, perhaps of a later version,
/// counts as a sign of life.
pub(in crate::rw_lock) fn meaning_of(session: SessionId, entry: &KvEntry) -> EntryMeaning {
    let is_its_own =
        !entry.is_tombstone() && SessionEntry::of(entry).is_none_or(|stored| stored.is_of(session));
    lease::meaning(session.slot_use().map(|used| used.first), entry.version.as_u64(), is_its_own)
}

/// Returns the key under which a session is renewed. The key may already serve another session.
pub(in crate::rw_lock) fn key_of(session: SessionId) -> KvResult<Key> {
    match session.slot_use() {
        Some(used) => key_of_slot(used.slot),
        None => Key::new(format!("{PREFIX}{session}")),
    }
}

pub(super) fn key_of_slot(slot: Slot) -> KvResult<Key> {
    Key::new(format!("{PREFIX}{slot}"))
}

/// Returns a marker for the key of an absent session. While the marker exists, no process can renew
/// the session.
pub(in crate::rw_lock) fn marker() -> Vec<u8> {
    SessionEntry::of_session(None, SHORTEST_LEASE, 0).to_bytes(None)
}

/// Returns whether a version is later than another one. If versions cannot be compared, a different
/// one counts as later.
pub(in crate::rw_lock) fn is_later(one: VersionToken, other: VersionToken) -> bool {
    match (one.as_u64(), other.as_u64()) {
        (Some(one), Some(other)) => one > other,
        _ => one != other,
    }
}

/// Returns whether an answer is older than the newest known version, as far as versions show it.
pub(in crate::rw_lock) fn is_older(
    found: Option<VersionToken>,
    seen: Option<VersionToken>,
) -> bool {
    match (found, seen) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(found), Some(seen)) => {
            found.as_u64().zip(seen.as_u64()).is_some_and(|(found, seen)| found < seen)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the version that the server receives in a header. Otherwise a full store would reject
    /// a renewal.
    #[test]
    fn renewal_is_as_long_as_the_first_entry() {
        let length = |renewal, version: u64| {
            let version = (version > 0).then(|| VersionToken::from_u64(version));
            let digits = version.map_or(1, |version| version.to_string().len());
            SessionEntry::of_session(Some(u64::MAX), LONGEST_LEASE, renewal).to_bytes(version).len()
                + digits
        };
        let created = length(0, 0);
        for number in [1, 9, 10, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(length(number, number), created, "{number}");
        }
    }
}
