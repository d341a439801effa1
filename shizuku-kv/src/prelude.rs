//! The traits whose methods records have, for `use shizuku_kv::prelude::*`.
//!
//! Traits only, and under their own names, so that no name of a program changes its meaning. The
//! derives of the same names come with them.

pub use crate::{
    ByteDeserialize, ByteSerialize, Connection, IntoKey, KeyValue, KeyValueRead, KeyValueWrite,
    LiveRead, LiveStatic, Processor, StaticKeyIndexedValue,
};
#[cfg(feature = "derive")]
pub use shizuku_kv_derive::{JsonByteDes, JsonByteSer};
#[cfg(all(feature = "derive", feature = "messagepack"))]
pub use shizuku_kv_derive::{MessagePackByteDes, MessagePackByteSer};
#[cfg(all(feature = "derive", feature = "postcard"))]
pub use shizuku_kv_derive::{PostcardByteDes, PostcardByteSer};
#[cfg(all(feature = "derive", feature = "protobuf"))]
pub use shizuku_kv_derive::{ProtobufByteDes, ProtobufByteSer};
