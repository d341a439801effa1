//! The same random operations on the memory backend and on NATS, or in a folder, compared with each
//! other and with a ledger of every acknowledged write.
//!
//! Watches and listings are read slowly while others write, purge and let values expire. A seed
//! decides everything except the moments at which a server's messages arrive. `SHIZUKU_SEED=N`
//! repeats one seed, `SHIZUKU_SEEDS=N` sets the number of seeds.
//!
//! Differences that are allowed (`docs/reliability.md` gives the reasons):
//! 1. A cursor of a watch that is narrower than the store may expire on one side only.
//! 2. So may any cursor after concurrent writers have made the order of writes differ.
//! 3. In a store with `max_value_size`, an expected version, a fencing token and a time to live
//!    reduce the largest value on NATS by up to 160 bytes.

mod ledger;
mod mirror;
mod readers;
mod run;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use run::{LARGEST, Plan, Run};
use shizuku_kv::{ReadConsistency, StoreConfig, connect};
use shizuku_kv_tests::{NatsCluster, NatsServer, is_long, number, unique};

/// Number of seeds by default, on a single server and on a cluster.
const SEEDS: (u64, u64) = (48, 8);

/// The same with `SHIZUKU_LONG=1`.
const MANY_SEEDS: (u64, u64) = (500, 100);

/// Number of runs at the same time.
const AT_ONCE: u64 = 4;

/// Number of failed seeds that are reported.
const REPORTED: usize = 3;

fn seeds(few: u64, many: u64) -> Range<u64> {
    if let Some(seed) = number("SHIZUKU_SEED") {
        return seed..seed + 1;
    }
    0..number("SHIZUKU_SEEDS").unwrap_or(if is_long() { many } else { few })
}

/// Runs every seed against the servers at `url`.
async fn compare(url: &str, replicas: usize, has_ttl: bool, seeds: Range<u64>) {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let worker = async || {
        let mut failures = Vec::new();
        // Several seeds share one connection, so that each finds the leftovers of earlier ones.
        let nats = connect(url).await.expect("connect to the test's server");
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failures.len() >= REPORTED {
                return failures;
            }
            let memory = connect("memory:").await.unwrap();
            let plan = Plan::of(seed, has_ttl);
            let mut config =
                StoreConfig::new().history(plan.history).deadline(Duration::from_secs(20));
            if plan.key_ttl {
                config = config.key_ttl(true);
            }
            if plan.limits_size {
                config = config.max_value_size(LARGEST);
            }
            let name = unique("differential");
            let in_memory = memory.store_with_config(&name, config.clone()).await.unwrap();
            if replicas > 1 {
                config = config.replicas(replicas).consistency(ReadConsistency::Leader);
            }
            let on_nats = nats.store_with_config(&name, config).await.expect("make the store");
            if let Err(why) = Run::new(plan, [in_memory, on_nats]).run().await {
                failures.push(format!("SHIZUKU_SEED={seed} runs this again:\n{why}"));
            }
            nats.delete_store(&name).await.expect("delete the store");
        }
    };
    let workers =
        futures_util::future::join_all((0..AT_ONCE.min(seeds.end - seeds.start)).map(|_| worker()));
    let failures: Vec<_> = workers.await.into_iter().flatten().collect();
    println!("seeds {seeds:?} in {:.1?}: {} with a difference", began.elapsed(), failures.len());
    let reported = &failures[..failures.len().min(REPORTED)];
    assert!(failures.is_empty(), "{}", reported.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_nats_answer_alike() {
    let server = NatsServer::start();
    compare(&server.url(), 1, server.is_at_least(2, 11), seeds(SEEDS.0, MANY_SEEDS.0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_a_cluster_answer_alike() {
    let cluster = NatsCluster::start().await;
    let has_ttl = cluster.node(0).is_at_least(2, 11);
    compare(&cluster.url(), 3, has_ttl, seeds(SEEDS.1, MANY_SEEDS.1)).await;
}

/// Each worker has a connection of its own, as if it were another process.
#[tokio::test(flavor = "multi_thread")]
async fn memory_and_a_shared_folder_answer_alike() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}/data?shared=true", folder.path().display());
    compare(&url, 1, true, seeds(SEEDS.0, MANY_SEEDS.0)).await;
}
