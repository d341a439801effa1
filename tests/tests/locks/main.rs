//! Locks, elections and processors: use, faults at one point, random schedules, processes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod adversity;
mod faults;
mod guard;
mod logs;
mod rw_lock;
mod schedules;
