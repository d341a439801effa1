//! Replicas: all committed updates were applied, nothing is missed, no vanished key stays, and a
//! run ends only when it should.
//!
//! Tests that need a certain order of events use a [`script`]: a backend whose watches deliver what
//! the test wants, when it wants it. Other tests use the backends themselves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod checkpoint;
mod comparison;
mod disk;
mod dropping;
mod failures;
mod killed;
mod limits;
mod monitor;
mod order;
mod outage;
mod random;
mod resync;
mod resync_nats;
mod scope;
mod script;
mod settings;
mod silent;
mod snapshot_kill;
mod spawning;
mod stopping;
mod storage;
mod support;
mod typed;
