//! The snapshot log next to the same done by hand with the standard library: a log of lengths and
//! bytes without checksums, checkpoints or cursors, loaded into a `HashMap`.
//!
//! `cargo bench -p shizuku-kv --bench snapshot [-- --quick]`. The two sides take turns, and what
//! counts is the ratio within a round. The last lines are one for each case:
//! `case | ours | other | ratio | target | met`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on ends"
)]

#[allow(unused_imports, reason = "no server is needed here")]
mod support;

use std::collections::HashMap;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use shizuku_kv::snapshot::{SnapshotOptions, SnapshotReader, SnapshotWriter, SyncPolicy, load};
use shizuku_kv::{Key, KvEntry, KvUpdate, VersionToken, WatchCursor};
use support::{Comparison, Round, cores, median, met, sorted};

const VALUE_LEN: usize = 200;
/// Updates a checkpoint, as a replica that is behind gets them.
const BATCH: usize = 1000;

#[derive(Clone, Copy)]
struct Effort {
    /// Rounds and entries.
    loads: [(usize, usize); 2],
    appends: (usize, usize),
    /// Rounds and checkpoints a round.
    checkpoints: (usize, usize),
    synced: (usize, usize),
}

const FULL: Effort = Effort {
    loads: [(10, 1_000_000), (30, 100_000)],
    appends: (10, 1_000_000),
    checkpoints: (20, 50_000),
    synced: (10, 100),
};
const QUICK: Effort = Effort {
    loads: [(3, 300_000), (5, 100_000)],
    appends: (3, 300_000),
    checkpoints: (5, 10_000),
    synced: (3, 20),
};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo adds `--bench`.
    let effort = if std::env::args().any(|argument| argument == "--quick") { QUICK } else { FULL };
    println!("{} cores, values of {VALUE_LEN} bytes\n", cores());
    let directory = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for (rounds, count) in effort.loads {
        lines.extend(loading(directory.path(), rounds, count).await);
    }
    lines.push(appending(directory.path(), effort.appends).await);
    lines.push(checkpoints(directory.path(), effort.checkpoints, SyncPolicy::Never, 1.5).await);
    lines
        .push(checkpoints(directory.path(), effort.synced, SyncPolicy::EveryCheckpoint, 1.1).await);
    held_up(directory.path(), effort.appends.1);
    println!("\ncase | ours | other | ratio | target | met");
    for line in lines {
        println!("{line}");
    }
}

fn updates(count: usize) -> Vec<KvUpdate> {
    let value = vec![b'x'; VALUE_LEN];
    let update = |number| {
        let key = Key::new(format!("device.{number}.state")).unwrap();
        let created = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let version = VersionToken::from_u64(number as u64);
        KvUpdate::Put(KvEntry::put(key, Bytes::copy_from_slice(&value), version, created))
    };
    (0..count).map(update).collect()
}

fn cursor() -> WatchCursor {
    WatchCursor::new([1; 16], 1, SystemTime::now())
}

fn options(sync: SyncPolicy) -> SnapshotOptions {
    SnapshotOptions::new().sync(sync).compaction_threshold(u64::MAX)
}

fn write(path: &Path, updates: &[KvUpdate], batch: usize, sync: SyncPolicy) -> Duration {
    let _ = std::fs::remove_file(path);
    let (mut writer, _) = SnapshotWriter::open(path, options(sync)).unwrap();
    let cursor = cursor();
    let start = Instant::now();
    for batch in updates.chunks(batch) {
        for update in batch {
            writer.append(update).unwrap();
        }
        writer.checkpoint(Some(&cursor)).unwrap();
    }
    start.elapsed()
}

fn write_by_hand(path: &Path, updates: &[KvUpdate], batch: usize, sync: bool) -> Duration {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let start = Instant::now();
    for batch in updates.chunks(batch) {
        for entry in batch.iter().filter_map(KvUpdate::entry) {
            file.write_all(&(entry.key.len() as u16).to_le_bytes()).unwrap();
            file.write_all(&(entry.value.len() as u32).to_le_bytes()).unwrap();
            file.write_all(&entry.version.as_u64().unwrap().to_le_bytes()).unwrap();
            file.write_all(entry.key.as_bytes()).unwrap();
            file.write_all(&entry.value).unwrap();
        }
        file.flush().unwrap();
        if sync {
            file.get_ref().sync_data().unwrap();
        }
    }
    start.elapsed()
}

fn load_by_hand(path: &Path) -> HashMap<String, (u64, Vec<u8>)> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let mut state = HashMap::new();
    let mut lengths = [0; 14];
    while file.read_exact(&mut lengths).is_ok() {
        let key_len = u16::from_le_bytes(lengths[..2].try_into().unwrap());
        let value_len = u32::from_le_bytes(lengths[2..6].try_into().unwrap());
        let version = u64::from_le_bytes(lengths[6..].try_into().unwrap());
        let mut key = vec![0; key_len.into()];
        file.read_exact(&mut key).unwrap();
        let mut value = vec![0; value_len as usize];
        file.read_exact(&mut value).unwrap();
        state.insert(String::from_utf8(key).unwrap(), (version, value));
    }
    state
}

