//! The four codecs: every value round-trips, and no bytes make them panic.

mod limits;
mod secrets;
mod values;

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shizuku_kv::__private::{json, messagepack, postcard, protobuf};
use shizuku_kv::{Bytes, DecodeError, EncodeError};

use self::values::*;

/// A codec of serde's types.
trait Codec {
    fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError>;
    fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError>;
    /// Returns the number of bytes that had been read, if the error states it in this codec's way.
    fn offset(error: &DecodeError) -> Option<usize>;
}

macro_rules! codec {
    ($name:ident $module:ident $offset:expr) => {
        struct $name;

        impl Codec for $name {
            fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError> {
                $module::to_bytes(value)
            }

            fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError> {
                $module::from_bytes(bytes)
            }

            fn offset(error: &DecodeError) -> Option<usize> {
                $offset(error)
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

fn round_trips<C: Codec>(record: &Record) {
    let bytes = C::encode(record).unwrap();
    assert_eq!(C::decode::<Record>(&bytes).as_ref(), Ok(record));
}

/// Decodes the bytes, or checks that the error states its position.
fn decodes_or_says_where<C: Codec, T: DeserializeOwned>(bytes: &Bytes) {
    if let Err(error) = C::decode::<T>(bytes) {
        let offset = C::offset(&error).unwrap_or_else(|| panic!("{error} states no offset"));
        assert!(offset <= bytes.len(), "{error} is beyond {} bytes", bytes.len());
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

fn note_or_offset(bytes: &Bytes) -> Option<Note> {
    match protobuf::from_bytes::<Note>(bytes) {
        Ok(note) => Some(note),
        Err(error) => {
            assert!(
                error.offset().is_some_and(|offset| offset <= bytes.len()),
                "{error}: {bytes:?}"
            );
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
        assert!(C::offset(&error).is_some_and(|offset| offset <= end), "{error} in {end} bytes");
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
            Err(error) => assert_eq!(C::offset(&error), Some(bytes.len()), "{error}"),
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
    fn message_decodes_to_itself(note in notes()) {
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
        note_or_offset(&bytes);
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
            if let Some(torn) = note_or_offset(&bytes.slice(..end)) {
                prop_assert!(protobuf::to_bytes(&torn).unwrap().len() <= bytes.len());
            }
        }
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                note_or_offset(&with(&bytes, |bytes| bytes[byte] ^= 1 << bit));
            }
        }
        for more in 0..=u8::MAX {
            prop_assert_eq!(note_or_offset(&with(&bytes, |bytes| bytes.push(more))), None);
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
fn bytes_are_those_of_the_format() {
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
fn empty_bytes_are_a_value_of_few_types() {
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
fn bytes_in_a_message_share_its_memory() {
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
fn fields_can_be_added_and_removed() {
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
