//! Tests of the derives' output, in every form.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod codecs;
mod foreign_keys;
mod hygiene;
mod keys;
mod options;
mod round_trips;
mod shadowing;
mod text_keys;

use std::error::Error;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    JsonByteDes, JsonByteSer, KeyValue, KeyValueRead, KeyValueWrite, KvReadError,
    StaticKeyIndexedValue, Store,
};

type Outcome = Result<(), Box<dyn Error>>;

async fn store() -> Store {
    shizuku_kv::connect("memory:").await.unwrap().store("derived").await.unwrap()
}

#[derive(
    Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue,
)]
#[kv(key = "config.flags")]
struct Flags {
    dark: bool,
}

#[derive(
    Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue,
)]
#[kv(key = "config.mode")]
enum Mode {
    Plain,
    Tls { verify: bool },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    id: u64,
    tenant: String,
    name: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "session.{id}.state")]
struct Session {
    id: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "{1}.at.{0}")]
struct Place(u8, String, bool);

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
struct Job {
    #[kv(key)]
    id: String,
    runs: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
struct Limits {
    requests: u32,
}

#[derive(Debug, PartialEq, KeyValue)]
struct NamedLimits {
    #[kv(value)]
    limits: Limits,
    #[kv(key)]
    name: String,
}

#[derive(Debug, PartialEq, KeyValue)]
struct Text(#[kv(key)] u32, #[kv(value)] String);

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "r.{type}.{r#match}")]
struct Raw {
    r#type: String,
    r#match: u8,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "generic.{id}")]
struct Generic<T, const N: usize>
where
    T: Clone + Default,
{
    id: String,
    inner: T,
    #[serde(skip)]
    size: std::marker::PhantomData<[u8; N]>,
}

#[derive(
    Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue,
)]
#[kv(key = "wrapped")]
struct Wrapped<T>(T);

#[derive(Debug, PartialEq, Serialize, JsonByteSer, KeyValue)]
#[kv(key = "borrowed.{id}")]
struct Borrowed<'a> {
    id: u32,
    text: &'a str,
}

#[derive(Debug, PartialEq, KeyValue)]
struct Held<K: Clone, V>(#[kv(key)] K, #[kv(value)] V)
where
    K: shizuku_kv::RecordKey;

#[tokio::test]
async fn static_keys() -> Outcome {
    let store = store().await;
    assert_eq!((Flags::key(), Mode::key()), ("config.flags".to_owned(), "config.mode".to_owned()));
    Flags { dark: true }.write_to_anyway(&store).await?;
    Mode::Tls { verify: true }.create_write(&store).await?;
    Wrapped(7).write_to_anyway(&store).await?;
    assert_eq!(Flags::read(&store).await?, Some(Flags { dark: true }));
    assert_eq!(Mode::read_from(&store, Mode::key()).await?, Some(Mode::Tls { verify: true }));
    assert_eq!(Wrapped::<u8>::read(&store).await?, Some(Wrapped(7)));
    assert_ne!(Mode::Plain, Mode::Tls { verify: false });
    assert_eq!(store.get("config.flags").await?.unwrap().value, "{\"dark\":true}");
    Ok(())
}

#[tokio::test]
async fn template_over_fields() -> Outcome {
    let store = store().await;
    let user = User { id: 7, tenant: "a.b".to_owned(), name: "Ann".to_owned() };
    let key = user.kv_key();
    assert_eq!(key, UserKey { tenant: "a.b".to_owned(), id: 7 });
    assert_eq!(key, UserKey::from(("a.b".to_owned(), 7)));
    assert_eq!(key.to_string(), "user.a=2Eb.7");
    assert_eq!("user.a=2Eb.7".parse::<UserKey>()?, key);
    assert_eq!((UserKey::PREFIX, UserKey::TEMPLATE), ("user.", "user.{tenant}.{id}"));
    assert!(key < UserKey::from(("b".to_owned(), 1)));
    assert!(format!("{key:?}").starts_with("UserKey"));

    user.write_to_anyway(&store).await?;
    assert_eq!(User::read_from(&store, &key).await?, Some(user.clone()));
    assert_eq!(User::read_from(&store, ("a.b".to_owned(), 7)).await?, Some(user.clone()));
    assert_eq!(User::read_from(&store, ("a.b".to_owned(), 8)).await?, None);
    assert!(store.get(&key).await?.is_some());
    assert!(store.get(key.clone()).await?.is_some());

    // Lists its own records, and no other entry of the store.
    store.put("other", "x").await?;
    assert_eq!(User::list(&store).try_collect().await?.len(), 1);
    // A key under its prefix that is not one of its own is an error that names the key.
    store.put("user.7", "x").await?;
    store.put("user.a.007", "x").await?;
    let mut errors = Vec::new();
    let list = User::list(&store);
    while let Some(record) = list.next().await {
        if let Err(KvReadError::InvalidRecordKey { key, reason, .. }) = record {
            errors.push((key.to_string(), reason));
        }
    }
    errors.sort();
    assert_eq!(
        errors,
        [
            ("user.7".to_owned(), "too few tokens (a key here is \"user.{tenant}.{id}\")".to_owned()),
            (
                "user.a.007".to_owned(),
                "a field is not written as it would be printed (a key here is \"user.{tenant}.{id}\")"
                    .to_owned()
            ),
        ]
    );
    Ok(())
}

#[test]
fn keys_that_are_not_of_the_template_are_refused() {
    for (text, reason) in [
        ("", "\"\" stands where \"user\" should"),
        ("users.a.1", "\"users\" stands where \"user\" should"),
        ("user.a", "too few tokens"),
        ("user.a.1.2", "too many tokens"),
        ("user.a.x", "\"x\" is not a id: invalid digit found in string"),
        ("user.a=2eb.1", "the token \"a=2eb\" is not an escaped tenant"),
        ("user..1", "the token \"\" is not an escaped tenant"),
        ("user.a.+1", "the token \"+1\" is not an escaped id"),
        ("user.a.=2B1", "a field is not written as it would be printed"),
    ] {
        let error = text.parse::<UserKey>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{reason} (a key here is \"user.{{tenant}}.{{id}}\")"),
            "{text}"
        );
        assert_eq!(error.template(), UserKey::TEMPLATE);
    }
}

