//! Subscriptions that the server denies: it reports that beside the answers, none of which then
//! comes.

use shizuku_kv::{Connection, KvError, NatsConnectionConfig, WatchScope, nats_connect};
use shizuku_kv_tests::NatsServer;

use super::rights::{Rights, assert_names, at_once, config_of};

#[tokio::test]
async fn connect_without_the_inbox_right_is_unauthorized() {
    let allowed_but_denied =
        "authorization { users: [ { user: app, password: hunter2, permissions: {
        publish: \">\", subscribe: { allow: \">\", deny: \"_INBOX.>\" } } } ] }";
    for (section, prefix, named) in [
        (Rights::publish([">"]).subscribe(["_INBOX_app.>"]).section(), None, "_INBOX.>"),
        // The user may not send `$JS.API.INFO`, with which the library detects a denial.
        (Rights::publish(["other"]).subscribe(["other"]).section(), None, "_INBOX.>"),
        (allowed_but_denied.to_owned(), None, "_INBOX.>"),
        (
            Rights::publish([">"]).subscribe(["_INBOX_app.>"]).section(),
            Some("_INBOX_other.x"),
            "_INBOX_other.x.>",
        ),
    ] {
        println!("{section}, prefix {prefix:?}");
        let server = NatsServer::builder().config(&section).start();
        let mut config = config_of(&server, "app");
        if let Some(prefix) = prefix {
            config = config.inbox_prefix(prefix);
        }
        let error = at_once("connect", nats_connect(config)).await.unwrap_err();
        assert_names(&error, named);
        assert!(error.to_string().contains("inbox_prefix"), "{section}: {error}");
        assert!(matches!(error, KvError::Unauthorized { operation: "connect", .. }), "{error:?}");
    }
}

#[tokio::test]
async fn private_inbox_prefix_works_for_every_subscription() {
    let server = Rights::publish([">"]).subscribe(["_INBOX_app.>"]).start();
    let with_option = config_of(&server, "app").inbox_prefix("_INBOX_app");
    let url = format!("{}?inbox_prefix=_INBOX_app", server.url_as("app:hunter2"));
    let from_url = NatsConnectionConfig::from_url(&url).unwrap();
    for (number, config) in [with_option, from_url].into_iter().enumerate() {
        let app = at_once("connect", nats_connect(config)).await.unwrap();
        app.health().await.unwrap();
        let store = app.store(&format!("b{number}")).await.unwrap();
        for key in ["a", "b", "c", "d", "e"] {
            store.put(key, "value").await.unwrap();
        }
        let found = store.get_many(["a", "b", "c", "d", "e"]).await.unwrap();
        assert_eq!(found.iter().flatten().count(), 5);
        assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 5);
        let watch = store.watch(WatchScope::All).await.unwrap();
        at_once("update", watch.next()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn invalid_inbox_prefix_is_rejected_before_connecting() {
    for prefix in ["", "_INBOX_app.>", "_INBOX_app.", "_INBOX app", "a..b", "$KV.b", "*"] {
        let config = NatsConnectionConfig::new(["nats://127.0.0.1:1"]).inbox_prefix(prefix);
        let error = nats_connect(config).await.unwrap_err();
        assert!(
            matches!(error, KvError::InvalidConfig { field: "inbox_prefix", .. }),
            "{prefix:?}: {error:?}"
        );
        assert!(error.to_string().contains("write "), "{prefix:?}: {error}");
    }
}

/// The rights of a user change while it is away.
#[tokio::test]
async fn subscription_rejected_after_a_reconnect_is_unauthorized() {
    let rights = Rights::publish([">"]).subscribe([">"]);
    let mut server = rights.start();
    let app = at_once("connect", nats_connect(config_of(&server, "app"))).await.unwrap();
    let store = app
        .store_with_config("b", shizuku_kv::StoreConfig::new().deadline(super::rights::PATIENCE))
        .await
        .unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    at_once("marker", watch.next()).await.unwrap().unwrap();
    let other = Rights::publish([">"]).subscribe(["other"]).section();
    server.restart_with(|server| server.only_config(&other));
    assert_names(&at_once("watch", watch.next()).await.unwrap().unwrap_err(), "_INBOX.>");
    assert_names(&at_once("get", store.get("key")).await.unwrap_err(), "_INBOX.>");
    assert_names(&at_once("health", app.health()).await.unwrap_err(), "_INBOX.>");
    server.restart_with(|server| server.only_config(&rights.section()));
    shizuku_kv_tests::eventually("health", async || app.health().await.is_ok()).await;
    assert_eq!(at_once("get", store.get("key")).await.unwrap(), None);
}
