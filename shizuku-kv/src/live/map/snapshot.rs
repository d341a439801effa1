//! A live map as of one moment.

use std::borrow::Borrow;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::live::snapshot::LiveSnapshot;

/// A [`LiveMap`](crate::LiveMap) as of one moment, ordered by key. It does not change.
///
/// Taking and cloning one costs as much as cloning an `Arc`. It shares its entries with the map,
/// and keeps alive only those that the map no longer has.
pub struct LiveMapSnapshot<K, T> {
    pub(super) entries: RedBlackTreeMapSync<K, Arc<LiveSnapshot<T>>>,
}

/// Iterates over all keys with their values, ordered by key.
impl<'s, K: Ord, T> IntoIterator for &'s LiveMapSnapshot<K, T> {
    type Item = (&'s K, &'s Arc<LiveSnapshot<T>>);
    type IntoIter = Box<dyn DoubleEndedIterator<Item = Self::Item> + 's>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<K: Ord, T> LiveMapSnapshot<K, T> {
    /// Returns the value of a key, with its version.
    pub fn get<Q>(&self, key: &Q) -> Option<&Arc<LiveSnapshot<T>>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.entries.get(key)
    }

    /// Returns whether a key has a value.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.entries.contains_key(key)
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.entries.size()
    }

    /// Returns whether the map has no value.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns all keys with their values, ordered by key.
    pub fn iter(
        &self,
    ) -> impl DoubleEndedIterator<Item = (&K, &Arc<LiveSnapshot<T>>)> + ExactSizeIterator {
        self.entries.iter()
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator {
        self.entries.keys()
    }

    /// Returns all values, ordered by key.
    pub fn values(
        &self,
    ) -> impl DoubleEndedIterator<Item = &Arc<LiveSnapshot<T>>> + ExactSizeIterator {
        self.entries.values()
    }

    /// Returns the keys in a range with their values, ordered by key. A range that ends before it
    /// starts is empty.
    pub fn range<Q, R>(
        &self,
        range: R,
    ) -> impl DoubleEndedIterator<Item = (&K, &Arc<LiveSnapshot<T>>)> + use<'_, K, T, Q, R>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
        R: RangeBounds<Q>,
    {
        // The inner map would panic.
        let is_backward = match (range.start_bound(), range.end_bound()) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (
                Bound::Included(start) | Bound::Excluded(start),
                Bound::Included(end) | Bound::Excluded(end),
            ) => start >= end,
        };
        (!is_backward).then(|| self.entries.range(range)).into_iter().flatten()
    }
}

impl<K: Ord, T> Default for LiveMapSnapshot<K, T> {
    fn default() -> Self {
        Self { entries: RedBlackTreeMapSync::default() }
    }
}

impl<K: Ord, T> Clone for LiveMapSnapshot<K, T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone() }
    }
}

/// Shows the number of entries, not the entries.
impl<K: Ord, T> fmt::Debug for LiveMapSnapshot<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMapSnapshot").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::VersionToken;

    fn snapshot(keys: impl IntoIterator<Item = u32>) -> LiveMapSnapshot<u32, ()> {
        let value = || LiveSnapshot::of((), VersionToken::from_u64(1), std::time::UNIX_EPOCH);
        let entries = keys.into_iter().map(|key| (key, Arc::new(value()))).collect();
        LiveMapSnapshot { entries }
    }

    #[test]
    fn snapshot_is_ordered_from_both_ends() {
        let snapshot = snapshot([3, 1, 2, 5]);
        assert!(snapshot.keys().copied().eq([1, 2, 3, 5]));
        assert!(snapshot.iter().rev().map(|(key, _)| *key).eq([5, 3, 2, 1]));
        assert_eq!((snapshot.len(), snapshot.values().len(), snapshot.is_empty()), (4, 4, false));
        assert!(snapshot.contains_key(&5) && snapshot.get(&4).is_none());
    }

    #[test]
    fn every_range_has_its_keys_and_does_not_panic() {
        let snapshot = snapshot(0..10);
        let keys = |range: (Bound<u32>, Bound<u32>)| {
            snapshot.range(range).map(|(key, _)| *key).collect::<Vec<_>>()
        };
        for start in 0..10 {
            for end in 0..10 {
                assert_eq!(
                    keys((Bound::Included(start), Bound::Excluded(end))),
                    (start..end).collect::<Vec<_>>()
                );
                assert_eq!(
                    keys((Bound::Included(start), Bound::Included(end))),
                    (start..=end).collect::<Vec<_>>()
                );
                let inner = (start + 1..end).collect::<Vec<_>>();
                assert_eq!(keys((Bound::Excluded(start), Bound::Excluded(end))), inner);
                let upper = (start + 1..=end).collect::<Vec<_>>();
                assert_eq!(keys((Bound::Excluded(start), Bound::Included(end))), upper);
            }
            assert_eq!(
                keys((Bound::Excluded(start), Bound::Unbounded)),
                (start + 1..10).collect::<Vec<_>>()
            );
        }
    }
}
