//! Commits survive `kill -9`. A child commits distinguishable batches and is killed at any moment.
//! The storage then has the state of one of the batches. With [`RedbSync::EveryCheckpoint`] it is
//! not one before the last acknowledged batch.
//!
//! The child is this program: [`process_that_is_killed`] does nothing unless the parent starts it.
//! `SHIZUKU_SEED` chooses the same numbers of batches again; the machine decides the moment within
//! the next one.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use shizuku_kv::replica::{Checkpoint, RedbOptions, RedbStorage, RedbSync, ReplicaStorage};
use shizuku_kv_tests::{Random, is_long, rerun, seed};

use crate::killed::{Model, NUMBER, acknowledge, batch, cursor, killed_after, opens};

const PATH: &str = "SHIZUKU_KILLED_PATH";
const INTERVAL: &str = "SHIZUKU_KILLED_INTERVAL";

/// Returns the checkpoint after a batch. Every twentieth batch has none, as in a resync.
fn checkpoint(number: u64) -> Option<Checkpoint> {
    let bytes = cursor(number).to_bytes().into_iter().chain([5; 16]).collect::<Vec<_>>();
    (!number.is_multiple_of(20)).then(|| Checkpoint::from_bytes(&bytes).unwrap())
}

/// Returns the last batch that the storage has.
fn last_batch(storage: &RedbStorage) -> u64 {
    let entry = storage.reader().get(NUMBER).unwrap();
    entry.map_or(0, |entry| u64::from_be_bytes(entry.value.as_ref().try_into().unwrap()))
}

#[tokio::test]
async fn process_that_is_killed() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let interval = std::env::var(INTERVAL).ok().and_then(|millis| millis.parse().ok());
    let sync = interval.map_or(RedbSync::EveryCheckpoint, |millis| {
        RedbSync::Interval(Duration::from_millis(millis))
    });
    opens();
    let options = RedbOptions::new().sync(sync).cache_size(1 << 20);
    let mut storage = RedbStorage::open(path, options).await.unwrap();
    for number in last_batch(&storage) + 1.. {
        storage.commit(&batch(number), checkpoint(number).as_ref()).unwrap();
        acknowledge(number);
    }
}

fn start(path: &Path, interval: Option<u64>) -> Child {
    let mut command = rerun(module_path!(), "process_that_is_killed");
    command.env(PATH, path);
    match interval {
        Some(millis) => command.env(INTERVAL, millis.to_string()),
        None => command.env_remove(INTERVAL),
    };
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

async fn kill_again_and_again(interval: Option<u64>) {
    let mut random = Random::from_seed(seed());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    let mut model = Model::default();
    for round in 0..if is_long() { 50 } else { 4 } {
        // The first child is killed while it creates the file, and some while they repair it.
        let batches = if round % 5 == 0 { 0 } else { random.below(40) };
        let sure = killed_after(start(&path, interval), batches);
        let storage =
            RedbStorage::open(&path, RedbOptions::new().check_when_opened(true)).await.unwrap();
        let found = last_batch(&storage);
        let reached = model.number;
        assert!(
            found >= reached,
            "round {round}: batch {found} after {reached} was closed in good order"
        );
        if let Some(sure) = sure {
            assert!(found <= sure + 1, "round {round}: batch {found}, and {sure} was the last");
            assert!(
                interval.is_some() || found >= sure,
                "round {round}: batch {found}, and {sure} was durable"
            );
        }
        model.go_to(found);
        let expected = if found > 0 { checkpoint(found) } else { None };
        assert_eq!(storage.checkpoint().unwrap(), expected, "round {round}, after batch {found}");
        let held = storage.reader().scan("").unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let state: Vec<_> = model.state.values().cloned().collect();
        assert_eq!(held, state, "round {round}, after batch {found}");
        storage.close().unwrap();
    }
    assert!(model.number > 0, "no child has committed anything");
}

#[tokio::test]
async fn committed_batches_survive_a_kill() {
    kill_again_and_again(None).await;
}

#[tokio::test]
async fn killed_storage_has_the_state_of_one_commit() {
    kill_again_and_again(Some(5)).await;
}
