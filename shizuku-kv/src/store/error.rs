//! The error of every store operation.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{FencingToken, Key, VersionToken};

/// Where an error came from, kept for [`Error::source`](StdError::source).
pub type ErrorSource = Arc<dyn StdError + Send + Sync>;

/// What can go wrong with a store.
///
/// No variant contains a value, a password, a token of a login or the userinfo of a URL, neither in `Display` nor in
/// `Debug`.
/// [`is_retryable`](Self::is_retryable) tells whether the same call can succeed later.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The string is not a key. Nothing was sent.
    #[error("invalid key {key:?}: {found} at byte {position}: {reason}")]
    InvalidKey {
        /// The string; cut after 80 characters.
        key: String,
        /// Byte offset of the first offending byte.
        position: usize,
        /// The offending character.
        found: String,
        /// The rule that it breaks.
        reason: &'static str,
    },

    /// The string cannot name a store. Nothing was sent.
    #[error("invalid store name {name:?}: {reason}")]
    InvalidStoreName {
        /// The string; cut after 80 characters.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },

    /// A setting has a value that cannot work, whatever the server.
    #[error("invalid configuration: {field}: {reason}")]
    InvalidConfig {
        /// The setting.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },

    /// The URL cannot be understood. The message never repeats its userinfo.
    #[error("invalid store URL: {reason}")]
    InvalidUrl {
        /// What is wrong with it and what would be right.
        reason: String,
    },

    /// Bytes that are not a version token of this library.
    #[error("invalid version token: {reason}")]
    InvalidVersion {
        /// What is wrong with them.
        reason: &'static str,
    },

    /// Bytes that are not a watch cursor of this library.
    #[error("invalid watch cursor: {reason}")]
    InvalidCursor {
        /// What is wrong with them.
        reason: &'static str,
    },

    /// There is no store of that name, or no longer.
    #[error("store {store:?} does not exist")]
    StoreNotFound {
        /// The store.
        store: String,
    },

    /// The store exists and differs from what was asked for.
    #[error(
        "store {store:?} exists with another configuration: {}; ask for what is there, or reconcile what can be changed",
        join(.differences)
    )]
    ConfigMismatch {
        /// The store.
        store: String,
        /// Each setting that was asked for and is different.
        differences: Vec<ConfigDifference>,
    },

    /// [`create`](crate::Store::create) found a live value.
    #[error("key {key} exists already{}", at_version(.found))]
    AlreadyExists {
        /// The key.
        key: Key,
        /// The version that it has, where the backend told.
        found: Option<VersionToken>,
    },

    /// A compare-and-swap lost: the key no longer has the expected version. Nothing was written.
    ///
    /// On a cluster the leader compares with writes that its followers do not have yet. So for a moment a read may still
    /// find the expected version; and where that leader is replaced, the write that was in the way may never come to be.
    #[error("key {key} does not have the expected version {expected}{}", found_instead(.found))]
    RevisionMismatch {
        /// The key.
        key: Key,
        /// The version that the caller expected.
        expected: VersionToken,
        /// The version that the key has, or had a moment later; none where it was never written or is not known.
        found: Option<VersionToken>,
    },

    /// A write with a fencing token came too late: a newer one has written to the key. Nothing was written. The holder of
    /// the older token has lost its lock and may not know it yet.
    #[error(
        "a write to key {key} with fencing token {token} was refused, since token {newest} has written to it: the lock \
         was lost; take it again"
    )]
    Fenced {
        /// The key.
        key: Key,
        /// The token of the write.
        token: FencingToken,
        /// The token that has written to the key.
        newest: FencingToken,
    },

    /// The value is larger than the store takes. Nothing was sent.
    #[error("value of {size} bytes for key {key} is over the limit of {limit} bytes")]
    ValueTooLarge {
        /// The key.
        key: Key,
        /// The size of the value in bytes.
        size: usize,
        /// The largest value that the store takes, in bytes.
        limit: usize,
    },

    /// The store has reached the size that it was configured with. Nothing was written.
    #[error("store {store:?} is full: {limit}; delete something or raise the limit")]
    StoreFull {
        /// The store.
        store: String,
        /// Which limit it reached.
        limit: String,
    },

    /// The backend, the server's version or the store's configuration does not offer this.
    #[error("{operation} is not supported: {reason}")]
    Unsupported {
        /// The operation.
        operation: &'static str,
        /// Why it is not there, and how it would be.
        reason: String,
    },

    /// The cursor cannot be honoured: it is of another store, from before the store was made again, or so old that
    /// the store no longer holds what followed it. List the store again and watch from the start.
    #[error(
        "the watch cursor of store {store:?} has expired: {reason}; list again and watch from the start"
    )]
    CursorExpired {
        /// The store.
        store: String,
        /// Why.
        reason: &'static str,
    },

    /// The deadline passed. For a write this means that it did not happen; where that is not sure, the error is
    /// [`OutcomeUnknown`](Self::OutcomeUnknown) instead.
    #[error("{operation}{} did not end within {limit:?}", of_key(.key))]
    Timeout {
        /// The operation.
        operation: &'static str,
        /// The key, where it was about one.
        key: Option<Key>,
        /// The deadline that was set.
        limit: Duration,
    },

    /// The write was sent, its acknowledgement was lost, and it cannot be known whether it took effect. Read the key
    /// to find out what is there now.
    #[error(
        "it is not known whether {operation} of key {key} took effect: no acknowledgement came; read the key"
    )]
    OutcomeUnknown {
        /// The operation.
        operation: &'static str,
        /// The key.
        key: Key,
        /// What happened instead of an acknowledgement.
        source: Option<ErrorSource>,
    },

    /// The server cannot be reached, or cannot serve the store at the moment. Nothing was written.
    #[error("{operation} failed: {reason}")]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// What is not available.
        reason: String,
        /// The client library's error, where there is one.
        source: Option<ErrorSource>,
    },

    /// The server refused the credentials, or they do not allow the operation.
    #[error("{operation} was refused: {reason}")]
    Unauthorized {
        /// The operation.
        operation: &'static str,
        /// What the server objects to; never the credentials.
        reason: String,
    },

    /// The server is too old for this library.
    #[error("server version {found} is too old: at least {needed} is needed")]
    ServerTooOld {
        /// The server's version.
        found: String,
        /// The oldest version that works.
        needed: &'static str,
    },

    /// The connection was shut down by its owner.
    #[error("{operation}: the connection has been shut down")]
    Closed {
        /// The operation.
        operation: &'static str,
    },

    /// No tokio runtime drives the call: it was made outside of one, or the runtime that opened the
    /// connection has ended together with the connection.
    #[error("{operation} failed: {reason}")]
    NoRuntime {
        /// The operation.
        operation: &'static str,
        /// The missing runtime, and the way out.
        reason: &'static str,
    },

    /// The server or the client library answered with something else. Nothing is known to have been written.
    #[error("{operation} failed: {reason}")]
    Backend {
        /// The operation.
        operation: &'static str,
        /// What was answered.
        reason: String,
        /// The client library's error, where there is one.
        source: Option<ErrorSource>,
    },
}

