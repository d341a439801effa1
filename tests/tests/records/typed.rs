//! The typed layer on a real store: point operations, bulk, history, watches, modification, and
//! rejections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    ByteDeserialize, ByteSerialize, DecodeError, EncodeError, JsonByteDes, JsonByteSer, Key,
    KeyValue, KeyValueRead, KeyValueWrite, KvError, KvOperation, KvReadError, KvWriteError,
    LiveRead, Modify, ModifyAsync, StaticKeyIndexedValue, Store, StoreConfig, TypedEntry,
    TypedUpdate, TypedWatch, WatchScope,
};
use shizuku_kv_tests::faulty::{Fault, FaultyStore, On, Plan};

type Outcome = Result<(), Box<dyn Error>>;

const SECRET: &str = "hunter2";

async fn store() -> Store {
    store_with(StoreConfig::new()).await
}

async fn store_with(config: StoreConfig) -> Store {
    shizuku_kv::connect("memory:").await.unwrap().store_with_config("typed", config).await.unwrap()
}

/// One value at one key, by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
struct Database {
    url: String,
    password: String,
    connections: u32,
}

impl StaticKeyIndexedValue for Database {
    fn key() -> String {
        "config.database".to_owned()
    }
}

impl Database {
    fn example() -> Self {
        Self { url: "postgres://db".to_owned(), password: SECRET.to_owned(), connections: 5 }
    }
}

/// A record with its key in its fields, by hand, next to the blanket impl of the static ones.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
struct User {
    id: u64,
    name: String,
}

impl User {
    fn new(id: u64, name: &str) -> Self {
        Self { id, name: name.to_owned() }
    }
}

impl KeyValue for User {
    type Key = u64;
    type Value = Self;

    fn kv_key(&self) -> u64 {
        self.id
    }

    fn kv_value(&self) -> &Self {
        self
    }

    fn from_kv(_key: u64, value: Self) -> Self {
        value
    }
}

/// A key and a value, by hand. It is not `Clone`, and its key is not the store's key unchanged.
#[derive(Debug, PartialEq)]
struct Counter {
    name: String,
    count: Count,
}

#[derive(Debug, Default, PartialEq)]
struct Count(u64);

impl ByteSerialize for Count {
    fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        if self.0 == u64::MAX {
            return Err(EncodeError::new("the count is at its end"));
        }
        Ok(Bytes::copy_from_slice(&self.0.to_be_bytes()))
    }
}

impl ByteDeserialize for Count {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        let bytes = <[u8; 8]>::try_from(&bytes[..])
            .map_err(|_| DecodeError::new("a count has 8 bytes").at_offset(bytes.len().min(8)))?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}

impl KeyValue for Counter {
    type Key = String;
    type Value = Count;

    fn kv_key(&self) -> String {
        self.name.clone()
    }

    fn kv_value(&self) -> &Count {
        &self.count
    }

    fn from_kv(key: String, value: Count) -> Self {
        Self { name: key, count: value }
    }
}

fn counter(name: &str, count: u64) -> Counter {
    Counter { name: name.to_owned(), count: Count(count) }
}

fn increment(name: &str, counter: Option<Counter>) -> Counter {
    let count = counter.map_or(0, |counter| counter.count.0);
    self::counter(name, count + 1)
}

#[tokio::test]
async fn a_static_record_is_read_written_swapped_and_deleted() -> Outcome {
    let store = store().await;
    assert_eq!(Database::read_from(&store, Database::key()).await?, None);
    assert_eq!(Database::read(&store).await?, None);

    let mut config = Database::example();
    let first = config.write_to_anyway(&store).await?;
    assert_eq!(Database::read(&store).await?, Some(config.clone()));
    assert_eq!(Database::read_from(&store, "config.database").await?, Some(config.clone()));

    config.connections = 6;
    let second = config.write_to_atomically(&store, first).await?;
    assert_ne!(first, second);
    let entry = Database::atomic_read(&store).await?.unwrap();
    assert_eq!((TypedEntry::version(&entry), entry.connections), (second, 6));
    assert!(TypedEntry::created(&entry).is_some());
    assert_eq!(*Database::atomic_read_from(&store, Database::key()).await?.unwrap(), config);

    let lost = config.write_to_atomically(&store, first).await.unwrap_err();
    assert!(lost.is_conflict() && !lost.is_retryable());
    assert!(matches!(lost, KvWriteError::Store(KvError::RevisionMismatch { .. })));

    assert!(
        Database::delete_atomically(&store, Database::key(), first)
            .await
            .unwrap_err()
            .is_conflict()
    );
    Database::delete_atomically(&store, Database::key(), second).await?;
    assert_eq!(Database::read(&store).await?, None);
    config.create_write(&store).await?;
    assert!(matches!(
        config.create_write(&store).await,
        Err(KvWriteError::Store(KvError::AlreadyExists { .. }))
    ));
    Database::delete(&store).await?;
    config.create_write(&store).await?;
    Database::delete_anyway(&store, Database::key()).await?;
    Database::purge(&store, Database::key()).await?;
    assert_eq!(Database::read(&store).await?, None);
    Ok(())
}

