//! Compare-and-swap is linearizable. While servers are killed and paused, several clients use a few
//! keys. A checker looks for one order in which the whole history could have happened, one
//! operation after the other.
//!
//! `SHIZUKU_SEED` makes the same decisions again. `docs/reliability.md` lists what is linearizable
//! and what is not.

pub(crate) mod check;
pub(crate) mod client;
mod cut_off;
pub(crate) mod history;
pub(crate) mod register;
mod rejected;
mod run;
pub(crate) mod table;

use std::time::Duration;

use run::{Plan, Summary};
use shizuku_kv_tests::{Fault, NatsServer, folder_urls, is_long};

const CLUSTER: &[Fault] =
    &[Fault::Kill, Fault::Pause, Fault::Kill, Fault::Pause, Fault::StepDown, Fault::Partition];
const SINGLE: &[Fault] = &[Fault::Kill, Fault::Kill, Fault::Pause, Fault::LoseAnswers];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_on_a_single_server_are_linearizable() {
    passes(Plan { seed: 1, nodes: 1, faults: SINGLE, length: Duration::from_secs(8) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_on_a_cluster_are_linearizable() {
    cluster_passes(2, Duration::from_secs(16)).await;
}

/// In a shared folder each client has a connection of its own. `chaos::folder` has processes that
/// are killed and stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_in_a_folder_are_linearizable() {
    let length = Duration::from_secs(if is_long() { 20 } else { 2 });
    for url in folder_urls() {
        judged(&run::run_in_folder(&url, 5, length).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/test --long"]
async fn swaps_are_linearizable_for_long() {
    passes(Plan { seed: 3, nodes: 1, faults: SINGLE, length: Duration::from_secs(30) }).await;
    cluster_passes(4, Duration::from_secs(120)).await;
}

async fn cluster_passes(seed: u64, length: Duration) {
    // Clusters of 2.10 do not outlive these faults: see `tests/tests/chaos/faults/mod.rs`.
    if !NatsServer::shared().is_at_least(2, 11) {
        println!("not with nats-server {}", NatsServer::shared().version());
        return;
    }
    passes(Plan { seed, nodes: 3, faults: CLUSTER, length }).await;
}

async fn passes(plan: Plan) {
    judged(&run::run(plan).await);
}

fn judged(summary: &Summary) {
    println!("{summary}");
    assert!(summary.violations.is_empty(), "{}", summary.failure());
    assert!(summary.calm > 0 && summary.reads > 0, "there is something to judge");
}
