//! JSON, and its errors without what they quote.
//!
//! serde_json's messages repeat what they object to (`invalid type: string "hunter2", expected u32`), so that none of
//! them may be shown or kept as a source. Here a message is taken apart by the grammar that serde writes it in, and
//! only what comes from the *type* is kept: the kind of what was found, what was expected, the names of fields and
//! variants that the type declares. What does not follow that grammar comes from a type's own code, which can quote
//! anything, and is not shown at all. Neither is a message that follows it but contains a scalar of the value, or an
//! object's key that the code which failed can have seen: it was made to look so.

use std::collections::HashSet;

use bytes::Bytes;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_json::error::Category;

use super::{DecodeError, EncodeError};

/// What is said where nothing may be quoted.
const OPAQUE: &str = "does not fit the type";

/// A value as JSON.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| match error.classify() {
        // What the type's own code says can quote anything.
        Category::Data | Category::Io => EncodeError::new("the type refuses to be serialized"),
        Category::Syntax | Category::Eof => EncodeError::new(without_position(&error)),
    })
}

/// A value from JSON.
pub fn from_bytes<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError> {
    serde_json::from_slice(bytes).map_err(|error| translate(&error, bytes))
}

#[cold]
fn translate(error: &serde_json::Error, bytes: &[u8]) -> DecodeError {
    if bytes.is_empty() {
        return DecodeError::new("the value is empty").at_line(1, 1);
    }
    let message = without_position(error);
    // A position can be forged by a message that ends like one; then it is hardly a place in these bytes.
    let place = place(bytes, error.line(), error.column());
    let decoded = match error.classify() {
        // These messages are constants of serde_json.
        Category::Syntax | Category::Eof => DecodeError::new(format!("JSON: {message}")),
        Category::Data => match harmless(&message) {
            Some(kept) if !quotes(&kept, &message, bytes, place) => DecodeError::new(kept),
            _ => DecodeError::new(OPAQUE),
        },
        Category::Io => DecodeError::new(OPAQUE),
    };
    match place {
        // The column is 0 where a line ends too early.
        Some(_) => decoded.at_line(error.line(), error.column().max(1)),
        None => decoded,
    }
}

/// How many bytes had been read when the error came, by its line and column.
fn place(bytes: &[u8], line: usize, column: usize) -> Option<usize> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let before = line.checked_sub(1)?;
    let start = lines.by_ref().take(before).map(|line| line.len() + 1).sum::<usize>();
    let line = lines.next()?;
    (column <= line.len() + 1).then(|| (start + column).min(bytes.len()))
}

fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&position).map_or_else(|| message.clone(), str::to_owned)
}

/// The part of serde's message that the type wrote, not the value.
fn harmless(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("invalid type: ") {
        let (kind, expected) = found_and_expected(rest)?;
        return Some(format!("invalid type: {kind}, expected {}", description(expected)?));
    }
    if let Some(rest) = message.strip_prefix("invalid value: ") {
        let (kind, expected) = found_and_expected(rest)?;
        // Types in the wild put the error of their parser here, which can quote what it parsed.
        return Some(match expected {
            "i8" | "i16" | "i32" | "i64" | "i128" | "isize" | "u8" | "u16" | "u32" | "u64" | "u128"
            | "usize" | "f32" | "f64" | "a character" => {
                format!("invalid value: {kind}, expected {expected}")
            }
            _ => format!("invalid value: {kind}"),
        });
    }
    if let Some(rest) = message.strip_prefix("invalid length ") {
        let (length, expected) = rest.split_once(", expected ")?;
        let length = length.parse::<usize>().ok()?;
        return Some(format!("invalid length {length}, expected {}", description(expected)?));
    }
    for prefix in ["missing field", "duplicate field"] {
        if let Some(name) = message.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(' ')) {
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            return is_name(name).then(|| format!("{prefix} `{name}`"));
        }
    }
    for what in ["unknown variant", "unknown field"] {
        if let Some(rest) = message.strip_prefix(what) {
            let rest = rest.strip_prefix(" `")?;
            if rest.ends_with("`, there are no variants") || rest.ends_with("`, there are no fields") {
                return Some(what.to_owned());
            }
            // The name that was found stands before the list and can contain anything; nothing follows the list.
            let (_, list) = rest.rsplit_once("`, expected ")?;
            let names = listed(list)?;
            return Some(format!("{what}, expected {names}"));
        }
    }
    None
}

