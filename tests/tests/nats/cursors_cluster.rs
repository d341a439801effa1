//! Cursors that cannot be honoured end in `CursorExpired` on a bucket with three replicas too,
//! whichever server answers and whichever leads.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

use std::sync::Arc;

use shizuku_kv::{
    Connection, KvError, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::{NatsCluster, PATIENCE, eventually};

/// A cluster, and a connection to each of its servers.
struct Fleet {
    cluster: NatsCluster,
    connections: Vec<Arc<dyn Connection>>,
}

impl Fleet {
    async fn start() -> Self {
        let cluster = NatsCluster::start().await;
        let mut connections = Vec::new();
        for node in cluster.nodes() {
            connections.push(connect(&node.url()).await.unwrap());
        }
        Self { cluster, connections }
    }

    /// Creates a bucket, and waits for all of its replicas.
    async fn bucket(&self, name: &str) -> Store {
        let mut made = None;
        let config = || StoreConfig::new().replicas(3);
        eventually("the bucket is made", async || {
            made = self.connections[0].store_with_config(name, config()).await.ok();
            made.is_some()
        })
        .await;
        self.cluster.wait_until_healthy(name).await;
        made.unwrap()
    }

    /// Checks that each server rejects a cursor for this reason, and again with another leader.
    async fn rejects(&self, bucket: &str, cursor: WatchCursor, wanted: &str) {
        for _ in 0..2 {
            self.cluster.wait_until_healthy(bucket).await;
            for connection in &self.connections {
                let config = StoreConfig::new().replicas(3);
                let store = connection.store_with_config(bucket, config).await.unwrap();
                let reason = refusal(&store, cursor).await;
                assert!(reason.contains(wanted), "{bucket}: {reason}");
            }
            self.cluster.step_down(bucket).await;
        }
    }
}

async fn next(watch: &mut Watch) -> KvUpdate {
    let next = tokio::time::timeout(PATIENCE, watch.next());
    next.await.expect("an update in time").expect("the watch goes on").unwrap()
}

/// Opens a watch. Retries during an election.
async fn open(store: &Store, from: Option<WatchCursor>) -> Result<Watch, KvError> {
    loop {
        let opened = match from {
            Some(cursor) => store.watch_from(WatchScope::All, cursor).await,
            None => store.watch(WatchScope::All).await,
        };
        match opened {
            Err(error) if error.is_retryable() => {}
            opened => return opened,
        }
    }
}

/// Returns the cursor of a watch that has caught up.
async fn cursor(store: &Store) -> WatchCursor {
    let mut watch = open(store, None).await.unwrap();
    while next(&mut watch).await != KvUpdate::CaughtUp {}
    watch.cursor().unwrap()
}

async fn refusal(store: &Store, cursor: WatchCursor) -> String {
    match open(store, Some(cursor)).await {
        Err(KvError::CursorExpired { reason, .. }) => reason.to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn invalid_cursor_is_rejected_by_every_server() {
    let fleet = Fleet::start().await;

    let store = fleet.bucket("compacted").await;
    store.put("key", "1").await.unwrap();
    let compacted = cursor(&store).await;
    store.put("key", "2").await.unwrap();
    // No sequence is missing between the cursor and the first stored entry, so there is no gap.
    let mut watch = open(&store, Some(compacted)).await.unwrap();
    assert_eq!(next(&mut watch).await.into_entry().unwrap().value, "2");
    store.put("key", "3").await.unwrap();
    fleet.rejects("compacted", compacted, "no longer holds").await;

    let (store, other) = (fleet.bucket("b").await, fleet.bucket("other").await);
    for n in 0..5 {
        store.put(format!("key.{n}"), "ours").await.unwrap();
        other.put(format!("key.{n}"), "theirs").await.unwrap();
    }
    let (own, foreign) = (cursor(&store).await, cursor(&other).await);
    assert_eq!(own.position(), foreign.position());
    fleet.rejects("b", foreign, "another store").await;
    assert_eq!(next(&mut open(&store, Some(own)).await.unwrap()).await, KvUpdate::CaughtUp);

    fleet.connections[0].delete_store("b").await.unwrap();
    let again = fleet.bucket("b").await;
    for n in 0..9 {
        again.put(format!("key.{n}"), "new").await.unwrap();
    }
    fleet.rejects("b", own, "recreated").await;
    assert!(refusal(&store, own).await.contains("recreated"));
}
