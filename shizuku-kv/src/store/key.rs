//! Keys.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A valid key: tokens of `[A-Za-z0-9_=/-]` joined by single dots, at most 1,024 bytes, not
/// starting with `_kv`.
///
/// A `Key` proves that the string was checked; cloning it is cheap. Every function with a key as
/// parameter accepts any [`IntoKey`](crate::IntoKey), strings included, and checks it before it
/// sends anything.
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
