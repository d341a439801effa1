//! Shared parts of the tests: updates, a model of the state, and logs to test with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;

use super::super::disk::Disk;
use super::super::frame::FileHeader;
use super::super::load::{load_file, open_to_read};
use super::super::{Snapshot, SnapshotError, SnapshotOptions, SnapshotWriter, SyncPolicy};
use super::sim::SimDisk;
use crate::store::{Key, KvEntry, KvOperation, KvUpdate, VersionToken, WatchCursor};

pub(super) const PATH: &str = "/state";

/// An expected state, in a structure too simple to be wrong.
pub(super) type Model = BTreeMap<String, KvEntry>;

/// A checkpoint: the state and the cursor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) state: Model,
    pub(super) cursor: Option<WatchCursor>,
}

impl Point {
    pub(super) fn empty() -> Self {
        Self { state: Model::new(), cursor: None }
    }

    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let entries =
            snapshot.entries.iter().map(|entry| (entry.key().to_owned(), entry.to_entry()));
        let state = entries.collect::<Model>();
        assert_eq!(state.len(), snapshot.entries.len());
        let bytes: usize = snapshot.entries.iter().map(|entry| entry.record_len()).sum();
        assert_eq!(bytes as u64, snapshot.entries.record_bytes());
        Self { state, cursor: snapshot.cursor }
    }
}

pub(super) fn cursor(position: u64) -> WatchCursor {
    WatchCursor::new([7; 16], position, UNIX_EPOCH + Duration::from_secs(position))
}

pub(super) fn put(key: &str, value: &[u8], version: u64) -> KvUpdate {
    let created = UNIX_EPOCH + Duration::new(1_700_000_000 + version, 123_456_789);
    let key = Key::new(key).unwrap();
    let version = VersionToken::from_u64(version);
    KvUpdate::Put(KvEntry::put(key, Bytes::copy_from_slice(value), version, created))
}

pub(super) fn delete(key: &str, version: u64) -> KvUpdate {
    let version = VersionToken::from_u64(version);
    KvUpdate::Delete(KvEntry::tombstone(
        Key::new(key).unwrap(),
        KvOperation::Delete,
        version,
        UNIX_EPOCH,
    ))
}

pub(super) fn apply(state: &mut Model, update: &KvUpdate) {
    match update {
        KvUpdate::Put(entry) => drop(state.insert(entry.key.to_string(), entry.clone())),
        KvUpdate::Delete(entry) => drop(state.remove(entry.key.as_str())),
        KvUpdate::CaughtUp => {}
    }
}

/// Returns some updates of few keys, with values from empty to longer than a part.
pub(super) fn batch(random: &mut fastrand::Rng, version: &mut u64) -> Vec<KvUpdate> {
    let len = if random.u8(0..8) == 0 { random.usize(0..60) } else { random.usize(0..5) };
    let update = |_| {
        *version += 1;
        let key = format!("key.{}", random.u8(0..20));
        match random.u8(0..10) {
            0..3 => delete(&key, *version),
            3 => put(&key, &vec![random.u8(..); random.usize(0..700)], *version),
            _ => put(&key, &vec![random.u8(..); random.usize(0..30)], *version),
        }
    };
    (0..len).map(update).collect()
}

pub(super) fn load_on(disk: &SimDisk) -> Result<Snapshot, SnapshotError> {
    let path: Arc<Path> = Path::new(PATH).into();
    let file = open_to_read(disk as &dyn Disk, &path)?;
    Ok(load_file(&file, &path)?.into_snapshot())
}

pub(super) fn open_on(
    disk: &SimDisk,
    options: SnapshotOptions,
) -> Result<(SnapshotWriter, Snapshot), SnapshotError> {
    SnapshotWriter::open_on(disk.shared(), Path::new(PATH), options)
}

/// Options without automatic compaction.
pub(super) fn options() -> SnapshotOptions {
    SnapshotOptions::new().compaction_threshold(u64::MAX)
}

/// A log that was written on a disk of its own, with every checkpoint and its end offset in the
/// file.
pub(super) struct Written {
    pub(super) content: Vec<u8>,
    pub(super) points: Vec<(usize, Point)>,
}

impl Written {
    /// Returns the length up to which the file had reached the disk.
    pub(super) fn sealed(&self) -> usize {
        FileHeader::from_bytes(self.content.first_chunk().unwrap()).unwrap().sealed() as usize
    }