#[tokio::test]
async fn short_forms_watch_and_update() -> Outcome {
    let store = store().await;
    let changes = Database::watch_value(&store).await?;
    assert!(matches!(changes.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    let updated =
        Database::modify_value(&store, |config| config.or_else(|| Some(Database::example())))
            .await?
            .unwrap();
    assert_eq!(*updated, Database::example());
    let update = changes.next().await.unwrap()?.into_entry().unwrap();
    assert_eq!(
        (TypedEntry::version(&update), TypedEntry::into_value(update)),
        (TypedEntry::version(&updated), Database::example())
    );
    Ok(())
}

/// A type needs only the codec that it uses.
#[tokio::test]
async fn types_can_be_read_only_or_write_only() -> Outcome {
    #[derive(Deserialize, JsonByteDes)]
    struct Reader {
        connections: u32,
    }
    impl StaticKeyIndexedValue for Reader {
        fn key() -> String {
            Database::key()
        }
    }

    #[derive(Serialize, JsonByteSer)]
    struct Writer<'a> {
        url: &'a str,
        password: &'a str,
        connections: u32,
    }
    impl StaticKeyIndexedValue for Writer<'_> {
        fn key() -> String {
            Database::key()
        }
    }

    let store = store().await;
    let version =
        Writer { url: "", password: SECRET, connections: 7 }.write_to_anyway(&store).await?;
    Writer { url: "", password: SECRET, connections: 8 }
        .write_to_atomically(&store, version)
        .await?;
    assert_eq!(Reader::read(&store).await?.unwrap().connections, 8);
    assert_eq!(Reader::atomic_read_from(&store, Reader::key()).await?.unwrap().connections, 8);
    Writer::delete(&store).await?;
    Writer { url: "", password: "", connections: 9 }.create_write(&store).await?;
    Reader::delete(&store).await?;
    Ok(())
}

#[tokio::test]
async fn decode_error_names_position_and_no_content() -> Outcome {
    let store = store().await;
    let text =
        format!("{{\n\"url\": \"\", \"password\": \"{SECRET}\", \"connections\": \"{SECRET}\"\n}}");
    let version = store.put("config.database", text).await?;
    let error = Database::read(&store).await.unwrap_err();
    let KvReadError::Decode { type_name, ref key, version: found, ref source, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((type_name, key.as_str(), found), ("Database", "config.database", version));
    assert_eq!(source.line_and_column(), Some((2, 58)));
    assert!(
        error.to_string().contains("invalid type: string, expected u32 at line 2, column 58"),
        "{error}"
    );
    assert!(!error.is_retryable());
    let mut shown = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        shown.push_str(&format!("{error} {error:?}"));
        cause = error.source();
    }
    assert!(!shown.contains(SECRET), "{shown}");

    // A writer that cannot read the value does not overwrite it.
    let error = Database::modify_value(&store, |_| Some(Database::example())).await.unwrap_err();
    assert!(matches!(error, KvWriteError::Read(KvReadError::Decode { .. })), "{error}");
    assert!(!error.to_string().contains(SECRET));
    assert_eq!(store.get("config.database").await?.unwrap().version, version);
    Ok(())
}

const MISPLACED: &str =
    "User cannot be under key 8: its own key is \"9\"; use that key, or correct the stored record";

#[tokio::test]
async fn a_record_under_another_key_is_a_mismatch() -> Outcome {
    let store = store().await;
    store.put("7", Database::example().to_bytes()?).await?;
    store.put("8", User::new(9, SECRET).to_bytes()?).await?;
    let error = Database::read_from(&store, "7").await.unwrap_err();
    assert!(
        matches!(&error, KvReadError::KeyMismatch { own, .. } if own == "config.database"),
        "{error}"
    );
    let error = User::read_from(&store, 8u64).await.unwrap_err();
    assert_eq!(error.to_string(), MISPLACED);
    assert!(matches!(
        User::atomic_read_from(&store, 8u64).await,
        Err(KvReadError::KeyMismatch { .. })
    ));
    Ok(())
}

