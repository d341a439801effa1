//! Checks the traits that every public type implements: it can be sent, shared and moved.

use crate::replica::{
    Batch, LogReader, MemoryStorage, Replica, ReplicaMonitor, ReplicaProgress, TypedBatch,
};
use crate::rw_lock::{
    DistroRwLock, DistroRwLockError, Leader, LeaderElection, Leaders, Leadership, LockState,
    ReadGuard, WriteGuard,
};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotReader, SnapshotWriter};
use crate::*;

fn is_sendable<T: Send + Sync + Unpin>() {}

fn is_value<T: Clone + PartialEq + Send + Sync + Unpin>() {}

fn is_cloned<T: Clone + Send + Sync + Unpin>() {}

#[derive(Clone, Debug, PartialEq)]
struct Record(String, String);

impl KeyValue for Record {
    type Key = String;
    type Value = String;

    fn kv_key(&self) -> String {
        self.0.clone()
    }

    fn kv_value(&self) -> &String {
        &self.1
    }

    fn from_kv(key: String, value: String) -> Self {
        Self(key, value)
    }
}

#[test]
fn every_type_is_sent_shared_and_moved() {
    is_sendable::<Store>();
    is_sendable::<StoreFenced<'static>>();
    is_sendable::<StoreTtl<'static>>();
    is_sendable::<OpenStores>();
    is_sendable::<Deadline>();
    is_sendable::<KvError>();
    is_sendable::<KvReadError>();
    is_sendable::<KvWriteError>();
    is_sendable::<KvStream<KvEntry>>();
    is_sendable::<Watch>();
    is_sendable::<TypedScan<Record>>();
    is_sendable::<TypedWatch<Record>>();
    is_sendable::<Live<Record>>();
    is_sendable::<LiveRef<Record>>();
    is_sendable::<LiveStream<LiveStatus>>();
    is_sendable::<LiveMap<String, Record>>();
    is_sendable::<LiveMapChange<String, Record>>();
    is_sendable::<LiveMapChanges<String, Record>>();
    is_sendable::<LiveMapSnapshot<String, Record>>();
    is_sendable::<DistroRwLock>();
    is_sendable::<DistroRwLockError>();
    is_sendable::<LeaderElection>();
    is_sendable::<Leaders>();
    is_sendable::<Leadership>();
    is_sendable::<ReadGuard>();
    is_sendable::<WriteGuard>();
    is_sendable::<Batch>();
    is_sendable::<TypedBatch<Record>>();
    is_sendable::<Replica<MemoryStorage>>();
    is_sendable::<ReplicaMonitor>();
    is_sendable::<LogReader>();
    is_sendable::<Snapshot>();
    is_sendable::<SnapshotError>();
    is_sendable::<SnapshotReader>();
    is_sendable::<SnapshotWriter>();
}

#[test]
fn value_types_are_cloned_and_compared() {
    is_value::<Key>();
    is_value::<VersionToken>();
    is_value::<WatchCursor>();
    is_value::<WatchScope>();
    is_value::<WatchLink>();
    is_value::<FencingToken>();
    is_value::<KvEntry>();
    is_value::<KvUpdate>();
    is_value::<KvOperation>();
    is_value::<StoreConfig>();
    is_value::<StoreFigures>();
    is_value::<ConnectionCapabilities>();
    is_value::<ConfigDifference>();
    is_value::<ValidationError>();
    is_value::<DecodeError>();
    is_value::<EncodeError>();
    is_value::<ParseKeyError>();
    is_value::<Modify<Record>>();
    is_value::<TypedEntry<Record>>();
    is_value::<TypedUpdate<Record>>();
    is_value::<LiveSnapshot<Record>>();
    is_value::<LiveStatus>();
    is_value::<LiveSyncState>();
    is_value::<LiveMapStatus>();
    is_value::<LiveMapSyncState>();
    is_value::<LiveRejection>();
    is_value::<ReplicaProgress>();
    is_value::<Leader>();
    is_value::<LockState>();
    is_cloned::<LiveMapChange<String, Record>>();
}

#[test]
fn keys_and_tokens_are_keys_of_maps_and_have_a_serde_form() {
    fn is_hashed<T: std::hash::Hash + Eq>() {}
    fn is_stored<T: serde::Serialize + serde::de::DeserializeOwned>() {}
    is_hashed::<Key>();
    is_hashed::<VersionToken>();
    is_hashed::<WatchCursor>();
    is_hashed::<FencingToken>();
    is_stored::<Key>();
    is_stored::<VersionToken>();
    is_stored::<WatchCursor>();
    is_stored::<FencingToken>();
}
