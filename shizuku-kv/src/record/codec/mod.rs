//! Codecs, which convert between a value and its bytes.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

mod bounded;
#[cfg(test)]
mod cases;
#[doc(hidden)]
pub mod json;
mod limited;
#[cfg(feature = "messagepack")]
#[doc(hidden)]
pub mod messagepack;
#[cfg(feature = "postcard")]
#[doc(hidden)]
pub mod postcard;
#[cfg(feature = "protobuf")]
#[doc(hidden)]
pub mod protobuf;
pub(super) mod required;
mod serde_message;

/// A value that can be encoded as bytes, and so be written.
///
/// `#[derive(JsonByteSer)]` implements this for a type with serde's `Serialize`, as JSON.
/// [`Bytes`], `Vec<u8>` and `String` are stored as they are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written to a store: it does not implement `ByteSerialize`",
    label = "this value has no byte form",
    note = "give its type a codec: `#[kv(codec = json)]` next to its key, or `#[derive(JsonByteSer)]`, with serde's \
            `Serialize`; wrap a type of another crate in one of your own"
)]
pub trait ByteSerialize {
    /// Returns the bytes of the value.
    ///
    /// # Errors
    /// Returns [`EncodeError`] if the value has no byte form. Its message must not contain any part
    /// of the value.
    fn to_bytes(&self) -> Result<Bytes, EncodeError>;

    /// Reads the bytes back, if the derives know both directions. Debug builds use this for a
    /// check.
    #[doc(hidden)]
    fn __read_back(_bytes: &Bytes) -> Option<Result<Self, DecodeError>>
    where
        Self: Sized,
    {
        None
    }
}

/// A value that can be decoded from bytes, and so be read.
///
/// `#[derive(JsonByteDes)]` implements this for a type with serde's `Deserialize`, from JSON.
/// [`Bytes`], `Vec<u8>` and `String` are returned as they are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a store: it does not implement `ByteDeserialize`",
    label = "this value cannot be made from bytes",
    note = "give its type a codec: `#[kv(codec = json)]` next to its key, or `#[derive(JsonByteDes)]`, with serde's \
            `Deserialize`; wrap a type of another crate in one of your own"
)]
pub trait ByteDeserialize: Sized {
    /// Returns the value that the bytes encode.
    ///
    /// # Errors
    /// Returns [`DecodeError`] if the bytes encode no value. Its message must not contain any part
    /// of the bytes.
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError>;
}

impl ByteSerialize for Bytes {
    fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        Ok(self.clone())
    }
}

impl ByteDeserialize for Bytes {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        Ok(bytes.clone())
    }
}

impl ByteSerialize for Vec<u8> {
    fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        Ok(Bytes::copy_from_slice(self))
    }
}

impl ByteDeserialize for Vec<u8> {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        Ok(bytes.to_vec())
    }
}

impl ByteSerialize for String {
    fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        Ok(Bytes::copy_from_slice(self.as_bytes()))
    }
}

impl ByteDeserialize for String {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(DecodeError::new("not UTF-8").at_offset(error.valid_up_to())),
        }
    }
}

/// The reason why a value has no byte form. Describes the fault, never the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeError {
    message: Cow<'static, str>,
}

impl EncodeError {
    /// Returns an error with a message, which must not contain any part of the value.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into() }
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EncodeError {}

/// The reason why bytes do not decode, and the position of the fault in them. Describes the fault,
/// never the bytes.
///
/// ```
/// use shizuku_kv::DecodeError;
///
/// let error = DecodeError::new("missing field `url`").at_line(3, 1);
/// assert_eq!(error.to_string(), "missing field `url` at line 3, column 1");
/// let error = DecodeError::new("unexpected end").at_offset(17);
/// assert_eq!(error.to_string(), "unexpected end at byte 17");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    message: Cow<'static, str>,
    position: Position,
}

/// A position in the bytes, in the units of the format. 32 bits keep the error small; a larger
/// position is beyond any store's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Unknown,
    Line { line: u32, column: u32 },
    Offset(u32),
}

impl DecodeError {
    /// Returns an error with a message, which must not contain any part of the bytes.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), position: Position::Unknown }
    }

    /// Adds a line and column, both counted from 1, for text formats.
    #[must_use]
    pub fn at_line(mut self, line: usize, column: usize) -> Self {
        self.position = Position::Line { line: saturate(line), column: saturate(column) };
        self
    }

    /// Adds a byte offset, counted from 0, for binary formats.
    #[must_use]
    pub fn at_offset(mut self, offset: usize) -> Self {
        self.position = Position::Offset(saturate(offset));
        self
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the line and column, both counted from 1, if the format has them.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        match self.position {
            Position::Line { line, column } => Some((widen(line), widen(column))),
            _ => None,
        }
    }

    /// Returns the byte offset, if the format has one.
    pub fn offset(&self) -> Option<usize> {
        match self.position {
            Position::Offset(offset) => Some(widen(offset)),
            _ => None,
        }
    }
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn widen(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.position {
            Position::Unknown => Ok(()),
            Position::Line { line, column } => write!(f, " at line {line}, column {column}"),
            Position::Offset(offset) => write!(f, " at byte {offset}"),
        }
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_values_round_trip() {
        for raw in [&b""[..], b"abc", &[0, 255, 128]] {
            let bytes = Bytes::copy_from_slice(raw);
            assert_eq!(
                Bytes::from_bytes(&bytes).and_then(|v| v.to_bytes().map_err(rejected)),
                Ok(bytes.clone())
            );
            assert_eq!(
                Vec::from_bytes(&bytes).and_then(|v| v.to_bytes().map_err(rejected)),
                Ok(bytes.clone())
            );
        }
        let text = "žluťoučký".to_owned();
        assert_eq!(
            text.to_bytes().map_err(rejected).and_then(|b| String::from_bytes(&b)),
            Ok(text)
        );
    }

    fn rejected(error: EncodeError) -> DecodeError {
        DecodeError::new(error.message)
    }

    #[test]
    fn text_that_is_not_utf8_is_rejected_where_it_stops_to_be() {
        let error =
            String::from_bytes(&Bytes::from_static(b"hunter2\xff")).map_err(|error| error.offset());
        assert_eq!(error, Err(Some(7)));
    }
}
