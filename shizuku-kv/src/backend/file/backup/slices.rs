//! A copy in slices: the keys of each store in order, and again those that have changed since.
//!
//! A slice makes the copied keys equal to those of its snapshot. Entries that were written since
//! the last slice are found in the change log. Three changes have no entry there. A forgotten
//! deletion, and new settings, make the copy visit the keys of the store again. Expired older
//! entries are absent for all readers, so that the copy may hold them for longer. The slice that
//! leaves nothing to copy is the moment of the copy.

use std::collections::{BTreeMap, BTreeSet};

use ::redb::{Durability, ReadTransaction, ReadableTable, WriteTransaction};

use super::super::draft::Draft;
use super::super::failure::Failure;
use super::super::record::Head;
use super::super::shared::Shared;
use super::super::tables::{
    LimitsChange, Position, StoreId, StoreRow, expiry_key, history_key, log_key, state_key,
};
use super::super::transaction::{Loaded, Transaction, size};
use super::super::view::{Budget, Entries, KeyRows, Property, View};
use super::fault::Fault;
use crate::backend::embedded::incarnation;
use crate::store::{Key, StoreConfig};

/// Maximum number of keys of a slice.
pub(super) const ITEMS: usize = 8192;

/// Maximum number of bytes in one commit of the copy, so that its memory is bounded.
const PIECE: usize = 16 * 1024 * 1024;

/// The copied keys of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Walk {
    /// All up to this one, or none.
    Until(Option<Key>),
    All,
}

impl Walk {
    fn covers(&self, key: &Key) -> bool {
        match self {
            Self::Until(last) => last.as_ref().is_some_and(|last| key <= last),
            Self::All => true,
        }
    }

    /// Visits the keys after this one again.
    fn return_to(&mut self, key: Option<&str>) {
        if *self == Self::All
            || matches!(self, Self::Until(Some(last)) if Some(last.as_str()) > key)
        {
            *self = Self::Until(key.and_then(|key| Key::new(key).ok()));
        }
    }
}

/// The progress of the copy of a store.
struct Copied {
    walk: Walk,
    /// Version up to which the changes of the covered keys are copied.
    position: u64,
    /// Number of changes of the settings, and the progress of the last one.
    settings: u64,
    limits_change: Option<LimitsChange>,
}

/// The rows that a slice has read from a store.
struct StorePart {
    id: StoreId,
    /// Covered keys that have changed. A key without rows has been forgotten.
    changed: Vec<(Key, Option<KeyRows>)>,
    /// The keys after the first one up to the last one, or up to the end of the store.
    walked: Option<(Option<Key>, Vec<KeyRows>, Option<Key>)>,
}

/// All rows of a slice.
pub(super) struct Slice {
    parts: Vec<StorePart>,
    /// Whether all keys were visited before, or some have to be visited again.
    catches_up: bool,
    /// The rows that do not belong to entries, if the slice leaves nothing to copy.
    rest: Option<Rest>,
}

struct Rest {
    about: Vec<Property>,
    stores: Vec<(StoreId, StoreRow, Position)>,
}

impl Slice {
    /// Returns whether others have written too much for the slice to be the last one.
    pub(super) fn catches_up(&self) -> bool {
        self.catches_up
    }
}

/// A copy in the making.
pub(super) struct Copy<'d> {
    draft: &'d Draft,
    stores: BTreeMap<StoreId, Copied>,
    /// The store at which the next slice begins, so that each gets its turn.
    next: StoreId,
    /// Maximum number of keys of a slice.
    items: usize,
    /// The commit of the copy, which several slices share, and its size.
    commit: Option<WriteTransaction>,
    bytes: usize,
}

impl<'d> Copy<'d> {
    pub(super) fn new(draft: &'d Draft, items: usize) -> Self {
        let (stores, next) = (BTreeMap::new(), StoreId::FIRST);
        Self { draft, stores, next, items, commit: None, bytes: 0 }
    }

    /// Reads a slice.
    pub(super) fn read(&mut self, transaction: &ReadTransaction) -> Result<Slice, Fault> {
        let view = View::new(transaction, Shared::now(), true);
        self.read_parts(&view).map_err(Fault::Source)
    }

