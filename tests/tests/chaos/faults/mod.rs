//! Watches under faults. Writers of every kind and watches of every scope run, while servers are
//! killed and paused and the network between them and their clients fails. After a quiet time, each
//! watch is compared with the acknowledged writes.
//!
//! `SHIZUKU_SEED` makes the same decisions again: the faults, and the writes of each writer. The
//! machine decides when they happen. `docs/reliability.md` lists what is checked and what is not.

mod bucket;
pub(crate) mod check;
pub(crate) mod cursors;
pub(crate) mod history;
mod late;
pub(crate) mod log;
pub(crate) mod record;
mod replica;
pub(crate) mod run;
mod soak;
mod summary;
pub(crate) mod watchers;
pub(crate) mod world;
pub(crate) mod writers;

use std::time::Duration;

use run::Plan;
use shizuku_kv_tests::NatsServer;

/// Duration of the faults in the tests that always run, without the quiet time and the checks.
const LENGTH: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_single_server_outlive_its_faults() {
    passes(Plan { seed: 1, nodes: 1, length: LENGTH }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_cluster_outlive_its_faults() {
    // Before 2.11 two servers whose routes were cut can close each other's new routes for minutes,
    // because each considers the other's a duplicate of its own. There is then no cluster to test.
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
