//! The subjects by which a server filters the messages of a scope.

use super::link::Link;
use super::wire::subject_prefix;
use crate::store::{Key, WatchScope};

/// Maximum number of prefixes or keys that the server filters. With more, filtering here costs less
/// than comparisons with each of them on the server.
pub(super) const MOST_FILTERS: usize = 64;

/// The number of filters whose waiting messages a server counts correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    Right,
    /// Before 2.11 the count is wrong if one filter is another one with more tokens.
    NotParents,
}

impl Counting {
    pub(super) fn of(link: &Link) -> Self {
        if link.server_is_at_least(2, 11) { Self::Right } else { Self::NotParents }
    }
}

/// Bytes of a request for a consumer beside its filters.
const CREATE_FRAME: usize = 512;

/// Returns the subjects that cover a scope, and fit into one request to this server.
pub(super) fn filters_for(link: &Link, bucket: &str, scope: &WatchScope) -> Vec<String> {
    let filters = filters(bucket, scope, Counting::of(link));
    let bytes: usize = filters.iter().map(|filter| filter.len() + 3).sum();
    if bytes + CREATE_FRAME > link.max_payload() {
        return vec![format!("{}>", subject_prefix(bucket))];
    }
    filters
}

/// Returns the subjects that cover a scope, for the server to filter. They do not overlap, and
/// cover at least the scope.
pub(super) fn filters(bucket: &str, scope: &WatchScope, server: Counting) -> Vec<String> {
    let prefix = subject_prefix(bucket);
    let everything = || vec![format!("{prefix}>")];
    // The part of a string prefix up to its last dot consists of whole tokens, which the server can
    // match.
    let covering = |key_prefix: &str| match key_prefix.rfind('.') {
        // Text that is not a key would be a pattern or an error on the server, and is filtered
        // here.
        Some(dot) if Key::new(&key_prefix[..dot]).is_ok() => {
            Some(format!("{prefix}{}.>", &key_prefix[..dot]))
        }
        _ => None,
    };
    match scope {
        WatchScope::Key(key) => vec![format!("{prefix}{key}")],
        WatchScope::Keys(keys) if (1..=MOST_FILTERS).contains(&keys.len()) => {
            let mut keys: Vec<_> = keys.iter().map(Key::as_str).collect();
            keys.sort_unstable();
            keys.dedup();
            let is_child = |parent: &str, child: &str| {
                child.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'))
            };
            let parents = keys.iter().any(|one| keys.iter().any(|other| is_child(one, other)));
            match keys[..] {
                _ if parents && server == Counting::NotParents => everything(),
                [key] => vec![format!("{prefix}{key}")],
                _ => keys.iter().map(|key| format!("{}{key}", any_bucket_prefix())).collect(),
            }
        }
        WatchScope::Prefix(key_prefix) => {
            covering(key_prefix).map_or_else(everything, |one| vec![one])
        }
        WatchScope::Prefixes(prefixes) => {
            let mut stems = Vec::new();
            for key_prefix in prefixes {
                let Some(filter) = covering(key_prefix) else { return everything() };
                stems.push(filter.trim_end_matches('>').to_owned());
            }
            // A covered filter is left out, because the server rejects overlapping filters. After
            // sorting, the covered stems follow the one that covers them.
            stems.sort();
            stems.dedup_by(|later, kept| later.starts_with(kept.as_str()));
            if stems.is_empty() || stems.len() > MOST_FILTERS {
                return everything();
            }
            stems.iter().map(|stem| format!("{stem}>")).collect()
        }
        _ => everything(),
    }
}

/// Returns the prefix of a key that is one of several filters. This prefix covers every bucket, and
/// selects the same messages, because a stream has one bucket. A consumer with exactly the purged
/// subject skips to the end of the purge. Before 2.15, such a consumer also skips waiting messages
/// of its other subjects (nats-server #8571). A consumer with a broader filter does not (ADR 0011).
fn any_bucket_prefix() -> String {
    subject_prefix("*")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn filters_cover_the_scope() {
        let filters = |bucket: &str, scope: &WatchScope| filters(bucket, scope, Counting::Right);
        let prefix = |p: &str| filters("b", &WatchScope::prefix(p));
        assert_eq!(filters("b", &WatchScope::All), ["$KV.b.>"]);
        assert_eq!(prefix(""), ["$KV.b.>"]);
        assert_eq!(prefix("config"), ["$KV.b.>"]);
        assert_eq!(prefix("config."), ["$KV.b.config.>"]);
        assert_eq!(prefix("config.da"), ["$KV.b.config.>"]);
        assert_eq!(prefix("a.b.c"), ["$KV.b.a.b.>"]);
        // Text that is not a key is not sent to the server, where it would be a pattern or an
        // error.
        for odd in ["*.a", "a.*.b", ">.a", ".a", "a b.c", "a..b", "a..", "ä.b"] {
            assert_eq!(prefix(odd), ["$KV.b.>"], "{odd}");
        }
        let keys = |keys: &[&str]| filters("b", &WatchScope::keys(keys.iter().copied()).unwrap());
        assert_eq!(keys(&["a.b", "a", "a.b"]), ["$KV.*.a", "$KV.*.a.b"]);
        assert_eq!(keys(&["a.b", "a.b"]), ["$KV.b.a.b"]);
        assert_eq!(keys(&[]), ["$KV.b.>"]);
        let old = |keys: &[&str]| {
            super::filters(
                "b",
                &WatchScope::keys(keys.iter().copied()).unwrap(),
                Counting::NotParents,
            )
        };
        assert_eq!(old(&["a.b", "a-b", "a.bc"]), ["$KV.*.a-b", "$KV.*.a.b", "$KV.*.a.bc"]);
        assert_eq!(old(&["a.b.c", "a-b", "a.b"]), ["$KV.b.>"]);
        let prefixes = |p: &[&str]| filters("b", &WatchScope::prefixes(p.iter().copied()));
        assert_eq!(prefixes(&["a.b.", "a.", "c.x"]), ["$KV.b.a.>", "$KV.b.c.>"]);
        assert_eq!(prefixes(&["a.", "b"]), ["$KV.b.>"]);
        assert_eq!(prefixes(&["ab.", "a."]), ["$KV.b.a.>", "$KV.b.ab.>"]);
        assert_eq!(prefixes(&["a.1.", "a.", "a.-.", "a"]), ["$KV.b.>"]);
        assert_eq!(prefixes(&["a.1.", "a.", "a.-.x"]), ["$KV.b.a.>"]);
        let many: Vec<_> = (0..10_000).map(|n| format!("p{n}.")).collect();
        assert_eq!(filters("b", &WatchScope::prefixes(many)), ["$KV.b.>"]);
    }
}
