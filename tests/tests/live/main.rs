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

use shizuku_kv::{Connection, Store, connect};
use shizuku_kv_tests::{NatsServer, unique};

type Outcome = Result<(), Box<dyn Error>>;

/// Returns every backend, with a connection of its own.
async fn stores() -> Vec<(Arc<dyn Connection>, Store)> {
    let mut stores = Vec::new();
    for url in ["memory:".to_owned(), NatsServer::shared().url()] {
        let connection = connect(&url).await.unwrap();
        let store = connection.store(&unique("live")).await.unwrap();
        stores.push((connection, store));
    }
    stores
}

/// Returns a runtime of its own, with one thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}
