use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::cases::{Config, MessagePack, Mode, message as decode_message};
use super::*;

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
    decode_message::<MessagePack, T>(bytes)
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

/// The bytes do not contain numbers as text.
#[test]
fn numbers_never_show() {
    for number in [123, 65_536, 4_815_162] {
        let bytes = to_bytes(&number).unwrap_or_default();
        assert_eq!(message::<Number>(&bytes), format!("{OPAQUE} at byte {}", bytes.len()));
    }
}