#[tokio::test]
async fn other_templates() -> Outcome {
    let session = Session { id: "x".to_owned() };
    assert_eq!(session.kv_key(), SessionKey::from("x".to_owned()));
    assert_eq!(session.kv_key(), SessionKey::from(("x".to_owned(),)));
    assert_eq!(SessionKey { id: String::new() }.to_string(), "session.=.state");
    assert_eq!("session.=.state".parse::<SessionKey>()?.id, "");

    let place = Place(3, "here".to_owned(), true);
    assert_eq!(place.kv_key(), PlaceKey("here".to_owned(), 3));
    assert_eq!(place.kv_key().to_string(), "here.at.3");
    assert_eq!("here.at.3".parse::<PlaceKey>()?, place.kv_key());
    assert_eq!(PlaceKey::PREFIX, "");

    let raw = Raw { r#type: "t".to_owned(), r#match: 1 };
    assert_eq!(raw.kv_key(), RawKey { r#type: "t".to_owned(), r#match: 1 });
    assert_eq!(raw.kv_key().to_string(), "r.t.1");
    assert_eq!(RawKey::from_str("r.t.1")?, raw.kv_key());
    Ok(())
}

#[tokio::test]
async fn field_is_the_key() -> Outcome {
    let store = store().await;
    let job = Job { id: "jobs.1".to_owned(), runs: 2 };
    job.write_to_anyway(&store).await?;
    assert_eq!(Job::read_from(&store, "jobs.1").await?, Some(job));
    Ok(())
}

#[tokio::test]
async fn pair_of_key_and_value() -> Outcome {
    let store = store().await;
    let limits = NamedLimits { name: "api".to_owned(), limits: Limits { requests: 9 } };
    limits.write_to_anyway(&store).await?;
    Text(7, "seven".to_owned()).write_to_anyway(&store).await?;
    Held(8u8, "eight".to_owned()).write_to_anyway(&store).await?;
    assert_eq!(store.get("api").await?.unwrap().value, "{\"requests\":9}");
    assert_eq!(store.get("7").await?.unwrap().value, "seven");
    assert_eq!(NamedLimits::read_from(&store, "api").await?, Some(limits));
    assert_eq!(Text::read_from(&store, 7u32).await?, Some(Text(7, "seven".to_owned())));
    assert_eq!(Held::<u8, String>::read_from(&store, 8).await?, Some(Held(8, "eight".to_owned())));
    let changed = NamedLimits::modify(&store, "api", |found| {
        found.map(|found| NamedLimits { limits: Limits { requests: 10 }, ..found })
    });
    assert_eq!(changed.await?.unwrap().limits.requests, 10);
    Ok(())
}

#[tokio::test]
async fn generic_records() -> Outcome {
    let store = store().await;
    let record = Generic::<Vec<u8>, 4> {
        id: "g".to_owned(),
        inner: vec![1],
        size: std::marker::PhantomData,
    };
    record.write_to_anyway(&store).await?;
    assert_eq!(Generic::<Vec<u8>, 4>::read_from(&store, "g".to_owned()).await?, Some(record));
    let text = "text".to_owned();
    Borrowed { id: 1, text: &text }.write_to_anyway(&store).await?;
    assert!(store.get("borrowed.1").await?.is_some());
    Ok(())
}

/// A crate that re-exports the library under another name.
mod elsewhere {
    pub(crate) mod inner {
        pub(crate) use shizuku_kv as store;
    }
}

#[derive(
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    elsewhere::inner::store::JsonByteSer,
    elsewhere::inner::store::JsonByteDes,
    elsewhere::inner::store::KeyValue,
)]
#[kv(key = "moved.{id}", crate = crate::elsewhere::inner::store)]
struct Moved {
    id: u8,
}

#[derive(
    Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue,
)]
#[kv(key = "moved")]
#[kv(crate = elsewhere::inner::store)]
struct MovedStatic {
    id: u8,
}

#[tokio::test]
async fn library_can_have_another_path() -> Outcome {
    let store = store().await;
    Moved { id: 1 }.write_to_anyway(&store).await?;
    MovedStatic { id: 2 }.write_to_anyway(&store).await?;
    assert_eq!(Moved::read_from(&store, 1).await?, Some(Moved { id: 1 }));
    assert_eq!(MovedStatic::read(&store).await?, Some(MovedStatic { id: 2 }));
    Ok(())
}
