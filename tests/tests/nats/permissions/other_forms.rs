//! Rights in other forms than a list of allowed subjects: deny lists, responses, imports.

use shizuku_kv::{Connection, KvUpdate, StoreConfig, WatchScope, connect, nats_connect};
use shizuku_kv_tests::NatsServer;

use super::rights::{PATIENCE, Rights, assert_names, at_once, config_of, open};

#[tokio::test]
async fn denied_part_is_refused_and_the_rest_works() {
    let denied = [
        "$KV.b.secret.>",
        "$JS.API.DIRECT.GET.KV_b.$KV.b.secret.>",
        "$JS.API.CONSUMER.CREATE.KV_b.*.$KV.b.secret.>",
    ];
    let server = Rights::all_but(denied).start();
    let (admin, app) = open(&server, "b").await;
    admin.put("secret.key", "value").await.unwrap();
    admin.put("key", "value").await.unwrap();
    assert!(app.get("key").await.unwrap().is_some());
    app.put("key", "other").await.unwrap();
    assert_names(&at_once("get", app.get("secret.key")).await.unwrap_err(), denied_get());
    assert_names(
        &at_once("put", app.put("secret.key", "x")).await.unwrap_err(),
        "$KV.b.secret.key",
    );
    // The plain form is not denied, so that the whole bucket can be watched.
    let watch = at_once("watch", app.watch(WatchScope::prefix("secret."))).await.unwrap();
    assert!(at_once("update", watch.next()).await.unwrap().unwrap().entry().is_some());
}

fn denied_get() -> &'static str {
    "$JS.API.DIRECT.GET.KV_b.$KV.b.secret.key"
}

#[tokio::test]
async fn allowed_responses_give_no_other_right() {
    let rights = Rights::publish(["$JS.API.STREAM.INFO.KV_b", "$JS.API.DIRECT.GET.KV_b.>"])
        .subscribe(["_INBOX.>"])
        .and("allow_responses: { max: 100, expires: \"10m\" }");
    let server = rights.start();
    let (admin, app) = open(&server, "b").await;
    admin.put("key", "value").await.unwrap();
    assert!(at_once("get", app.get("key")).await.unwrap().is_some());
    assert_eq!(at_once("get", app.get("absent")).await.unwrap(), None);
    assert_names(&at_once("put", app.put("key", "x")).await.unwrap_err(), "$KV.b.key");
}

/// An account without JetStream that imports the subjects that it needs from another account.
#[tokio::test]
async fn imported_rights_work_and_others_are_refused() {
    let config = "accounts {
        STORES { jetstream: enabled, users: [ { user: admin, password: hunter2 } ], exports: [
            { service: \"$JS.API.>\", response: stream }, { service: \"$KV.b.>\" } ] }
        APP { users: [ { user: app, password: hunter2, permissions: {
            publish: { allow: [ \"$JS.API.STREAM.INFO.KV_b\", \"$JS.API.DIRECT.GET.KV_b.>\", \"$KV.b.>\",
                \"$JS.API.CONSUMER.CREATE.KV_b.>\", \"$JS.API.CONSUMER.MSG.NEXT.KV_b.*\" ] },
            subscribe: \"_INBOX.>\" } } ], imports: [
            { service: { account: STORES, subject: \"$JS.API.>\" } }
            { service: { account: STORES, subject: \"$KV.b.>\" } } ] }
    }";
    let server = NatsServer::builder().config(config).start();
    let admin = connect(&server.url_as("admin:hunter2")).await.unwrap();
    let admin = admin.store("b").await.unwrap();
    let app = at_once("connect", nats_connect(config_of(&server, "app"))).await.unwrap();
    let store = app.store_with_config("b", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    let version = at_once("put", store.put("key", "value")).await.unwrap();
    assert_eq!(admin.get("key").await.unwrap().unwrap().version, version);
    assert_eq!(at_once("get", store.get("key")).await.unwrap().unwrap().version, version);
    let watch = at_once("watch", store.watch(WatchScope::All)).await.unwrap();
    assert_eq!(
        at_once("update", watch.next()).await.unwrap().unwrap().into_entry().unwrap().version,
        version
    );
    assert_eq!(at_once("marker", watch.next()).await.unwrap().unwrap(), KvUpdate::CaughtUp);
    let error = at_once("delete_store", app.delete_store("b")).await.unwrap_err();
    assert_names(&error, "$JS.API.STREAM.DELETE.KV_b");
}
