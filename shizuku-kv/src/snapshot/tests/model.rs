//! Tests of random histories against a plain map, and of random bytes.

use std::path::Path;
use std::time::Duration;

use super::super::frame::MARK;
use super::super::record::shape;
use super::super::{SnapshotOptions, SyncPolicy};
use super::fixture::*;
use super::sim::{Plan, SimDisk};

/// Checkpoints, compactions of both kinds, discards and reopenings, in any order. The loaded state
/// is always the state at the last checkpoint.
fn history(random: &mut fastrand::Rng, steps: usize) {
    let disk = SimDisk::default();
    let threshold = if random.bool() { u64::MAX } else { random.u64(0..5000) };
    let policy = match random.u8(0..3) {
        0 => SyncPolicy::EveryCheckpoint,
        1 => SyncPolicy::Interval(Duration::from_millis(1)),
        _ => SyncPolicy::Never,
    };
    let options = SnapshotOptions::new().sync(policy).compaction_threshold(threshold);
    let mut version = 0;
    let (mut writer, _) = open_on(&disk, options).unwrap();
    let (mut point, mut appended) = (Point::empty(), Point::empty());
    for step in 0..steps {
        match random.u8(0..20) {
            0 => {
                drop(writer);
                let (reopened, state) = open_on(&disk, options).unwrap();
                assert_eq!(Point::of(&state), point);
                (writer, appended) = (reopened, point.clone());
            }
            1 => {
                writer.kill();
                let (reopened, state) = open_on(&disk, options).unwrap();
                assert_eq!(Point::of(&state), point);
                (writer, appended) = (reopened, point.clone());
            }
            2 => writer.compact().unwrap(),
            3 => writer.compact_in_background().unwrap(),
            4 => {
                writer.discard().unwrap();
                appended = point.clone();
            }
            5 => writer.sync().unwrap(),
            6..13 => {
                for update in batch(random, &mut version) {
                    writer.append(&update).unwrap();
                    apply(&mut appended.state, &update);
                }
            }
            _ => {
                appended.cursor = random.bool().then(|| cursor(step as u64));
                writer.checkpoint(appended.cursor.as_ref()).unwrap();
                point = appended.clone();
            }
        }
        assert_eq!(Point::of(&load_on(&disk).unwrap()), point);
        if let Some(error) = writer.last_compaction_error() {
            panic!("{error}");
        }
    }
    drop(writer);
    assert_eq!(disk.paths(), [Path::new(PATH)]);
}

#[test]
fn any_history_leaves_the_state_of_its_last_checkpoint() {
    with_seeds(15, 1500, |_, random| history(random, 60));
}

#[test]
fn log_of_live_records_is_compacted_once() {
    let disk = SimDisk::default();
    let (mut writer, _) =
        open_on(&disk, SnapshotOptions::new().compaction_threshold(1000)).unwrap();
    for version in 0..80 {
        writer.append(&put(&format!("key.{}", version % 40), &[1; 40], version)).unwrap();
    }
    writer.checkpoint(None).unwrap();
    wait_until("the compaction", || !writer.is_compacting());
    writer.checkpoint(Some(&cursor(1))).unwrap();
    assert!(writer.last_compaction_error().is_none());
    assert!(writer.file_len() > 2000, "{} live", writer.file_len());
    disk.plan(Plan::default());
    for version in 0..10 {
        writer.append(&put("key.0", b"", 100 + version)).unwrap();
        writer.checkpoint(None).unwrap();
        wait_until("the compaction", || !writer.is_compacting());
    }
    assert!(!disk.log().iter().any(|line| line == "open state.compact"), "{:?}", disk.log());
}

#[test]
fn files_left_by_a_crash_are_removed() {
    let beside = format!("{PATH}.compact");
    let marked = [&MARK[..], b"half of something"].concat();
    for left in [&marked[..], b"", &[0; 8], &MARK[..3]] {
        let disk = SimDisk::default();
        disk.put(Path::new(&beside), left);
        drop(open_on(&disk, options()).unwrap());
        assert_eq!(disk.paths(), [Path::new(PATH)]);
    }
    for of_others in [&b"half of something"[..], &logs()[1].content] {
        let disk = SimDisk::default();
        disk.put(Path::new(&beside), of_others);
        drop(open_on(&disk, options()).unwrap());
        assert_eq!(disk.content(Path::new(&beside)), of_others);
    }
}

