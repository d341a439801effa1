//! A copy in slices: the keys of each store in order, and again those that have changed since.
//!
//! A slice makes the copied keys equal to those of its snapshot. Entries that were written since
//! the last slice are found in the change log. Three changes have no entry there. New settings make
//! the copy visit the keys of the store again at once, and a forgotten deletion does so after the
//! current walk. Expired older entries may remain in the copy, because all readers treat them as
//! absent. The copy has the state of the slice that leaves nothing to copy.

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

/// Number of tries for which another walk over a store counts, because it takes many slices.
const AGAIN: usize = 16;

/// The copied keys of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Walk {
    /// All keys up to this one, or no key.
    Until(Option<Key>),
    All,
}

impl Default for Walk {
    fn default() -> Self {
        Self::Until(None)
    }
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
#[derive(Default)]
struct Copied {
    walk: Walk,
    /// Version of the store at the begin of the walk. Later keys are changes.
    begun: u64,
    /// Whether a deletion of a covered key may be lost, so that another walk has to follow.
    has_lost: bool,
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
    /// Number of tries for which the slice counts, because others have written too much for an
    /// earlier slice to be the last one.
    tries: usize,
    /// The rows that do not belong to entries, if the slice leaves nothing to copy.
    rest: Option<Rest>,
}

struct Rest {
    about: Vec<Property>,
    stores: Vec<(StoreId, StoreRow, Position)>,
}

impl Slice {
    pub(super) fn tries(&self) -> usize {
        self.tries
    }
}

/// A copy in progress.
pub(super) struct Copy<'d> {
    draft: &'d Draft,
    stores: BTreeMap<StoreId, Copied>,
    /// Whether a slice was read.
    has_begun: bool,
    /// The store at which the changes of the next slice begin, so that each gets its turn, and the
    /// one at which its walks begin.
    next: StoreId,
    walks: StoreId,
    /// Maximum number of keys of a slice.
    items: usize,
    /// The commit of the copy, which several slices share, and its size.
    commit: Option<WriteTransaction>,
    bytes: usize,
}

impl<'d> Copy<'d> {
    pub(super) fn new(draft: &'d Draft, items: usize) -> Self {
        let (stores, first) = (BTreeMap::new(), StoreId::FIRST);
        let (next, walks, has_begun) = (first, first, false);
        Self { draft, stores, has_begun, next, walks, items, commit: None, bytes: 0 }
    }

    /// Reads a slice.
    pub(super) fn read(&mut self, transaction: &ReadTransaction) -> Result<Slice, Fault> {
        let view = View::new(transaction, Shared::now(), true);
        self.read_parts(&view).map_err(Fault::Source)
    }

    fn read_parts(&mut self, view: &View<'_>) -> Result<Slice, Failure> {
        let positions = view.positions()?;
        self.stores.retain(|id, _| positions.binary_search_by_key(id, |(id, _)| *id).is_ok());
        let mut slice = Slice { parts: Vec::new(), tries: 0, rest: None };
        let mut walk = Budget::new(self.items);
        let has_walked = self.stores.values().all(|copied| copied.walk == Walk::All);
        let has_visited = if has_walked {
            slice.tries += usize::from(self.has_begun);
            self.read_changes(view, &positions, &mut walk, &mut slice)?
        } else {
            // Half of the budget, because fast writers would otherwise keep other keys from being
            // visited.
            let mut changes = walk.half();
            self.read_changes(view, &positions, &mut changes, &mut slice)?
        };
        self.has_begun = true;
        self.read_walks(view, &positions, &mut walk, &mut slice)?;
        let is_at =
            |(id, end): &(StoreId, Position)| self.stores.get(id).is_some_and(|at| at.is_at(end));
        if has_visited && positions.iter().all(is_at) {
            let mut stores = Vec::with_capacity(positions.len());
            for (id, end) in positions {
                stores.push((id, settings(view, id)?, end));
            }
            slice.rest = Some(Rest { about: view.about()?, stores });
        }
        Ok(slice)
    }

