//! The operations of shizuku in each case, as far as it has them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats_of_shizuku::jetstream::{self, kv};
use futures_util::future::join_all;
use shizuku::kv::rw_lock::DistroRwLock;

/// Timeout that is longer than any operation that ends.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Shizuku {
    store: kv::Store,
    /// Number for resources that were never locked before.
    next: AtomicUsize,
}

impl Shizuku {
    pub(super) async fn new(url: &str) -> Self {
        let context = jetstream::new(async_nats_of_shizuku::connect(url).await.unwrap());
        let config = kv::Config { bucket: "shizuku".to_owned(), ..kv::Config::default() };
        Self { store: context.create_key_value(config).await.unwrap(), next: AtomicUsize::new(0) }
    }

    pub(super) async fn read(&self) {
        DistroRwLock::acquire_read(&self.store, "read").await.unwrap();
        DistroRwLock::release_read(&self.store, "read").await.unwrap();
    }

    /// Locks a resource that was never locked before, because a second write lock never returns.
    pub(super) async fn write_new(&self) {
        let key = self.new_key();
        DistroRwLock::acquire_write(&self.store, &key).await.unwrap();
        DistroRwLock::release_write(&self.store, &key).await.unwrap();
    }

    /// Returns the time until this number of concurrent readers have the lock. They keep it,
    /// because releasing it together would fail.
    pub(super) async fn crowd(&self, readers: usize) -> Duration {
        let key = self.new_key();
        DistroRwLock::acquire_read(&self.store, &key).await.unwrap();
        DistroRwLock::release_read(&self.store, &key).await.unwrap();
        let start = Instant::now();
        let entering = (0..readers).map(|_| {
            let (store, key) = (self.store.clone(), key.clone());
            tokio::spawn(async move { DistroRwLock::acquire_read(&store, &key).await.unwrap() })
        });
        let entered =
            tokio::time::timeout(PATIENCE, join_all(entering)).await.expect("all come in");
        let took = start.elapsed();
        entered.into_iter().for_each(|entered| entered.unwrap());
        took
    }

    fn new_key(&self) -> String {
        format!("new.{}", self.next.fetch_add(1, Ordering::Relaxed))
    }
}
