//! Changes of stores without a write of a user: expiries, new settings, deleted stores. Each is
//! applied in pieces, so that a commit takes a short time.

use std::time::{Duration, Instant};

use ::redb::ReadableTable;

use super::failure::Failure;
use super::record::{Head, read_key, span};
use super::tables::{
    StoreId, StoreRow, expiry_key, history_key, log_key, read_expiry_key, state_key,
};
use super::transaction::{Held, Transaction};
use crate::backend::embedded::Limits;
use crate::store::{FencingToken, Key, KvOperation};

/// Maximum time of one piece of upkeep, and maximum number and size in bytes of the entries that it
/// reads, so that the writes of the same commit wait for a short time only.
const TIME: Duration = Duration::from_millis(5);
const ITEMS: usize = 1000;
const BYTES: usize = 4 * 1024 * 1024;

/// Number of keys that upkeep reads at a time.
const PAGE: usize = 1000;

/// The end of a piece of upkeep.
pub(super) struct Budget {
    until: Instant,
    items: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + TIME, items: ITEMS, bytes: BYTES }
    }

    /// Returns a budget without a limit on time, for tests.
    #[cfg(test)]
    pub(super) fn of(items: usize, bytes: usize) -> Self {
        Self { until: Instant::now() + Duration::from_secs(3600), items, bytes }
    }

    fn take(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_used_up(&self) -> bool {
        self.items == 0 || self.bytes == 0 || Instant::now() >= self.until
    }
}

