//! Operations of a type with a key that cannot be one of its own.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Bytes, Connection, KeyValue, KeyValueRead, KeyValueWrite, KvError, KvReadError, KvWriteError,
    LiveRead, StaticKeyIndexedValue, Store, StoreConfig, TypedUpdate, VersionToken, WatchScope,
};
use shizuku_kv_tests::{NatsServer, unique};

use super::{Outcome, store};

#[derive(Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limits", codec = json)]
struct Limits {
    most: u32,
}

/// Like [`Limits`], but expires.
#[derive(Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.brief", codec = json, ttl = "30s")]
struct Brief {
    most: u32,
}

/// A type by hand, in a scope of its own.
#[derive(Debug, PartialEq)]
struct Note {
    name: String,
    text: String,
}

impl KeyValue for Note {
    type Key = String;
    type Value = String;

    fn kv_key(&self) -> String {
        self.name.clone()
    }

    fn kv_value(&self) -> &String {
        &self.text
    }

    fn from_kv(name: String, text: String) -> Self {
        Self { name, text }
    }

    fn kv_scope() -> Result<WatchScope, KvError> {
        Ok(WatchScope::prefix("note."))
    }
}

/// Prints a form that it does not parse.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Loud(String);

impl Display for Loud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_uppercase())
    }
}

impl FromStr for Loud {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(format!("{text}!")))
    }
}

