//! The handle over misbehaving backends: the guarantees of `Store` itself, with tokio's time
//! stopped.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use shizuku_kv::{
    Connection, Key, KvEntry, KvError, KvResult, KvStream, MemoryConnection, Store, VersionToken,
    WatchScope, connect,
};
use shizuku_kv_tests::faulty::{Abilities, Answer, Call, FaultyStore, Hook, Next, Operation};
use tokio::time::Instant;

use super::operation_names::{expiring_writes, reads, watches, writes};

const LIMIT: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// Maximum time by which a write may exceed its deadline. An item of a stream takes less.
const GRACE: Duration = Duration::from_millis(250);

/// The behaviour of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It never answers.
    Silent,
    /// It answers at once.
    Prompt,
    /// It answers at once, and cannot write or watch.
    ReadOnly,
}

/// A backend that counts its requests.
#[derive(Debug)]
struct Backend {
    manner: Manner,
    granularity: Duration,
    asked: AtomicUsize,
    ttls: Mutex<Vec<Duration>>,
}

impl Backend {
    fn new(manner: Manner) -> Arc<Self> {
        Self::counting(manner, SECOND)
    }

    fn counting(manner: Manner, granularity: Duration) -> Arc<Self> {
        Arc::new(Self { manner, granularity, asked: AtomicUsize::new(0), ttls: Mutex::default() })
    }

    fn store(self: &Arc<Self>) -> Store {
        let memory = MemoryConnection::new();
        let store = memory.store("faulty").now_or_never().unwrap().unwrap();
        FaultyStore::over(&store, self).with_deadline(LIMIT)
    }

    /// Returns one item, and then what the manner is.
    fn items<T: Send + 'static>(&self, item: T) -> KvStream<T> {
        let first = stream::once(async move { Ok(item) });
        match self.manner {
            Manner::Silent => KvStream::new(first.chain(stream::pending())),
            Manner::Prompt | Manner::ReadOnly => KvStream::new(first),
        }
    }
}

