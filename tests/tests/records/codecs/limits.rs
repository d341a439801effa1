//! False lengths, and nesting: no bytes exhaust memory or the stack.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::thread;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use shizuku_kv::__private::protobuf;
use shizuku_kv::Bytes;

use super::values::*;
use super::{Before, Codec, Json, MessagePack, Postcard, note_or_offset, with};

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
        assert!(C::offset(&error).is_some_and(|offset| offset <= bytes.len()), "{error}");
    }
}

#[test]
fn false_lengths_reserve_nothing() {
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
            assert_eq!(note_or_offset(&field(tag)), None);
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
    assert!(C::offset(&error).is_some_and(|offset| offset <= 101 * level.len()), "{error}");
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
