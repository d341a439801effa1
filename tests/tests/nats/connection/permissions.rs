//! Abilities that the server lacks or denies to a connected user: subjects, JetStream, payloads of
//! any size.

use std::time::Duration;

use futures_util::future::join_all;
use shizuku_kv::{Connection, KvError, StoreConfig, WatchScope, connect, nats_connect};
use shizuku_kv_tests::{NatsServer, unique};

use super::{SHORT, config, lets_in, within};

#[tokio::test]
async fn denied_operation_is_rejected_at_once() {
    let server = NatsServer::builder()
        .config(
            "authorization { users: [
                { user: admin, password: hunter2 }
                { user: reader, password: hunter2, permissions: { publish: { deny: [ \"$KV.>\" ] } } }
                { user: nobody, password: hunter2, permissions: { publish: { deny: [ \"$JS.API.>\" ] } } }
            ] }",
        )
        .start();
    let patience = Duration::from_secs(60);
    let config_of =
        |user: &str| config(&server.url_as(&format!("{user}:hunter2"))).deadline(patience);
    let name = unique("allowed");
    let version = {
        let admin = lets_in(config_of("admin")).await;
        admin.store(&name).await.unwrap().put("key", "value").await.unwrap()
    };
    let assert_refused = |error: KvError| {
        assert!(matches!(error, KvError::Unauthorized { .. }), "{error:?}");
        assert!(!error.is_retryable() && !format!("{error:?}").contains("hunter2"), "{error:?}");
    };

    let reader = nats_connect(config_of("reader")).await.unwrap();
    let store =
        reader.store_with_config(&name, StoreConfig::new().deadline(patience)).await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    // These end long before their deadlines.
    assert_refused(within(SHORT, "put", store.put("key", "other")).await.unwrap_err());
    assert_refused(
        within(SHORT, "update", store.update("key", "other", version)).await.unwrap_err(),
    );
    assert_refused(within(SHORT, "create", store.create("new", "other")).await.unwrap_err());
    assert_refused(within(SHORT, "delete", store.delete("key")).await.unwrap_err());
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    // The denials of some operations do not affect others.
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap(), ["key"]);

    let nobody = nats_connect(config_of("nobody")).await.unwrap();
    assert_refused(within(SHORT, "store", nobody.store(&name)).await.unwrap_err());
    assert_refused(within(SHORT, "health", nobody.health()).await.unwrap_err());
    assert_refused(within(SHORT, "delete_store", nobody.delete_store(&name)).await.unwrap_err());
    let listed = within(SHORT, "list_stores", nobody.list_stores().try_collect()).await;
    assert_refused(listed.unwrap_err());
}

#[tokio::test]
async fn operations_that_are_refused_at_the_same_time_are_all_told() {
    let deny = "permissions: { publish: { deny: [ \"$KV.*.a\", \"$KV.*.b\", \"$KV.*.c\" ] } }";
    let server = NatsServer::builder()
        .config(&format!(
            "authorization {{ users: [ {{ user: app, password: hunter2, {deny} }} ] }}"
        ))
        .start();
    let patience = StoreConfig::new().deadline(Duration::from_secs(60));
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    let store = connection.store_with_config("config", patience).await.unwrap();
    let writes = ["a", "b", "c", "d"].map(|key| (key, store.put(key, "x")));
    let ends = writes.into_iter().map(async |(key, write)| {
        let written = within(SHORT, key, write).await;
        match key {
            "d" => assert!(written.is_ok(), "{written:?}"),
            _ => {
                assert!(matches!(written, Err(KvError::Unauthorized { .. })), "{key}: {written:?}")
            }
        }
    });
    join_all(ends).await;
    let many = store.put_many([("a", "x"), ("d", "x"), ("b", "x")]);
    let answers = within(SHORT, "put_many", many).await;
    assert!(
        matches!(
            &answers[..],
            [Err(KvError::Unauthorized { .. }), Ok(_), Err(KvError::Unauthorized { .. })]
        ),
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_server_without_jetstream_is_said_to_have_none() {
    let server = NatsServer::builder().jetstream(false).start();
    let connection = connect(&server.url()).await.unwrap();
    for (what, error) in [
        ("store", within(SHORT, "store", connection.store("config")).await.unwrap_err()),
        ("health", within(SHORT, "health", connection.health()).await.unwrap_err()),
        (
            "delete_store",
            within(SHORT, "delete_store", connection.delete_store("config")).await.unwrap_err(),
        ),
        (
            "list_stores",
            within(SHORT, "list_stores", connection.list_stores().try_collect()).await.unwrap_err(),
        ),
    ] {
        assert!(matches!(error, KvError::Unavailable { .. }), "{what}: {error:?}");
        assert!(
            error.to_string().contains("JetStream") && error.to_string().contains("enabled"),
            "{what}: {error}"
        );
    }
    connection.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_account_without_jetstream_is_said_to_have_none() {
    let server = NatsServer::builder()
        .config("accounts { PLAIN { users: [ { user: app, password: hunter2 } ] } }")
        .start();
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    let error = within(SHORT, "store", connection.store("config")).await.unwrap_err();
    assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
    assert!(
        error.to_string().contains("JetStream") && error.to_string().contains("account"),
        "{error}"
    );
}

#[tokio::test]
async fn the_servers_payload_limits_the_values() {
    let server = NatsServer::builder().max_payload(16 * 1024).start();
    let connection = connect(&server.url()).await.unwrap();
    let wide = StoreConfig::new().max_value_size(1 << 20);
    for store in [
        connection.store("default").await.unwrap(),
        connection.store_with_config("wide", wide).await.unwrap(),
    ] {
        let limit = store.max_value_size();
        assert!((15 * 1024..=16 * 1024).contains(&limit), "{limit}");
        let key = "k".repeat(1024);
        let version = store.put(&key, vec![0; limit]).await.unwrap();
        let version = store.update(&key, vec![1; limit], version).await.unwrap();
        match store.put(&key, vec![2; limit + 1]).await.unwrap_err() {
            KvError::ValueTooLarge { size, limit: told, .. } => {
                assert_eq!((size, told), (limit + 1, limit))
            }
            error => panic!("{error:?}"),
        }
        // The connection has not been closed.
        assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
    }
}
