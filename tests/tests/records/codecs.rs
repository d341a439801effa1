//! The four codecs: every value round-trips. No bytes make them panic, exhaust memory or the stack,
//! or reveal a secret.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::thread;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use serde::de::value::Error as Plain;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};
use shizuku_kv::__private::{json, messagepack, postcard, protobuf};
use shizuku_kv::{Bytes, DecodeError, EncodeError};

/// A codec of serde's types.
trait Codec {
    fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError>;
    fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError>;
    /// Returns the number of bytes that had been read, if the error states it in this codec's way.
    fn place(error: &DecodeError) -> Option<usize>;
}

macro_rules! codec {
    ($name:ident $module:ident $place:expr) => {
        struct $name;

        impl Codec for $name {
            fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError> {
                $module::to_bytes(value)
            }

            fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError> {
                $module::from_bytes(bytes)
            }

            fn place(error: &DecodeError) -> Option<usize> {
                $place(error)
            }
        }
    };
}

codec!(Json json |error: &DecodeError| {
    // Values are encoded in one line here.
    error.line_and_column().map(|(_, column)| column - 1)
});
codec!(MessagePack messagepack DecodeError::offset);
codec!(Postcard postcard DecodeError::offset);

/// Contains every kind of value in serde's data model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    id: u64,
    signed: i64,
    big: u128,
    small: i128,
    ratio: f64,
    half: f32,
    text: String,
    letter: char,
    flag: bool,
    raw: Vec<u8>,
    array: [u8; 3],
    pair: (i8, String),
    nothing: (),
    unit: Unit,
    meters: Meters,
    point: Point,
    mode: Mode,
    modes: Vec<Mode>,
    inner: Option<Box<Inner>>,
    by_name: BTreeMap<String, Option<Inner>>,
    by_number: BTreeMap<i16, u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Meters(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Point(i32, i32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    name: String,
    meters: Option<Meters>,
    counts: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Plain,
    Named { port: u16, host: Option<String> },
    Both(u8, String),
    One(Meters),
    Again(Box<Mode>),
}

fn modes() -> impl Strategy<Value = Mode> {
    let flat = prop_oneof![
        Just(Mode::Plain),
        any::<(u16, Option<String>)>().prop_map(|(port, host)| Mode::Named { port, host }),
        any::<(u8, String)>().prop_map(|(number, text)| Mode::Both(number, text)),
        any::<u32>().prop_map(|meters| Mode::One(Meters(meters))),
    ];
    flat.prop_recursive(4, 4, 1, |inner| inner.prop_map(|mode| Mode::Again(Box::new(mode))))
}

fn inners() -> impl Strategy<Value = Inner> {
    (any::<String>(), option::of(any::<u32>()), vec(any::<u16>(), 0..5))
        .prop_map(|(name, meters, counts)| Inner { name, meters: meters.map(Meters), counts })
}

fn records() -> impl Strategy<Value = Record> {
    // Quarters are exact in every format.
    let numbers =
        (any::<u64>(), any::<i64>(), any::<u128>(), any::<i128>(), any::<i32>(), any::<i16>());
    let texts =
        (any::<String>(), any::<char>(), any::<bool>(), vec(any::<u8>(), 0..40), any::<[u8; 3]>());
    let parts =
        (any::<(i8, String)>(), any::<u32>(), any::<(i32, i32)>(), modes(), vec(modes(), 0..4));
    let maps = (
        option::of(inners()),
        btree_map(any::<String>(), option::of(inners()), 0..4),
        btree_map(any::<i16>(), any::<u8>(), 0..4),
    );
    (numbers, texts, parts, maps).prop_map(|(numbers, texts, parts, maps)| Record {
        id: numbers.0,
        signed: numbers.1,
        big: numbers.2,
        small: numbers.3,
        ratio: f64::from(numbers.4) / 4.0,
        half: f32::from(numbers.5) / 4.0,
        text: texts.0,
        letter: texts.1,
        flag: texts.2,
        raw: texts.3,
        array: texts.4,
        pair: parts.0,
        nothing: (),
        unit: Unit,
        meters: Meters(parts.1),
        point: Point(parts.2.0, parts.2.1),
        mode: parts.3,
        modes: parts.4,
        inner: maps.0.map(Box::new),
        by_name: maps.1,
        by_number: maps.2,
    })
}

/// Contains every kind of value in protobuf.
#[derive(Clone, PartialEq, Message)]
struct Note {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(sint64, optional, tag = "3")]
    signed: Option<i64>,
    #[prost(double, tag = "4")]
    ratio: f64,
    #[prost(bytes = "bytes", tag = "5")]
    raw: Bytes,
    #[prost(uint32, repeated, tag = "6")]
    counts: Vec<u32>,
    #[prost(message, optional, boxed, tag = "7")]
    next: Option<Box<Note>>,
    #[prost(btree_map = "string, message", tag = "8")]
    notes: BTreeMap<String, Note>,
    #[prost(oneof = "Kind", tags = "9, 10")]
    kind: Option<Kind>,
    #[prost(enumeration = "Color", tag = "11")]
    color: i32,
    #[prost(group, optional, boxed, tag = "12")]
    group: Option<Box<Note>>,
    #[prost(fixed32, tag = "3000")]
    fixed: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(bool, tag = "9")]
    Flag(bool),
    #[prost(string, tag = "10")]
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
enum Color {
    None = 0,
    Red = 1,
}