/// The kind of what was found, without the literal, and what was expected.
fn found_and_expected(rest: &str) -> Option<(&'static str, &str)> {
    const BARE: [&str; 12] = [
        "null",
        "unit value",
        "byte array",
        "Option value",
        "newtype struct",
        "sequence",
        "map",
        "enum",
        "unit variant",
        "newtype variant",
        "tuple variant",
        "struct variant",
    ];
    let (kind, after) = if let Some(literal) = rest.strip_prefix("string ") {
        ("string", after_quoted(literal)?)
    } else if let Some(literal) = rest.strip_prefix("character `") {
        let mut characters = literal.chars();
        characters.next()?;
        ("character", characters.as_str().strip_prefix('`')?)
    } else if let Some(literal) = rest.strip_prefix("boolean `") {
        ("boolean", literal.strip_prefix("true`").or_else(|| literal.strip_prefix("false`"))?)
    } else if let Some(literal) = rest.strip_prefix("integer `") {
        let after = after_number(literal)?;
        let after =
            after.strip_prefix(" as i128").or_else(|| after.strip_prefix(" as u128")).unwrap_or(after);
        ("integer", after)
    } else if let Some(literal) = rest.strip_prefix("floating point `") {
        ("floating point", after_number(literal)?)
    } else {
        let kind = BARE
            .into_iter()
            .find(|kind| rest.strip_prefix(kind).is_some_and(|after| after.starts_with(',')))?;
        (kind, rest.strip_prefix(kind)?)
    };
    Some((kind, after.strip_prefix(", expected ")?))
}

/// What follows a string in `Debug`'s form, which ends at the first quote that is not escaped.
fn after_quoted(literal: &str) -> Option<&str> {
    let body = literal.strip_prefix('"')?;
    let mut escaped = false;
    let end = body.find(|character| match character {
        _ if escaped => {
            escaped = false;
            false
        }
        '\\' => {
            escaped = true;
            false
        }
        character => character == '"',
    })?;
    body.get(end + 1..)
}

fn after_number(literal: &str) -> Option<&str> {
    let (number, after) = literal.split_once('`')?;
    (!number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c))).then_some(after)
}

/// What a type says that it expects: a short phrase, not something that quotes.
fn description(expected: &str) -> Option<&str> {
    let is_phrase = !expected.is_empty()
        && expected.len() <= 120
        && expected.chars().all(|c| c.is_alphanumeric() || " _-,.:<>()[]`/#'".contains(c));
    is_phrase.then_some(expected)
}

/// A list of names as serde writes it: `` `a` ``, `` `a` or `b` ``, ``one of `a`, `b`, `c` ``.
fn listed(list: &str) -> Option<&str> {
    let (names, separator) = match list.strip_prefix("one of ") {
        Some(names) => (names, ", "),
        None => (list, " or "),
    };
    names
        .split(separator)
        .all(|name| name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).is_some_and(is_name))
        .then_some(list)
}

/// A name that a type may declare for a field or a variant.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || "_-.$@ /:".contains(c);
    !name.is_empty() && name.len() <= 120 && name.chars().all(allowed)
}

/// Whether `kept` shares something with a scalar of the value, or with a key that was seen: then it does not come from
/// the type alone.
///
/// Bytes that are no JSON as a whole are taken to be quoted.
fn quotes(kept: &str, message: &str, bytes: &[u8], place: Option<usize>) -> bool {
    let Some(texts) = texts(bytes) else { return true };
    let kept = kept.to_lowercase();
    let from_type = kept_from_type(&kept);
    let words = words(from_type).filter(|word| !is_vocabulary(word)).collect::<Vec<_>>();
    let numbers = from_type.split(char::is_alphabetic).map(digits).filter(|run| run.len() > 2);
    let numbers = numbers.collect::<Vec<_>>();
    let is_shared = |text: &str| {
        let run = digits(text);
        numbers.iter().any(|number| run.contains(number))
            || words.iter().any(|word| match word.len() {
                0..4 => self::words(text).any(|part| part == *word),
                _ => {
                    text.contains(word)
                        || self::words(text).any(|part| part.len() >= 4 && word.contains(part))
                }
            })
    };
    // A name that is missing from where others are: only where it is the same.
    let is_same = |text: &str| {
        numbers.contains(&digits(text))
            || words.iter().any(|word| self::words(text).any(|part| part == *word))
    };
    let seen = seen(&texts, bytes, place);
    let is_seen = |key: &str| match message.starts_with("missing field ") {
        true => is_same(key),
        false => is_shared(key),
    };
    texts.iter().any(|text| !text.is_key && is_shared(&text.text.to_lowercase()))
        || !is_about_a_key(message, seen)
            && seen.iter().any(|key| key.is_key && is_seen(&key.text.to_lowercase()))
}

