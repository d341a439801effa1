//! Live values and live maps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod map;
mod value;

use std::error::Error;
use std::sync::Arc;

use shizuku_kv::{Connection, Store};

type Outcome = Result<(), Box<dyn Error>>;

/// Returns every backend, with a connection of its own.
async fn stores() -> Vec<(Arc<dyn Connection>, Store)> {
    shizuku_kv_tests::stores("live").await
}

/// Returns a runtime of its own, with one thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}
