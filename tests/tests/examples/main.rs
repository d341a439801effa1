//! Tests of the examples as their users see them: processes, their output and their answers.

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
