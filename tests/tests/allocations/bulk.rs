//! Allocations of bulk operations: those that an entry keeps, and almost no others. Runs in a
//! process of its own, whose allocator counts.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::hint::black_box;
use std::time::SystemTime;

use allocation_counter::measure;
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use shizuku_kv::replica::{LogStorage, ReplicaStorage};
use shizuku_kv::snapshot::{self, SnapshotOptions, SnapshotWriter, SyncPolicy};
use shizuku_kv::{Connection, Key, KvEntry, KvUpdate, Store, VersionToken, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, unique};
use tokio::runtime::Runtime;

const ENTRIES: u32 = 2000;

fn key(number: u32) -> String {
    format!("entry.{number}")
}

/// Returns a runtime with one thread, on which a client does all of its work.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns the number of allocations per entry.
fn per_entry(work: impl FnOnce()) -> f64 {
    measure(work).count_total as f64 / f64::from(ENTRIES)
}

/// Returns the minimum number of allocations per entry in three runs. Messages that arrive in more
/// pieces, and heartbeats, need some more.
fn least_per_entry(mut work: impl FnMut()) -> f64 {
    (0..3).map(|_| per_entry(&mut work)).fold(f64::INFINITY, f64::min)
}

async fn filled(url: &str) -> (std::sync::Arc<dyn Connection>, Store) {
    let connection = connect(url).await.unwrap();
    let store = connection.store(&unique("bulk")).await.unwrap();
    for written in store.put_many((0..ENTRIES).map(|number| (key(number), vec![b'x'; 200]))).await {
        written.unwrap();
    }
    (connection, store)
}

async fn state(store: &Store) {
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut count = 0;
    while let KvUpdate::Put(entry) = watch.next().await.unwrap().unwrap() {
        black_box(entry);
        count += 1;
    }
    assert_eq!(count, ENTRIES);
}

async fn scan(store: &Store) {
    let entries = store.scan(WatchScope::All);
    let mut count = 0;
    while let Some(entry) = entries.next().await {
        black_box(entry.unwrap());
        count += 1;
    }
    assert_eq!(count, ENTRIES);
}

async fn plain(bucket: &kv::Store) {
    let mut watch = bucket.watch_with_history(">").await.unwrap();
    for _ in 0..ENTRIES {
        black_box(watch.next().await.unwrap().unwrap());
    }
}

#[test]
fn a_snapshot_is_loaded_without_an_allocation_for_each_entry() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let options = SnapshotOptions::new().sync(SyncPolicy::Never);
    let (mut writer, _) = SnapshotWriter::open(&path, options).unwrap();
    for number in 0..ENTRIES {
        let (key, version) =
            (Key::new(key(number)).unwrap(), VersionToken::from_u64(number.into()));
        let value = Bytes::from(vec![b'x'; 200]);
        writer
            .append(&KvUpdate::Put(KvEntry::put(key, value, version, SystemTime::now())))
            .unwrap();
    }
    writer.checkpoint(None).unwrap();
    writer.close().unwrap();
    let mut loaded = None;
    let allocations = per_entry(|| loaded = Some(snapshot::load(&path).unwrap()));
    assert_eq!(loaded.unwrap().entries.len(), ENTRIES as usize);
    assert!(allocations < 0.05, "{allocations} allocations for each entry");
}

/// A state that moved its entries to grow, or copied them for a visit, would block its readers
/// meanwhile.
#[test]
fn replica_state_grows_and_is_visited_without_copies() {
    const ENTRIES: u32 = 60_000;
    let runtime = runtime();
    let directory = tempfile::tempdir().unwrap();
    let options = SnapshotOptions::new().sync(SyncPolicy::Never).compaction_threshold(u64::MAX);
    let mut storage =
        runtime.block_on(LogStorage::open(directory.path().join("log"), options)).unwrap();
    let reader = storage.reader();
    let update = |number: u32| {
        let (key, version) =
            (Key::new(key(number)).unwrap(), VersionToken::from_u64(number.into()));
        KvUpdate::Put(KvEntry::put(key, Bytes::from_static(b"value"), version, SystemTime::now()))
    };
    let most = (0..ENTRIES).map(|number| {
        let update = [update(number)];
        measure(|| storage.commit(&update, None).unwrap()).bytes_total
    });
    // A commit allocates at most one new segment of the table.
    let most = most.max().unwrap();
    assert!(most < 256 * 1024, "{most} bytes for one commit");

    let mut visited = 0;
    let counted = measure(|| reader.for_each(|_| visited += 1));
    assert_eq!(visited, ENTRIES);
    assert!(counted.bytes_total < u64::from(ENTRIES), "{counted:?}");

    // A visit sees the state from its beginning, whatever commits follow.
    let (mut next, mut visited) = (ENTRIES, 0);
    reader.for_each(|entry| {
        visited += 1;
        assert!(entry.version().as_u64().unwrap() < u64::from(ENTRIES));
        if visited % 100 == 0 {
            storage.commit(&[update(next)], None).unwrap();
            assert!(reader.get(&key(next)).is_some());
            next += 1;
        }
    });
    assert_eq!(visited, ENTRIES);
    assert_eq!(reader.len(), next as usize);
    drop(storage);
}

#[test]
fn entries_in_memory_are_read_without_an_allocation_for_each() {
    let runtime = runtime();
    let (_connection, store) = runtime.block_on(filled("memory:"));
    // Key and value are shared with the store. The first clone of bytes that were a vector
    // allocates their reference count.
    runtime.block_on(scan(&store));
    for (name, allocations) in [
        ("watch", per_entry(|| runtime.block_on(state(&store)))),
        ("scan", per_entry(|| runtime.block_on(scan(&store)))),
    ] {
        println!("{name}: {allocations}");
        assert!(allocations < 0.05, "{name}: {allocations} allocations for each entry");
    }
}

#[test]
fn entries_from_nats_allocate_as_with_client_alone() {
    let runtime = runtime();
    let url = NatsServer::shared().url();
    let (_connection, store) = runtime.block_on(filled(&url));
    let bucket = runtime.block_on(async {
        let context = jetstream::new(async_nats::connect(&url).await.unwrap());
        context.get_key_value(store.name()).await.unwrap()
    });
    // async-nats allocates most of it to parse a message: subject, reply, headers. The library adds
    // the key.
    let library = least_per_entry(|| runtime.block_on(plain(&bucket)));
    for (name, allocations) in [
        ("watch", least_per_entry(|| runtime.block_on(state(&store)))),
        ("scan", least_per_entry(|| runtime.block_on(scan(&store)))),
    ] {
        println!("{name}: {allocations}, async-nats: {library}");
        assert!(allocations <= library, "{name}: {allocations}, {library} with async-nats alone");
    }
}