/// A record's own key is shown like any key, but an invalid key may be content.
#[tokio::test]
async fn a_mismatch_shows_the_own_key_where_it_is_one_and_only_so_far() -> Outcome {
    #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes)]
    struct Note(String);
    impl KeyValue for Note {
        type Key = String;
        type Value = Self;
        fn kv_key(&self) -> String {
            self.0.clone()
        }
        fn kv_value(&self) -> &Self {
            self
        }
        fn from_kv(_key: String, value: Self) -> Self {
            value
        }
    }

    let store = store().await;
    for own in [format!("{SECRET} {SECRET}"), SECRET.repeat(10_000), String::new()] {
        store.put("a", Note(own.clone()).to_bytes()?).await?;
        let read = Note::read_from(&store, "a").await.err().unwrap();
        let message = "Note cannot be under key a: its own key is something that is no key; use that key, or ";
        assert_eq!(read.to_string(), format!("{message}correct the stored record"));
        assert!(!format!("{read:?}").contains(SECRET));
        store.purge("a").await?;
        let written = Note::modify(&store, "a", |_| Some(Note(own.clone()))).await.err().unwrap();
        assert_eq!(written.to_string(), message.trim_end_matches(", or "));
        assert!(!format!("{written:?}").contains(SECRET));
    }
    let own = "k".repeat(1000);
    store.put("a", Note(own.clone()).to_bytes()?).await?;
    let error = Note::read_from(&store, "a").await.err().unwrap();
    let KvReadError::KeyMismatch { own: shown, .. } = error else { panic!("{error}") };
    assert_eq!(shown, format!("{}…", &own[..79]));
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_none_is_refused_before_anything_is_sent() -> Outcome {
    let store = store().await;
    let bad = counter("a b", 1);
    for error in [
        bad.write_to_anyway(&store).await.unwrap_err(),
        bad.create_write(&store).await.unwrap_err(),
        Counter::delete_anyway(&store, "a b").await.unwrap_err(),
        Counter::purge(&store, "a b").await.unwrap_err(),
        Counter::modify(&store, "a b", |_| None).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, KvWriteError::Store(KvError::InvalidKey { position: 1, .. })),
            "{error}"
        );
    }
    for error in [
        Counter::read_from(&store, "a b").await.unwrap_err(),
        Counter::watch(&store, "a b").await.unwrap_err(),
        Counter::history_read_from(&store, "a b").await.unwrap_err(),
    ] {
        assert!(
            matches!(error, KvReadError::Store(KvError::InvalidKey { position: 1, .. })),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn many_records_keep_their_places() -> Outcome {
    let store = store().await;
    let users = [User::new(1, "a"), User::new(2, "b")];
    let written = User::write_many(&store, &users).await;
    assert!(written.iter().all(Result::is_ok));
    store.put("4", SECRET).await?;
    let read = User::read_many(&store, [2u64, 3, 4, 1]).await?;
    assert_eq!(read[0].as_ref().unwrap(), &Some(User::new(2, "b")));
    assert_eq!(read[1].as_ref().unwrap(), &None);
    assert!(matches!(&read[2], Err(KvReadError::Decode { key, .. }) if key == "4"));
    assert_eq!(read[3].as_ref().unwrap(), &Some(User::new(1, "a")));

    let read = Counter::read_many(&store, ["none", "a b", "other"]).await?;
    assert!(matches!(
        read[..],
        [Ok(None), Err(KvReadError::Store(KvError::InvalidKey { .. })), Ok(None)]
    ));

    let counters =
        vec![counter("a", 1), counter("a b", 1), counter("c", u64::MAX), counter("d", 4)];
    let written = Counter::write_many(&store, counters).await;
    assert!(matches!(
        written[..],
        [
            Ok(_),
            Err(KvWriteError::Store(KvError::InvalidKey { .. })),
            Err(KvWriteError::Encode { type_name: "Counter", .. }),
            Ok(_)
        ]
    ));
    assert_eq!(Counter::read_from(&store, "d").await?, Some(counter("d", 4)));
    Ok(())
}

/// The positions of the results take as long for many rejected records as for few.
#[tokio::test]
async fn many_refused_records_take_no_longer() {
    const EACH: usize = 60_000;
    let store = store().await;
    let refused = (0..EACH).map(|_| counter("a", u64::MAX));
    let records = refused.chain((0..EACH).map(|_| counter("a", 1))).collect::<Vec<_>>();
    let start = std::time::Instant::now();
    let written = Counter::write_many(&store, records).await;
    // This takes a fraction of a second. It took twenty seconds when each result was put into its
    // place separately.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(written.len(), 2 * EACH);
    assert!(
        written[..EACH].iter().all(Result::is_err) && written[EACH..].iter().all(Result::is_ok)
    );
}

#[tokio::test]
async fn history_shows_each_version_by_itself() -> Outcome {
    let store = store_with(StoreConfig::new().history(10)).await;
    assert!(Counter::history_read_from(&store, "a").await?.is_empty());
    counter("a", 1).write_to_anyway(&store).await?;
    let bad = store.put("a", SECRET).await?;
    let gone = Counter::delete_anyway(&store, "a").await?;
    let last = counter("a", 2).write_to_anyway(&store).await?;
    let history = Counter::history_read_from(&store, "a").await?;
    assert_eq!(history.len(), 4);
    assert!(matches!(&history[0], Ok(TypedUpdate::Put(entry)) if **entry == counter("a", 1)));
    assert!(matches!(&history[1], Err(KvReadError::Decode { version, .. }) if *version == bad));
    assert!(matches!(
        &history[2],
        Ok(TypedUpdate::Delete { key, version, operation: KvOperation::Delete, .. })
            if key == "a" && *version == gone
    ));
    assert!(
        matches!(&history[3], Ok(TypedUpdate::Put(entry)) if TypedEntry::version(entry) == last)
    );
    Ok(())
}

#[tokio::test]
async fn a_watch_goes_on_over_a_bad_value() -> Outcome {
    let store = store().await;
    counter("a", 1).write_to_anyway(&store).await?;
    // The variable is not `mut`.
    let watch = Counter::watch(&store, "a").await?;
    assert_eq!(watch.cursor(), None);
    let entry = watch.next().await.unwrap()?.into_entry().unwrap();
    assert_eq!(*entry, counter("a", 1));
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    let cursor = watch.cursor().unwrap();

    counter("b", 1).write_to_anyway(&store).await?;
    store.put("a", SECRET).await?;
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(
        matches!(error, KvReadError::Decode { .. })
            && !format!("{error} {error:?}").contains(SECRET)
    );
    assert_ne!(watch.cursor().unwrap(), cursor);
    Counter::delete_anyway(&store, "a").await?;
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::Delete { key, .. })) if key == "a"));
    counter("a", 2).write_to_anyway(&store).await?;
    assert!(
        matches!(watch.next().await, Some(Ok(TypedUpdate::Put(entry))) if entry.count == Count(2))
    );

    let mut again = Counter::watch_scope_from(&store, Key::new("a")?, cursor).await?;
    let mut seen = Vec::new();
    while let Some(update) = StreamExt::next(&mut again).await {
        match update {
            Ok(TypedUpdate::CaughtUp) => break,
            update => seen.push(update),
        }
    }
    assert!(matches!(seen.last(), Some(Ok(TypedUpdate::Put(entry))) if entry.count == Count(2)));
    assert!(again.cursor().is_some());
    Ok(())
}