    fn read_parts(&mut self, view: &View<'_>) -> Result<Slice, Failure> {
        let positions = view.positions()?;
        self.stores.retain(|id, _| positions.binary_search_by_key(id, |(id, _)| *id).is_ok());
        let has_walked = self.stores.values().all(|copied| copied.walk == Walk::All);
        let mut slice = Slice {
            parts: Vec::new(),
            catches_up: has_walked && !self.stores.is_empty(),
            rest: None,
        };
        let mut walk = Budget::new(self.items);
        // Otherwise fast writers would keep the other keys from being visited at all.
        let mut changes = walk.half();
        let turn = positions.partition_point(|(id, _)| *id < self.next);
        let (before, after) = positions.split_at(turn);
        for (id, end) in after.iter().chain(before) {
            let copied = self.stores.get(id);
            if copied.is_some_and(|copied| copied.limits_change.is_none() && copied.is_at(end)) {
                continue;
            }
            if !slice.parts.is_empty() && (walk.is_used_up() || changes.is_used_up()) {
                self.next = *id;
                return Ok(slice);
            }
            if !self.read_store(view, *id, end, (&mut changes, &mut walk), &mut slice)? {
                self.next = StoreId(id.0.saturating_add(1));
                return Ok(slice);
            }
        }
        let mut stores = Vec::with_capacity(positions.len());
        for (id, end) in positions {
            stores.push((id, settings(view, id)?, end));
        }
        slice.rest = Some(Rest { about: view.about()?, stores });
        Ok(slice)
    }

    /// Reads the changes and the next keys of a store, at least one of each. Returns whether its
    /// copy is complete.
    fn read_store(
        &mut self,
        view: &View<'_>,
        id: StoreId,
        end: &Position,
        (changes, walk): (&mut Budget, &mut Budget),
        slice: &mut Slice,
    ) -> Result<bool, Failure> {
        let row = settings(view, id)?;
        let copied = self.stores.entry(id).or_insert_with(|| Copied {
            walk: Walk::Until(None),
            position: end.sequence,
            settings: end.settings,
            limits_change: row.limits_change.clone(),
        });
        if copied.settings != end.settings || copied.position < end.forgotten {
            slice.catches_up |= copied.walk != Walk::Until(None);
            copied.walk = Walk::Until(None);
        } else if copied.limits_change != row.limits_change
            && let Some(change) = &copied.limits_change
        {
            copied.walk.return_to(change.after.as_deref());
        }
        copied.settings = end.settings;
        copied.limits_change = row.limits_change;
        let entries = view.entries(id)?;
        let changed = copied.read_changes(&entries, end, changes)?;
        let mut part = StorePart { id, changed, walked: None };
        if let Walk::Until(after) = copied.walk.clone() {
            let (rows, last) = entries.rows_after(after.as_ref(), walk)?;
            copied.walk = match last.clone() {
                Some(last) => Walk::Until(Some(last)),
                None => Walk::All,
            };
            part.walked = Some((after, rows, last));
        }
        slice.parts.push(part);
        Ok(copied.is_at(end))
    }

    /// Writes a slice to the copy. Returns whether the copy is complete.
    pub(super) fn write(&mut self, slice: Slice) -> Result<bool, Fault> {
        let commit = match self.commit.take() {
            Some(commit) => commit,
            None => {
                let mut commit = self.draft.begin_write().map_err(Fault::Target)?;
                // The last commit makes all of them durable.
                commit.set_durability(Durability::None).map_err(Fault::target)?;
                commit
            }
        };
        let is_complete = slice.rest.is_some();
        let written = write_slice(&commit, slice).map_err(Fault::Target)?;
        self.bytes += written;
        if is_complete || self.bytes >= PIECE {
            self.bytes = 0;
            commit.commit().map_err(Fault::target)?;
        } else {
            self.commit = Some(commit);
        }
        Ok(is_complete)
    }
}

impl Copied {
    /// Returns whether all keys are copied as of this end of the log. The settings are compared
    /// with it too, but not their progress.
    fn is_at(&self, end: &Position) -> bool {
        self.walk == Walk::All && (self.position, self.settings) == (end.sequence, end.settings)
    }

    /// Reads the covered keys that were written after the position.
    fn read_changes(
        &mut self,
        entries: &Entries,
        end: &Position,
        budget: &mut Budget,
    ) -> Result<Vec<(Key, Option<KeyRows>)>, Failure> {
        let (mut changed, mut seen) = (Vec::new(), BTreeSet::new());
        // The walk reads all other keys later.
        if self.walk != Walk::Until(None) {
            for (walked, at) in entries.log_after(self.position)?.enumerate() {
                if walked > 0 && budget.is_used_up() {
                    return Ok(changed);
                }
                let (version, key) = at?;
                self.position = version;
                let mut bytes = 0;
                if self.walk.covers(&key) && seen.insert(key.clone()) {
                    let rows = entries.rows(&key)?;
                    bytes = rows.as_ref().map_or(0, KeyRows::size);
                    changed.push((key, rows));
                }
                budget.take(bytes);
            }
        }
        self.position = end.sequence;
        Ok(changed)
    }
}

fn settings(view: &View<'_>, id: StoreId) -> Result<StoreRow, Failure> {
    view.row(id)?.ok_or(Failure::Damaged("a store has no settings"))
}

