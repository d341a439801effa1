//! Operations that a user with rights to a part of a bucket may not do: denied at once, with the
//! missing right.

use shizuku_kv::{Connection, ReadConsistency, Store, StoreConfig, WatchScope, nats_connect};
use shizuku_kv_tests::NatsServer;

use super::operations::prepared;
use super::rights::{PATIENCE, at_once, config_of, is_refused};
use super::tables::{inbox_prefix, rights, rows};

async fn user_of_a_part(config: StoreConfig) -> (NatsServer, Store, impl Connection) {
    let rows = rows("A part of a bucket");
    let server = rights(&rows, str::to_owned).start();
    prepared(&server).await;
    let app =
        nats_connect(config_of(&server, "app").inbox_prefix(inbox_prefix(&rows))).await.unwrap();
    let store = app.store_with_config("x", config.deadline(PATIENCE)).await.unwrap();
    (server, store, app)
}

#[tokio::test]
async fn leader_reads_of_a_part_are_refused() {
    const RIGHT: &str = "$JS.API.STREAM.MSG.GET.KV_x";
    let leader = StoreConfig::new().consistency(ReadConsistency::Leader);
    let (_server, store, _app) = user_of_a_part(leader).await;
    for _ in 0..2 {
        is_refused(RIGHT, "get", store.get("part.a.1")).await;
    }
    is_refused(RIGHT, "get_many", store.get_many((0..9).map(|n| format!("part.{n}")))).await;
}

#[tokio::test]
async fn several_scopes_of_a_part_are_refused() {
    const RIGHT: &str = "$JS.API.CONSUMER.CREATE.KV_x.*";
    let (_server, store, _app) = user_of_a_part(StoreConfig::new()).await;
    let prefixes = WatchScope::prefixes(["part.a.", "part.b."]);
    is_refused(RIGHT, "watch", store.watch(prefixes.clone())).await;
    is_refused(RIGHT, "scan", store.scan(prefixes.clone()).try_collect()).await;
    is_refused(RIGHT, "keys", store.keys(prefixes).try_collect()).await;
    let keys = WatchScope::keys(["part.a.1", "part.b.1"]).unwrap();
    is_refused(RIGHT, "watch", store.watch(keys)).await;
}

#[tokio::test]
async fn scopes_outside_of_the_part_are_refused() {
    const RIGHT: &str = "$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.>";
    let (_server, store, _app) = user_of_a_part(StoreConfig::new()).await;
    for scope in [WatchScope::All, WatchScope::prefix("part"), WatchScope::prefix("")] {
        is_refused(RIGHT, "watch", store.watch(scope.clone())).await;
        is_refused(RIGHT, "scan", store.scan(scope.clone()).try_collect()).await;
        is_refused(RIGHT, "keys", store.keys(scope).try_collect()).await;
    }
    let other = "$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.other";
    is_refused(other, "watch", store.watch(WatchScope::key("other").unwrap())).await;
    is_refused(other, "history", store.history("other").unwrap().try_collect()).await;
    let other = "$JS.API.DIRECT.GET.KV_x.$KV.x.other";
    is_refused(other, "scan", store.scan(WatchScope::key("other").unwrap()).try_collect()).await;
}

#[tokio::test]
async fn keys_outside_of_the_part_are_refused() {
    let (_server, store, _app) = user_of_a_part(StoreConfig::new()).await;
    is_refused("$JS.API.DIRECT.GET.KV_x.$KV.x.other", "get", store.get("other")).await;
    for key in ["other", "absent"] {
        let right = format!("$KV.x.{key}");
        is_refused(&right, "put", store.put(key, "x")).await;
        is_refused(&right, "create", store.create(key, "x")).await;
        is_refused(&right, "delete", store.delete(key)).await;
        is_refused(&right, "purge", store.purge(key)).await;
    }
    let lock = shizuku_kv::rw_lock::DistroRwLock::new(&store, "r").unwrap();
    let error = at_once("lock", lock.write()).await.unwrap_err().to_string();
    assert!(error.contains("this user may not publish to") && error.contains("rw_lock"), "{error}");
}

#[tokio::test]
async fn managing_buckets_with_a_part_is_refused() {
    let (_server, _store, app) = user_of_a_part(StoreConfig::new()).await;
    is_refused("$JS.API.STREAM.DELETE.KV_x", "delete_store", app.delete_store("x")).await;
    is_refused("$JS.API.STREAM.LIST", "list_stores", app.list_stores().try_collect()).await;
    let changed = StoreConfig::new().description("new").reconcile();
    is_refused("$JS.API.STREAM.UPDATE.KV_x", "reconcile", app.store_with_config("x", changed))
        .await;
    is_refused("$JS.API.STREAM.INFO.KV_y", "store", app.store("y")).await;
}

/// `get_many` requests each key, and tries a batch no more than once.
#[tokio::test]
async fn batches_of_a_part_are_read_one_by_one() {
    let (server, store, _app) = user_of_a_part(StoreConfig::new()).await;
    for _ in 0..3 {
        let found = at_once("get_many", store.get_many((0..9).map(|n| format!("part.a.{n}"))))
            .await
            .unwrap();
        assert_eq!(found.iter().flatten().count(), 2);
    }
    let denied = server.log().matches("$JS.API.DIRECT.GET.KV_x\"").count();
    assert!(denied <= 1, "{denied} refused batches");
}
