//! Fenced writes, beyond the contract's checks: the messages on the wire, the effect of other
//! clients on a token, and lost requests and answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{
    Connection, FencingToken, KeyValue, KeyValueWrite, KvError, KvOperation, KvResult, Store,
    StoreConfig, VersionToken, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use super::proxied::{Proxied, send, version};

fn token(number: u64) -> FencingToken {
    FencingToken::from_u64(number)
}

async fn fence(store: &Store, key: &str) -> Option<u64> {
    store.entry(key).await.unwrap().and_then(|entry| entry.fence).map(FencingToken::as_u64)
}

async fn value(store: &Store, key: &str) -> String {
    String::from_utf8(store.get(key).await.unwrap().unwrap().value.to_vec()).unwrap()
}

#[track_caller]
fn assert_fenced(answer: KvResult<VersionToken>, tokens: (u64, u64)) {
    match answer {
        Err(KvError::Fenced { token, newest, .. }) => {
            assert_eq!((token.as_u64(), newest.as_u64()), tokens);
        }
        answer => panic!("{answer:?}"),
    }
}

on_each_backend! {
    broken_holder_does_no_harm_once_keys_are_raised,
    lock_is_not_granted_again_after_its_record_expired,
}

async fn memory_store(config: StoreConfig) -> Store {
    connect("memory:").await.unwrap().store_with_config("fenced", config).await.unwrap()
}

/// A lock is held, and then its store is given a maximum age.
async fn lock_is_not_granted_again_after_its_record_expired(connection: Arc<dyn Connection>) {
    let name = unique("locks");
    let store = connection.store(&name).await.unwrap();
    let held = DistroRwLock::new(&store, "job").unwrap().write().await.unwrap();
    let config = StoreConfig::new().max_age(Duration::from_millis(300)).reconcile();
    connection.store_with_config(&name, config).await.unwrap();
    eventually("the record is gone", async || {
        store.entry("rw_lock.job").await.unwrap().is_none_or(|entry| entry.is_tombstone())
    })
    .await;
    // For locks, another handle is another process.
    let other = Store::new(Arc::clone(store.backend()), store.deadline());
    let Ok(lock) =
        DistroRwLock::with_options(&other, "job", LockOptions::new().wait(Duration::from_secs(1)))
    else {
        // The handle has seen the new settings by now.
        return;
    };
    let second = lock.write().await;
    assert!(second.is_err(), "{second:?}");
    drop(held);
}

/// Values that the holder has written, one that it has not written, and an absent one.
async fn broken_holder_does_no_harm_once_keys_are_raised(connection: Arc<dyn Connection>) {
    let store = connection.store(&unique("raised")).await.unwrap();
    let fenced = store.fenced().unwrap();
    let lock = DistroRwLock::new(&store, "job").unwrap();
    let held = lock.write().await.unwrap();
    let broken = held.fencing_token();
    fenced.put("job.fenced", "started", broken).await.unwrap();
    store.put("job.plain", "plain").await.unwrap();
    let token = lock.break_lock().await.unwrap();
    // The next holder has not written yet.
    fenced.put("job.fenced", "still accepted", broken).await.unwrap();
    for key in ["job.fenced", "job.plain", "job.absent"] {
        assert_eq!(fenced.raise(key, token).await.unwrap(), token);
        assert_fenced(fenced.put(key, "late", broken).await, (broken.as_u64(), token.as_u64()));
        assert_fenced(fenced.create(key, "late", broken).await, (broken.as_u64(), token.as_u64()));
        assert_fenced(fenced.delete(key, broken).await, (broken.as_u64(), token.as_u64()));
    }
    assert_eq!(value(&store, "job.fenced").await, "still accepted");
    assert_eq!(value(&store, "job.plain").await, "plain");
    assert!(store.get("job.absent").await.unwrap().is_none());
    let next = lock.write().await.unwrap();
    assert!(next.fencing_token() > token && token > broken);
    for key in ["job.fenced", "job.plain", "job.absent"] {
        fenced.put(key, "next", next.fencing_token()).await.unwrap();
        assert_eq!(fenced.raise(key, token).await.unwrap(), next.fencing_token());
    }
}

