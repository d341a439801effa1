//! The log on a disk in memory, that fails and forgets; and on a real one, where that is what matters.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod basics;
mod damage;
mod faults;
mod fixture;
mod model;
#[cfg(unix)]
mod places;
mod power;
mod sim;
mod together;
