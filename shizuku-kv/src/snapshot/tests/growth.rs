//! Tests of the length of a log whose writer is faster than its compaction.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::log::PART_SIZE;
use super::super::{SnapshotOptions, SyncPolicy};
use super::fixture::*;
use super::sim::{Fault, Plan, SimDisk};

const THRESHOLD: u64 = 4000;

/// Each read and write of the compaction lasts as long as 40 checkpoints, or until the writer
/// waits.
#[test]
fn log_of_a_fast_writer_stays_below_its_limit() {
    let disk = SimDisk::default();
    let options = SnapshotOptions::new().sync(SyncPolicy::Never).compaction_threshold(THRESHOLD);
    let (mut writer, _) = open_on(&disk, options).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    disk.slow_compaction({
        let (written, held_back, stopping) =
            (Arc::clone(&written), writer.held_back(), writer.stopping());
        move || {
            let (begin, limit) =
                (written.load(Ordering::Acquire), Instant::now() + Duration::from_secs(60));
            while !held_back() && !stopping() && written.load(Ordering::Acquire) < begin + 40 {
                assert!(Instant::now() < limit, "the writer neither writes nor waits");
                std::thread::yield_now();
            }
        }
    });
    let mut point = Point::empty();
    let (mut longest, mut compactions) = (0, 0);
    for number in 0..1000_u64 {
        let update = put(&format!("key.{}", number % 50), &[7; 40], number);
        writer.append(&update).unwrap();
        apply(&mut point.state, &update);
        point.cursor = Some(cursor(number));
        let before = writer.file_len();
        writer.checkpoint(point.cursor.as_ref()).unwrap();
        written.fetch_add(1, Ordering::Release);
        longest = longest.max(writer.file_len());
        compactions += usize::from(writer.file_len() < before);
    }
    // 50 records of 74 bytes, in a few frames; a checkpoint of one record is 170 bytes.
    let live = 50 * 85;
    let limit = 2 * live + THRESHOLD.max(PART_SIZE as u64) + 170;
    assert!(longest <= limit, "{longest} bytes, {limit} are the limit");
    assert!(compactions > 3, "{compactions} compactions");
    drop(writer);
    assert_eq!(Point::of(&load_on(&disk).unwrap()), point);
}

/// The disk has no room for a compacted file, so the writer must not wait for it.
#[test]
fn failed_compaction_does_not_block_the_writer() {
    let disk = SimDisk::default();
    let options = SnapshotOptions::new().sync(SyncPolicy::Never).compaction_threshold(THRESHOLD);
    let (mut writer, _) = open_on(&disk, options).unwrap();
    disk.reject_new_files(true);
    let mut number = 0;
    while writer.file_len() < 20 * THRESHOLD {
        number += 1;
        writer.append(&put("key", &[7; 40], number)).unwrap();
        writer.checkpoint(None).unwrap();
    }
    assert!(writer.last_compaction_error().is_some());
    disk.reject_new_files(false);
    writer.compact().unwrap();
    assert!(writer.file_len() < 1000);
    // A fault that ends the compaction at its sync does not block the writer either.
    let fault = Some(Fault::Error(std::io::ErrorKind::StorageFull));
    disk.skip("write");
    disk.plan(Plan { at: Some(1), count: u64::MAX, fault });
    assert!(writer.compact().is_err());
    disk.plan(Plan::default());
    assert!(writer.checkpoint(Some(&cursor(1))).is_ok());
    assert!(disk.paths().contains(&Path::new(PATH).to_owned()));
}
