//! The typed layer on a real store: point operations, bulk, history, watches, and rejections.

use std::collections::BTreeMap;
use std::error::Error;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    ByteDeserialize, ByteSerialize, JsonByteDes, JsonByteSer, Key, KeyValue, KeyValueRead,
    KeyValueWrite, KvError, KvOperation, KvReadError, KvWriteError, StaticKeyIndexedValue, Store,
    StoreConfig, TypedEntry, TypedUpdate, WatchScope,
};

use crate::Outcome;
use crate::fixture::{Count, Counter, Database, SECRET, User, counter, store, store_with};

#[tokio::test]
async fn static_record_is_read_written_swapped_and_deleted() -> Outcome {
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
async fn record_under_another_key_is_a_mismatch() -> Outcome {
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
async fn mismatch_shows_a_valid_own_key_up_to_a_length() -> Outcome {
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
async fn invalid_key_is_rejected_before_any_request() -> Outcome {
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
async fn many_records_keep_their_positions() -> Outcome {
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
async fn watch_continues_after_a_bad_value() -> Outcome {
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
