//! Status of a live value.

use std::sync::Arc;

use crate::record::KvReadError;
use crate::store::{KvError, KvOperation, VersionToken, WatchLink};

/// Status of a [`Live`](crate::Live) value: its connection state, and its relation to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveStatus {
    /// Connection state: whether the store is reachable, otherwise since when not, and why.
    pub link: WatchLink,
    /// Relation of the current value to the store, as far as it is known.
    pub sync_state: LiveSyncState,
    /// Whether the live value is an `Option`, so that its current value is `None` while the store
    /// has no record.
    pub(super) is_optional: bool,
}

impl LiveStatus {
    /// Returns `true` if the link is up and the current value is the store's, except for updates in
    /// flight. If the store has no record, a `Live<Option<T>>` is current with `None`. Every other
    /// live value then keeps its last value or default, and returns `false`.
    ///
    /// An entry can leave the store without a message, for example because an operator purged it.
    /// The status then shows it after the next comparison with the store, up to 60 s later:
    /// [`Store::with_comparison`](crate::Store::with_comparison).
    pub fn is_current(&self) -> bool {
        let is_the_stores = match self.sync_state {
            LiveSyncState::Current => true,
            LiveSyncState::Absent { .. } => self.is_optional,
            _ => false,
        };
        self.link.is_up() && is_the_stores
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.sync_state, LiveSyncState::Ended { .. })
    }

    /// Returns the status of a value that no task follows any more.
    pub(super) fn ended(mut self) -> Self {
        self.sync_state = LiveSyncState::Ended { error: self.end() };
        self
    }

    /// Returns the reason for which no task follows the store any more.
    pub(super) fn end(&self) -> KvError {
        match &self.sync_state {
            LiveSyncState::Ended { error } => error.clone(),
            _ => KvError::Closed { operation: "live" },
        }
    }
}

/// Relation of a live value to its store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LiveSyncState {
    /// The current value is the store's.
    Current,
    /// The state of the store is unknown: it could not be reached, and the default is the current
    /// value.
    Unknown,
    /// The store has no record: it was never written, was deleted, or left the store without a
    /// message. The current value is the last one, the default or `None`.
    #[non_exhaustive]
    Absent {
        /// The operation and the version of the tombstone, if one was seen.
        tombstone: Option<(KvOperation, VersionToken)>,
    },
    /// The store's value is rejected: it does not decode, belongs under another key, or breaks the
    /// rule of its type. The current value is the last good one, or the default.
    #[non_exhaustive]
    Rejected {
        /// The version of the rejected value.
        version: VersionToken,
        /// The reason.
        error: Arc<KvReadError>,
    },
    /// No task follows the store any more: the connection or its runtime was shut down, or the
    /// type's own code panicked. The last value stays current.
    #[non_exhaustive]
    Ended {
        /// The reason.
        error: KvError,
    },
}

/// Compares errors by their messages.
impl PartialEq for LiveSyncState {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Current, Self::Current) | (Self::Unknown, Self::Unknown) => true,
            (Self::Absent { tombstone }, Self::Absent { tombstone: other }) => tombstone == other,
            (Self::Rejected { version, error }, Self::Rejected { version: v, error: e }) => {
                version == v && says_the_same(error, e)
            }
            (Self::Ended { error }, Self::Ended { error: other }) => says_the_same(error, other),
            _ => false,
        }
    }
}

impl Eq for LiveSyncState {}

pub(super) fn says_the_same(one: &impl ToString, other: &impl ToString) -> bool {
    one.to_string() == other.to_string()
}

/// The state that the task shares with the handles.
#[derive(Clone, Debug)]
pub(super) struct State<S = LiveStatus> {
    /// Number of the current value, which grows with each one.
    pub(super) generation: u64,
    pub(super) status: S,
}
