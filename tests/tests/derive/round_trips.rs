//! A record can be read back unchanged, or its write is an error.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shizuku_kv::{
    ByteDeserialize, ByteSerialize, Bytes, DecodeError, EncodeError, JsonByteDes, JsonByteSer,
    KeyValue, KvWriteError, MessagePackByteDes, MessagePackByteSer, PostcardByteDes,
    PostcardByteSer, StaticKeyIndexedValue, Store, assert_round_trip, round_trip,
};

use super::{Outcome, store};

/// A record of a codec around a value. Its type is concrete, because the derives see too little of
/// a generic one for the check.
macro_rules! of {
    ($codec:ident $inner:ty: $value:expr) => {{
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
        #[kv(key = "round.trip", codec = $codec)]
        struct Around {
            before: u8,
            inner: $inner,
            after: u8,
        }

        Around { before: 1, inner: $value, after: 2 }
    }};
}

/// Asserts that a write is rejected with the reason, and that no value was written.
async fn refused<T>(store: &Store, record: T) -> String
where
    T: StaticKeyIndexedValue + ByteSerialize + Sync,
{
    let error = record.write_to_anyway(store).await.unwrap_err();
    assert!(store.get(T::key()).await.unwrap().is_none());
    let KvWriteError::Encode { source, .. } = error else { panic!("{error}") };
    source.to_string()
}

/// Asserts that the read record equals the written one.
async fn kept<T>(store: &Store, record: T) -> Outcome
where
    T: StaticKeyIndexedValue + ByteSerialize + ByteDeserialize + PartialEq + Debug + Sync,
{
    record.write_to_anyway(store).await?;
    assert_eq!(T::read(store).await?, Some(record));
    T::delete(store).await?;
    Ok(())
}

