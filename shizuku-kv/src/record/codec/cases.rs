//! Cases for each codec of serde's types: no error shows a part of the value.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::serde_message::OPAQUE;
use super::*;

pub(super) const SECRET: &str = "hunter2";

/// A codec of serde's types.
pub(super) trait Codec {
    fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError>;
    fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError>;
}

macro_rules! codec {
    ($name:ident $module:ident) => {
        pub(super) struct $name;

        impl Codec for $name {
            fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError> {
                $module::to_bytes(value)
            }

            fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError> {
                $module::from_bytes(bytes)
            }
        }
    };
}

codec!(Json json);
#[cfg(feature = "messagepack")]
codec!(MessagePack messagepack);
#[cfg(feature = "postcard")]
codec!(Postcard postcard);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its errors matter")]
pub(super) struct Config {
    url: String,
    port: u16,
    mode: Mode,
    pair: Option<(u8, u8)>,
    custom: Option<Custom>,
    sha256: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its errors matter")]
pub(super) enum Mode {
    Plain,
    Tls { verify: bool },
}

/// A type whose error is its input.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Custom;

impl TryFrom<String> for Custom {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Err(text)
    }
}

/// Returns the error's text, or nothing if the bytes decode.
pub(super) fn message<C: Codec, T: DeserializeOwned>(bytes: &[u8]) -> String {
    let decoded = C::decode::<T>(&Bytes::copy_from_slice(bytes));
    decoded.err().map_or_else(String::new, |error| error.to_string())
}

/// Strings that imitate the rest of serde's message, in every position of a string, and whole or
/// truncated.
fn shows_no_secret<C: Codec>() {
    let tricks = [
        "hunter2",
        "\", expected hunter2",
        "`, expected `hunter2`",
        "`, expected one of `hunter2`, `b`",
        "`, there are no variants hunter2",
        "x`, expected `hunter2`, there are no variants",
        "\\\", expected hunter2",
        "\\\\\", expected hunter2",
        "missing field `hunter2`",
        "invalid type: map, expected hunter2",
        " at line 7 column 7 hunter2",
        "\u{7f}\", expected \u{202e}hunter2",
    ];
    let positions: [fn(&str) -> Value; 9] = [
        |trick| Value::from(trick),
        |trick| json!([trick]),
        |trick| json!([trick, 1]),
        |trick| json!({ "port": trick }),
        |trick| json!({ "mode": trick }),
        |trick| json!({ "mode": { trick: 1 } }),
        |trick| json!({ trick: trick }),
        |trick| json!({ "url": { "url": trick } }),
        |trick| json!({ "custom": trick }),
    ];
    for (trick, position) in
        tricks.iter().flat_map(|trick| positions.map(|position| (trick, position)))
    {
        let bytes = C::encode(&position(trick)).unwrap_or_default();
        for end in 0..=bytes.len() {
            for shown in [
                message::<C, Config>(&bytes[..end]),
                message::<C, Mode>(&bytes[..end]),
                message::<C, u32>(&bytes[..end]),
                message::<C, BTreeMap<u8, Mode>>(&bytes[..end]),
                message::<C, Custom>(&bytes[..end]),
                message::<C, Vec<Custom>>(&bytes[..end]),
            ] {
                assert!(!shown.contains("hunter"), "{trick} in {bytes:?}: {shown}");
            }
        }
    }
}

/// A type's own message is not shown, whatever it imitates.
fn shows_no_own_words<C: Codec>(allowed: &[&str]) {
    for imitation in [
        "hunter2",
        "hunter2 at line 1 column 2",
        "missing field `hunter2`",
        "missing field `2retnuh`",
        "missing field `ab`",
        "missing field `12-34-56`",
        "duplicate field `hunter2`",
        "duplicate field `xhunter2x`",
        "duplicate field `HUNTER2`",
        "invalid type: string, expected hunter2",
        "invalid type: string, expected 2retnuh",
        "invalid type: string \"\", expected hunter2",
        "invalid type: hunter2, expected u32",
        "invalid type: map, expected hunter2",
        "invalid type: map, expected 1/2/3",
        "invalid type: map, expected u128",
        "invalid value: string \"x\", expected hunter2",
        "invalid length 1, expected hunter2",
        "invalid length 48151623, expected a map",
        "unknown variant `x`, expected `hunter2`",
        "unknown variant `x`, expected one of `hunter2`, `b`",
        "unknown field `x`, expected `hunter2`",
        "unknown field `hunter2`, there are no fields",
    ] {
        let bytes = C::encode(&json!({ "custom": imitation })).unwrap_or_default();
        let shown = message::<C, Config>(&bytes);
        let shown = shown.split(" at ").next().unwrap_or_default();
        assert!(allowed.contains(&shown), "{imitation}: {shown}");
    }
}

#[test]
fn json_error_shows_no_part_of_the_value() {
    shows_no_secret::<Json>();
    shows_no_own_words::<Json>(&[OPAQUE]);
}

#[cfg(feature = "messagepack")]
#[test]
fn messagepack_error_shows_no_part_of_the_value() {
    shows_no_secret::<MessagePack>();
    shows_no_own_words::<MessagePack>(&[OPAQUE]);
}

#[test]
fn failed_encoding_shows_no_part_of_the_value() {
    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom(SECRET))
        }
    }

    for rejected in [
        Json::encode(&Refuses),
        #[cfg(feature = "messagepack")]
        MessagePack::encode(&Refuses),
        #[cfg(feature = "postcard")]
        Postcard::encode(&Refuses),
    ] {
        assert_eq!(rejected, Err(EncodeError::new("the type refuses to be serialized")));
    }
    let rejected = Json::encode(&BTreeMap::from([((1, 2), 3)]));
    assert_eq!(rejected, Err(EncodeError::new("key must be a string")));
}
