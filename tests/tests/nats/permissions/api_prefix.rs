//! A JetStream of another account, imported under other subjects: `api_prefix`. The rights are
//! those of SECURITY.md with the prefix in place of `$JS.API`, and writes have it in front.

use shizuku_kv::{
    Connection, KvError, KvResult, KvUpdate, Store, StoreConfig, WatchScope, connect, nats_connect,
};
use shizuku_kv_tests::NatsServer;

use super::rights::{PATIENCE, assert_names, at_once, config_of};

const PREFIX: &str = "JS.stores.API";

/// The rights to publish of a user with a whole bucket, each with an operation that fails without
/// it.
const RIGHTS: [(&str, &str); 9] = [
    ("INFO", "health"),
    ("STREAM.INFO.KV_b", "open"),
    ("DIRECT.GET.KV_b.>", "get"),
    ("STREAM.MSG.GET.KV_b", "leader read"),
    ("CONSUMER.CREATE.KV_b.>", "watch"),
    ("CONSUMER.MSG.NEXT.KV_b.*", "watch"),
    ("CONSUMER.DELETE.KV_b.*", "clean up"),
    ("$KV.b.>", "put"),
    ("STREAM.DELETE.KV_b", "delete store"),
];

/// A server with an account that has a JetStream, and one that imports it under the prefix. The
/// user `app` of the second may publish to the subjects that `has` selects.
fn server(has: impl Fn(&str) -> bool) -> NatsServer {
    let rights: Vec<_> = RIGHTS
        .iter()
        .filter(|(right, _)| has(right))
        .map(|(right, _)| format!("{PREFIX}.{right}"))
        .collect();
    NatsServer::builder()
        .config(&format!(
            "accounts {{
                STORES {{ jetstream: enabled, users: [ {{ user: admin, password: hunter2 }} ], exports: [
                    {{ service: \"$JS.API.>\", response: stream }}, {{ service: \"$KV.b.>\" }} ] }}
                APP {{ users: [ {{ user: app, password: hunter2, permissions: {{
                    publish: {{ allow: {rights:?} }}, subscribe: \"_INBOX.>\" }} }} ], imports: [
                    {{ service: {{ account: STORES, subject: \"$JS.API.>\" }}, to: \"{PREFIX}.>\" }}
                    {{ service: {{ account: STORES, subject: \"$KV.b.>\" }}, to: \"{PREFIX}.$KV.b.>\" }} ] }}
            }}"
        ))
        .start()
}

/// Returns the first error of the operation that needs this right.
async fn attempt(right: &str, connection: &dyn Connection, store: KvResult<Store>) -> KvResult<()> {
    if right == "INFO" {
        return connection.health().await;
    }
    let store = store?;
    match right {
        "DIRECT.GET.KV_b.>" => store.get("key").await.map(drop),
        "STREAM.MSG.GET.KV_b" => {
            let leader = StoreConfig::new().consistency(shizuku_kv::ReadConsistency::Leader);
            connection.store_with_config("b", leader).await?.get("key").await.map(drop)
        }
        "CONSUMER.CREATE.KV_b.>" | "CONSUMER.MSG.NEXT.KV_b.*" => {
            let watch = store.watch(WatchScope::All).await?;
            while watch.next().await.expect("an update")? != KvUpdate::CaughtUp {}
            Ok(())
        }
        "$KV.b.>" => store.put("key", "value").await.map(drop),
        "STREAM.DELETE.KV_b" => connection.delete_store("b").await,
        _ => Ok(()),
    }
}

#[tokio::test]
async fn imported_api_works_under_its_prefix() {
    let server = server(|_| true);
    let admin = connect(&server.url_as("admin:hunter2")).await.unwrap();
    let admin = admin.store("b").await.unwrap();
    let config = config_of(&server, "app").api_prefix(PREFIX);
    let app = at_once("connect", nats_connect(config)).await.unwrap();
    at_once("health", app.health()).await.unwrap();
    let store = app.store_with_config("b", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    let version = at_once("put", store.put("key", "value")).await.unwrap();
    assert_eq!(admin.get("key").await.unwrap().unwrap().version, version);
    let version = at_once("update", store.update("key", "other", version)).await.unwrap();
    assert_eq!(at_once("get", store.get("key")).await.unwrap().unwrap().version, version);
    let keys = (0..20).map(|number| format!("many.{number}"));
    for answer in at_once("put_many", store.put_many(keys.clone().map(|key| (key, "value")))).await
    {
        answer.unwrap();
    }
    let found = at_once("get_many", store.get_many(keys)).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 20);
    assert_eq!(at_once("scan", store.scan(WatchScope::All).try_collect()).await.unwrap().len(), 21);
    let fenced = store.fenced().unwrap();
    at_once("fenced", fenced.put("key", "x", shizuku_kv::FencingToken::from_u64(1))).await.unwrap();
    let watch = at_once("watch", store.watch(WatchScope::prefix("key"))).await.unwrap();
    while at_once("state", watch.next()).await.unwrap().unwrap() != KvUpdate::CaughtUp {}
    admin.delete("key").await.unwrap();
    let deletion = at_once("deletion", watch.next()).await.unwrap().unwrap();
    assert!(matches!(deletion, KvUpdate::Delete(_)), "{deletion:?}");
    at_once("delete_store", app.delete_store("b")).await.unwrap();
}

#[tokio::test]
async fn missing_right_is_named_with_its_prefix() {
    for (missing, operation) in RIGHTS {
        let server = server(|right| right != missing);
        let admin = connect(&server.url_as("admin:hunter2")).await.unwrap();
        admin.store("b").await.unwrap().put("key", "value").await.unwrap();
        let config = config_of(&server, "app").api_prefix(PREFIX);
        let app = at_once("connect", nats_connect(config)).await.unwrap();
        let store = at_once("store", app.store("b")).await;
        let done = at_once(operation, attempt(missing, &app, store)).await;
        let named = match missing {
            "DIRECT.GET.KV_b.>" => "DIRECT.GET.KV_b.$KV.b.key",
            "$KV.b.>" => "$KV.b.key",
            "CONSUMER.CREATE.KV_b.>" => "CONSUMER.CREATE.KV_b.*.$KV.b.>",
            "CONSUMER.DELETE.KV_b.*" => {
                done.unwrap();
                continue;
            }
            named => named,
        };
        assert_names(&done.unwrap_err(), &format!("{PREFIX}.{named}"));
    }
}

/// The account imports the JetStream and not the subjects of the bucket.
#[tokio::test]
async fn writes_without_an_import_name_the_way_out() {
    let server = NatsServer::builder()
        .config(&format!(
            "accounts {{
                STORES {{ jetstream: enabled, users: [ {{ user: admin, password: hunter2 }} ], exports: [
                    {{ service: \"$JS.API.>\", response: stream }} ] }}
                APP {{ users: [ {{ user: app, password: hunter2 }} ], imports: [
                    {{ service: {{ account: STORES, subject: \"$JS.API.>\" }}, to: \"{PREFIX}.>\" }} ] }}
            }}"
        ))
        .start();
    let config = config_of(&server, "app").api_prefix(PREFIX);
    let app = at_once("connect", nats_connect(config)).await.unwrap();
    let store = app.store_with_config("b", StoreConfig::new()).await.unwrap();
    assert_eq!(at_once("get", store.get("key")).await.unwrap(), None);
    let short = store.with_deadline(std::time::Duration::from_secs(2));
    let error = at_once("put", short.put("key", "value")).await.unwrap_err();
    assert!(matches!(error, KvError::OutcomeUnknown { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("\"$KV.b.>\" as \"JS.stores.API.$KV.b.>\""), "{cause}");
}
