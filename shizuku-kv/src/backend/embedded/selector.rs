//! A scope in a form that finds a key in few steps, however many keys or prefixes it has.

use std::collections::BTreeSet;

use crate::store::{Key, WatchScope};

/// Keys that are adjacent in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::backend) enum Range {
    One(Key),
    Prefix(String),
}

impl Range {
    pub(in crate::backend) fn start(&self) -> &str {
        match self {
            Self::One(key) => key,
            Self::Prefix(prefix) => prefix,
        }
    }

    pub(in crate::backend) fn contains(&self, key: &str) -> bool {
        match self {
            Self::One(one) => one.as_str() == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

/// The keys of a scope as ranges that do not overlap, in order.
#[derive(Debug)]
pub(in crate::backend) struct Selector(Vec<Range>);

impl Selector {
    pub(in crate::backend) fn new(scope: &WatchScope) -> Self {
        let prefixes = match scope {
            WatchScope::All => vec![String::new()],
            WatchScope::Key(key) => return Self(vec![Range::One(key.clone())]),
            WatchScope::Keys(keys) => {
                let keys = keys.iter().cloned().collect::<BTreeSet<_>>();
                return Self(keys.into_iter().map(Range::One).collect());
            }
            WatchScope::Prefix(prefix) => vec![prefix.clone()],
            WatchScope::Prefixes(prefixes) => {
                // A prefix that another one covers comes right after it.
                let mut prefixes = prefixes.clone();
                prefixes.sort_unstable();
                prefixes.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
                prefixes
            }
        };
        Self(prefixes.into_iter().map(Range::Prefix).collect())
    }

    /// Returns whether a key is in the scope.
    pub(in crate::backend) fn contains(&self, key: &str) -> bool {
        // This is the fast path, because most scopes have one range, and a watch calls this for
        // each entry of its store.
        if let [range] = self.0.as_slice() {
            return range.contains(key);
        }
        // Each key between a prefix and a key with that prefix has the prefix too.
        let behind = self.0.partition_point(|range| range.start() <= key);
        behind
            .checked_sub(1)
            .and_then(|last| self.0.get(last))
            .is_some_and(|range| range.contains(key))
    }

    /// Returns the key, if the scope has only one.
    pub(in crate::backend) fn only_key(&self) -> Option<&Key> {
        match self.0.as_slice() {
            [Range::One(key)] => Some(key),
            _ => None,
        }
    }

    pub(in crate::backend) fn into_ranges(self) -> Vec<Range> {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_ordered_ranges_without_overlap() {
        let prefix = |prefix: &str| Range::Prefix(prefix.to_owned());
        let ranges = |scope: WatchScope| Selector::new(&scope).into_ranges();
        assert_eq!(
            ranges(WatchScope::prefixes(["b.c", "a", "b", "a", "ab", "c.d", "b.d"])),
            [prefix("a"), prefix("b"), prefix("c.d")]
        );
        assert_eq!(ranges(WatchScope::prefixes(["x", ""])), [prefix("")]);
        assert!(ranges(WatchScope::prefixes(Vec::<String>::new())).is_empty());
        assert_eq!(ranges(WatchScope::All), [prefix("")]);
    }

    #[test]
    fn selector_contains_what_the_scope_matches() {
        let texts = ["a", "a.a", "a.b", "aa", "ab", "ab.a", "b", "b.a", "b.b.a", "c"];
        let keys: Vec<Key> = texts.iter().map(|text| Key::new(text).unwrap()).collect();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let count = random.usize(..4);
            let some = random.choose_multiple(keys.iter(), count);
            let scope = match random.u8(..4) {
                0 => WatchScope::All,
                1 => WatchScope::keys(some.into_iter().map(|key| key.as_str())).unwrap(),
                _ => WatchScope::prefixes(some.into_iter().map(|key| key.as_str())),
            };
            for key in &keys {
                assert_eq!(
                    Selector::new(&scope).contains(key),
                    scope.matches(key),
                    "{scope:?} {key}"
                );
            }
        }
    }
}
