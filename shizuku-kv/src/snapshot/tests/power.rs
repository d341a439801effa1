//! Tests with power loss: any part of the unsynced writes and names may be gone.

use std::path::Path;
use std::time::Duration;

use super::super::{SnapshotError, SnapshotOptions, SnapshotWriter, SyncPolicy};
use super::fixture::*;
use super::sim::{Fault, Plan, SimDisk};

/// Runs one life after the other on the same disk. Between them the power is lost, or only the
/// process ends.
fn lives(seed: u64, random: &mut fastrand::Rng) {
    let policy = match seed % 3 {
        0 => SyncPolicy::EveryCheckpoint,
        1 if random.bool() => SyncPolicy::Interval(Duration::from_secs(3600)),
        1 => SyncPolicy::Interval(Duration::from_micros(random.u64(0..300))),
        _ => SyncPolicy::Never,
    };
    let threshold = if random.bool() { u64::MAX } else { random.u64(0..3000) };
    let options = SnapshotOptions::new().sync(policy).compaction_threshold(threshold);
    let mut disk = SimDisk::default();
    let mut version = 0;
    // Every checkpoint so far, and the index of the first one that must survive.
    let mut points = vec![Point::empty()];
    let mut durable = 0;
    for life in 0..6 {
        // The found state may be a checkpoint that was begun when the power was lost.
        let (mut writer, state) = open_on(&disk, options)
            .unwrap_or_else(|error| panic!("life {life}, {policy:?}: {error}"));
        let found = Point::of(&state);
        let index = points
            .iter()
            .rposition(|point| *point == found)
            .unwrap_or_else(|| panic!("life {life}, {policy:?}: no checkpoint is {found:?}"));
        assert!(
            index >= durable,
            "life {life}, {policy:?}: {index} of {}, {durable} is durable",
            points.len()
        );
        points.truncate(index + 1);
        if policy != SyncPolicy::Never {
            durable = index;
        } else {
            durable = durable.min(index);
        }
        // In some lives operations fail.
        if random.u8(0..3) == 0 {
            let fault =
                if random.bool() { Fault::Short } else { Fault::Error(std::io::ErrorKind::Other) };
            disk.plan(Plan {
                at: Some(random.u64(0..60)),
                count: random.u64(1..4),
                fault: Some(fault),
            });
        }
        let at_end = write(&mut writer, random, &mut version, &mut points, &mut durable, policy);
        disk.plan(Plan::default());
        match random.u8(0..4) {
            // Only the process ends: regularly, or killed.
            0 if random.bool() => drop(writer),
            0 => writer.kill(),
            1 => {
                let after = disk.after_power_loss(random);
                drop(writer);
                disk = after;
            }
            2 => {
                let closed = writer.close();
                if closed.is_ok() && policy != SyncPolicy::Never && at_end {
                    durable = points.len() - 1;
                }
                disk = disk.after_power_loss(random);
            }
            _ => {
                // The power is lost within a checkpoint of several parts.
                for update in batch(random, &mut version) {
                    let _ = writer.append(&update);
                }
                let after = disk.after_power_loss(random);
                writer.kill();
                disk = after;
            }
        }
    }
}

/// Writes until an error, or for some rounds. Returns true if no error occurred.
fn write(
    writer: &mut SnapshotWriter,
    random: &mut fastrand::Rng,
    version: &mut u64,
    points: &mut Vec<Point>,
    durable: &mut usize,
    policy: SyncPolicy,
) -> bool {
    let mut next = points.last().unwrap().clone();
    for _ in 0..random.usize(0..12) {
        for update in batch(random, version) {
            if writer.append(&update).is_err() && writer.append(&update).is_err() {
                // The log is poisoned, or the fault of the test lasts. The checkpoint was not
                // acknowledged.
                return false;
            }
            apply(&mut next.state, &update);
        }
        next.cursor = Some(cursor(*version));
        // The log may have the checkpoint before it is acknowledged.
        points.push(next.clone());
        let written = match writer.checkpoint(next.cursor.as_ref()) {
            Err(SnapshotError::Io { .. }) => writer.checkpoint(next.cursor.as_ref()),
            result => result,
        };
        match written {
            Ok(()) if policy == SyncPolicy::EveryCheckpoint => *durable = points.len() - 1,
            Ok(()) => {}
            Err(_) => return false,
        }
        match random.u8(0..6) {
            0 => {
                if writer.sync().is_err() {
                    return false;
                }
                *durable = points.len() - 1;
            }
            1 => drop(writer.compact()),
            2 => drop(writer.compact_in_background()),
            _ => {}
        }
    }
    true
}

#[test]
fn power_loss_keeps_durable_checkpoints() {
    with_seeds(300, 30_000, lives);
}

