//! Snapshot logs. No file makes reading panic, and all ways of reading agree. A readable file can
//! be written further. A truncated or damaged log has a state that it had before, or is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use shizuku_kv::snapshot::{
    Snapshot, SnapshotError, SnapshotOptions, SnapshotReader, SnapshotWriter, SyncPolicy, load,
};
use shizuku_kv::{Key, KvEntry, KvOperation, KvUpdate, VersionToken, WatchCursor};
use tempfile::TempDir;

use super::reading::{Input, crc32};

/// Reads the bytes as a file, as the content of a file with valid checksums, or as operations on a
/// log.
pub fn run(data: &[u8]) {
    let directory = directory();
    let path = directory.path().join("log");
    let mut input = Input(data);
    match input.byte() % 3 {
        0 => reads(&path, input.0),
        1 => {
            let (file, strange) = forge(&mut input);
            reads(&path, &file);
            fs::write(&path, &file).unwrap();
            if let Some(strange) = strange
                && let Ok(loaded) = load(&path)
            {
                fs::write(&path, &file[..strange]).unwrap();
                let before = load(&path).unwrap();
                let same = entries(&loaded) == entries(&before) && loaded.cursor == before.cursor;
                assert!(same, "a frame counts that was not written behind the one before it");
            }
        }
        _ => goes_on(&path, &mut input),
    }
}

/// Returns a file, a file with computed checksums, and operations on a log.
pub fn examples() -> Vec<Vec<u8>> {
    let directory = directory();
    let path = directory.path().join("log");
    let (mut writer, _) = SnapshotWriter::open(&path, options()).unwrap();
    for number in 0..3 {
        writer.append(&put(number, 5, u64::from(number))).unwrap();
        writer.checkpoint((number > 0).then_some(&cursor(u64::from(number)))).unwrap();
    }
    writer.close().unwrap();
    let file = fs::read(&path).unwrap();

    // One put of "a" with the version 7 and the value "v", then the end of its checkpoint without a
    // cursor.
    let mut record = vec![1, 255, 1, 0, 1, 0, 0, 0];
    record.extend([0; 12]);
    record.extend(7_u64.to_le_bytes());
    record.extend(b"av");
    record.extend([0; 16]);
    let forged =
        [&[1, 0, 0, 0, 0, 0, 2][..], &(record.len() as u16).to_le_bytes(), &record].concat();
    fs::write(&path, forge(&mut Input(&forged[1..])).0).unwrap();
    let loaded = load(&path).unwrap();
    assert_eq!(loaded.entries.get("a").unwrap().value, "v", "the forged bytes are not a log");

    let steps =
        [250, 0, 90, 0, 16, 0, 1, 3, 0, 2, 9, 3, 1, 1, 0, 4, 5, 0, 2, 2, 2, 6, 3, 0, 8, 1, 7, 1];
    // The earlier put in a part, and a part without an end.
    let part =
        [&[1][..], &((record.len() - 16) as u16).to_le_bytes(), &record[..record.len() - 16]]
            .concat();
    let parts = [&[1, 9, 100, 0, 0, 0][..], &part, &[2, 16, 0], &[0; 16], &part].concat();
    // Another put after it, in a frame that was written after another one.
    let mut strange = forged.clone();
    strange.extend([&[0x42][..], &forged[7..]].concat());
    let key = strange.len() - 18;
    strange[key] = b'b';
    vec![[&[0], &file[..]].concat(), forged, parts, strange, [&[2], &steps[..]].concat()]
}

/// Uses a directory in memory if the system has one, because each input syncs a few times.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn options() -> SnapshotOptions {
    SnapshotOptions::new().sync(SyncPolicy::Never).compaction_threshold(u64::MAX)
}

type Entries = BTreeMap<String, KvEntry>;

fn entries(snapshot: &Snapshot) -> Entries {
    let entries: Entries =
        snapshot.entries.iter().map(|entry| (entry.key().to_owned(), entry.to_entry())).collect();
    assert_eq!(entries.len(), snapshot.entries.len());
    entries
}

