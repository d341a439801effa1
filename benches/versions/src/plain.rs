//! The nearest equivalents in a program with plain async-nats.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;

use crate::subject::{OPENED, Part, Replicated, average, longest, sample};

pub(crate) struct Plain {
    bucket: kv::Store,
}

impl Plain {
    pub(crate) async fn open(url: &str, name: &str) -> Self {
        let context = jetstream::new(async_nats::connect(url).await.expect("connect"));
        Self { bucket: context.get_key_value(name).await.expect("a bucket") }
    }

    /// Reads the last message of each key with an ordered consumer; single keys with a `get` each,
    /// all at once.
    pub(crate) async fn scan(&self, part: &Part, keys: usize) {
        if let Part::Keys(keys) = part {
            let found = join_all(keys.iter().map(|key| self.bucket.entry(key))).await;
            assert!(found.into_iter().all(|entry| entry.expect("get").is_some()));
            return;
        }
        let config = pull::OrderedConfig {
            filter_subject: format!("{}{}", self.bucket.prefix, subject(part)),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..Default::default()
        };
        let consumer = self.bucket.stream.create_consumer(config).await.expect("a consumer");
        let mut messages = consumer.messages().await.expect("messages");
        let mut seen = 0;
        loop {
            let message = messages.next().await.expect("an item").expect("a message");
            seen += 1;
            if message.info().expect("a position").pending == 0 {
                break;
            }
        }
        assert_eq!(seen, keys);
    }

    pub(crate) async fn keys(&self, keys: usize) {
        let listed = self.bucket.keys().await.expect("keys");
        assert_eq!(listed.map(|key| key.expect("a key")).count().await, keys);
    }

    pub(crate) async fn watch(&self, part: &Part, keys: usize) {
        let mut watch = match part {
            Part::Keys(keys) => self.bucket.watch_many_with_history(keys).await,
            _ => self.bucket.watch_with_history(subject(part)).await,
        }
        .expect("watch");
        for _ in 0..keys {
            watch.next().await.expect("an item").expect("an entry");
        }
    }

    /// A map behind a lock that is filled from a watch. It has no log, and no versions.
    pub(crate) async fn replicate(&self, keys: usize) -> Replicated {
        let state = Arc::new(RwLock::new(HashMap::<String, Bytes>::new()));
        let get = |state: &RwLock<HashMap<String, Bytes>>, key: &str| {
            state.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
        };
        let probed = Arc::clone(&state);
        let probe = move || drop(black_box(get(&probed, "k.0.7")));
        let start = Instant::now();
        let fill = async {
            let mut watch = self.bucket.watch_with_history(">").await.expect("watch");
            for _ in 0..keys + OPENED {
                let entry = watch.next().await.expect("an item").expect("an entry");
                let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
                state.insert(entry.key, entry.value);
            }
        };
        let ((), most) = longest(probe, fill).await;
        let took = start.elapsed();
        let get = average(&sample(keys), |key| {
            black_box(get(&state, key)).expect("a value");
        });
        [took, most, get]
    }
}

fn subject(part: &Part) -> String {
    match part {
        Part::All => ">".to_owned(),
        Part::Prefix(prefix) => format!("{prefix}>"),
        Part::Key(key) => key.clone(),
        Part::Keys(_) => unreachable!("several keys have no common subject"),
    }
}
