//! JSON, and its errors without quotations of the value.
//!
//! serde_json's messages quote the rejected part of the value
//! (`invalid type: string "hunter2", expected u32`). Such a message may not be shown or stored as a
//! source. A message is parsed by serde's grammar, and only the parts from the *type* are kept.
//! These are the found kind, the expectation, and the names of fields and variants that the type
//! declares. A message outside of that grammar comes from a type's own code, which can quote
//! anything, and is not shown at all. A message that follows the grammar can be an imitation. It is
//! not shown if it shares text with the value that the type does not declare (ADR 0018).

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::error::Category;

use super::bounded::Bounds;
use super::limited::{Format, Limits};
use super::required::{CanDeserialize, CanSerialize};
use super::serde_message::{OPAQUE, shown};
use super::{DecodeError, EncodeError};

/// Maximum length in bytes of a value that a message is compared with. For a larger value, an error
/// contains only the position.
const LARGEST_COMPARED: usize = 64 * 1024;

/// The limits of serde_json as a reader.
struct Reader;

impl Format for Reader {
    const LEVELS: usize = 127;
    const COUNTS_LEAVES: bool = false;
    const EMPTY_ELEMENTS: Option<usize> = None;
    const HAS_INFINITY: bool = false;
    const UNIT_IS_NONE: bool = true;
    const UNIT_STRUCT_IS_NONE: bool = true;
    const HAS_NAMES: bool = true;
}

/// Encodes a value as JSON.
pub fn to_bytes<T: CanSerialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let limits = Limits::new(Reader);
    serde_json::to_vec(&limits.around(value)).map(Bytes::from).map_err(|error| {
        match (limits.rejection(None), error.classify()) {
            (Some(rejection), _) => EncodeError::new(format!("JSON: {rejection}")),
            // A message of the type's own code can quote any part of the value.
            (None, Category::Data | Category::Io) => {
                EncodeError::new("the type refuses to be serialized")
            }
            (None, Category::Syntax | Category::Eof) => EncodeError::new(without_position(&error)),
        }
    })
}

/// Decodes a value from JSON.
pub fn from_bytes<T: CanDeserialize>(bytes: &Bytes) -> Result<T, DecodeError> {
    serde_json::from_slice(bytes).map_err(|error| translate::<T>(&error, bytes))
}

#[cold]
fn translate<T: CanDeserialize>(error: &serde_json::Error, bytes: &[u8]) -> DecodeError {
    if bytes.is_empty() {
        return DecodeError::new("the value is empty").at_line(1, 1);
    }
    let message = without_position(error);
    // A message that ends like a position can forge one. A forged position rarely exists in these
    // bytes.
    let is_position = is_position(bytes, error.line(), error.column());
    let decoded = match error.classify() {
        // These messages are constants of serde_json.
        Category::Syntax | Category::Eof => DecodeError::new(format!("JSON: {message}")),
        // The comparison is slow, and the names of the fields rarely matter in a value of that
        // size.
        Category::Data if bytes.len() > LARGEST_COMPARED => DecodeError::new(OPAQUE),
        Category::Data => {
            let shown =
                text_of(bytes).and_then(|text| shown(&message, &declared::<T>(bytes), &text));
            shown.map_or_else(|| DecodeError::new(OPAQUE), DecodeError::new)
        }
        Category::Io => DecodeError::new(OPAQUE),
    };
    // The column is 0 if a line ends too early.
    if is_position { decoded.at_line(error.line(), error.column().max(1)) } else { decoded }
}

/// Returns true if a line and a column exist in these bytes.
fn is_position(bytes: &[u8], line: usize, column: usize) -> bool {
    let before = line.checked_sub(1);
    let line = before.and_then(|before| bytes.split(|byte| *byte == b'\n').nth(before));
    line.is_some_and(|line| column <= line.len() + 1)
}

fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&position).map_or_else(|| message.clone(), str::to_owned)
}

/// Returns a value as text with unescaped strings, or `None` if it is not JSON.
fn text_of(bytes: &[u8]) -> Option<String> {
    serde_json::from_slice::<IgnoredAny>(bytes).ok()?;
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    let mut rest = bytes;
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let (literal, after) =
            rest.get(start..)?.split_at_checked(length_of_string(&rest[start..]))?;
        if literal.contains(&b'\\') {
            text.push('\n');
            text.push_str(&serde_json::from_slice::<String>(literal).ok()?);
        }
        rest = after;
    }
    Some(text)
}

/// Returns the names that the types of a failed value declare. Reads the value once more, a cost of
/// failures only.
fn declared<T: CanDeserialize>(bytes: &[u8]) -> Bounds {
    let bounds = Bounds::new(bytes.len());
    let _ = bounds.read::<T, _>(&mut serde_json::Deserializer::from_slice(bytes));
    bounds
}

/// Returns the length of the string literal at the start of these bytes, quotes included.
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
