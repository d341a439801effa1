//! The errors of a replica.

use std::error::Error;
use std::sync::Arc;

use crate::store::KvError;

/// The reason why a replica ended, or why it makes no progress
/// ([`ReplicaProgress::last_error`](super::ReplicaProgress::last_error)). In each case the
/// checkpoint covers only applied updates.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// A setting is out of its range.
    #[error("{field} must be {allowed}")]
    #[non_exhaustive]
    InvalidConfig {
        /// The setting.
        field: &'static str,
        /// The permitted values.
        allowed: &'static str,
    },
    /// The store cannot be followed.
    #[error(transparent)]
    Store(KvError),
    /// Applying failed. The batch will be applied again, now or by the next run.
    #[error("applying {updates} updates failed at try {attempts}: {source}")]
    #[non_exhaustive]
    Apply {
        /// Number of updates in the batch.
        updates: usize,
        /// Number of attempts.
        attempts: u32,
        /// Error of `apply`.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The storage failed. Updates that were applied but not committed will be applied again.
    #[error("the replica's storage failed while {doing}: {source}")]
    #[non_exhaustive]
    Storage {
        /// The operation that failed.
        doing: &'static str,
        /// Error of the storage.
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl ReplicaError {
    /// Returns the operation that failed, for the log. It contains no text of an external error.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::InvalidConfig { .. } => "checking the settings",
            Self::Store(_) => "following the store",
            Self::Apply { .. } => "applying",
            Self::Storage { doing, .. } => doing,
        }
    }
}
