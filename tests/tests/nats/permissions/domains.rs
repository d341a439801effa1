//! A JetStream domain. A server of the domain maps the subjects of requests before it compares them
//! with the rights of the user. A leaf node outside of the domain does not.

use std::collections::BTreeSet;

use shizuku_kv::{
    Connection, FencingToken, NatsConnectionConfig, ReadConsistency, StoreConfig, WatchScope,
    nats_connect,
};
use shizuku_kv_tests::eventually;

use super::operations::{outcomes, prepared};
use super::rights::{PATIENCE, Reach, config_of, is_refused};
use super::tables::{Row, inbox_prefix, rights, rows};
use crate::opening::leaf::{DOMAIN, Leaf};

fn part() -> (Vec<Row>, String) {
    let rows = rows("A part of a bucket");
    let inbox_prefix = inbox_prefix(&rows);
    (rows, inbox_prefix)
}

/// Fenced writes read the newest entry of their key in the ways that the user may use.
#[tokio::test]
async fn fenced_writes_to_a_part_of_a_domain_work() {
    let (rows, inbox_prefix) = part();
    let server = Reach::Domain.start(&rights(&rows, str::to_owned));
    let [admin, app] = Reach::Domain.configs(&server);
    let fenced = ["fenced write".to_owned()];
    let outcomes = outcomes(&server, &admin, &app.inbox_prefix(inbox_prefix), &fenced).await;
    assert_eq!(outcomes["fenced write"], Ok(()));
}

/// Each error names the subject that the server has compared.
#[tokio::test]
async fn operations_outside_of_a_part_of_a_domain_are_unauthorized() {
    let (rows, inbox_prefix) = part();
    let server = Reach::Domain.start(&rights(&rows, str::to_owned));
    prepared(&server).await;
    let [_, app] = Reach::Domain.configs(&server);
    // The same subjects by the other option.
    let prefix = config_of(&server, "app").api_prefix(format!("$JS.{DOMAIN}.API"));
    for config in [app, prefix] {
        let app = nats_connect(config.inbox_prefix(&inbox_prefix)).await.unwrap();
        let store =
            app.store_with_config("x", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
        is_refused("$JS.API.DIRECT.GET.KV_x.$KV.x.other", "get", store.get("other")).await;
        is_refused("$KV.x.other", "put", store.put("other", "x")).await;
        is_refused("$KV.x.other", "create", store.create("other", "x")).await;
        is_refused("$KV.x.other", "delete", store.delete("other")).await;
        let fenced = store.fenced().unwrap();
        let token = FencingToken::from_u64(1);
        is_refused("$KV.x.absent", "fenced put", fenced.put("absent", "x", token)).await;
        // Twice, because the first denial is remembered.
        for _ in 0..2 {
            let leader = "$JS.API.STREAM.MSG.GET.KV_x";
            is_refused(leader, "fenced put", fenced.put("other", "x", token)).await;
        }
        let consumer = "$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.>";
        is_refused(consumer, "watch", store.watch(WatchScope::All)).await;
        is_refused(consumer, "scan", store.scan(WatchScope::All).try_collect()).await;
        let leader = StoreConfig::new().deadline(PATIENCE).consistency(ReadConsistency::Leader);
        let leader = app.store_with_config("x", leader).await.unwrap();
        is_refused("$JS.API.STREAM.MSG.GET.KV_x", "leader read", leader.get("part.a.1")).await;
        is_refused("$JS.API.STREAM.LIST", "list_stores", app.list_stores().try_collect()).await;
        is_refused("$JS.API.STREAM.INFO.KV_y", "store", app.store("y")).await;
        is_refused("$JS.API.STREAM.DELETE.KV_x", "delete_store", app.delete_store("x")).await;
    }
}

/// Returns the subject that a leaf node compares for a request to the hub.
fn of_leaf(subject: &str) -> String {
    if let Some(request) = subject.strip_prefix("$JS.API.") {
        format!("$JS.{DOMAIN}.API.{request}")
    } else if subject.starts_with("$KV.") {
        format!("$JS.{DOMAIN}.API.{subject}")
    } else {
        subject.to_owned()
    }
}

/// Returns a leaf node without JetStream whose user `app` has rights, and both of its users, once
/// the leaf node is connected.
async fn leaf(rows: &[Row], adapt: impl Fn(&str) -> String) -> (Leaf, [NatsConnectionConfig; 2]) {
    let world = Leaf::with(rights(rows, adapt).builder(), None);
    let configs = Reach::Domain.configs(&world.leaf);
    let admin = nats_connect(configs[0].clone()).await.unwrap();
    eventually("the leaf node reaches the hub", async || admin.health().await.is_ok()).await;
    (world, configs)
}

#[tokio::test(flavor = "multi_thread")]
async fn leaf_node_compares_the_subjects_of_the_domain() {
    let (rows, inbox_prefix) = part();
    let (world, [admin, app]) = leaf(&rows, of_leaf).await;
    let app = app.inbox_prefix(&inbox_prefix);
    let operations: BTreeSet<_> = rows.iter().flat_map(|row| row.needed_by.clone()).collect();
    let operations: Vec<_> = operations.into_iter().chain(["fenced write".to_owned()]).collect();
    for (operation, outcome) in outcomes(&world.hub, &admin, &app, &operations).await {
        assert_eq!(outcome, Ok(()), "{operation} with every right");
    }
    let app = nats_connect(app).await.unwrap();
    let store = app.store_with_config("x", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    is_refused("$JS.hub.API.$KV.x.other", "put", store.put("other", "x")).await;
    is_refused("$JS.hub.API.STREAM.LIST", "list_stores", app.list_stores().try_collect()).await;
    let consumer = "$JS.hub.API.CONSUMER.CREATE.KV_x.*.$KV.x.>";
    is_refused(consumer, "scan", store.scan(WatchScope::All).try_collect()).await;
}

/// The rights of a server of the domain are those of the tables.
#[tokio::test]
async fn leaf_node_rejects_the_subjects_of_the_tables() {
    let (rows, inbox_prefix) = part();
    let (_world, [_, app]) = leaf(&rows, str::to_owned).await;
    let app = nats_connect(app.inbox_prefix(inbox_prefix)).await.unwrap();
    is_refused("$JS.hub.API.INFO", "health", app.health()).await;
    is_refused("$JS.hub.API.STREAM.INFO.KV_x", "store", app.store("x")).await;
}