/// Those parts of the value that the code which failed at a place can have seen.
///
/// A type's own code fails over a value that has been read: the one that ends at that place, or is the last in it.
fn seen<'t>(texts: &'t [Text], bytes: &[u8], place: Option<usize>) -> &'t [Text] {
    let Some(read) = place.and_then(|place| bytes.get(..place)) else { return texts };
    // What separates it from the next one may have been read too.
    let read = read.trim_ascii_end();
    let read = read.strip_suffix(b",").unwrap_or(read).trim_ascii_end();
    let until = texts.partition_point(|text| text.end <= read.len());
    let texts = texts.get(..until).unwrap_or_default();
    let from = match read.last() {
        Some(b'}' | b']') => {
            let start = start_of_container(read);
            texts.partition_point(|text| text.end <= start)
        }
        _ => texts.partition_point(|text| text.end < read.len()),
    };
    texts.get(from..).unwrap_or_default()
}

/// Where the object or array begins with which these bytes end.
fn start_of_container(read: &[u8]) -> usize {
    let mut open = Vec::new();
    let mut start = 0;
    let mut place = 0;
    while let Some(byte) = read.get(place) {
        match byte {
            b'"' => {
                place += length_of_string(&read[place..]);
                continue;
            }
            b'{' | b'[' => open.push(place),
            b'}' | b']' => start = open.pop().unwrap_or_default(),
            _ => {}
        }
        place += 1;
    }
    start
}

/// Whether serde's derives say this of the key that was just read: that it is there twice, or is none of the type's.
fn is_about_a_key(message: &str, seen: &[Text]) -> bool {
    let [key] = seen else { return false };
    let named = |prefix: &str| {
        message
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix(key.text.as_str()))
            .is_some_and(|rest| rest.starts_with('`'))
    };
    key.is_key
        && (named("unknown field `")
            || named("unknown variant `")
            || key.is_again && named("duplicate field `"))
}

/// A string or a number of the value.
struct Text {
    text: String,
    /// Where it ends.
    end: usize,
    is_key: bool,
    /// A key that its object has had before.
    is_again: bool,
}

/// All strings and numbers of a value in their order, with those that a map would keep only the last of. `None` where
/// it is no JSON.
fn texts(bytes: &[u8]) -> Option<Vec<Text>> {
    serde_json::from_slice::<IgnoredAny>(bytes).ok()?;
    let mut texts = Vec::new();
    // The keys so far of each object that is open; none for an array.
    let mut open = Vec::<HashSet<String>>::new();
    let mut place = 0;
    while let Some(rest) = bytes.get(place..).filter(|rest| !rest.is_empty()) {
        let length = match rest[0] {
            b'"' => length_of_string(rest),
            b'-' | b'0'..=b'9' => {
                rest.iter().take_while(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte)).count()
            }
            other => {
                match other {
                    b'{' | b'[' => open.push(HashSet::new()),
                    b'}' | b']' => drop(open.pop()),
                    _ => {}
                }
                place += 1;
                continue;
            }
        };
        let (literal, after) = rest.split_at_checked(length)?;
        place += length;
        let is_key = literal.starts_with(b"\"") && after.trim_ascii_start().starts_with(b":");
        // Numbers as they would be printed again.
        let text = match serde_json::from_slice(literal).ok()? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let is_again = is_key && open.last_mut().is_some_and(|keys| !keys.insert(text.clone()));
        texts.push(Text { text, end: place, is_key, is_again });
    }
    Some(texts)
}

/// The length of the string literal with which these bytes start, quotes included.
fn length_of_string(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let end = bytes.iter().skip(1).position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => *byte == b'"',
    });
    end.map_or(bytes.len(), |end| end + 2)
}

fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// What of a kept message is not serde's own wording.
fn kept_from_type(kept: &str) -> &str {
    match kept.split_once(", expected ") {
        Some((start, expected)) if !start.starts_with("invalid length ") => expected,
        _ => ["invalid value: ", "invalid length ", "missing field ", "duplicate field "]
            .into_iter()
            .find_map(|prefix| kept.strip_prefix(prefix))
            .unwrap_or(""),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Words with which serde and the standard library say what they expect, and small counts.
fn is_vocabulary(word: &str) -> bool {
    const WORDS: [&str; 49] = [
        "a",
        "an",
        "any",
        "array",
        "boolean",
        "byte",
        "bytes",
        "character",
        "element",
        "elements",
        "enum",
        "expected",
        "f32",
        "f64",
        "field",
        "floating",
        "i128",
        "i16",
        "i32",
        "i64",
        "i8",
        "identifier",
        "integer",
        "isize",
        "map",
        "newtype",
        "nonzero",
        "null",
        "of",
        "one",
        "option",
        "or",
        "point",
        "sequence",
        "size",
        "string",
        "struct",
        "tuple",
        "u128",
        "u16",
        "u32",
        "u64",
        "u8",
        "unit",
        "usize",
        "valid",
        "value",
        "variant",
        "with",
    ];
    WORDS.binary_search(&word).is_ok() || (word.len() <= 2 && word.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
