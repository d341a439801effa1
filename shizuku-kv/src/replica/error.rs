//! Why a replica ends.

use std::error::Error;
use std::sync::Arc;

use crate::store::KvError;

/// Why a replica ended, or what is in its way ([`ReplicaProgress::last_error`](super::ReplicaProgress::last_error)). In
/// each case the place that is kept covers only what was applied.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// A setting is out of its range.
    #[error("{field} must be {allowed}")]
    #[non_exhaustive]
    InvalidConfig {
        /// The setting.
        field: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// The bucket cannot be followed.
    #[error(transparent)]
    Store(KvError),
    /// Applying failed. The batch will be applied again, now or by the next run.
    #[error("applying {updates} updates failed at try {attempts}: {source}")]
    #[non_exhaustive]
    Apply {
        /// How many updates the batch has.
        updates: usize,
        /// How often it was tried.
        attempts: u32,
        /// What `apply` returned.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The storage failed. What was applied and not kept will be applied again.
    #[error("the replica's storage failed while {doing}: {source}")]
    #[non_exhaustive]
    Storage {
        /// What was to be done.
        doing: &'static str,
        /// What the storage said.
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl ReplicaError {
    /// What was being done, for the log: without the words of others.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::InvalidConfig { .. } => "checking the settings",
            Self::Store(_) => "following the store",
            Self::Apply { .. } => "applying",
            Self::Storage { doing, .. } => doing,
        }
    }
}
