//! MessagePack with the names of fields, so that fields can be added and other programs can read
//! it.

use bytes::Bytes;
use rmp_serde::{Deserializer, decode, encode};

use super::bounded::{Bounds, EMPTY_ELEMENTS, LEVELS};
use super::limited::{Format, Limits};
use super::required::{CanDeserialize, CanSerialize};
use super::serde_message::{OPAQUE, shown};
use super::{DecodeError, EncodeError};

/// The limits of [`from_bytes`].
struct Reader;

impl Format for Reader {
    const LEVELS: usize = LEVELS;
    const COUNTS_LEAVES: bool = true;
    const EMPTY_ELEMENTS: Option<usize> = Some(EMPTY_ELEMENTS);
    const HAS_INFINITY: bool = true;
    const UNIT_IS_NONE: bool = true;
    const UNIT_STRUCT_IS_NONE: bool = false;
    const HAS_NAMES: bool = true;
}

/// Encodes a value as MessagePack: structs as maps with the names of their fields, enums by the
/// names of their variants.
pub fn to_bytes<T: CanSerialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let limits = Limits::new(Reader);
    let written = rmp_serde::to_vec_named(&limits.around(value));
    if let Some(rejection) = limits.rejection(written.as_ref().ok().map(Vec::len)) {
        return Err(EncodeError::new(format!("MessagePack: {rejection}")));
    }
    written.map(Bytes::from).map_err(|error| {
        EncodeError::new(match error {
            encode::Error::InvalidValueWrite(_) => "not enough memory for the bytes",
            encode::Error::DepthLimitExceeded => "nested too deeply",
            // The type's own message can quote anything.
            _ => "the type refuses to be serialized",
        })
    })
}

/// Decodes a value from MessagePack. Bytes after the value are an error.
pub fn from_bytes<T: CanDeserialize>(bytes: &Bytes) -> Result<T, DecodeError> {
    let bounds = Bounds::new(bytes.len());
    // Uses a reader, because only then the deserializer reports its position.
    let mut deserializer = Deserializer::new(bytes.as_ref());
    let read = bounds.read(&mut deserializer);
    let offset = bytes.len() - deserializer.get_ref().len();
    match read {
        Ok(value) if offset == bytes.len() => Ok(value),
        Ok(_) => Err(DecodeError::new("MessagePack: more bytes after the value").at_offset(offset)),
        Err(error) => Err(translate(&error, &bounds, bytes).at_offset(offset)),
    }
}

#[cold]
fn translate(error: &decode::Error, bounds: &Bounds, bytes: &[u8]) -> DecodeError {
    if let Some(rejection) = bounds.rejection() {
        return DecodeError::new(format!("MessagePack: {rejection}"));
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
        decode::Error::Syntax(message) => {
            let shown = shown(message, bounds, &String::from_utf8_lossy(bytes));
            shown.map_or_else(|| DecodeError::new(OPAQUE), DecodeError::new)
        }
        decode::Error::Uncategorized(_) => DecodeError::new(OPAQUE),
    }
}

/// Returns the error for a wrong kind in place of a requested number or boolean, in serde's words.
/// Its text contains only the kind from the first byte, because the rest can be the value itself.
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

#[cfg(test)]
mod tests;
