use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::cases::{Custom, Postcard, SECRET, message as decode_message};
use super::*;

fn message<T: DeserializeOwned>(bytes: &[u8]) -> String {
    decode_message::<Postcard, T>(bytes)
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only its errors matter")]
enum Mode {
    Plain,
    Tls(bool),
}

#[test]
fn errors_say_what_and_where() {
    assert_eq!(message::<(u8, u8)>(b"\x01"), "postcard: unexpected end at byte 1");
    assert_eq!(message::<(u8, String)>(b"\x01\x07hunter"), "postcard: unexpected end at byte 2");
    assert_eq!(message::<u8>(b""), "the value is empty at byte 0");
    assert_eq!(message::<()>(b""), "");
    assert_eq!(message::<u8>(b"\x01\x02"), "postcard: more bytes after the value at byte 1");
    assert_eq!(message::<u16>(b"\xff\xff\xff"), "postcard: a number is out of range at byte 3");
    assert_eq!(message::<bool>(b"\x07"), "postcard: a boolean is neither 0 nor 1 at byte 1");
    assert_eq!(message::<char>(b"\x05hunte"), "postcard: a character is none at byte 1");
    assert_eq!(message::<String>(b"\x01\xff"), "postcard: a string is not UTF-8 at byte 2");
    assert_eq!(message::<Option<u8>>(b"\x02"), "postcard: an option is neither 0 nor 1 at byte 1");
    assert_eq!(message::<Mode>(b"\x02"), "does not fit the type at byte 1");
    assert_eq!(message::<Custom>(b"\x07hunter2"), "does not fit the type at byte 8");
    assert_eq!(
        message::<serde_json::Value>(b"\x07hunter2"),
        "the type can only be read from a format that describes itself, which postcard does not at byte 0"
    );
}

#[test]
fn length_that_is_not_known_beforehand_is_rejected() {
    #[derive(Serialize)]
    struct Outer {
        #[serde(flatten)]
        inner: Inner,
    }
    #[derive(Serialize)]
    struct Inner {
        secret: &'static str,
    }
    let rejected =
        to_bytes(&Outer { inner: Inner { secret: SECRET } }).map_err(|error| error.to_string());
    assert_eq!(
        rejected,
        Err("the type does not know the length of a part beforehand, which postcard needs"
            .to_owned())
    );
}
