//! Codecs: between a value and its bytes.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

#[cfg(any(feature = "messagepack", feature = "postcard"))]
mod bounded;
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

/// A value that can be made into bytes, and so be written.
///
/// `#[derive(JsonByteSer)]` writes this for a type with serde's `Serialize`, as JSON. [`Bytes`], `Vec<u8>` and `String`
/// are stored as they are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written to a store: it does not implement `ByteSerialize`",
    label = "this value has no byte form",
    note = "give its type a codec: `#[kv(codec = json)]` next to its key, or `#[derive(JsonByteSer)]`, with serde's \
            `Serialize`; wrap a type of another crate in one of your own"
)]
pub trait ByteSerialize {
    /// The bytes of the value.
    ///
    /// # Errors
    /// [`EncodeError`] where the value has no byte form. Its message must not contain anything of the value.
    fn to_bytes(&self) -> Result<Bytes, EncodeError>;

    /// Reads the bytes back, if the derives know both directions. For the check that debug builds
    /// make.
    #[doc(hidden)]
    fn __read_back(_bytes: &Bytes) -> Option<Result<Self, DecodeError>>
    where
        Self: Sized,
    {
        None
    }
}

/// A value that can be made from bytes, and so be read.
///
/// `#[derive(JsonByteDes)]` writes this for a type with serde's `Deserialize`, from JSON. [`Bytes`], `Vec<u8>` and
/// `String` are taken as they are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a store: it does not implement `ByteDeserialize`",
    label = "this value cannot be made from bytes",
    note = "give its type a codec: `#[kv(codec = json)]` next to its key, or `#[derive(JsonByteDes)]`, with serde's \
            `Deserialize`; wrap a type of another crate in one of your own"
)]
pub trait ByteDeserialize: Sized {
    /// The value that the bytes stand for.
    ///
    /// # Errors
    /// [`DecodeError`] where they stand for none. Its message must not contain anything of the bytes.
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

/// Why a value has no byte form. Says what is wrong, never what the value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeError {
    message: Cow<'static, str>,
}

impl EncodeError {
    /// An error with a message, which must not contain anything of the value.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into() }
    }

    /// What is wrong.
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

/// Why bytes are not a value, and where in them. Says what is wrong, never what the bytes are.
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

/// Where in the bytes, counted in what the format counts in. 32 bits keep the error small; what is beyond them is
/// beyond any store's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Unknown,
    Line { line: u32, column: u32 },
    Offset(u32),
}

impl DecodeError {
    /// An error with a message, which must not contain anything of the bytes.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), position: Position::Unknown }
    }

    /// At a line and column, both counted from 1; for formats of text.
    #[must_use]
    pub fn at_line(mut self, line: usize, column: usize) -> Self {
        self.position = Position::Line { line: saturate(line), column: saturate(column) };
        self
    }

    /// At a byte offset, counted from 0; for binary formats.
    #[must_use]
    pub fn at_offset(mut self, offset: usize) -> Self {
        self.position = Position::Offset(saturate(offset));
        self
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The line and column, both counted from 1, where the format has them.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        match self.position {
            Position::Line { line, column } => Some((widen(line), widen(column))),
            _ => None,
        }
    }

    /// The byte offset, where the format has one.
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
                Bytes::from_bytes(&bytes).and_then(|v| v.to_bytes().map_err(refused)),
                Ok(bytes.clone())
            );
            assert_eq!(
                Vec::from_bytes(&bytes).and_then(|v| v.to_bytes().map_err(refused)),
                Ok(bytes.clone())
            );
        }
        let text = "žluťoučký".to_owned();
        assert_eq!(text.to_bytes().map_err(refused).and_then(|b| String::from_bytes(&b)), Ok(text));
    }

    fn refused(error: EncodeError) -> DecodeError {
        DecodeError::new(error.message)
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_where_it_stops_to_be() {
        let error =
            String::from_bytes(&Bytes::from_static(b"hunter2\xff")).map_err(|error| error.offset());
        assert_eq!(error, Err(Some(7)));
    }
}