#[tokio::test]
async fn error_names_both_tokens_and_the_way_out() {
    let store = memory_store(StoreConfig::new()).await;
    let fenced = store.fenced().unwrap();
    fenced.put("a.key", "value", token(18)).await.unwrap();
    let error = fenced.put("a.key", "hunter2", token(17)).await.unwrap_err();
    let text = error.to_string();
    for part in ["a.key", "17", "18", "rejected", "take it again"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(error.is_fenced() && !error.is_conflict() && !error.is_retryable(), "{text}");
    assert!(!format!("{text} {error:?} {fenced:?}").contains("hunter2"));
}

/// A job, stored as a whole under its key.
#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "job.{id}", codec = json)]
struct Job {
    id: u64,
    state: String,
}

fn job(state: &str) -> Job {
    Job { id: 7, state: state.to_owned() }
}

#[tokio::test]
async fn records_are_written_under_a_lock() {
    let store = memory_store(StoreConfig::new()).await;
    let first = job("first").create_write_fenced(&store, token(1)).await.unwrap();
    let second = job("second").write_fenced_atomically(&store, first, token(2)).await.unwrap();
    let refused = [
        job("late").write_fenced(&store, token(1)).await,
        job("late").write_fenced_atomically(&store, second, token(1)).await,
        job("late").create_write_fenced(&store, token(1)).await,
        Job::delete_fenced(&store, 7, token(1)).await,
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(error.is_fenced() && !error.is_conflict() && !error.is_retryable(), "{error:?}");
    }
    let lost = job("lost").write_fenced_atomically(&store, first, token(2)).await.unwrap_err();
    assert!(lost.is_conflict() && !lost.is_fenced(), "{lost:?}");
    let lost = job("lost").create_write_fenced(&store, token(2)).await.unwrap_err();
    assert!(lost.is_conflict() && !lost.is_fenced(), "{lost:?}");
    assert_eq!(Job::read_from(&store, 7).await.unwrap(), Some(job("second")));
    job("third").write_fenced(&store, token(2)).await.unwrap();
    Job::delete_fenced(&store, 7, token(3)).await.unwrap();
    assert_eq!(fence(&store, "job.7").await, Some(3));
}

/// A session, which expires.
#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "session.{id}", ttl = "30s", codec = json)]
struct Session {
    id: u64,
}

#[tokio::test]
async fn record_that_expires_is_not_written_under_a_lock() {
    let store = memory_store(StoreConfig::new()).await;
    let version = VersionToken::from_u64(1);
    let session = Session { id: 1 };
    for refused in [
        session.write_fenced(&store, token(1)).await,
        session.create_write_fenced(&store, token(1)).await,
        session.write_fenced_atomically(&store, version, token(1)).await,
    ] {
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("Session has a time to live"), "{error}");
    }
    assert!(store.entry("session.1").await.unwrap().is_none());
}

#[tokio::test]
async fn record_in_a_store_whose_values_age_is_not_fenced() {
    let store = memory_store(StoreConfig::new().max_age(Duration::from_secs(3600))).await;
    let error = job("first").write_fenced(&store, token(1)).await.unwrap_err();
    assert!(error.to_string().contains("maximum age"), "{error}");
    let error = Job::delete_fenced(&store, 7, token(1)).await.unwrap_err();
    assert!(error.to_string().contains("maximum age"), "{error}");
    assert!(store.entry("job.7").await.unwrap().is_none());
}

/// Returns a client that sees the bucket as it is on the wire.
async fn context(server: &NatsServer) -> jetstream::Context {
    jetstream::new(server.client().await)
}

async fn newest_headers(
    context: &jetstream::Context,
    bucket: &str,
    key: &str,
) -> async_nats::HeaderMap {
    let stream = context.get_stream(format!("KV_{bucket}")).await.unwrap();
    let message =
        stream.get_last_raw_message_by_subject(&format!("$KV.{bucket}.{key}")).await.unwrap();
    message.headers
}