/// The power is lost at each operation of creating a log, with an empty file or without a file. It
/// is lost again when the next process creates one from the remainder.
#[test]
fn power_lost_while_a_log_is_made_leaves_what_can_be_opened() {
    with_seeds(20, 2000, |_, random| {
        for (at, is_prepared) in (0..24).flat_map(|at| [(at, false), (at, true)]) {
            let mut disk = SimDisk::default();
            if is_prepared {
                disk.put(Path::new(PATH), b"");
            }
            for at in [at, random.u64(0..24)] {
                let fault = if random.bool() {
                    Fault::Short
                } else {
                    Fault::Error(std::io::ErrorKind::Other)
                };
                disk.plan(Plan { at: Some(at), count: 1000, fault: Some(fault) });
                let opened = open_on(&disk, options());
                disk.plan(Plan::default());
                let after = disk.after_power_loss(random);
                drop(opened);
                match load_on(&after) {
                    Ok(state) => assert_eq!(Point::of(&state), Point::empty()),
                    Err(error) => {
                        assert!(matches!(error, SnapshotError::NotFound { .. }), "{error}")
                    }
                }
                disk = after;
            }
            let (mut writer, state) = open_on(&disk, options()).unwrap();
            assert_eq!(Point::of(&state), Point::empty());
            writer.append(&put("a", b"1", 1)).unwrap();
            writer.checkpoint(None).unwrap();
            assert_eq!(load_on(&disk.with_only_what_is_synced()).unwrap().entries.len(), 1);
        }
    });
}

/// A log whose sync never comes, so that every write can be lost.
#[test]
fn timed_sync_needs_no_other_checkpoint() {
    let disk = SimDisk::default();
    let policy = SyncPolicy::Interval(Duration::from_millis(1));
    let (mut writer, _) = open_on(&disk, options().sync(policy)).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    writer.checkpoint(None).unwrap();
    // Only the synced data is there after this.
    wait_until("a sync", || {
        load_on(&disk.with_only_what_is_synced()).is_ok_and(|state| state.entries.len() == 1)
    });
}

#[test]
fn failed_timed_sync_is_reported_by_the_next_call() {
    let disk = SimDisk::default();
    let policy = SyncPolicy::Interval(Duration::from_millis(1));
    let (mut writer, _) = open_on(&disk, options().sync(policy)).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    // The check of the file and the write succeed, the sync after it fails.
    disk.plan(Plan { at: Some(3), count: 1, fault: Some(Fault::Error(std::io::ErrorKind::Other)) });
    writer.checkpoint(None).unwrap();
    wait_until("the sync that fails", || disk.log().iter().any(|line| line.ends_with("FAILS")));
    // This sync waits for the sync of the thread.
    let error = writer.sync().unwrap_err();
    assert!(matches!(error, SnapshotError::Poisoned { .. }), "{error}");
    assert!(matches!(writer.checkpoint(None), Err(SnapshotError::Poisoned { .. })));
    assert!(matches!(writer.close(), Err(SnapshotError::Poisoned { .. })));
    assert_eq!(disk.paths(), [Path::new(PATH)]);
}

#[test]
fn closing_syncs_unless_the_policy_is_never() {
    let hour = SyncPolicy::Interval(Duration::from_secs(3600));
    for (policy, durable) in [(SyncPolicy::EveryCheckpoint, 1), (hour, 1), (SyncPolicy::Never, 0)] {
        for close in [true, false] {
            let disk = SimDisk::default();
            let (mut writer, _) = open_on(&disk, options().sync(policy)).unwrap();
            writer.append(&put("a", b"1", 1)).unwrap();
            writer.checkpoint(None).unwrap();
            if close {
                writer.close().unwrap()
            } else {
                drop(writer)
            }
            let after = disk.with_only_what_is_synced();
            assert_eq!(load_on(&after).unwrap().entries.len(), durable, "{policy:?}");
        }
    }
}

/// After a failed sync the system considers the unwritten data clean. A process that opens the log
/// again can still read it. The process must not consider it durable because the next sync
/// succeeds.
#[test]
fn changes_of_a_failed_sync_are_not_durable() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    writer.checkpoint(Some(&cursor(1))).unwrap();
    writer.append(&put("b", b"2", 2)).unwrap();
    // The check of the file and the write succeed, the sync fails.
    disk.plan(Plan {
        at: Some(3),
        count: 1,
        fault: Some(Fault::Error(std::io::ErrorKind::StorageFull)),
    });
    assert!(matches!(writer.checkpoint(Some(&cursor(2))), Err(SnapshotError::Poisoned { .. })));
    drop(writer);
    disk.plan(Plan::default());
    let (mut writer, state) = open_on(&disk, options()).unwrap();
    assert_eq!(state.entries.len(), 2);
    let after = disk.with_only_what_is_synced();
    assert_eq!(
        load_on(&after).unwrap().entries.len(),
        2,
        "the state that open returned is on the disk"
    );
    writer.append(&put("c", b"3", 3)).unwrap();
    writer.checkpoint(Some(&cursor(3))).unwrap();
    let after = disk.with_only_what_is_synced();
    assert_eq!(load_on(&after).unwrap().entries.len(), 3, "acknowledged changes are on the disk");
}
