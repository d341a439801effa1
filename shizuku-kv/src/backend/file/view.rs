//! Reads within one transaction of redb, in slices of bounded work.
//!
//! A long read is a series of slices, each with a transaction of its own, because an open read
//! transaction keeps every page that is overwritten meanwhile: the file would grow without bound.

use std::ops::Bound;
use std::time::{Duration, Instant};

use ::redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition};
use bytes::Bytes;

use super::cache::Found;
use super::failure::Failure;
use super::record::{Head, number, read_key};
use super::tables::{
    ABOUT, EXPIRY, HISTORY, LOG, NAMES, POSITIONS, Position, STATE, STORES, StoreId, StoreRow,
    history_key, log_key, read_expiry_key, read_log_key, state_key,
};
use crate::backend::embedded::Range;
use crate::store::{Key, KvEntry, KvError};

/// Maximum duration of a slice.
const SLICE: Duration = Duration::from_millis(50);

/// Maximum size in bytes of the values of a slice, except for a single larger value.
const SLICE_BYTES: usize = 1024 * 1024;

/// The reason why a slice has no result.
#[derive(Debug)]
pub(super) enum Stop {
    Failed(Failure),
    Error(KvError),
    /// The slice found an entry whose expiry has to be applied first: its time, the store and the
    /// version.
    Expired((u64, StoreId, u64)),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<KvError> for Stop {
    fn from(error: KvError) -> Self {
        Self::Error(error)
    }
}

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The end of a slice: after a time, a number of values, or their size.
pub(super) struct Budget {
    until: Instant,
    items: usize,
    bytes: usize,
}

impl Budget {
    /// Returns the budget of a slice with at most `items` items.
    pub(super) fn new(items: usize) -> Self {
        Self { until: Instant::now() + SLICE, items, bytes: SLICE_BYTES }
    }

    /// Takes half of the budget, which ends first.
    pub(super) fn half(&mut self) -> Self {
        let (items, bytes) = (self.items.div_ceil(2), self.bytes / 2);
        self.items = self.items.saturating_sub(items).max(1);
        self.bytes -= bytes;
        Self { until: self.until - SLICE / 2, items, bytes }
    }

    /// Counts an item with a value of `bytes`.
    pub(super) fn take(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.items == 0 || self.bytes == 0 || Instant::now() >= self.until
    }
}

/// A snapshot of all stores, at a time.
pub(super) struct View<'a> {
    transaction: &'a ReadTransaction,
    /// Time of the read, in nanoseconds since 1970.
    pub(super) now: u64,
    /// Whether an expired entry is treated as absent. Otherwise it is [`Stop::Expired`], because
    /// this process can apply the expiry.
    hides_expired: bool,
}

impl<'a> View<'a> {
    pub(super) fn new(transaction: &'a ReadTransaction, now: u64, hides_expired: bool) -> Self {
        Self { transaction, now, hides_expired }
    }

    /// Returns the snapshot as a process sees it that cannot apply expiries.
    pub(super) fn hiding_expired(&self) -> Self {
        Self { hides_expired: true, ..*self }
    }

    fn table(
        &self,
        table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    ) -> Result<Table, Failure> {
        Ok(self.transaction.open_table(table)?)
    }

    /// Returns the number of commits of the file.
    pub(super) fn commits(&self) -> Result<u64, Failure> {
        let row = self.table(POSITIONS)?;
        match row.get(StoreId::COMMITS.bytes().as_slice())? {
            Some(bytes) => number(bytes.value().get(..8).unwrap_or_default()),
            None => Ok(0),
        }
    }

    /// Returns the mark of the last commit, by which its author recognizes it.
    pub(super) fn mark(&self) -> Result<u64, Failure> {
        let row = self.table(POSITIONS)?;
        match row.get(StoreId::COMMITS.bytes().as_slice())? {
            Some(bytes) => number(bytes.value().get(8..).unwrap_or_default()),
            None => Ok(0),
        }
    }

    /// Returns the time of the next expiry.
    pub(super) fn next_due(&self) -> Result<Option<u64>, Failure> {
        let first = self.table(EXPIRY)?.first()?.map(|(key, _)| read_expiry_key(key.value()));
        Ok(first.transpose()?.map(|(due, ..)| due))
    }

