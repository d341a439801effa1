//! `bucket`, `validate`, `ttl`, `codec`, `key_type`, `key_serde`, and the scopes of key types.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    KeyValue, KeyValueRead, KeyValueWrite, KvError, KvOperation, KvReadError, KvWriteError,
    StaticKeyIndexedValue, Store, StoreConfig, TypedEntry, TypedUpdate, connect,
};

use shizuku_kv_tests::{NatsServer, TcpProxy, unique};

use super::{Outcome, store};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(
    key = "member.{tenant}.{team}.{id}",
    bucket = "members",
    codec = json,
    key_type = Membership,
    key_serde
)]
struct Member {
    tenant: String,
    team: String,
    id: u64,
    name: String,
}

fn member(tenant: &str, team: &str, id: u64) -> Member {
    Member { tenant: tenant.to_owned(), team: team.to_owned(), id, name: "Ann".to_owned() }
}

#[tokio::test]
async fn type_opens_its_bucket() -> Outcome {
    assert_eq!(Member::BUCKET, "members");
    let connection = connect("memory:").await?;
    // Works with the result of `connect`, and with a plain reference.
    let store = Member::open(&connection).await?;
    assert_eq!(store.name(), "members");
    member("a", "b", 1).write_to_anyway(&store).await?;
    let again = Member::open(connection.as_ref()).await?;
    assert_eq!(Member::read_from(&again, ("a", "b", 1)).await?, Some(member("a", "b", 1)));
    Ok(())
}

/// A tuple struct numbers its fields, and types other than `String` are used unchanged.
#[test]
fn scopes_of_a_tuple_struct() {
    #[allow(dead_code, reason = "only its key is used")]
    #[derive(KeyValue)]
    #[kv(key = "{1}.at.{0}.{2}")]
    struct Place(u8, String, char);

    assert!(PlaceKey::scope().matches("anything"));
    assert!(PlaceKey::scope_1("a.b").matches("a=2Eb.at.7.x"));
    assert!(PlaceKey::scope_0("a", 7).matches("a.at.7.x"));
    assert!(!PlaceKey::scope_0("a", 7).matches("a.at.77.x"));
    assert_eq!(PlaceKey::from(("a", 7, 'x')), PlaceKey("a".to_owned(), 7, 'x'));
}

#[test]
fn keys_are_text_for_serde() -> Outcome {
    let key = Membership::from(("acme.com", "r", 7));
    let json = serde_json::to_string(&key)?;
    assert_eq!(json, "\"member.acme=2Ecom.r.7\"");
    assert_eq!(serde_json::from_str::<Membership>(&json)?, key);
    let map = BTreeMap::from([(key.clone(), 1)]);
    let json = serde_json::to_string(&map)?;
    assert_eq!(json, "{\"member.acme=2Ecom.r.7\":1}");
    assert_eq!(serde_json::from_str::<BTreeMap<Membership, u8>>(&json)?, map);
    let error = serde_json::from_str::<Membership>("\"member.a\"").unwrap_err();
    assert!(error.to_string().starts_with("too few tokens (a key here is"), "{error}");
    assert!(serde_json::from_str::<Membership>("7").is_err());
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.pool", validate = Self::check, codec = json)]
struct Pool {
    least: u32,
    most: u32,
}

impl Pool {
    fn check(&self) -> Result<(), &'static str> {
        if self.least > self.most { Err("`least` is at most `most`") } else { Ok(()) }
    }
}

const GOOD: Pool = Pool { least: 1, most: 2 };
const BAD: Pool = Pool { least: 98_765, most: 0 };