/// From the page cache to a state that can be asked.
async fn loading(directory: &Path, rounds: usize, count: usize) -> Vec<String> {
    let (ours, other) = (directory.join("ours"), directory.join("other"));
    let all = updates(count);
    write(&ours, &all, BATCH, SyncPolicy::EveryCheckpoint);
    write_by_hand(&other, &all, BATCH, true);
    drop(all);
    let len = std::fs::metadata(&ours).unwrap().len();
    let before = resident();
    let state = load(&ours).unwrap();
    let after = resident();
    assert_eq!(state.entries.len(), count);
    drop(state);
    let start = Instant::now();
    assert_eq!(SnapshotReader::open(&ours).unwrap().iter().filter(Result::is_ok).count(), count);
    println!(
        "{count} entries: a file of {} MB, {} MB more in memory when loaded; read one after the other in {:.2} s",
        len / 1_000_000,
        after.saturating_sub(before) / 1000,
        start.elapsed().as_secs_f64(),
    );
    let timed = |load: &dyn Fn() -> usize| {
        let start = Instant::now();
        let found = black_box(load());
        let took = start.elapsed();
        assert_eq!(found, count);
        took
    };
    // Freeing it counts too, on both sides.
    let comparison = Comparison::run(
        rounds,
        || async { timed(&|| load(&ours).unwrap().entries.len()) },
        || async { timed(&|| load_by_hand(&other).len()) },
    )
    .await;
    let rate = |time: Duration| len as f64 / time.as_secs_f64() / 1e9;
    let rates = sorted(comparison.0.iter().map(|round| rate(round.ours)));
    let line = format!(
        "load of {count} entries, speed | {:.2} GB/s ({:.2} to {:.2}) | - | - | >= 1 GB/s | {}",
        median(&rates),
        rates[0],
        rates[rates.len() - 1],
        met(median(&rates) >= 1.0),
    );
    println!("measured: {line}");
    vec![line, rates_line(&format!("load of {count} entries"), &comparison, count, 1.0)]
}

async fn appending(directory: &Path, (rounds, count): (usize, usize)) -> String {
    let (ours, other) = (directory.join("ours"), directory.join("other"));
    let all = updates(count);
    let comparison = Comparison::run(
        rounds,
        || async { write(&ours, &all, BATCH, SyncPolicy::Never) },
        || async { write_by_hand(&other, &all, BATCH, false) },
    )
    .await;
    rates_line(&format!("append of {count} entries, {BATCH} a checkpoint"), &comparison, count, 1.5)
}

/// Checkpoints of one update each.
async fn checkpoints(
    directory: &Path,
    (rounds, count): (usize, usize),
    sync: SyncPolicy,
    target: f64,
) -> String {
    let (ours, other) = (directory.join("ours"), directory.join("other"));
    let all = updates(count);
    let comparison = Comparison::run(
        rounds,
        || async { write(&ours, &all, 1, sync) },
        || async { write_by_hand(&other, &all, 1, sync == SyncPolicy::EveryCheckpoint) },
    )
    .await;
    let what = if sync == SyncPolicy::Never { "not synced" } else { "synced" };
    rates_line(&format!("checkpoints of one entry, {what}"), &comparison, count, target)
}

fn rates_line(case: &str, comparison: &Comparison, count: usize, target: f64) -> String {
    let rate = |side: fn(&Round) -> Duration| {
        let rates =
            sorted(comparison.0.iter().map(|round| count as f64 / side(round).as_secs_f64() / 1e3));
        format!("{:.0} k/s", median(&rates))
    };
    let ratios = sorted(comparison.0.iter().map(|r| r.ours.as_secs_f64() / r.other.as_secs_f64()));
    let line = format!(
        "{case} | {} | {} | {:.3} ({:.3} to {:.3}) | <= {target} | {}",
        rate(|round| round.ours),
        rate(|round| round.other),
        median(&ratios),
        ratios[0],
        ratios[ratios.len() - 1],
        met(median(&ratios) <= target),
    );
    println!("measured: {line}");
    line
}

/// How long a checkpoint takes at most while a large log is compacted beside it.
fn held_up(directory: &Path, count: usize) {
    let path = directory.join("ours");
    let all = updates(count);
    write(&path, &all, BATCH, SyncPolicy::Never);
    let (mut writer, _) = SnapshotWriter::open(&path, options(SyncPolicy::Never)).unwrap();
    writer.compact_in_background().unwrap();
    let start = Instant::now();
    let mut times = Vec::new();
    for update in all.iter().cycle() {
        writer.append(update).unwrap();
        let start = Instant::now();
        writer.checkpoint(Some(&cursor())).unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if !writer.is_compacting() {
            break;
        }
    }
    let took = start.elapsed();
    let times = sorted(times.into_iter());
    println!(
        "compaction of {count} entries: {:.2} s; of {} checkpoints meanwhile the median took {:.3} ms, the longest {:.1} ms",
        took.as_secs_f64(),
        times.len(),
        median(&times),
        times[times.len() - 1],
    );
    assert!(writer.last_compaction_error().is_none());
}

/// Resident memory of the process in KB; 0 if it is unknown.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