impl Hook for Backend {
    async fn call(self: &Arc<Self>, call: Call, next: &Next) -> KvResult<Answer> {
        // The settings are refreshed before a value is rejected for its size.
        if !matches!(call.operation, Operation::Refresh) {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        match call.operation {
            Operation::History(_) | Operation::Scan(_) => Ok(self.items(entry()).into()),
            Operation::Keys(_) => Ok(self.items(key()).into()),
            _ if self.manner == Manner::Silent => pending().await,
            Operation::Write(_, write) => {
                self.ttls.lock().unwrap().extend(write.ttl);
                Ok(VersionToken::from_u64(1).into())
            }
            Operation::WriteMany(writes, _) => {
                Ok(vec![Ok(VersionToken::from_u64(1)); writes.len()].into())
            }
            _ => next.call(call).await,
        }
    }

    fn abilities(&self, abilities: Abilities) -> Abilities {
        let granularity = Some(self.granularity);
        let abilities = Abilities { max_value_size: 8, granularity, ..abilities };
        if self.manner == Manner::ReadOnly { abilities.read_only() } else { abilities }
    }
}

fn key() -> Key {
    Key::new("key").unwrap()
}

fn entry() -> KvEntry {
    KvEntry::put(key(), Bytes::new(), VersionToken::from_u64(1), std::time::SystemTime::UNIX_EPOCH)
}

/// Checks that the operation ends, neither before `limit` nor much after it.
async fn ends<T>(name: &str, limit: Duration, operation: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let answer = tokio::time::timeout(100 * LIMIT, operation).await;
    let answer = answer.unwrap_or_else(|_| panic!("{name} waits for ever"));
    let took = start.elapsed();
    assert!(
        took >= limit && took <= limit + GRACE + Duration::from_millis(2),
        "{name} took {took:?}"
    );
    answer
}

#[tokio::test(start_paused = true)]
async fn reads_and_watches_of_a_silent_backend_time_out() {
    let store = Backend::new(Manner::Silent).store();
    for (name, operation) in reads(&store).into_iter().chain(watches(&store)) {
        match ends(name, LIMIT, operation).await {
            Err(KvError::Timeout { operation, limit: LIMIT, .. }) => assert_eq!(operation, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn writes_to_silent_backend_have_unknown_outcome() {
    let store = Backend::new(Manner::Silent).store();
    for (name, operation) in writes(&store).into_iter().chain(expiring_writes(&store)) {
        match ends(name, LIMIT, operation).await {
            Err(KvError::OutcomeUnknown { operation, key: found, .. }) => {
                assert_eq!((operation, found), (name, key()));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stream_ends_with_the_item_that_does_not_come() {
    let store = Backend::new(Manner::Silent).store();
    let scan = store.scan(WatchScope::All);
    assert!(scan.next().await.unwrap().is_ok());
    // The time between two items belongs to the reader.
    tokio::time::advance(2 * LIMIT).await;
    let late = ends("scan", LIMIT, scan.next()).await;
    assert!(matches!(late, Some(Err(KvError::Timeout { operation: "scan", .. }))), "{late:?}");
    for _ in 0..2 {
        assert!(ends("the end", Duration::ZERO, scan.next()).await.is_none());
    }
    let whole = Backend::new(Manner::Prompt).store().scan(WatchScope::All);
    assert!(whole.next().await.unwrap().is_ok());
    assert!(whole.next().await.is_none() && whole.next().await.is_none());

    let keys = store.keys(WatchScope::All);
    assert!(keys.next().await.unwrap().is_ok());
    let late = ends("keys", LIMIT, keys.next()).await;
    assert!(matches!(late, Some(Err(KvError::Timeout { operation: "keys", .. }))), "{late:?}");
    assert!(keys.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn history_has_one_deadline_from_the_call_on() {
    let store = Backend::new(Manner::Silent).store();
    let history = store.history("key").unwrap();
    tokio::time::advance(LIMIT / 2).await;
    assert!(history.next().await.unwrap().is_ok());
    match ends("history", LIMIT / 2, history.next()).await {
        Some(Err(KvError::Timeout { operation: "history", key: Some(found), .. })) => {
            assert_eq!(found, key())
        }
        other => panic!("{other:?}"),
    }
    assert!(history.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn put_many_is_awaited_as_long_as_it_can_take() {
    let store = Backend::new(Manner::Silent).store();
    for (count, turns) in [(1, 2), (1024, 2), (1025, 3), (5000, 6)] {
        let items = (0..count).map(|number| (format!("key.{number}"), "value"));
        let answers = ends("put_many", turns * LIMIT, store.put_many(items)).await;
        assert_eq!(answers.len(), count);
        for (number, answer) in answers.into_iter().enumerate() {
            match answer {
                Err(KvError::OutcomeUnknown { operation: "put_many", key, .. }) => {
                    assert_eq!(key.as_str(), format!("key.{number}"));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // An item that is rejected earlier keeps its position.
    let answers = store.put_many([("a..b", "1"), ("key", "2"), ("key", "far too long")]).await;
    assert!(matches!(answers[0], Err(KvError::InvalidKey { .. })));
    assert!(matches!(answers[1], Err(KvError::OutcomeUnknown { .. })));
    assert!(matches!(answers[2], Err(KvError::ValueTooLarge { .. })));
}

#[tokio::test(start_paused = true)]
async fn deadline_of_zero_sends_nothing() {
    let silent = Backend::new(Manner::Silent);
    let prompt = Backend::new(Manner::Prompt);
    for store in [silent.store(), prompt.store()] {
        let store = store.with_deadline(Duration::ZERO);
        let operations = reads(&store).into_iter().chain(watches(&store)).chain(writes(&store));
        for (name, operation) in operations.chain(expiring_writes(&store)) {
            match operation.now_or_never() {
                Some(Err(KvError::Timeout { operation, limit: Duration::ZERO, .. })) => {
                    assert_eq!(operation, name);
                }
                other => panic!("{name} of {store:?}: {other:?}"),
            }
        }
        let answers = store.put_many([("a", "1"), ("b", "2")]).now_or_never().unwrap();
        assert_eq!(answers.len(), 2);
        for answer in answers {
            assert!(
                matches!(answer, Err(KvError::Timeout { operation: "put_many", .. })),
                "{answer:?}"
            );
        }
    }
    assert_eq!(
        (silent.asked.load(Ordering::Relaxed), prompt.asked.load(Ordering::Relaxed)),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn no_deadline_is_too_long() {
    let edge = Duration::from_secs_f64(9_223_372_036_854_769_389.5);
    for limit in [Duration::from_secs(u64::from(u32::MAX)), edge, Duration::MAX] {
        for store in [
            Backend::new(Manner::Prompt).store(),
            connect("memory:").await.unwrap().store("a").await.unwrap(),
        ] {
            let store = store.with_deadline(limit);
            store.put("key", "value").await.unwrap();
            store.get("key").await.unwrap();
            store.delete("key").await.unwrap();
            assert!(
                store.put_many((0..2000).map(|_| ("key", "value"))).await.iter().all(Result::is_ok)
            );
            assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 1);
            assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 1);
            assert_eq!(store.history("key").unwrap().try_collect().await.unwrap().len(), 1);
            let _watch = store.watch(WatchScope::All).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn time_to_live_is_rounded_up_to_the_granularity() {
    let nano = Duration::from_nanos(1);
    let year = Duration::from_secs(365 * 86_400);
    let milli = Duration::from_millis(1);
    for (granularity, ttl, kept) in [
        (SECOND, SECOND, SECOND),
        (SECOND, SECOND + nano, 2 * SECOND),
        (SECOND, 3 * SECOND / 2, 2 * SECOND),
        (SECOND, 2 * SECOND, 2 * SECOND),
        (milli, year, year),
        (milli, year + nano, year + milli),
        (Duration::ZERO, 5 * SECOND, 5 * SECOND),
    ] {
        let backend = Backend::counting(Manner::Prompt, granularity);
        let store = backend.store();
        let (ttls, version) = (store.ttl().unwrap(), VersionToken::from_u64(1));
        assert_eq!(ttls.granularity(), granularity);
        ttls.put("key", "value", ttl).await.unwrap();
        ttls.create("key", "value", ttl).await.unwrap();
        ttls.update("key", "value", version, ttl).await.unwrap();
        assert_eq!(*backend.ttls.lock().unwrap(), [kept; 3], "{ttl:?} in steps of {granularity:?}");
    }
    for (granularity, ttl) in
        [(SECOND, Duration::ZERO), (SECOND, SECOND - nano), (SECOND, Duration::MAX)]
    {
        let backend = Backend::counting(Manner::Prompt, granularity);
        let refused = backend.store().ttl().unwrap().put("key", "value", ttl).await.unwrap_err();
        assert!(
            matches!(refused, KvError::InvalidConfig { field: "time to live", .. }),
            "{refused:?}"
        );
        assert_eq!(backend.asked.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn value_over_the_limit_is_not_sent() {
    let backend = Backend::new(Manner::Prompt);
    let store = backend.store();
    let (version, long) = (VersionToken::from_u64(1), "nine byte");
    let ttl = store.ttl().unwrap();
    let answers = [
        store.put("key", long).await,
        store.create("key", long).await,
        store.update("key", long, version).await,
        ttl.put("key", long, SECOND).await,
        ttl.create("key", long, SECOND).await,
        ttl.update("key", long, version, SECOND).await,
    ];
    for answer in answers {
        assert!(
            matches!(answer, Err(KvError::ValueTooLarge { size: 9, limit: 8, .. })),
            "{answer:?}"
        );
    }
    assert_eq!(backend.asked.load(Ordering::Relaxed), 0);
    store.put("key", "8 bytes.").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn read_only_backend_rejects_every_write() {
    let backend = Backend::new(Manner::ReadOnly);
    let store = backend.store();
    for limit in [LIMIT, Duration::ZERO] {
        let store = store.with_deadline(limit);
        for (name, operation) in writes(&store).into_iter().chain(watches(&store)) {
            match operation.await {
                Err(KvError::Unsupported { operation, reason, .. }) => {
                    assert_eq!(operation, name);
                    assert!(reason.contains("faulty"), "{reason}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        for answer in store.put_many([("a", "1"), ("b", "2")]).await {
            assert!(
                matches!(answer, Err(KvError::Unsupported { operation: "put_many", .. })),
                "{answer:?}"
            );
        }
        assert!(store.ttl().is_none());
    }
    assert_eq!(backend.asked.load(Ordering::Relaxed), 0);
    for (name, operation) in reads(&store) {
        assert!(operation.await.is_ok(), "{name}");
    }
}