fn notes() -> impl Strategy<Value = Note> {
    let kinds =
        prop_oneof![any::<bool>().prop_map(Kind::Flag), any::<String>().prop_map(Kind::Name)];
    let flat = (
        any::<(u64, String, Option<i64>, i32, u32)>(),
        vec(any::<u8>(), 0..20),
        vec(any::<u32>(), 0..5),
        option::of(kinds),
        any::<bool>(),
    );
    let flat =
        flat.prop_map(|((id, text, signed, ratio, fixed), raw, counts, kind, is_red)| Note {
            id,
            text,
            signed,
            ratio: f64::from(ratio) / 4.0,
            raw: raw.into(),
            counts,
            kind,
            color: if is_red { Color::Red } else { Color::None }.into(),
            fixed,
            ..Note::default()
        });
    flat.clone().prop_recursive(3, 8, 3, move |inner| {
        let maps = btree_map(any::<String>(), inner.clone(), 0..3);
        (flat.clone(), option::of(inner.clone()), maps, option::of(inner)).prop_map(
            |(note, next, notes, group)| Note {
                next: next.map(Box::new),
                notes,
                group: group.map(Box::new),
                ..note
            },
        )
    })
}

/// A type that contains itself. This is the most that bytes alone can nest.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Tree(Vec<Tree>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct List {
    next: Option<Box<List>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Options(Option<Box<Options>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Chain {
    End,
    Next(Box<Chain>),
    Named { next: Box<Chain> },
    Pair(Box<Chain>, u8),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Maps(BTreeMap<String, Maps>);

/// A type that needs much stack.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Wide {
    a: String,
    b: String,
    c: String,
    d: String,
    e: String,
    f: String,
    g: Option<String>,
    h: Option<String>,
    i: Option<String>,
    j: Option<String>,
    k: [u64; 16],
    l: u64,
    m: u64,
    n: u64,
    o: u64,
    p: Vec<u8>,
    q: Vec<u8>,
    r: Vec<u8>,
    s: Vec<u8>,
    t: Vec<Wide>,
}

fn round_trips<C: Codec>(record: &Record) {
    let bytes = C::encode(record).unwrap();
    assert_eq!(C::decode::<Record>(&bytes).as_ref(), Ok(record));
}

/// Decodes the bytes, or checks that the error states its position.
fn decodes_or_says_where<C: Codec, T: DeserializeOwned>(bytes: &Bytes) {
    if let Err(error) = C::decode::<T>(bytes) {
        let place = C::place(&error).unwrap_or_else(|| panic!("{error} says no place"));
        assert!(place <= bytes.len(), "{error} is beyond {} bytes", bytes.len());
    }
}

fn decodes_or_says_where_for_any_type<C: Codec>(bytes: &Bytes) {
    decodes_or_says_where::<C, Record>(bytes);
    decodes_or_says_where::<C, Inner>(bytes);
    decodes_or_says_where::<C, Mode>(bytes);
    decodes_or_says_where::<C, Vec<u64>>(bytes);
    decodes_or_says_where::<C, HashMap<String, Mode>>(bytes);
    decodes_or_says_where::<C, Option<(u128, char, f32)>>(bytes);
    decodes_or_says_where::<C, serde_json::Value>(bytes);
    decodes_or_says_where::<C, Tree>(bytes);
    decodes_or_says_where::<C, Chain>(bytes);
    decodes_or_says_where::<C, Maps>(bytes);
}

fn note_or_place(bytes: &Bytes) -> Option<Note> {
    match protobuf::from_bytes::<Note>(bytes) {
        Ok(note) => Some(note),
        Err(error) => {
            assert!(error.offset().is_some_and(|place| place <= bytes.len()), "{error}: {bytes:?}");
            None
        }
    }
}

fn with(bytes: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut changed = bytes.to_vec();
    change(&mut changed);
    changed.into()
}

fn survives_damage<C: Codec>(record: &Record) {
    let bytes = C::encode(record).unwrap();
    for end in 0..bytes.len() {
        let torn = bytes.slice(..end);
        let error = C::decode::<Record>(&torn).expect_err("a part of a value");
        assert!(C::place(&error).is_some_and(|place| place <= end), "{error} in {end} bytes");
    }
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            decodes_or_says_where::<C, Record>(&with(&bytes, |bytes| bytes[byte] ^= 1 << bit));
        }
    }
    for more in 0..=u8::MAX {
        let longer = with(&bytes, |bytes| bytes.push(more));
        match C::decode::<Record>(&longer) {
            // The rest is white space after JSON.
            Ok(_) => assert!(more.is_ascii_whitespace()),
            Err(error) => assert_eq!(C::place(&error), Some(bytes.len()), "{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn encoded_value_decodes_to_itself(record in records()) {
        round_trips::<Json>(&record);
        round_trips::<MessagePack>(&record);
        round_trips::<Postcard>(&record);
    }

    #[test]
    fn messages_round_trip(note in notes()) {
        let bytes = protobuf::to_bytes(&note).unwrap();
        prop_assert_eq!(protobuf::from_bytes::<Note>(&bytes), Ok(note));
    }

    /// Text formats have no representation for some of these.
    #[test]
    fn every_floating_point_number_round_trips(bits in any::<u64>()) {
        let (wide, narrow) = (f64::from_bits(bits), f32::from_bits(bits as u32));
        let bytes = MessagePack::encode(&(wide, narrow)).unwrap();
        let (wide_read, narrow_read) = MessagePack::decode::<(f64, f32)>(&bytes).unwrap();
        prop_assert_eq!((wide_read.to_bits(), narrow_read.to_bits()), (bits, narrow.to_bits()));
        let bytes = Postcard::encode(&(wide, narrow)).unwrap();
        let (wide_read, narrow_read) = Postcard::decode::<(f64, f32)>(&bytes).unwrap();
        prop_assert_eq!((wide_read.to_bits(), narrow_read.to_bits()), (bits, narrow.to_bits()));
    }

    #[test]
    fn any_bytes_decode_or_say_where_they_do_not(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        // Random bytes can contain line breaks.
        let _ = (Json::decode::<Record>(&bytes), Json::decode::<serde_json::Value>(&bytes));
        decodes_or_says_where_for_any_type::<MessagePack>(&bytes);
        decodes_or_says_where_for_any_type::<Postcard>(&bytes);
        note_or_place(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn damaged_values_decode_or_say_where_they_do_not(record in records()) {
        survives_damage::<Json>(&record);
        survives_damage::<MessagePack>(&record);
        survives_damage::<Postcard>(&record);
    }

    #[test]
    fn damaged_messages_decode_or_say_where_they_do_not(note in notes()) {
        let bytes = protobuf::to_bytes(&note).unwrap();
        for end in 0..bytes.len() {
            // Bytes that end between two fields are a message.
            if let Some(torn) = note_or_place(&bytes.slice(..end)) {
                prop_assert!(protobuf::to_bytes(&torn).unwrap().len() <= bytes.len());
            }
        }
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                note_or_place(&with(&bytes, |bytes| bytes[byte] ^= 1 << bit));
            }
        }
        for more in 0..=u8::MAX {
            prop_assert_eq!(note_or_place(&with(&bytes, |bytes| bytes.push(more))), None);
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    tags: Vec<u16>,
    mode: Mode,
    next: Option<bool>,
}

/// Bytes from the specifications, written by hand.
#[test]
fn the_bytes_are_those_of_the_format() {
    let user = User {
        id: 7,
        name: "Ann".to_owned(),
        tags: vec![1, 300],
        mode: Mode::Named { port: 80, host: None },
        next: None,
    };
    let bytes = MessagePack::encode(&user).unwrap();
    let expected = b"\x85\xa2id\x07\xa4name\xa3Ann\xa4tags\x92\x01\xcd\x01\x2c\
        \xa4mode\x81\xa5named\x82\xa4port\x50\xa4host\xc0\xa4next\xc0";
    assert_eq!(bytes, &expected[..]);
    // Decoding does not depend on the order, and lengths may be wider than necessary.
    let other = b"\xde\x00\x05\xd9\x04next\xc0\xa4mode\xdf\x00\x00\x00\x01\xa5named\x82\xa4host\xc0\xa4port\xcc\x50\
        \xa4tags\xdc\x00\x02\xcd\x00\x01\xce\x00\x00\x01\x2c\xa4name\xa3Ann\xa2id\xcf\x00\x00\x00\x00\x00\x00\x00\x07";
    assert_eq!(MessagePack::decode(&Bytes::from_static(other)), Ok(user));
    assert_eq!(MessagePack::encode(&Mode::Plain).unwrap(), &b"\xa5plain"[..]);

    let bytes =
        Postcard::encode(&(7_u64, "Ann", 300_u16, -1_i32, Mode::Both(1, String::new()))).unwrap();
    assert_eq!(bytes, &b"\x07\x03Ann\xac\x02\x01\x02\x01\x00"[..]);

    let note =
        Note { id: 300, text: "Ann".to_owned(), color: Color::Red.into(), ..Note::default() };
    assert_eq!(protobuf::to_bytes(&note).unwrap(), &b"\x08\xac\x02\x12\x03Ann\x58\x01"[..]);
}

/// A value without bytes is an empty message, and the only value of a type with a single value.
#[test]
fn no_bytes_at_all() {
    let empty = Bytes::new();
    assert_eq!(protobuf::from_bytes::<Note>(&empty), Ok(Note::default()));
    assert_eq!(Postcard::decode::<Unit>(&empty), Ok(Unit));
    for error in [
        Json::decode::<Unit>(&empty).unwrap_err(),
        MessagePack::decode::<Unit>(&empty).unwrap_err(),
        Postcard::decode::<u8>(&empty).unwrap_err(),
    ] {
        assert_eq!(error.message(), "the value is empty");
    }
}

/// `Bytes` in a message share the memory of the value.
#[test]
fn bytes_in_a_message_are_not_copied() {
    let bytes = protobuf::to_bytes(&Note { raw: vec![7; 100].into(), ..Note::default() }).unwrap();
    let note = protobuf::from_bytes::<Note>(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&note.raw.as_ptr()));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Before {
    url: String,
    port: u16,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct After {
    #[serde(default)]
    retries: Option<u8>,
    url: String,
    #[serde(flatten)]
    more: More,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct More {
    #[serde(default)]
    limits: Vec<Point>,
    mode: Option<Mode>,
}

/// Older code reads values of newer code, and vice versa.
#[test]
fn fields_can_be_added_and_taken_away() {
    let before = Before { url: "x".to_owned(), port: 7 };
    let after = After {
        retries: Some(3),
        url: "x".to_owned(),
        more: More { limits: vec![Point(1, 2)], mode: Some(Mode::Named { port: 1, host: None }) },
    };
    let bytes = MessagePack::encode(&before).unwrap();
    let expected =
        After { retries: None, url: "x".to_owned(), more: More { limits: Vec::new(), mode: None } };
    assert_eq!(MessagePack::decode(&bytes), Ok(expected));
    let bytes = MessagePack::encode(&after).unwrap();
    assert_eq!(
        MessagePack::decode::<Before>(&bytes).map_err(|error| error.to_string()),
        Err(format!("missing field `port` at byte {}", bytes.len()))
    );
    assert_eq!(MessagePack::decode(&bytes), Ok(after));
    #[derive(Debug, PartialEq, Deserialize)]
    struct Url {
        url: String,
    }
    assert_eq!(MessagePack::decode(&bytes), Ok(Url { url: "x".to_owned() }));
}

/// A type that reserves the announced length, as a type should not.
#[derive(Debug)]
struct Greedy;

impl<'de> Deserialize<'de> for Greedy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reserve;

        impl<'de> Visitor<'de> for Reserve {
            type Value = Greedy;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Greedy, A::Error> {
                let mut reserved = Vec::with_capacity(elements.size_hint().unwrap_or_default());
                while let Some(element) = elements.next_element::<u64>()? {
                    reserved.push(element);
                }
                Ok(Greedy)
            }
        }

        deserializer.deserialize_seq(Reserve)
    }
}

/// The same, as a map.
#[derive(Debug)]
struct GreedyMap;

impl<'de> Deserialize<'de> for GreedyMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reserve;

        impl<'de> Visitor<'de> for Reserve {
            type Value = GreedyMap;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<GreedyMap, A::Error> {
                let mut reserved = Vec::with_capacity(entries.size_hint().unwrap_or_default());
                while let Some(entry) = entries.next_entry::<u64, [u64; 32]>()? {
                    reserved.push(entry);
                }
                Ok(GreedyMap)
            }
        }

        deserializer.deserialize_map(Reserve)
    }
}

fn refuses_length<C: Codec>(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    for error in [
        C::decode::<Vec<u64>>(&bytes).unwrap_err(),
        C::decode::<Vec<Vec<Record>>>(&bytes).unwrap_err(),
        C::decode::<HashMap<u64, Record>>(&bytes).unwrap_err(),
        C::decode::<BTreeMap<String, u8>>(&bytes).unwrap_err(),
        C::decode::<String>(&bytes).unwrap_err(),
        C::decode::<Vec<()>>(&bytes).unwrap_err(),
        C::decode::<HashMap<(), ()>>(&bytes).unwrap_err(),
        C::decode::<Greedy>(&bytes).unwrap_err(),
        C::decode::<GreedyMap>(&bytes).unwrap_err(),
    ] {
        assert!(C::place(&error).is_some_and(|place| place <= bytes.len()), "{error}");
    }
}

#[test]
fn lengths_that_lie_reserve_nothing() {
    // Arrays, maps, strings, bytes and extensions with the maximum length of 2^32 - 1.
    for first in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
        refuses_length::<MessagePack>(&[first, 0xff, 0xff, 0xff, 0xff]);
        refuses_length::<MessagePack>(&[first, 0xff, 0xff, 0xff, 0xff, 1, 1, 1]);
        refuses_length::<MessagePack>(&[first, 0xff, 0xff, 0xff, 0xff].repeat(100));
    }
    for length in [1_u64 << 32, 1 << 40, (1 << 61) - 1, 1 << 63, u64::MAX] {
        let bytes = Postcard::encode(&length).unwrap();
        refuses_length::<Postcard>(&bytes);
        refuses_length::<Postcard>(&with(&bytes, |bytes| bytes.extend([1, 1, 1])));
        let field = |tag| with(&bytes, |bytes| bytes.insert(0, tag));
        // Strings, bytes, packed numbers, messages, maps, and an unknown field.
        for tag in [0x12, 0x2a, 0x32, 0x3a, 0x42, 0x7a] {
            assert_eq!(note_or_place(&field(tag)), None);
        }
    }
}

