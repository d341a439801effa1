//! Replicas of records.

use std::convert::Infallible;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{LogStorage, Replica, TypedBatch};
use shizuku_kv::snapshot::SnapshotOptions;
use shizuku_kv::{BatchConfig, KeyValue, KvOperation, KvReadError, TypedUpdate, WatchScope};

use crate::disk::Disk;
use crate::support::{Follower, memory, stores, write};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{id}", codec = json)]
struct User {
    id: u32,
    age: u32,
}

fn words(batch: &TypedBatch<User>) -> Vec<String> {
    let word = |update: &Result<TypedUpdate<User>, KvReadError>| match update {
        Ok(TypedUpdate::Put(entry)) => format!("{}={}", entry.id, entry.age),
        Ok(TypedUpdate::Delete { key, operation: KvOperation::Vanished, .. }) => {
            format!("~{}", key.id)
        }
        Ok(TypedUpdate::Delete { key, .. }) => format!("-{}", key.id),
        Ok(TypedUpdate::CaughtUp) => ".".to_owned(),
        Err(error) => format!("!{}", error.to_string().contains("user.3")),
        _ => panic!("{update:?}"),
    };
    batch.updates().iter().map(word).collect()
}

#[tokio::test]
async fn typed_batch_has_records_and_errors_in_their_position() {
    for (_connection, store) in stores().await {
        User { id: 1, age: 10 }.write_to_anyway(&store).await.unwrap();
        store.put("user.3", "{\"marker\": \"sesame\"}").await.unwrap();
        User { id: 2, age: 20 }.write_to_anyway(&store).await.unwrap();
        let disk = Disk::new();
        let stop = CancellationToken::new();
        let mut replica = Replica::new(&store, WatchScope::prefix("user."))
            .storage(disk.clone())
            .batch(BatchConfig::new())
            .stop_on(stop.clone());
        let seen = Mutex::new(Vec::new());
        let apply = async |batch: TypedBatch<User>| {
            assert_eq!(batch.is_caught_up(), words(&batch).last().is_some_and(|word| word == "."));
            assert!(batch.cursor().is_some());
            let copy = batch.clone();
            assert_eq!(copy.updates().as_ptr(), batch.updates().as_ptr());
            assert!(!format!("{batch:?}").contains("sesame"), "{batch:?}");
            for error in batch.updates().iter().filter_map(|update| update.as_ref().err()) {
                assert!(matches!(error, KvReadError::Decode { .. }), "{error:?}");
            }
            seen.lock().unwrap().extend(words(&batch));
            if batch.is_caught_up() {
                User { id: 1, age: 11 }.write_to_anyway(&store).await.unwrap();
                User::delete_anyway(&store, UserKey { id: 2 }).await.unwrap();
            }
            if words(&batch).contains(&"-2".to_owned()) {
                stop.cancel();
            }
            Ok::<_, Infallible>(())
        };
        let end = replica.run_typed::<User, _, _, _>(apply).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), ["1=10", "!true", "2=20", ".", "1=11", "-2"]);
        assert_eq!(disk.cursor(), end);
        assert_eq!(replica.monitor().progress().updates, 5);
    }
}

#[tokio::test]
async fn reader_of_a_log_visits_each_record_or_its_error() {
    let (_connection, store) = memory().await;
    write(&store, &["user.1={\"id\":1,\"age\":10}", "user.2={}", "user.3={\"id\":3,\"age\":30}"])
        .await;
    let directory = tempfile::tempdir().unwrap();
    let options = SnapshotOptions::new();
    let storage = LogStorage::open(directory.path().join("users"), options).await.unwrap();
    let reader = storage.reader();
    let mut follower = Follower::start(Replica::new(&store, WatchScope::All).storage(storage));
    follower.asks.up_to(".").await;
    follower.current().await;
    let mut keys = Vec::new();
    reader.for_each(|entry| keys.push(entry.key().to_owned()));
    keys.sort();
    assert_eq!(keys, ["user.1", "user.2", "user.3"]);
    let mut ages = Vec::new();
    reader.for_each_record::<User>(|user| ages.push(user.ok().map(|user| user.age)));
    ages.sort();
    assert_eq!(ages, [None, Some(10), Some(30)]);
    follower.stop().await;
}
