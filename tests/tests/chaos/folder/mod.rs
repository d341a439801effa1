//! Several processes in one shared folder. They write, compare and swap, let values expire, watch,
//! lock, and use registers, while they are killed and stopped at random moments. Each keeps a
//! journal. A restarted process resumes its watches from the last cursor in the journal.
//!
//! In the end the checkers of [`faults`](crate::faults) and of
//! [`linearizability`](crate::linearizability) judge all journals together. `SHIZUKU_SEED` makes
//! the same decisions again; the machine decides when they happen.

mod books;
mod child;
mod run;

use std::time::Duration;

use run::{Plan, Summary};
use shizuku_kv_tests::is_long;

fn length() -> Duration {
    Duration::from_secs(if is_long() { 60 } else { 5 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_a_shared_folder_keep_all_promises() {
    passes(Plan { seed: 21, length: length(), has_events: true }).await;
}

/// Without events of the file, only the poll notices the commits of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_without_events_keep_all_promises() {
    passes(Plan { seed: 22, length: length(), has_events: false }).await;
}

async fn passes(plan: Plan) {
    let summary = run::run(plan).await;
    println!("{summary}");
    assert!(summary.violations.is_empty(), "{}", summary.failure());
    let Summary { kills, registers, grants, .. } = summary;
    assert!(kills > 0 && registers > 0 && grants > 1, "too little has happened: {summary}");
}