#[tokio::test]
async fn token_is_in_a_header_and_does_not_expire() {
    let server = NatsServer::shared();
    let context = context(server).await;
    let connection = connect(&server.url()).await.unwrap();
    for key_ttl in [false, true] {
        if key_ttl && !connection.capabilities().key_ttl {
            continue;
        }
        let config = StoreConfig::new().key_ttl(key_ttl);
        let bucket = unique("wire");
        let store = connection.store_with_config(&bucket, config).await.unwrap();
        let has_headers = async |key: &str, fence: &str, operation: Option<&str>| {
            let headers = newest_headers(&context, &bucket, key).await;
            let header = |name: &str| headers.get(name).map(|value| value.as_str());
            assert_eq!(header("Shizuku-Fence"), Some(fence), "{headers:?}");
            assert_eq!(header("KV-Operation"), operation, "{headers:?}");
            let has_id = header("Shizuku-Op").is_some();
            assert!(has_id && header("Nats-TTL").is_none(), "{headers:?}");
        };
        let fenced = store.fenced().unwrap();
        fenced.put("job", "value", token(17)).await.unwrap();
        has_headers("job", "17", None).await;
        fenced.delete("job", token(18)).await.unwrap();
        has_headers("job", "18", Some("DEL")).await;
        for key in ["job", "never"] {
            fenced.raise(key, token(19)).await.unwrap();
            has_headers(key, "19", Some("DEL")).await;
        }
        // A write without a token looks as it always did.
        store.put("job", "plain").await.unwrap();
        assert!(newest_headers(&context, &bucket, "job").await.get("Shizuku-Fence").is_none());
    }
}

#[tokio::test]
async fn other_client_reads_a_fenced_value_and_removes_its_token() {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await.unwrap();
    let bucket = unique("foreign");
    let store = connection.store(&bucket).await.unwrap();
    let theirs = context(server).await.get_key_value(&bucket).await.unwrap();
    let fenced = store.fenced().unwrap();
    for what in ["put", "update", "delete", "purge"] {
        let version = fenced.put(what, "fenced", token(9)).await.unwrap();
        assert_eq!(theirs.get(what).await.unwrap().unwrap(), "fenced");
        match what {
            "put" => {
                theirs.put(what, "theirs".into()).await.unwrap();
            }
            "update" => {
                theirs.update(what, "theirs".into(), version.as_u64().unwrap()).await.unwrap();
            }
            "delete" => theirs.delete(what).await.unwrap(),
            _ => theirs.purge(what).await.unwrap(),
        }
        assert_eq!(fence(&store, what).await, None, "{what}");
        fenced.put(what, "earlier", token(1)).await.unwrap();
    }
    // A text that is not a number is not a token.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Shizuku-Fence", "the largest");
    let context = context(server).await;
    let published =
        context.publish_with_headers(format!("$KV.{bucket}.odd"), headers, "x".into()).await;
    published.unwrap().await.unwrap();
    assert_eq!(fence(&store, "odd").await, None);
    fenced.put("odd", "ours", token(0)).await.unwrap();
}

#[tokio::test]
async fn foreign_bucket_has_fenced_writes_if_tokens_stay() {
    let server = NatsServer::shared();
    let context = context(server).await;
    let connection = connect(&server.url()).await.unwrap();
    let open = async |change: fn(&mut kv::Config)| {
        let mut config = kv::Config { bucket: unique("theirs"), ..kv::Config::default() };
        change(&mut config);
        let bucket = config.bucket.clone();
        context.create_key_value(config).await.unwrap();
        connection.store(&bucket).await.unwrap()
    };
    let default = open(|_| {}).await;
    default.fenced().unwrap().put("job", "value", token(1)).await.unwrap();
    // The smallest messages with room for an operation id: a value of one byte.
    let small = open(|config| config.max_value_size = 161).await;
    let fenced = small.fenced().unwrap();
    assert_eq!(small.max_value_size(), 161);
    fenced.put("job", "1", token(u64::MAX)).await.unwrap();
    fenced.delete("job", token(u64::MAX)).await.unwrap();
    assert_eq!(fence(&small, "job").await, Some(u64::MAX));
    let smaller = open(|config| config.max_value_size = 160).await;
    assert!(smaller.fenced().is_none() && !smaller.capabilities().fenced_writes);
    smaller.put("job", "1").await.unwrap();
    let ageing = open(|config| config.max_age = Duration::from_secs(60)).await;
    assert!(ageing.fenced().is_none() && !ageing.capabilities().fenced_writes);
}

