//! Conversion of strings to keys, which the grammar checks.

use std::borrow::Cow;
use std::sync::Arc;

use super::grammar::{self, KeyFault, KeyFaultKind};
use super::{Key, KvError};

impl Key {
    /// Checks a string, and converts it to a key.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if the string is not a key, with the first invalid byte and
    /// its position.
    pub fn new(key: impl AsRef<str>) -> Result<Self, KvError> {
        let key = key.as_ref();
        match grammar::check_key(key) {
            Ok(()) => Ok(Self::of_checked(key)),
            Err(fault) => Err(KvError::invalid_key(key, fault, fault.kind.reason())),
        }
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

/// Types that operations accept as a key: a [`Key`], or a string that is checked first.
pub trait IntoKey {
    /// Converts to a key.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if the value is not a key.
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

impl KvError {
    /// Returns the error for a string that is not a key, or with which no key can start.
    pub(super) fn invalid_key(key: &str, fault: KeyFault, reason: &'static str) -> Self {
        let found = match fault.kind {
            KeyFaultKind::Empty => "nothing".to_owned(),
            // If the byte begins a character, the whole character is shown, because the user typed
            // the character.
            KeyFaultKind::Byte(byte) => match key[fault.position..].chars().next() {
                Some(character) => format!("{character:?}"),
                None => format!("0x{byte:02x}"),
            },
            KeyFaultKind::EmptyToken => "'.'".to_owned(),
            KeyFaultKind::Reserved => "\"_kv\"".to_owned(),
            KeyFaultKind::TooLong => format!("{} bytes", key.len()),
        };
        // A key of any valid length fits into the message. A much longer text is cut.
        let shown = key.chars().take(80).collect::<String>();
        Self::InvalidKey {
            key: if shown.len() < key.len() { format!("{shown}…") } else { shown },
            position: fault.position,
            found,
            reason,
        }
    }
}
