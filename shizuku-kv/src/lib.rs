#![doc = include_str!("../README.md")]

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod snapshot;
pub mod store;

// Pages only. They use everything, so that they are there where everything is.
#[cfg(all(any(doc, doctest), feature = "memory", feature = "derive"))]
pub mod guide;

mod backend;
mod connect;
mod live;
mod local_file;
pub mod replica;
pub mod rw_lock;
mod typed;

#[cfg(feature = "memory")]
pub use backend::memory::MemoryConnection;
#[cfg(feature = "nats")]
pub use backend::nats::{NatsAuth, NatsConnection, NatsConnectionConfig, NatsTls, nats_connect};
pub use connect::{URL_VARIABLE, connect, connect_from_env};
pub use live::{
    Live, LiveMap, LiveMapChange, LiveMapChanges, LiveMapSnapshot, LiveMapStanding, LiveMapStatus,
    LiveRef, LiveRejection, LiveSnapshot, LiveStanding, LiveStatus, LiveStream,
};
pub use replica::{BatchConfig, watch_applied};
pub use rw_lock::Processor;
#[cfg(feature = "derive")]
pub use shizuku_kv_derive::{JsonByteDes, JsonByteSer, KeyValue, StaticKeyIndexedValue};
#[cfg(all(feature = "derive", feature = "messagepack"))]
pub use shizuku_kv_derive::{MessagePackByteDes, MessagePackByteSer};
#[cfg(all(feature = "derive", feature = "postcard"))]
pub use shizuku_kv_derive::{PostcardByteDes, PostcardByteSer};
#[cfg(all(feature = "derive", feature = "protobuf"))]
pub use shizuku_kv_derive::{ProtobufByteDes, ProtobufByteSer};
pub use store::{
    ConfigDifference, Connection, ConnectionCapabilities, Deadline, FencingToken, IntoKey, Key,
    KvEntry, KvError, KvFenced, KvOperation, KvReader, KvResult, KvStore, KvStream, KvTtl,
    KvUpdate, KvWatcher, KvWriter, OpenStores, ReadConsistency, StorageType, Store, StoreConfig,
    StoreFenced, StoreFigures, StoreTtl, VersionToken, Watch, WatchCursor, WatchLink, WatchScope,
};
#[doc(hidden)]
pub use typed::__private;
pub use typed::{
    BrokenRule, ByteDeserialize, ByteSerialize, Bytes, DecodeError, EncodeError, KeyValue,
    KeyValueRead, KeyValueWrite, KvReadError, KvWriteError, ParseKeyError, RecordKey,
    StaticKeyIndexedValue, TypedEntry, TypedScan, TypedUpdate, TypedWatch, assert_round_trip,
    round_trip,
};
