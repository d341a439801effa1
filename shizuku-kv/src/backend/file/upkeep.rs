//! Changes of stores without a write of a user: expiries, new settings, deleted stores. Each is
//! applied in pieces, so that a commit takes a short time.

use std::time::Duration;

use ::redb::ReadableTable;

use super::failure::Failure;
use super::record::{Head, read_key, span};
use super::tables::{StoreId, expiry_key, history_key, log_key, read_expiry_key, state_key};
use super::transaction::{Held, Transaction};
use crate::backend::embedded::Limits;
use crate::store::{FencingToken, Key, KvOperation};

impl Transaction<'_> {
    /// Drops all entries of a key. Returns their number.
    fn drop_key(&mut self, id: StoreId, key: &str) -> Result<usize, Failure> {
        let Some(held) = self.held(id, key)? else { return Ok(0) };
        self.is_changed = true;
        for version in held.head.older.iter().copied() {
            self.drop_older(id, key, version)?;
        }
        self.release(id, key, &held)?;
        self.state.remove(state_key(id, key).as_slice())?;
        Ok(1 + held.head.older.len())
    }

    /// Applies the next expiries that are due, in the order in which they fall due, to at most
    /// `most` entries. Returns whether none is left.
    ///
    /// A tombstone supersedes an expired value that is the newest entry of its key. An expired
    /// older value is dropped. An expired tombstone that is the newest entry is forgotten together
    /// with the key's history, which would otherwise be live again.
    pub(super) fn expire_some(&mut self, most: usize) -> Result<bool, Failure> {
        for _ in 0..most {
            let first = self.expiry.first()?.map(|(key, _)| read_expiry_key(key.value()));
            match first.transpose()? {
                Some((due, id, version)) if due <= self.now => {
                    self.expire_entry(due, id, version)?;
                }
                _ => return Ok(true),
            }
        }
        Ok(false)
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
            return self.drop_key(id, &key).map(drop);
        }
        // The tombstone has the time of the expiry. The lifetime of the tombstone begins when it
        // becomes visible, however late, so that no watch misses it.
        let life = self.limits(id)?.marker_ttl(&key, None);
        let head = Head {
            operation: KvOperation::Expire,
            version: 0,
            since: 0,
            created: due,
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
        key: &str,
        change: impl FnOnce(&mut Head),
    ) -> Result<(), Failure> {
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

    /// Removes entries of deleted stores, of at most `most` keys. Returns whether none is left.
    pub(super) fn collect_some(&mut self, most: usize) -> Result<bool, Failure> {
        let id = match self.deleted.first()? {
            Some((id, _)) => StoreId::read(id.value())?,
            None => return Ok(true),
        };
        self.is_changed = true;
        let keys = self.keys_after(id, None, most)?;
        for key in &keys {
            self.drop_key(id, key)?;
        }
        if keys.len() < most {
            self.deleted.remove(id.bytes().as_slice())?;
            return Ok(self.deleted.first()?.is_none());
        }
        Ok(false)
    }

    /// Returns the next keys of a store after a key.
    fn keys_after(
        &self,
        id: StoreId,
        after: Option<&str>,
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
            if keys.len() == most {
                break;
            }
            keys.push(read_key(key)?);
        }
        Ok(keys)
    }

    /// Applies new settings of stores to existing entries, of at most `most` keys. Returns whether
    /// none is left. A maximum age counts from the write of a value; a value that is older expires
    /// then. A tombstone with a longer lifetime is held for the new lifetime, counted from the
    /// change.
    pub(super) fn apply_limits_some(&mut self, id: StoreId, most: usize) -> Result<bool, Failure> {
        let Some(store) = self.store(id)? else { return Ok(true) };
        let Some(mut change) = store.row.limits_change.take() else { return Ok(true) };
        self.is_changed = true;
        let keys = self.keys_after(id, change.after.as_deref(), most)?;
        for key in &keys {
            self.apply_limits_to(id, key, change.since)?;
        }
        let is_done = keys.len() < most;
        if let Some(store) = self.loaded.get_mut(&id) {
            change.after = keys.last().map(Key::to_string).or(change.after);
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
