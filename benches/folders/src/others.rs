//! redb and SQLite without this library.

use std::hint::black_box;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Builder, ConcurrencyMode, Database, ReadableDatabase, ReadableTable, TableDefinition};
use rusqlite::Connection;

use crate::VALUE;
use crate::ours::key;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Tables that a put changes: state, log, position.
const TABLES: [Definition; 3] =
    [TableDefinition::new("state"), TableDefinition::new("log"), TableDefinition::new("position")];

/// A database of redb with the rows that this library needs.
pub(crate) struct Redb {
    database: Database,
    is_two_phase: bool,
    /// Number of puts, and of keys over which they go.
    puts: Mutex<u64>,
    keys: u64,
}

impl Redb {
    pub(crate) fn create(
        path: &Path,
        mode: ConcurrencyMode,
        is_two_phase: bool,
        keys: u64,
    ) -> Self {
        let mut builder = Builder::new();
        builder.set_concurrency_mode(mode).set_cache_size(64 * 1024 * 1024);
        let database = builder.create(path).unwrap();
        Self { database, is_two_phase, puts: Mutex::new(0), keys }
    }

    /// Does what a put of this library does, for `count` keys in one transaction.
    pub(crate) fn put(&self, count: u64, value: &[u8]) {
        let mut puts = self.puts.lock().unwrap();
        let mut transaction = self.database.begin_write().unwrap();
        transaction.set_two_phase_commit(self.is_two_phase);
        {
            let mut state = transaction.open_table(TABLES[0]).unwrap();
            let mut log = transaction.open_table(TABLES[1]).unwrap();
            for number in *puts..*puts + count {
                let key = key(number % self.keys);
                state.insert(key.as_bytes(), value).unwrap();
                log.insert(number.to_be_bytes().as_slice(), key.as_bytes()).unwrap();
                if let Some(superseded) = number.checked_sub(self.keys) {
                    log.remove(superseded.to_be_bytes().as_slice()).unwrap();
                }
            }
            let mut position = transaction.open_table(TABLES[2]).unwrap();
            position.insert(&[0][..], puts.to_be_bytes().as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        *puts += count;
    }

    /// Puts one more key, which [`put`](Self::put) does not overwrite.
    pub(crate) fn insert(&self, key: &str, value: &[u8]) {
        let transaction = self.database.begin_write().unwrap();
        transaction.open_table(TABLES[0]).unwrap().insert(key.as_bytes(), value).unwrap();
        transaction.commit().unwrap();
    }

    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        let transaction = self.database.begin_read().unwrap();
        let table = transaction.open_table(TABLES[0]).unwrap();
        table.get(key.as_bytes()).unwrap().unwrap().value().to_vec()
    }

    /// Reads all entries. Returns their number.
    pub(crate) fn scan(&self) -> usize {
        let transaction = self.database.begin_read().unwrap();
        let table = transaction.open_table(TABLES[0]).unwrap();
        let rows = table.iter().unwrap().map(|row| {
            let (key, value) = row.unwrap();
            (key.value().to_vec(), value.value().to_vec())
        });
        rows.filter(|(key, value)| !black_box(key).is_empty() && !black_box(value).is_empty())
            .count()
    }

    /// Returns the share of pages without content and of unused bytes in the others, as redb counts
    /// them.
    pub(crate) fn stats(&self) -> String {
        let stats = self.database.begin_write().unwrap().stats().unwrap();
        format!(
            "{} MB stored, {} MB for the trees, {} MB fragmented",
            stats.stored_bytes() / 1_000_000,
            stats.metadata_bytes() / 1_000_000,
            stats.fragmented_bytes() / 1_000_000
        )
    }
}

/// A table of SQLite, with write-ahead log and a sync for each transaction.
pub(crate) struct Sqlite {
    connection: Mutex<Connection>,
    /// Number of puts, and of keys over which they go.
    puts: AtomicU64,
    keys: u64,
}

impl Sqlite {
    pub(crate) fn create(path: &Path, keys: u64) -> Self {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "synchronous", "FULL").unwrap();
        connection.pragma_update(None, "cache_size", -64 * 1024).unwrap();
        let table = "CREATE TABLE state (key BLOB PRIMARY KEY, version INTEGER, value BLOB)";
        connection.execute_batch(&format!("{table} WITHOUT ROWID")).unwrap();
        Self { connection: Mutex::new(connection), puts: AtomicU64::new(0), keys }
    }

    /// Puts the next keys in one transaction. Each row gets another version, because SQLite writes
    /// no row that stays the same.
    pub(crate) fn put(&self, count: u64) {
        let first = self.puts.fetch_add(count, Ordering::Relaxed);
        let mut connection = self.connection.lock().unwrap();
        let transaction = connection.transaction().unwrap();
        {
            let put = "INSERT OR REPLACE INTO state VALUES (?, ?, ?)";
            let mut put = transaction.prepare_cached(put).unwrap();
            for number in first..first + count {
                let key = key(number % self.keys);
                put.execute((key.as_bytes(), number.cast_signed(), &VALUE[..])).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    pub(crate) fn get(&self, number: u64) -> Vec<u8> {
        let connection = self.connection.lock().unwrap();
        let get = "SELECT value FROM state WHERE key = ?";
        let mut get = connection.prepare_cached(get).unwrap();
        get.query_row([key(number).as_bytes()], |row| row.get(0)).unwrap()
    }

    /// Reads all entries. Returns their number.
    pub(crate) fn scan(&self) -> usize {
        let connection = self.connection.lock().unwrap();
        let mut all = connection.prepare("SELECT key, value FROM state ORDER BY key").unwrap();
        let rows =
            all.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)));
        rows.unwrap().map(Result::unwrap).count()
    }
}
