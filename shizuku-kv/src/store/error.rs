//! The error of every store operation.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{FencingToken, Key, VersionToken};

/// Cause of an error, kept for [`Error::source`](StdError::source).
pub type ErrorSource = Arc<dyn StdError + Send + Sync>;

/// Error of a store operation.
///
/// No variant contains a value, a password, a token of a login or the userinfo of a URL, neither in
/// `Display` nor in `Debug`. [`is_retryable`](Self::is_retryable) returns whether the same call can
/// succeed later.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The string is not a key, or no key can start with this prefix. Nothing was sent.
    #[error("invalid key {key:?}: {found} at byte {position}: {reason}")]
    #[non_exhaustive]
    InvalidKey {
        /// The string, cut after 80 characters.
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
    #[non_exhaustive]
    InvalidStoreName {
        /// The string, cut after 80 characters.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },

    /// A setting has a value that cannot work, whatever the server.
    #[error("invalid configuration: {field}: {reason}")]
    #[non_exhaustive]
    InvalidConfig {
        /// The setting.
        field: &'static str,
        /// The fault, and a valid value.
        reason: String,
    },

    /// The URL is not valid. The message never repeats its userinfo.
    #[error("invalid store URL: {reason}")]
    #[non_exhaustive]
    InvalidUrl {
        /// The fault, and a valid form.
        reason: String,
    },

    /// Bytes that are not a version token of this library.
    #[error("invalid version token: {reason}; use the bytes of a token that this library returned")]
    #[non_exhaustive]
    InvalidVersion {
        /// The fault.
        reason: &'static str,
    },

    /// Bytes that are not a watch cursor of this library.
    #[error(
        "invalid watch cursor: {reason}; use the bytes of a cursor that this library returned, or watch from the start"
    )]
    #[non_exhaustive]
    InvalidCursor {
        /// The fault.
        reason: &'static str,
    },

    /// No store of that name exists, or the store was deleted. A connection to a folder with
    /// `read_only=true` does not create stores, and returns this error from `store` too: have a
    /// process that writes open the store.
    #[error(
        "store {store:?} does not exist; check its name and account, or create it with store()"
    )]
    #[non_exhaustive]
    StoreNotFound {
        /// The store.
        store: String,
    },

    /// The store exists and differs from the requested settings.
    #[error(
        "store {store:?} exists with another configuration: {}; ask for what is there, or reconcile what can be changed",
        join(.differences)
    )]
    #[non_exhaustive]
    ConfigMismatch {
        /// The store.
        store: String,
        /// Each requested setting that differs.
        differences: Vec<ConfigDifference>,
    },

    /// [`create`](crate::Store::create) found a live value.
    #[error("key {key} exists already{}; update it instead", at_version(.found))]
    #[non_exhaustive]
    AlreadyExists {
        /// The key.
        key: Key,
        /// The version that the key has, if the backend returned it.
        found: Option<VersionToken>,
    },

    /// A compare-and-swap lost: the key no longer has the expected version. Nothing was written.
    ///
    /// On a cluster the leader compares with writes that its followers do not have yet. So for a
    /// moment a read may still find the expected version. If that leader is replaced, the write
    /// that won may even be lost.
    #[error(
        "key {key} does not have the expected version {expected}{}; read it again and repeat the change",
        found_instead(.found)
    )]
    #[non_exhaustive]
    RevisionMismatch {
        /// The key.
        key: Key,
        /// The version that the caller expected.
        expected: VersionToken,
        /// The version that the key has, or had a moment later. `None` if it was never written or
        /// is not known.
        found: Option<VersionToken>,
    },

    /// A write with a fencing token came too late: a newer token has written to the key. Nothing
    /// was written. The holder of the older token has lost its lock and may not know it yet.
    #[error(
        "a write to key {key} with fencing token {token} was rejected, since token {newest} has written to it: the lock \
         was lost; take it again"
    )]
    #[non_exhaustive]
    Fenced {
        /// The key.
        key: Key,
        /// The token of the write.
        token: FencingToken,
        /// The token that has written to the key.
        newest: FencingToken,
    },

    /// The value is larger than the store accepts. Nothing was sent.
    #[error(
        "value of {size} bytes for key {key} is over the limit of {limit} bytes; store less, or \
         raise max_value_size, and on NATS the server's max_payload"
    )]
    #[non_exhaustive]
    ValueTooLarge {
        /// The key.
        key: Key,
        /// The size of the value in bytes.
        size: usize,
        /// The maximum size of a value in bytes.
        limit: usize,
    },

    /// The store has no room: the store, its account or its server has reached its size limit.
    /// Nothing was written.
    ///
    /// A full store can be emptied if its server accepts deletions, which are messages too. On NATS
    /// there are two cases: a store with a history of 1 and one replica that has reached its
    /// `max_bytes`, and a store in a full account with room for a tombstone. If the server rejects
    /// deletions, the message names the limit to raise.
    #[error("store {store:?} is full: {limit}")]
    #[non_exhaustive]
    StoreFull {
        /// The store.
        store: String,
        /// The limit, in the server's words if a server rejected the write, and the way out.
        limit: String,
    },

    /// A limit of the server, the account or the store rejected the operation. Nothing was written.
    ///
    /// Retryable if [the limit clears by itself](KvLimit::clears_by_itself).
    #[error("{operation} failed: the limit on {limit} is reached: {reason}")]
    #[non_exhaustive]
    LimitReached {
        /// The operation.
        operation: &'static str,
        /// The limited resource.
        limit: KvLimit,
        /// The limit, in the server's words if it gave a reason, and the way out.
        reason: String,
    },

    /// The backend, the server's version or the store's configuration does not offer this.
    #[error("{operation} is not supported: {reason}")]
    #[non_exhaustive]
    Unsupported {
        /// The operation.
        operation: &'static str,
        /// The reason for the missing ability, and how to get it.
        reason: String,
    },

    /// The watch cannot resume from the cursor. It is of another store, from before the store was
    /// created again, or so old that the store no longer holds the changes after it. List the store
    /// again and watch from the start.
    #[error(
        "the watch cursor of store {store:?} has expired: {reason}; list again and watch from the start"
    )]
    #[non_exhaustive]
    CursorExpired {
        /// The store.
        store: String,
        /// The reason.
        reason: &'static str,
    },

    /// The deadline passed. A write with this error did not happen. If that is not certain, the
    /// error is [`OutcomeUnknown`](Self::OutcomeUnknown) instead.
    #[error(
        "{operation}{} did not end within {limit:?}; the store is slow or unreachable: repeat it, or set a longer deadline",
        of_key(.key)
    )]
    #[non_exhaustive]
    Timeout {
        /// The operation.
        operation: &'static str,
        /// The key, if the operation has one.
        key: Option<Key>,
        /// The deadline that was set.
        limit: Duration,
    },

    /// The write was sent, its acknowledgement was lost, and its outcome cannot be known. Read the
    /// key to see its present value.
    #[error(
        "it is not known whether {operation} of key {key} took effect: no acknowledgement came; read the key"
    )]
    #[non_exhaustive]
    OutcomeUnknown {
        /// The operation.
        operation: &'static str,
        /// The key.
        key: Key,
        /// The event that came instead of an acknowledgement.
        source: Option<ErrorSource>,
    },

    /// The server cannot be reached, or cannot serve the store at the moment. Nothing was written.
    /// On `file:`, another process has the folder open in a mode that does not fit, a stopped
    /// process is in the way, or the disk returns an error: the reason names it. If the disk has
    /// failed while a store was opened, changed or deleted, the reason says that this may have
    /// happened.
    #[error("{operation} failed: {reason}")]
    #[non_exhaustive]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// The unavailable part.
        reason: String,
        /// The client library's error, if it returned one.
        source: Option<ErrorSource>,
    },

    /// The server rejected the credentials, or they do not allow the operation. On `file:`, the
    /// permissions of the database do not allow it.
    #[error("{operation} was rejected: {reason}")]
    #[non_exhaustive]
    Unauthorized {
        /// The operation.
        operation: &'static str,
        /// The server's objection, never the credentials.
        reason: String,
    },

    /// The server is too old for this library.
    #[error("server version {found} is too old: at least {needed} is needed; upgrade the server")]
    #[non_exhaustive]
    ServerTooOld {
        /// The server's version.
        found: String,
        /// The oldest version that works.
        needed: &'static str,
    },

    /// The connection's owner has shut it down.
    #[error("{operation} failed: the connection has been shut down; open another")]
    #[non_exhaustive]
    Closed {
        /// The operation.
        operation: &'static str,
    },

    /// No tokio runtime drives the call: it was made outside of one, or the runtime that opened the
    /// connection has ended together with the connection.
    #[error("{operation} failed: {reason}")]
    #[non_exhaustive]
    NoRuntime {
        /// The operation.
        operation: &'static str,
        /// The missing runtime, and the way out.
        reason: &'static str,
    },

    /// The code of a record's type panicked in a task of this library, which has ended because of
    /// the panic.
    #[error(
        "{operation} has ended: the code of {type_name} panicked; the panic's own message says where"
    )]
    #[non_exhaustive]
    Panicked {
        /// The operation.
        operation: &'static str,
        /// The record's type.
        type_name: &'static str,
    },

    /// The server or the client library returned an unexpected answer. Nothing is known to have
    /// been written. On `file:`, the database is damaged, has an unknown format, or was removed or
    /// replaced by another program.
    #[error("{operation} failed: {reason}")]
    #[non_exhaustive]
    Backend {
        /// The operation.
        operation: &'static str,
        /// The answer.
        reason: String,
        /// The client library's error, if it returned one.
        source: Option<ErrorSource>,
    },
}

