//! Files that are truncated, have flipped bits, are foreign, or have made-up content.

use std::path::Path;

use super::super::frame::FileHeader;
use super::super::{SnapshotError, SnapshotReader, SyncPolicy};
use super::fixture::*;
use super::sim::SimDisk;

fn loaded(content: &[u8]) -> Result<Point, SnapshotError> {
    let disk = SimDisk::default();
    disk.put(Path::new(PATH), content);
    load_on(&disk).map(|state| Point::of(&state))
}

#[test]
fn log_cut_anywhere_resumes_at_its_last_checkpoint() {
    for log in logs().into_iter().chain(unsealed_logs()) {
        for len in 0..=log.content.len() {
            log.must_be(len, loaded(&log.content[..len]));
            if len % 3 != 0 {
                continue;
            }
            let disk = SimDisk::default();
            disk.put(Path::new(PATH), &log.content[..len]);
            let (mut writer, state) = match open_on(&disk, options().sync(SyncPolicy::Never)) {
                Ok(opened) => opened,
                Err(error) => {
                    log.must_be(len, Err(error));
                    assert_eq!(disk.content(Path::new(PATH)), &log.content[..len]);
                    continue;
                }
            };
            let mut expected = log.at(len);
            assert_eq!(Point::of(&state), expected, "cut at {len}");
            let start = disk.content(Path::new(PATH)).len();
            let update = put("new", &[5; 50], 1);
            writer.append(&update).unwrap();
            writer.checkpoint(Some(&cursor(99))).unwrap();
            writer.kill();
            let mut whole = disk.content(Path::new(PATH));
            apply(&mut expected.state, &update);
            expected.cursor = Some(cursor(99));
            assert_eq!(loaded(&whole).unwrap(), expected);
            // The appended bytes are a torn tail too. They are not damage, although the file was
            // longer before.
            whole[start..start + 8].fill(0);
            assert_eq!(loaded(&whole).unwrap(), log.at(len), "cut at {len}");
        }
    }
}

