//! Checks that a record is read back as it was written.
//!
//! Serde attributes, two codecs on one type, or a codec by hand can make the two directions
//! disagree. The reader then takes a record for another value. No error reports this, because the
//! stored bytes decode. So the check writes, reads and writes the record again: a difference shows
//! in the second form (ADR 0051).

use bytes::Bytes;

use super::error::type_name;
use super::key::{prints_as, record_key};
use super::key_value::encode;
use super::{ByteDeserialize, ByteSerialize, DecodeError, EncodeError, KeyValue, KvWriteError};
use crate::store::Key;

/// Writes a record, reads it and writes it again, without a store, and returns the record that was
/// read. For tests of your own types; [`assert_round_trip`] is the same as an assertion.
///
/// Debug builds do this before each write of a record whose codec is derived in both directions,
/// unless its type is generic. Release builds do not.
///
/// Both forms must have the same bytes, in any order, because a `HashMap` is written in any order.
/// A record that is written differently each time, such as an encrypted one, must only be readable
/// and keep its key. Two values with the same bytes cannot be distinguished: to find those, compare
/// the returned record with the original.
///
#[cfg_attr(feature = "derive", doc = "```")]
#[cfg_attr(not(feature = "derive"), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{KeyValue, assert_round_trip, round_trip};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
/// #[kv(key = "user.{id}", codec = json)]
/// struct User {
///     id: u64,
///     name: Option<String>,
/// }
///
/// let ann = User { id: 7, name: None };
/// assert_round_trip(&ann);
/// assert_eq!(round_trip(&ann)?, ann);
/// # Ok::<(), shizuku_kv::KvWriteError>(())
/// ```
///
/// # Errors
/// Returns [`KvWriteError::Encode`] if the record has no byte form, or would be read back as
/// another one; otherwise as for [`KeyValue::write_to_anyway`], before any request is sent.
pub fn round_trip<T>(record: &T) -> Result<T, KvWriteError>
where
    T: KeyValue<Value: ByteSerialize + ByteDeserialize>,
{
    let (key, bytes) = encode(record)?;
    read_back(record, &key, &bytes, T::Value::from_bytes(&bytes))
}

/// Asserts that a record is read back as it was written, as far as [`round_trip`] can tell. For
/// tests.
///
/// Panics if the record is not. The message names type, key and reason, but no part of the value.
#[track_caller]
pub fn assert_round_trip<T>(record: &T)
where
    T: KeyValue<Value: ByteSerialize + ByteDeserialize>,
{
    let error = round_trip(record).err();
    assert!(error.is_none(), "{}", error.map_or_else(String::new, |error| error.to_string()));
}

/// Checks the bytes of a record before they are written, in a debug build, if both directions of
/// its codec are known.
pub(super) fn check<T>(record: &T, key: &Key, bytes: &Bytes) -> Result<(), KvWriteError>
where
    T: KeyValue<Value: ByteSerialize>,
{
    match T::Value::__read_back(bytes) {
        Some(value) => read_back(record, key, bytes, value).map(drop),
        None => Ok(()),
    }
}

/// Reads the bytes of a record. Returns the result if it is the same record.
fn read_back<T>(
    record: &T,
    key: &Key,
    bytes: &Bytes,
    value: Result<T::Value, DecodeError>,
) -> Result<T, KvWriteError>
where
    T: KeyValue<Value: ByteSerialize>,
{
    let reject = |reason: String| KvWriteError::Encode {
        type_name: type_name::<T>(),
        key: key.clone(),
        source: EncodeError::new(reason),
    };
    let changed = |how: &str| reject(format!("it would not be read back as it is: {how}"));
    let value = value.map_err(|error| reject(format!("it could not be read back: {error}")))?;
    let own = record_key::<T, T::Key>(key).map_err(KvWriteError::of_key)?;
    let read = T::from_kv(own, value);
    if !prints_as(&read.kv_key(), key) {
        return Err(changed("its own key would be another"));
    }
    read.kv_validate().map_err(|rule| changed(&format!("it would break its rule {rule}")))?;
    let again = read.kv_value().to_bytes().map_err(|error| changed(&error.to_string()))?;
    if !is_reordered(bytes, &again) {
        // If even the same value has other bytes when it is written twice, the bytes prove nothing.
        let repeated = record.kv_value().to_bytes().map_err(|error| changed(&error.to_string()))?;
        if is_reordered(bytes, &repeated) {
            return Err(changed("written again, it has other bytes"));
        }
    }
    Ok(read)
}

/// Returns true if two byte strings have the same bytes, in any order. The elements of a map or a
/// set have any order, and the bytes of each do not depend on its position.
fn is_reordered(one: &[u8], other: &[u8]) -> bool {
    fn counts(bytes: &[u8]) -> [usize; 256] {
        let mut counts = [0; 256];
        for byte in bytes {
            counts[usize::from(*byte)] += 1;
        }
        counts
    }
    one == other || one.len() == other.len() && counts(one) == counts(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_alike_and_other_bytes_are_not() {
        assert!(is_reordered(b"", b"") && is_reordered(b"abca", b"caab"));
        for (one, other) in [("", "a"), ("ab", "abb"), ("abb", "aab"), ("a", "b")] {
            assert!(!is_reordered(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
    }
}
