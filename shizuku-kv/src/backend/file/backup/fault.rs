//! The reasons why a copy is not complete, and their errors.

use std::path::Path;

use super::super::draft::BACKUP;
use super::super::failure::Failure;
use crate::store::KvError;

/// The reason why a copy is not complete.
#[derive(Debug)]
pub(super) enum Fault {
    Source(Failure),
    Target(Failure),
    Ended,
    /// The writers could not be kept out.
    Held(KvError),
    /// The writers change entries faster than the copy reads them.
    Behind,
}

impl Fault {
    pub(super) fn target(error: impl Into<Failure>) -> Self {
        Self::Target(error.into())
    }

    pub(super) fn into_error(self, path: &Path, target: &Path) -> KvError {
        match self {
            Self::Source(failure) => failure.to_error(BACKUP, path, None),
            Self::Target(failure) => failure.to_error(BACKUP, target, None),
            Self::Ended => KvError::closed(BACKUP),
            Self::Held(error) => error,
            Self::Behind => {
                let reason = format!(
                    "{} changes faster than it is copied; repeat the call when less is written, or from a process that writes",
                    path.display()
                );
                KvError::unavailable(BACKUP, reason)
            }
        }
    }
}