/// Writes the rows of a slice. Returns their size.
fn write_slice(commit: &WriteTransaction, slice: Slice) -> Result<usize, Failure> {
    let (mut tables, mut bytes) = (Transaction::begin(commit, 0)?, 0);
    tables.change();
    for StorePart { id, changed, walked } in slice.parts {
        tables.load_copy(id)?;
        for (key, rows) in changed {
            bytes += rows.as_ref().map_or(0, KeyRows::size);
            tables.replace_key(id, &key, rows)?;
        }
        let Some((after, rows, last)) = walked else { continue };
        let found: BTreeSet<_> = rows.iter().map(|rows| rows.key.clone()).collect();
        tables.remove_keys(id, after, last.as_ref(), &found)?;
        for rows in rows {
            bytes += rows.size();
            let key = rows.key.clone();
            tables.replace_key(id, &key, Some(rows))?;
        }
    }
    if let Some(rest) = slice.rest {
        tables.finish_copy(rest)?;
    }
    tables.finish(0)?;
    Ok(bytes)
}

impl Transaction<'_> {
    /// Loads a store of the copy, whose settings are written at the end.
    fn load_copy(&mut self, id: StoreId) -> Result<(), Failure> {
        if self.loaded.contains_key(&id) {
            return Ok(());
        }
        let position = match self.positions.get(id.bytes().as_slice())? {
            Some(bytes) => Position::read(bytes.value())?,
            None => Position::default(),
        };
        let row = StoreRow::new("", [0; 16], &StoreConfig::new());
        self.loaded.insert(id, Loaded { limits: row.limits(), row, position });
        Ok(())
    }

    /// Removes the keys after one up to another one, or up to the end, except for some.
    fn remove_keys(
        &mut self,
        id: StoreId,
        mut after: Option<Key>,
        last: Option<&Key>,
        except: &BTreeSet<Key>,
    ) -> Result<(), Failure> {
        loop {
            let keys = self.keys_after(id, after.as_deref(), ITEMS)?;
            for key in &keys {
                if last.is_some_and(|last| key > last) {
                    return Ok(());
                }
                if !except.contains(key) {
                    self.drop_key(id, key)?;
                }
            }
            if keys.len() < ITEMS {
                return Ok(());
            }
            after = keys.into_iter().next_back();
        }
    }

    /// Replaces all entries of a key.
    fn replace_key(
        &mut self,
        id: StoreId,
        key: &Key,
        rows: Option<KeyRows>,
    ) -> Result<(), Failure> {
        self.drop_key(id, key)?;
        let Some(KeyRows { newest, older, .. }) = rows else { return Ok(()) };
        for row in &older {
            let version = self.add_row(id, key, row)?;
            self.history.insert(history_key(id, key, version).as_slice(), row.as_slice())?;
        }
        self.add_row(id, key, &newest)?;
        self.state.insert(state_key(id, key).as_slice(), newest.as_slice())?;
        Ok(())
    }

    /// Adds the entry of a row to the log, the expiries and the sums. Returns its version.
    fn add_row(&mut self, id: StoreId, key: &Key, row: &[u8]) -> Result<u64, Failure> {
        let (head, value) = Head::read(row)?;
        self.log.insert(log_key(id, head.version).as_slice(), key.as_bytes())?;
        if let Some(due) = head.due {
            self.expiry.insert(expiry_key(due, id, head.version).as_slice(), [].as_slice())?;
        }
        let bytes = &mut self.position(id)?.bytes;
        *bytes = bytes.saturating_add(size(key, value.len()));
        Ok(head.version)
    }

    /// Writes the rows that do not belong to entries.
    fn finish_copy(&mut self, rest: Rest) -> Result<(), Failure> {
        for (key, value) in rest.about {
            self.about.insert(key.as_slice(), value.as_slice())?;
        }
        let mut deleted = Vec::new();
        for row in self.positions.range::<&[u8]>(StoreId::FIRST.bytes().as_slice()..)? {
            let id = StoreId::read(row?.0.value())?;
            if rest.stores.binary_search_by_key(&id, |(id, ..)| *id).is_err() {
                deleted.push(id);
            }
        }
        // Their entries are removed in pieces when the copy is opened.
        for id in deleted {
            self.loaded.remove(&id);
            self.positions.remove(id.bytes().as_slice())?;
            self.deleted.insert(id.bytes().as_slice(), [].as_slice())?;
        }
        for (id, mut row, end) in rest.stores {
            self.load_copy(id)?;
            let position = self.position(id)?;
            *position = Position { bytes: position.bytes, ..end };
            // The copy is another store. A cursor of the original would skip changes.
            row.incarnation = incarnation();
            self.names.insert(row.name.as_bytes(), id.bytes().as_slice())?;
            self.stores.insert(id.bytes().as_slice(), row.to_bytes()?.as_slice())?;
        }
        Ok(())
    }
}