    /// Returns the names of the stores.
    pub(super) fn names(&self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for row in self.table(NAMES)?.iter()? {
            names.push(String::from_utf8_lossy(row?.0.value()).into_owned());
        }
        Ok(names)
    }

    /// Returns the number of the store of this name.
    pub(super) fn find(&self, name: &str) -> Result<Option<StoreId>, Failure> {
        let row = self.table(NAMES)?.get(name.as_bytes())?;
        row.map(|id| StoreId::read(id.value())).transpose()
    }

    /// Returns the settings of a store. Returns `None` if it was deleted.
    pub(super) fn row(&self, id: StoreId) -> Result<Option<StoreRow>, Failure> {
        let row = self.table(STORES)?.get(id.bytes().as_slice())?;
        row.map(|row| StoreRow::read(row.value())).transpose()
    }

    /// Returns the end of the log of a store. Returns `None` if it was deleted.
    pub(super) fn position(&self, id: StoreId) -> Result<Option<Position>, Failure> {
        let row = self.table(POSITIONS)?.get(id.bytes().as_slice())?;
        row.map(|row| Position::read(row.value())).transpose()
    }

    /// Returns the newest entry of a key and its expiry. Opens one table only.
    pub(super) fn newest(&self, id: StoreId, key: &Key) -> Result<Found, Stop> {
        match self.table(STATE)?.get(state_key(id, key).as_slice())? {
            Some(row) => found(id, key, row.value(), self.now, self.hides_expired),
            None => Ok(Found { entry: None, due: None }),
        }
    }

    /// Returns the stores, in the order of their numbers, and the ends of their logs.
    pub(super) fn positions(&self) -> Result<Vec<(StoreId, Position)>, Failure> {
        let (table, mut positions) = (self.table(POSITIONS)?, Vec::new());
        for row in table.range::<&[u8]>(StoreId::FIRST.bytes().as_slice()..)? {
            let (id, position) = row?;
            positions.push((StoreId::read(id.value())?, Position::read(position.value())?));
        }
        Ok(positions)
    }

    /// Returns the properties of the file.
    pub(super) fn about(&self) -> Result<Vec<Property>, Failure> {
        let mut about = Vec::new();
        for row in self.table(ABOUT)?.iter()? {
            let (key, value) = row?;
            about.push((key.value().to_vec(), value.value().to_vec()));
        }
        Ok(about)
    }

    /// Opens the tables of entries.
    pub(super) fn entries(&self, id: StoreId) -> Result<Entries, Failure> {
        Ok(Entries {
            id,
            now: self.now,
            hides_expired: self.hides_expired,
            state: self.table(STATE)?,
            history: self.table(HISTORY)?,
            log: self.table(LOG)?,
        })
    }
}

/// Reads a row of the state. The entry is `None` if it has expired and is hidden.
fn found(id: StoreId, key: &Key, row: &[u8], now: u64, hides_expired: bool) -> Result<Found, Stop> {
    let (head, value) = Head::read(row)?;
    let due = head.due;
    if !head.is_due(now) {
        let value = row.get(value).map(Bytes::copy_from_slice).unwrap_or_default();
        return Ok(Found { entry: Some(head.into_entry(key.clone(), value)), due });
    }
    match due.filter(|_| !hides_expired) {
        Some(due) => Err(Stop::Expired((due, id, head.version))),
        None => Ok(Found { entry: None, due }),
    }
}

/// A property of the file, and its value.
pub(super) type Property = (Vec<u8>, Vec<u8>);

/// The rows of the entries of a key.
#[derive(Debug)]
pub(super) struct KeyRows {
    pub(super) key: Key,
    /// Version of the newest entry.
    pub(super) version: u64,
    pub(super) newest: Vec<u8>,
    pub(super) older: Vec<Vec<u8>>,
}

impl KeyRows {
    pub(super) fn size(&self) -> usize {
        self.newest.len() + self.older.iter().map(Vec::len).sum::<usize>()
    }
}

/// The entries of a store in a snapshot.
pub(super) struct Entries {
    id: StoreId,
    now: u64,
    hides_expired: bool,
    state: Table,
    history: Table,
    log: Table,
}

