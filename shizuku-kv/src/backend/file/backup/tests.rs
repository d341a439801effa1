//! Copies of a database that is written to between the slices.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, ConcurrencyMode, Database, ReadableDatabase, ReadableTable, StorageBackend,
    TransactionError,
};
use tempfile::tempdir;

use super::super::draft::Draft;
use super::super::tables::*;
use super::super::tests::{Disk, SECOND, check, commit, open, random_write};
use super::super::transaction::Transaction;
use super::super::upkeep::Budget;
use super::copy;
use super::fault::Fault;
use super::hold::Hold;
use crate::FileConnection;
use crate::store::{Connection, FencingToken, Key, KvError, StoreConfig, Write};

fn config(random: &mut fastrand::Rng) -> StoreConfig {
    match random.u8(..4) {
        0 => StoreConfig::new(),
        1 => StoreConfig::new().history(4),
        2 => StoreConfig::new().key_ttl(true),
        _ => StoreConfig::new().history(3).max_age(Duration::from_secs(3)),
    }
}

/// The stores of the source, by name, and the time.
struct Source {
    database: Database,
    stores: BTreeMap<&'static str, StoreId>,
    created: u32,
    now: u64,
}

impl Source {
    fn new(disk: Disk) -> Self {
        let database = open(disk);
        commit(&database, 0, |tables| {
            tables.about.insert(FORMAT, THIS_FORMAT).unwrap();
        });
        Self { database, stores: BTreeMap::new(), created: 0, now: SECOND }
    }

