//! The errors of the typed layer.

use super::{DecodeError, EncodeError, ValidationError};
use crate::store::{Key, KvError, VersionToken};

/// An error of a typed read.
///
/// No variant contains any part of a value, neither in `Display` nor in `Debug`, but variants name
/// keys. A record's own key is named like any other key, even if it is read from the value: do not
/// put a secret field into a key.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvReadError {
    /// The store did not answer with a value.
    #[error(transparent)]
    Store(#[from] KvError),

    /// The stored value does not decode to the type.
    #[error(
        "{type_name} under key {key} (version {version}) cannot be decoded: {source}; write it \
         anew, or adapt the type"
    )]
    #[non_exhaustive]
    Decode {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// Version of the stored value.
        version: VersionToken,
        /// The fault, and its position.
        source: DecodeError,
    },

    /// The record belongs under another key, by its own key or because its type has only one. In
    /// the latter case no request was sent.
    #[error(
        "{type_name} cannot be under key {read_under}: its own key is {}; use that key, or \
         correct the stored record",
        own_key(.own)
    )]
    #[non_exhaustive]
    KeyMismatch {
        /// The record's type.
        type_name: &'static str,
        /// The key under which it was found, or the requested key.
        read_under: Key,
        /// The record's own key, cut to 80 characters; "something that is no key" if it is not a
        /// key.
        own: String,
    },

    /// The stored value breaks the rule of its type (see
    /// [`KeyValue::kv_validate`](crate::KeyValue::kv_validate)).
    #[error(
        "{type_name} under key {key} (version {version}) breaks its rule {source}; write it \
         anew, or change the rule"
    )]
    #[non_exhaustive]
    Invalid {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// Version of the stored value.
        version: VersionToken,
        /// The rule.
        source: ValidationError,
    },

    /// The key had no record within the deadline of a call that waits for one.
    #[error(
        "there was no {type_name} under key {key} within the deadline; write it, or begin \
         without it with live_or or live_optional"
    )]
    #[non_exhaustive]
    Absent {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
    },

    /// The code of the type panicked on the stored record. Only live values and maps catch such a
    /// panic, because it would end the task that their handles share.
    #[error(
        "the code of {type_name} panicked while the record under key {key} (version {version}) was {during}; the \
         panic's own message says where"
    )]
    #[non_exhaustive]
    Panicked {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// The version of the record.
        version: VersionToken,
        /// The step that panicked: `decoded` or `checked`.
        during: &'static str,
    },

    /// The key is not a key of the type. It was found in a scope, or it was requested; in the
    /// latter case no request was sent.
    #[error("key {key} is not a key of {type_name}: {reason}")]
    #[non_exhaustive]
    InvalidRecordKey {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// The reason why it is not one.
        reason: String,
    },
}

impl KvReadError {
    /// Returns true if the same call can succeed later although the caller changes nothing. See
    /// [`KvError::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Absent { .. } => true,
            _ => false,
        }
    }

    /// Returns the key in the store that the error concerns. Returns `None` if the store itself
    /// failed.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Store(_) => None,
            Self::Decode { key, .. }
            | Self::KeyMismatch { read_under: key, .. }
            | Self::Invalid { key, .. }
            | Self::Absent { key, .. }
            | Self::Panicked { key, .. }
            | Self::InvalidRecordKey { key, .. } => Some(key),
        }
    }
}

/// An error of a typed write.
///
/// No variant contains any part of a value, neither in `Display` nor in `Debug`, but variants name
/// keys. A record's own key is named like any other key, even if it is read from the value: do not
/// put a secret field into a key.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvWriteError {
    /// The store rejected the write, or its outcome is unknown. A lost compare-and-swap is here
    /// too, as [`KvError::RevisionMismatch`] or [`KvError::AlreadyExists`]: see
    /// [`is_conflict`](Self::is_conflict).
    #[error(transparent)]
    Store(#[from] KvError),

    /// The value has no byte form. No request was sent.
    #[error("{type_name} for key {key} cannot be encoded: {source}")]
    #[non_exhaustive]
    Encode {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// The fault of the value.
        source: EncodeError,
    },

    /// The value breaks the rule of its type (see
    /// [`KeyValue::kv_validate`](crate::KeyValue::kv_validate)). No request was sent.
    #[error("{type_name} for key {key} breaks its rule {source}; correct it before it is written")]
    #[non_exhaustive]
    Invalid {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// The rule.
        source: ValidationError,
    },

    /// The record belongs under another key than the modified one, or its type has only one key,
    /// which is not the modified, deleted or purged one. Nothing was written.
    #[error("{type_name} cannot be under key {key}: its own key is {}; use that key", own_key(.own))]
    #[non_exhaustive]
    KeyMismatch {
        /// The record's type.
        type_name: &'static str,
        /// The key that was being modified, deleted or purged.
        key: Key,
        /// The record's own key, cut to 80 characters; "something that is no key" if it is not a
        /// key.
        own: String,
    },

    /// The key is not a key of the type: no read, listing or watch would find a record under it. No
    /// request was sent.
    #[error("key {key} is not a key of {type_name}: {reason}")]
    #[non_exhaustive]
    InvalidRecordKey {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// The reason why it is not one.
        reason: String,
    },

    /// Other writers changed the record in each attempt, between its read and its write. Nothing
    /// was written.
    #[error(
        "{type_name} under key {key} was changed by others during each of {attempts} attempts to modify it; \
         modify it again, or under a lock"
    )]
    #[non_exhaustive]
    Contended {
        /// The record's type.
        type_name: &'static str,
        /// The key.
        key: Key,
        /// Number of attempts.
        attempts: u32,
    },

    /// The stored record could not be read, so that it could not be modified. Nothing was written.
    #[error(transparent)]
    Read(KvReadError),
}

