//! Tests of the log on a disk in memory that fails and loses data, and on a real disk if that
//! matters.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod basics;
mod damage;
mod faults;
mod fixture;
mod growth;
mod model;
#[cfg(unix)]
mod paths;
mod power;
mod sim;
mod together;
