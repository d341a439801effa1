//! Stores in a folder: the conformance suite in each mode, and the properties that only they have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod atomic;
mod cached;
mod conformance;
mod copies;
mod ends;
mod expiry;
mod faults;
mod killed;
mod modes;
mod process;
mod stopped;
