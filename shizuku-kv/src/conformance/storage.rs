//! What a [`ReplicaStorage`](crate::replica::ReplicaStorage) promises, as runnable checks: for whoever keeps a replica in
//! a database of their own.
//!
//! A replica's whole correctness rests on its storage: what it forgets is not fetched again, and a place that is ahead
//! of the state hides changes for ever. [`StorageSuite`] runs each check against storages of its own:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use shizuku_kv::conformance::storage::StorageSuite;
//! use shizuku_kv::replica::MemoryStorage;
//!
//! let report = StorageSuite::new(|_name| async { Ok(MemoryStorage::new()) }).not_durable().run().await;
//! assert!(report.is_ok(), "{report}");
//! # }
//! ```
//!
//! What it cannot see: whether a commit survives a loss of power, and whether one that failed left nothing behind. That
//! takes faults in the storage's own means.

mod changes;
mod data;
mod places;
mod random;
mod subject;
mod suite;

pub use subject::StorageFixture;
pub use suite::StorageSuite;

use super::{CheckFailure, CheckResult};
use crate::replica::StorageError;

/// What a check needs, apart from a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageNeed {
    /// A storage that keeps what it holds when it is dropped and opened again.
    Durable,
    /// A way to read values, which is no part of the trait: see [`StorageSuite::reading`].
    Values,
}

/// One clause of what storages promise, and the function that checks it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StorageCheck {
    /// The name of the function; no two checks have the same.
    pub name: &'static str,
    /// What the trait promises.
    pub clause: &'static str,
    /// What there has to be for the check to make sense. Where it is not, the check is not applicable.
    pub needs: &'static [StorageNeed],
    /// The check itself. It blocks.
    pub run: fn(&StorageFixture) -> CheckResult,
}

/// The checks of a file: each function with what it needs and the clause that it checks.
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
use storage_checks;

/// Every check of a storage.
pub fn checks() -> impl Iterator<Item = &'static StorageCheck> {
    [changes::CHECKS, data::CHECKS, places::CHECKS, random::CHECKS].into_iter().flatten()
}

/// An error where the check expected success.
impl From<StorageError> for CheckFailure {
    #[track_caller]
    fn from(error: StorageError) -> Self {
        Self::new(format!("expected success, found the error: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_every_check_names_a_clause() {
        let mut names = HashSet::new();
        for check in super::checks() {
            assert!(names.insert(check.name), "two checks are named {}", check.name);
            assert!(!check.clause.is_empty(), "{} names no clause", check.name);
        }
    }

    #[test]
    fn a_run_can_be_spawned() {
        fn sendable(_: impl Send + 'static) {}
        let suite =
            super::StorageSuite::new(|_name| async { Ok(crate::replica::MemoryStorage::new()) });
        sendable(suite.run());
    }
}
