//! The type of a check of storages, and the macro that lists the checks of a file.

use super::StorageFixture;
use crate::conformance::{CheckFailure, CheckResult};
use crate::replica::StorageError;

/// A requirement of a check in addition to a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageNeed {
    /// A storage that keeps its content when it is dropped and reopened.
    Durable,
    /// A function that reads values, which the trait does not have: see
    /// [`StorageSuite::reading`](super::StorageSuite::reading).
    Values,
}

impl StorageNeed {
    /// Returns the reason why a fixture does not meet the requirement, if it does not.
    pub(super) fn missing(self, fixture: &StorageFixture) -> Option<&'static str> {
        match self {
            Self::Durable => (!fixture.is_durable()).then_some("the storage is not durable"),
            Self::Values => {
                (!fixture.reads()).then_some("the suite was given no way to read values")
            }
        }
    }
}

/// One clause of the guarantees of storages, and the function that checks it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StorageCheck {
    /// Name of the function, unique among all checks.
    pub name: &'static str,
    /// The guarantee of the trait.
    pub clause: &'static str,
    /// The requirements of the check. Without one of them the check is not applicable.
    pub needs: &'static [StorageNeed],
    /// The function that runs the check. It blocks its thread.
    pub run: fn(&StorageFixture) -> CheckResult,
}

/// The checks of a file: each function with its requirements and the clause that it checks.
macro_rules! storage_checks {
    ($($name:ident [$($need:ident),*] $clause:literal,)+) => {
        &[$($crate::conformance::storage::StorageCheck {
            name: stringify!($name),
            clause: $clause,
            needs: &[$($crate::conformance::storage::StorageNeed::$need),*],
            run: $name,
        }),+]
    };
}
pub(super) use storage_checks;

/// Converts the error of an operation that the check expected to succeed.
impl From<StorageError> for CheckFailure {
    #[track_caller]
    fn from(error: StorageError) -> Self {
        Self::new(format!("expected success, found the error: {error}"))
    }
}
