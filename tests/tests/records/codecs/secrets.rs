//! No error quotes the value, whatever the type's own code says.

use std::collections::BTreeMap;
use std::error::Error;

use proptest::prelude::*;
use serde::de::value::Error as Plain;
use serde::de::{self, Deserializer, Unexpected};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};
use shizuku_kv::__private::protobuf;
use shizuku_kv::DecodeError;

use super::values::*;
use super::{Codec, Json, MessagePack, Postcard, with};

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
    assert!(C::offset(&error).is_some(), "{error}");
    let hides = |text: &str| !text.contains(secret) && !text.contains(&number.to_string());
    let text = shown(&error);
    assert!(hides(&text), "{manner}: {text}");
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
        let text = error.map(|error: DecodeError| shown(&error)).unwrap_or_default();
        assert!(hides(&text), "{text}");
    }
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
