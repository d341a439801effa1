//! Status and rejected entries of a live map.

use std::sync::Arc;
use std::time::SystemTime;

use crate::live::status::says_the_same;
use crate::record::KvReadError;
use crate::store::{Key, KvError, VersionToken, WatchLink};

/// Status of a [`LiveMap`](crate::LiveMap).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveMapStatus {
    /// Connection state: whether the store is reachable, otherwise since when not, and why.
    pub link: WatchLink,
    /// Relation of the map to the store, as far as it is known.
    pub sync_state: LiveMapSyncState,
    /// Number of rejected entries of the store: see
    /// [`LiveMap::rejections`](crate::LiveMap::rejections).
    pub rejected: usize,
}

impl LiveMapStatus {
    /// Returns whether the map follows the store, so that it equals the store except for updates in
    /// flight. Rejected entries do not count here: see [`rejected`](Self::rejected).
    pub fn is_current(&self) -> bool {
        self.link.is_up() && matches!(self.sync_state, LiveMapSyncState::Current)
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.sync_state, LiveMapSyncState::Ended { .. })
    }

    /// Returns the status of a map that no task follows any more.
    pub(super) fn ended(mut self) -> Self {
        self.sync_state = LiveMapSyncState::Ended { error: self.end() };
        self
    }

    /// Returns the reason for which no task follows the store any more.
    pub(super) fn end(&self) -> KvError {
        match &self.sync_state {
            LiveMapSyncState::Ended { error } => error.clone(),
            _ => KvError::Closed { operation: "live_map" },
        }
    }
}

/// Relation of a live map to its store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LiveMapSyncState {
    /// The map is the last known state of the store.
    Current,
    /// The store has to be read again from the start, because the delivered updates have a gap. The
    /// map stays as it was until all is read, and may be outdated.
    Rereading,
    /// No task follows the store any more: the connection or its runtime was shut down, or the
    /// type's own code panicked. The map keeps its last values.
    #[non_exhaustive]
    Ended {
        /// The reason.
        error: KvError,
    },
}

/// Compares errors by their messages.
impl PartialEq for LiveMapSyncState {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Current, Self::Current) | (Self::Rereading, Self::Rereading) => true,
            (Self::Ended { error }, Self::Ended { error: other }) => says_the_same(error, other),
            _ => false,
        }
    }
}

impl Eq for LiveMapSyncState {}

/// A rejected entry of the store: it does not decode, breaks the rule of its type, or belongs under
/// another key. From [`LiveMap::rejection`](crate::LiveMap::rejection).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveRejection {
    /// The store's key, which need not be a key of the type.
    pub key: Key,
    /// The version of the rejected entry.
    pub version: VersionToken,
    /// The reason.
    pub error: Arc<KvReadError>,
    pub(super) created: SystemTime,
}

/// Compares errors by their messages.
impl PartialEq for LiveRejection {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.is_same(other) && says_the_same(&self.error, &other.error)
    }
}

impl Eq for LiveRejection {}

impl LiveRejection {
    /// Returns whether both are about the same entry. In a recreated store, versions start again.
    /// The time distinguishes an entry from an earlier one with the same version.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.version, self.created) == (other.version, other.created)
    }
}
