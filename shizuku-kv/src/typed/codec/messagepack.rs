//! MessagePack, with the names of fields, so that fields can be added and others can read it.

use bytes::Bytes;
use rmp_serde::{Deserializer, decode, encode};

use super::bounded::{Bounds, EMPTY_ELEMENTS, LEVELS};
use super::limited::{Format, Limits};
use super::required::{CanDeserialize, CanSerialize};
use super::serde_message::{OPAQUE, digits, harmless, is_vocabulary, kept_from_type, words};
use super::{DecodeError, EncodeError};

/// The limits of [`from_bytes`].
const FORMAT: Format = Format {
    levels: LEVELS,
    counts_leaves: true,
    empty_elements: Some(EMPTY_ELEMENTS),
    has_infinity: true,
    unit_is_none: true,
    unit_struct_is_none: false,
    has_names: true,
};

/// A value as MessagePack: structs as maps with the names of their fields, enums by the names of their variants.
pub fn to_bytes<T: CanSerialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let limits = Limits::new(FORMAT);
    let written = rmp_serde::to_vec_named(&limits.around(value));
    if let Some(refusal) = limits.refusal(written.as_ref().ok().map(Vec::len)) {
        return Err(EncodeError::new(format!("MessagePack: {refusal}")));
    }
    written.map(Bytes::from).map_err(|error| {
        EncodeError::new(match error {
            encode::Error::InvalidValueWrite(_) => "not enough memory for the bytes",
            encode::Error::DepthLimitExceeded => "nested too deeply",
            // What the type's own code says can quote anything.
            _ => "the type refuses to be serialized",
        })
    })
}

/// A value from MessagePack, which must be all there is.
pub fn from_bytes<T: CanDeserialize>(bytes: &Bytes) -> Result<T, DecodeError> {
    let bounds = Bounds::new(bytes.len());
    // Over a reader, since only there the deserializer says how far it came.
    let mut deserializer = Deserializer::new(bytes.as_ref());
    let read = bounds.read(&mut deserializer);
    let place = bytes.len() - deserializer.get_ref().len();
    match read {
        Ok(value) if place == bytes.len() => Ok(value),
        Ok(_) => Err(DecodeError::new("MessagePack: more bytes after the value").at_offset(place)),
        Err(error) => Err(translate(&error, &bounds, bytes).at_offset(place)),
    }
}

#[cold]
fn translate(error: &decode::Error, bounds: &Bounds, bytes: &[u8]) -> DecodeError {
    if let Some(refusal) = bounds.refusal() {
        return DecodeError::new(format!("MessagePack: {refusal}"));
    }
    match error {
        decode::Error::InvalidMarkerRead(_) | decode::Error::InvalidDataRead(_)
            if bytes.is_empty() =>
        {
            DecodeError::new("the value is empty")
        }
        decode::Error::InvalidMarkerRead(_) | decode::Error::InvalidDataRead(_) => {
            DecodeError::new("MessagePack: unexpected end")
        }
        decode::Error::TypeMismatch(found) => mismatch(found.to_u8(), bounds.asked()),
        decode::Error::OutOfRange => DecodeError::new("a number is out of range"),
        // The length is one of the value.
        decode::Error::LengthMismatch(_) => DecodeError::new("invalid length"),
        decode::Error::Utf8Error(_) => DecodeError::new("MessagePack: a string is not UTF-8"),
        decode::Error::DepthLimitExceeded => DecodeError::new("MessagePack: nested too deeply"),
        decode::Error::Syntax(message) => match shown(message, bounds, bytes) {
            Some(shown) => DecodeError::new(shown),
            None => DecodeError::new(OPAQUE),
        },
        decode::Error::Uncategorized(_) => DecodeError::new(OPAQUE),
    }
}

/// What stands where a number or a boolean was asked for, in serde's words. Of its first byte only the kind is said: the
/// rest can be the value itself.
fn mismatch(found: u8, asked: &str) -> DecodeError {
    let kind = match found {
        0x00..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff => "integer",
        0x80..=0x8f | 0xde | 0xdf => "map",
        0x90..=0x9f | 0xdc | 0xdd => "sequence",
        0xa0..=0xbf | 0xd9..=0xdb => "string",
        0xc0 => "unit value",
        0xc1 => return DecodeError::new("MessagePack: a byte that stands for nothing"),
        0xc2 | 0xc3 => "boolean",
        0xc4..=0xc6 => "byte array",
        0xc7..=0xc9 | 0xd4..=0xd8 => "extension",
        0xca | 0xcb => "floating point",
    };
    DecodeError::new(match asked {
        "" => format!("invalid type: {kind}"),
        asked => format!("invalid type: {kind}, expected {asked}"),
    })
}

/// What can be shown of a message of serde or of the type's own code.
fn shown(message: &str, bounds: &Bounds, bytes: &[u8]) -> Option<String> {
    let kept = harmless(message)?;
    if is_from_type(&kept, bounds, bytes) {
        return Some(kept);
    }
    // What stands before is one of few constants, or a length.
    let (found, _) = kept.split_once(", expected ")?;
    (!found.starts_with("invalid length ")).then(|| found.to_owned())
}

/// Whether nothing in a kept message is from the value.
///
/// What the type declares is not. Else a word is taken to be from the value if it shares four characters with its
/// bytes, or all it has, and so are more than two digits in a row: numbers are not in the bytes as text.
fn is_from_type(kept: &str, bounds: &Bounds, bytes: &[u8]) -> bool {
    let kept = kept.to_lowercase();
    let (mut doubtful, mut numbers) = (Vec::new(), String::new());
    for word in words(kept_from_type(&kept)) {
        let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
        let is_known = is_vocabulary(word) || bounds.is_declared(word);
        // A word parts the digits before it from those after it.
        numbers.push_str(if is_known && !is_number { "x" } else { word });
        if !is_known {
            doubtful.push(word);
        }
    }
    if numbers.split(char::is_alphabetic).any(|run| digits(run).len() > 2) {
        return false;
    }
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    !doubtful.iter().any(|word| shares(word, &text))
}

fn shares(word: &str, text: &str) -> bool {
    const ENOUGH: usize = 4;
    let starts = word.char_indices().map(|(start, _)| start).collect::<Vec<_>>();
    match starts.len() {
        0..=ENOUGH => text.contains(word),
        _ => {
            let ends = starts.iter().copied().skip(ENOUGH).chain([word.len()]);
            starts.iter().zip(ends).any(|(start, end)| text.contains(&word[*start..end]))
        }
    }
}

#[cfg(test)]
mod tests;
