//! Constructors of errors for backends of other crates. Variants with fields are
//! `#[non_exhaustive]`, so that they can get more fields, and therefore cannot be constructed
//! there.

use std::error::Error as StdError;
use std::sync::Arc;

use super::{ConfigDifference, FencingToken, Key, KvError, KvLimit, VersionToken};

/// Constructors for authors of backends. [`Deadline::timeout`](crate::Deadline::timeout) creates
/// the error of a deadline that has passed.
impl KvError {
    /// Creates a [`StoreNotFound`](Self::StoreNotFound).
    pub fn store_not_found(store: impl Into<String>) -> Self {
        Self::StoreNotFound { store: store.into() }
    }

    /// Creates a [`ConfigMismatch`](Self::ConfigMismatch).
    pub fn config_mismatch(store: impl Into<String>, differences: Vec<ConfigDifference>) -> Self {
        Self::ConfigMismatch { store: store.into(), differences }
    }

    /// Creates an [`InvalidConfig`](Self::InvalidConfig).
    pub fn invalid_config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidConfig { field, reason: reason.into() }
    }

    /// Creates an [`InvalidUrl`](Self::InvalidUrl); the reason must not repeat the userinfo.
    pub fn invalid_url(reason: impl Into<String>) -> Self {
        Self::InvalidUrl { reason: reason.into() }
    }

    /// Creates an [`AlreadyExists`](Self::AlreadyExists).
    pub fn already_exists(key: Key, found: Option<VersionToken>) -> Self {
        Self::AlreadyExists { key, found }
    }

    /// Creates a [`RevisionMismatch`](Self::RevisionMismatch).
    pub fn revision_mismatch(
        key: Key,
        expected: VersionToken,
        found: Option<VersionToken>,
    ) -> Self {
        Self::RevisionMismatch { key, expected, found }
    }

    /// Creates a [`Fenced`](Self::Fenced).
    pub fn fenced(key: Key, token: FencingToken, newest: FencingToken) -> Self {
        Self::Fenced { key, token, newest }
    }

    /// Creates a [`ValueTooLarge`](Self::ValueTooLarge).
    pub fn value_too_large(key: Key, size: usize, limit: usize) -> Self {
        Self::ValueTooLarge { key, size, limit }
    }

    /// Creates a [`StoreFull`](Self::StoreFull); `limit` names the limit and the way out.
    pub fn store_full(store: impl Into<String>, limit: impl Into<String>) -> Self {
        Self::StoreFull { store: store.into(), limit: limit.into() }
    }

    /// Creates a [`LimitReached`](Self::LimitReached); `reason` names the setting and the way out.
    pub fn limit_reached(
        operation: &'static str,
        limit: KvLimit,
        reason: impl Into<String>,
    ) -> Self {
        Self::LimitReached { operation, limit, reason: reason.into() }
    }

    /// Creates an [`Unsupported`](Self::Unsupported); `reason` explains how to get this ability.
    pub fn unsupported(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::Unsupported { operation, reason: reason.into() }
    }

    /// Creates a [`CursorExpired`](Self::CursorExpired).
    pub fn cursor_expired(store: impl Into<String>, reason: &'static str) -> Self {
        Self::CursorExpired { store: store.into(), reason }
    }

    /// Creates an [`OutcomeUnknown`](Self::OutcomeUnknown).
    pub fn outcome_unknown(operation: &'static str, key: Key) -> Self {
        Self::OutcomeUnknown { operation, key, source: None }
    }

    /// Creates an [`Unavailable`](Self::Unavailable).
    pub fn unavailable(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::Unavailable { operation, reason: reason.into(), source: None }
    }

    /// Creates an [`Unauthorized`](Self::Unauthorized); the reason must not contain the
    /// credentials.
    pub fn unauthorized(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::Unauthorized { operation, reason: reason.into() }
    }

    /// Creates a [`Closed`](Self::Closed).
    pub fn closed(operation: &'static str) -> Self {
        Self::Closed { operation }
    }

    /// Creates a [`Backend`](Self::Backend).
    pub fn backend(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::Backend { operation, reason: reason.into(), source: None }
    }

    /// Adds a cause to the variants that have a source. The cause must not contain a value or a
    /// credential.
    #[must_use]
    pub fn with_source(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        if let Self::OutcomeUnknown { source, .. }
        | Self::Unavailable { source, .. }
        | Self::Backend { source, .. } = &mut self
        {
            *source = Some(Arc::new(cause));
        }
        self
    }

    /// Replaces the name of the operation, because a method of a handle reports its own name, not
    /// the backend's name of the request.
    #[must_use]
    pub(crate) fn of_operation(mut self, name: &'static str) -> Self {
        match &mut self {
            Self::LimitReached { operation, .. }
            | Self::Unsupported { operation, .. }
            | Self::Timeout { operation, .. }
            | Self::OutcomeUnknown { operation, .. }
            | Self::Unavailable { operation, .. }
            | Self::Unauthorized { operation, .. }
            | Self::Closed { operation }
            | Self::NoRuntime { operation, .. }
            | Self::Backend { operation, .. } => *operation = name,
            _ => {}
        }
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{Deadline, WatchCursor};

    fn key() -> Key {
        Key::new("key").unwrap()
    }

    /// Checks the variants with a message of their own. The message of the other variants comes
    /// from `reason`.
    #[test]
    fn every_message_has_a_way_out() {
        let (version, token) = (VersionToken::from_u64(7), FencingToken::from_u64(7));
        let errors = [
            VersionToken::from_bytes(&[]).unwrap_err(),
            WatchCursor::from_bytes(&[1, 2, 3]).unwrap_err(),
            KvError::store_not_found("s"),
            KvError::config_mismatch("s", vec![ConfigDifference::new("history", 5, 1)]),
            KvError::already_exists(key(), Some(version)),
            KvError::revision_mismatch(key(), version, None),
            KvError::fenced(key(), token, token),
            KvError::value_too_large(key(), 2, 1),
            KvError::cursor_expired("s", "the reason"),
            Deadline::after(Duration::ZERO).timeout("get", None),
            KvError::outcome_unknown("put", key()),
            KvError::closed("get"),
            KvError::ServerTooOld { found: "2.9.1".to_owned(), needed: "2.10" },
        ];
        for error in errors {
            let text = error.to_string();
            let way_out = text.rsplit_once("; ").map(|(_, way_out)| way_out).unwrap_or_default();
            assert!(way_out.split(' ').count() > 1, "{text}");
        }
    }

    #[test]
    fn source_is_kept_by_variants_that_have_one() {
        let cause = || std::io::Error::other("the cause");
        for error in [
            KvError::unavailable("get", "away"),
            KvError::backend("get", "odd"),
            KvError::outcome_unknown("put", key()),
        ] {
            let error = error.with_source(cause()).of_operation("entry");
            assert_eq!(
                std::error::Error::source(&error).unwrap().to_string(),
                "the cause",
                "{error}"
            );
            assert!(error.to_string().contains("entry"), "{error}");
        }
        assert!(std::error::Error::source(&KvError::closed("get").with_source(cause())).is_none());
    }
}
