//! NATS JetStream fulfils the whole contract, on a real server.

use shizuku_kv::conformance::{Outcome, Suite};
use shizuku_kv::{ReadConsistency, StorageType, StoreConfig, connect};
use shizuku_kv_tests::NatsServer;

async fn fulfils_the_contract(base: StoreConfig) {
    let server = NatsServer::start();
    let url = server.url();
    let suite = Suite::connecting(move || {
        let url = url.clone();
        async move { connect(&url).await }
    });
    let report = suite.base_config(base).run().await;
    assert!(report.is_ok(), "nats-server {}:\n{report}", server.version());
    if server.is_at_least(2, 11) {
        let left_out = |outcome: &Outcome| matches!(outcome, Outcome::NotApplicable(_));
        let left_out = report.checks().iter().find(|check| left_out(&check.outcome));
        assert!(left_out.is_none(), "{left_out:?}");
    }
}

#[tokio::test]
async fn nats_fulfils_the_contract() {
    fulfils_the_contract(StoreConfig::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_fulfils_the_contract_with_leader_reads() {
    fulfils_the_contract(StoreConfig::new().consistency(ReadConsistency::Leader)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_fulfils_the_contract_in_memory() {
    fulfils_the_contract(StoreConfig::new().storage(StorageType::Memory)).await;
}
