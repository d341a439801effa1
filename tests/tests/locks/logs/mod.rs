//! The logs of processes that acquire locks, and a checker that does not depend on the library.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

pub(crate) mod check;
pub(crate) mod holds;
pub(crate) mod line;