/// Elements without bytes cannot make a large value from a few bytes.
#[test]
fn elements_without_bytes_are_limited() {
    let some = vec![(); 1000];
    assert_eq!(Postcard::decode(&Postcard::encode(&some).unwrap()), Ok(some));
    let refused = Postcard::encode(&vec![(); 100_000]).unwrap_err();
    assert_eq!(refused.to_string(), "postcard: too many elements that take no bytes");
    // Encodes only the lengths.
    let many = Bytes::from_static(b"\xa0\x8d\x06");
    let error = Postcard::decode::<Vec<()>>(&many).unwrap_err();
    assert_eq!(error.to_string(), "postcard: too many elements at byte 3");
    assert!(Postcard::encode(&vec![vec![(); 60_000]; 2]).is_err());
    let nested = Bytes::from_static(b"\x02\xe0\xd4\x03\xe0\xd4\x03");
    let error = Postcard::decode::<Vec<Vec<()>>>(&nested).unwrap_err();
    assert_eq!(error.to_string(), "postcard: too many elements at byte 7");
    // Elements with bytes are not limited.
    let numbers = vec![7_u8; 200_000];
    assert_eq!(Postcard::decode(&Postcard::encode(&numbers).unwrap()), Ok(numbers.clone()));
    assert_eq!(MessagePack::decode(&MessagePack::encode(&numbers).unwrap()), Ok(numbers));
    let fields = vec![((), (), 7_u8, Unit); 70_000];
    assert_eq!(Postcard::decode(&Postcard::encode(&fields).unwrap()), Ok(fields));
}