/// Reads a file in each way, and continues to write it.
fn reads(path: &Path, file: &[u8]) {
    fs::write(path, file).unwrap();
    let loaded = load(path);
    let read = read_through(path);
    assert_eq!(fs::read(path).unwrap(), file, "reading changed the file");
    let opened = SnapshotWriter::open(path, options());
    match (loaded, read, opened) {
        (Ok(loaded), Ok(read), Ok((writer, opened))) => {
            let before = entries(&loaded);
            assert_eq!((&before, loaded.cursor, loaded.scope_tag), (&read.0, read.1, read.2));
            assert_eq!((&before, loaded.scope_tag), (&entries(&opened), opened.scope_tag));
            let same_scope = loaded.scope_tag == [0; 16];
            assert_eq!(opened.cursor, loaded.cursor.filter(|_| same_scope));
            writes_more(path, writer, before);
        }
        (Err(loaded), Err(read), Err(opened)) => {
            for error in [loaded, read, opened] {
                assert!(
                    !matches!(error, SnapshotError::Io { .. } | SnapshotError::Poisoned { .. }),
                    "{error}"
                );
            }
            assert_eq!(fs::read(path).unwrap(), file, "an unreadable file was changed");
        }
        (loaded, read, opened) => panic!(
            "loading, reading and opening do not agree: {:?}, {:?}, {:?}",
            loaded.err(),
            read.err(),
            opened.err()
        ),
    }
}

fn read_through(path: &Path) -> Result<(Entries, Option<WatchCursor>, [u8; 16]), SnapshotError> {
    let reader = SnapshotReader::open(path)?;
    let entries = reader.iter().map(|entry| entry.map(|entry| (entry.key.to_string(), entry)));
    let entries = entries.collect::<Result<Entries, _>>()?;
    assert_eq!(entries.len(), reader.len());
    Ok((entries, reader.cursor(), reader.scope_tag()))
}

fn writes_more(path: &Path, mut writer: SnapshotWriter, mut expected: Entries) {
    let (first, added) = (expected.keys().next().cloned(), put(200, 3, 1));
    writer.append(&added).unwrap();
    let entry = added.into_entry().unwrap();
    expected.insert(entry.key.to_string(), entry);
    if let Some(first) = first {
        let key = Key::new(first.as_str()).unwrap();
        let version = VersionToken::from_u64(2);
        writer
            .append(&KvUpdate::from(KvEntry::tombstone(key, KvOperation::Delete, version, time(2))))
            .unwrap();
        expected.remove(&first);
    }
    writer.checkpoint(Some(&cursor(9))).unwrap();
    let loaded = load(path).unwrap();
    assert_eq!((entries(&loaded), loaded.cursor), (expected.clone(), Some(cursor(9))));
    writer.compact().unwrap();
    writer.close().unwrap();
    let loaded = load(path).unwrap();
    assert_eq!((entries(&loaded), loaded.cursor), (expected, Some(cursor(9))));
}

/// Returns a file with valid checksums around the input: frames of any kind, with any payload. Also
/// returns the offset of the first frame that was written after another one than its predecessor.
fn forge(input: &mut Input<'_>) -> (Vec<u8>, Option<usize>) {
    let mut file = b"\x89SKVLOG\n\x01\0\0\0".to_vec();
    let identity = [input.byte(); 16];
    file.extend(identity);
    file.extend(crc32(0, &file).to_le_bytes());
    let identity = crc32(0, &identity);
    let seals = [input.short(), input.short()];
    file.extend([0; 32]);
    let (mut chain, mut strange) = (identity, None);
    while !input.is_empty() {
        let kind = input.byte();
        let len = usize::from(input.short());
        let payload = input.take(len);
        // Some frames declare more than their payload.
        let promised = if kind & 0x80 == 0 { payload.len() as u32 } else { u32::MAX - len as u32 };
        let mut header = promised.to_le_bytes().to_vec();
        if kind & 0x40 != 0 {
            chain ^= 1;
            strange = strange.or(Some(file.len()));
        }
        header.extend([kind & 0x3f, 0, 0, 0]);
        header.extend(crc32(0, payload).to_le_bytes());
        chain = crc32(chain, &header);
        header.extend(chain.to_le_bytes());
        file.extend(header);
        file.extend(payload);
    }
    for (at, sealed) in [32, 48].into_iter().zip(seals) {
        // A seal after the end, or within a checkpoint, is damage, whatever else is in the file.
        let sealed = (u64::from(sealed) % (file.len() as u64 + 2)).to_le_bytes();
        file[at..at + 8].copy_from_slice(&sealed);
        file[at + 8..at + 12].copy_from_slice(&crc32(identity, &sealed).to_le_bytes());
    }
    (file, strange)
}