fn assert_refused_write(outcome: Result<impl std::fmt::Debug, KvWriteError>) {
    match outcome {
        Err(error @ KvWriteError::Invalid { .. }) => {
            assert_eq!(
                error.to_string(),
                "Pool for key config.pool breaks its rule `Self::check`: `least` is at most `most`; correct it before \
                 it is written"
            );
            assert!(!error.is_retryable() && !error.is_conflict());
            assert!(!format!("{error:?}").contains("98765"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn rule_is_checked_before_every_write() -> Outcome {
    let store = store().await;
    assert_refused_write(BAD.create_write(&store).await);
    assert_refused_write(BAD.write_to_anyway(&store).await);
    assert_eq!(store.get("config.pool").await?, None);
    let version = GOOD.write_to_anyway(&store).await?;
    assert_refused_write(BAD.write_to_atomically(&store, version).await);
    assert_refused_write(Pool::modify_value(&store, |_| Some(BAD)).await);
    let mut many = Pool::write_many(&store, [BAD, GOOD]).await;
    let good = many.pop().ok_or("no second answer")??;
    assert_refused_write(many.pop().ok_or("no first answer")?);
    assert_eq!(
        Pool::atomic_read(&store)
            .await?
            .map(|pool| (TypedEntry::version(&pool), TypedEntry::into_value(pool))),
        Some((good, GOOD))
    );
    Ok(())
}

#[tokio::test]
async fn rule_is_checked_after_every_read() -> Outcome {
    let store = store().await;
    let version = store.put("config.pool", serde_json::to_vec(&BAD)?).await?;
    let check = |error: KvReadError| {
        let KvReadError::Invalid { type_name, key, version: found, source, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*type_name, key.as_str(), *found), ("Pool", "config.pool", version));
        assert_eq!((source.rule(), source.reason()), ("Self::check", "`least` is at most `most`"));
        assert!(!error.is_retryable());
        assert!(!format!("{error:?} {error}").contains("98765"));
    };
    check(Pool::read(&store).await.unwrap_err());
    check(Pool::read_from(&store, Pool::key()).await.unwrap_err());
    check(Pool::atomic_read(&store).await.unwrap_err());
    check(
        Pool::history_read_from(&store, Pool::key()).await?.pop().ok_or("no history")?.unwrap_err(),
    );
    check(Pool::read_many(&store, [Pool::key()]).await?.pop().ok_or("no answer")?.unwrap_err());
    check(Pool::list(&store).next().await.ok_or("no item")?.unwrap_err());
    match Pool::modify_value(&store, |_| -> Option<_> { panic!("it is not to be changed") }).await {
        Err(KvWriteError::Read(error)) => check(error),
        other => panic!("{other:?}"),
    }
    let watch = Pool::watch_value(&store).await?;
    check(watch.next().await.ok_or("no item")?.unwrap_err());
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    // The watch continues, and delivers the next valid value.
    GOOD.write_to_anyway(&store).await?;
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::Put(pool))) if *pool == GOOD));
    Ok(())
}

/// The rule of a record with a key sees key and value.
#[tokio::test]
async fn rule_sees_key_and_value_of_a_pair() -> Outcome {
    #[derive(Debug, PartialEq, KeyValue)]
    #[kv(validate = short)]
    struct Motto {
        #[kv(key)]
        name: String,
        #[kv(value)]
        text: String,
    }

    fn short(motto: &Motto) -> Result<(), &'static str> {
        if motto.text.len() > motto.name.len() { Err("no longer than its name") } else { Ok(()) }
    }

    let store = store().await;
    let motto = Motto { name: "abc".to_owned(), text: "abcd".to_owned() };
    let refused = motto.write_to_anyway(&store).await.unwrap_err();
    assert!(matches!(refused, KvWriteError::Invalid { source, .. } if source.rule() == "short"));
    store.put("ab", "abc").await?;
    assert!(matches!(Motto::read_from(&store, "ab").await, Err(KvReadError::Invalid { .. })));
    store.put("ab", "ab").await?;
    assert!(Motto::read_from(&store, "ab").await?.is_some());
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "session.{id}", bucket = "sessions", ttl = "30s", codec = json)]
struct Session {
    id: u32,
    user: String,
}

fn session(id: u32) -> Session {
    Session { id, user: "ann".to_owned() }
}

async fn is_there(store: &Store, id: u32) -> Result<bool, KvReadError> {
    Ok(Session::read_from(store, id).await?.is_some())
}