/// A stream that makes room by dropping the oldest messages would drop tokens.
#[tokio::test]
async fn bucket_that_evicts_has_no_fenced_writes() {
    let server = NatsServer::shared();
    let context = context(server).await;
    let connection = connect(&server.url()).await.unwrap();
    for (discard, max_bytes, has_fences) in [
        (jetstream::stream::DiscardPolicy::Old, 1 << 20, false),
        (jetstream::stream::DiscardPolicy::New, 1 << 20, true),
        (jetstream::stream::DiscardPolicy::Old, -1, true),
    ] {
        let bucket = unique("evicts");
        let config = jetstream::stream::Config {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            discard,
            max_bytes,
            allow_direct: true,
            allow_rollup: true,
            ..jetstream::stream::Config::default()
        };
        context.create_stream(config).await.unwrap();
        let store = connection.store(&bucket).await.unwrap();
        assert_eq!(store.fenced().is_some(), has_fences, "{discard:?} {max_bytes}");
        assert_eq!(store.capabilities().fenced_writes, has_fences);
    }
}

impl Proxied {
    /// Returns the number of messages that the server has sent to clients.
    async fn answered(&self) -> u64 {
        let page =
            self.server.page("/varz").await.expect("the server answers on its monitoring port");
        page["out_msgs"].as_u64().unwrap()
    }

    /// Runs a write whose first read is answered. The answer reaches the client only after
    /// `meanwhile` is done.
    async fn look_first(
        &self,
        write: impl Future<Output = KvResult<VersionToken>>,
        meanwhile: impl Future<Output = ()>,
    ) -> KvResult<VersionToken> {
        let before = self.answered().await;
        self.proxy.hold_answers(true);
        let script = async {
            eventually("the server has answered", async || self.answered().await > before).await;
            meanwhile.await;
            self.proxy.hold_answers(false);
        };
        tokio::join!(write, script).0
    }

    /// Runs a write whose request is lost after its first read. The proxy holds it back, then the
    /// connection is cut.
    async fn lose_request(
        &self,
        write: impl Future<Output = KvResult<VersionToken>>,
        meanwhile: impl Future<Output = ()>,
    ) -> KvResult<VersionToken> {
        let before = self.answered().await;
        self.proxy.hold_answers(true);
        let script = async {
            eventually("the server has answered", async || self.answered().await > before).await;
            self.proxy.hold_requests(true);
            self.proxy.hold_answers(false);
            // The answer has arrived and the write is in transit after some of these turns.
            // Otherwise there is nothing to lose, and the rest is the same.
            send().await;
            meanwhile.await;
            self.proxy.cut();
        };
        tokio::join!(write, script).0
    }

    /// Runs a write whose acknowledgement is lost: the server accepts it, then the connection is
    /// cut.
    async fn lose_acknowledgement(
        &self,
        key: &str,
        write: impl Future<Output = KvResult<VersionToken>>,
        meanwhile: impl Future<Output = ()>,
    ) -> KvResult<VersionToken> {
        let before = self.version(key).await;
        // The answer to the read comes after this time, and the acknowledgement would come after
        // twice as much.
        self.proxy.delay_answers(Duration::from_secs(1));
        let script = async {
            self.has_write(key, before).await;
            self.proxy.hold_answers(true);
            meanwhile.await;
            self.proxy.delay_answers(Duration::ZERO);
            self.proxy.cut();
        };
        tokio::join!(write, script).0
    }
}

/// It reads, is paused, and writes after the next holder has written.
#[tokio::test]
async fn holder_paused_between_read_and_write_is_fenced() {
    let f = Proxied::new(1).await;
    let fenced = f.behind.fenced().unwrap();
    let newer = async || {
        f.direct.fenced().unwrap().put("job", "newer", token(2)).await.unwrap();
    };
    assert_fenced(f.look_first(fenced.put("job", "late", token(1)), newer()).await, (1, 2));
    assert_eq!(value(&f.direct, "job").await, "newer");
    // The same over the earlier holder's own value, and over a deletion.
    for (number, key) in ["put", "create", "update", "delete"].into_iter().enumerate() {
        let first = fenced.put(key, "first", token(1)).await.unwrap();
        if key == "create" {
            fenced.delete(key, token(1)).await.unwrap();
        }
        let direct = f.direct.fenced().unwrap();
        let newer = async {
            let newer = match number {
                0 => direct.delete(key, token(2)).await,
                _ => direct.put(key, "newer", token(2)).await,
            };
            newer.unwrap();
        };
        let late = async {
            match key {
                "put" => fenced.put(key, "late", token(1)).await,
                "create" => fenced.create(key, "late", token(1)).await,
                "update" => fenced.update(key, "late", first, token(1)).await,
                _ => fenced.delete(key, token(1)).await,
            }
        };
        assert_fenced(f.look_first(late, newer).await, (1, 2));
        assert_eq!(fence(&f.direct, key).await, Some(2), "{key}");
    }
}