/// `null` stands for all of these in JSON, and for the last three in MessagePack.
#[tokio::test]
async fn values_that_would_be_null_are_rejected() -> Outcome {
    let store = store().await;
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(refused(&store, of!(json f64: number)).await.contains("not finite"));
        assert!(refused(&store, of!(json Option<f64>: Some(number))).await.contains("not finite"));
    }
    assert!(refused(&store, of!(json f32: f32::NAN)).await.contains("not finite"));
    kept(&store, of!(messagepack f64: f64::INFINITY)).await?;
    kept(&store, of!(postcard f64: f64::INFINITY)).await?;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Unit;

    assert!(refused(&store, of!(json Option<Option<u8>>: Some(None))).await.contains("`None`"));
    assert!(refused(&store, of!(json Option<()>: Some(()))).await.contains("`None`"));
    assert!(refused(&store, of!(json Option<Unit>: Some(Unit))).await.contains("`None`"));
    assert!(
        refused(&store, of!(messagepack Option<Option<u8>>: Some(None))).await.contains("`None`")
    );
    assert!(refused(&store, of!(messagepack Option<()>: Some(()))).await.contains("`None`"));
    kept(&store, of!(messagepack Option<Unit>: Some(Unit))).await?;
    kept(&store, of!(postcard Option<Option<u8>>: Some(None))).await?;
    kept(&store, of!(postcard Option<()>: Some(()))).await?;
    kept(&store, of!(json Option<Option<u8>>: Some(Some(1)))).await?;
    kept(&store, of!(json (Option<u8>, (), Option<Vec<()>>): (None, (), Some(vec![(), ()]))))
        .await?;
    kept(&store, of!(messagepack (Option<u8>, Vec<Option<u8>>): (None, vec![Some(1), None])))
        .await?;
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Chain {
    next: Option<Box<Self>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tree(Vec<Self>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Nest {
    End,
    Next(Box<Self>),
    Pair(u8, Box<Self>),
    Named { next: Box<Self> },
}

fn tree(levels: usize) -> Tree {
    (1..levels).fold(Tree(Vec::new()), |tree, _| Tree(vec![tree]))
}

/// A write accepts exactly the depth that a read accepts.
#[tokio::test]
async fn values_that_nest_too_deeply_are_rejected() -> Outcome {
    let store = store().await;
    let nest =
        |levels: usize, make: fn(Nest) -> Nest| (1..levels).fold(Nest::End, |nest, _| make(nest));
    let makes: [fn(Nest) -> Nest; 3] = [
        |nest| Nest::Next(Box::new(nest)),
        |nest| Nest::Pair(1, Box::new(nest)),
        |nest| Nest::Named { next: Box::new(nest) },
    ];
    macro_rules! check {
        ($codec:ident) => {
            for levels in 40..160 {
                check(&store, of!($codec Tree: tree(levels))).await?;
                let link = |chain, _| Chain { next: Some(Box::new(chain)) };
                let chain = (1..levels).fold(Chain { next: None }, link);
                check(&store, of!($codec Chain: chain)).await?;
                for make in makes {
                    check(&store, of!($codec Nest: nest(levels, make))).await?;
                }
            }
            assert!(refused(&store, of!($codec Tree: tree(160))).await.contains("nested too deeply"));
        };
    }
    async fn check<T>(store: &Store, record: T) -> Outcome
    where
        T: StaticKeyIndexedValue + ByteSerialize + ByteDeserialize + PartialEq + Debug + Sync,
    {
        match record.write_to_anyway(store).await {
            Ok(_) => kept(store, record).await,
            Err(error) => {
                assert!(error.to_string().ends_with("nested too deeply"), "{error}");
                Ok(())
            }
        }
    }
    kept(&store, of!(json Tree: tree(126))).await?;
    check!(json);
    kept(&store, of!(messagepack Tree: tree(99))).await?;
    check!(messagepack);
    kept(&store, of!(postcard Tree: tree(99))).await?;
    check!(postcard);
    Ok(())
}

/// A type inside the record, which the derive on the record does not see.
mod inside {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) enum Skipped {
        A,
        #[serde(skip)]
        #[allow(dead_code, reason = "it is there to be skipped")]
        B,
        C,
        D,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Shifted {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub(super) first: Option<u8>,
        pub(super) second: u8,
        pub(super) third: u8,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct ShiftedTuple(
        #[serde(skip_serializing_if = "Option::is_none")] pub(super) Option<u8>,
        pub(super) u8,
        pub(super) u8,
    );

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Untagged {
        Number(u8),
        Text(String),
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    pub(super) enum Tagged {
        One { wide: u128 },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", content = "content")]
    pub(super) enum Adjacent {
        One { number: u8 },
        Two(String),
        Three,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Unread {
        #[serde(skip_serializing)]
        pub(super) secret: String,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Renamed {
        #[serde(rename(serialize = "a", deserialize = "b"), default)]
        pub(super) field: u8,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Clash {
        #[serde(rename = "second")]
        pub(super) first: u8,
        #[serde(flatten)]
        pub(super) rest: HashMap<String, u8>,
    }
}

/// Every build detects skipped parts.
#[tokio::test]
async fn skipped_fields_of_postcard_are_rejected() -> Outcome {
    use inside::*;
    let store = store().await;
    let shifted = |first| Shifted { first, second: 1, third: 2 };
    assert!(refused(&store, of!(postcard Shifted: shifted(None))).await.contains("left out"));
    kept(&store, of!(postcard Shifted: shifted(Some(7)))).await?;
    kept(&store, of!(json Shifted: shifted(None))).await?;
    kept(&store, of!(messagepack Shifted: shifted(None))).await?;
    Ok(())
}

/// Debug builds read and rewrite each written record.
#[cfg(debug_assertions)]
#[tokio::test]
async fn values_that_read_back_as_others_are_rejected() -> Outcome {
    use inside::*;
    let store = store().await;
    let changes = "would not be read back as it is";
    assert!(refused(&store, of!(postcard Skipped: Skipped::C)).await.contains(changes));
    kept(&store, of!(json Skipped: Skipped::C)).await?;
    kept(&store, of!(postcard Skipped: Skipped::A)).await?;
    refused(&store, of!(postcard ShiftedTuple: ShiftedTuple(None, 1, 2))).await;
    refused(&store, of!(json ShiftedTuple: ShiftedTuple(None, 1, 2))).await;
    refused(&store, of!(postcard Untagged: Untagged::Number(1))).await;
    refused(&store, of!(postcard Tagged: Tagged::One { wide: 1 })).await;
    refused(&store, of!(json Tagged: Tagged::One { wide: 1 << 100 })).await;
    refused(&store, of!(json Tagged: Tagged::One { wide: 1 })).await;
    refused(&store, of!(messagepack Tagged: Tagged::One { wide: 1 << 100 })).await;
    refused(&store, of!(json Unread: Unread { secret: "hunter2".to_owned() })).await;
    assert!(refused(&store, of!(json Renamed: Renamed { field: 1 })).await.contains(changes));
    let rest = HashMap::from([("second".to_owned(), 2)]);
    refused(&store, of!(json Clash: Clash { first: 1, rest })).await;
    for adjacent in [Adjacent::One { number: 1 }, Adjacent::Two("a".to_owned()), Adjacent::Three] {
        refused(&store, of!(postcard Adjacent: adjacent.clone())).await;
        kept(&store, of!(json Adjacent: adjacent)).await?;
    }
    Ok(())
}

/// Two codecs on one type, and a key that the round trip changes.
#[cfg(debug_assertions)]
#[tokio::test]
async fn directions_that_do_not_fit_are_rejected() -> Outcome {
    #[derive(
        Debug, Serialize, Deserialize, JsonByteSer, PostcardByteDes, StaticKeyIndexedValue,
    )]
    #[kv(key = "round.mixed")]
    struct Mixed(String);

    #[derive(Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    #[kv(key = "round.{name}")]
    struct Lowered {
        #[serde(serialize_with = "lowered")]
        name: String,
    }

    fn lowered<S: Serializer>(name: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&name.to_lowercase())
    }

    let store = store().await;
    refused(&store, Mixed("hunter2".to_owned())).await;
    let error = Lowered { name: "Ann".to_owned() }.write_to_anyway(&store).await.unwrap_err();
    assert!(error.to_string().contains("its own key"), "{error}");
    Lowered { name: "ann".to_owned() }.write_to_anyway(&store).await?;
    Ok(())
}

thread_local! {
    static NONCE: Cell<u64> = const { Cell::new(0) };
}

/// A field that is written differently each time, like an encrypted one.
#[derive(Clone, Debug, PartialEq)]
struct Sealed(u64);

impl Serialize for Sealed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nonce = NONCE.replace(NONCE.get() + 0x0123_4567_89ab);
        (nonce, self.0 ^ nonce).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sealed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <(u64, u64)>::deserialize(deserializer).map(|(nonce, sealed)| Self(sealed ^ nonce))
    }
}

/// No record that reads back unchanged is rejected.
#[tokio::test]
async fn orders_and_nonces_are_no_difference() -> Outcome {
    let store = store().await;
    let map = (0..200)
        .map(|n| (format!("key {n}"), (n, HashSet::from([n, n + 1]))))
        .collect::<HashMap<_, _>>();
    let set = (0..200).map(|n| vec![n; 3]).collect::<HashSet<Vec<u32>>>();
    type Unordered = (HashMap<String, (u32, HashSet<u32>)>, HashSet<Vec<u32>>);
    let unordered: Unordered = (map, set);
    kept(&store, of!(json Unordered: unordered.clone())).await?;
    kept(&store, of!(messagepack Unordered: unordered.clone())).await?;
    kept(&store, of!(postcard Unordered: unordered)).await?;
    kept(&store, of!(json Sealed: Sealed(7))).await?;
    kept(&store, of!(messagepack Sealed: Sealed(7))).await?;
    kept(&store, of!(postcard Sealed: Sealed(7))).await?;
    type Numbers = (u128, i128, u64, f64, f32);
    let numbers = (u128::MAX, i128::MIN, u64::MAX, -(0.1 + 0.2), f32::MIN_POSITIVE);
    kept(&store, of!(json Numbers: numbers)).await?;
    kept(&store, of!(messagepack Numbers: numbers)).await?;
    kept(&store, of!(postcard Numbers: numbers)).await?;
    kept(&store, of!(json HashMap<u8, char>: HashMap::from([(1, 'a'), (2, 'b')]))).await?;
    Ok(())
}

/// A type may have only one direction. One that is only written cannot be compared.
#[tokio::test]
async fn types_of_one_direction_are_written_or_read() -> Outcome {
    #[derive(Deserialize, MessagePackByteDes)]
    struct Read(u8);

    #[derive(Serialize, JsonByteSer, StaticKeyIndexedValue)]
    #[kv(key = "round.event")]
    struct Event<'a>(&'a str);

    #[derive(
        Serialize, Deserialize, MessagePackByteSer, MessagePackByteDes, StaticKeyIndexedValue,
    )]
    #[kv(key = "round.generic")]
    struct Generic<T>(T);

    #[derive(Serialize, PostcardByteSer, StaticKeyIndexedValue)]
    #[kv(key = "round.raw")]
    struct Raw(u8);

    let store = store().await;
    Event("a").write_to_anyway(&store).await?;
    Generic("borrowed").write_to_anyway(&store).await?;
    Raw(1).write_to_anyway(&store).await?;
    assert_eq!(Read::from_bytes(&b"\x07"[..].into())?.0, 7);
    Ok(())
}

