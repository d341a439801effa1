//! Opening stores on NATS: streams that cannot be a store, listed stores, and JetStream domains.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

pub(crate) mod leaf;
mod listing;
mod shapes;

use serde_json::{Value, json};
use shizuku_kv_tests::NatsServer;

/// Sends a request to the JetStream API as a plain client.
async fn api(server: &NatsServer, request: &str, payload: &Value) -> Value {
    let client = server.client().await;
    let answer =
        client.request(format!("$JS.API.{request}"), payload.to_string().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// The configuration of a stream that is a bucket in the layout of ADR-8.
fn bucket(name: &str) -> Value {
    json!({
        "name": format!("KV_{name}"),
        "subjects": [format!("$KV.{name}.>")],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": 1,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_consumers": -1,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    })
}

async fn create_stream(server: &NatsServer, config: &Value) {
    let name = config["name"].as_str().unwrap();
    let answer = api(server, &format!("STREAM.CREATE.{name}"), config).await;
    assert!(answer.get("error").is_none(), "{config}: {answer}");
}