#[derive(Debug, PartialEq, KeyValue)]
struct Shouted(#[kv(key)] Loud, #[kv(value)] String);

fn is_refused_read<T>(result: Result<T, KvReadError>) -> bool {
    matches!(
        result.err(),
        Some(KvReadError::KeyMismatch { read_under, own, .. }) if read_under == "k.x" && own == "config.limits"
    )
}

fn is_refused_write<T>(result: Result<T, KvWriteError>) -> bool {
    matches!(
        result.err(),
        Some(KvWriteError::KeyMismatch { key, own, .. }) if key == "k.x" && own == "config.limits"
    )
}

/// The program that destroyed another type's record, with every operation that takes a key.
#[tokio::test]
async fn operations_of_a_fixed_key_reject_other_keys() -> Outcome {
    reject_every_other_key(&store().await).await?;
    let connection = shizuku_kv::connect(&NatsServer::shared().url()).await?;
    reject_every_other_key(&connection.store(&unique("foreign-keys")).await?).await
}

async fn reject_every_other_key(store: &Store) -> Outcome {
    let version = store.put("k.x", "of another").await?;
    let token = shizuku_kv::FencingToken::from_u64(1);
    assert!(is_refused_write(Limits::delete_anyway(store, "k.x").await));
    // The key is rejected before the version.
    for version in [version, VersionToken::from_u64(99)] {
        assert!(is_refused_write(Limits::delete_atomically(store, "k.x", version).await));
    }
    assert!(is_refused_write(Limits::delete_fenced(store, "k.x", token).await));
    assert!(is_refused_write(Limits::purge(store, "k.x").await));
    let unchanged: fn(Option<Limits>) -> Option<Limits> = |limits| limits;
    assert!(is_refused_write(Limits::modify(store, "k.x", unchanged).await));

    assert!(is_refused_read(Limits::read_from(store, "k.x").await));
    assert!(is_refused_read(Limits::atomic_read_from(store, "k.x").await));
    assert!(is_refused_read(Limits::history_read_from(store, "k.x").await));
    assert!(is_refused_read(Limits::watch(store, "k.x").await));
    assert!(is_refused_read(Limits::live_at(store, "k.x").await));
    assert!(is_refused_read(Limits::live_at_or(store, "k.x", Limits { most: 1 }).await));
    assert!(is_refused_read(Limits::live_at_optional(store, "k.x").await));
    let scope = || WatchScope::key("k.x");
    assert!(is_refused_read(Limits::watch_scope(store, scope()?).await));
    assert!(is_refused_read(Limits::live_map_scope(store, scope()?).await));
    let keys = WatchScope::keys(["config.limits", "k.x"])?;
    assert!(is_refused_read(Limits::list_scope(store, keys).try_collect().await));
    for result in Limits::read_many(store, ["k.x"]).await? {
        assert!(is_refused_read(result));
    }

    // No request was sent, so every entry is unchanged. An absent key is rejected as well.
    assert_eq!(store.get("k.x").await?.ok_or("it is absent")?.version, version);
    assert!(matches!(
        Limits::delete_anyway(store, "k.y").await,
        Err(KvWriteError::KeyMismatch { key, .. }) if key == "k.y"
    ));
    assert!(matches!(Limits::read_from(store, "k.y").await, Err(KvReadError::KeyMismatch { .. })));
    Ok(())
}

#[tokio::test]
async fn operations_of_an_expiring_type_reject_every_other_key() -> Outcome {
    let connection = shizuku_kv::connect("memory:").await?;
    let store = connection.store_with_config("brief", StoreConfig::new().key_ttl(true)).await?;
    store.put("k.x", "of another").await?;
    let refused = Brief::modify(&store, "k.x", |_: Option<Brief>| Some(Brief { most: 1 })).await;
    assert!(matches!(refused, Err(KvWriteError::KeyMismatch { .. })), "{refused:?}");
    assert!(matches!(Brief::purge(&store, "k.x").await, Err(KvWriteError::KeyMismatch { .. })));
    assert_eq!(store.get("k.x").await?.ok_or("it is absent")?.value, "of another");
    Ok(())
}

#[tokio::test]
async fn operations_of_a_fixed_key_accept_it() -> Outcome {
    let store = store().await;
    let version = Limits { most: 1 }.write_to_anyway(&store).await?;
    assert_eq!(Limits::read_from(&store, Limits::key()).await?, Some(Limits { most: 1 }));
    Limits::delete_atomically(&store, Limits::key(), version).await?;
    Limits::delete_anyway(&store, Limits::key()).await?;
    Limits::purge(&store, "config.limits").await?;
    assert!(
        Limits::list_scope(&store, WatchScope::key(Limits::key())?).try_collect().await?.is_empty()
    );
    Ok(())
}

/// The scope of a type by hand applies to each of its keys.
#[tokio::test]
async fn operations_by_hand_reject_keys_outside_their_scope() -> Outcome {
    let store = store().await;
    let version = store.put("k.x", "of another").await?;
    let refused = Note::read_from(&store, "k.x").await;
    assert!(matches!(refused, Err(KvReadError::InvalidRecordKey { .. })), "{refused:?}");
    for refused in [Note::delete_anyway(&store, "k.x").await, Note::purge(&store, "k.x").await] {
        assert!(
            matches!(&refused, Err(KvWriteError::InvalidRecordKey { key, .. }) if key == "k.x"),
            "{refused:?}"
        );
    }
    // No listing would contain it.
    let astray = Note { name: "k.y".to_owned(), text: String::new() };
    for refused in [
        astray.write_to_anyway(&store).await,
        astray.write_to_atomically(&store, version).await,
        astray.create_write(&store).await,
        Note::write_many(&store, [&astray]).await.remove(0),
    ] {
        assert!(matches!(refused, Err(KvWriteError::InvalidRecordKey { .. })), "{refused:?}");
    }
    assert_eq!(store.get("k.y").await?, None);
    assert_eq!(store.get("k.x").await?.ok_or("it is absent")?.version, version);
    let note = Note { name: "note.a".to_owned(), text: "b".to_owned() };
    note.create_write(&store).await?;
    assert_eq!(Note::read_from(&store, "note.a").await?, Some(note));
    Note::delete_anyway(&store, "note.a").await?;
    Ok(())
}

/// A key that does not parse to itself would be written, but no listing and no watch would find it.
#[tokio::test]
async fn keys_that_do_not_parse_to_themselves_are_rejected() -> Outcome {
    let store = store().await;
    let loud = || Loud("a".to_owned());
    let refused = Shouted(loud(), "b".to_owned()).write_to_anyway(&store).await;
    assert!(
        matches!(&refused, Err(KvWriteError::InvalidRecordKey { key, .. }) if key == "A"),
        "{refused:?}"
    );
    let refused = Shouted::delete_anyway(&store, loud()).await;
    assert!(matches!(refused, Err(KvWriteError::InvalidRecordKey { .. })), "{refused:?}");
    let refused = Shouted::read_from(&store, loud()).await;
    assert!(matches!(refused, Err(KvReadError::InvalidRecordKey { .. })), "{refused:?}");
    assert_eq!(store.get("A").await?, None);
    Ok(())
}

/// A tombstone belongs to a key just like a value.
#[tokio::test]
async fn tombstones_of_other_keys_are_error_items() -> Outcome {
    #[derive(Debug, KeyValue)]
    struct Numbered(#[kv(key)] u32, #[kv(value)] Bytes);

    let store = store().await;
    for key in ["007", "k.x", "config.limits"] {
        store.put(key, "{}").await?;
        store.delete(key).await?;
    }
    let watch = Limits::watch_scope(&store, WatchScope::prefix("")).await?;
    let numbered = Numbered::watch_scope(&store, WatchScope::prefix("00")).await?;
    store.delete("007").await?;
    store.delete("k.x").await?;
    store.delete("config.limits").await?;
    let mut refused = Vec::new();
    loop {
        match watch.next().await.ok_or("it ended")? {
            Ok(TypedUpdate::Delete { key, .. }) if key == "config.limits" && refused.len() > 1 => {
                break;
            }
            Ok(TypedUpdate::Delete { key, .. }) => assert_eq!(key, "config.limits"),
            Ok(_) => {}
            Err(error) => refused.push(error.to_string()),
        }
    }
    assert!(refused.iter().any(|error| error.contains("k.x")), "{refused:?}");
    loop {
        match numbered.next().await.ok_or("it ended")? {
            Ok(TypedUpdate::CaughtUp) => {}
            Err(KvReadError::InvalidRecordKey { key, .. }) if key == "007" => break,
            other => return Err(format!("{other:?}").into()),
        }
    }
    Ok(())
}
