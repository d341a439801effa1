//! Random operations under random faults, compared with a model or with another backend.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod differential;
mod faults;
mod folder;
mod journal;
mod linearizability;
