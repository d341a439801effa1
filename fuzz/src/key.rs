//! Keys: the grammar, checked independently of the library, and the fields of records in keys.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer, Key, KeyValue, KvError};

#[derive(Debug, Serialize, Deserialize, KeyValue, JsonByteSer, JsonByteDes)]
#[allow(dead_code, reason = "only its key is made")]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    tenant: String,
    id: u64,
}

/// A key with a field at its very start, where not every text is allowed.
#[derive(Debug, Serialize, Deserialize, KeyValue, JsonByteSer, JsonByteDes)]
#[allow(dead_code, reason = "only its key is made")]
#[kv(key = "{first}.{second}")]
struct Pair {
    first: String,
    second: String,
}

/// Reads the bytes as a key, as a key of records, and as their fields.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    checks_as_the_grammar_says(&text);
    // A letter at the front lets more of the text be checked.
    checks_as_the_grammar_says(&format!("a{text}"));

    prints_what_it_parses::<PairKey>(&text);
    prints_what_it_parses::<UserKey>(&text);
    prints_what_it_parses::<UserKey>(&format!("user.{text}"));

    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    let key = PairKey::from((first.to_owned(), second.to_owned()));
    let printed = parses_what_it_prints(&key);
    let tokens = printed.split('.').collect::<Vec<_>>();
    assert_eq!(tokens.len(), 2, "{printed}");
    let swapped = PairKey::from((second.to_owned(), first.to_owned())).to_string();
    assert_eq!(printed == swapped, first == second, "two records share {printed}");
    parses_what_it_prints(&UserKey::from((first.to_owned(), second.len() as u64)));
}

/// Returns keys and fields with all special features.
pub fn examples() -> Vec<Vec<u8>> {
    let long = "a.".repeat(512);
    let texts = [
        "a",
        "config.database",
        "user.a=2Eb.7",
        "user.a=2eb.7",
        "user.=41.7",
        "user.=.0",
        "=5Fkv.=",
        "_kv",
        "_k.v",
        "a..b",
        ".a",
        "a.",
        "A-z_0/9=",
        "é.\u{10ffff}",
        "first\nsecond",
        "_kv\n_kv",
        "=\n.",
        &long,
        &long[..1023],
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

const LONGEST: usize = 1024;

fn is_key(text: &[u8]) -> bool {
    text.len() <= LONGEST && is_key_of_any_length(text)
}

fn is_key_of_any_length(text: &[u8]) -> bool {
    let is_token = |token: &[u8]| {
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"_=/-".contains(byte);
        !token.is_empty() && token.iter().all(is_allowed)
    };
    !text.starts_with(b"_kv") && text.split(|byte| *byte == b'.').all(is_token)
}

/// Returns the first byte after which the text can no longer become a key, whatever follows. If
/// something is missing, it is the last byte.
fn first_offence(text: &[u8]) -> usize {
    if text.starts_with(b"_kv") {
        return 0;
    }
    let can_become_key = |start: &[u8]| is_key_of_any_length(&[start, b"a"].concat());
    let offence = (0..text.len().min(LONGEST)).find(|&at| !can_become_key(&text[..=at]));
    offence.unwrap_or(LONGEST.min(text.len().saturating_sub(1)))
}

fn checks_as_the_grammar_says(text: &str) {
    match Key::new(text) {
        Ok(key) => {
            assert!(is_key(text.as_bytes()), "{text:?} is no key");
            assert_eq!(key.as_str(), text);
        }
        Err(KvError::InvalidKey { position, .. }) => {
            assert!(!is_key(text.as_bytes()), "{text:?} is a key");
            assert_eq!(position, first_offence(text.as_bytes()), "{text:?}");
        }
        Err(error) => panic!("{error}"),
    }
}

fn prints_what_it_parses<K: FromStr + Display>(text: &str) {
    if let Ok(key) = text.parse::<K>() {
        assert_eq!(key.to_string(), text);
    }
}

fn parses_what_it_prints<K>(key: &K) -> String
where
    K: FromStr<Err: Debug> + Display + PartialEq + Debug,
{
    let printed = key.to_string();
    assert_eq!(&printed.parse::<K>().unwrap(), key);
    assert_eq!(Key::new(&printed).is_ok(), printed.len() <= 1024, "{printed}");
    printed
}