impl Entries {
    /// Returns the time of the read, in nanoseconds since 1970.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Returns whether an expired entry is treated as absent by every read.
    pub(super) fn hides_expired(&self) -> bool {
        self.hides_expired
    }

    /// Returns the newest entry of a key without its value. It may have expired.
    pub(super) fn head(&self, key: &str) -> Result<Option<Head>, Failure> {
        let row = self.state.get(state_key(self.id, key).as_slice())?;
        row.map(|row| Ok(Head::read(row.value())?.0)).transpose()
    }

    /// Returns the newest entry of a key.
    pub(super) fn newest(&self, key: &Key) -> Result<Option<KvEntry>, Stop> {
        let row = self.state.get(state_key(self.id, key).as_slice())?;
        match row {
            Some(row) => Ok(found(self.id, key, row.value(), self.now, self.hides_expired)?.entry),
            None => Ok(None),
        }
    }

    /// Returns the entry of a key with this version, if it is held. An older entry that has expired
    /// is treated as dropped.
    pub(super) fn version(&self, key: &Key, version: u64) -> Result<Option<KvEntry>, Failure> {
        let (row, is_older) =
            match self.history.get(history_key(self.id, key, version).as_slice())? {
                Some(row) => (row, true),
                None => match self.state.get(state_key(self.id, key).as_slice())? {
                    Some(row) => (row, false),
                    None => return Ok(None),
                },
            };
        let (head, value) = Head::read(row.value())?;
        if head.version != version || (is_older && head.is_due(self.now)) {
            return Ok(None);
        }
        let value = row.value().get(value).map(Bytes::copy_from_slice).unwrap_or_default();
        Ok(Some(head.into_entry(key.clone(), value)))
    }

    /// Returns the time of the write with a version, in nanoseconds since 1970. Returns `None` if
    /// its entry is not held.
    pub(super) fn written_at(&self, version: u64) -> Result<Option<u64>, Failure> {
        let Some(key) = self.log.get(log_key(self.id, version).as_slice())? else {
            return Ok(None);
        };
        let key = read_key(key.value())?;
        let row = match self.history.get(history_key(self.id, &key, version).as_slice())? {
            Some(row) => Some(row),
            None => self.state.get(state_key(self.id, &key).as_slice())?,
        };
        row.map(|row| Ok(Head::read(row.value())?.0.created)).transpose()
    }

    /// Returns the newest entry of a key, which has this version. Returns `None` if it is a value
    /// that has expired, because its tombstone follows.
    pub(super) fn live(&self, key: &Key, version: u64) -> Result<Option<KvEntry>, Failure> {
        let is_expired = match self.head(key)? {
            Some(head) => head.is_due(self.now) && !head.is_tombstone(),
            None => true,
        };
        if is_expired { Ok(None) } else { self.version(key, version) }
    }

    /// Returns the held entries of a key after a version, the oldest first, until the budget ends.
    /// Returns the version up to which they are if others follow.
    pub(super) fn history(
        &self,
        key: &Key,
        after: u64,
        mut budget: Budget,
    ) -> Result<(Vec<KvEntry>, Option<u64>), Stop> {
        let Some(head) = self.head(key)? else { return Ok((Vec::new(), None)) };
        // An expired tombstone is forgotten together with the history.
        if self.hides_expired && head.is_tombstone() && head.is_due(self.now) {
            return Ok((Vec::new(), None));
        }
        let (mut entries, mut last) = (Vec::new(), after);
        for version in head.older.iter().copied().filter(|version| *version > after) {
            if budget.is_used_up() {
                return Ok((entries, Some(last)));
            }
            last = version;
            if let Some(entry) = self.version(key, version)? {
                budget.take(entry.value.len());
                entries.push(entry);
            }
        }
        if head.version > after {
            entries.extend(self.newest(key)?);
        }
        Ok((entries, None))
    }