/// A resource that a server, an account or a store limits: see [`KvError::LimitReached`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvLimit {
    /// Stores: streams of an account on NATS.
    Stores,
    /// Bytes that may be stored or reserved.
    Storage,
    /// Consumers: each watch, scan, listing and history on NATS has one while it runs.
    Consumers,
    /// Subscriptions of a connection.
    Subscriptions,
    /// Connections of clients.
    Connections,
    /// The size of one message: of a request, or of the headers of a tombstone.
    MessageSize,
    /// The length of a protocol line, which contains the key.
    LineLength,
    /// Requests that wait in the queues of the server.
    Requests,
}

impl KvLimit {
    /// Returns whether other work that ends frees the resource, so that the same call can succeed
    /// later: consumers, subscriptions, connections and waiting requests.
    pub fn clears_by_itself(self) -> bool {
        match self {
            Self::Consumers | Self::Subscriptions | Self::Connections | Self::Requests => true,
            Self::Stores | Self::Storage | Self::MessageSize | Self::LineLength => false,
        }
    }
}

impl fmt::Display for KvLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stores => "stores",
            Self::Storage => "storage",
            Self::Consumers => "consumers",
            Self::Subscriptions => "subscriptions",
            Self::Connections => "connections",
            Self::MessageSize => "the size of a message",
            Self::LineLength => "the length of a protocol line",
            Self::Requests => "waiting requests",
        })
    }
}