impl Transaction<'_> {
    /// Drops all entries of a key.
    pub(super) fn drop_key(&mut self, id: StoreId, key: &Key) -> Result<(), Failure> {
        let Some(held) = self.held(id, key)? else { return Ok(()) };
        self.is_changed = true;
        self.touched.add(id, key);
        for version in held.head.older.iter().copied() {
            self.drop_older(id, key, version)?;
        }
        self.release(id, key, &held)?;
        self.state.remove(state_key(id, key).as_slice())?;
        Ok(())
    }

    /// Applies the next expiries that are due, in the order in which they fall due, within a
    /// budget. Returns whether none is left.
    ///
    /// A tombstone supersedes an expired value that is the newest entry of its key. An expired
    /// older value is dropped. An expired tombstone that is the newest entry is forgotten together
    /// with the key's history, which would otherwise be live again.
    pub(super) fn expire_some(&mut self, budget: &mut Budget) -> Result<bool, Failure> {
        self.read.take();
        loop {
            let first = self.expiry.first()?.map(|(key, _)| read_expiry_key(key.value()));
            let Some((due, id, version)) = first.transpose()?.filter(|(due, ..)| *due <= self.now)
            else {
                return Ok(true);
            };
            if budget.is_used_up() {
                return Ok(false);
            }
            self.expire_entry(due, id, version)?;
            budget.take(self.read.take());
        }
    }

    /// Applies one expiry if it is due and has not been applied.
    pub(super) fn expire_one(
        &mut self,
        due: u64,
        id: StoreId,
        version: u64,
    ) -> Result<(), Failure> {
        let is_left = self.expiry.get(expiry_key(due, id, version).as_slice())?.is_some();
        if is_left && due <= self.now { self.expire_entry(due, id, version) } else { Ok(()) }
    }

    /// Expires an entry that was due.
    pub(super) fn expire_entry(
        &mut self,
        due: u64,
        id: StoreId,
        version: u64,
    ) -> Result<(), Failure> {
        self.is_changed = true;
        self.expiry.remove(expiry_key(due, id, version).as_slice())?;
        // A deleted store has no expiries.
        if self.store(id)?.is_none() {
            return Ok(());
        }
        let key = match self.log.get(log_key(id, version).as_slice())? {
            Some(key) => read_key(key.value())?,
            None => return Ok(()),
        };
        let Some(held) = self.held(id, &key)? else { return Ok(()) };
        if held.head.version != version {
            self.drop_older(id, &key, version)?;
            return self.change_newest(id, &key, |head| head.older.retain(|at| *at != version));
        }
        if held.head.is_tombstone() {
            let position = self.position(id)?;
            position.forgotten = position.forgotten.max(version);
            return self.drop_key(id, &key);
        }
        // The tombstone has the time of the expiry. The lifetime of the tombstone begins when it
        // becomes visible, however late, so that no watch misses it.
        let life = self.limits(id)?.marker_ttl(&key, None);
        let head = Head {
            operation: KvOperation::Expire,
            version: 0,
            since: 0,
            // The time never goes back within a store.
            created: due.max(self.position(id)?.written),
            older: Vec::new(),
            ttl: None,
            due: life.and_then(|life| self.now.checked_add(span(life))),
            fence: None,
            metadata: None,
        };
        self.append(id, &key, head, &[], Some(held)).map(drop)
    }

    /// Writes the newest entry of a key again after a change, with the same version.
    fn change_newest(
        &mut self,
        id: StoreId,
        key: &Key,
        change: impl FnOnce(&mut Head),
    ) -> Result<(), Failure> {
        self.touched.add(id, key);
        let at = state_key(id, key);
        let (mut head, value) = match self.state.get(at.as_slice())? {
            Some(row) => {
                let (head, value) = Head::read(row.value())?;
                (head, row.value().get(value).unwrap_or_default().to_vec())
            }
            None => return Ok(()),
        };
        change(&mut head);
        self.row.clear();
        head.write(&value, &mut self.row);
        self.state.insert(at.as_slice(), self.row.as_slice())?;
        Ok(())
    }

    /// Removes entries of deleted stores, within a budget. Returns whether none is left.
    pub(super) fn collect_some(&mut self, budget: &mut Budget) -> Result<bool, Failure> {
        self.read.take();
        loop {
            let Some(id) = self.deleted.first()?.map(|(id, _)| StoreId::read(id.value())) else {
                return Ok(true);
            };
            let id = id?;
            let keys = self.keys_after(id, None, None, PAGE)?;
            for key in &keys {
                if !self.collect_key(id, key, budget)? {
                    return Ok(false);
                }
            }
            if budget.is_used_up() {
                return Ok(false);
            }
            if keys.len() < PAGE {
                self.is_changed = true;
                self.deleted.remove(id.bytes().as_slice())?;
            }
        }
    }

    /// Removes the entries of a key of a deleted store, one by one. Returns `false` if the budget
    /// ends before. The rest is found again by the newest entry, which is removed last.
    fn collect_key(
        &mut self,
        id: StoreId,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<bool, Failure> {
        let Some(held) = self.held(id, key)? else { return Ok(true) };
        for version in held.head.older.iter().copied() {
            if budget.is_used_up() {
                return Ok(false);
            }
            self.is_changed = true;
            self.drop_older(id, key, version)?;
            budget.take(self.read.take());
        }
        if budget.is_used_up() {
            return Ok(false);
        }
        self.is_changed = true;
        self.touched.add(id, key);
        self.release(id, key, &held)?;
        self.state.remove(state_key(id, key).as_slice())?;
        budget.take(self.read.take());
        Ok(true)
    }

    /// Returns the next keys of a store after a key, up to a last one if it is given.
    pub(super) fn keys_after(
        &self,
        id: StoreId,
        after: Option<&str>,
        last: Option<&str>,
        most: usize,
    ) -> Result<Vec<Key>, Failure> {
        let start = state_key(id, after.unwrap_or_default());
        let rows = self.state.range::<&[u8]>(start.as_slice()..)?;
        let mut keys = Vec::new();
        for row in rows {
            let (row, _) = row?;
            let Some(key) = row.value().strip_prefix(id.bytes().as_slice()) else { break };
            if after.is_some_and(|after| after.as_bytes() == key) {
                continue;
            }
            let is_past = last.is_some_and(|last| key > last.as_bytes());
            if is_past || keys.len() == most {
                break;
            }
            keys.push(read_key(key)?);
        }
        Ok(keys)
    }

    /// Returns the stores whose new settings have not been applied to all entries.
    pub(super) fn unfinished_limits(&self) -> Result<Vec<StoreId>, Failure> {
        let mut ids = Vec::new();
        for row in self.stores.iter()? {
            let (id, row) = row?;
            if StoreRow::read(row.value())?.limits_change.is_some() {
                ids.push(StoreId::read(id.value())?);
            }
        }
        Ok(ids)
    }

    /// Applies new settings of a store to existing entries, within a budget. Returns whether none
    /// is left. A maximum age counts from the write of a value; a value that is older expires then.
    /// A tombstone with a longer lifetime is held for the new lifetime, counted from the change.
    pub(super) fn apply_limits_some(
        &mut self,
        id: StoreId,
        budget: &mut Budget,
    ) -> Result<bool, Failure> {
        self.read.take();
        let Some(store) = self.store(id)? else { return Ok(true) };
        let Some(mut change) = store.row.limits_change.clone() else { return Ok(true) };
        if budget.is_used_up() {
            return Ok(false);
        }
        self.is_changed = true;
        let keys = self.keys_after(id, change.after.as_deref(), None, PAGE)?;
        let mut is_done = keys.len() < PAGE;
        for key in keys {
            if budget.is_used_up() {
                is_done = false;
                break;
            }
            self.apply_limits_to(id, &key, change.since)?;
            budget.take(self.read.take());
            change.after = Some(key.to_string());
        }
        if let Some(store) = self.loaded.get_mut(&id) {
            store.row.limits_change = (!is_done).then_some(change);
            let row = store.row.to_bytes()?;
            self.stores.insert(id.bytes().as_slice(), row.as_slice())?;
        }
        Ok(is_done)
    }

    /// Applies the settings to the entries of a key.
    fn apply_limits_to(&mut self, id: StoreId, key: &Key, since: u64) -> Result<(), Failure> {
        let limits = self.limits(id)?;
        let Some(Held { head, .. }) = self.held(id, key)? else { return Ok(()) };
        let mut older = head.older.clone();
        while older.len() + 1 > limits.history {
            let oldest = older.remove(0);
            self.drop_older(id, key, oldest)?;
        }
        for version in older.iter().copied() {
            let at = history_key(id, key, version);
            let (mut held, value) = match self.history.get(at.as_slice())? {
                Some(row) => {
                    let (held, value) = Head::read(row.value())?;
                    (held, row.value().get(value).unwrap_or_default().to_vec())
                }
                None => continue,
            };
            if self.set_due(id, key, &mut held, limits, since)? {
                self.row.clear();
                held.write(&value, &mut self.row);
                self.history.insert(at.as_slice(), self.row.as_slice())?;
            }
        }
        let mut changed = head.clone();
        changed.older = older;
        self.set_due(id, key, &mut changed, limits, since)?;
        if changed == head { Ok(()) } else { self.change_newest(id, key, |head| *head = changed) }
    }

    /// Sets the expiry of an entry to that of the settings. Returns whether it has changed.
    fn set_due(
        &mut self,
        id: StoreId,
        key: &Key,
        head: &mut Head,
        limits: Limits,
        since: u64,
    ) -> Result<bool, Failure> {
        let fence = head.fence.map(FencingToken::from_u64);
        let due = if !head.is_tombstone() {
            let life = limits.life(head.ttl.map(Duration::from_nanos));
            life.and_then(|life| head.created.checked_add(span(life)))
        } else if limits.never_forgets(key, fence) {
            None
        } else {
            let life = limits.marker_ttl(key, fence);
            let due = life.and_then(|life| since.checked_add(span(life)));
            [head.due, due].into_iter().flatten().min()
        };
        if due == head.due {
            return Ok(false);
        }
        if let Some(before) = head.due {
            self.expiry.remove(expiry_key(before, id, head.version).as_slice())?;
        }
        if let Some(due) = due {
            self.expiry.insert(expiry_key(due, id, head.version).as_slice(), [].as_slice())?;
        }
        head.due = due;
        Ok(true)
    }
}
