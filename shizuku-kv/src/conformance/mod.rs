//! The store contract as runnable checks, for authors of backends and for users who want to know
//! how a server really behaves.
//!
//! Each clause of the [contract](crate::store::contract) is an async function here, grouped in
//! families: one module each. [`run`] runs them all against any
//! [`Connection`](crate::Connection) and reports each by name:
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), shizuku_kv::KvError> {
//! use shizuku_kv::conformance;
//!
//! let connection = shizuku_kv::connect("memory:").await?;
//! let report = conformance::run(connection).await;
//! assert!(report.is_ok(), "{report}");
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! [`Suite`] has the options: a family or a single check, another deadline, settings for every
//! store, and a function that opens connections. Without that function the suite skips the checks
//! that end a connection.
//!
//! Every check works in stores of its own with unique names, deletes them afterwards, and has a
//! deadline: a check that hangs has failed. Capabilities that a backend does not
//! [claim](crate::ConnectionCapabilities) are checked too: it must reject them with
//! [`KvError::Unsupported`](crate::KvError::Unsupported).
//!
//! Checks read right after they wrote. On a cluster, a replica that is behind may answer reads.
//! Give the suite stores with [`ReadConsistency::Leader`](crate::ReadConsistency::Leader) there.
//!
//! The contract does not cover the storage of replicas, which has its own checks in [`storage`].

#[macro_use]
mod failure;
#[macro_use]
mod check;
mod capability;
mod fixture;
mod observe;
mod report;
mod suite;

pub mod cursors;
pub mod deadlines;
pub mod expiry;
pub mod fenced;
pub mod keys;
pub mod lifecycle;
pub mod markers;
pub mod races;
pub mod reads;
pub mod scans;
pub mod scopes;
pub mod settings;
pub mod storage;
pub mod stores;
pub mod values;
pub mod versions;
pub mod watches;
pub mod writes;

pub use capability::Capability;
pub use check::{Check, CheckFunction};
pub use failure::{CheckFailure, CheckResult};
pub use fixture::Fixture;
pub use report::{CheckReport, Outcome, Report};
pub use suite::{Suite, run};

/// Iterates over every check, family by family.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [
        keys::CHECKS,
        values::CHECKS,
        versions::CHECKS,
        writes::CHECKS,
        races::CHECKS,
        reads::CHECKS,
        scans::CHECKS,
        scopes::CHECKS,
        watches::CHECKS,
        markers::CHECKS,
        cursors::CHECKS,
        expiry::CHECKS,
        fenced::CHECKS,
        stores::CHECKS,
        settings::CHECKS,
        deadlines::CHECKS,
        lifecycle::CHECKS,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_no_check_is_named_like_a_family() {
        let families = super::checks().map(|check| check.family).collect::<HashSet<_>>();
        let mut names = HashSet::new();
        for check in super::checks() {
            assert!(names.insert(check.name), "two checks are named {}", check.name);
            assert!(!families.contains(check.name), "{} is a family and a check", check.name);
            assert!(!check.clause.is_empty(), "{} names no clause", check.name);
        }
        assert_eq!(families.len(), 17);
    }

    #[test]
    fn a_run_can_be_spawned() {
        fn sendable(_: impl Send + 'static) {}
        sendable(super::Suite::connecting(|| crate::connect("memory:")).run());
    }
}
