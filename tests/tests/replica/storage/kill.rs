//! Commits survive `kill -9`. A child commits distinguishable batches and is killed at any moment.
//! The storage then has the state of one of the batches. With [`RedbSync::EveryCheckpoint`] it is
//! not one before the last acknowledged batch.
//!
//! The child is this program: [`the_child_commits_batches`] does nothing unless the parent starts
//! it. `SHIZUKU_SEED` chooses the same numbers of batches again; the machine decides the moment
//! within the next one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use shizuku_kv::replica::{Checkpoint, RedbOptions, RedbStorage, RedbSync, ReplicaStorage};
use shizuku_kv::{Key, KvEntry, KvOperation, KvUpdate, VersionToken, WatchCursor};
use shizuku_kv_tests::{Random, is_long, rerun, seed};

const PATH: &str = "SHIZUKU_KILLED_PATH";
const INTERVAL: &str = "SHIZUKU_KILLED_INTERVAL";

/// Returns the checkpoint after a batch.
fn checkpoint(batch: u64) -> Checkpoint {
    let cursor =
        WatchCursor::new([3; 16], batch, SystemTime::UNIX_EPOCH + Duration::from_secs(batch));
    let bytes = cursor.to_bytes().into_iter().chain([5; 16]).collect::<Vec<_>>();
    Checkpoint::from_bytes(&bytes).unwrap()
}

/// Returns false for every twentieth batch, which has no checkpoint, as in a resync.
fn has_checkpoint(batch: u64) -> bool {
    !batch.is_multiple_of(20)
}

/// Returns the changes of a batch. The key `batch` identifies it, even without a checkpoint.
fn changes(batch: u64) -> Vec<KvUpdate> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(batch);
    let put = |key: String, value: Vec<u8>| {
        let version = VersionToken::from_u64(batch);
        KvUpdate::Put(KvEntry::put(Key::new(key).unwrap(), value.into(), version, time))
    };
    let mut changes = vec![put("batch".to_owned(), batch.to_be_bytes().to_vec())];
    let mut random = Random::from_seed(batch);
    for _ in 0..random.below(40) {
        let key = format!("key.{}", random.below(300));
        let size = [0, 10, 300, 9000][random.below(4) as usize];
        if random.below(3) == 0 {
            let version = VersionToken::from_u64(batch);
            let entry =
                KvEntry::tombstone(Key::new(key).unwrap(), KvOperation::Delete, version, time);
            changes.push(KvUpdate::Delete(entry));
        } else {
            changes.push(put(key, vec![random.below(256) as u8; size]));
        }
    }
    changes
}

fn sync(interval: Option<u64>) -> RedbSync {
    interval.map_or(RedbSync::EveryCheckpoint, |millis| {
        RedbSync::Interval(Duration::from_millis(millis))
    })
}

/// Returns the last batch that the storage has.
fn last_batch(storage: &RedbStorage) -> u64 {
    match storage.reader().get("batch").unwrap() {
        Some(entry) => u64::from_be_bytes(entry.value.as_ref().try_into().unwrap()),
        None => 0,
    }
}

#[tokio::test]
async fn the_child_commits_batches() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    let interval = std::env::var(INTERVAL).ok().and_then(|millis| millis.parse().ok());
    say("opens");
    let options = RedbOptions::new().sync(sync(interval)).cache_size(1 << 20);
    let mut storage = RedbStorage::open(path, options).await.unwrap();
    for batch in last_batch(&storage) + 1.. {
        storage
            .commit(&changes(batch), has_checkpoint(batch).then(|| checkpoint(batch)).as_ref())
            .unwrap();
        say(&format!("committed {batch}."));
    }
}

/// Prints a line and flushes it, because a test's captured standard output is a pipe with a block
/// buffer.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Without a parent the child has no reason to continue.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

fn start(path: &Path, interval: Option<u64>) -> Child {
    let mut command = rerun(module_path!(), "the_child_commits_batches");
    command.env(PATH, path);
    match interval {
        Some(millis) => command.env(INTERVAL, millis.to_string()),
        None => command.env_remove(INTERVAL),
    };
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills a child after this many batches, or while it opens the file. Returns the last acknowledged
/// batch.
fn run_and_kill(path: &Path, interval: Option<u64>, batches: u64) -> Option<u64> {
    let mut child = start(path, interval);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = 0;
    let mut last = None;
    let mut opens = false;
    while !opens || seen < batches {
        let Some(line) = lines.next() else {
            panic!("the child ended by itself, with {}", child.wait().unwrap());
        };
        let line = line.unwrap();
        // The start of the line may be output of the test harness.
        opens |= line.ends_with("opens");
        if let Some(batch) = committed(&line) {
            last = Some(batch);
            seen += 1;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Includes the output before it was killed.
    lines.map_while(Result::ok).filter_map(|line| committed(&line)).last().or(last)
}

/// Returns the batch of a line, or `None` if the line is cut.
fn committed(line: &str) -> Option<u64> {
    line.strip_prefix("committed ")?.strip_suffix('.')?.parse().ok()
}

/// Applies a batch to the map.
fn apply(state: &mut BTreeMap<Key, KvEntry>, batch: u64) {
    for change in changes(batch) {
        match change {
            KvUpdate::Put(entry) => drop(state.insert(entry.key.clone(), entry)),
            KvUpdate::Delete(entry) => drop(state.remove(&entry.key)),
            _ => {}
        }
    }
}

async fn rounds(interval: Option<u64>, rounds: u64) {
    let mut random = Random::from_seed(seed());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    let (mut state, mut reached) = (BTreeMap::new(), 0);
    for round in 0..rounds {
        // The first child is killed while it creates the file, and some while they repair it.
        let batches = if round % 5 == 0 { 0 } else { random.below(40) };
        let sure = run_and_kill(&path, interval, batches);
        let storage =
            RedbStorage::open(&path, RedbOptions::new().check_when_opened(true)).await.unwrap();
        let found = last_batch(&storage);
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
        (reached + 1..=found).for_each(|batch| apply(&mut state, batch));
        reached = found;
        let expected = (found > 0 && has_checkpoint(found)).then(|| checkpoint(found));
        assert_eq!(
            storage.checkpoint().unwrap(),
            expected,
            "round {round}: the place after batch {found}"
        );
        let held = storage.reader().scan("").unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(
            held,
            state.values().cloned().collect::<Vec<_>>(),
            "round {round}, after batch {found}"
        );
        storage.close().unwrap();
    }
    assert!(reached > 0, "no child has committed anything");
}

fn number_of_rounds() -> u64 {
    if is_long() { 50 } else { 4 }
}

#[tokio::test]
async fn committed_batches_survive_a_kill() {
    rounds(None, number_of_rounds()).await;
}

#[tokio::test]
async fn killed_storage_has_the_state_of_one_commit() {
    rounds(Some(5), number_of_rounds()).await;
}