    /// Fails unless this is the result of reading the first `len` bytes: a state, or damage if they
    /// are too few.
    pub(super) fn must_be(&self, len: usize, read: Result<Point, SnapshotError>) {
        match read {
            // An empty file cannot be distinguished from one that is to become a log.
            Ok(point) if len == 0 || len >= self.sealed() => {
                assert_eq!(point, self.at(len), "cut at {len}")
            }
            Err(SnapshotError::Damaged { offset, .. }) if len > 0 && len < self.sealed() => {
                assert_eq!(offset, len as u64);
            }
            other => panic!("cut at {len}: {other:?}"),
        }
    }

    /// Returns the valid state of the first `len` bytes.
    pub(super) fn at(&self, len: usize) -> Point {
        let whole = self.points.iter().rev().find(|(end, _)| *end <= len);
        whole.map_or_else(Point::empty, |(_, point)| point.clone())
    }
}

/// Writes `batches`, compacting before the batches in `compact_before`.
fn written(batches: &[Vec<KvUpdate>], compact_before: &[usize]) -> Written {
    written_with(options(), batches, compact_before)
}

fn written_with(
    options: SnapshotOptions,
    batches: &[Vec<KvUpdate>],
    compact_before: &[usize],
) -> Written {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options).unwrap();
    let mut point = Point::empty();
    let mut points = Vec::new();
    for (index, batch) in batches.iter().enumerate() {
        if compact_before.contains(&index) {
            writer.compact().unwrap();
            // The file no longer contains earlier checkpoints.
            points = vec![(writer.file_len() as usize, point.clone())];
        }
        for update in batch {
            writer.append(update).unwrap();
            apply(&mut point.state, update);
        }
        point.cursor = (index % 4 != 3).then(|| cursor(index as u64));
        writer.checkpoint(point.cursor.as_ref()).unwrap();
        points.push((writer.file_len() as usize, point.clone()));
    }
    writer.close().unwrap();
    Written { content: disk.content(Path::new(PATH)), points }
}

/// Returns logs of every kind: small, with deletions, with parts, compacted, compacted in the
/// middle.
pub(super) fn logs() -> Vec<Written> {
    let (small, parts) = histories();
    vec![
        written(&[], &[]),
        written(&small, &[]),
        written(&parts, &[]),
        written(&parts, &[3]),
        written(&parts, &[5]),
    ]
}

/// Returns logs that are not sealed to their end, so that a crash can have truncated them.
pub(super) fn unsealed_logs() -> Vec<Written> {
    let options = options().sync(SyncPolicy::Never);
    let (small, parts) = histories();
    vec![
        written_with(options, &small, &[]),
        written_with(options, &parts, &[]),
        written_with(options, &parts, &[3]),
        written_with(options, &parts, &[5]),
    ]
}

fn histories() -> (Vec<Vec<KvUpdate>>, Vec<Vec<KvUpdate>>) {
    let small = vec![
        vec![put("a", b"1", 1), put("b", b"2", 2)],
        vec![delete("a", 3)],
        vec![],
        vec![put("a", b"", 4), put("c.d", &[9; 40], 5), delete("b", 6), delete("x", 7)],
    ];
    let mut parts = small.clone();
    parts.insert(
        2,
        (0..14).map(|n| put(&format!("part.{n}"), &[n; 20], 100 + u64::from(n))).collect(),
    );
    parts.push(vec![put("large", &[3; 300], 200), delete("part.3", 201)]);
    parts.push((0..9u8).map(|n| delete(&format!("part.{n}"), 300 + u64::from(n))).collect());
    (small, parts)
}

/// Returns true if tests may take minutes.
pub(super) fn is_long() -> bool {
    std::env::var("SHIZUKU_LONG").is_ok_and(|long| long == "1")
}

/// Returns the seeds to test: the seed of `SHIZUKU_SEED`, or some new ones, many with
/// `SHIZUKU_LONG=1`.
pub(super) fn seeds(few: u64, many: u64) -> Vec<u64> {
    match std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..if is_long() { many } else { few }).map(|_| fastrand::u64(..)).collect(),
    }
}

/// Waits until `is_so` returns true.
pub(super) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < limit, "{what} did not come");
        std::thread::yield_now();
    }
}

/// Runs `test` with each seed. A failure prints the seed.
pub(super) fn with_seeds(few: u64, many: u64, test: impl Fn(u64, &mut fastrand::Rng)) {
    for seed in seeds(few, many) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            test(seed, &mut fastrand::Rng::with_seed(seed));
        }));
        if let Err(panic) = outcome {
            println!("SHIZUKU_SEED={seed} shows it again");
            std::panic::resume_unwind(panic);
        }
    }
}
