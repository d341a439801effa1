//! The tables after random writes and after a loss of power.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redb::{BackendError, Builder, Database, ReadableDatabase, ReadableTable, StorageBackend};

use super::cache::Touched;
use super::folder::Opened;
use super::record::Head;
use super::tables::*;
use super::transaction::Transaction;
use super::upkeep;
use super::view::{Budget, View};
use crate::FileConnection;
use crate::backend::embedded::Range;
use crate::store::{Connection, FencingToken, Key, StoreConfig, Write, lock};

pub(super) const SECOND: u64 = 1_000_000_000;

/// A change of a disk.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// A disk that records its changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<(Vec<u8>, Vec<Change>)>>);

type Io<T> = Result<T, std::io::Error>;

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let start = usize::try_from(*offset).unwrap();
            content[start..start + data.len()].copy_from_slice(data);
        }
        Change::SetLen(len) => content.resize(usize::try_from(*len).unwrap(), 0),
        Change::Sync => {}
    }
}

impl Disk {
    fn of(content: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((content, Vec::new()))))
    }

    fn change(&self, change: Change) {
        let (content, changes) = &mut *lock(&self.0);
        apply(content, &change);
        changes.push(change);
    }

    fn changes(&self) -> Vec<Change> {
        lock(&self.0).1.clone()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Io<u64> {
        Ok(lock(&self.0).0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Io<()> {
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&lock(&self.0).0[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Io<()> {
        self.change(Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> Io<()> {
        self.change(Change::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Io<()> {
        self.change(Change::Write(offset, data.to_vec()));
        Ok(())
    }

    fn try_lock_range(
        &self,
        _: std::ops::Bound<u64>,
        _: std::ops::Bound<u64>,
    ) -> Result<bool, BackendError> {
        Ok(true)
    }
}

pub(super) fn open(disk: Disk) -> Database {
    Builder::new().set_cache_size(1024 * 1024).create_with_backend(disk).unwrap()
}

/// Returns the rows of the newest entries.
fn newest(database: &Database) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let reading = database.begin_read().unwrap();
    let Ok(table) = reading.open_table(STATE) else { return BTreeMap::new() };
    let rows = table.iter().unwrap().map(|row| {
        let (key, value) = row.unwrap();
        (key.value().to_vec(), value.value().to_vec())
    });
    rows.collect()
}

/// Makes a commit, and asserts that it tells which newest entries it changes. Otherwise the cache
/// of entries would return superseded ones.
pub(super) fn commit<T>(
    database: &Database,
    now: u64,
    work: impl FnOnce(&mut Transaction<'_>) -> T,
) -> T {
    let before = newest(database);
    let mut transaction = database.begin_write().unwrap();
    // As commits of the writer thread are, to a small or a large file.
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(now.is_multiple_of(3));
    let mut tables = Transaction::begin(&transaction, now).unwrap();
    let done = work(&mut tables);
    let touched = tables.finish(now).unwrap().touched;
    transaction.commit().unwrap();
    if let Touched::Keys(keys) = touched {
        let touched: BTreeSet<_> = keys.iter().map(|(id, key)| state_key(*id, key)).collect();
        let after = newest(database);
        for at in before.keys().chain(after.keys()).filter(|at| before.get(*at) != after.get(*at)) {
            assert!(touched.contains(at), "{:?}", String::from_utf8_lossy(at));
        }
    }
    done
}

/// Creates the tables and a store.
fn create(database: &Database, config: &StoreConfig) -> StoreId {
    let id = StoreId(1);
    commit(database, 0, |tables| {
        tables.add_store(id, StoreRow::new("s", [1; 16], config)).unwrap()
    });
    id
}

/// Asserts that all tables agree on the entries of the stores.
pub(super) fn check(database: &Database) {
    let reading = database.begin_read().unwrap();
    let rows = |table: Definition| {
        let table = reading.open_table(table).unwrap();
        let rows = table.iter().unwrap().map(|row| {
            let (key, value) = row.unwrap();
            (key.value().to_vec(), value.value().to_vec())
        });
        rows.collect::<BTreeMap<Vec<u8>, Vec<u8>>>()
    };
    let (mut log, mut expiry, mut history) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut bytes: BTreeMap<StoreId, u64> = BTreeMap::new();
    let (old, deleted) = (rows(HISTORY), rows(DELETED));
    for (at, row) in rows(STATE) {
        let (id, key) = (StoreId::read(&at[..4]).unwrap(), &at[4..]);
        let text = std::str::from_utf8(key).unwrap();
        let (head, value) = Head::read(&row).unwrap();
        let mut held = vec![(head.clone(), value.len())];
        for version in &head.older {
            let at = history_key(id, text, *version);
            // The entries of a deleted store are removed one by one.
            if deleted.contains_key(id.bytes().as_slice()) && !old.contains_key(&at) {
                continue;
            }
            let (head, value) = Head::read(&old[&at]).unwrap();
            assert_eq!(head.version, *version);
            history.insert(at);
            held.push((head, value.len()));
        }
        for (head, len) in held {
            log.insert(log_key(id, head.version).to_vec(), key.to_vec());
            expiry.extend(head.due.map(|due| expiry_key(due, id, head.version).to_vec()));
            *bytes.entry(id).or_default() += (key.len() + len) as u64;
        }
    }
    assert_eq!(log, rows(LOG));
    assert_eq!(expiry, rows(EXPIRY).into_keys().collect());
    assert_eq!(history, old.into_keys().collect());
    for (id, row) in rows(POSITIONS) {
        let id = StoreId::read(&id).unwrap();
        if id != StoreId::COMMITS {
            let position = Position::read(&row).unwrap();
            assert_eq!(position.bytes, bytes.remove(&id).unwrap_or_default());
        }
    }
    // Entries of deleted stores may remain for a while.
    assert!(bytes.keys().all(|id| deleted.contains_key(id.bytes().as_slice())));
}

pub(super) fn random_write(random: &mut fastrand::Rng, has_ttl: bool) -> (Key, Write) {
    let key = Key::new(format!("key.{}", random.u8(0..12))).unwrap();
    let value = vec![random.u8(..); random.usize(0..600)];
    let write = match random.u8(0..8) {
        0 => Write::delete(),
        1 => Write::purge(),
        2 => Write::create(value),
        3 if has_ttl => Write::put(value).with_ttl(Duration::from_secs(random.u64(1..5))),
        4 => Write::put(value).with_fence(FencingToken::from_u64(random.u64(0..9))),
        _ => Write::put(value),
    };
    (key, write)
}

#[test]
fn tables_agree_after_random_writes() {
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let config = match seed % 4 {
            0 => StoreConfig::new(),
            1 => StoreConfig::new().history(3),
            2 => StoreConfig::new().key_ttl(true),
            _ => StoreConfig::new().history(4).max_age(Duration::from_secs(3)).max_bytes(6000),
        };
        let database = open(Disk::default());
        let id = create(&database, &config);
        let mut now = SECOND;
        for step in 0..60 {
            now += random.u64(0..2 * SECOND);
            commit(&database, now, |tables| {
                tables.store(id).unwrap().unwrap();
                for _ in 0..random.u8(1..6) {
                    let (key, write) = random_write(&mut random, seed % 4 == 2);
                    let _ = tables.write(id, &key, &write).unwrap();
                }
                if random.bool() {
                    tables
                        .expire_some(&mut upkeep::Budget::of(random.usize(1..10), usize::MAX))
                        .unwrap();
                }
                if step == 30 {
                    // Other settings, which are applied in pieces.
                    let store = tables.store(id).unwrap().unwrap();
                    let config = StoreConfig::new().history(2).max_age(Duration::from_secs(9));
                    let mut row = StoreRow::new("s", [1; 16], &config);
                    row.limits_change = Some(LimitsChange { after: None, since: now });
                    (store.limits, store.row) = (row.limits(), row);
                }
                tables.apply_limits_some(id, &mut upkeep::Budget::of(2, usize::MAX)).unwrap();
            });
            check(&database);
        }
        commit(&database, now, |tables| tables.remove_store(id, "s").unwrap());
        while !commit(&database, now, |tables| {
            tables.collect_some(&mut upkeep::Budget::of(3, usize::MAX)).unwrap()
        }) {
            check(&database);
        }
        let reading = database.begin_read().unwrap();
        for table in [STATE, HISTORY, LOG, EXPIRY, DELETED] {
            assert!(reading.open_table(table).unwrap().first().unwrap().is_none(), "{table}");
        }
    }
}

/// After a loss of power, any of the writes since the last sync may be missing or torn. The
/// database opens, its tables agree, and it has everything that was acknowledged.
#[test]
fn crash_image_has_every_acknowledged_write() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = Disk::default();
        let database = open(disk.clone());
        let id = create(&database, &StoreConfig::new().history(if seed % 2 == 0 { 1 } else { 3 }));
        // Number of changes of the disk when a version was acknowledged.
        let mut acknowledged = vec![(disk.changes().len(), 0)];
        for now in 1..40 {
            let version = commit(&database, now, |tables| {
                tables.store(id).unwrap().unwrap();
                for _ in 0..random.u8(1..5) {
                    let (key, write) = random_write(&mut random, false);
                    let _ = tables.write(id, &key, &write).unwrap();
                }
                tables.store(id).unwrap().unwrap().position.sequence
            });
            acknowledged.push((disk.changes().len(), version));
        }
        let changes = disk.changes();
        for _ in 0..60 {
            let first = acknowledged[0].0;
            let crash = random.usize(first..=changes.len());
            let image = crash_image(&changes[..crash], &mut random);
            let recovered = open(Disk::of(image));
            check(&recovered);
            let reading = recovered.begin_read().unwrap();
            let view = View::new(&reading, 0, true);
            let found = view.position(id).unwrap().unwrap().sequence;
            let durable = acknowledged.iter().rfind(|(at, _)| *at <= crash).unwrap().1;
            assert!(found >= durable, "seed {seed}: {found} of {durable} after {crash} changes");
            assert!(acknowledged.iter().any(|(_, version)| *version == found), "half a commit");
        }
    }
}

/// Returns the content of a disk that lost power after these changes.
fn crash_image(changes: &[Change], random: &mut fastrand::Rng) -> Vec<u8> {
    let synced = changes.iter().rposition(|change| matches!(change, Change::Sync)).unwrap_or(0);
    let mut content = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        if index <= synced {
            apply(&mut content, change);
            continue;
        }
        match change {
            Change::Write(offset, data) => {
                // Sectors of 512 bytes are whole.
                for (part, sector) in data.chunks(512).enumerate() {
                    let offset = *offset + 512 * part as u64;
                    let end = usize::try_from(offset).unwrap() + sector.len();
                    if random.bool() && end <= content.len() {
                        apply(&mut content, &Change::Write(offset, sector.to_vec()));
                    }
                }
            }
            Change::SetLen(_) if random.bool() => apply(&mut content, change),
            Change::SetLen(_) | Change::Sync => {}
        }
    }
    content
}

/// A disk whose next sync fails.
#[derive(Clone, Debug, Default)]
struct Failing {
    disk: Disk,
    fails: Arc<AtomicBool>,
}

impl StorageBackend for Failing {
    fn len(&self) -> Io<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Io<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Io<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> Io<()> {
        if self.fails.swap(false, Ordering::AcqRel) {
            return Err(std::io::Error::other("the disk has failed"));
        }
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Io<()> {
        self.disk.write(offset, data)
    }

    fn try_lock_range(
        &self,
        _: std::ops::Bound<u64>,
        _: std::ops::Bound<u64>,
    ) -> Result<bool, BackendError> {
        Ok(true)
    }
}

/// The operating system keeps what a failed sync has not written. A database that is opened again
/// must not find the commit there and count it as durable.
#[test]
fn commit_with_a_failed_sync_is_not_found_again() {
    let backend = Failing::default();
    // The mode of one writer alone. The others have two phases by themselves.
    let builder = Builder::new();
    let database = builder.create_with_backend(backend.clone()).unwrap();
    let (opened, id) = (Opened::Writer(database), StoreId(1));
    let transaction = opened.begin_write().unwrap();
    let mut tables = Transaction::begin(&transaction, 0).unwrap();
    tables.add_store(id, StoreRow::new("s", [1; 16], &StoreConfig::new())).unwrap();
    tables.finish(0).unwrap();
    transaction.commit().unwrap();
    opened.close().unwrap();
    let opened = Opened::Writer(builder.create_with_backend(backend.clone()).unwrap());
    let transaction = opened.begin_write().unwrap();
    let mut tables = Transaction::begin(&transaction, 1).unwrap();
    tables.store(id).unwrap().unwrap();
    let key = Key::new("key").unwrap();
    tables.write(id, &key, &Write::put("value")).unwrap().unwrap();
    tables.finish(1).unwrap();
    backend.fails.store(true, Ordering::Release);
    transaction.commit().unwrap_err();
    let content = lock(&backend.disk.0).0.clone();
    let again = open(Disk::of(content));
    check(&again);
    let reading = again.begin_read().unwrap();
    let position = View::new(&reading, 0, true).position(id).unwrap().unwrap();
    assert_eq!(position.sequence, 0);
}

#[test]
fn upkeep_ends_after_a_number_of_bytes() {
    let database = open(Disk::default());
    let id = create(&database, &StoreConfig::new().history(10));
    let key = Key::new("key").unwrap();
    commit(&database, 1, |tables| {
        tables.store(id).unwrap().unwrap();
        for _ in 0..10 {
            tables.write(id, &key, &Write::put(vec![1; 1000])).unwrap().unwrap();
        }
    });
    commit(&database, 2, |tables| tables.remove_store(id, "s").unwrap());
    let mut pieces = 1;
    while !commit(&database, 3, |tables| {
        tables.collect_some(&mut upkeep::Budget::of(usize::MAX, 3000)).unwrap()
    }) {
        check(&database);
        pieces += 1;
    }
    assert!((3..=6).contains(&pieces), "{pieces}");
}

/// The clock was set back, or other writes of the commit came first.
#[test]
fn time_of_an_expiry_never_goes_back() {
    let database = open(Disk::default());
    let id = create(&database, &StoreConfig::new().key_ttl(true));
    let written = commit(&database, 10 * SECOND, |tables| {
        tables.store(id).unwrap().unwrap();
        let short = Write::put("value").with_ttl(Duration::from_secs(1));
        tables.write(id, &Key::new("short").unwrap(), &short).unwrap().unwrap();
        tables.now = 20 * SECOND;
        tables.write(id, &Key::new("other").unwrap(), &Write::put("value")).unwrap().unwrap();
        tables.expire_some(&mut upkeep::Budget::new()).unwrap();
        tables.store(id).unwrap().unwrap().position.written
    });
    assert_eq!(written, 20 * SECOND);
}

/// A read from a slow disk can use up the time of a slice before its first key.
#[test]
fn scan_with_a_used_up_budget_returns_a_key() {
    let database = open(Disk::default());
    let id = create(&database, &StoreConfig::new());
    commit(&database, 1, |tables| {
        tables.store(id).unwrap().unwrap();
        for key in ["a", "b"] {
            tables.write(id, &Key::new(key).unwrap(), &Write::put("")).unwrap().unwrap();
        }
    });
    let reading = database.begin_read().unwrap();
    let entries = View::new(&reading, 1, true).entries(id).unwrap();
    let (all, used_up, mut found) = (Range::Prefix(String::new()), Budget::new(0), Vec::new());
    let last = entries.scan(&all, None, used_up, |key, _, _| key, &mut found).unwrap();
    assert!(last.is_some() && last.as_ref() == found.last());
}

/// The caller may have given up by the time of the commit.
#[test]
fn commit_reports_the_upkeep_it_causes() {
    let database = open(Disk::default());
    let id = create(&database, &StoreConfig::new());
    let transaction = database.begin_write().unwrap();
    let mut tables = Transaction::begin(&transaction, 1).unwrap();
    let row = tables.store(id).unwrap().unwrap().row.clone();
    tables.change_limits(id, row).unwrap();
    let summary = tables.finish(1).unwrap();
    assert!(summary.limits_changed == [id] && !summary.has_deleted);
    // The next get of any key learns the settings.
    assert_eq!(summary.touched, Touched::All);
    let mut tables = Transaction::begin(&transaction, 2).unwrap();
    tables.remove_store(id, "s").unwrap();
    let summary = tables.finish(2).unwrap();
    assert!(summary.has_deleted && summary.stores.contains(&id));
    assert_eq!(summary.touched, Touched::All);
}

#[tokio::test]
async fn later_format_is_not_reported_as_damage() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    FileConnection::open(&url).await.unwrap().shutdown().await.unwrap();
    let database = Builder::new().open(folder.path().join("data/shizuku.redb")).unwrap();
    commit(&database, 1, |tables| {
        tables.change();
        tables.about.insert(FORMAT, &[2][..]).unwrap();
    });
    database.close().unwrap();
    let error = FileConnection::open(&url).await.unwrap_err().to_string();
    assert!(error.contains("newer version") && !error.contains("damaged"), "{error}");
}
