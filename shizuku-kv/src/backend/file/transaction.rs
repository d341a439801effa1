//! Writes to the entries of stores, within one transaction of redb: the same rules as those of the
//! memory backend's log, over tables.
//!
//! A transaction has a fixed time. Everything that it changes takes effect in one commit: state,
//! history, change log, expiries and positions.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use ::redb::{ReadableTable, Table, WriteTransaction};

use super::cache::Touched;
use super::failure::Failure;
use super::record::{Head, number, span};
use super::tables::{
    ABOUT, DELETED, EXPIRY, HISTORY, LOG, NAMES, POSITIONS, Position, STATE, STORES, StoreId,
    StoreRow, expiry_key, history_key, log_key, read_expiry_key, state_key,
};
use crate::backend::embedded::{Limits, Rejection, admit};
use crate::store::{FencingToken, Key, KvOperation, VersionToken, Write, WriteOperation};

type Bytes<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// The tables of a write transaction, and the positions that it has changed.
pub(super) struct Transaction<'t> {
    pub(super) about: Bytes<'t>,
    pub(super) names: Bytes<'t>,
    pub(super) stores: Bytes<'t>,
    pub(super) deleted: Bytes<'t>,
    pub(super) positions: Bytes<'t>,
    pub(super) state: Bytes<'t>,
    pub(super) history: Bytes<'t>,
    pub(super) log: Bytes<'t>,
    pub(super) expiry: Bytes<'t>,
    /// Time of the transaction, in nanoseconds since 1970.
    pub(super) now: u64,
    pub(super) loaded: HashMap<StoreId, Loaded>,
    /// Whether the transaction has changed anything, so that it has to be committed.
    pub(super) is_changed: bool,
    /// Buffer for the bytes of one row after another.
    pub(super) row: Vec<u8>,
    /// Size of the entries that were read, for the budget of upkeep.
    pub(super) read: Cell<usize>,
    /// Stores whose settings have changed.
    limits_changed: Vec<StoreId>,
    removed: Vec<StoreId>,
    /// The keys whose newest entry has changed.
    pub(super) touched: Touched,
}

/// A store as it is within the transaction.
pub(super) struct Loaded {
    pub(super) row: StoreRow,
    pub(super) limits: Limits,
    pub(super) position: Position,
}

/// The result of a transaction.
#[derive(Debug)]
pub(super) struct Summary {
    /// Whether anything has changed, so that the transaction has to be committed.
    pub(super) is_changed: bool,
    /// Number of commits of the file, with this one.
    pub(super) commits: u64,
    /// Time of the next expiry, in nanoseconds since 1970.
    pub(super) next_due: Option<u64>,
    /// Stores that may have changed.
    pub(super) stores: BTreeSet<StoreId>,
    /// Stores whose new settings have to be applied to their entries.
    pub(super) limits_changed: Vec<StoreId>,
    /// Whether the entries of a store have to be removed.
    pub(super) has_deleted: bool,
    /// The keys whose newest entry has changed.
    pub(super) touched: Touched,
}

/// A held entry without its value, and the size of the value.
pub(super) struct Held {
    pub(super) head: Head,
    pub(super) len: usize,
}

/// Returns the size of an entry, as the limit of a store counts it.
pub(super) fn size(key: &str, len: usize) -> u64 {
    (key.len() as u64).saturating_add(len as u64)
}

impl<'t> Transaction<'t> {
    pub(super) fn begin(transaction: &'t WriteTransaction, now: u64) -> Result<Self, Failure> {
        Ok(Self {
            about: transaction.open_table(ABOUT)?,
            names: transaction.open_table(NAMES)?,
            stores: transaction.open_table(STORES)?,
            deleted: transaction.open_table(DELETED)?,
            positions: transaction.open_table(POSITIONS)?,
            state: transaction.open_table(STATE)?,
            history: transaction.open_table(HISTORY)?,
            log: transaction.open_table(LOG)?,
            expiry: transaction.open_table(EXPIRY)?,
            now,
            loaded: HashMap::new(),
            is_changed: false,
            row: Vec::new(),
            read: Cell::new(0),
            limits_changed: Vec::new(),
            removed: Vec::new(),
            touched: Touched::Keys(Vec::new()),
        })
    }

