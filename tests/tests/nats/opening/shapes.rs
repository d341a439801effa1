//! Streams that have the name of a bucket and cannot be a store.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shizuku_kv::{KvError, StoreConfig, connect};
use shizuku_kv_tests::{NatsServer, unique};

use super::{api, bucket, create_stream};

/// Settings of a stream that a store rejects, each with its name in the error and the oldest server
/// version that has it.
fn faults(name: &str) -> Vec<(&'static str, Value, (u32, u32))> {
    let any = (2, 10);
    vec![
        ("subjects", json!({ "subjects": [format!("orders.{name}.>")] }), any),
        ("subjects", json!({ "subjects": [format!("$KV.{name}.a.>")] }), any),
        (
            "subjects",
            json!({ "subjects": [format!("$KV.{name}.>"), format!("orders.{name}.>")] }),
            any,
        ),
        ("subjects", json!({ "subjects": [], "sources": [{ "name": "KV_origin" }] }), any),
        (
            "mirror",
            json!({ "subjects": [], "discard": "old", "mirror": { "name": "KV_origin" } }),
            any,
        ),
        ("sources", json!({ "sources": [{ "name": "KV_origin" }] }), any),
        (
            "subject_transform",
            json!({ "subject_transform": { "src": format!("$KV.{name}.a.>"), "dest": format!("$KV.{name}.b.>") } }),
            any,
        ),
        ("retention", json!({ "retention": "workqueue" }), any),
        ("retention", json!({ "retention": "interest" }), any),
        ("no_ack", json!({ "no_ack": true }), any),
        ("discard_new_per_subject", json!({ "discard_new_per_subject": true }), any),
        ("allow_rollup_hdrs", json!({ "allow_rollup_hdrs": false, "deny_purge": true }), any),
        ("allow_rollup_hdrs", json!({ "allow_rollup_hdrs": false }), any),
        ("allow_msg_counter", json!({ "allow_msg_counter": true, "discard": "old" }), (2, 12)),
    ]
}

#[tokio::test]
async fn stream_that_breaks_a_promise_is_rejected_at_open() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    create_stream(&server, &bucket("origin")).await;
    for number in 0..faults("x").len() {
        let name = unique("shape");
        let (setting, change, (major, minor)) = faults(&name).swap_remove(number);
        if !server.is_at_least(major, minor) {
            continue;
        }
        let mut config = bucket(&name);
        for (field, value) in change.as_object().unwrap() {
            config[field] = value.clone();
        }
        create_stream(&server, &config).await;
        for wanted in
            [StoreConfig::new(), StoreConfig::new().reconcile(), StoreConfig::new().must_exist()]
        {
            let error =
                connection.store_with_config(&name, wanted).await.expect_err(&change.to_string());
            assert!(matches!(error, KvError::Unsupported { .. }), "{change}: {error:?}");
            let text = error.to_string();
            assert!(text.contains(&name) && text.contains(setting), "{change}: {text}");
            assert!(!error.is_retryable(), "{change}: {error:?}");
        }
        let listed = connection.list_stores().try_collect().await.unwrap();
        assert!(!listed.contains(&name), "{change} is listed");
    }
}

#[tokio::test]
async fn sealed_stream_is_rejected_at_open() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let name = unique("sealed");
    let mut config = bucket(&name);
    create_stream(&server, &config).await;
    config["sealed"] = json!(true);
    let answer = api(&server, &format!("STREAM.UPDATE.KV_{name}"), &config).await;
    assert!(answer.get("error").is_none(), "{answer}");
    let error = connection.store(&name).await.unwrap_err();
    assert!(error.to_string().contains("sealed"), "{error}");
}

/// The server reads a stream under another name than it creates it. This looks like a client that
/// always deletes the stream in between.
#[tokio::test]
async fn opening_a_stream_never_found_is_bounded() {
    let server = NatsServer::builder()
        .config(r#"mappings { "$JS.API.STREAM.INFO.KV_raced": "$JS.API.STREAM.INFO.KV_absent" }"#)
        .start();
    let mut config = bucket("raced");
    config["description"] = json!("made by another client");
    create_stream(&server, &config).await;
    let connection = connect(&format!("{}?deadline_ms=1500", server.url())).await.unwrap();
    let received = async || -> u64 {
        let page = server.page("/varz").await.unwrap();
        page["in_msgs"].as_u64().unwrap()
    };
    let (before, begun) = (received().await, Instant::now());
    let error = connection.store("raced").await.unwrap_err();
    let requests = received().await - before;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("raced"), "{error}");
    assert!(requests < 100, "{requests} requests for a store that cannot be opened");
}
