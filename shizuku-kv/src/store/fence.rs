//! Fencing tokens, which order the grants of a lock.

use std::fmt;

/// The number of a lock's grant: each grant of a resource has a larger one than all earlier grants.
///
/// A writer under a lock passes it with each write. An earlier grant cannot overwrite the write of
/// a later one. A holder that was paused past its lease, and does not know that yet, therefore does
/// no harm. In a store that is [`Store::fenced`](crate::Store::fenced). See "How to do distributed
/// locking" (Kleppmann, 2016) for why a lock without this protects nothing.
///
/// Do not compare tokens of different resources: the comparison is safe, but means nothing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// Returns the token with this number, for code that stores tokens elsewhere.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number, to be passed to another system that is written to under the lock.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the token that rejects a write with this one: that of the key's newest entry, if it
    /// is newer. An equal one belongs to the same holder.
    pub(crate) fn rejected_by(self, newest: Option<Self>) -> Option<Self> {
        newest.filter(|newest| *newest > self)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_token_rejects_a_write() {
        let [one, two] = [1, 2].map(FencingToken::from_u64);
        assert_eq!(one.rejected_by(Some(two)), Some(two));
        assert_eq!(two.rejected_by(Some(two)), None);
        assert_eq!(two.rejected_by(Some(one)), None);
        assert_eq!(FencingToken::from_u64(0).rejected_by(None), None);
    }
}