    /// Writes the positions, and returns the result of the transaction. A commit gets `mark`, by
    /// which its author recognizes it.
    pub(super) fn finish(mut self, mark: u64) -> Result<Summary, Failure> {
        let mut commits = 0;
        if self.is_changed {
            let key = StoreId::COMMITS.bytes();
            commits = 1 + match self.positions.get(key.as_slice())? {
                Some(bytes) => number(bytes.value().get(..8).unwrap_or_default())?,
                None => 0,
            };
            let row = [commits.to_be_bytes(), mark.to_be_bytes()].concat();
            self.positions.insert(key.as_slice(), row.as_slice())?;
            for (id, loaded) in &self.loaded {
                let bytes = loaded.position.to_bytes();
                self.positions.insert(id.bytes().as_slice(), bytes.as_slice())?;
            }
        }
        let first = self.expiry.first()?.map(|(key, _)| read_expiry_key(key.value()));
        let next_due = first.transpose()?.map(|(due, ..)| due);
        Ok(Summary {
            is_changed: self.is_changed,
            commits,
            next_due,
            stores: self.loaded.keys().chain(&self.removed).copied().collect(),
            limits_changed: self.limits_changed,
            has_deleted: !self.removed.is_empty(),
            touched: self.touched,
        })
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Marks the transaction as one that has to be committed.
    pub(super) fn change(&mut self) {
        self.is_changed = true;
    }

    /// Returns a store. Returns `None` if it was deleted.
    pub(super) fn store(&mut self, id: StoreId) -> Result<Option<&mut Loaded>, Failure> {
        if !self.loaded.contains_key(&id) {
            let position = match self.positions.get(id.bytes().as_slice())? {
                Some(bytes) => Position::read(bytes.value())?,
                None => return Ok(None),
            };
            let row = match self.stores.get(id.bytes().as_slice())? {
                Some(bytes) => StoreRow::read(bytes.value())?,
                None => return Err(Failure::damaged("a store has no settings")),
            };
            let limits = row.limits();
            self.loaded.insert(id, Loaded { row, limits, position });
        }
        Ok(self.loaded.get_mut(&id))
    }

    /// Adds a store without entries.
    pub(super) fn add_store(&mut self, id: StoreId, row: StoreRow) -> Result<(), Failure> {
        self.change();
        self.names.insert(row.name.as_bytes(), id.bytes().as_slice())?;
        self.stores.insert(id.bytes().as_slice(), row.to_bytes()?.as_slice())?;
        let position = Position { written: self.now, ..Position::default() };
        self.loaded.insert(id, Loaded { limits: row.limits(), row, position });
        Ok(())
    }

    /// Writes the settings of a [loaded](Self::store) store. They are applied to its entries later.
    pub(super) fn change_limits(&mut self, id: StoreId, row: StoreRow) -> Result<(), Failure> {
        self.change();
        self.stores.insert(id.bytes().as_slice(), row.to_bytes()?.as_slice())?;
        if let Some(store) = self.loaded.get_mut(&id) {
            store.limits = row.limits();
            store.row = row;
            store.position.settings += 1;
        }
        self.limits_changed.push(id);
        self.touched = Touched::All;
        Ok(())
    }

    /// Removes a store. Its entries are removed by [`collect_some`](Self::collect_some).
    pub(super) fn remove_store(&mut self, id: StoreId, name: &str) -> Result<(), Failure> {
        self.change();
        self.loaded.remove(&id);
        self.removed.push(id);
        self.touched = Touched::All;
        self.names.remove(name.as_bytes())?;
        self.stores.remove(id.bytes().as_slice())?;
        self.positions.remove(id.bytes().as_slice())?;
        self.deleted.insert(id.bytes().as_slice(), [].as_slice())?;
        Ok(())
    }

    pub(super) fn held(&self, id: StoreId, key: &str) -> Result<Option<Held>, Failure> {
        let row = self.state.get(state_key(id, key).as_slice())?;
        row.map(|row| self.read_held(row.value())).transpose()
    }

    pub(super) fn held_older(
        &self,
        id: StoreId,
        key: &str,
        version: u64,
    ) -> Result<Option<Held>, Failure> {
        let row = self.history.get(history_key(id, key, version).as_slice())?;
        row.map(|row| self.read_held(row.value())).transpose()
    }

    fn read_held(&self, row: &[u8]) -> Result<Held, Failure> {
        self.read.set(self.read.get().saturating_add(row.len()));
        let (head, value) = Head::read(row)?;
        Ok(Held { head, len: value.len() })
    }

    pub(super) fn limits(&self, id: StoreId) -> Result<Limits, Failure> {
        self.loaded.get(&id).map(|store| store.limits).ok_or_else(not_loaded)
    }

    pub(super) fn position(&mut self, id: StoreId) -> Result<&mut Position, Failure> {
        self.loaded.get_mut(&id).map(|store| &mut store.position).ok_or_else(not_loaded)
    }

    /// Writes to a key of a [loaded](Self::store) store. An entry of the key that has expired
    /// expires first.
    ///
    /// A deletion is never rejected for lack of room, so that room can always be made. Nor is a
    /// value that takes no more room than the superseded entry.
    pub(super) fn write(
        &mut self,
        id: StoreId,
        key: &Key,
        write: &Write,
    ) -> Result<Result<VersionToken, Rejection>, Failure> {
        let held = self.held_now(id, key)?;
        let newest = held.as_ref().map(|held| held.head.newest());
        if let Err(rejection) = admit(write.fence, write.condition, newest) {
            return Ok(Err(rejection));
        }
        let limits = self.limits(id)?;
        let bytes = self.position(id)?.bytes;
        if let (WriteOperation::Put(value), Some(limit)) = (&write.operation, limits.max_bytes) {
            let dropped = self.dropped_by_a_write(id, key, held.as_ref(), limits)?;
            let after = bytes.saturating_add(size(key, value.len())).saturating_sub(dropped);
            if after > limit && after > bytes {
                return Ok(Err(Rejection::Full(limit)));
            }
        }
        let (operation, value) = match &write.operation {
            WriteOperation::Put(value) => (KvOperation::Put, value.as_ref()),
            WriteOperation::Purge if key.is_of_locks() || !limits.purges_by_deleting() => {
                (KvOperation::Purge, [].as_slice())
            }
            WriteOperation::Delete | WriteOperation::Purge => (KvOperation::Delete, [].as_slice()),
        };
        let (ttl, life) = match operation {
            KvOperation::Put => (write.ttl, limits.life(write.ttl)),
            _ => (None, limits.marker_ttl(key, write.fence)),
        };
        let head = Head {
            operation,
            version: 0,
            since: 0,
            // The time never goes back within a store, even if the clock does.
            created: self.now.max(self.position(id)?.written),
            older: Vec::new(),
            ttl: ttl.map(span),
            due: life.and_then(|life| self.now.checked_add(span(life))),
            fence: write.fence.map(FencingToken::as_u64),
            metadata: write.metadata.clone(),
        };
        self.append(id, key, head, value, held).map(Ok)
    }

    /// Returns the bytes that a write to a key drops. It drops at most one entry, because the
    /// history was within its limit before.
    fn dropped_by_a_write(
        &self,
        id: StoreId,
        key: &Key,
        held: Option<&Held>,
        limits: Limits,
    ) -> Result<u64, Failure> {
        let Some(held) = held.filter(|held| held.head.older.len() + 1 >= limits.history) else {
            return Ok(0);
        };
        let len = match held.head.older.first() {
            Some(&oldest) => self.held_older(id, key, oldest)?.map_or(0, |held| held.len),
            None => held.len,
        };
        Ok(size(key, len))
    }

    /// Gives the newest entry of a key a token, unless it has that one or a newer one. Writes its
    /// value again; an absent key gets a tombstone. Returns the token that the key then has.
    pub(super) fn raise(
        &mut self,
        id: StoreId,
        key: &Key,
        token: FencingToken,
    ) -> Result<Result<FencingToken, Rejection>, Failure> {
        let held = self.held_now(id, key)?;
        let fence = held.as_ref().and_then(|held| held.head.fence).map(FencingToken::from_u64);
        if let Some(fence) = fence.filter(|fence| *fence >= token) {
            return Ok(Ok(fence));
        }
        let mut write = match held.as_ref().filter(|held| !held.head.is_tombstone()) {
            Some(held) if held.head.ttl.is_some() => return Ok(Err(Rejection::Expires)),
            Some(_) => Write::put(self.value(id, key)?),
            None => Write::delete(),
        };
        write.metadata = held.and_then(|held| held.head.metadata);
        let written = self.write(id, key, &write.with_fence(token))?;
        Ok(written.map(|_| token))
    }

    fn value(&self, id: StoreId, key: &str) -> Result<Vec<u8>, Failure> {
        let Some(row) = self.state.get(state_key(id, key).as_slice())? else {
            return Ok(Vec::new());
        };
        let (_, value) = Head::read(row.value())?;
        Ok(row.value().get(value).unwrap_or_default().to_vec())
    }

    /// Returns the newest entry of a key, after it has expired if it was due.
    fn held_now(&mut self, id: StoreId, key: &Key) -> Result<Option<Held>, Failure> {
        match self.held(id, key)? {
            Some(held) if held.head.is_due(self.now) => {
                let (due, version) = (held.head.due.unwrap_or_default(), held.head.version);
                self.expire_entry(due, id, version)?;
                self.held(id, key)
            }
            held => Ok(held),
        }
    }

    /// Appends an entry under the next version.
    pub(super) fn append(
        &mut self,
        id: StoreId,
        key: &Key,
        mut entry: Head,
        value: &[u8],
        held: Option<Held>,
    ) -> Result<VersionToken, Failure> {
        self.is_changed = true;
        self.touched.add(id, key);
        let history = self.limits(id)?.history;
        let position = self.position(id)?;
        position.sequence += 1;
        position.written = entry.created;
        position.bytes = position.bytes.saturating_add(size(key, value.len()));
        let version = position.sequence;
        entry.version = version;
        entry.since = held.as_ref().map_or(version, |held| held.head.since);
        if let Some(held) = held {
            let mut older = held.head.older.clone();
            // The history includes neither purged entries nor an expired value.
            if entry.operation == KvOperation::Purge {
                for version in older.drain(..) {
                    self.drop_older(id, key, version)?;
                }
            }
            let ended = matches!(entry.operation, KvOperation::Purge | KvOperation::Expire);
            if ended || history == 1 {
                self.release(id, key, &held)?;
            } else {
                self.move_to_history(id, key, &held)?;
                older.push(held.head.version);
                if older.len() + 1 > history {
                    let oldest = older.remove(0);
                    self.drop_older(id, key, oldest)?;
                }
            }
            entry.older = older;
        }
        self.log.insert(log_key(id, version).as_slice(), key.as_bytes())?;
        if let Some(due) = entry.due {
            self.expiry.insert(expiry_key(due, id, version).as_slice(), [].as_slice())?;
        }
        self.row.clear();
        entry.write(value, &mut self.row);
        self.state.insert(state_key(id, key).as_slice(), self.row.as_slice())?;
        Ok(VersionToken::from_u64(version))
    }

    /// Copies the newest entry of a key to the history.
    fn move_to_history(&mut self, id: StoreId, key: &str, held: &Held) -> Result<(), Failure> {
        let value = self.value(id, key)?;
        self.row.clear();
        Head { older: Vec::new(), ..held.head.clone() }.write(&value, &mut self.row);
        let at = history_key(id, key, held.head.version);
        self.history.insert(at.as_slice(), self.row.as_slice())?;
        Ok(())
    }

    pub(super) fn drop_older(
        &mut self,
        id: StoreId,
        key: &str,
        version: u64,
    ) -> Result<(), Failure> {
        if let Some(held) = self.held_older(id, key, version)? {
            self.release(id, key, &held)?;
        }
        self.history.remove(history_key(id, key, version).as_slice())?;
        Ok(())
    }

    /// Removes an entry that is no longer held from the log, the expiries and the sums.
    pub(super) fn release(&mut self, id: StoreId, key: &str, held: &Held) -> Result<(), Failure> {
        let version = held.head.version;
        self.log.remove(log_key(id, version).as_slice())?;
        if let Some(due) = held.head.due {
            self.expiry.remove(expiry_key(due, id, version).as_slice())?;
        }
        if let Some(store) = self.loaded.get_mut(&id) {
            let bytes = &mut store.position.bytes;
            *bytes = bytes.saturating_sub(size(key, held.len));
        }
        Ok(())
    }
}

fn not_loaded() -> Failure {
    Failure::damaged("a store was not read before its entries")
}
