//! Locks under faults. Processes hold, wait, are killed and are paused for longer than their lease,
//! while servers and the network between them and these processes fail. Each process keeps a log of
//! its events. In the end a checker that does not depend on the library compares all of them.
//!
//! `SHIZUKU_SEED` makes the same decisions again: the faults, and the next steps of each process.
//! The machine decides when they happen. `docs/reliability.md` lists what is checked and what is
//! not.

mod child;
mod journal;
mod process;
mod run;
mod summary;
mod worker;

use std::time::Duration;

use run::Plan;
use shizuku_kv_tests::{NatsServer, is_long};

/// Duration of the faults in the tests that always run, without the quiet time and the checks.
const LENGTH: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_on_single_server_survive_faults_and_crashes() {
    passes(Plan { seed: 11, nodes: 1, length: LENGTH, acquisitions: 100 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_on_cluster_survive_faults_and_crashes() {
    if is_a_cluster_possible() {
        passes(Plan { seed: 12, nodes: 3, length: LENGTH, acquisitions: 100 }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_in_shared_folder_survive_crashes() {
    let length = Duration::from_secs(if is_long() { 60 } else { 8 });
    passes(Plan { seed: 14, nodes: 0, length, acquisitions: 100 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/test --long"]
async fn ten_thousand_locks_on_cluster_survive_faults_and_crashes() {
    if is_a_cluster_possible() {
        passes(Plan { seed: 13, nodes: 3, length: Duration::from_secs(180), acquisitions: 10_000 })
            .await;
    }
}

/// Before 2.11 two servers whose routes were cut can close each other's new routes for minutes,
/// because each considers the other's a duplicate of its own. There is then no cluster to test.
fn is_a_cluster_possible() -> bool {
    let is_possible = NatsServer::shared().is_at_least(2, 11);
    if !is_possible {
        println!("not with nats-server {}", NatsServer::shared().version());
    }
    is_possible
}

async fn passes(plan: Plan) {
    let summary = run::run(plan).await;
    println!("{summary}");
    assert!(summary.violations.is_empty(), "{}", summary.failure());
    assert!(summary.acquisitions() >= plan.acquisitions, "too little has happened: {summary}");
}