/// A codec by hand, whose directions disagree on some values.
#[derive(Clone, Debug, PartialEq)]
struct Shifted(u8);

impl ByteSerialize for Shifted {
    fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        Ok(vec![self.0].into())
    }
}

impl ByteDeserialize for Shifted {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        match bytes.as_ref() {
            // Seven is read as eight.
            [number] => Ok(Self(number + u8::from(*number == 7))),
            _ => Err(DecodeError::new("not one byte")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, KeyValue)]
#[kv(validate = Self::check)]
struct ByHand(#[kv(key)] String, #[kv(value)] Shifted);

impl ByHand {
    fn check(&self) -> Result<(), &'static str> {
        if self.1.0 == 0 { Err("is not 0") } else { Ok(()) }
    }
}

#[tokio::test]
async fn round_trips_are_checked_on_request_for_any_codec() -> Outcome {
    let record = |number| ByHand("a".to_owned(), Shifted(number));
    assert_eq!(round_trip(&record(6))?, record(6));
    assert_round_trip(&record(6));
    let changed = round_trip(&record(7)).unwrap_err();
    assert_eq!(
        changed.to_string(),
        "ByHand for key a cannot be encoded: it would not be read back as it is: written again, it has other bytes"
    );
    assert!(matches!(round_trip(&record(0)), Err(KvWriteError::Invalid { .. })));
    assert!(matches!(round_trip(&ByHand(String::new(), Shifted(1))), Err(KvWriteError::Store(_))));
    // A write does not know the other direction.
    record(7).write_to_anyway(&store().await).await?;
    Ok(())
}

#[test]
#[should_panic(
    expected = "Around for key round.trip cannot be encoded: it could not be read back: missing field"
)]
fn unreadable_record_fails_its_assertion() {
    let unread = inside::Unread { secret: "hunter2".to_owned() };
    assert_round_trip(&of!(json inside::Unread: unread));
}

/// The messages contain no part of the value.
#[test]
fn errors_of_a_round_trip_quote_nothing() {
    let unread = inside::Unread { secret: "hunter2".to_owned() };
    let error = round_trip(&of!(json inside::Unread: unread)).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}
