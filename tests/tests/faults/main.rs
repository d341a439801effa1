//! Watches under faults: writers of every kind and watches of every scope, while servers are killed and paused and the
//! network between them and their clients fails; then quiet, and each watch is compared with what was acknowledged.
//!
//! `SHIZUKU_SEED` makes the same decisions again: the faults, and what each writer writes where. When they happen is up
//! to the machine. `docs/reliability.md` says what is checked and what is not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod bucket;
mod check;
mod cursors;
mod history;
mod lagging;
mod late;
mod log;
mod random;
mod record;
mod replica;
mod run;
mod soak;
mod summary;
mod watchers;
mod world;
mod writers;

use std::time::Duration;

use run::Plan;
use shizuku_kv_tests::NatsServer;

/// How long faults are injected in the tests that always run. Quiet and the checks come on top.
const LENGTH: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_single_server_outlive_its_faults() {
    passes(Plan { seed: 1, nodes: 1, length: LENGTH }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_cluster_outlive_its_faults() {
    // Before 2.11 two servers whose routes were cut can go on closing each other's new ones for minutes, each taking
    // the other's for a duplicate of its own: then there is no cluster to be tested.
    if !NatsServer::shared().is_at_least(2, 11) {
        println!("not with nats-server {}", NatsServer::shared().version());
        return;
    }
    passes(Plan { seed: 2, nodes: 3, length: LENGTH }).await;
}

async fn passes(plan: Plan) {
    let summary = run::run(plan).await;
    println!("{summary}");
    assert!(summary.violations.is_empty(), "{}", summary.failure());
}
