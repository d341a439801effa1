//! The examples as their user sees them: processes, and what they print and answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod driver;
mod edge_replica;
mod live_config;
mod live_map;
mod paused_writer;