const DEEP: usize = 100_000;

/// Runs `work` in a thread with the stack size of tokio's and the standard library's threads.
fn in_a_thread(work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

fn is_too_deep<C: Codec, T: DeserializeOwned>(level: &[u8]) {
    let bytes = Bytes::from(level.repeat(DEEP));
    let error = C::decode::<T>(&bytes).map(|_| ()).unwrap_err();
    assert!(error.message().ends_with("nested too deeply"), "{error}");
    assert!(C::place(&error).is_some_and(|place| place <= 101 * level.len()), "{error}");
}

#[test]
fn deep_nesting_exhausts_no_stack() {
    in_a_thread(|| {
        is_too_deep::<MessagePack, Tree>(b"\x91");
        is_too_deep::<MessagePack, Maps>(b"\x81\xa0");
        is_too_deep::<MessagePack, List>(b"\x81\xa4next");
        is_too_deep::<MessagePack, Chain>(b"\x81\xa4Next");
        is_too_deep::<MessagePack, Chain>(b"\x81\xa5Named\x81\xa4next");
        is_too_deep::<MessagePack, Chain>(b"\x81\xa4Pair\x92");
        is_too_deep::<MessagePack, Wide>(b"\x81\xa1t\x91");
        is_too_deep::<MessagePack, serde_json::Value>(b"\x91");
        is_too_deep::<MessagePack, serde_json::Value>(b"\x81\xa0");
        // An unknown field of the type.
        is_too_deep::<MessagePack, List>(
            b"\x81\xa4more\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91",
        );
        // No byte is needed for each level.
        is_too_deep::<MessagePack, Options>(b"\x91");

        is_too_deep::<Postcard, Tree>(b"\x01");
        is_too_deep::<Postcard, Maps>(b"\x01\x00");
        is_too_deep::<Postcard, Wide>(&[&[0; 34][..], &[1]].concat());
        is_too_deep::<Postcard, List>(b"\x01");
        is_too_deep::<Postcard, Options>(b"\x01");
        is_too_deep::<Postcard, Chain>(b"\x01");
        is_too_deep::<Postcard, Chain>(b"\x02");
        is_too_deep::<Postcard, Chain>(b"\x03");

        for level in ["[", "{\"a\":", "[{\"\":"] {
            let bytes = Bytes::from(level.repeat(DEEP));
            assert!(Json::decode::<serde_json::Value>(&bytes).is_err());
            assert!(Json::decode::<Tree>(&bytes).is_err());
            assert!(Json::decode::<Maps>(&bytes).is_err());
            assert!(Json::decode::<Before>(&bytes).is_err());
        }

        // Groups, of a known and of an unknown field.
        for level in [&b"\x63"[..], b"\x7b"] {
            let error = protobuf::from_bytes::<Note>(&level.repeat(DEEP).into()).unwrap_err();
            assert!(error.message().ends_with("nested too deeply"), "{error}");
        }
        // Messages, whose lengths have to be correct.
        let mut bytes = Vec::new();
        let (mut length, mut heads) = (0_usize, Vec::new());
        for _ in 0..DEEP {
            let mut head = vec![0x3a];
            prost::encode_length_delimiter(length, &mut head).unwrap();
            length += head.len();
            heads.push(head);
        }
        heads.iter().rev().for_each(|head| bytes.extend(head));
        let error = protobuf::from_bytes::<Note>(&bytes.into()).unwrap_err();
        assert!(error.message().ends_with("nested too deeply"), "{error}");
    });
}

fn can_nest<C: Codec>(levels: usize) {
    fn round_trip<C: Codec, T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: T) {
        assert_eq!(C::decode(&C::encode(&value).unwrap()), Ok(value));
    }
    let inner = levels - 1;
    round_trip::<C, _>((0..inner).fold(Tree(Vec::new()), |tree, _| Tree(vec![tree])));
    round_trip::<C, _>(
        (0..inner).fold(Maps(BTreeMap::new()), |maps, _| Maps([(String::new(), maps)].into())),
    );
    round_trip::<C, _>((0..inner).fold(Chain::End, |chain, _| Chain::Next(Box::new(chain))));
    // An option is a level as well.
    round_trip::<C, _>(
        (0..inner / 2).fold(List { next: None }, |list, _| List { next: Some(Box::new(list)) }),
    );
    let wide = (0..levels / 2 - 1)
        .fold(Wide::default(), |wide, _| Wide { t: vec![wide], ..Wide::default() });
    round_trip::<C, _>(wide);
}

