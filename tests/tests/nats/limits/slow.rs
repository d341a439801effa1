//! A client that reads more slowly than the server writes to it.

use shizuku_kv::{KvUpdate, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

use super::within;

/// Number of values, of which each reader requests 8 MiB at a time, and their size.
const VALUES: usize = 96;
const SIZE: usize = 256 * 1024;

/// Number of readers. Together they request more than the server and the system hold for a client.
const READERS: usize = 4;

async fn slow_client_resumes(limit: &str, words: &str) {
    let server = NatsServer::builder().config(limit).start();
    let admin = connect(&server.url()).await.unwrap();
    let admin = admin.store_with_config("s", StoreConfig::new()).await.unwrap();
    for number in 0..VALUES {
        admin.put(format!("key-{number:03}"), vec![7; SIZE]).await.unwrap();
    }
    let proxy = TcpProxy::start(server.port()).await;
    let connection = connect(&proxy.url()).await.unwrap();
    let store = connection.store("s").await.unwrap();
    let mut watches = Vec::new();
    for _ in 0..READERS {
        let watch = store.watch(WatchScope::All).await.unwrap();
        within("the first value", watch.next()).await.unwrap().unwrap();
        watches.push(watch);
    }

    proxy.hold_answers(true);
    let readers: Vec<_> = watches
        .into_iter()
        .map(|watch| {
            tokio::spawn(async move {
                let mut delivered = 1;
                while watch.next().await.unwrap().unwrap() != KvUpdate::CaughtUp {
                    delivered += 1;
                }
                delivered
            })
        })
        .collect();
    eventually("the server ends the connection", async || server.log().contains(words)).await;
    proxy.hold_answers(false);
    for reader in readers {
        assert_eq!(within("a watch", reader).await.unwrap(), VALUES);
    }
    let keys = within("keys", store.keys(WatchScope::All).try_collect()).await.unwrap();
    assert_eq!(keys.len(), VALUES);
    store.put("key", "value").await.unwrap();
}

#[tokio::test]
async fn write_deadline_passed_resumes_reads_and_watches() {
    slow_client_resumes("write_deadline: \"1s\"", "Slow Consumer Detected: WriteDeadline").await;
}

#[tokio::test]
async fn max_pending_reached_resumes_reads_and_watches() {
    slow_client_resumes("max_pending: 16MB", "Slow Consumer Detected: MaxPending").await;
}
