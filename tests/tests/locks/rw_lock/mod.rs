//! Read-write locks in memory and on a server, without faults of the network: the grants, their
//! order, and the errors of invalid uses. `locks::faults` covers the rest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod bad_use;
mod election;
mod foreign;
mod full_stores;
mod holding;
mod leases;
mod lost_holds;
mod presumed_dead;
mod processors;
mod session_keys;
mod shutdown;
mod waits;

use std::time::Duration;

use shizuku_kv::rw_lock::DistroRwLock;
use shizuku_kv::{Store, connect};
use shizuku_kv_tests::{NatsServer, unique};

/// Returns handles to the same store, each for one simulated process.
async fn handles(number: usize) -> [Vec<Store>; 2] {
    let memory = connect("memory:").await.unwrap();
    let mut stores = [Vec::new(), Vec::new()];
    let name = unique("locks");
    for _ in 0..number {
        // Handles that are opened separately share nothing except the store, like different
        // processes.
        stores[0].push(memory.store(&name).await.unwrap());
        let connection = connect(&NatsServer::shared().url()).await.unwrap();
        stores[1].push(connection.store(&name).await.unwrap());
    }
    stores
}

/// Waits until this many are queued.
async fn in_line(lock: &DistroRwLock, number: usize) {
    let look = async {
        while lock.inspect().await.unwrap().waiting.len() != number {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("they are queued");
}
