//! A reader that does not poll while its request for messages is filled. Until it polls again the
//! server delivers nothing, and a deletion can end unseen.

use std::time::Duration;

use async_nats::jetstream::{self, kv};
use shizuku_kv::{KvError, KvUpdate, Store, Watch, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use super::next;

/// Returns a bucket whose tombstones and markers live for a second, with the key `victim`, and a
/// watch that has caught up.
async fn watched(server: &NatsServer) -> Option<(Store, Watch)> {
    if !server.is_at_least(2, 11) {
        println!("no limit markers on nats-server {}", server.version());
        return None;
    }
    let name = unique("away");
    let config = kv::Config {
        bucket: name.clone(),
        limit_markers: Some(Duration::from_secs(1)),
        ..Default::default()
    };
    jetstream::new(server.client().await).create_key_value(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    store.put("victim", "value").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    while next(&mut watch).await.unwrap() != KvUpdate::CaughtUp {}
    Some((store, watch))
}

/// Writes more messages than one request for messages delivers.
async fn fill_a_request(store: &Store) {
    let blob = vec![b'x'; 900 * 1024];
    for number in 0..12 {
        store.put(format!("blob.{number:02}"), blob.clone()).await.unwrap();
    }
}

/// Deletes the key, and waits until neither its tombstone nor the marker after it exist. Then reads
/// the watch, and fails if it delivers a later entry before the deletion.
async fn reports_a_deletion_without_a_tombstone(store: &Store, mut watch: Watch) {
    store.delete("victim").await.unwrap();
    eventually("nothing is left", async || store.entry("victim").await.unwrap().is_none()).await;
    store.put("later", "value").await.unwrap();
    loop {
        match next(&mut watch).await {
            Ok(KvUpdate::Delete(entry)) if entry.key == "victim" => return,
            Ok(update) => {
                let key = update.into_entry().map(|entry| entry.key.to_string());
                assert_ne!(key.as_deref(), Some("later"), "the deletion was skipped");
            }
            Err(KvError::CursorExpired { .. }) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// All requested bytes have arrived, and the reader has read all of them in time.
#[tokio::test]
async fn deletion_behind_a_filled_request_is_not_skipped() {
    let Some((store, mut watch)) = watched(NatsServer::shared()).await else { return };
    fill_a_request(&store).await;
    // The number of messages that fit into one request.
    for _ in 0..9 {
        next(&mut watch).await.unwrap();
    }
    reports_a_deletion_without_a_tombstone(&store, watch).await;
}

/// The same with a limit of the server on the number of messages.
#[tokio::test]
async fn deletion_behind_a_small_request_is_not_skipped() {
    let limits = "limits: { max_request_batch: 1 }";
    let server = NatsServer::builder().jetstream_config(limits).start();
    let Some((store, mut watch)) = watched(&server).await else { return };
    store.put("filler", "value").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "filler");
    reports_a_deletion_without_a_tombstone(&store, watch).await;
}

/// The reader waited for a message, and does not poll when it comes.
#[tokio::test]
async fn deletion_behind_a_neglected_wait_is_not_skipped() {
    let Some((store, watch)) = watched(NatsServer::shared()).await else { return };
    let nothing = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    fill_a_request(&store).await;
    reports_a_deletion_without_a_tombstone(&store, watch).await;
}

/// A reader that pauses for longer than tombstones live resumes if its request was open all the
/// time.
#[tokio::test]
async fn pause_with_an_open_request_loses_nothing() {
    let Some((store, mut watch)) = watched(NatsServer::shared()).await else { return };
    // A heartbeat shows that the request is open.
    assert!(tokio::time::timeout(Duration::from_secs(2), watch.next()).await.is_err());
    tokio::time::sleep(Duration::from_secs(2)).await;
    store.put("later", "value").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "later");
}
