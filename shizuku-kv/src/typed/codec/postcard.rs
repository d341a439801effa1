//! postcard: the smallest bytes, for types that do not change. What a value means, only its type knows.

use bytes::Bytes;
use postcard::{Deserializer, Error};

use super::bounded::{Bounds, EMPTY_ELEMENTS, LEVELS};
use super::limited::{Format, Limits};
use super::required::{CanDeserialize, CanSerialize};
use super::serde_message::OPAQUE;
use super::{DecodeError, EncodeError};

/// The limits of [`from_bytes`].
const FORMAT: Format = Format {
    levels: LEVELS,
    counts_leaves: true,
    empty_elements: Some(EMPTY_ELEMENTS),
    has_infinity: true,
    unit_is_none: false,
    unit_struct_is_none: false,
    has_names: false,
};

/// A value as postcard.
pub fn to_bytes<T: CanSerialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let limits = Limits::new(FORMAT);
    let written = postcard::to_stdvec(&limits.around(value));
    if let Some(refusal) = limits.refusal(written.as_ref().ok().map(Vec::len)) {
        return Err(EncodeError::new(format!("postcard: {refusal}")));
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

/// A value from postcard, which must be all there is.
///
/// A value without any bytes is one: of a type with only one value.
pub fn from_bytes<T: CanDeserialize>(bytes: &Bytes) -> Result<T, DecodeError> {
    let bounds = Bounds::new(bytes.len());
    let mut deserializer = Deserializer::from_bytes(bytes);
    let read = bounds.read(&mut deserializer);
    let place = bytes.len() - deserializer.finalize().map_or(0, <[u8]>::len);
    match read {
        Ok(value) if place == bytes.len() => Ok(value),
        Ok(_) => Err(DecodeError::new("postcard: more bytes after the value").at_offset(place)),
        Err(error) => Err(translate(&error, &bounds, bytes).at_offset(place)),
    }
}

#[cold]
fn translate(error: &Error, bounds: &Bounds, bytes: &[u8]) -> DecodeError {
    if let Some(refusal) = bounds.refusal() {
        return DecodeError::new(format!("postcard: {refusal}"));
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
        // postcard keeps nothing of what a type says.
        _ => OPAQUE,
    })
}

#[cfg(test)]
mod tests;
