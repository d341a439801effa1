//! Tests of concurrent operations, with threads that are blocked at chosen moments.

use std::path::Path;

use super::super::frame::FileHeader;
use super::super::{SnapshotError, SnapshotWriter};
use super::fixture::*;
use super::sim::SimDisk;

const COMPACT: &str = "/state.compact";

fn write(writer: &mut SnapshotWriter, point: &mut Point, version: u64) {
    let update = put(&format!("key.{}", version % 5), &[1; 20], version);
    writer.append(&update).unwrap();
    apply(&mut point.state, &update);
    point.cursor = Some(cursor(version));
    writer.checkpoint(point.cursor.as_ref()).unwrap();
}

#[test]
fn appends_are_not_held_up_by_a_compaction_and_are_in_its_file() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    let mut point = Point::empty();
    for version in 1..20 {
        write(&mut writer, &mut point, version);
    }
    let before = writer.file_len();
    // The compaction has copied everything, and is about to sync it.
    disk.close_gate(COMPACT);
    writer.compact_in_background().unwrap();
    disk.wait_for_gate(COMPACT);
    for version in 20..23 {
        write(&mut writer, &mut point, version);
        assert_eq!(Point::of(&load_on(&disk).unwrap()), point);
    }
    let in_parts: Vec<_> = (0..10).map(|n| put(&format!("part.{n}"), &[2; 60], 100 + n)).collect();
    in_parts.iter().for_each(|update| writer.append(update).unwrap());
    assert!(writer.is_compacting());
    disk.open_gate(COMPACT);
    wait_until("the compaction", || !writer.is_compacting());
    assert!(writer.last_compaction_error().is_none());
    assert!(writer.file_len() < before);
    // Everything was acknowledged as durable, and is durable in the new file.
    assert_eq!(Point::of(&load_on(&disk.with_only_what_is_synced()).unwrap()), point);
    in_parts.iter().for_each(|update| apply(&mut point.state, update));
    point.cursor = None;
    writer.checkpoint(None).unwrap();
    assert_eq!(Point::of(&load_on(&disk.with_only_what_is_synced()).unwrap()), point);
}

#[test]
fn sync_of_a_replaced_file_proves_nothing_about_the_new_one() {
    let disk = SimDisk::default();
    // Opens the log twice, so that the gate knows the file by its name and not by the name under
    // which it was created.
    drop(open_on(&disk, options()).unwrap());
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    let mut point = Point::empty();
    for version in 1..20 {
        write(&mut writer, &mut point, version);
    }
    disk.close_gate(COMPACT);
    writer.compact_in_background().unwrap();
    disk.wait_for_gate(COMPACT);
    disk.close_gate(PATH);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            write(&mut writer, &mut point, 20);
            (writer, point)
        });
        disk.wait_for_gate(PATH);
        disk.open_gate(COMPACT);
        wait_until("the new file", || !disk.paths().contains(&COMPACT.into()));
        disk.open_gate(PATH);
        let (writer, point) = writing.join().unwrap();
        let content = disk.content(Path::new(PATH));
        let header = FileHeader::from_bytes(content.first_chunk().unwrap()).unwrap();
        assert!(header.sealed() <= content.len() as u64, "{header:?}, {} bytes", content.len());
        assert_eq!(Point::of(&load_on(&disk.with_only_what_is_synced()).unwrap()), point);
        drop(writer);
    });
}

/// The second opener opens the file, and the first compacts the log before the second has locked
/// it. The file that the second locks has no name any more.
#[test]
fn opener_that_waits_for_a_lock_gets_the_file_of_that_name() {
    for first_is_closed in [false, true] {
        let disk = SimDisk::default();
        let (mut writer, _) = open_on(&disk, options()).unwrap();
        let mut point = Point::empty();
        write(&mut writer, &mut point, 1);
        disk.close_gate("/state.lock");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| open_on(&disk, options()));
            disk.wait_for_gate("/state.lock");
            writer.compact().unwrap();
            write(&mut writer, &mut point, 2);
            let first = if first_is_closed {
                drop(writer);
                None
            } else {
                Some(writer)
            };
            disk.open_gate("/state.lock");
            match second.join().unwrap() {
                Ok((mut second, state)) => {
                    assert!(first_is_closed);
                    assert_eq!(Point::of(&state), point);
                    write(&mut second, &mut point, 3);
                }
                Err(error) => {
                    assert!(
                        !first_is_closed && matches!(error, SnapshotError::Locked { .. }),
                        "{error}"
                    );
                }
            }
            drop(first);
        });
        assert_eq!(Point::of(&load_on(&disk).unwrap()), point);
    }
}

#[test]
fn many_openers_of_a_new_log_only_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = directory.path().join(format!("{round}"));
        let open = || SnapshotWriter::open(&path, options());
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let is_locked = |error: &SnapshotError| matches!(error, SnapshotError::Locked { .. });
        let (winners, others): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        assert_eq!(winners.len(), 1);
        assert!(others.iter().filter_map(|other| other.as_ref().err()).all(is_locked));
    }
}

#[test]
fn writer_dropped_during_compaction_leaves_the_log_alone() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    let mut point = Point::empty();
    for version in 1..20 {
        write(&mut writer, &mut point, version);
    }
    let content = disk.content(Path::new(PATH));
    disk.close_gate(COMPACT);
    writer.compact_in_background().unwrap();
    disk.wait_for_gate(COMPACT);
    let stopping = writer.stopping();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(writer));
        wait_until("the end", &stopping);
        disk.open_gate(COMPACT);
    });
    assert_eq!(disk.paths(), [Path::new(PATH)]);
    assert_eq!(disk.content(Path::new(PATH)), content);
    assert_eq!(Point::of(&load_on(&disk).unwrap()), point);
}
