//! A process that writes a snapshot is killed repeatedly. It leaves the state of a checkpoint, no
//! acknowledged one is lost, and the next process resumes from it.
//!
//! The test starts its own executable as that process. `SHIZUKU_LONG=1` kills it more often;
//! `SHIZUKU_SEED=n` repeats the moments of a run as far as a machine repeats anything.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use shizuku_kv::snapshot::{
    Snapshot, SnapshotOptions, SnapshotReader, SnapshotWriter, SyncPolicy, load,
};
use shizuku_kv::{Key, KvEntry, KvUpdate, VersionToken, WatchCursor};
use shizuku_kv_tests::{Random, is_long, rerun, seed};

const PATH: &str = "SHIZUKU_TEST_SNAPSHOT";
const POLICY: &str = "SHIZUKU_TEST_SNAPSHOT_POLICY";
const COMPACTS: &str = "SHIZUKU_TEST_SNAPSHOT_COMPACTS";

/// Prefix of the number of each acknowledged checkpoint in the process's output.
const ACKNOWLEDGED: &str = "acknowledged ";

/// Returns the updates of a checkpoint, which depend only on its number.
fn batch(number: u64) -> Vec<KvUpdate> {
    let mut random = Random::from_seed(number);
    // Some checkpoints are written in parts.
    let (len, longest) = if number % 40 == 17 { (400, 8000) } else { (random.below(12), 600) };
    let update = |at| {
        let key = Key::new(format!("key.{}", random.below(300))).unwrap();
        let version = VersionToken::from_u64(number * 1000 + at);
        let created = UNIX_EPOCH + Duration::new(number, at as u32);
        let value = vec![random.below(256) as u8; random.below(longest) as usize];
        let entry = KvEntry::put(key, Bytes::from(value), version, created);
        if random.below(4) == 0 { KvUpdate::Delete(entry) } else { KvUpdate::Put(entry) }
    };
    (0..len).map(update).collect()
}

fn cursor(number: u64) -> WatchCursor {
    WatchCursor::new([3; 16], number, SystemTime::UNIX_EPOCH)
}

/// Returns the number of a checkpoint, or 0 if there is none yet.
fn number(state: &Snapshot) -> u64 {
    state.cursor.map_or(0, |cursor| cursor.position())
}

/// The state after checkpoint `number`.
#[derive(Default)]
struct Model {
    number: u64,
    state: BTreeMap<String, KvEntry>,
}

impl Model {
    fn go_to(&mut self, number: u64) {
        while self.number < number {
            self.number += 1;
            for update in batch(self.number) {
                match update {
                    KvUpdate::Put(entry) => drop(self.state.insert(entry.key.to_string(), entry)),
                    KvUpdate::Delete(entry) => drop(self.state.remove(entry.key.as_str())),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn check(&self, path: &Path) {
        let state = load(path).unwrap();
        assert_eq!(number(&state), self.number);
        let found: BTreeMap<_, _> =
            state.entries.iter().map(|entry| (entry.key().to_owned(), entry.to_entry())).collect();
        assert_eq!(found, self.state);
        let reader = SnapshotReader::open(path).unwrap();
        let read: BTreeMap<_, _> =
            reader.iter().map(Result::unwrap).map(|entry| (entry.key.to_string(), entry)).collect();
        assert_eq!((read, reader.cursor()), (found, state.cursor));
    }
}

/// Runs the process that is killed, if the test below has started it. Otherwise does nothing.
#[test]
fn process_that_is_killed() {
    let Ok(path) = std::env::var(PATH) else { return };
    let sync = match std::env::var(POLICY).unwrap().as_str() {
        "every" => SyncPolicy::EveryCheckpoint,
        "interval" => SyncPolicy::Interval(Duration::from_millis(2)),
        _ => SyncPolicy::Never,
    };
    let compacts = std::env::var(COMPACTS).is_ok_and(|compacts| compacts == "true");
    let options = SnapshotOptions::new().sync(sync).compaction_threshold(u64::MAX);
    let (mut writer, state) = SnapshotWriter::open(path, options).unwrap();
    let mut out = std::io::stdout().lock();
    for number in number(&state) + 1.. {
        for update in batch(number) {
            writer.append(&update).unwrap();
        }
        writer.checkpoint(Some(&cursor(number))).unwrap();
        if compacts {
            // Starts one after the other, and waits for some, because most lives are shorter than a
            // compaction.
            match number % 8 {
                0 => writer.compact().unwrap(),
                _ => writer.compact_in_background().unwrap(),
            }
        }
        if let Some(error) = writer.last_compaction_error() {
            panic!("{error}");
        }
        // Ends on its own when the reader is gone.
        if writeln!(out, "{ACKNOWLEDGED}{number}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

fn start(path: &Path, policy: &str, compacts: bool) -> Child {
    rerun(module_path!(), "process_that_is_killed")
        .env(PATH, path)
        .env(POLICY, policy)
        .env(COMPACTS, compacts.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the process after it has acknowledged some checkpoints. Returns the last one in its
/// output.
fn killed_after(mut child: Child, acknowledgements: u64) -> Option<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = None;
    let mut count = 0;
    // Reads to the end, because it may have acknowledged more before it was dead.
    for line in lines {
        // The last line may be incomplete.
        let Ok(line) = line else { break };
        let Some(number) = line.strip_prefix(ACKNOWLEDGED) else { continue };
        acknowledged = Some(number.parse().unwrap());
        count += 1;
        if count == acknowledgements {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success(), "it ended by itself");
    assert!(count >= acknowledgements, "it failed: {status}");
    acknowledged
}

/// Returns the number of checkpoints, and the number of kills during a compaction.
fn kill_again_and_again(compacts: bool) -> (u64, u64) {
    let mut random = Random::from_seed(seed());
    let directory = tempfile::tempdir().unwrap();
    let mut path = directory.path().join("state");
    let mut model = Model::default();
    let (mut checkpoints, mut leftovers) = (0, 0);
    for round in 0..if is_long() { 250 } else { 10 } {
        // Sometimes uses a new log, because a log grows with every life.
        if round % 20 == 19 {
            path = directory.path().join(format!("state{round}"));
            checkpoints += model.number;
            model = Model::default();
        }
        let policy = ["never", "interval", "every"][round % 3];
        let acknowledgements = 1 + random.below(60);
        let acknowledged = killed_after(start(&path, policy, compacts), acknowledgements);
        let found = number(&load(&path).unwrap());
        let acknowledged = acknowledged.unwrap_or(model.number);
        assert!(
            found >= acknowledged,
            "round {round}: {found} is there, {acknowledged} was acknowledged"
        );
        // It acknowledges each before it begins the next.
        assert!(
            found <= acknowledged + 1,
            "round {round}: {found} is there, {acknowledged} was the last"
        );
        model.go_to(found);
        model.check(&path);
        leftovers += u64::from(path.with_added_extension("compact").exists());
    }
    checkpoints += model.number;
    println!("{checkpoints} checkpoints, {leftovers} compactions that were killed");
    (checkpoints, leftovers)
}

#[test]
fn a_killed_writer_leaves_its_last_checkpoint() {
    let (checkpoints, compactions) = kill_again_and_again(false);
    assert!(checkpoints >= 10 && compactions == 0);
}

#[test]
fn writer_killed_in_compaction_leaves_last_checkpoint() {
    let (checkpoints, compactions) = kill_again_and_again(true);
    assert!(checkpoints >= 10);
    // In a few rounds, chance may miss every compaction.
    assert!(compactions > 0 || !is_long(), "none was under way");
}