    fn commit<T>(&mut self, work: impl FnOnce(&mut Transaction<'_>) -> T) -> T {
        commit(&self.database, self.now, |tables| {
            tables.change();
            work(tables)
        })
    }

    fn create(&mut self, name: &'static str, config: &StoreConfig) {
        self.created += 1;
        let id = StoreId(self.created);
        self.commit(|tables| {
            tables.about.insert(NEXT_STORE, StoreId(id.0 + 1).bytes().as_slice()).unwrap();
            tables.add_store(id, StoreRow::new(name, [1; 16], config)).unwrap();
        });
        self.stores.insert(name, id);
    }

    /// Makes a random commit.
    fn change(&mut self, random: &mut fastrand::Rng) {
        self.now += random.u64(0..SECOND);
        let (name, id) = random.choice(&self.stores).map(|(name, id)| (*name, *id)).unwrap();
        match random.u8(..40) {
            0 => {
                self.commit(|tables| tables.remove_store(id, name).unwrap());
                self.create(name, &config(random));
            }
            1 => {
                let (now, config) = (self.now, config(random));
                self.commit(|tables| {
                    tables.store(id).unwrap().unwrap();
                    let mut row = StoreRow::new(name, [1; 16], &config);
                    row.limits_change = Some(LimitsChange { after: None, since: now });
                    tables.change_limits(id, row).unwrap();
                    if random.bool() {
                        // No slice sees the change in progress.
                        let all = &mut Budget::of(usize::MAX, usize::MAX);
                        assert!(tables.apply_limits_some(id, all).unwrap());
                    }
                });
            }
            2..8 => self.commit(|tables| {
                let _ = tables.apply_limits_some(id, &mut Budget::of(2, usize::MAX)).unwrap();
            }),
            8..12 => self.commit(|tables| {
                let _ = tables.expire_some(&mut Budget::of(3, usize::MAX)).unwrap();
            }),
            12 => self.commit(|tables| {
                let _ = tables.collect_some(&mut Budget::of(3, usize::MAX)).unwrap();
            }),
            13 | 14 => {
                // In some stores the tombstone is forgotten before the next slice.
                let key = random_write(random, false).0;
                self.commit(|tables| {
                    tables.store(id).unwrap().unwrap();
                    tables.write(id, &key, &Write::delete()).unwrap().unwrap();
                });
                self.now += 4 * SECOND;
                self.commit(|tables| {
                    let all = &mut Budget::of(usize::MAX, usize::MAX);
                    assert!(tables.expire_some(all).unwrap());
                });
            }
            15 => {
                let (key, token) = (random_write(random, false).0, random.u64(..9));
                self.commit(|tables| {
                    tables.store(id).unwrap().unwrap();
                    let _ = tables.raise(id, &key, FencingToken::from_u64(token)).unwrap();
                });
            }
            _ => self.commit(|tables| {
                let has_ttl = tables.store(id).unwrap().unwrap().row.key_ttl;
                for _ in 0..random.u8(1..4) {
                    let (key, write) = random_write(random, has_ttl);
                    let _ = tables.write(id, &key, &write).unwrap();
                }
            }),
        }
    }
}

/// Applies everything that is due, so that no entry is left that readers treat as absent.
fn settle(database: &Database, now: u64) {
    commit(database, now, |tables| {
        let budget = || Budget::of(usize::MAX, usize::MAX);
        tables.change();
        assert!(tables.collect_some(&mut budget()).unwrap());
        for id in tables.unfinished_limits().unwrap() {
            assert!(tables.apply_limits_some(id, &mut budget()).unwrap());
        }
        assert!(tables.expire_some(&mut budget()).unwrap());
    });
    check(database);
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Returns all rows, without those that a copy has of its own.
fn rows(database: &Database) -> Vec<Rows> {
    let reading = database.begin_read().unwrap();
    let rows = TABLES.map(|table| {
        let name = ::redb::TableHandle::name(&table);
        let table = reading.open_table(table).unwrap();
        let rows = table.iter().unwrap().map(|row| {
            let (key, value) = row.unwrap();
            let mut value = value.value().to_vec();
            if name == ::redb::TableHandle::name(&STORES) {
                let row = StoreRow { incarnation: [0; 16], ..StoreRow::read(&value).unwrap() };
                value = row.to_bytes().unwrap();
            }
            (key.value().to_vec(), value)
        });
        let mut rows: Rows = rows.collect();
        rows.remove(StoreId::COMMITS.bytes().as_slice());
        rows
    });
    rows.into()
}

fn open_copy(folder: &Path) -> Database {
    let file = folder.join("shizuku.redb");
    let file = File::options().read(true).write(true).open(file).unwrap();
    Builder::new().create_with_backend(FileBackend::new(file).unwrap()).unwrap()
}

/// Values, deletions, forgotten tombstones, purges, expiries, histories, new settings and deleted
/// stores come between any two slices. The copy has the state of the source at its last slice.
#[test]
fn copy_equals_the_source_at_its_last_slice() {
    let (mut kept_out, mut caught_up) = (0, 0);
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in first.map_or(0..12, |seed: u64| seed..seed + 1) {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut source = Source::new(Disk::default());
        for name in ["a", "b", "c"] {
            source.create(name, &config(random));
        }
        for _ in 0..25 {
            source.change(random);
        }
        let folder = tempdir().unwrap();
        let target = folder.path().join("copy");
        let draft = Draft::new(&target, 0o600).unwrap();
        let is_held = Cell::new(false);
        let (source, random) = (RefCell::new(source), RefCell::new(random));
        let begin = || {
            let mut source = source.borrow_mut();
            while !is_held.get() && random.borrow_mut().u8(..if seed % 4 == 0 { 8 } else { 3 }) > 0
            {
                source.change(&mut random.borrow_mut());
            }
            Ok(((), source.database.begin_read().map_err(|error| Fault::Source(error.into()))?))
        };
        let hold = || {
            is_held.set(true);
            Ok(())
        };
        let items = 1 + usize::try_from(seed % 4).unwrap();
        copy(&draft, items, begin, hold).unwrap_or_else(|fault| panic!("seed {seed}: {fault:?}"));
        *(if is_held.get() { &mut kept_out } else { &mut caught_up }) += 1;
        draft.publish_copy().unwrap();
        let (source, copy) = (source.into_inner(), open_copy(&target));
        settle(&source.database, source.now);
        settle(&copy, source.now);
        assert_eq!(rows(&copy), rows(&source.database), "SEED={seed}");
    }
    assert!(first.is_some() || (kept_out > 0 && caught_up > 0), "{kept_out} and {caught_up}");
}

/// A read transaction that is open during the overwrites would keep all of their pages.
#[test]
fn overwrites_between_slices_do_not_grow_the_file() {
    let disk = Disk::default();
    let mut source = Source::new(disk.clone());
    source.create("a", &StoreConfig::new());
    let overwrite = |source: &mut Source| {
        for round in 0..200_u8 {
            source.commit(|tables| {
                tables.store(StoreId::FIRST).unwrap().unwrap();
                for number in 0..20 {
                    let key = Key::new(format!("key.{}.{number}", round % 5)).unwrap();
                    let write = Write::put(vec![round; 1000]);
                    tables.write(StoreId::FIRST, &key, &write).unwrap().unwrap();
                }
            });
        }
    };
    overwrite(&mut source);
    let before = disk.len().unwrap();
    let folder = tempdir().unwrap();
    let draft = Draft::new(&folder.path().join("copy"), 0o600).unwrap();
    let mut slices = 0;
    let begin = || {
        slices += 1;
        if slices == 3 {
            overwrite(&mut source);
        }
        Ok(((), source.database.begin_read().map_err(|error| Fault::Source(error.into()))?))
    };
    copy(&draft, 10, begin, || Ok(())).unwrap();
    assert!(slices > 3);
    let after = disk.len().unwrap();
    assert!(after <= before + before / 10, "{before} bytes became {after}");
}

/// The walk over keys that are written in order would never end, and so would the copy.
#[test]
fn writer_of_rising_keys_is_held() {
    let mut source = Source::new(Disk::default());
    source.create("a", &StoreConfig::new());
    let (is_held, mut slices) = (Cell::new(false), 0);
    let begin = || {
        slices += 1;
        assert!(slices < 2_000, "the copy does not end");
        let keys = if slices == 1 { 30 } else { 5 };
        for number in 0..if is_held.get() { 0 } else { keys } {
            source.commit(|tables| {
                tables.store(StoreId::FIRST).unwrap().unwrap();
                let key = Key::new(format!("key.{slices:05}.{number:02}")).unwrap();
                tables.write(StoreId::FIRST, &key, &Write::put("value")).unwrap().unwrap();
            });
        }
        Ok(((), source.database.begin_read().map_err(|error| Fault::Source(error.into()))?))
    };
    let folder = tempdir().unwrap();
    let draft = Draft::new(&folder.path().join("copy"), 0o600).unwrap();
    let hold = || {
        is_held.set(true);
        Ok(())
    };
    copy(&draft, 8, begin, hold).unwrap();
    assert!(is_held.get());
}

#[tokio::test]
async fn hold_keeps_other_processes_from_writing() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    let connection = FileConnection::open(&format!("{url}?shared=true")).await.unwrap();
    let mut builder = Builder::new();
    builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
    let other = builder.open(folder.path().join("data/shizuku.redb")).unwrap();
    let mut is_kept_out = false;
    // A hold has a time limit, which this test may exceed under load.
    for _ in 0..3 {
        let shared = Arc::clone(&connection.0.engine.0);
        let hold = tokio::task::spawn_blocking(move || Hold::new(&shared)).await.unwrap();
        let write = other.try_begin_write().map(drop);
        is_kept_out |= matches!(write, Err(TransactionError::WouldBlock));
        drop(hold.unwrap());
        // Writers continue after the hold.
        connection.store("config").await.unwrap().put("key", "value").await.unwrap();
    }
    assert!(is_kept_out);
    drop(other);
    connection.shutdown().await.unwrap();
    let reader = FileConnection::open(&format!("{url}?read_only=true")).await.unwrap();
    assert!(matches!(Hold::new(&reader.0.engine.0), Err(Fault::Behind)));
}

/// The job of the hold ends before it runs.
#[tokio::test]
async fn hold_of_a_removed_file_fails_with_its_reason() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    let connection = FileConnection::open(&url).await.unwrap();
    std::fs::remove_file(folder.path().join("data/shizuku.redb")).unwrap();
    let shared = Arc::clone(&connection.0.engine.0);
    let hold = tokio::task::spawn_blocking(move || Hold::new(&shared).map(drop)).await.unwrap();
    let Err(Fault::Held(error)) = hold else { panic!("{hold:?}") };
    assert!(matches!(error, KvError::Backend { .. }), "{error}");
}