    /// Passes the live entries of a range to `visit`, from a key on, until the range or the budget
    /// ends. Returns the last visited key, or `None` at the end of the range.
    pub(super) fn scan<T>(
        &self,
        range: &Range,
        after: Option<&Key>,
        mut budget: Budget,
        project: fn(Key, Head, &[u8]) -> T,
        items: &mut Vec<T>,
    ) -> Result<Option<Key>, Stop> {
        let start = state_key(self.id, after.map_or(range.start(), |key| key.as_str()));
        let start = match after {
            Some(_) => Bound::Excluded(start.as_slice()),
            None => Bound::Included(start.as_slice()),
        };
        let rows = self.state.range::<&[u8]>((start, Bound::Unbounded)).map_err(Failure::from)?;
        let mut last = None;
        for row in rows {
            // A slice without a key would look like the end of the range.
            if last.is_some() && budget.is_used_up() {
                return Ok(last);
            }
            let (key, row) = row.map_err(Failure::from)?;
            let Some(key) = key.value().strip_prefix(self.id.bytes().as_slice()) else { break };
            let key = read_key(key)?;
            if !range.contains(&key) {
                break;
            }
            let (head, value) = Head::read(row.value())?;
            // Its tombstone would not be part of the scan.
            let is_due = head.is_due(self.now);
            let value = row.value().get(value).unwrap_or_default();
            budget.take(value.len());
            last = Some(key.clone());
            if !is_due && !head.is_tombstone() {
                items.push(project(key, head, value));
            }
        }
        Ok(None)
    }

    /// Returns the rows of a key.
    pub(super) fn rows(&self, key: &Key) -> Result<Option<KeyRows>, Failure> {
        let row = self.state.get(state_key(self.id, key).as_slice())?;
        row.map(|row| self.with_older(key.clone(), row.value())).transpose()
    }

    /// Returns the rows of the next keys after a key, until the budget ends. Returns the last key,
    /// or `None` at the end of the store.
    pub(super) fn rows_after(
        &self,
        after: Option<&Key>,
        budget: &mut Budget,
    ) -> Result<(Vec<KeyRows>, Option<Key>), Failure> {
        let start = state_key(self.id, after.map_or("", |key| key.as_str()));
        let bounds = (Bound::Excluded(start.as_slice()), Bound::Unbounded);
        let mut found: Vec<KeyRows> = Vec::new();
        for row in self.state.range::<&[u8]>(bounds)? {
            let (key, row) = row?;
            let Some(key) = key.value().strip_prefix(self.id.bytes().as_slice()) else { break };
            if let Some(last) = found.last().filter(|_| budget.is_used_up()) {
                let last = last.key.clone();
                return Ok((found, Some(last)));
            }
            let rows = self.with_older(read_key(key)?, row.value())?;
            budget.take(rows.size());
            found.push(rows);
        }
        Ok((found, None))
    }

    fn with_older(&self, key: Key, newest: &[u8]) -> Result<KeyRows, Failure> {
        let (head, mut older) = (Head::read(newest)?.0, Vec::new());
        for version in head.older {
            let row = self.history.get(history_key(self.id, &key, version).as_slice())?;
            older.extend(row.map(|row| row.value().to_vec()));
        }
        Ok(KeyRows { key, version: head.version, newest: newest.to_vec(), older })
    }

    /// Returns the lowest version that is held.
    pub(super) fn first_version(&self) -> Result<Option<u64>, Failure> {
        match self.log_after(0)?.next() {
            Some(first) => Ok(Some(first?.0)),
            None => Ok(None),
        }
    }

    /// Returns the versions after `position`, each with its key, in order.
    pub(super) fn log_after(
        &self,
        position: u64,
    ) -> Result<impl Iterator<Item = Result<(u64, Key), Failure>>, Failure> {
        let (start, end) = (log_key(self.id, position), log_key(self.id, u64::MAX));
        let bounds = (Bound::Excluded(start.as_slice()), Bound::Included(end.as_slice()));
        let rows = self.log.range::<&[u8]>(bounds)?;
        Ok(rows.map(|row| {
            let (at, key) = row?;
            Ok((read_log_key(at.value())?.1, read_key(key.value())?))
        }))
    }
}

impl From<::redb::StorageError> for Stop {
    fn from(error: ::redb::StorageError) -> Self {
        Self::Failed(error.into())
    }
}
