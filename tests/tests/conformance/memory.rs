//! The in-memory backend fulfils the whole contract.

use shizuku_kv::conformance::{self, Outcome, Suite};
use shizuku_kv::{ReadConsistency, StoreConfig, connect};

/// Runs the whole suite, except properties that memory cannot have.
#[tokio::test]
async fn memory_fulfils_the_contract() {
    let report = Suite::connecting(|| connect("memory:")).run().await;
    assert!(report.is_ok(), "{report}");
    for check in report.checks() {
        if let Outcome::NotApplicable(why) = &check.outcome {
            assert!(why.contains("Persistent") || why.contains("Shared"), "{}: {why}", check.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_fulfils_the_contract_with_leader_reads() {
    let base = StoreConfig::new().consistency(ReadConsistency::Leader);
    let report = Suite::connecting(|| connect("memory:")).base_config(base).run().await;
    assert!(report.is_ok(), "{report}");
}

#[tokio::test]
async fn the_plain_runner_takes_any_connection() -> Result<(), shizuku_kv::KvError> {
    let connection = connect("memory:").await?;
    let report = conformance::run(connection.clone()).await;
    assert!(report.is_ok(), "{report}");
    assert!(
        matches!(report.outcome("shutdown_ends_its_stores"), Some(Outcome::NotApplicable(_))),
        "{report}"
    );
    // The suite leaves the connection open, without any store.
    assert!(connection.list_stores().try_collect().await?.is_empty());
    Ok(())
}