fn time(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(number.wrapping_mul(1_000_000_007) >> 1)
}

fn cursor(position: u64) -> WatchCursor {
    WatchCursor::new([3; 16], position, time(position))
}

fn put(key: u8, len: usize, number: u64) -> KvUpdate {
    let version = if key.is_multiple_of(2) {
        VersionToken::from_u64(number)
    } else {
        VersionToken::opaque(&number.to_be_bytes()[usize::from(key % 8)..]).unwrap()
    };
    let key = Key::new(format!("key.{}", key % 8)).unwrap();
    KvUpdate::from(KvEntry::put(key, Bytes::from(vec![number as u8; len]), version, time(number)))
}

/// Writes, compacts, reopens and kills the writer, as the input says. In the end the file is
/// truncated or damaged.
fn goes_on(path: &Path, input: &mut Input<'_>) {
    let (cut, at, damage) = (usize::from(input.short()), usize::from(input.short()), input.byte());
    let (mut writer, _) = SnapshotWriter::open(path, options()).unwrap();
    let mut pending = Entries::new();
    // Every state that the log had.
    let mut states = vec![(Entries::new(), None)];
    for number in 1.. {
        if input.is_empty() || number > 200 {
            break;
        }
        match input.byte() % 8 {
            0 | 1 => {
                let (key, len) = (input.byte(), input.byte());
                // Some values are longer than one write.
                let len = if len == 255 { 1 << 20 } else { usize::from(len) };
                let update = put(key, len, number);
                writer.append(&update).unwrap();
                let entry = update.into_entry().unwrap();
                pending.insert(entry.key.to_string(), entry);
            }
            2 => {
                let KvUpdate::Put(entry) = put(input.byte(), 0, number) else { continue };
                let tombstone = KvEntry::tombstone(
                    entry.key,
                    KvOperation::Expire,
                    entry.version,
                    entry.created,
                );
                pending.remove(tombstone.key.as_str());
                writer.append(&KvUpdate::from(tombstone)).unwrap();
            }
            3 | 4 => {
                let cursor = input.byte().is_multiple_of(2).then(|| cursor(number));
                writer.checkpoint(cursor.as_ref()).unwrap();
                states.push((pending.clone(), cursor));
            }
            5 => {
                writer.discard().unwrap();
                pending = states[states.len() - 1].0.clone();
            }
            6 => writer.compact().unwrap(),
            _ => {
                drop(writer);
                let opened;
                (writer, opened) = SnapshotWriter::open(path, options()).unwrap();
                let found = (entries(&opened), opened.cursor);
                assert_eq!(Some(&found), states.last());
                pending = found.0;
            }
        }
    }
    writer.close().unwrap();
    let mut file = fs::read(path).unwrap();
    let loaded = load(path).unwrap();
    assert_eq!(Some(&(entries(&loaded), loaded.cursor)), states.last());
    reads(path, &file);

    let seal = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let sealed = seal(32).max(seal(48));
    file.truncate(cut % (file.len() + 1));
    reads(path, &file);
    fs::write(path, &file).unwrap();
    match load(path) {
        Ok(loaded) => {
            assert!(
                file.is_empty() || file.len() as u64 >= sealed,
                "cut off before its seal, it is read"
            );
            let found = (entries(&loaded), loaded.cursor);
            assert!(states.contains(&found), "cut off at {}, it has another state", file.len());
        }
        Err(error) => assert!((file.len() as u64) < sealed, "cut off at {}: {error}", file.len()),
    }

    let at = at % file.len().max(1);
    if let Some(byte) = file.get_mut(at) {
        *byte ^= damage;
        reads(path, &file);
        fs::write(path, &file).unwrap();
        if let Ok(loaded) = load(path) {
            let found = (entries(&loaded), loaded.cursor);
            assert!(states.contains(&found), "damaged at {at}, it has another state");
        }
    }
}
