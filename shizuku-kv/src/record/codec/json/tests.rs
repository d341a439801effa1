use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::cases::{Config, Json, SECRET, message as decode_message};
use super::*;

fn message<T: DeserializeOwned>(json: &str) -> String {
    decode_message::<Json, T>(json.as_bytes())
}

/// Asserts that only a constant of serde's grammar is left of an imitation.
#[track_caller]
fn assert_bare(shown: &str, json: &str) {
    let bare =
        [OPAQUE, "invalid type: map", "invalid type: string", "unknown variant", "unknown field"];
    let message = shown.split(" at line ").next().unwrap_or_default();
    assert!(bare.contains(&message), "{json}: {shown}");
}

#[test]
fn message_of_type_and_position_are_kept() {
    for (json, expected) in [
        (r#"{"port": 1}"#, "missing field `url` at line 1, column 11"),
        (
            r#"{"url": "x", "port": "hunter2"}"#,
            "invalid type: string, expected u16 at line 1, column 30",
        ),
        (
            r#"{"url": "x", "port": "\"\\"}"#,
            "invalid type: string, expected u16 at line 1, column 27",
        ),
        (r#"{"url": 7}"#, "invalid type: integer, expected a string at line 1, column 9"),
        (
            r#"{"url": -7.25}"#,
            "invalid type: floating point, expected a string at line 1, column 13",
        ),
        (r#"{"url": true}"#, "invalid type: boolean, expected a string at line 1, column 12"),
        (r#"{"url": null}"#, "invalid type: null, expected a string at line 1, column 12"),
        (r#"{"url": []}"#, "invalid type: sequence, expected a string at line 1, column 8"),
        ("{\n\"port\": 70000}", "invalid value: integer, expected u16 at line 2, column 13"),
        (r#"{"pair": [1]}"#, "invalid length 1, expected a tuple of size 2 at line 1, column 12"),
        (r#"{"pair": [1, 2, 3]}"#, "JSON: trailing characters at line 1, column 17"),
        (r#"{"url": "x", "url": "x"}"#, "duplicate field `url` at line 1, column 18"),
        (
            r#"{"mode": "hunter2"}"#,
            "unknown variant, expected `plain` or `tls` at line 1, column 18",
        ),
        (
            r#"{"hunter2": 1}"#,
            "unknown field, expected one of `url`, `port`, `mode`, `pair`, `custom`, `sha256` at line 1, column 10",
        ),
        ("7", "invalid type: integer, expected struct Config at line 1, column 1"),
        ("{\"url\": \"hunter2", "JSON: EOF while parsing a string at line 1, column 16"),
        ("", "the value is empty at line 1, column 1"),
        ("{\n", "JSON: EOF while parsing an object at line 2, column 1"),
        ("hunter2", "JSON: expected value at line 1, column 1"),
    ] {
        assert_eq!(message::<Config>(json), expected, "{json}");
    }
    assert_eq!(
        message::<BTreeMap<u8, u8>>(r#"{"hunter2": 1}"#),
        "JSON: invalid value: expected key to be a number in quotes at line 1, column 2"
    );
    assert_eq!(message::<i64>("\"1\""), "invalid type: string, expected i64 at line 1, column 3");
    assert_eq!(
        message::<char>("\"hunter2\""),
        "invalid value: string, expected a character at line 1, column 9"
    );
    assert_eq!(
        message::<std::net::IpAddr>("\"hunter2\""),
        "does not fit the type at line 1, column 9"
    );
}

/// A type whose error is one of the keys of an object.
#[derive(Debug, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>")]
struct ByKey;

impl TryFrom<BTreeMap<String, Value>> for ByKey {
    type Error = String;

    fn try_from(map: BTreeMap<String, Value>) -> Result<Self, String> {
        let message =
            map.iter().find_map(|(key, message)| Some(message.as_str()?.replace('?', key)));
        Err(message.unwrap_or_default())
    }
}

/// A type whose error occurs in a key.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct BadKey;

impl TryFrom<String> for BadKey {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        Err(format!("duplicate field `{key}`"))
    }
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only its errors matter")]
struct Around {
    before: Option<u8>,
    by_key: ByKey,
    after: Option<u8>,
}

/// Object keys are content as well, because a type's own code can quote them.
#[test]
fn keys_never_show() {
    for imitation in [
        "missing field `?`",
        "duplicate field `?`",
        "invalid type: map, expected ?",
        "invalid type: string \"\", expected ?",
        "invalid length 1, expected ?",
        "unknown variant `x`, expected `?`",
        "unknown field `x`, expected `?`",
        "unknown field `x`, expected one of `?`, `b`",
    ] {
        let inner = serde_json::json!({ SECRET: imitation }).to_string();
        for json in [
            format!("{{\"by_key\": {inner}}}"),
            format!("{{\"by_key\": {inner} }}"),
            format!("{{\"by_key\": {inner} , \"after\": 1}}"),
            format!("{{\"by_key\": {inner}, \"by_key\": {{}}}}"),
        ] {
            let shown = message::<Around>(&json);
            assert_bare(&shown, &json);
        }
        for json in [format!("[{inner}]"), format!("[{inner} , {{}}]")] {
            let shown = message::<Vec<ByKey>>(&json);
            assert_bare(&shown, &json);
        }
        assert_bare(&message::<ByKey>(&inner), &inner);
    }
    let shown = message::<BTreeMap<BadKey, u8>>("{\"hunter2\": 1}");
    assert!(shown.starts_with(OPAQUE), "{shown}");
    // A map would keep only the last of these.
    let shown = message::<Config>(r#"{"custom": "missing field `hunter2`", "custom": null}"#);
    assert!(shown.starts_with(OPAQUE), "{shown}");
}

/// A type's own names are shown, even if they are keys of the value, as they usually are.
#[test]
fn names_that_are_keys_as_well_are_kept() {
    assert_eq!(
        message::<Vec<Config>>(r#"[{"port": 1}, {"url": "x"}]"#),
        "missing field `url` at line 1, column 12"
    );
    assert_eq!(
        message::<BTreeMap<String, Config>>(r#"{"url": {"ports": 1}}"#),
        "unknown field, expected one of `url`, `port`, `mode`, `pair`, `custom`, `sha256` at line 1, column 16"
    );
    assert_eq!(
        message::<Config>("{\"url\": \"x\",\n\"url\" : 7}"),
        "duplicate field `url` at line 2, column 6"
    );
    assert_eq!(
        message::<BTreeMap<String, Config>>(r#"{"config": 7}"#),
        "invalid type: integer, expected struct Config at line 1, column 12"
    );
    assert_eq!(
        message::<Config>(r#"{"url": "x", "port": 1, "urls": 1}"#),
        "unknown field, expected one of `url`, `port`, `mode`, `pair`, `custom`, `sha256` at line 1, column 30"
    );
}

/// Digits in groups that are too short to distinguish from counts on their own.
#[test]
fn numbers_in_groups_never_show() {
    for secret in ["12-34-56", "12.34.56", "12 34 56", "1/2/3"] {
        for imitation in [
            "missing field `?`",
            "invalid type: map, expected ?",
            "unknown field `x`, expected `?`",
        ] {
            let imitation = imitation.replace('?', secret);
            let json = serde_json::json!({ "custom": imitation }).to_string();
            let shown = message::<Config>(&json);
            assert_bare(&shown, &json);
        }
    }
    let shown = message::<ByKey>(r#"{"12-34-56": "missing field `?`"}"#);
    assert_eq!(shown, OPAQUE);
}

/// A type whose error quotes a part of the rejected value.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Pieces;

impl TryFrom<String> for Pieces {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (piece, form) = text.split_once('|').unwrap_or_default();
        Err(form
            .replace('?', piece.get(1..6).unwrap_or_default())
            .replace('%', piece.get(..3).unwrap_or_default()))
    }
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only its errors matter")]
struct Holder {
    secret: String,
    pieces: Pieces,
}

/// Four characters of a value count as the value, from any field, and even if other text surrounds
/// them. So does a whole shorter word.
#[test]
fn pieces_of_a_value_are_not_shown() {
    for form in [
        "missing field `zz?zz`",
        "missing field `?`",
        "missing field `%`",
        "duplicate field `a_?_b`",
        "invalid type: map, expected a ?-ish thing",
        "invalid length 1, expected %",
        "unknown variant `x`, expected `zz?` or `b`",
        "unknown field `x`, expected one of `%`, `?`",
    ] {
        for escaped in ["hunter2", "\\u0068\\u0075\\u006e\\u0074\\u0065\\u0072\\u0032"] {
            let json = format!("{{\"secret\": \"hunter2\", \"pieces\": \"{escaped}|{form}\"}}");
            let shown = message::<Holder>(&json);
            assert!(
                !shown.is_empty() && !shown.contains("unte") && !shown.contains("hun"),
                "{json}: {shown}"
            );
        }
    }
}

#[test]
fn longest_compared_value_keeps_its_message() {
    let json = |len: usize| {
        let rest = len - r#"{"mode": ""}"#.len();
        format!(r#"{{"mode": "{}"}}"#, "x".repeat(rest))
    };
    let kept = message::<Config>(&json(LARGEST_COMPARED));
    assert!(kept.starts_with("unknown variant"), "{kept}");
    let opaque = message::<Config>(&json(LARGEST_COMPARED + 1));
    assert!(opaque.starts_with(OPAQUE), "{opaque}");
}
