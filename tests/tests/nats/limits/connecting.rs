//! Limits of connections.

use std::sync::Arc;

use shizuku_kv::{Connection, connect};
use shizuku_kv_tests::NatsServer;

use super::{assert_rejected, within};

/// Retries, because the harness has just closed the connection on which it read the server's
/// greeting.
async fn first(server: &NatsServer) -> Arc<dyn Connection> {
    loop {
        if let Ok(connection) = within("connect", connect(&server.url())).await {
            return connection;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn max_connections_reached_names_the_limit() {
    let server = NatsServer::builder().config("max_connections: 1").start();
    let _first = first(&server).await;
    let second = within("connect", connect(&server.url())).await;
    assert_rejected(
        second,
        "LimitReached",
        true,
        &["maximum connections exceeded", "max_connections"],
    );
}

#[tokio::test]
async fn max_connections_of_account_names_the_limit() {
    let server = NatsServer::builder()
        .config(
            "accounts { A: { jetstream: enabled, limits: { max_connections: 1 }, users: [ { user: a, password: p } ] } }
             no_auth_user: a",
        )
        .start();
    let _first = first(&server).await;
    let second = within("connect", connect(&server.url())).await;
    let words = &["maximum account active connections exceeded", "connections"];
    assert_rejected(second, "LimitReached", true, words);
}
