//! The backend fulfils the whole contract in each mode.

use shizuku_kv::conformance::{Outcome, Suite};
use shizuku_kv::{ReadConsistency, StoreConfig, connect};
use tempfile::tempdir;

async fn fulfils_the_contract(options: &str, base: StoreConfig) {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data{options}", folder.path().display());
    let suite = Suite::connecting(move || {
        let url = url.clone();
        async move { connect(&url).await }
    });
    let report = suite.base_config(base).run().await;
    assert!(report.is_ok(), "{options}:\n{report}");
    for check in report.checks() {
        if let Outcome::NotApplicable(why) = &check.outcome {
            assert!(why.contains("Shared"), "{}: {why}", check.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_mode_fulfils_the_contract() {
    fulfils_the_contract("?exclusive=true", StoreConfig::new()).await;
}

#[tokio::test]
async fn default_mode_fulfils_the_contract() {
    fulfils_the_contract("", StoreConfig::new().consistency(ReadConsistency::Leader)).await;
}

#[tokio::test]
async fn shared_mode_fulfils_the_contract() {
    fulfils_the_contract("?shared=true", StoreConfig::new()).await;
}