#[tokio::test]
async fn a_watch_is_shared_and_its_cursor_can_be_asked_for_meanwhile() -> Outcome {
    let store = store().await;
    let watch = Arc::new(Counter::watch_all(&store).await?);
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    let tasks = [1, 2].map(|_| {
        let watch = Arc::clone(&watch);
        tokio::spawn(async move {
            TypedEntry::into_value(watch.next().await.unwrap().unwrap().into_entry().unwrap())
        })
    });
    tokio::task::yield_now().await;
    assert!(watch.cursor().is_some());
    counter("a", 1).write_to_anyway(&store).await?;
    counter("b", 2).write_to_anyway(&store).await?;
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await?.name);
    }
    seen.sort();
    assert_eq!(seen, ["a", "b"]);
    Ok(())
}

async fn caught_up(store: &Store) -> TypedWatch<Counter> {
    let watch = Counter::watch_all(store).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    watch
}

async fn next_name(watch: &TypedWatch<Counter>) -> String {
    TypedEntry::into_value(watch.next().await.unwrap().unwrap().into_entry().unwrap()).name
}

/// Polls once, as this task.
async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(future.poll_unpin(cx).is_pending())).await
}

/// A future of `next` that was polled and then left alone blocks no other.
#[tokio::test(start_paused = true)]
async fn a_kept_next_holds_up_no_other() -> Outcome {
    let store = store().await;
    let watch = caught_up(&store).await;
    let mut kept = Box::pin(next_name(&watch));
    assert!(is_pending(&mut kept).await);
    let other = async {
        let other = next_name(&watch);
        let write = async { counter("a", 1).write_to_anyway(&store).await };
        let (name, written) = tokio::join!(other, write);
        written.map(|_| name)
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), other).await??, "a");
    assert!(watch.cursor().is_some());
    assert!(is_pending(&mut kept).await);
    counter("b", 1).write_to_anyway(&store).await?;
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), kept).await?, "b");
    Ok(())
}

