#![doc = include_str!("../../README.md")]

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod store;

mod backend;
mod connect;
mod typed;

pub use connect::{URL_VARIABLE, connect, connect_from_env};
pub use store::{
    ConfigDifference, Connection, ConnectionCapabilities, Deadline, IntoKey, Key, KvEntry, KvError,
    KvOperation, KvReader, KvResult, KvStore, KvStream, KvTtl, KvUpdate, KvWatcher, KvWriter,
    ReadConsistency, StorageType, Store, StoreConfig, StoreTtl, VersionToken, Watch, WatchCursor, WatchScope,
};
