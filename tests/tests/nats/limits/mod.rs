//! Limits and settings of a server, an account and a stream that can reject an operation, and the
//! error of each.
//!
//! Each limit has a real server of its own. `docs/errors.md` has a row for each of these tests,
//! which `table` checks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod account;
mod connecting;
mod crowds;
mod disk;
mod full;
mod payload;
mod server;
mod slow;
mod stream;
mod subscriptions;
mod table;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use serde_json::{Value, json};
use shizuku_kv::{Connection, KvError, KvResult, Store, StoreConfig, connect};
use shizuku_kv_tests::{NatsServer, NatsServerBuilder};

/// Deadline of operations that have to end before it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Deadline of operations whose rejection is retried until then.
const SHORT: Duration = Duration::from_secs(1);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let patience = shizuku_kv_tests::PATIENCE;
    match tokio::time::timeout(patience, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {patience:?}: {what}"),
    }
}

/// A server, a connection of ours, and a plain client beside it.
struct World {
    server: NatsServer,
    connection: Arc<dyn Connection>,
    client: Client,
}

impl World {
    async fn new(server: NatsServerBuilder) -> Self {
        let server = server.start();
        let connection = connect(&server.url()).await.unwrap();
        let client = server.client().await;
        Self { server, connection, client }
    }

    /// Returns a world with the store `s`.
    async fn with_store(server: NatsServerBuilder, config: StoreConfig) -> (Self, Store) {
        let world = Self::new(server).await;
        let store = world.connection.store_with_config("s", config).await.unwrap();
        (world, store)
    }

    /// Returns a world with the store `s` in a stream that an operator has changed before it was
    /// opened.
    async fn with_stream(change: impl FnOnce(&mut Value)) -> (Self, KvResult<Store>) {
        let world = Self::new(NatsServer::builder()).await;
        let mut stream = json!({
            "name": "KV_s", "subjects": ["$KV.s.>"], "max_msgs_per_subject": 1, "discard": "new",
            "allow_rollup_hdrs": true, "allow_direct": true, "storage": "file",
        });
        change(&mut stream);
        world.api("STREAM.CREATE.KV_s", &stream).await;
        let store = world.connection.store("s").await;
        (world, store)
    }

    /// Returns an answer of the JetStream API that is not an error.
    async fn api(&self, subject: &str, request: &Value) -> Value {
        let answer =
            self.client.request(format!("$JS.API.{subject}"), request.to_string().into()).await;
        let answer: Value = serde_json::from_slice(&answer.unwrap().payload).unwrap();
        assert!(answer.get("error").is_none(), "{subject}: {answer}");
        answer
    }

    /// Changes the stream of the store `s` as an operator does.
    async fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.api("STREAM.INFO.KV_s", &json!({})).await["config"].clone();
        change(&mut config);
        self.api("STREAM.UPDATE.KV_s", &config).await;
    }
}

/// Returns the name of the error's variant.
fn kind(error: &KvError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// Checks that a rejection has this kind and these words: first the limit, then the way out.
#[track_caller]
fn assert_rejected<T: Debug>(
    result: KvResult<T>,
    wanted: &str,
    is_retryable: bool,
    words: &[&str],
) {
    let error = match result {
        Ok(done) => panic!("not rejected: {done:?}"),
        Err(error) => error,
    };
    let text = error.to_string();
    assert_eq!(kind(&error), wanted, "{text}");
    assert_eq!(error.is_retryable(), is_retryable, "{text}");
    for word in words {
        assert!(text.contains(word), "without {word:?}: {text}");
    }
}