    /// Reads the changes of all stores whose walks have begun, at least one change. Returns whether
    /// each of them had its turn.
    ///
    /// A tombstone is lost if a store waits for its turn for longer than the tombstone is held.
    /// All stores therefore come before the walk of a single one.
    fn read_changes(
        &mut self,
        view: &View<'_>,
        positions: &[(StoreId, Position)],
        budget: &mut Budget,
        slice: &mut Slice,
    ) -> Result<bool, Failure> {
        for (id, end) in in_turn(positions, self.next) {
            let Some(copied) = self.stores.get_mut(id) else { continue };
            let is_current = copied.limits_change.is_none() && copied.is_current(end);
            if copied.walk == Walk::Until(None) || is_current {
                continue;
            }
            if !slice.parts.is_empty() && budget.is_used_up() {
                self.next = *id;
                return Ok(false);
            }
            slice.tries += copied.compare(settings(view, *id)?, end);
            let changed = copied.read_changes(&view.entries(*id)?, end, budget)?;
            slice.parts.push(StorePart { id: *id, changed, walked: None });
        }
        Ok(true)
    }

    /// Reads the next keys of the stores whose walks are not complete, at least one key. Keeps to a
    /// store until its walk is complete.
    fn read_walks(
        &mut self,
        view: &View<'_>,
        positions: &[(StoreId, Position)],
        budget: &mut Budget,
        slice: &mut Slice,
    ) -> Result<(), Failure> {
        let mut has_walked = false;
        for (id, end) in in_turn(positions, self.walks) {
            let copied = self.stores.entry(*id).or_default();
            if copied.walk == Walk::All {
                continue;
            }
            self.walks = *id;
            if has_walked && budget.is_used_up() {
                return Ok(());
            }
            has_walked = true;
            if copied.walk == Walk::Until(None) {
                copied.begin(settings(view, *id)?, end);
            }
            let Walk::Until(after) = copied.walk.clone() else { continue };
            let (rows, last) = view.entries(*id)?.rows_after(after.as_ref(), budget)?;
            if let Some(last) = last.clone() {
                // A walk over new keys only may never reach the end.
                slice.tries += usize::from(rows.iter().all(|row| row.version > copied.begun));
                copied.walk = Walk::Until(Some(last));
            } else if std::mem::take(&mut copied.has_lost) {
                slice.tries += AGAIN;
                copied.walk = Walk::Until(None);
            } else {
                copied.walk = Walk::All;
            }
            let is_left = last.is_some();
            let walked = Some((after, rows, last));
            slice.parts.push(StorePart { id: *id, changed: Vec::new(), walked });
            if is_left {
                return Ok(());
            }
        }
        Ok(())
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

/// Returns the stores from one on, and then those before it.
fn in_turn(
    positions: &[(StoreId, Position)],
    first: StoreId,
) -> impl Iterator<Item = &(StoreId, Position)> {
    let (before, after) = positions.split_at(positions.partition_point(|(id, _)| *id < first));
    after.iter().chain(before)
}

impl Copied {
    /// Returns whether the covered keys are copied as of this end of the log. The settings are
    /// compared with it too, but not their progress.
    fn is_current(&self, end: &Position) -> bool {
        (self.position, self.settings) == (end.sequence, end.settings)
    }

    /// Returns whether all keys are copied as of this end of the log.
    fn is_at(&self, end: &Position) -> bool {
        self.walk == Walk::All && self.is_current(end)
    }

    /// Begins a walk at this end of the log.
    fn begin(&mut self, row: StoreRow, end: &Position) {
        *self = Self {
            walk: Walk::Until(None),
            begun: end.sequence,
            has_lost: false,
            position: end.sequence,
            settings: end.settings,
            limits_change: row.limits_change,
        };
    }

    /// Notices changes that are not in the log. Returns the number of tries for which they count.
    fn compare(&mut self, row: StoreRow, end: &Position) -> usize {
        let mut tries = 0;
        if self.settings != end.settings {
            (self.walk, self.has_lost, tries) = (Walk::Until(None), false, AGAIN);
        } else if self.position < end.forgotten && self.walk == Walk::All {
            (self.walk, tries) = (Walk::Until(None), AGAIN);
        } else if self.position < end.forgotten {
            // Otherwise many losses would keep the walk from its end.
            self.has_lost = true;
        } else if self.limits_change != row.limits_change
            && let Some(change) = &self.limits_change
        {
            self.walk.return_to(change.after.as_deref());
        }
        self.settings = end.settings;
        self.limits_change = row.limits_change;
        tries
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

    /// Removes the keys after `after` up to `last`, or up to the end, except those in `except`.
    fn remove_keys(
        &mut self,
        id: StoreId,
        mut after: Option<Key>,
        last: Option<&Key>,
        except: &BTreeSet<Key>,
    ) -> Result<(), Failure> {
        loop {
            let last = last.map(Key::as_str);
            let keys = self.keys_after(id, after.as_deref(), last, ITEMS)?;
            for key in &keys {
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
        // The entries of deleted stores are removed in pieces when the copy is opened.
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
