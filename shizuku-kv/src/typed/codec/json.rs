//! JSON, and its errors without what they quote.
//!
//! serde_json's messages repeat what they object to (`invalid type: string "hunter2", expected u32`), so that none of
//! them may be shown or kept as a source. A message is taken apart by the grammar that serde writes it in, and only
//! what comes from the *type* is kept: the kind of what was found, what was expected, the names of fields and
//! variants that the type declares. What does not follow that grammar comes from a type's own code, which can quote
//! anything, and is not shown at all. Neither is a message that follows it but contains a scalar of the value, or an
//! object's key that the code which failed can have seen: it was made to look so.

use std::collections::HashSet;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::error::Category;

use super::limited::{Format, Limits};
use super::required::{CanDeserialize, CanSerialize};
use super::serde_message::{OPAQUE, digits, harmless, is_vocabulary, kept_from_type, words};
use super::{DecodeError, EncodeError};

/// The largest value that a message is compared with. In a larger one only the place of an error is told.
const LARGEST_COMPARED: usize = 64 * 1024;

/// The limits of serde_json as a reader.
const FORMAT: Format = Format {
    levels: 127,
    counts_leaves: false,
    empty_elements: None,
    has_infinity: false,
    unit_is_none: true,
    unit_struct_is_none: true,
    has_names: true,
};

/// A value as JSON.
pub fn to_bytes<T: CanSerialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let limits = Limits::new(FORMAT);
    serde_json::to_vec(&limits.around(value)).map(Bytes::from).map_err(|error| {
        match (limits.refusal(None), error.classify()) {
            (Some(refusal), _) => EncodeError::new(format!("JSON: {refusal}")),
            // A message of the type's own code can quote any part of the value.
            (None, Category::Data | Category::Io) => {
                EncodeError::new("the type refuses to be serialized")
            }
            (None, Category::Syntax | Category::Eof) => EncodeError::new(without_position(&error)),
        }
    })
}

/// A value from JSON.
pub fn from_bytes<T: CanDeserialize>(bytes: &Bytes) -> Result<T, DecodeError> {
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
        // To compare is slow, and a value of that size is hardly looked at for its fields' names.
        Category::Data if bytes.len() > LARGEST_COMPARED => DecodeError::new(OPAQUE),
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
            b'-' | b'0'..=b'9' => rest
                .iter()
                .take_while(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte))
                .count(),
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

#[cfg(test)]
mod tests;
