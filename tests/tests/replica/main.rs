//! Replicas: that what is kept was applied, that nothing is missed and nothing stays which is gone, and that a run ends
//! when it should and only then.
//!
//! The tests that need a certain order of things have it from a [`script`]: a backend whose watches say what the test
//! wants, when it wants it. What a store makes of it is tested on the backends themselves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod disk;
mod dropping;
mod failures;
mod limits;
mod monitor;
mod order;
mod outage;
mod place;
mod random;
mod repair;
mod repair_nats;
mod scope;
mod script;
mod settings;
mod silent;
mod spawning;
mod stopping;
mod support;
mod typed;
