//! postcard: the smallest bytes, for types that do not change. Only the type knows the meaning of a
//! value.

use bytes::Bytes;
use postcard::{Deserializer, Error};

use super::bounded::{Bounds, EMPTY_ELEMENTS, LEVELS};
use super::limited::{Format, Limits};
use super::required::{CanDeserialize, CanSerialize};
use super::serde_message::OPAQUE;
use super::{DecodeError, EncodeError};

/// The limits of [`from_bytes`].
struct Reader;

impl Format for Reader {
    const LEVELS: usize = LEVELS;
    const COUNTS_LEAVES: bool = true;
    const EMPTY_ELEMENTS: Option<usize> = Some(EMPTY_ELEMENTS);
    const HAS_INFINITY: bool = true;
    const UNIT_IS_NONE: bool = false;
    const UNIT_STRUCT_IS_NONE: bool = false;
    const HAS_NAMES: bool = false;
}

/// Encodes a value as postcard.
pub fn to_bytes<T: CanSerialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let limits = Limits::new(Reader);
    let written = postcard::to_stdvec(&limits.around(value));
    if let Some(rejection) = limits.rejection(written.as_ref().ok().map(Vec::len)) {
        return Err(EncodeError::new(format!("postcard: {rejection}")));
    }
    written.map(Bytes::from).map_err(|error| {
        EncodeError::new(match error {
            Error::SerializeSeqLengthUnknown => {
                "the type does not know the length of a part beforehand, which postcard needs"
            }
            _ => "the type refuses to be serialized",
        })
    })
}

/// Decodes a value from postcard. Bytes after the value are an error.
///
/// A value without any bytes is valid for a type with only one value.
pub fn from_bytes<T: CanDeserialize>(bytes: &Bytes) -> Result<T, DecodeError> {
    let bounds = Bounds::new(bytes.len());
    let mut deserializer = Deserializer::from_bytes(bytes);
    let read = bounds.read(&mut deserializer);
    let offset = bytes.len() - deserializer.finalize().map_or(0, <[u8]>::len);
    match read {
        Ok(value) if offset == bytes.len() => Ok(value),
        Ok(_) => Err(DecodeError::new("postcard: more bytes after the value").at_offset(offset)),
        Err(error) => Err(translate(&error, &bounds, bytes).at_offset(offset)),
    }
}

#[cold]
fn translate(error: &Error, bounds: &Bounds, bytes: &[u8]) -> DecodeError {
    if let Some(rejection) = bounds.rejection() {
        return DecodeError::new(format!("postcard: {rejection}"));
    }
    DecodeError::new(match error {
        Error::DeserializeUnexpectedEnd if bytes.is_empty() => "the value is empty",
        Error::DeserializeUnexpectedEnd => "postcard: unexpected end",
        Error::DeserializeBadVarint => "postcard: a number is out of range",
        Error::DeserializeBadBool => "postcard: a boolean is neither 0 nor 1",
        Error::DeserializeBadChar => "postcard: a character is none",
        Error::DeserializeBadUtf8 => "postcard: a string is not UTF-8",
        Error::DeserializeBadOption => "postcard: an option is neither 0 nor 1",
        Error::WontImplement => {
            "the type can only be read from a format that describes itself, which postcard does not"
        }
        // postcard keeps no part of a type's own message.
        _ => OPAQUE,
    })
}

#[cfg(test)]
mod tests;
