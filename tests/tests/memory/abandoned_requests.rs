//! Requests that are never answered, and callers that stop waiting.

use std::time::Duration;

use futures_util::future::join_all;
use shizuku_kv::{Connection, KvError, Store, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

use super::{ALONE, REST, allocated, allocated_at_most};

/// Number of concurrent operations in a round.
const OPERATIONS: usize = 1000;

const ROUNDS: usize = 12;

/// Starts operations on a connection that is silent and then breaks. A third ends by the deadline,
/// and a third is dropped before. The writes have also looked up their outcomes, except those that
/// a loaded machine has not sent by the deadline.
async fn give_up(store: &Store, proxy: &TcpProxy) {
    proxy.stall();
    let impatient = store.with_deadline(Duration::from_millis(500));
    let looked_up = std::cell::Cell::new(0);
    let operations = (0..OPERATIONS).map(async |number| match number % 3 {
        0 => {
            let got = impatient.get("key").await;
            assert!(matches!(got, Err(KvError::Timeout { .. })), "{got:?}");
        }
        1 => {
            let dropped = tokio::time::timeout(Duration::from_millis(100), store.get("key")).await;
            assert!(dropped.is_err(), "{dropped:?}");
        }
        _ => {
            let put = impatient.put("key", "value").await;
            match put {
                Err(KvError::OutcomeUnknown { .. }) => looked_up.set(looked_up.get() + 1),
                Err(KvError::Timeout { .. }) => {}
                put => panic!("{put:?}"),
            }
        }
    });
    join_all(operations).await;
    assert!(looked_up.get() > 0, "no write was sent");
    // The held-back bytes are lost, so that no answer comes late either.
    proxy.cut();
    proxy.flow();
    eventually("it is connected again", async || impatient.get("key").await.is_ok()).await;
}

#[tokio::test]
async fn requests_that_are_given_up_leave_nothing_behind() {
    let _alone = ALONE.lock().await;
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let connection = connect(&proxy.url()).await.unwrap();
    let store = connection.store("b").await.unwrap();
    store.put("key", "value").await.unwrap();
    // Structures that keep their capacity, like the table of requests in flight, reach their size
    // before the first measurement.
    for _ in 0..3 {
        give_up(&store, &proxy).await;
    }
    let before = allocated(REST).await;
    for _ in 0..ROUNDS {
        give_up(&store, &proxy).await;
    }
    let given_up = ROUNDS * OPERATIONS;
    let after = allocated_at_most(before + given_up * 8 - 1, REST).await;
    println!("before {before} bytes, after {given_up} operations that were given up {after}");
    assert!(after < before + given_up * 8, "before {before}, after {after}: {given_up} operations");

    connection.shutdown().await.unwrap();
    drop((store, connection));
    eventually("the connection is gone", async || proxy.connections() == 0).await;
}
