//! Scopes, which select many keys (ADR 0016).

use super::grammar::{self, KeyFaultKind};
use super::{IntoKey, Key, KvError};

/// The keys that a watch or a scan covers.
///
/// Prefixes are literal strings, not patterns: `Prefix("config.da")` selects `config.database` and
/// `config.data.x`. Operations return [`KvError::InvalidKey`] for a prefix with which no key can
/// start, such as one with `*`, `>`, a space or a double dot. The value of a field may have
/// characters that keys escape. The derived functions, such as `UserKey::scope_tenant("acme com")`,
/// escape the value. The server filters scopes as far as it can.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WatchScope {
    /// Every key.
    #[default]
    All,
    /// One key.
    Key(Key),
    /// These keys. In a watch, use some dozens at most: with more, the server filters slowly or not
    /// at all. Scans and listings read each key by name, however many keys are given.
    Keys(Vec<Key>),
    /// The keys that start with this string.
    Prefix(String),
    /// The keys that start with at least one of these strings. An empty list selects nothing.
    Prefixes(Vec<String>),
}

impl WatchScope {
    /// Returns the scope of one key.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if `key` is not a key.
    pub fn key(key: impl IntoKey) -> Result<Self, KvError> {
        key.into_key().map(Self::Key)
    }

    /// Returns the scope of some keys. An empty list selects nothing.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] for the first that is not a key.
    pub fn keys<K: IntoKey>(keys: impl IntoIterator<Item = K>) -> Result<Self, KvError> {
        keys.into_iter().map(K::into_key).collect::<Result<_, _>>().map(Self::Keys)
    }

    /// Returns the scope of the keys that start with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::Prefix(prefix.into())
    }

    /// Returns the scope of the keys that start with any of `prefixes`.
    pub fn prefixes<P: Into<String>>(prefixes: impl IntoIterator<Item = P>) -> Self {
        Self::Prefixes(prefixes.into_iter().map(Into::into).collect())
    }

    /// Rejects a prefix with which no key can start, because such a prefix never selects a key.
    pub(crate) fn check_prefixes(&self) -> Result<(), KvError> {
        let prefixes = match self {
            Self::Prefix(prefix) => std::slice::from_ref(prefix),
            Self::Prefixes(prefixes) => prefixes,
            _ => &[],
        };
        for prefix in prefixes {
            grammar::check_prefix(prefix.as_bytes()).map_err(|fault| {
                KvError::invalid_key(prefix, fault, reason_of_prefix(fault.kind))
            })?;
        }
        Ok(())
    }

    /// Returns whether `key` is in the scope. This defines the meaning of a scope. A filter on the
    /// server only saves traffic.
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Key(one) => one.as_str() == key,
            Self::Keys(keys) => keys.iter().any(|one| one.as_str() == key),
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
            Self::Prefixes(prefixes) => {
                prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
            }
        }
    }
}

impl From<Key> for WatchScope {
    fn from(key: Key) -> Self {
        Self::Key(key)
    }
}

/// Returns the rule that a prefix breaks, and the remedy.
fn reason_of_prefix(fault: KeyFaultKind) -> &'static str {
    match fault {
        KeyFaultKind::Byte(b'*' | b'>') => {
            "a prefix is literal text, not a pattern; end it before the wildcard: `orders.` selects \
             the keys of `orders.>`, and an empty prefix selects everything"
        }
        KeyFaultKind::Byte(_) | KeyFaultKind::EmptyToken => {
            "no key starts like this: keys are non-empty tokens of A-Z a-z 0-9 _ = / - joined by \
             single dots; for the value of a field use the derived function, such as \
             UserKey::scope_tenant(), which escapes it"
        }
        KeyFaultKind::Empty | KeyFaultKind::Reserved | KeyFaultKind::TooLong => fault.reason(),
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a panic fails the test")]
mod tests {
    use super::*;

    /// Compares with the definition: a prefix is valid if the prefix, or an extension of it, is a
    /// key.
    #[test]
    fn prefix_is_valid_if_a_key_starts_with_it() {
        let starts_key =
            |prefix: &str| Key::new(prefix).is_ok() || Key::new(format!("{prefix}a")).is_ok();
        let mut prefixes = vec![String::new()];
        for _ in 0..4 {
            let longer = |prefix: &String| {
                ["a", ".", "_", "k", "v", "ü", "*", " "].map(|c| format!("{prefix}{c}"))
            };
            prefixes.extend(prefixes.iter().flat_map(longer).collect::<Vec<_>>());
        }
        prefixes.extend([1023, 1024, 1025].map(|length| "k".repeat(length)));
        prefixes.extend([1022, 1023, 1024].map(|length| "k".repeat(length) + "."));
        for prefix in prefixes {
            match WatchScope::prefix(&prefix).check_prefixes() {
                Ok(()) => assert!(starts_key(&prefix), "{prefix:?}"),
                Err(KvError::InvalidKey { position, .. }) => {
                    assert!(!starts_key(&prefix), "{prefix:?}");
                    let before = &prefix[..position.min(prefix.len() - 1)];
                    assert!(starts_key(before), "{prefix:?}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
