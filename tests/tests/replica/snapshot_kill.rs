//! A process that writes a snapshot is killed repeatedly. It leaves the state of a checkpoint, no
//! acknowledged one is lost, and the next process resumes from it.
//!
//! The test starts its own executable as that process. `SHIZUKU_LONG=1` kills it more often;
//! `SHIZUKU_SEED=n` repeats the moments of a run as far as a machine repeats anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use shizuku_kv::snapshot::{
    Snapshot, SnapshotOptions, SnapshotReader, SnapshotWriter, SyncPolicy, load,
};
use shizuku_kv_tests::{Random, is_long, rerun, seed};

use crate::killed::{Model, acknowledge, batch, cursor, killed_after, opens};

const PATH: &str = "SHIZUKU_TEST_SNAPSHOT";
const POLICY: &str = "SHIZUKU_TEST_SNAPSHOT_POLICY";
const COMPACTS: &str = "SHIZUKU_TEST_SNAPSHOT_COMPACTS";

/// Returns the number of a checkpoint, or 0 if there is none yet.
fn number(state: &Snapshot) -> u64 {
    state.cursor.map_or(0, |cursor| cursor.position())
}

fn check(model: &Model, path: &Path) {
    let state = load(path).unwrap();
    assert_eq!(number(&state), model.number);
    let entries = state.entries.iter().map(|entry| entry.to_entry());
    let found: BTreeMap<_, _> = entries.map(|entry| (entry.key.clone(), entry)).collect();
    assert_eq!(found, model.state);
    let reader = SnapshotReader::open(path).unwrap();
    let entries = reader.iter().map(Result::unwrap);
    let read: BTreeMap<_, _> = entries.map(|entry| (entry.key.clone(), entry)).collect();
    assert_eq!((read, reader.cursor()), (found, state.cursor));
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
    opens();
    let (mut writer, state) = SnapshotWriter::open(path, options).unwrap();
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
        acknowledge(number);
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
        // It acknowledges each before it begins the next.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "round {round}: {found} is there, {acknowledged} was acknowledged last"
        );
        model.go_to(found);
        check(&model, &path);
        leftovers += u64::from(path.with_added_extension("compact").exists());
    }
    checkpoints += model.number;
    println!("{checkpoints} checkpoints, {leftovers} compactions that were killed");
    (checkpoints, leftovers)
}

#[test]
fn killed_writer_leaves_its_last_checkpoint() {
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