/// Makes bytes that are valid in some places, so that the code after these checks runs too.
fn made_up(random: &mut fastrand::Rng, log: &[u8]) -> Vec<u8> {
    let mut content = match random.u8(0..3) {
        0 => log.to_vec(),
        1 => log[..random.usize(0..=log.len())].to_vec(),
        _ => (0..random.usize(0..200)).map(|_| random.u8(..)).collect(),
    };
    for _ in 0..random.usize(0..4) {
        if content.is_empty() {
            break;
        }
        let at = random.usize(0..content.len());
        match random.u8(0..4) {
            0 => content[at] = random.u8(..),
            1 => content.truncate(at),
            2 => content.insert(at, random.u8(..)),
            _ => content.extend_from_within(at..),
        }
    }
    if random.bool() {
        right_checksums(&mut content);
    }
    content
}

/// Makes all checksums valid, whatever else is invalid.
fn right_checksums(content: &mut [u8]) {
    use super::super::frame::{FILE_HEADER, FRAME_HEADER, FileHeader, MAGIC, VERSION};
    let len = content.len() as u64;
    let Some((header, mut rest)) = content.split_first_chunk_mut::<{ FILE_HEADER as usize }>()
    else {
        return;
    };
    header[..8].copy_from_slice(&MAGIC);
    header[8] = VERSION;
    let checksum = crc32fast::hash(&header[..28]);
    header[28..32].copy_from_slice(&checksum.to_le_bytes());
    let seal = FileHeader::new(header[12..28].try_into().unwrap()).seal(len);
    header[32..44].copy_from_slice(&seal);
    let mut chain = crc32fast::hash(&header[12..28]);
    while rest.len() >= FRAME_HEADER {
        let len = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        if let Some(payload) = rest.get(FRAME_HEADER..FRAME_HEADER.saturating_add(len)) {
            let checksum = crc32fast::hash(payload);
            rest[8..12].copy_from_slice(&checksum.to_le_bytes());
        }
        let mut hasher = crc32fast::Hasher::new_with_initial(chain);
        hasher.update(&rest[..12]);
        chain = hasher.finalize();
        rest[12..16].copy_from_slice(&chain.to_le_bytes());
        let Some(next) = rest.get_mut(FRAME_HEADER.saturating_add(len)..) else { return };
        rest = next;
    }
}

#[test]
fn arbitrary_bytes_cause_no_panic() {
    let logs = logs();
    let mut loaded = 0;
    with_seeds(1, 50, |_, random| {
        for _ in 0..3000 {
            let log = &logs[random.usize(0..logs.len())];
            let content = made_up(random, &log.content);
            let disk = SimDisk::default();
            disk.put(Path::new(PATH), &content);
            let state = load_on(&disk);
            let opened = open_on(&disk, options());
            match (state, opened) {
                (Ok(state), Ok((mut writer, opened))) => {
                    let mut point = Point::of(&state);
                    point.cursor = point.cursor.filter(|_| state.scope_tag == [0; 16]);
                    assert_eq!(point, Point::of(&opened));
                    writer.append(&put("new", b"", 1)).unwrap();
                    writer.checkpoint(None).unwrap();
                    writer.compact().unwrap();
                    drop(writer);
                    let state = load_on(&disk).unwrap();
                    assert!(state.entries.contains_key("new"));
                }
                (Err(_), Err(_)) => {}
                (state, opened) => panic!("{state:?}, {:?}", opened.map(|(_, state)| state)),
            }
        }
    });
    // Random changes do not pass the checksums, so testing the checked content needs valid
    // checksums.
    for content in [&logs[1].content, &logs[2].content] {
        for at in 64..content.len().min(600) {
            let mut content = content.clone();
            content[at] = content[at].wrapping_add(1);
            right_checksums(&mut content);
            let disk = SimDisk::default();
            disk.put(Path::new(PATH), &content);
            if let Ok(state) = load_on(&disk) {
                Point::of(&state).state.values().for_each(|entry| assert!(entry.key.len() <= 1024));
                loaded += 1;
            }
        }
    }
    assert!(loaded > 100, "{loaded}");
}

#[test]
fn arbitrary_bytes_of_a_record_cause_no_panic() {
    with_seeds(1, 50, |_, random| {
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(0..80))
                .map(|at| if at < 2 || random.bool() { random.u8(0..4) } else { random.u8(..) })
                .collect();
            if let Ok(shape) = shape(&bytes) {
                assert!(
                    shape.key <= shape.value
                        && shape.value <= shape.end
                        && shape.end <= bytes.len()
                );
            }
        }
    });
}
