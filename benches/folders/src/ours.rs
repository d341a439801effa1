//! Stores in a folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use shizuku_kv::prelude::*;
use shizuku_kv::{Connection, Store, WatchScope, connect};
use tempfile::TempDir;

use crate::VALUE;

/// A record of about 200 bytes.
#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limits", codec = json)]
pub(crate) struct Limits {
    pub(crate) connections: u32,
    pub(crate) address: String,
    pub(crate) weights: Vec<u32>,
}

impl Limits {
    pub(crate) fn sample() -> Self {
        let (address, weights) = ("database.example:5432".repeat(4), (1000..1020).collect());
        Self { connections: 5, address, weights }
    }
}

/// Returns a key of 19 bytes.
pub(crate) fn key(number: u64) -> String {
    format!("config.key.{number:08}")
}

/// A store in a mode.
pub(crate) struct Ours {
    pub(crate) folder: TempDir,
    pub(crate) connection: Arc<dyn Connection>,
    pub(crate) store: Store,
    next: AtomicU64,
    keys: u64,
}

impl Ours {
    pub(crate) async fn create(options: &str, keys: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file:{}/data{options}", folder.path().display());
        let connection = connect(&url).await.unwrap();
        let store = connection.store("config").await.unwrap();
        Self { folder, connection, store, next: AtomicU64::new(0), keys }
    }

    /// Puts the next keys, one commit for each 256.
    pub(crate) async fn fill(&self, count: u64) {
        let mut left = count;
        while left > 0 {
            let some = left.min(4096);
            let first = self.next.fetch_add(some, Ordering::Relaxed);
            let items = (first..first + some).map(|number| (key(number % self.keys), &VALUE[..]));
            for written in
                self.store.put_many(items.map(|(key, value)| (key, value.to_vec()))).await
            {
                written.unwrap();
            }
            left -= some;
        }
    }

    pub(crate) async fn put(&self) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.keys;
        self.store.put(key(number), VALUE.to_vec()).await.unwrap();
    }

    pub(crate) async fn get(&self, number: u64) {
        assert!(self.store.get(key(number)).await.unwrap().is_some());
    }

    pub(crate) async fn typed_get(&self) {
        assert_eq!(Limits::read(&self.store).await.unwrap().unwrap().connections, 5);
    }

    /// Lets 64 tasks put until there are `count` puts.
    pub(crate) async fn put_by_64(self: &Arc<Self>, count: usize) {
        let writers = (0..64).map(|_| {
            let store = Arc::clone(self);
            tokio::spawn(async move {
                for _ in 0..count / 64 {
                    store.put().await;
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    }

    /// Reads all entries. Returns their number.
    pub(crate) async fn scan(&self) -> usize {
        let entries = self.store.scan(WatchScope::All);
        let mut count = 0;
        while let Some(entry) = entries.next().await {
            entry.unwrap();
            count += 1;
        }
        count
    }
}
