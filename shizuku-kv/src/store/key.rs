//! Keys, and the scopes that select many of them (ADR 0016).

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::KvError;
use super::grammar::{self, KeyFault, KeyFaultKind};

/// A valid key: tokens of `[A-Za-z0-9_=/-]` joined by single dots, at most 1,024 bytes, not
/// starting with `_kv`.
///
/// A `Key` proves that the string was checked; cloning it is cheap. Every function with a key as
/// parameter accepts any [`IntoKey`], strings included, and checks it before it sends anything.
///
/// ```
/// use shizuku_kv::{Key, KvError};
///
/// let key = Key::new("config.database")?;
/// assert_eq!(key.as_str(), "config.database");
/// let error = Key::new("config..database").unwrap_err();
/// assert!(error.to_string().contains("byte 7"));
/// # Ok::<(), KvError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Prefix of all keys of locks, their sessions and elections.
    const LOCKS: &str = "rw_lock";

    /// Returns whether the key belongs to a lock, a session or an election. Its tombstone never
    /// expires.
    pub(crate) fn is_of_locks(&self) -> bool {
        self.0.starts_with(Self::LOCKS)
    }

    /// Checks a string and makes it a key.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if it is not a key, with the first offending byte and its
    /// position.
    pub fn new(key: impl AsRef<str>) -> Result<Self, KvError> {
        let key = key.as_ref();
        match grammar::check_key(key) {
            Ok(()) => Ok(Self(Arc::from(key))),
            Err(fault) => Err(KvError::invalid_key(key, fault, fault.kind.reason())),
        }
    }

    /// Creates a key that was checked before, like those that a snapshot has loaded.
    pub(crate) fn of_checked(key: &str) -> Self {
        Self(Arc::from(key))
    }

    /// Returns the key as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Key {
    type Err = KvError;

    fn from_str(key: &str) -> Result<Self, KvError> {
        Self::new(key)
    }
}

impl TryFrom<&str> for Key {
    type Error = KvError;

    fn try_from(key: &str) -> Result<Self, KvError> {
        Self::new(key)
    }
}

impl TryFrom<String> for Key {
    type Error = KvError;

    fn try_from(key: String) -> Result<Self, KvError> {
        Self::new(key)
    }
}

impl PartialEq<str> for Key {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Key {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// Types that operations accept as a key: a [`Key`], or a string that is checked first.
pub trait IntoKey {
    /// Converts to a key.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if it is not one.
    fn into_key(self) -> Result<Key, KvError>;
}

impl IntoKey for Key {
    fn into_key(self) -> Result<Key, KvError> {
        Ok(self)
    }
}

impl IntoKey for &Key {
    fn into_key(self) -> Result<Key, KvError> {
        Ok(self.clone())
    }
}

macro_rules! into_key {
    ($($text:ty,)*) => {$(
        impl IntoKey for $text {
            fn into_key(self) -> Result<Key, KvError> {
                Key::new(self)
            }
        }
    )*};
}

into_key!(
    &str,
    &&str,
    String,
    &String,
    Box<str>,
    &Box<str>,
    Cow<'_, str>,
    &Cow<'_, str>,
    Arc<str>,
    &Arc<str>,
);

/// The keys that a watch or a scan covers.
///
/// Prefixes are literal strings, not patterns: `Prefix("config.da")` selects `config.database` and
/// `config.data.x`. Operations return [`KvError::InvalidKey`] for a prefix with which no key can
/// start, such as one with `*`, `>`, a space or a double dot. The value of a field may have
/// characters that keys escape. The derived functions, such as `UserKey::scope_tenant("acme com")`,
/// escape it. The server filters the scopes that it can.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WatchScope {
    /// Every key.
    #[default]
    All,
    /// One key.
    Key(Key),
    /// These keys. In a watch, use some dozens at most: with more, the server filters badly or not
    /// at all. Scans and listings read each key by name, however many there are.
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
    /// Returns [`KvError::InvalidKey`] if it is not a key.
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

    /// Rejects a prefix with which no key can start, because it would select nothing forever.
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

    /// Returns whether `key` is in the scope. This defines the meaning of a scope; a server's
    /// filter only saves traffic.
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

/// Returns the rule that a prefix breaks, and the way out.
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

impl KvError {
    /// Returns the error for a string that is not a key, or with which no key can start.
    fn invalid_key(key: &str, fault: KeyFault, reason: &'static str) -> Self {
        let found = match fault.kind {
            KeyFaultKind::Empty => "nothing".to_owned(),
            // The whole character is shown if the byte begins one, because the user typed it.
            KeyFaultKind::Byte(byte) => match key[fault.position..].chars().next() {
                Some(character) => format!("{character:?}"),
                None => format!("0x{byte:02x}"),
            },
            KeyFaultKind::EmptyToken => "'.'".to_owned(),
            KeyFaultKind::Reserved => "\"_kv\"".to_owned(),
            KeyFaultKind::TooLong => format!("{} bytes", key.len()),
        };
        // A key of any valid length fits into the message; one that is far too long is cut.
        let shown = key.chars().take(80).collect::<String>();
        Self::InvalidKey {
            key: if shown.len() < key.len() { format!("{shown}…") } else { shown },
            position: fault.position,
            found,
            reason,
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a panic fails the test")]
mod tests {
    use super::*;

    /// Compares with the definition: a prefix is valid if it or an extension of it is a key.
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
