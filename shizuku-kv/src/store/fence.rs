//! Fencing tokens: which holder of a lock came later.

use std::fmt;

/// The number of a lock's grant: each grant of a resource has a larger one than all before.
///
/// Whoever writes under a lock shows it with the write, and what was written under a later grant is not overwritten by
/// an earlier one: a holder that was paused past its lease and does not know it yet does no harm. See "How to do
/// distributed locking" (Kleppmann, 2016) for why a lock without this protects nothing.
///
/// Tokens of different resources must not be compared; doing so is safe, but means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token with this number; for what keeps tokens elsewhere.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Its number, to be shown to another system that is written to under the lock.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
