//! The whole conformance suite with exactly the rights of each table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::conformance::{Outcome, Report, Suite};
use shizuku_kv::{Connection, KvResult, NatsConnectionConfig, StoreConfig, nats_connect};
use shizuku_kv_tests::NatsServer;

use super::part::part;
use super::tables::{inbox_prefix, rights, rows};

/// The suite gives its buckets names of its own, and a right has a whole token or a wildcard.
fn any_bucket(subject: &str) -> String {
    subject.replace("KV_x", "*").replace("$KV.x.", "$KV.*.")
}

fn config(server: &NatsServer, user: &str, inbox_prefix: &str) -> NatsConnectionConfig {
    let url = server.url_as(&format!("{user}:hunter2"));
    NatsConnectionConfig::from_url(&url).unwrap().inbox_prefix(inbox_prefix)
}

async fn connect(config: NatsConnectionConfig) -> KvResult<Arc<dyn Connection>> {
    Ok(Arc::new(nats_connect(config).await?))
}

fn all_applied(server: &NatsServer, report: &Report) {
    if server.is_at_least(2, 11) {
        let left_out = |outcome: &Outcome| matches!(outcome, Outcome::NotApplicable(_));
        let left_out = report.checks().iter().find(|check| left_out(&check.outcome));
        assert!(left_out.is_none(), "{left_out:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_to_whole_buckets_fulfil_the_contract() {
    let rows = rows("A whole bucket");
    let server = rights(&rows, any_bucket).start();
    let app = config(&server, "app", &inbox_prefix(&rows));
    let report = Suite::connecting(move || connect(app.clone())).run().await;
    assert!(report.is_ok(), "nats-server {}:\n{report}", server.version());
    all_applied(&server, &report);
}

/// Checks that need more than rights to a part, and the denied subject of each.
const REFUSED: &[(&str, &str)] = &[
    ("a_listing_keeps_to_its_scope", "$JS.API.CONSUMER.CREATE.KV_conformance-"),
    ("a_scan_keeps_to_its_scope", "$JS.API.CONSUMER.CREATE.KV_conformance-"),
    ("an_empty_scope_is_caught_up", "$JS.API.CONSUMER.CREATE.KV_conformance-"),
    ("live_updates_keep_to_their_scope", "$JS.API.CONSUMER.CREATE.KV_conformance-"),
    ("the_leader_reads_its_own_writes", "$JS.API.STREAM.MSG.GET.KV_conformance-"),
    ("the_state_of_a_watch_keeps_to_its_scope", "$JS.API.CONSUMER.CREATE.KV_conformance-"),
];

/// Checks that fail for a reason that has nothing to do with rights: keys of the part are longer by
/// its token.
const OF_THE_WRAPPER: &[(&str, &str)] = &[
    ("a_value_of_the_limit_fits", "1029 bytes at byte 1024"),
    ("the_default_limit_is_true", "1029 bytes at byte 1024"),
    ("the_longest_key_works", "1029 bytes at byte 1024"),
];

#[tokio::test(flavor = "multi_thread")]
async fn rights_to_parts_fulfil_the_contract_or_are_told() {
    let rows = rows("A part of a bucket");
    let server = rights(&rows, any_bucket).start();
    let [admin, app] = [("admin", "_INBOX".to_owned()), ("app", inbox_prefix(&rows))]
        .map(|(user, inbox)| config(&server, user, &inbox));
    let suite = Suite::connecting(move || {
        let (admin, app) = (admin.clone(), app.clone());
        async move { Ok(part(connect(admin).await?, connect(app).await?)) }
    });
    // One check requests 2,000 absent keys, each of which needs a look at the stream without leader
    // reads.
    let patient = StoreConfig::new().deadline(Duration::from_secs(30));
    let report = suite.base_config(patient).deadline(Duration::from_secs(120)).run().await;
    all_applied(&server, &report);
    let applied = |name: &str| {
        let outcome =
            report.checks().iter().find(|check| check.name == name).map(|check| &check.outcome);
        !matches!(outcome, Some(Outcome::NotApplicable(_)))
    };
    let failed = report.checks().iter().filter_map(|check| match &check.outcome {
        Outcome::Failed(failure) => Some((check.name.as_str(), failure.message().to_owned())),
        _ => None,
    });
    let failed: BTreeMap<_, _> = failed.collect();
    let refused = REFUSED.iter().map(|(name, right)| (*name, ["this user may not", *right]));
    let of_the_wrapper = OF_THE_WRAPPER.iter().map(|(name, why)| (*name, ["", *why]));
    let expected: BTreeMap<_, _> = refused.chain(of_the_wrapper).collect();
    let mut wrong = Vec::new();
    for (name, message) in &failed {
        let words = expected.get(name);
        if !words.is_some_and(|words| words.iter().all(|word| message.contains(word))) {
            wrong.push(format!("{name}: {message}"));
        }
    }
    let passed = expected.keys().filter(|name| !failed.contains_key(*name) && applied(name));
    wrong.extend(passed.map(|name| format!("{name} is expected to fail, and passed")));
    assert!(wrong.is_empty(), "nats-server {}:\n{}", server.version(), wrong.join("\n"));
}
