//! Replicas of records.

use std::convert::Infallible;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{Replica, TypedBatch};
use shizuku_kv::{BatchConfig, KeyValue, KvOperation, KvReadError, TypedUpdate, WatchScope};

use crate::disk::Disk;
use crate::support::stores;

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
