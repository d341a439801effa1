//! What was committed survives `kill -9`: a child commits batches that can be told from one another, is killed at any
//! moment, and what is there then is what one of them left, and with [`RedbSync::EveryCheckpoint`] not one before the
//! last that the child was sure of.
//!
//! The child is this very program: [`the_child_commits_batches`] does nothing where it is not asked to.
//! `SHIZUKU_SEED` chooses the same numbers of batches again; the moment within the next one is up to the machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use shizuku_kv::replica::{RedbOptions, RedbStorage, RedbSync, ReplicaPlace, ReplicaStorage};
use shizuku_kv::{Key, KvEntry, KvOperation, KvUpdate, VersionToken, WatchCursor};

const PATH: &str = "SHIZUKU_KILLED_PATH";
const INTERVAL: &str = "SHIZUKU_KILLED_INTERVAL";
const CHILD: &str = "kill::the_child_commits_batches";

/// The place after a batch.
fn place(batch: u64) -> ReplicaPlace {
    let cursor =
        WatchCursor::new([3; 16], batch, SystemTime::UNIX_EPOCH + Duration::from_secs(batch));
    let bytes = cursor.to_bytes().into_iter().chain([5; 16]).collect::<Vec<_>>();
    ReplicaPlace::from_bytes(&bytes).unwrap()
}

/// Every twentieth batch is without a place, as in a repair.
fn has_place(batch: u64) -> bool {
    !batch.is_multiple_of(20)
}

/// What a batch changes; the key `batch` says which one it is, also where there is no place.
fn changes(batch: u64) -> Vec<KvUpdate> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(batch);
    let put = |key: String, value: Vec<u8>| {
        let version = VersionToken::from_u64(batch);
        KvUpdate::Put(KvEntry::put(Key::new(key).unwrap(), value.into(), version, time))
    };
    let mut changes = vec![put("batch".to_owned(), batch.to_be_bytes().to_vec())];
    let mut random = Random(batch);
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

/// SplitMix64: the child and its parent have to draw the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn sync(interval: Option<u64>) -> RedbSync {
    interval.map_or(RedbSync::EveryCheckpoint, |millis| {
        RedbSync::Interval(Duration::from_millis(millis))
    })
}

/// Which batch was the last that the storage has.
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
        storage.commit(&changes(batch), has_place(batch).then(|| place(batch)).as_ref()).unwrap();
        say(&format!("committed {batch}."));
    }
}

/// A line at once: the standard output of a test that is not shown is a pipe, which is written to in blocks.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Where the parent is gone there is nobody to go on for.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

fn start(path: &Path, interval: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", CHILD, "--nocapture", "--test-threads=1"]).env(PATH, path);
    match interval {
        Some(millis) => command.env(INTERVAL, millis.to_string()),
        None => command.env_remove(INTERVAL),
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills a child after so many batches, or while it opens the file; the last one that it was sure of.
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
        // What the test harness begins may be on the same line.
        opens |= line.ends_with("opens");
        if let Some(batch) = committed(&line) {
            last = Some(batch);
            seen += 1;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before it noticed.
    lines.map_while(Result::ok).filter_map(|line| committed(&line)).last().or(last)
}

/// Which batch a line speaks of; none where it is cut.
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
    let given = std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = given.unwrap_or(now.as_nanos() as u64);
    println!("SHIZUKU_SEED={seed}");
    let mut random = Random(seed);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    let (mut state, mut reached) = (BTreeMap::new(), 0);
    for round in 0..rounds {
        // The first of them is killed while it makes the file, some while they repair it.
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
        let expected = (found > 0 && has_place(found)).then(|| place(found));
        assert_eq!(
            storage.place().unwrap(),
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
    if std::env::var_os("SHIZUKU_LONG").is_some() { 50 } else { 4 }
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    rounds(None, number_of_rounds()).await;
}

#[tokio::test]
async fn what_a_kill_leaves_is_what_some_commit_left() {
    rounds(Some(5), number_of_rounds()).await;
}
