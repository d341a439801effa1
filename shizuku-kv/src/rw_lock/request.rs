//! The stored form of a request: changes of a lock that a process asks others to make, because its
//! own swaps were lost (ADR 0116).

use serde::{Deserialize, Serialize};

use super::record::{Claim, ClaimId, LockRecord, SessionId};
use super::run::Run;
use super::transition::Change;
use crate::store::{Key, KvEntry, KvResult, VersionToken};

/// Prefix of the keys of requests.
const PREFIX: &str = "rw_lock_request.";

const FORMAT: u32 = 1;

/// The changes that a process wants.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    shizuku_lock_request: u32,
    /// The key of the record. The key of the request contains only its checksum.
    lock: Key,
    /// The newest version of the record that the process knew.
    base: VersionToken,
    /// New claims, which wait.
    pub(super) claims: Vec<Claim>,
    /// Claims of the record that leave.
    pub(super) leaves: Vec<ClaimId>,
}

impl Request {
    pub(super) fn new(
        lock: Key,
        base: VersionToken,
        claims: Vec<Claim>,
        leaves: Vec<ClaimId>,
    ) -> Self {
        Self { shizuku_lock_request: FORMAT, lock, base, claims, leaves }
    }

    /// Decodes a request for a lock. Returns `None` for a tombstone, for a request for another lock
    /// with the same checksum, and for an unknown format. Returns `None` too
    /// if it has changes of a session that does not use the key.
    pub(super) fn of(entry: &KvEntry, lock: &Key) -> Option<Self> {
        let mut request = serde_json::from_slice::<Self>(&entry.value).ok()?;
        request.claims.iter_mut().for_each(Claim::drop_grant_fields);
        let is_of_key = request
            .sessions()
            .all(|session| key_of(lock, session).is_ok_and(|key| key == entry.key));
        let is_known = request.shizuku_lock_request == FORMAT && request.lock == *lock;
        (is_known && is_of_key).then_some(request)
    }

    /// Returns the sessions of the claims.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.claims
            .iter()
            .map(|claim| claim.id)
            .chain(self.leaves.iter().copied())
            .map(|id| id.session)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Serializing strings, numbers and lists does not fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Adds the claims to the newest known record, unless they may have left it before.
    pub(super) fn apply_claims(&self, record: &mut LockRecord, run: &Run) {
        if run.admits(self.base) {
            for claim in &self.claims {
                record.apply(&Change::Claim { claim: claim.clone(), waits: true });
            }
        }
    }

    /// Removes the claims that leave. A claim that has left never comes back, so the version does
    /// not matter.
    pub(super) fn apply_leaves(&self, record: &mut LockRecord) {
        for id in &self.leaves {
            record.apply(&Change::Leave(*id));
        }
    }
}

/// Returns the prefix of the keys of all requests for a lock.
pub(super) fn prefix_of(lock: &Key) -> String {
    format!("{PREFIX}{:08x}.", crc32fast::hash(lock.as_str().as_bytes()))
}

/// Returns the key of a session's requests for a lock. The next session under the key of that
/// session uses it too.
pub(super) fn key_of(lock: &Key, session: SessionId) -> KvResult<Key> {
    Key::new(format!("{}{session}", prefix_of(lock)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::rw_lock::record::{Extra, LockMode};
    use crate::store::KvOperation;

    /// Two records can have the same checksum. A later format may mean something else.
    #[test]
    fn request_of_another_lock_or_format_is_ignored() {
        let (lock, other) = (Key::new("rw_lock.r").unwrap(), Key::new("rw_lock.other").unwrap());
        let id = ClaimId { session: SessionId::alone(7), number: 1 };
        let claim = Claim { id, mode: LockMode::Read, label: None, extra: Extra::new() };
        let version = VersionToken::from_u64(5);
        let request = Request::new(lock.clone(), version, vec![claim], vec![id]);
        let key = key_of(&lock, id.session).unwrap();
        let entry = KvEntry::put(key, request.to_bytes().into(), version, SystemTime::UNIX_EPOCH);
        assert_eq!(Request::of(&entry, &other), None);
        let purged = KvEntry { value: "".into(), operation: KvOperation::Purge, ..entry.clone() };
        assert_eq!(Request::of(&purged, &lock), None);
        let later =
            Request { shizuku_lock_request: FORMAT + 1, ..Request::of(&entry, &lock).unwrap() };
        let later = KvEntry { value: later.to_bytes().into(), ..entry.clone() };
        assert_eq!(Request::of(&later, &lock), None);
        assert_eq!(Request::of(&entry, &lock), Some(request));
    }
}
