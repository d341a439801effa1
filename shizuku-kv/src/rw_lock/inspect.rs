//! A lock as an operator sees it.

use super::record::{Claim, LockMode, LockRecord};
use crate::store::{FencingToken, KvEntry};

/// Who holds a resource and who waits for it. From [`DistroRwLock::inspect`](super::DistroRwLock::inspect).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockState {
    /// The newest token that was given, or that a break has moved past; `None` where the resource was never locked.
    pub newest: Option<FencingToken>,
    /// One writer, or any number of readers. Those that have died are among them until somebody waits for them.
    pub holders: Vec<LockGrant>,
    /// In the order in which they came. Who has just given up may still be among them for a moment.
    pub waiting: Vec<LockClaim>,
}

/// Somebody who holds a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockGrant {
    /// Who, and how.
    pub claim: LockClaim,
    /// The number of the grant.
    pub token: FencingToken,
}

/// Somebody who holds a resource or waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockClaim {
    /// How.
    pub mode: LockMode,
    /// What it says of itself ([`LockOptions::label`](super::LockOptions::label)).
    pub label: Option<String>,
    /// Of the process: the key `rw_lock_session.SESSION` is renewed as long as it lives.
    pub session: String,
}

impl LockState {
    pub(super) fn of(entry: Option<&KvEntry>) -> Result<Self, &'static str> {
        let record = entry.map_or(Ok(LockRecord::default()), |entry| LockRecord::from_bytes(&entry.value))?;
        let newest = (record.fence > 0).then(|| FencingToken::from_u64(record.fence));
        let grants = record.holders.into_iter();
        Ok(Self {
            newest,
            holders: grants
                .map(|grant| LockGrant { claim: LockClaim::of(grant.claim), token: grant.token })
                .collect(),
            waiting: record.queue.into_iter().map(LockClaim::of).collect(),
        })
    }
}

impl LockClaim {
    fn of(claim: Claim) -> Self {
        Self { mode: claim.mode, label: claim.label, session: claim.id.session.to_string() }
    }
}
