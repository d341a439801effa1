//! The measured operations, once for each version.

use std::future::Future;

/// Size of a value in bytes.
const VALUE: usize = 200;

/// The measured subject of a version.
pub(crate) trait Subject: Sized {
    fn open(url: &str, name: &str, history: u8) -> impl Future<Output = Self>;
    fn fill(&self, keys: usize) -> impl Future<Output = ()>;
    fn get(&self) -> impl Future<Output = ()>;
    fn get_absent(&self) -> impl Future<Output = ()>;
    fn put(&self) -> impl Future<Output = ()>;
    fn swap(&self) -> impl Future<Output = ()>;
    fn fenced(&self) -> impl Future<Output = ()>;
    fn read(&self) -> impl Future<Output = ()>;
    fn write(&self) -> impl Future<Output = ()>;
    fn lock(&self) -> impl Future<Output = ()>;
    fn watch_one(&self) -> impl Future<Output = ()>;
    fn get_many(&self, keys: usize) -> impl Future<Output = ()>;
    fn scan(&self, keys: usize) -> impl Future<Output = ()>;
    fn keys(&self, keys: usize) -> impl Future<Output = ()>;
    fn watch(&self, keys: usize) -> impl Future<Output = ()>;
}

macro_rules! subject {
    ($name:ident, $krate:ident, $module:ident) => {
        pub(crate) use $module::$name;

        mod $module {
            use std::sync::Mutex;

            use bytes::Bytes;
            use serde::{Deserialize, Serialize};
            use $krate::rw_lock::DistroRwLock;
            use $krate::{
                FencingToken, JsonByteDes, JsonByteSer, KeyValue, KvUpdate,
                StaticKeyIndexedValue, Store, StoreConfig, VersionToken, WatchScope,
            };

            use super::{Subject, VALUE};

            #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
            #[kv(key = "config.database", crate = $krate)]
            struct Config {
                url: String,
                user: String,
                pool_size: u32,
                connect_timeout_ms: u64,
                replicas: Vec<String>,
            }

            impl Config {
                fn example() -> Self {
                    Self {
                        url: "postgres://db.internal:5432/billing".to_owned(),
                        user: "billing".to_owned(),
                        pool_size: 8,
                        connect_timeout_ms: 2500,
                        replicas: vec!["db-1.internal".to_owned(), "db-2.internal".to_owned()],
                    }
                }
            }

            pub(crate) struct $name {
                store: Store,
                lock: DistroRwLock,
                version: Mutex<VersionToken>,
                value: Bytes,
            }

            impl Subject for $name {
                async fn open(url: &str, name: &str, history: u8) -> Self {
                    let connection = $krate::connect(url).await.expect("connect");
                    let config = StoreConfig::new().history(history);
                    let store = connection.store_with_config(name, config).await.expect("a store");
                    let value = Bytes::from(vec![b'v'; VALUE]);
                    let version = store.put("swapped", value.clone()).await.expect("put");
                    Config::example().write_to_anyway(&store).await.expect("write");
                    let lock = DistroRwLock::new(&store, "resource").expect("a lock");
                    Self { store, lock, version: Mutex::new(version), value }
                }

                async fn fill(&self, keys: usize) {
                    let items: Vec<_> = (0..keys).map(|n| (format!("k.{n}"), self.value.clone())).collect();
                    for answer in self.store.put_many(items).await {
                        answer.expect("put");
                    }
                }

                async fn get(&self) {
                    self.store.get("k.7").await.expect("get").expect("a value");
                }

                async fn get_absent(&self) {
                    assert!(self.store.get("absent").await.expect("get").is_none());
                }

                async fn put(&self) {
                    self.store.put("k.7", self.value.clone()).await.expect("put");
                }

                async fn swap(&self) {
                    let version = *self.version.lock().expect("a lock");
                    let next =
                        self.store.update("swapped", self.value.clone(), version).await.expect("update");
                    *self.version.lock().expect("a lock") = next;
                }

                async fn fenced(&self) {
                    let fenced = self.store.fenced().expect("fenced writes");
                    fenced.put("fenced", self.value.clone(), FencingToken::from_u64(1)).await.expect("put");
                }

                async fn read(&self) {
                    Config::read(&self.store).await.expect("read").expect("a record");
                }

                async fn write(&self) {
                    Config::example().write_to_anyway(&self.store).await.expect("write");
                }

                async fn lock(&self) {
                    self.lock.write().await.expect("acquire").release().await.expect("release");
                }

                async fn watch_one(&self) {
                    let mut watch =
                        self.store.watch(WatchScope::key("k.7").expect("a key")).await.expect("watch");
                    while !matches!(watch.next().await, Some(Ok(KvUpdate::CaughtUp))) {}
                }

                async fn get_many(&self, keys: usize) {
                    let keys: Vec<_> = (0..keys).map(|n| format!("k.{n}")).collect();
                    let found = self.store.get_many(&keys).await.expect("get_many");
                    assert!(found.iter().all(Option::is_some));
                }

                async fn scan(&self, keys: usize) {
                    let mut entries = self.store.scan(WatchScope::prefix("k."));
                    for _ in 0..keys {
                        entries.next().await.expect("an item").expect("an entry");
                    }
                    assert!(entries.next().await.is_none());
                }

                async fn keys(&self, keys: usize) {
                    let mut listed = self.store.keys(WatchScope::prefix("k."));
                    for _ in 0..keys {
                        listed.next().await.expect("an item").expect("a key");
                    }
                    assert!(listed.next().await.is_none());
                }

                async fn watch(&self, keys: usize) {
                    let mut watch = self.store.watch(WatchScope::prefix("k.")).await.expect("watch");
                    let mut seen = 0;
                    while watch.next().await.expect("an item").expect("an update") != KvUpdate::CaughtUp {
                        seen += 1;
                    }
                    assert_eq!(seen, keys);
                }
            }
        }
    };
}

subject!(After, after, after_);
subject!(Before, before, before_);