/// A setting of a store that differs from the requested one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigDifference {
    /// The setting.
    pub field: &'static str,
    /// The requested value.
    pub wanted: String,
    /// The value in the store.
    pub found: String,
}

impl ConfigDifference {
    /// Creates a difference; for authors of backends.
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
    /// Returns whether the same call can succeed later without a change by the caller. Examples are
    /// a deadline that passed, a server that could not be reached, and a limit that [clears by
    /// itself](KvLimit::clears_by_itself).
    ///
    /// A lost compare-and-swap is not retryable as it stands: read again first. A write of unknown
    /// outcome is not either, because repeating it could apply it twice. A
    /// [fenced](Self::is_fenced) write never succeeds again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Unavailable { .. } => true,
            Self::LimitReached { limit, .. } => limit.clears_by_itself(),
            _ => false,
        }
    }

    /// Returns whether the connection is over, so that no operation on it can ever succeed again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::NoRuntime { .. })
    }

    /// Returns whether a compare-and-swap lost: the key has another version than expected, or
    /// exists although it was to be created. A retry after a read can succeed. A
    /// [fenced](Self::is_fenced) write is not a conflict, because a retry cannot help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::RevisionMismatch { .. } | Self::AlreadyExists { .. })
    }

    /// Returns whether a write was rejected because a newer fencing token has written to the key.
    /// The lock is lost, and all work under it has to end. To continue, acquire the lock again.
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
