//! The guarantees of a [`ReplicaStorage`](crate::replica::ReplicaStorage) as runnable checks, for
//! authors of a storage in a database of their own.
//!
//! A replica's whole correctness rests on its storage. The replica does not read a forgotten entry
//! again, and a checkpoint that is ahead of the state hides changes for ever. [`StorageSuite`] runs
//! each check against storages of its own:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use shizuku_kv::conformance::storage::StorageSuite;
//! use shizuku_kv::replica::MemoryStorage;
//!
//! let suite = StorageSuite::new(|_name| async { Ok(MemoryStorage::new()) });
//! let report = suite.not_durable().run().await;
//! assert!(report.is_ok(), "{report}");
//! # }
//! ```
//!
//! The suite does not cover two properties: that a commit survives a loss of power, and that a
//! failed commit leaves nothing behind. Testing these needs faults in the storage's own disk
//! operations.

mod changes;
mod check;
mod checkpoints;
mod data;
mod random;
mod subject;
mod suite;

pub use check::{StorageCheck, StorageNeed};
pub use subject::StorageFixture;
pub use suite::StorageSuite;

/// Iterates over every check of a storage.
pub fn checks() -> impl Iterator<Item = &'static StorageCheck> {
    [changes::CHECKS, data::CHECKS, checkpoints::CHECKS, random::CHECKS].into_iter().flatten()
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