/// The intervening writer has the same lock, or none.
#[tokio::test]
async fn intervening_write_with_the_same_token_is_superseded() {
    let f = Proxied::new(5).await;
    let fenced = f.behind.fenced().unwrap();
    let same = async {
        f.direct.fenced().unwrap().put("same", "other", token(1)).await.unwrap();
    };
    let written = version(f.look_first(fenced.put("same", "ours", token(1)), same).await);
    assert_eq!(f.entries("same").await.last(), Some(&(written, KvOperation::Put, Some(1))));
    assert_eq!(f.entries("same").await.len(), 2);
    let plain = async {
        f.direct.put("plain", "other").await.unwrap();
    };
    let written = version(f.look_first(fenced.delete("plain", token(1)), plain).await);
    assert_eq!(f.entries("plain").await.last(), Some(&(written, KvOperation::Delete, Some(1))));
    // A swap loses to it.
    let known = fenced.put("swap", "first", token(1)).await.unwrap();
    let same = async {
        f.direct.fenced().unwrap().put("swap", "other", token(1)).await.unwrap();
    };
    let lost = f.look_first(fenced.update("swap", "ours", known, token(1)), same).await;
    assert!(matches!(lost, Err(KvError::RevisionMismatch { .. })), "{lost:?}");
    let same = async {
        f.direct.fenced().unwrap().put("create", "other", token(1)).await.unwrap();
    };
    let lost = f.look_first(fenced.create("create", "ours", token(1)), same).await;
    assert!(matches!(lost, Err(KvError::AlreadyExists { .. })), "{lost:?}");
}

#[tokio::test]
async fn landed_fenced_write_is_found_by_its_id() {
    for history in [1, 5] {
        let f = Proxied::new(history).await;
        let fenced = f.behind.fenced().unwrap();
        let written = version(
            f.lose_acknowledgement("key", fenced.create("key", "one", token(4)), async {}).await,
        );
        assert_eq!(f.entries("key").await, [(written, KvOperation::Put, Some(4))]);
        let first = VersionToken::from_u64(written);
        let update = fenced.update("key", "two", first, token(5));
        let written = version(f.lose_acknowledgement("key", update, async {}).await);
        assert_eq!(f.entries("key").await.last(), Some(&(written, KvOperation::Put, Some(5))));
        let put = fenced.put("key", "three", token(5));
        let written = version(f.lose_acknowledgement("key", put, async {}).await);
        assert_eq!(f.entries("key").await.last(), Some(&(written, KvOperation::Put, Some(5))));
        let delete = fenced.delete("key", token(6));
        let written = version(f.lose_acknowledgement("key", delete, async {}).await);
        assert_eq!(f.entries("key").await.last(), Some(&(written, KvOperation::Delete, Some(6))));
        assert_eq!(f.entries("key").await.len(), usize::from(history.min(4)));
    }
}

#[tokio::test]
async fn lost_fenced_write_is_repeated_once() {
    let f = Proxied::new(5).await;
    let fenced = f.behind.fenced().unwrap();
    let written = version(f.lose_request(fenced.put("key", "one", token(1)), async {}).await);
    assert_eq!(f.entries("key").await, [(written, KvOperation::Put, Some(1))]);
    let written = version(f.lose_request(fenced.delete("key", token(1)), async {}).await);
    assert_eq!(f.entries("key").await.last(), Some(&(written, KvOperation::Delete, Some(1))));
    assert_eq!(f.entries("key").await.len(), 2);
}

