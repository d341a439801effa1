//! Typed keys: conversion between a record's key and the store's (ADR 0050).

use std::borrow::Cow;
use std::fmt::{self, Display, Write};
use std::str::FromStr;

use super::error::{NO_KEY, type_name};
use super::{KeyValue, KvReadError};
use crate::store::{Key, KvError, WatchScope};

/// A type that can be a record's key: anything that prints and parses, and can be sent between
/// threads.
///
/// Implemented for every such type, and never by hand. Its printed form is the store's key, which
/// is checked before any request is sent. Parsing the printed form has to return an equal key.
/// Every operation rejects a key that prints differently after that, because no listing and no
/// watch could find its record again.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a record's key",
    note = "a key implements `Display` and `FromStr` (with an error that implements `Display`), `Send` and `Sync`"
)]
pub trait RecordKey: Display + FromStr<Err: Display> + Send + Sync {}

impl<K> RecordKey for K
where
    K: Display + FromStr + Send + Sync,
    K::Err: Display,
{
}

/// Returns the store's key for a record's key.
pub(crate) fn store_key(key: &impl Display) -> Result<Key, KvError> {
    let mut text = String::new();
    match write!(text, "{key}") {
        Ok(()) => Key::new(text),
        // `to_string` would panic.
        Err(_) => Err(KvError::InvalidKey {
            key: String::new(),
            position: 0,
            found: "nothing".to_owned(),
            reason: "the key's `Display` returned an error",
        }),
    }
}

/// Returns the store's key for a key of a type, unless no record of the type can be under it.
/// Called before any request is sent.
pub(crate) fn own_store_key<T: KeyValue>(key: &T::Key) -> Result<Key, KvReadError> {
    let key = store_key(key)?;
    check_own::<T>(&key)?;
    Ok(key)
}

/// Rejects a key under which no record of the type can be: a key that is outside its scope, or
/// prints differently after it was parsed.
pub(super) fn check_own<T: KeyValue>(key: &Key) -> Result<(), KvReadError> {
    let invalid = |reason: &str| KvReadError::InvalidRecordKey {
        type_name: type_name::<T>(),
        key: key.clone(),
        reason: reason.to_owned(),
    };
    match T::kv_scope()? {
        WatchScope::Key(own) if own != *key => {
            return Err(KvReadError::KeyMismatch {
                type_name: type_name::<T>(),
                read_under: key.clone(),
                own: own_key(&own),
            });
        }
        scope if !scope.matches(key) => return Err(invalid("it is outside the scope of the type")),
        _ => {}
    }
    match prints_as(&record_key::<T, T::Key>(key)?, key) {
        true => Ok(()),
        false => Err(invalid("it prints differently after it was parsed")),
    }
}

/// Rejects a scope that names a key under which no record of the type can be.
pub(crate) fn check_scope<T: KeyValue>(scope: &WatchScope) -> Result<(), KvReadError> {
    match scope {
        WatchScope::Key(key) => check_own::<T>(key),
        WatchScope::Keys(keys) => keys.iter().try_for_each(check_own::<T>),
        // In these scopes, a key of another type is an item of its own.
        _ => Ok(()),
    }
}

/// Returns the record's key for a key in the store.
pub(super) fn record_key<T, K: RecordKey>(key: &Key) -> Result<K, KvReadError> {
    K::from_str(key).map_err(|error| KvReadError::InvalidRecordKey {
        type_name: type_name::<T>(),
        key: key.clone(),
        reason: error.to_string(),
    })
}

/// Returns true if `value` prints as `text`, without printing it into memory.
pub(super) fn prints_as(value: &impl Display, text: &str) -> bool {
    struct Rest<'a>(&'a str);

    impl Write for Rest<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
            Ok(())
        }
    }

    let mut rest = Rest(text);
    write!(rest, "{value}").is_ok() && rest.0.is_empty()
}

/// Maximum number of shown characters of a record's own key.
const LONGEST_OWN_KEY: usize = 80;

/// Returns a record's own key as errors show it. An invalid key is not shown, because it may be any
/// part of a value.
pub(super) fn own_key(own: &impl Display) -> String {
    let Ok(key) = store_key(own) else { return NO_KEY.to_owned() };
    if key.len() <= LONGEST_OWN_KEY {
        return key.as_str().to_owned();
    }
    // Keys are ASCII.
    key.chars().take(LONGEST_OWN_KEY - 1).chain(['…']).collect()
}

/// The reason why a string is not a key of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseKeyError {
    template: &'static str,
    reason: Cow<'static, str>,
}

impl ParseKeyError {
    pub(super) fn new(template: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { template, reason: reason.into() }
    }

    /// Returns the template that the key does not follow.
    pub fn template(&self) -> &'static str {
        self.template
    }
}

impl Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (a key here is \"{}\")", self.reason, self.template)
    }
}

impl std::error::Error for ParseKeyError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_is_compared_to_the_end() {
        assert!(prints_as(&format_args!("a.{}.{}", "b", 7), "a.b.7"));
        assert!(prints_as(&"", ""));
        for other in ["a.b.", "a.b.77", "a.b", "", "x"] {
            assert!(!prints_as(&format_args!("a.{}.{}", "b", 7), other), "{other}");
        }
    }

    #[test]
    fn own_keys_are_shown_where_they_are_keys_and_only_so_far() {
        assert_eq!(own_key(&"a.b"), "a.b");
        for none in ["", "a b", "\"hunter2\"", &"a".repeat(1025)] {
            assert_eq!(own_key(&none), NO_KEY);
        }
        assert_eq!(own_key(&"a".repeat(80)), "a".repeat(80));
        assert_eq!(own_key(&"a".repeat(81)), "a".repeat(79) + "…");
    }

    #[test]
    fn a_key_that_does_not_print_is_none() {
        struct Silent;

        impl Display for Silent {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                Err(fmt::Error)
            }
        }

        assert!(matches!(store_key(&Silent), Err(KvError::InvalidKey { .. })));
        assert_eq!(own_key(&Silent), NO_KEY);
        assert!(!prints_as(&Silent, ""));
    }

    #[test]
    fn strings_and_numbers_are_keys() {
        fn is_key<K: RecordKey>() {}
        is_key::<String>();
        is_key::<u64>();
        is_key::<Key>();
    }
}
