use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::*;

const SECRET: &str = "hunter2";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its errors matter")]
struct Config {
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
enum Mode {
    Plain,
    Tls { verify: bool },
}

/// A type whose error is its input.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Custom;

impl TryFrom<String> for Custom {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Err(text)
    }
}

/// A type whose error contains its number.
#[derive(Debug, Deserialize)]
#[serde(try_from = "u32")]
struct Number;

impl TryFrom<u32> for Number {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        Err(format!("invalid type: map, expected {number}"))
    }
}

fn message<T: DeserializeOwned>(bytes: &[u8]) -> String {
    match from_bytes::<T>(&Bytes::copy_from_slice(bytes)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

fn message_of<T: DeserializeOwned>(value: &serde_json::Value) -> String {
    message::<T>(&to_bytes(value).unwrap_or_default())
}

/// Names are shown, even if they are keys of the value, as they usually are.
#[test]
fn message_of_type_and_position_are_kept() {
    for (value, expected) in [
        (serde_json::json!({ "port": 1 }), "missing field `url` at byte 7"),
        (serde_json::json!({ "port": "hunter2" }), "invalid type: string, expected u16 at byte 7"),
        (serde_json::json!({ "url": 7 }), "invalid type: integer, expected a string at byte 6"),
        (serde_json::json!({ "url": true }), "invalid type: boolean, expected a string at byte 6"),
        (serde_json::json!({ "url": [] }), "invalid type: sequence, expected a string at byte 6"),
        (serde_json::json!({ "port": 70000 }), "invalid value: integer, expected u16 at byte 11"),
        (
            serde_json::json!({ "pair": [1] }),
            "invalid length 1, expected a tuple of size 2 at byte 8",
        ),
        (serde_json::json!({ "pair": [1, 2, 3] }), "invalid length at byte 9"),
        (
            serde_json::json!({ "mode": "hunter2" }),
            "unknown variant, expected `plain` or `tls` at byte 14",
        ),
        (
            serde_json::json!({ "mode": { "tls": { "verified": 7 } } }),
            "missing field `verify` at byte 22",
        ),
        (
            serde_json::json!({ "mode": { "tls": { "verify": 7 } } }),
            "invalid type: integer, expected a boolean at byte 20",
        ),
        (serde_json::json!({ "mode": { "tls": 1, "plain": 2 } }), "invalid length at byte 7"),
        (
            serde_json::json!({ "hunter2": 1, "url": "url" }),
            "unknown field, expected one of `url`, `port`, `mode`, `pair`, `custom`, `sha256` at byte 9",
        ),
        (serde_json::json!({ "sha256": 1 }), "invalid type: integer, expected a boolean at byte 9"),
        (serde_json::json!(7), "invalid type: integer, expected struct Config at byte 1"),
    ] {
        assert_eq!(message_of::<Config>(&value), expected, "{value}");
    }
    assert_eq!(
        message::<Config>(b"\x82\xa3url\xa1x\xa3url\xa1y"),
        "duplicate field `url` at byte 11"
    );
    assert_eq!(
        message::<Config>(b"\x82\xa6sha256\xc0\xa6sha256\xc0"),
        "duplicate field `sha256` at byte 16"
    );
    assert_eq!(message::<Config>(b""), "the value is empty at byte 0");
    assert_eq!(message::<Config>(b"\x81\xa3ur"), "MessagePack: unexpected end at byte 4");
    assert_eq!(
        message::<Config>(b"\x81\xa3url\xa2\xff\xff"),
        "MessagePack: a string is not UTF-8 at byte 8"
    );
    assert_eq!(message::<u16>(b"\x07\x07"), "MessagePack: more bytes after the value at byte 1");
    assert_eq!(message::<u128>(b"\xa1x"), "invalid type: string, expected u128 at byte 1");
    assert_eq!(message::<u16>(b"\xc1"), "MessagePack: a byte that stands for nothing at byte 1");
    // The requested kind is not the earlier u16.
    assert_eq!(
        message::<(u16, Mode)>(b"\x92\x01\x81\xa5plain\x07"),
        "invalid type: integer at byte 10"
    );
}

#[test]
fn every_first_byte_has_a_kind_that_is_no_number() {
    for first in 0..=u8::MAX {
        let shown = mismatch(first, "").to_string();
        assert!(!shown.contains(|character: char| character.is_ascii_digit()), "{first}: {shown}");
    }
    for (first, kind) in [
        (0x00, "integer"),
        (0x7f, "integer"),
        (0x80, "map"),
        (0x8f, "map"),
        (0x90, "sequence"),
        (0x9f, "sequence"),
        (0xa0, "string"),
        (0xbf, "string"),
        (0xc0, "unit value"),
        (0xc2, "boolean"),
        (0xc3, "boolean"),
        (0xc4, "byte array"),
        (0xc6, "byte array"),
        (0xc7, "extension"),
        (0xc9, "extension"),
        (0xca, "floating point"),
        (0xcb, "floating point"),
        (0xcc, "integer"),
        (0xd3, "integer"),
        (0xd4, "extension"),
        (0xd8, "extension"),
        (0xd9, "string"),
        (0xdb, "string"),
        (0xdc, "sequence"),
        (0xdd, "sequence"),
        (0xde, "map"),
        (0xdf, "map"),
        (0xe0, "integer"),
        (0xff, "integer"),
    ] {
        assert_eq!(
            mismatch(first, "u8").message(),
            format!("invalid type: {kind}, expected u8"),
            "{first}"
        );
    }
}

/// A type's own message is not shown, whatever it imitates.
#[test]
fn own_words_of_a_type_are_not_shown() {
    for imitation in [
        "hunter2",
        "missing field `hunter2`",
        "missing field `2retnuh`",
        "duplicate field `xhunter2x`",
        "duplicate field `HUNTER2`",
        "missing field `ab`",
        "invalid type: string, expected hunter2",
        "invalid type: string, expected 2retnuh",
        "invalid type: string \"\", expected hunter2",
        "invalid type: hunter2, expected u32",
        "invalid type: map, expected hunter2",
        "invalid value: string \"x\", expected hunter2",
        "invalid length 1, expected hunter2",
        "invalid length 48151623, expected a map",
        "unknown variant `x`, expected `hunter2`",
        "unknown variant `x`, expected one of `hunter2`, `b`",
        "unknown field `x`, expected `hunter2`",
        "unknown field `hunter2`, there are no fields",
        "missing field `12-34-56`",
        "invalid type: map, expected 1/2/3",
        "invalid type: map, expected u128",
    ] {
        let shown = message_of::<Config>(&serde_json::json!({ "custom": imitation }));
        assert_eq!(
            shown.rsplit_once(" at byte ").map(|(message, _)| message),
            Some(OPAQUE),
            "{imitation}"
        );
    }
}

/// The bytes do not contain numbers as text.
#[test]
fn numbers_never_show() {
    for number in [123, 65_536, 4_815_162] {
        let bytes = to_bytes(&number).unwrap_or_default();
        assert_eq!(message::<Number>(&bytes), format!("{OPAQUE} at byte {}", bytes.len()));
    }
}

/// Strings that imitate the rest of serde's message, in every position of a string.
#[test]
fn secrets_never_show() {
    let tricks = [
        "hunter2",
        "\", expected hunter2",
        "`, expected `hunter2`",
        "`, expected one of `hunter2`, `b`",
        "`, there are no variants hunter2",
        "x`, expected `hunter2`, there are no variants",
        "\\\", expected hunter2",
        "missing field `hunter2`",
        "invalid type: map, expected hunter2",
        "\u{7f}\", expected \u{202e}hunter2",
    ];
    let places: [fn(&str) -> serde_json::Value; 8] = [
        |trick| serde_json::Value::from(trick),
        |trick| serde_json::json!([trick]),
        |trick| serde_json::json!({ "port": trick }),
        |trick| serde_json::json!({ "mode": trick }),
        |trick| serde_json::json!({ "mode": { trick: 1 } }),
        |trick| serde_json::json!({ trick: trick }),
        |trick| serde_json::json!({ "url": { "url": trick } }),
        |trick| serde_json::json!({ "custom": trick }),
    ];
    for trick in tricks {
        for place in places {
            let bytes = to_bytes(&place(trick)).unwrap_or_default();
            for end in 0..=bytes.len() {
                for shown in [
                    message::<Config>(&bytes[..end]),
                    message::<Mode>(&bytes[..end]),
                    message::<u32>(&bytes[..end]),
                    message::<BTreeMap<u8, Mode>>(&bytes[..end]),
                    message::<Custom>(&bytes[..end]),
                    message::<Vec<Custom>>(&bytes[..end]),
                ] {
                    assert!(!shown.contains("hunter"), "{bytes:?}: {shown}");
                }
            }
        }
    }
}

#[test]
fn failed_encoding_is_reported_without_content() {
    struct Refuses;
    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom(SECRET))
        }
    }
    let refused = to_bytes(&Refuses).map_err(|error| format!("{error} {error:?}"));
    assert_eq!(
        refused,
        Err("the type refuses to be serialized EncodeError { message: \"the type refuses to be serialized\" }"
            .to_owned())
    );
}
