//! Detection of entries that leave the stream without a message, from the stream's figures.
//!
//! An operator's purge and an expired tombstone of another client are not delivered. A watch holds
//! no keys, so it compares numbers. Each subject of one census has at least one message in the
//! next, unless it was removed without a successor. So a smaller number of subjects proves a loss,
//! unless expired tombstones explain it (ADR 0064).

use super::stream_info::StreamInfo;

/// Figures of the stream at one moment, read from its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Census {
    first: u64,
    end: u64,
    subjects: u64,
    /// Number of keys in the scope of the watch, if the server can count them.
    keys: Option<u64>,
}

impl Census {
    pub(super) fn new(info: &StreamInfo, keys: Option<u64>) -> Self {
        Self {
            first: info.first_sequence(),
            end: info.last_sequence(),
            subjects: info.subjects(),
            keys,
        }
    }

    /// Adopts the number of keys of an earlier census if this one has none.
    pub(super) fn or_keys_of(self, before: Option<Self>) -> Self {
        before.and_then(|before| before.keys).map_or(self, |keys| self.or_keys(keys))
    }

    /// Adopts a number of keys if this census has none.
    pub(super) fn or_keys(self, keys: u64) -> Self {
        Self { keys: self.keys.or(Some(keys)), ..self }
    }

    /// Compares with an earlier census. `tombstones` is the maximum number of tombstones that the
    /// watch has delivered. `is_complete` says whether these are all tombstones in its scope.
    pub(super) fn compare(&self, before: &Self, tombstones: u64, is_complete: bool) -> Change {
        let left = match (self.keys, before.keys) {
            (Some(keys), Some(before)) if is_complete => before.saturating_sub(keys),
            // Other clients can have cleaned up tombstones that the watch does not know. But if no
            // message of the earlier census is left, every value among them is gone or superseded.
            _ if self.first > before.end => before.subjects.saturating_sub(self.subjects),
            _ => 0,
        };
        match left {
            0 => Change::None,
            left if left > tombstones => Change::Lost,
            left => Change::Fewer(left),
        }
    }
}

/// Changes between two censuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// No entry is known to have left.
    None,
    /// This number of keys has left. All of them may have been tombstones.
    Fewer(u64),
    /// Values have left.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Census = Census { first: 1, end: 10, subjects: 5, keys: Some(5) };

    #[test]
    fn keys_gone_beyond_tombstones_are_lost() {
        let compare = |keys, tombstones| {
            Census { keys: Some(keys), ..BEFORE }.compare(&BEFORE, tombstones, true)
        };
        assert_eq!(compare(5, 0), Change::None);
        assert_eq!(compare(6, 0), Change::None);
        assert_eq!(compare(4, 0), Change::Lost);
        assert_eq!(compare(4, 1), Change::Fewer(1));
        assert_eq!(compare(3, 1), Change::Lost);
    }

    #[test]
    fn unknown_tombstones_need_a_whole_purge_as_proof() {
        let partial = Census { keys: Some(2), subjects: 2, ..BEFORE };
        assert_eq!(partial.compare(&BEFORE, 0, false), Change::None);
        let whole = Census { first: 11, subjects: 2, end: 12, keys: None };
        assert_eq!(whole.compare(&BEFORE, 0, false), Change::Lost);
        assert_eq!(whole.compare(&BEFORE, 2, true), Change::Lost);
        assert_eq!(whole.compare(&BEFORE, 3, false), Change::Fewer(3));
        // Every key was superseded.
        assert_eq!(Census { subjects: 5, ..whole }.compare(&BEFORE, 0, false), Change::None);
    }

    #[test]
    fn unknown_number_of_keys_keeps_the_last_one() {
        let without = Census { keys: None, ..BEFORE };
        assert_eq!(without.or_keys_of(Some(BEFORE)), BEFORE);
        assert_eq!(without.or_keys_of(None), without);
    }
}
