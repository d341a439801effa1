//! The replicated buckets: one for each number of keys, the same for all sides.

use std::sync::Arc;

use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use shizuku_kv::{Store, connect};
use slipstream::Connection as _;

use crate::support::Server;

pub(crate) static VALUE: [u8; 200] = [b'x'; 200];

pub(crate) fn key(number: usize) -> String {
    format!("route.{number:06}")
}

/// One bucket, as each side opens it.
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) keys: usize,
    pub(crate) ours: Store,
    pub(crate) slipstreams: Arc<dyn slipstream::KvStore>,
    pub(crate) plain: kv::Store,
}

pub(crate) struct Buckets {
    pub(crate) url: String,
    all: Vec<Bucket>,
}

impl Buckets {
    pub(crate) async fn fill(server: &Server, sizes: &[usize]) -> Self {
        let url = format!("nats://127.0.0.1:{}", server.port);
        let ours = connect(&url).await.unwrap();
        let slipstreams = slipstream_at(&url).await;
        let plain = jetstream::new(async_nats::connect(&url).await.unwrap());
        let mut all = Vec::new();
        for &keys in sizes {
            let name = format!("routes-{keys}");
            println!("filling {name}");
            let store = ours.store(&name).await.unwrap();
            fill(&plain, &name, keys).await;
            all.push(Bucket {
                keys,
                ours: store,
                slipstreams: slipstreams.store(&name).await.unwrap(),
                plain: plain.get_key_value(&name).await.unwrap(),
                name,
            });
        }
        Self { url, all }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bucket> {
        self.all.iter()
    }

    pub(crate) fn of(&self, keys: usize) -> &Bucket {
        self.all.iter().find(|bucket| bucket.keys == keys).expect("a bucket of each size")
    }
}

/// Fills a bucket with plain async-nats, because writes of shizuku-kv have a header, which slows
/// down every reader.
async fn fill(context: &jetstream::Context, bucket: &str, keys: usize) {
    /// Number of writes that are pipelined.
    const PART: usize = 1000;
    for first in (0..keys).step_by(PART) {
        let mut written = Vec::with_capacity(PART);
        for number in first..keys.min(first + PART) {
            let subject = format!("$KV.{bucket}.{}", key(number));
            written.push(context.publish(subject, Bytes::from_static(&VALUE)).await.unwrap());
        }
        for written in written {
            written.await.unwrap();
        }
    }
}

pub(crate) async fn slipstream_at(url: &str) -> slipstream::NatsConnection {
    let config =
        slipstream::NatsConnectionConfig { url: url.to_owned(), creds: None, creds_file: None };
    let connection = slipstream::NatsConnection::new(config);
    connection.connect().await.unwrap();
    connection
}

/// Reads a bucket with plain async-nats: every key once, and nothing is kept.
pub(crate) async fn delivered(bucket: &Bucket) {
    let mut watch = bucket.plain.watch_with_history(">").await.unwrap();
    for _ in 0..bucket.keys {
        std::hint::black_box(watch.next().await.unwrap().unwrap());
    }
}
