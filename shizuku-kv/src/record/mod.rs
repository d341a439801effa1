//! The typed layer: records instead of bytes.
//!
//! [`KeyValue`] defines a record's key and has the point operations. [`KeyValueRead`] and
//! [`KeyValueWrite`] add the operations that need a decoder or an encoder.
//! [`StaticKeyIndexedValue`] is shorter for a record with one fixed key. The derives implement
//! these for ordinary types, and everything that they write can be written by hand.

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
pub use key::{ParseKeyError, RecordKey};
pub(crate) use key::{check_scope, own_store_key, store_key};
pub(crate) use key_value::check_record;
pub use key_value::{KeyValue, StaticKeyIndexedValue};
pub use modify::{Modify, ModifyAsync, ModifyOutcome};
pub use read::KeyValueRead;
pub(crate) use read::{canonical_key, decode_record, decode_update};
pub use round_trip::{assert_round_trip, round_trip};
pub use rule::ValidationError;
pub use scan::TypedScan;
pub use watch::TypedWatch;
pub use write::KeyValueWrite;