/// One setting of a store that is not as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigDifference {
    /// The setting.
    pub field: &'static str,
    /// The operation.
    pub wanted: String,
    /// What the store has.
    pub found: String,
}

impl ConfigDifference {
    /// A difference; for authors of backends.
    pub fn new(field: &'static str, wanted: impl fmt::Debug, found: impl fmt::Debug) -> Self {
        Self { field, wanted: format!("{wanted:?}"), found: format!("{found:?}") }
    }
}

impl fmt::Display for ConfigDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: wanted {}, found {}", self.field, self.wanted, self.found)
    }
}

impl KvError {
    /// Whether the same call can succeed later without anything being changed by the caller: a deadline that passed,
    /// a server that could not be reached.
    ///
    /// A lost compare-and-swap is not retryable as it stands (read again first), and neither is a write whose outcome
    /// is not known: repeating it could apply it twice. One that was [fenced](Self::is_fenced) never succeeds again.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unavailable { .. })
    }

    /// Whether the connection is over, so that no operation on it can ever succeed again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::NoRuntime { .. })
    }

    /// Whether a compare-and-swap lost: the key has another version than expected, or exists where it was to be
    /// created. Reading again and trying once more can help, which it cannot where a write was
    /// [fenced](Self::is_fenced): that is no conflict.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::RevisionMismatch { .. } | Self::AlreadyExists { .. })
    }

    /// Whether a write was refused because a newer fencing token has written to the key: the lock is lost, and whatever
    /// was to be done under it has to end. To go on, take the lock again.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }
}

fn join(differences: &[ConfigDifference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn at_version(found: &Option<VersionToken>) -> String {
    found.map_or_else(String::new, |version| format!(" at version {version}"))
}

fn found_instead(found: &Option<VersionToken>) -> String {
    found.map_or_else(String::new, |version| format!(": it is at version {version}"))
}

fn of_key(key: &Option<Key>) -> String {
    key.as_ref().map_or_else(String::new, |key| format!(" of key {key}"))
}