#[test]
fn values_can_nest_up_to_the_limit() {
    in_a_thread(|| {
        can_nest::<Json>(127);
        can_nest::<MessagePack>(100);
        can_nest::<Postcard>(100);
        let note = (0..99).fold(Note::default(), |note, _| Note {
            next: Some(Box::new(note)),
            ..Note::default()
        });
        assert_eq!(protobuf::from_bytes(&protobuf::to_bytes(&note).unwrap()), Ok(note));
    });
}

/// Returns the text of an error and of its sources.
fn shown(error: &(dyn Error + 'static)) -> String {
    let mut shown = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        shown += &format!("{error} {error:?} {error:#?} ");
        next = error.source();
    }
    shown.to_lowercase()
}

/// Rejects any text, in one of several ways, and quotes it.
#[derive(Debug)]
struct Quotes;

impl<'de> Deserialize<'de> for Quotes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (manner, text, number) = <(u8, String, u64)>::deserialize(deserializer)?;
        const NAMES: &[&str] = &["plain", "tls"];
        let leaked: &'static str = text.clone().leak();
        Err(match manner {
            0 => de::Error::custom(&text),
            1 => de::Error::invalid_type(Unexpected::Str(&text), &"a number"),
            2 => de::Error::invalid_type(Unexpected::Other(&text), &"a number"),
            3 => de::Error::invalid_type(Unexpected::Map, &text.as_str()),
            4 => de::Error::invalid_value(Unexpected::Str(&text), &"u16"),
            5 => de::Error::invalid_value(Unexpected::Unsigned(number), &text.as_str()),
            6 => de::Error::invalid_length(7, &text.as_str()),
            7 => de::Error::unknown_variant(&text, NAMES),
            8 => de::Error::unknown_field(&text, NAMES),
            9 => de::Error::unknown_field("x", vec![leaked, "b"].leak()),
            10 => de::Error::missing_field(leaked),
            11 => de::Error::duplicate_field(leaked),
            12 => de::Error::custom(<Plain as de::Error>::invalid_type(
                Unexpected::Str(&text),
                &text.as_str(),
            )),
            13 => de::Error::invalid_type(Unexpected::Unsigned(number), &"a map"),
            14 => de::Error::invalid_length(number as usize, &"a map"),
            15 => de::Error::custom(format!("invalid type: map, expected {number}")),
            16 => de::Error::custom(format!("missing field `{number}`")),
            17 => de::Error::custom(format!(
                "unknown field `{text}`, expected one of `{text}`, `{number}`"
            )),
            18 => de::Error::custom(format!("invalid type: map, expected {}", text.to_uppercase())),
            19 => de::Error::custom(format!("invalid type: map, expected my{text}s")),
            _ => de::Error::custom(format!("{text} at line 1 column 2")),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Around<T> {
    before: Vec<u8>,
    quoted: T,
    after: Option<u8>,
}

fn quotes_nothing<C: Codec>(manner: u8, secret: &str, number: u64) {
    let around = Around { before: vec![1], quoted: (manner, secret, number), after: None };
    let bytes = C::encode(&around).unwrap();
    let error = C::decode::<Around<Quotes>>(&bytes).unwrap_err();
    assert!(C::place(&error).is_some(), "{error}");
    let shown = shown(&error);
    assert!(!shown.contains(secret) && !shown.contains(&number.to_string()), "{manner}: {shown}");
    // Decodes it as other types.
    for error in [
        C::decode::<Around<u8>>(&bytes).err(),
        C::decode::<Around<Mode>>(&bytes).err(),
        C::decode::<Around<BTreeMap<String, u8>>>(&bytes).err(),
        C::decode::<Around<(u8, Mode)>>(&bytes).err(),
        C::decode::<Around<(u8, u16)>>(&bytes).err(),
        C::decode::<Around<(u8, char)>>(&bytes).err(),
        C::decode::<Around<(u8, String, u8)>>(&bytes).err(),
    ] {
        let shown = error.map(|error| shown_of(&error)).unwrap_or_default();
        assert!(!shown.contains(secret) && !shown.contains(&number.to_string()), "{shown}");
    }
}

fn shown_of(error: &DecodeError) -> String {
    shown(error)
}

/// Rejects its serialization, with a message.
struct Refuses<'s>(&'s str);

impl Serialize for Refuses<'_> {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom(self.0))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Uses only letters that never occur in a row in our messages, and numbers that are not
    /// positions.
    #[test]
    fn no_error_quotes_the_value(secret in "[q-z]{5,9}[0-9]{0,3}", number in 10_000_u64..) {
        for manner in 0..=20 {
            quotes_nothing::<Json>(manner, &secret, number);
            quotes_nothing::<MessagePack>(manner, &secret, number);
            quotes_nothing::<Postcard>(manner, &secret, number);
        }
        for error in [
            Json::encode(&Refuses(&secret)).unwrap_err(),
            MessagePack::encode(&vec![Refuses(&secret)]).unwrap_err(),
            Postcard::encode(&Some(Refuses(&secret))).unwrap_err(),
        ] {
            prop_assert!(!shown(&error).contains(&secret));
        }
        let note = Note { text: secret.clone(), id: number, ..Note::default() };
        let note = Note { next: Some(Box::new(note)), ..Note::default() };
        let bytes = protobuf::to_bytes(&note).unwrap();
        for byte in 0..bytes.len() {
            for changed in [0x07, 0x7f, 0xff] {
                let changed = with(&bytes, |bytes| bytes[byte] = changed);
                if let Err(error) = protobuf::from_bytes::<Note>(&changed) {
                    let shown = shown(&error);
                    let shows = shown.contains(&secret) || shown.contains(&number.to_string());
                    prop_assert!(!shows, "{}", shown);
                }
            }
        }
    }
}
