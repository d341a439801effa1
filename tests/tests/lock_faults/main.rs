//! Locks under faults: processes that hold, wait, are killed and are paused for longer than their lease, while servers and
//! the network between them and these processes fail. Each process keeps a log of what it believes; in the end a checker
//! that knows nothing of the library compares all of them.
//!
//! `SHIZUKU_SEED` makes the same decisions again: the faults, and what each process does next. When it happens is up to the
//! machine. `docs/reliability.md` says what is checked and what is not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod check;
mod child;
mod holds;
mod journal;
mod line;
mod process;
#[path = "../faults/random.rs"]
#[allow(dead_code, reason = "it is shared with tests that draw more")]
mod random;
mod run;
mod summary;
mod worker;

use std::time::Duration;

use run::Plan;
use shizuku_kv_tests::NatsServer;

/// How long faults are injected in the tests that always run. Quiet and the checks come on top.
const LENGTH: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_on_a_single_server_outlive_faults_and_crashes() {
    passes(Plan { seed: 11, nodes: 1, length: LENGTH, acquisitions: 100 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_on_a_cluster_outlive_faults_and_crashes() {
    if is_a_cluster_possible() {
        passes(Plan { seed: 12, nodes: 3, length: LENGTH, acquisitions: 100 }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/test --long"]
async fn ten_thousand_acquisitions_on_a_cluster_outlive_faults_and_crashes() {
    if is_a_cluster_possible() {
        passes(Plan { seed: 13, nodes: 3, length: Duration::from_secs(180), acquisitions: 10_000 })
            .await;
    }
}

/// Before 2.11 two servers whose routes were cut can go on closing each other's new ones for minutes, each taking the
/// other's for a duplicate of its own: then there is no cluster to be tested.
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
