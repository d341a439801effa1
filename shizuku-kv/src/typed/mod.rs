//! The typed layer: records instead of bytes.
//!
//! [`KeyValue`] says where a record lives and carries the point operations; [`KeyValueRead`] and [`KeyValueWrite`] add
//! what needs one codec or the other; [`StaticKeyIndexedValue`] is the short way for a record with one fixed key. The
//! derives write these for ordinary types; nothing in them cannot be written by hand.

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
mod codec;
mod entry;
mod error;
mod escape;
mod key;
mod key_value;
mod modify;
mod put;
mod read;
mod round_trip;
mod rule;
mod scan;
mod watch;
mod write;

pub use bytes::Bytes;
pub use codec::{ByteDeserialize, ByteSerialize, DecodeError, EncodeError};
pub use entry::{TypedEntry, TypedUpdate};
pub(crate) use error::type_name;
pub use error::{KvReadError, KvWriteError};
pub(crate) use key::store_key;
pub use key::{ParseKeyError, RecordKey};
pub use key_value::{KeyValue, StaticKeyIndexedValue};
pub use read::KeyValueRead;
pub(crate) use read::{canonical_key, decode_update, read_record};
pub use round_trip::{assert_round_trip, round_trip};
pub use rule::BrokenRule;
pub use scan::TypedScan;
pub use watch::TypedWatch;
pub use write::KeyValueWrite;
