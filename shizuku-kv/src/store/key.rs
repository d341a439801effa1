//! Keys, and the scopes that select many of them.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::KvError;
use super::grammar::{self, KeyFault, KeyFaultKind};

/// A valid key: tokens of `[A-Za-z0-9_=/-]` joined by single dots, at most 1,024 bytes, not starting with `_kv`.
///
/// Holding a `Key` is the proof that the string was checked; cloning one is cheap. Everything that takes a key takes
/// anything that is [`IntoKey`], strings included, and checks it before anything is sent.
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

    /// Whether the key belongs to a lock, a session or an election. Its tombstone never expires.
    pub(crate) fn is_of_locks(&self) -> bool {
        self.0.starts_with(Self::LOCKS)
    }

    /// Checks a string and makes it a key.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] naming the first offending byte and its position.
    pub fn new(key: impl AsRef<str>) -> Result<Self, KvError> {
        let key = key.as_ref();
        match grammar::check_key(key) {
            Ok(()) => Ok(Self(Arc::from(key))),
            Err(fault) => Err(KvError::invalid_key(key, fault)),
        }
    }

    /// A key that was checked before, as those that a snapshot has loaded.
    pub(crate) fn of_checked(key: &str) -> Self {
        Self(Arc::from(key))
    }

    /// The key as a string.
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

/// What the operations accept as a key: a [`Key`], or a string that is checked first.
pub trait IntoKey {
    /// The key.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] if it is not one.
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

impl IntoKey for &str {
    fn into_key(self) -> Result<Key, KvError> {
        Key::new(self)
    }
}

impl IntoKey for String {
    fn into_key(self) -> Result<Key, KvError> {
        Key::new(self)
    }
}

impl IntoKey for &String {
    fn into_key(self) -> Result<Key, KvError> {
        Key::new(self)
    }
}

/// Which keys a watch or a scan is about.
///
/// Prefixes are literal strings, not patterns: `Prefix("config.da")` selects `config.database` and `config.data.x`,
/// and `Prefix("*")` selects nothing, since no key starts with a star. What the server can filter is filtered there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WatchScope {
    /// Every key.
    #[default]
    All,
    /// One key.
    Key(Key),
    /// These keys. For some dozens at most: with more the server does the filtering no longer, or not well.
    Keys(Vec<Key>),
    /// The keys that start with this string.
    Prefix(String),
    /// The keys that start with at least one of these strings; none of them selects nothing.
    Prefixes(Vec<String>),
}

impl WatchScope {
    /// The scope of one key.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] if it is not a key.
    pub fn key(key: impl IntoKey) -> Result<Self, KvError> {
        key.into_key().map(Self::Key)
    }

    /// The scope of some keys; none of them selects nothing.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] for the first that is not a key.
    pub fn keys<K: IntoKey>(keys: impl IntoIterator<Item = K>) -> Result<Self, KvError> {
        keys.into_iter().map(K::into_key).collect::<Result<_, _>>().map(Self::Keys)
    }

    /// The scope of the keys that start with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::Prefix(prefix.into())
    }

    /// The scope of the keys that start with any of `prefixes`.
    pub fn prefixes<P: Into<String>>(prefixes: impl IntoIterator<Item = P>) -> Self {
        Self::Prefixes(prefixes.into_iter().map(Into::into).collect())
    }

    /// Whether `key` is in the scope. This is the meaning of a scope; what a server filters only saves traffic.
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

impl KvError {
    /// The error for a string that is no key.
    pub(crate) fn invalid_key(key: &str, fault: KeyFault) -> Self {
        let found = match fault.kind {
            KeyFaultKind::Empty => "nothing".to_owned(),
            // The whole character is shown, where the byte begins one: it is what the user typed.
            KeyFaultKind::Byte(byte) => match key[fault.position..].chars().next() {
                Some(character) => format!("{character:?}"),
                None => format!("0x{byte:02x}"),
            },
            KeyFaultKind::EmptyToken => "'.'".to_owned(),
            KeyFaultKind::Reserved => "\"_kv\"".to_owned(),
            KeyFaultKind::TooLong => format!("a key of {} bytes", key.len()),
        };
        // A key of any length fits into the message; one that is far too long is cut.
        let shown = key.chars().take(80).collect::<String>();
        Self::InvalidKey {
            key: if shown.len() < key.len() { format!("{shown}…") } else { shown },
            position: fault.position,
            found,
            reason: fault.kind.reason(),
        }
    }
}
