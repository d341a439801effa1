#![doc = include_str!("../README.md")]

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod snapshot;
pub mod store;

// Pages only. They use every feature, so they exist only if every feature does.
#[cfg(all(any(doc, doctest), feature = "memory", feature = "derive"))]
pub mod guide;

mod backend;
#[cfg(test)]
mod common_traits;
mod connect;
#[cfg(test)]
mod exploration;
mod live;
mod local_file;
pub mod prelude;
mod record;
pub mod replica;
pub mod rw_lock;
mod table;
mod watch;

#[cfg(feature = "file")]
pub use backend::file::FileConnection;
#[cfg(feature = "memory")]
pub use backend::memory::MemoryConnection;
#[cfg(feature = "nats")]
pub use backend::nats::{NatsAuth, NatsConnection, NatsConnectionConfig, NatsTls, nats_connect};
pub use connect::{URL_VARIABLE, connect, connect_from_env};
pub use live::{
    Live, LiveMap, LiveMapChange, LiveMapChanges, LiveMapSnapshot, LiveMapStatus, LiveMapSyncState,
    LiveRead, LiveRef, LiveRejection, LiveSnapshot, LiveStatic, LiveStatus, LiveStream,
    LiveSyncState,
};
#[doc(hidden)]
pub use record::__private;
pub use record::{
    ByteDeserialize, ByteSerialize, Bytes, DecodeError, EncodeError, KeyValue, KeyValueRead,
    KeyValueWrite, KvReadError, KvWriteError, Modify, ModifyAsync, ModifyOutcome, ParseKeyError,
    RecordKey, StaticKeyIndexedValue, TypedEntry, TypedScan, TypedUpdate, TypedWatch,
    ValidationError, assert_round_trip, round_trip,
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
    Atomicity, ConfigDifference, Connection, ConnectionCapabilities, Deadline, FencingToken,
    IntoKey, Key, KvEntry, KvError, KvFenced, KvLimit, KvOperation, KvReader, KvResult, KvStore,
    KvStream, KvTtl, KvUpdate, KvWatcher, KvWriter, Metadata, OpenStores, ReadConsistency,
    StorageType, Store, StoreConfig, StoreFenced, StoreFigures, StoreTtl, VersionToken, Watch,
    WatchCursor, WatchLink, WatchScope, Write, WriteCondition, WriteOperation,
};