/// Every kind of write gives the record its time to live again.
#[tokio::test(start_paused = true)]
async fn records_with_a_time_to_live_expire_after_every_kind_of_write() -> Outcome {
    let connection = connect("memory:").await?;
    let store = Session::open(&connection).await?;
    assert_eq!(Session::kv_ttl(), Some(Duration::from_secs(30)));
    let almost = Duration::from_secs(29);
    let past = Duration::from_secs(2);

    session(1).create_write(&store).await?;
    tokio::time::advance(almost).await;
    assert!(is_there(&store, 1).await?);
    session(1).write_to_anyway(&store).await?;
    tokio::time::advance(almost).await;
    let found = Session::atomic_read_from(&store, 1).await?.ok_or("it has expired")?;
    session(1).write_to_atomically(&store, TypedEntry::version(&found)).await?;
    tokio::time::advance(almost).await;
    assert!(Session::modify(&store, 1, |session| session).await?.is_some());
    tokio::time::advance(almost).await;
    let answers =
        Session::write_many(&store, [session(1), session(2), session(1), session(3)]).await;
    let versions = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    // The results have the given order, even for a repeated key.
    let found = Session::atomic_read_from(&store, 1).await?.ok_or("it has expired")?;
    assert_eq!(TypedEntry::version(&found), versions[2]);
    tokio::time::advance(almost).await;
    for id in 1..=3 {
        assert!(is_there(&store, id).await?);
    }
    tokio::time::advance(past).await;
    for id in 1..=3 {
        assert!(!is_there(&store, id).await?);
    }
    // `create` succeeds over an expired record.
    session(1).create_write(&store).await?;
    Session::modify(&store, 4, |_| Some(session(4))).await?;
    tokio::time::advance(almost + past).await;
    assert!(!is_there(&store, 1).await? && !is_there(&store, 4).await?);
    Ok(())
}

/// A store without times to live rejects a record that has one, and does not keep it for ever.
#[tokio::test]
async fn store_without_times_to_live_rejects_expiring_records() -> Outcome {
    let connection = connect("memory:").await?;
    let store = connection.store_with_config("plain", StoreConfig::new()).await?;
    let check = |outcome: Result<_, KvWriteError>| match outcome {
        Err(KvWriteError::Store(KvError::Unsupported { operation, reason, .. })) => {
            assert_eq!(
                reason,
                "Session has a time to live, and store \"plain\" has no times to live for single keys: open it with \
                 `StoreConfig::new().key_ttl(true)`, and with `.reconcile()` if it was created without",
                "{operation}"
            );
        }
        other => panic!("{other:?}"),
    };
    check(session(1).create_write(&store).await);
    check(session(1).write_to_anyway(&store).await);
    let version = store.put("other", "x").await?;
    check(session(1).write_to_atomically(&store, version).await);
    check(Session::write_many(&store, [session(1)]).await.remove(0));
    check(Session::modify(&store, 1, |_| Some(session(1))).await.map(|_| version));
    assert!(!is_there(&store, 1).await?);
    // An existing store without times to live cannot be opened for it.
    connection.store("sessions").await?;
    assert!(matches!(Session::open(&connection).await, Err(KvError::ConfigMismatch { .. })));
    Ok(())
}

/// On a server, each kind of write gives the record its time to live, and the expiry arrives at
/// watches. Servers before 2.11 have no times to live for single keys.
#[tokio::test]
async fn records_expire_on_a_server() -> Outcome {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await?;
    if !server.is_at_least(2, 11) {
        assert!(matches!(Brief::open(&connection).await, Err(KvError::Unsupported { .. })));
        return Ok(());
    }
    let store = Brief::open(&connection).await?;
    // The bucket belongs to the type, on a server that other tests use too.
    let id = unique("brief");
    let watch = Brief::watch(&store, &BriefKey::from(id.as_str())).await?;
    let brief = Brief { id, count: 1 };
    let version = brief.create_write(&store).await?;
    let version = brief.write_to_atomically(&store, version).await?;
    assert!(
        Brief::modify(&store, brief.kv_key(), |brief| brief)
            .await?
            .is_some_and(|now| TypedEntry::version(&now) != version)
    );
    for written in Brief::write_many(&store, [&brief, &brief]).await {
        written?;
    }
    let expiry = async {
        while let Some(update) = watch.next().await {
            if let TypedUpdate::Delete { operation, .. } = update? {
                return Ok::<_, KvReadError>(Some(operation));
            }
        }
        Ok(None)
    };
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(60), expiry).await??,
        Some(KvOperation::Expire)
    );
    assert_eq!(Brief::read_from(&store, brief.kv_key()).await?, None);
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "brief.{id}", bucket = "brief", ttl = "1s", codec = json)]
struct Brief {
    id: String,
    count: u32,
}