/// Two futures in one task, which has one waker: the second is woken too when the first is done.
#[tokio::test(start_paused = true)]
async fn two_nexts_of_one_task_each_get_an_update() -> Outcome {
    let store = store().await;
    let watch = caught_up(&store).await;
    let writes = async {
        for name in ["a", "b"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
            counter(name, 1).write_to_anyway(&store).await.unwrap();
        }
    };
    let both = async { tokio::join!(next_name(&watch), next_name(&watch), writes) };
    let (one, two, ()) = tokio::time::timeout(Duration::from_secs(1), both).await?;
    assert_ne!(one, two);
    Ok(())
}

/// If any of several tasks stops waiting, the others are still woken, and nothing is lost.
#[tokio::test(start_paused = true)]
async fn wake_ups_are_not_lost_with_those_that_stop_to_wait() -> Outcome {
    for gone in 0..3 {
        let store = store().await;
        let watch = Arc::new(caught_up(&store).await);
        let mut tasks = (0..3)
            .map(|_| {
                let watch = Arc::clone(&watch);
                tokio::spawn(async move { next_name(&watch).await })
            })
            .collect::<Vec<_>>();
        tokio::time::sleep(Duration::from_millis(1)).await;
        // Woken by the write, and aborted before it can take the update.
        counter("a", 1).write_to_anyway(&store).await?;
        tasks.remove(gone).abort();
        counter("b", 1).write_to_anyway(&store).await?;
        let mut names = Vec::new();
        for task in tasks {
            names.push(tokio::time::timeout(Duration::from_secs(1), task).await??);
        }
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_a_watch() -> Outcome {
    const TASKS: usize = 8;
    const EACH: usize = 200;
    let store = store().await;
    let watch = Arc::new(caught_up(&store).await);
    let tasks = (0..TASKS).map(|_| {
        let watch = Arc::clone(&watch);
        tokio::spawn(async move {
            let mut names = Vec::new();
            for _ in 0..EACH {
                names.push(next_name(&watch).await);
            }
            names
        })
    });
    let tasks = tasks.collect::<Vec<_>>();
    for number in 0..TASKS * EACH {
        // Each has a key of its own, so that none is superseded.
        counter(&number.to_string(), 1).write_to_anyway(&store).await?;
        if number % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut names = Vec::new();
    for task in tasks {
        names.extend(tokio::time::timeout(Duration::from_secs(20), task).await??);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), TASKS * EACH);
    Ok(())
}

#[tokio::test]
async fn scopes_name_the_keys_that_are_not_of_the_type() -> Outcome {
    let store = store().await;
    User::write_many(&store, [User::new(1, "a"), User::new(2, "b")]).await;
    store.put("x", "{}").await?;
    store.put("007", User::new(7, "bond").to_bytes()?).await?;
    let (mut users, mut errors) = (Vec::new(), BTreeMap::new());
    let list = User::list(&store);
    while let Some(record) = list.next().await {
        match record {
            Ok(entry) => users.push(TypedEntry::into_value(entry)),
            Err(KvReadError::InvalidRecordKey { type_name: "User", key, reason, .. }) => {
                errors.insert(key.to_string(), reason);
            }
            Err(KvReadError::KeyMismatch { read_under, own, .. }) => {
                errors.insert(read_under.to_string(), own);
            }
            Err(error) => return Err(error.into()),
        }
    }
    users.sort_by_key(|user| user.id);
    assert_eq!(users, [User::new(1, "a"), User::new(2, "b")]);
    assert_eq!(errors.keys().collect::<Vec<_>>(), ["007", "x"]);
    assert_eq!(errors["x"], "invalid digit found in string");
    assert_eq!(errors["007"], "7");
    assert!(matches!(
        User::list(&store).try_collect().await,
        Err(KvReadError::InvalidRecordKey { .. } | KvReadError::KeyMismatch { .. })
    ));
    assert_eq!(User::list_scope(&store, Key::new("1")?).try_collect().await?.len(), 1);

    let watch = User::watch_scope(&store, WatchScope::prefixes(["1", "x"])).await?;
    let (mut good, mut bad) = (0, 0);
    loop {
        match watch.next().await.unwrap() {
            Ok(TypedUpdate::CaughtUp) => break,
            Ok(_) => good += 1,
            Err(KvReadError::InvalidRecordKey { key, .. }) if key == "x" => bad += 1,
            Err(error) => return Err(error.into()),
        }
    }
    assert_eq!((good, bad), (1, 1));

    // A static type's scope is its key.
    Database::example().write_to_anyway(&store).await?;
    store.put("config.database2", SECRET).await?;
    assert_eq!(Database::list(&store).try_collect().await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modify_loses_nothing_under_contention() -> Outcome {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 25;
    let store = store().await;
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                Counter::modify(&store, "hits", |hits| Some(increment("hits", hits)))
                    .await
                    .unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await?;
    }
    assert_eq!(Counter::read_from(&store, "hits").await?, Some(counter("hits", TASKS * ROUNDS)));
    Ok(())
}

#[tokio::test]
async fn modify_creates_changes_leaves_and_refuses() -> Outcome {
    let store = store().await;
    assert!(Counter::modify(&store, "a", |found| found).await?.is_none());
    let created = Counter::modify(&store, "a", |found| Some(increment("a", found))).await?.unwrap();
    assert_eq!((created.count.0, TypedEntry::created(&created)), (1, None));
    // The record stays unchanged, without a write.
    let left = Counter::modify(&store, "a", |_| None).await?.unwrap();
    assert_eq!((TypedEntry::version(&left), left.count.0), (TypedEntry::version(&created), 1));
    // Modifies over a tombstone.
    Counter::delete_anyway(&store, "a").await?;
    let mut found = Some(true);
    let again = Counter::modify(&store, "a", |counter| {
        found = Some(counter.is_some());
        Some(increment("a", counter))
    });
    assert_eq!(again.await?.unwrap().count.0, 1);
    assert_eq!(found, Some(false));

    let error = Counter::modify(&store, "a", |_| Some(counter("b", 1))).await.unwrap_err();
    assert!(
        matches!(&error, KvWriteError::KeyMismatch { key, own, .. } if key == "a" && own == "b"),
        "{error}"
    );
    let error = Counter::modify(&store, "a", |_| Some(counter("a", u64::MAX))).await.unwrap_err();
    assert_eq!(error.to_string(), "Counter for key a cannot be encoded: the count is at its end");
    assert!(!error.is_conflict() && !error.is_retryable());
    assert_eq!(Counter::read_from(&store, "b").await?, None);
    Ok(())
}

#[derive(Debug)]
enum Declined {
    Store(KvWriteError),
    Enough(u64),
}

impl From<KvWriteError> for Declined {
    fn from(error: KvWriteError) -> Self {
        Self::Store(error)
    }
}

#[tokio::test]
async fn modify_deletes_the_version_it_has_read() -> Outcome {
    let store = store().await;
    assert!(Counter::modify(&store, "a", |_| Modify::Delete).await?.is_none());
    assert!(store.entry("a").await?.is_none(), "deleting an absent record writes nothing");
    counter("a", 1).write_to_anyway(&store).await?;
    // Another process writes between the read and the deletion of the first attempt.
    let mut attempts = 0;
    let (other, seen) = (store.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let left = Counter::modify(&store, "a", |found: Option<Counter>| {
        attempts += 1;
        let (other, seen, attempt) = (other.clone(), Arc::clone(&seen), attempts);
        ModifyAsync(async move {
            seen.lock().unwrap().push(found.map(|found| found.count.0));
            if attempt == 1 {
                counter("a", 2).write_to_anyway(&other).await?;
            }
            Ok::<_, KvWriteError>(Modify::Delete)
        })
    });
    assert!(left.await?.is_none());
    assert_eq!(*seen.lock().unwrap(), [Some(1), Some(2)]);
    assert_eq!(Counter::read_from(&store, "a").await?, None);
    Ok(())
}

#[tokio::test]
async fn modify_returns_the_error_of_its_change() -> Outcome {
    let store = store().await;
    let version = counter("a", 7).write_to_anyway(&store).await?;
    let refused = Counter::modify(&store, "a", |found| match found {
        Some(found) if found.count.0 > 5 => Err(Declined::Enough(found.count.0)),
        found => Ok(Some(increment("a", found))),
    });
    assert!(matches!(refused.await, Err(Declined::Enough(7))));
    assert_eq!(store.get("a").await?.map(|entry| entry.version), Some(version));
    // A closure of the same type that does not decline.
    let changed = Counter::modify(&store, "b", |found| match found {
        Some(found) => Err(Declined::Enough(found.count.0)),
        found => Ok(Some(increment("b", found))),
    });
    assert_eq!(changed.await.unwrap().unwrap().count.0, 1);
    // The library's own errors are converted to that error type.
    let other = Counter::modify(&store, "a", |_| Ok::<_, Declined>(Some(counter("b", 1)))).await;
    assert!(matches!(other, Err(Declined::Store(KvWriteError::KeyMismatch { .. }))));
    Ok(())
}

/// The deadline of `modify` includes the time of the change, and drops its future.
#[tokio::test(start_paused = true)]
async fn modify_bounds_a_waiting_change() -> Outcome {
    let store = store().await.with_deadline(Duration::from_secs(1));
    counter("a", 1).write_to_anyway(&store).await?;
    let alive = Arc::new(());
    let begun = tokio::time::Instant::now();
    let error = Counter::modify(&store, "a", |found: Option<Counter>| {
        let alive = Arc::clone(&alive);
        ModifyAsync(async move {
            std::future::pending::<()>().await;
            drop(alive);
            found
        })
    });
    let error = error.await.unwrap_err().to_string();
    assert!(error.starts_with("modify of key a did not end within 1s"), "{error}");
    assert!(begun.elapsed() <= Duration::from_millis(1_010));
    assert_eq!(Arc::strong_count(&alive), 1);
    // Dropping the future of `modify` drops the future of its change.
    let pending = Counter::modify(&store, "a", |found: Option<Counter>| {
        let alive = Arc::clone(&alive);
        ModifyAsync(async move {
            std::future::pending::<()>().await;
            drop(alive);
            found
        })
    });
    assert!(pending.now_or_never().is_none());
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_eq!(Counter::read_from(&store, "a").await?, Some(counter("a", 1)));
    Ok(())
}

/// No stream needs `mut`, and several tasks can read one stream: every item arrives once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_is_read_through_a_shared_reference() -> Outcome {
    const RECORDS: u64 = 200;
    let store = store().await;
    for count in 0..RECORDS {
        counter(&format!("k{count}"), count).write_to_anyway(&store).await?;
    }
    let (watch, scan) = (store.watch(WatchScope::All).await?, store.scan(WatchScope::All));
    let (keys, list, map) =
        (store.keys(WatchScope::All), Counter::list(&store), Counter::live_map(&store).await?);
    let (changes, live) = (map.changes(), Counter::live_at(&store, "k1").await?);
    let (values, statuses) = (live.stream(), live.statuses());
    let count = AtomicU32::new(0);
    let read = async || {
        while scan.next().await.is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(read(), read(), read());
    assert_eq!(count.load(Ordering::Relaxed), u32::try_from(RECORDS)?);
    counter("k1", 1000).write_to_anyway(&store).await?;
    assert_eq!(changes.next().await.unwrap().new.unwrap().count.0, 1000);
    assert_eq!(values.next().await.unwrap().count.0, 1);
    assert!(
        statuses.next().await.is_some()
            && watch.next().await.is_some()
            && keys.next().await.is_some()
    );
    assert!(list.next().await.is_some());
    Ok(())
}

/// Another writer always writes first: `modify` gives up after a bounded number of attempts.
#[tokio::test(start_paused = true)]
async fn modify_gives_up_when_it_always_loses() -> Outcome {
    let store = store_with(StoreConfig::new().deadline(Duration::from_secs(60))).await;
    counter("a", 0).write_to_anyway(&store).await?;
    let attempts = AtomicU32::new(0);
    let other = store.clone();
    let error = Counter::modify(&store, "a", |found| {
        attempts.fetch_add(1, Ordering::Relaxed);
        let count = u64::from(attempts.load(Ordering::Relaxed));
        counter("a", count).write_to_anyway(&other).now_or_never();
        Some(increment("a", found))
    })
    .await;
    let written = Counter::read_from(&store, "a").await?.unwrap().count.0;
    match error {
        Err(KvWriteError::Contended { ref key, attempts: tried, .. }) => {
            assert_eq!((key.as_str(), tried, attempts.load(Ordering::Relaxed)), ("a", 32, 32));
            assert_eq!(written, 32);
            let error = error.unwrap_err();
            assert!(error.is_conflict() && error.is_retryable());
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

/// Returns a store with slow reads and writes, and the plan that counts them.
fn slow(inner: &Store, read: u64, write: u64) -> (Arc<Plan>, Store) {
    let plan = Arc::new(Plan::default());
    plan.add(On::call("entry"), Fault::delay(Duration::from_millis(read)));
    for name in ["create", "update"] {
        plan.add(On::call(name), Fault::delay(Duration::from_millis(write)));
    }
    let store = FaultyStore::over(inner, &plan).with_deadline(Duration::from_secs(1));
    (plan, store)
}

/// The deadline covers the whole: reading and writing share it, and the error names the configured
/// one.
#[tokio::test(start_paused = true)]
async fn modify_has_one_deadline_for_reading_and_writing() -> Outcome {
    let inner = store().await;
    // The time of a read, the time of a write, and the number of started writes.
    for (read, write, writes) in [(700, 700, 1), (1_000, 0, 0), (2_000, 0, 0), (0, 2_000, 1)] {
        for exists in [false, true] {
            inner.purge("a").await?;
            if exists {
                counter("a", 1).write_to_anyway(&inner).await?;
            }
            let (plan, store) = slow(&inner, read, write);
            let start = tokio::time::Instant::now();
            let error = Counter::modify(&store, "a", |found| Some(increment("a", found)))
                .await
                .unwrap_err();
            let took = start.elapsed();
            let text = error.to_string();
            assert!(
                text.starts_with("modify of key a did not end within 1s; "),
                "{read} {write}: {text}"
            );
            assert!(took <= Duration::from_millis(1_010), "{read} {write}: {took:?}");
            let begun = plan.calls("create") + plan.calls("update");
            assert_eq!(begun, writes, "{read} {write}");
            let found = Counter::read_from(&inner, "a").await?;
            assert_eq!(found, exists.then(|| counter("a", 1)), "{read} {write}");
        }
    }
    let (_, store) = slow(&inner, 400, 400);
    assert_eq!(
        Counter::modify(&store, "a", |found| Some(increment("a", found))).await?.unwrap().count.0,
        2
    );
    Ok(())
}

/// Every future of the layer can be spawned, whatever the record is.
#[test]
fn futures_are_send() {
    fn is_send<T: Send>(_: T) {}
    fn all<T>(store: &Store, record: &T, key: fn() -> T::Key)
    where
        T: KeyValue<Value: ByteSerialize + ByteDeserialize> + Send,
    {
        is_send(T::read_from(store, key()));
        is_send(T::atomic_read_from(store, key()));
        is_send(T::history_read_from(store, key()));
        is_send(T::read_many(store, [key()]));
        is_send(T::watch(store, key()));
        is_send(T::list(store));
        is_send(T::modify(store, key(), |found| found));
        is_send(record.write_to_anyway(store));
        is_send(record.create_write(store));
        is_send(T::write_many(store, [record]));
        is_send(T::delete_anyway(store, key()));
    }
    fn watched<T: KeyValue<Value: ByteDeserialize>>(watch: &shizuku_kv::TypedWatch<T>) {
        is_send(watch.next());
    }
    let _ = (all::<Counter>, all::<Database>, watched::<Counter>);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Random JSON around a secret, whole and truncated: no error ever shows it.
    #[test]
    fn errors_never_show_a_secret(
        text in "[\"`',:\\\\ {}\\[\\]a-z0-9é]{0,12}",
        field in "(url|password|connections|other)",
        wrap in 0usize..5,
        cut in 0usize..200,
    ) {
        let secret = format!("{text}{SECRET}{text}");
        let value = match wrap {
            0 => serde_json::json!({ field: secret }),
            1 => serde_json::json!({ field: [secret] }),
            2 => serde_json::json!({ field: { secret.clone(): secret } }),
            3 => serde_json::json!({ secret.clone(): secret }),
            _ => serde_json::json!([secret, 1]),
        };
        let mut bytes = value.to_string().into_bytes();
        bytes.truncate(cut);
        if let Err(error) = Database::from_bytes(&Bytes::from(bytes)) {
            let shown = format!("{error} {error:?}");
            prop_assert!(!shown.contains("hunter"), "{}", shown);
        }
    }
}