impl KvWriteError {
    /// Returns true if the same call can succeed later although the caller changes nothing. See
    /// [`KvError::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Read(error) => error.is_retryable(),
            Self::Contended { .. } => true,
            Self::Encode { .. }
            | Self::Invalid { .. }
            | Self::KeyMismatch { .. }
            | Self::InvalidRecordKey { .. } => false,
        }
    }

    /// Returns true if a compare-and-swap lost: the record has another version than expected,
    /// exists although it was to be created, or was contended.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Store(error) => error.is_conflict(),
            Self::Contended { .. } => true,
            _ => false,
        }
    }

    /// Returns true if the write was rejected because a newer fencing token has written to the key:
    /// the lock is lost. See [`KvError::is_fenced`].
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_fenced())
    }
}

/// A store that does not answer is the same error for a read and for a write.
impl From<KvReadError> for KvWriteError {
    fn from(error: KvReadError) -> Self {
        match error {
            KvReadError::Store(error) => Self::Store(error),
            error => Self::Read(error),
        }
    }
}

impl KvWriteError {
    /// Returns the error of a write that rejects its key. An error of
    /// [`modify`](crate::KeyValueWrite::modify) for the stored record is [`Read`](Self::Read)
    /// instead.
    pub(super) fn of_key(error: KvReadError) -> Self {
        match error {
            KvReadError::KeyMismatch { type_name, read_under: key, own } => {
                Self::KeyMismatch { type_name, key, own }
            }
            KvReadError::InvalidRecordKey { type_name, key, reason } => {
                Self::InvalidRecordKey { type_name, key, reason }
            }
            error => error.into(),
        }
    }
}

/// Text in place of a record's own key that is not a valid key.
pub(super) const NO_KEY: &str = "something that is no key";

/// Formats a record's own key for a message: quoted, unless it is [`NO_KEY`].
fn own_key(own: &str) -> String {
    if own == NO_KEY { own.to_owned() } else { format!("{own:?}") }
}

/// Returns the name of a type as errors show it: without its module and without its parameters.
pub(crate) fn type_name<T>() -> &'static str {
    short(std::any::type_name::<T>())
}

fn short(full: &str) -> &str {
    // The name ends at its parameters. A name that begins with `<` is an impl that contains the
    // type.
    let mut depth = 0_usize;
    let parameters = full.char_indices().rev().take_while(|(index, character)| {
        depth += usize::from(*character == '>');
        let is_inside = depth > 0 && *index > 0;
        depth -= usize::from(*character == '<' && depth > 0);
        is_inside
    });
    let bare = match parameters.last() {
        Some((index, _)) => full.get(..index).unwrap_or(full),
        None => full,
    };
    bare.rsplit_once("::").map_or(bare, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_small_enough_to_be_returned_by_value() {
        assert!(size_of::<KvReadError>() < 128, "{}", size_of::<KvReadError>());
        assert!(size_of::<KvWriteError>() < 128, "{}", size_of::<KvWriteError>());
    }

    #[test]
    fn type_names_are_short() {
        assert_eq!(type_name::<DecodeError>(), "DecodeError");
        assert_eq!(type_name::<Option<std::string::String>>(), "Option");
        assert_eq!(type_name::<u64>(), "u64");
        for (full, expected) in [
            ("a::B", "B"),
            ("a::B<c::D<e::F>, u8>", "B"),
            ("<a::B as c::D>::run::E", "E"),
            ("<a::B as c::D<u8>>::run::E<f::G<'_>>", "E"),
            ("<impl a::B>::run::E", "E"),
            ("E", "E"),
        ] {
            assert_eq!(short(full), expected, "{full}");
        }
    }

    #[test]
    fn a_store_that_does_not_answer_is_the_same_in_both_directions() {
        let closed = KvReadError::from(KvError::Closed { operation: "get" });
        assert!(matches!(KvWriteError::from(closed), KvWriteError::Store(KvError::Closed { .. })));
    }
}