#[test]
fn each_flipped_bit_is_found_or_changes_nothing() {
    for log in logs() {
        let right = loaded(&log.content).unwrap();
        let mut content = log.content.clone();
        // To save time, tests only one or two bits of each byte in the larger logs.
        let step = if is_long() || content.len() < 1000 { 1 } else { 7 };
        for bit in (0..content.len() * 8).step_by(step) {
            content[bit / 8] ^= 1 << (bit % 8);
            match loaded(&content) {
                // A log can be read without one of its seals, and some bytes of the header have no
                // meaning.
                Ok(point) => assert!(point == right && bit < 64 * 8, "bit {bit}"),
                Err(SnapshotError::Damaged { offset, .. }) => {
                    assert!(offset <= bit as u64 / 8, "bit {bit} is before {offset}");
                    assert!(bit >= 8 * 8, "bit {bit} of the magic number");
                }
                Err(SnapshotError::NotASnapshot { .. }) => assert!(bit < 8 * 8, "bit {bit}"),
                Err(error) => panic!("bit {bit}: {error}"),
            }
            content[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// Returns the offsets of the frames of a log, and the end of the last.
fn frames(content: &[u8]) -> Vec<usize> {
    let mut at = 64;
    let mut found = vec![at];
    while let Some(len) = content.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        at += 16 + u32::from_le_bytes(*len) as usize;
        found.push(at);
    }
    found
}

#[test]
fn missing_doubled_or_reordered_frames_are_detected() {
    for log in &logs()[1..] {
        let content = &log.content;
        for frame in frames(content).windows(3) {
            let [start, middle, end] = frame else { panic!("three of them") };
            let pieces = |pieces: &[&[u8]]| pieces.concat();
            let (before, first) = (&content[..*start], &content[*start..*middle]);
            let (second, after) = (&content[*middle..*end], &content[*end..]);
            for changed in [
                pieces(&[before, second, after]),
                pieces(&[before, first, first, second, after]),
                pieces(&[before, second, first, after]),
            ] {
                // The rest is shorter or longer than the sealed length, and is never another state.
                match loaded(&changed) {
                    Err(SnapshotError::Damaged { .. }) => {}
                    result => panic!("{result:?}"),
                }
            }
        }
    }
}

#[test]
fn frame_of_another_log_is_damage() {
    let (log, mut other) = (&logs()[1].content, logs()[1].content.clone());
    let last = frames(log)[frames(log).len() - 2];
    // Simulates a file system that brings back a block of a removed file.
    other[last..].copy_from_slice(&log[last..]);
    assert!(matches!(loaded(&other), Err(SnapshotError::Damaged { .. })));
}

#[test]
fn seals_are_written_in_turn() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    let mut before = 64;
    for version in 1..5 {
        writer.append(&put("a", b"1", version)).unwrap();
        writer.checkpoint(None).unwrap();
        let content = disk.content(Path::new(PATH));
        let header = FileHeader::from_bytes(content.first_chunk().unwrap()).unwrap();
        let mut seals = header.seals.map(Option::unwrap);
        seals.sort();
        assert_eq!(seals, [before, writer.file_len()]);
        before = writer.file_len();
    }
}

#[test]
fn flip_behind_the_seals_loses_later_checkpoints() {
    let log = &logs()[2];
    let mut content = log.content.clone();
    // Sets both seals to the first checkpoint.
    let (first, _) = log.points[0];
    let header = FileHeader::from_bytes(content.first_chunk().unwrap()).unwrap();
    content[32..44].copy_from_slice(&header.seal(first as u64));
    content[48..60].copy_from_slice(&header.seal(first as u64));
    for at in first..content.len() {
        content[at] ^= 1;
        // The frame with this byte is invalid, and so are all later frames.
        let whole = log.points.iter().rev().find(|(end, _)| *end <= at).unwrap();
        assert_eq!(loaded(&content).unwrap(), whole.1, "byte {at}");
        content[at] ^= 1;
    }
}

/// A file that was truncated, and then written to by a program that repairs the seals.
#[test]
fn seal_amid_a_checkpoint_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    for log in unsealed_logs() {
        let header = FileHeader::from_bytes(log.content.first_chunk().unwrap()).unwrap();
        for len in 65..=log.content.len() {
            let mut content = log.content[..len].to_vec();
            content[32..44].copy_from_slice(&header.seal(len as u64));
            let whole =
                log.points.iter().rev().map(|(end, _)| *end).find(|end| *end <= len).unwrap_or(64);
            std::fs::write(&path, &content).unwrap();
            let read = SnapshotReader::open(&path).map(|reader| reader.cursor());
            for read in [loaded(&content).map(|point| point.cursor), read] {
                match read {
                    Ok(cursor) => assert_eq!((whole, cursor), (len, log.at(len).cursor)),
                    Err(SnapshotError::Damaged { offset, .. }) => {
                        assert!(whole < len && offset == whole as u64)
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

#[test]
fn foreign_file_is_rejected_and_left_alone() {
    let mut version_2 = logs()[1].content.clone();
    version_2[8] = 2;
    let checksum = crc32fast::hash(&version_2[..28]);
    version_2[28..32].copy_from_slice(&checksum.to_le_bytes());
    let foreign = [&b"x"[..], b"{\"a\": 1}", &[0; 64], &[0; 4096], b"\x89SKVLOG\r", &version_2];
    for content in foreign {
        let disk = SimDisk::default();
        disk.put(Path::new(PATH), content);
        let results = [load_on(&disk).map(drop), open_on(&disk, options()).map(drop)];
        for result in results {
            match result {
                Err(SnapshotError::UnknownVersion { found: 2, .. }) => assert_eq!(content[8], 2),
                Err(SnapshotError::NotASnapshot { .. }) => assert_ne!(content, version_2),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(disk.content(Path::new(PATH)), content);
    }
}

#[test]
fn reader_and_load_return_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    for log in logs().into_iter().chain(unsealed_logs()) {
        for len in (0..=log.content.len()).rev().step_by(7) {
            std::fs::write(&path, &log.content[..len]).unwrap();
            let reader = match SnapshotReader::open(&path) {
                Ok(reader) => reader,
                Err(error) => {
                    log.must_be(len, Err(error));
                    continue;
                }
            };
            let state: Model = reader
                .iter()
                .map(Result::unwrap)
                .map(|entry| (entry.key.to_string(), entry))
                .collect();
            log.must_be(len, Ok(Point { state, cursor: reader.cursor() }));
            assert_eq!(reader.len(), reader.iter().count());
            assert_eq!(reader.is_empty(), log.at(len).state.is_empty());
        }
    }
}

#[test]
fn reader_of_a_truncated_file_reports_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let log = &logs()[1];
    std::fs::write(&path, &log.content).unwrap();
    let reader = SnapshotReader::open(&path).unwrap();
    std::fs::write(&path, &log.content[..log.content.len() - 1]).unwrap();
    let all: Vec<_> = reader.iter().collect();
    assert!(matches!(all.last(), Some(Err(SnapshotError::Damaged { .. }))), "{all:?}");
}