#[tokio::test]
async fn lost_fenced_write_overtaken_by_next_holder_is_fenced() {
    let f = Proxied::new(5).await;
    let fenced = f.behind.fenced().unwrap();
    fenced.put("key", "first", token(1)).await.unwrap();
    let newer = async {
        f.direct.fenced().unwrap().put("key", "newer", token(2)).await.unwrap();
    };
    assert_fenced(f.lose_request(fenced.put("key", "late", token(1)), newer).await, (1, 2));
    assert_eq!(value(&f.direct, "key").await, "newer");
    assert_eq!(f.entries("key").await.len(), 2);
}

/// The write landed, and was replaced before any reader could see it.
#[tokio::test]
async fn fenced_write_without_proof_has_unknown_outcome() {
    let f = Proxied::new(1).await;
    let fenced = f.behind.fenced().unwrap();
    let newer = async {
        f.direct.fenced().unwrap().put("key", "newer", token(2)).await.unwrap();
    };
    let landed = f.lose_acknowledgement("key", fenced.put("key", "one", token(1)), newer).await;
    let Err(KvError::OutcomeUnknown { operation, .. }) = landed else { panic!("{landed:?}") };
    assert_eq!(operation, "put");
    assert_eq!(
        (value(&f.direct, "key").await, fence(&f.direct, "key").await),
        ("newer".to_owned(), Some(2))
    );
}

#[tokio::test]
async fn fenced_write_among_busy_writers_ends_by_its_deadline() {
    let f = Proxied::new(1).await;
    f.behind.fenced().unwrap().put("key", "first", token(1)).await.unwrap();
    let behind = f.behind.with_deadline(Duration::from_millis(400));
    let fenced = behind.fenced().unwrap();
    // Answers are stale by then.
    f.proxy.delay_answers(Duration::from_millis(20));
    let others = async {
        loop {
            f.direct.put("key", "other").await.unwrap();
        }
    };
    let put = fenced.put("key", "ours", token(1));
    let refused = tokio::select! {
        answer = put => answer.unwrap_err(),
        () = others => unreachable!(),
        // The others never end, so without a deadline the write would not end either.
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it has not ended"),
    };
    // If the last try was in transit when the time was over, nothing shows its outcome.
    assert!(
        matches!(refused, KvError::Timeout { .. } | KvError::OutcomeUnknown { .. }),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_near_and_far_end_with_the_newest_token() {
    let f = Proxied::new(64).await;
    f.proxy.delay(Duration::from_millis(2));
    race(&f.direct, &[f.direct.clone(), f.behind.clone()]).await;
}

/// Many holders write at the same time, each with its token and through one of the handles. The
/// tokens of writes that took effect never go back, and end with the newest.
async fn race(store: &Store, handles: &[Store]) {
    const HOLDERS: u64 = 6;
    const WRITES: u64 = 8;
    let holders = (1..=HOLDERS).map(|number| {
        let store = handles[usize::try_from(number).unwrap() % handles.len()].clone();
        tokio::spawn(async move {
            let fenced = store.fenced().unwrap();
            let mut written = 0;
            for count in 0..WRITES {
                let write = match count % 3 {
                    2 => fenced.delete("job", token(number)).await,
                    _ => fenced.put("job", format!("{number}.{count}"), token(number)).await,
                };
                match write {
                    Ok(_) => written += 1,
                    Err(KvError::Fenced { newest, .. }) => assert!(newest > token(number)),
                    Err(error) => panic!("{error:?}"),
                }
            }
            written
        })
    });
    let written = join_all(holders.collect::<Vec<_>>()).await;
    let written: Vec<u64> = written.into_iter().map(Result::unwrap).collect();
    assert_eq!(written.last(), Some(&WRITES), "the newest is never refused");
    let entries = store.history("job").unwrap().try_collect().await.unwrap();
    let fences: Vec<_> = entries.iter().map(|entry| entry.fence.unwrap().as_u64()).collect();
    assert!(fences.is_sorted(), "{fences:?}");
    assert_eq!(fences.last(), Some(&HOLDERS));
    assert_eq!(entries.len() as u64, written.iter().sum::<u64>(), "each took effect once");
    let listed = store.keys(WatchScope::All).try_collect().await.unwrap();
    assert_eq!(listed, ["job"]);
}
