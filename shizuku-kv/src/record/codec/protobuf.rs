//! Protocol Buffers, and prost's errors without quotations of the value.
//!
//! prost describes an error in a private enum, some of whose variants contain numbers and texts of
//! the value. Its `Debug` output distinguishes the variants, whatever their texts contain. This
//! library then describes the fault in its own words, with the message and the field from the type.

use bytes::Bytes;

use super::required::{CanDecode, CanEncode};
use super::serde_message::OPAQUE;
use super::{DecodeError, EncodeError};

/// Maximum number of named fields on the path to the faulty one.
const NAMED: usize = 4;

/// Encodes a value as a message.
///
/// # Errors
/// Never returns an error.
pub fn to_bytes<T: CanEncode>(value: &T) -> Result<Bytes, EncodeError> {
    Ok(value.encode_to_vec().into())
}

/// Decodes a value from a message. A message without any bytes has every field at its default.
pub fn from_bytes<T: CanDecode>(bytes: &Bytes) -> Result<T, DecodeError> {
    // Decodes from [`Bytes`] and not from a slice, so that `Bytes` fields share the value's memory.
    let mut rest = bytes.clone();
    T::decode(&mut rest).map_err(|error| {
        let offset = bytes.len() - rest.len();
        DecodeError::new(shown(&format!("{error:?}")).unwrap_or_else(|| OPAQUE.to_owned()))
            .at_offset(offset)
    })
}

/// Returns the parts of an error's `Debug` form that may be shown:
/// `DecodeError { description: …, stack: [("Message", "field"), …] }`.
#[cold]
fn shown(error: &str) -> Option<String> {
    let description = error.strip_prefix("DecodeError { description: ")?;
    let kind = description.split(|character: char| !character.is_alphanumeric()).next()?;
    let wrong = match kind {
        "LengthDelimiterTooLarge" => "a length is too large".to_owned(),
        "InvalidVarint" => "a number does not end".to_owned(),
        "RecursionLimitReached" => "nested too deeply".to_owned(),
        "InvalidWireType" => "invalid wire type".to_owned(),
        "InvalidKey" => "the number of a field is too large".to_owned(),
        "InvalidTag" => "the number of a field is 0".to_owned(),
        "UnexpectedWireType" => {
            let found = wire_type(description.split_once("actual: ")?.1)?;
            let expected = wire_type(description.split_once("expected: ")?.1)?;
            format!("invalid wire type: {found}, expected {expected}")
        }
        "BufferUnderflow" => "unexpected end".to_owned(),
        "DelimitedLengthExceeded" => "a field is longer than what it is in".to_owned(),
        "UnexpectedEndGroupTag" => "the end of another group, or of none".to_owned(),
        "InvalidString" => "a string is not UTF-8".to_owned(),
        // Other variants have texts, which may be of the value.
        _ => return None,
    };
    let (_, stack) = description.split_once(", stack: [")?;
    // The quotes surround names, which contain no quotes, from the innermost message to the
    // outermost.
    let names = stack.split('"').skip(1).step_by(2).collect::<Vec<_>>();
    if !names.iter().all(|name| is_identifier(name)) {
        return Some(format!("protobuf: {wrong}"));
    }
    let mut shown = String::from("protobuf: ");
    let fields = names.chunks_exact(2).take(NAMED).collect::<Vec<_>>();
    for field in fields.iter().rev() {
        shown.push_str(&field.join("."));
        shown.push_str(": ");
    }
    shown.push_str(&wrong);
    Some(shown)
}

fn wire_type(text: &str) -> Option<&'static str> {
    const TYPES: [(&str, &str); 6] = [
        ("Varint", "varint"),
        ("SixtyFourBit", "64-bit"),
        ("LengthDelimited", "length-delimited"),
        ("StartGroup", "start of a group"),
        ("EndGroup", "end of a group"),
        ("ThirtyTwoBit", "32-bit"),
    ];
    TYPES.into_iter().find_map(|(name, words)| text.starts_with(name).then_some(words))
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 120
        && name.chars().all(|c| c.is_alphanumeric() || "_#".contains(c))
}

#[cfg(test)]
mod tests;
