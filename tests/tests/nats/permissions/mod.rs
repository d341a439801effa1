//! Users with few rights: each operation works with the rights that it needs, and names a missing
//! one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod api_prefix;
mod changed_rights;
mod conformance;
mod crowds;
mod domains;
mod least;
mod operations;
mod other_forms;
mod part;
mod part_limits;
mod part_locks;
mod refused_subscriptions;
mod rights;
mod tables;
mod unneeded_rights;
