//! Scopes that cover many keys.

use std::collections::BTreeSet;

use crate::store::{Key, WatchScope};

/// Maximum number of keys that are requested by name. The server's work for each message grows with
/// the number (ADR 0026).
pub(super) const EXACT_KEYS: usize = 64;

/// Maximum number of prefixes. With more, shorter ones are used.
const MOST_PREFIXES: usize = 16;

/// Returns a scope that covers all of `keys`: exactly these if they are few, otherwise prefixes.
pub(super) fn covering(keys: Vec<Key>) -> WatchScope {
    if let [one] = keys.as_slice() {
        return WatchScope::Key(one.clone());
    }
    if keys.len() <= EXACT_KEYS {
        return WatchScope::Keys(keys);
    }
    let deepest = keys.iter().map(|key| key.split('.').count()).min().unwrap_or(1);
    (1..deepest)
        .rev()
        .map(|depth| keys.iter().map(|key| stem(key, depth)).collect::<BTreeSet<_>>())
        .find(|stems| stems.len() <= MOST_PREFIXES)
        .map_or(WatchScope::All, WatchScope::prefixes)
}

/// Returns the first `depth` tokens of a key that has more, with the dot behind them.
fn stem(key: &str, depth: usize) -> &str {
    key.match_indices('.').nth(depth - 1).map_or(key, |(dot, _)| &key[..=dot])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn keys(names: impl IntoIterator<Item = String>) -> Vec<Key> {
        names.into_iter().map(|name| Key::new(name).unwrap()).collect()
    }

    #[test]
    fn few_keys_are_named_and_many_are_covered_by_prefixes() {
        let one = keys(["a.b".to_owned()]);
        assert_eq!(covering(one.clone()), WatchScope::Key(one[0].clone()));
        let few = keys((0..EXACT_KEYS).map(|n| format!("a.{n}")));
        assert_eq!(covering(few.clone()), WatchScope::Keys(few));
        let numbered = |count: usize, tenants: usize| {
            keys((0..count).map(|n| format!("user.{}.{n}", n % tenants)))
        };
        assert_eq!(covering(numbered(100, 2)), WatchScope::prefixes(["user.0.", "user.1."]));
        assert_eq!(covering(numbered(100, 17)), WatchScope::prefixes(["user."]));
        let mut mixed = numbered(100, 2);
        mixed.extend(keys(["config.database".to_owned()]));
        assert_eq!(covering(mixed.clone()), WatchScope::prefixes(["config.", "user."]));
        mixed.extend(keys(["root".to_owned()]));
        assert_eq!(covering(mixed), WatchScope::All);
    }

    #[test]
    fn covering_scope_has_all_random_keys() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut names = BTreeSet::new();
            for _ in 0..random.usize(1..200) {
                let tokens = random.usize(1..5);
                let name: Vec<_> = (0..tokens).map(|_| random.u8(0..20).to_string()).collect();
                names.insert(name.join("."));
            }
            let keys = keys(names);
            let scope = covering(keys.clone());
            assert!(keys.iter().all(|key| scope.matches(key)), "{scope:?}");
        }
    }
}