/// Uses every option in every form: a fixed key, a field that is the key, a pair.
mod every_form {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
    #[kv(key = "form.fixed", bucket = "fixed", validate = Self::check, ttl = "30s", codec = json)]
    struct Fixed(u32);

    #[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
    #[kv(bucket = "whole", validate = Whole::check, ttl = "30s", codec = json)]
    struct Whole(#[kv(key)] u32);

    #[derive(Debug, PartialEq, KeyValue)]
    #[kv(bucket = "pair", validate = Pair::check, ttl = "30s")]
    struct Pair(#[kv(key)] u32, #[kv(value)] String);

    impl Fixed {
        fn check(&self) -> Result<(), &'static str> {
            if self.0 == 13 { Err("not 13") } else { Ok(()) }
        }
    }

    impl Whole {
        fn check(&self) -> Result<(), &'static str> {
            if self.0 == 13 { Err("not 13") } else { Ok(()) }
        }
    }

    impl Pair {
        fn check(&self) -> Result<(), &'static str> {
            if self.0 == 13 { Err("not 13") } else { Ok(()) }
        }
    }

    /// Checks that a record obeys its rule, and its time to live.
    async fn check<T>(store: &Store, name: &str, good: T, bad: T) -> Outcome
    where
        T: KeyValue<Value: shizuku_kv::ByteSerialize + shizuku_kv::ByteDeserialize>
            + PartialEq
            + std::fmt::Debug,
    {
        assert_eq!(store.name(), name);
        assert_eq!(T::kv_ttl(), Some(Duration::from_secs(30)), "{name}");
        assert!(
            matches!(bad.write_to_anyway(store).await, Err(KvWriteError::Invalid { .. })),
            "{name}"
        );
        good.write_to_anyway(store).await?;
        assert_eq!(T::read_from(store, good.kv_key()).await?.as_ref(), Some(&good), "{name}");
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(T::read_from(store, good.kv_key()).await?, None, "{name}");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn has_every_option() -> Outcome {
        let connection = connect("memory:").await?;
        assert_eq!((Fixed::BUCKET, Whole::BUCKET, Pair::BUCKET), ("fixed", "whole", "pair"));
        check(&Fixed::open(&connection).await?, "fixed", Fixed(1), Fixed(13)).await?;
        check(&Whole::open(&connection).await?, "whole", Whole(1), Whole(13)).await?;
        let pair = |key| Pair(key, "text".to_owned());
        check(&Pair::open(&connection).await?, "pair", pair(1), pair(13)).await
    }

    /// A rule is not called for a record with the wrong key.
    #[tokio::test]
    async fn rule_comes_after_the_key() -> Outcome {
        let store = store().await;
        store.put("7", "13").await?;
        assert!(matches!(
            Whole::read_from(&store, 7_u32).await,
            Err(KvReadError::KeyMismatch { .. })
        ));
        Ok(())
    }
}

/// Many records with a time to live are bounded together. The server may still get those that were
/// sent.
#[tokio::test]
async fn expiring_write_many_without_answer_ends() -> Outcome {
    let server = NatsServer::start();
    if !server.is_at_least(2, 11) {
        return Ok(());
    }
    let proxy = TcpProxy::start(server.port()).await;
    let store = Session::open(&connect(&proxy.url()).await?).await?;
    proxy.stall();
    let brief = store.with_deadline(Duration::from_millis(50));
    // One deadline for each would be minutes.
    let records = (0..2000).map(|_| session(1)).collect::<Vec<_>>();
    let answers = Session::write_many(&brief, &records);
    let answers = tokio::time::timeout(Duration::from_secs(60), answers).await?;
    assert_eq!(answers.len(), records.len());
    assert!(answers.iter().all(Result::is_err));
    assert!(
        matches!(answers.last(), Some(Err(KvWriteError::Store(KvError::OutcomeUnknown { .. })))),
        "{:?}",
        answers.last()
    );
    Ok(())
}
