//! The harness that the integration tests of `shizuku-kv` share.
//!
//! A test that needs NATS talks to a real `nats-server`. [`NatsServer`] starts one on a free
//! loopback port in about ten milliseconds, so every test can have its own and kill it. Tests that
//! only store something share one with [`NatsServer::shared`], and use [`unique`] names.
//!
//! The harness produces the faults of a network and a fleet on request. [`TcpProxy`] loses, delays
//! and silences the bytes that pass through it. [`NatsCluster`] has three servers or more, of which
//! each can be killed, paused and cut off. [`Faults`] draws such faults from a seed.
//!
//! [`faulty`] puts faults of a test between a store and its user.
//!
//! The harness never skips a test. If no server can be found, the test fails and says how to get
//! one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness reports by panicking: whatever fails here fails the test that asked for it"
)]

mod api;
mod backends;
mod binary;
mod cluster;
mod config;
mod faults;
pub mod faulty;
mod monitor;
mod proxy;
mod random;
mod rerun;
mod server;
mod settings;
mod silence;
mod suites;
mod supervisor;
mod tls;
mod unique;
mod wait;

pub use backends::{folder_urls, handles, handles_at, stores, urls};
pub use cluster::{ClusterNode, NatsCluster, NatsClusterBuilder};
pub use config::NatsServerBuilder;
pub use faults::{Fault, Faults, Injection, Victim};
pub use proxy::TcpProxy;
pub use random::Random;
pub use rerun::rerun;
pub use server::{NatsServer, STAND_IN};
pub use settings::{is_long, number, seed};
pub use silence::TcpSilence;
pub use suites::missed;
pub use tls::{Identity, TestCerts};
pub use unique::unique;
pub use wait::{PATIENCE, eventually};
