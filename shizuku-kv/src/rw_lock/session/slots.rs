//! Selects the key of a new session.
//!
//! The key of an ended session serves the next one, whichever process opens it. An ended session
//! therefore leaves no lasting entry, even in a store whose tombstones never expire. Keys have
//! numbers. A new session reads a few of them in one request, and replaces a tombstone by
//! compare-and-swap. It reads further numbers only if none of those was free. There are therefore
//! few more keys than sessions were alive, or being opened, at once (ADR 0054).
//!
//! The names of keys contain a salt, which differs from that of a deleted store of the same name.
//! Versions of the two stores may be the same. Without a salt, a renewal from before the deletion
//! would replace the entry of a new session. A key is used for the first time only after the store
//! has confirmed the salt. A key with an entry therefore proves it (ADR 0062).
//!
//! A process that ends without ending its session leaves its key as if it were alive. Such a
//! session is found silent like any other: by a session that is opened later and lives for longer
//! than the lease. A session checks [`MOST_LEFTOVERS`] keys at once. If one of them was silent, it
//! checks all other keys too, some at each renewal ([`Search`]).

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{SessionEntry, key_of, key_of_slot, lease_of};
use super::search::{FIRST_WINDOW, SLOTS, Search, WINDOW, after};
use crate::rw_lock::lease;
use crate::rw_lock::record::{LockRecord, SessionId, Slot, SlotUse};
use crate::store::{
    Key, KvEntry, KvError, KvOperation, KvResult, Store, SuspendAwareInstant, VersionToken,
};

/// Maximum number of keys that are tried before they are read again.
const TRIES: usize = 3;

/// Maximum number of keys of other sessions that are checked again later.
const MOST_LEFTOVERS: usize = 2 * WINDOW as usize;

/// The keys of a store from which a new session selects one.
pub(super) struct Slots {
    store: Store,
    /// Length of the new session's lease.
    lease: Duration,
    /// Key of the session that was evicted last. This key is used only if no other one is free,
    /// because an operator may have deleted it. The operator then finds this process under another
    /// key.
    evicted: Option<Key>,
    /// Keys that appeared to be in use. Those of crashed processes are deleted later.
    leftovers: Vec<Leftover>,
    /// Search for further keys of crashed processes.
    search: Search,
    /// The session's own key, and the time at which it was opened.
    opened: Option<(Key, Instant)>,
}

/// A new session.
pub(super) struct Opened {
    pub(super) id: SessionId,
    pub(super) key: Key,
    /// Version of its first entry.
    pub(super) version: VersionToken,
    /// Time at which that entry was sent.
    pub(super) sent: SuspendAwareInstant,
    /// Record of the lock that is likely to be needed next, if it was found.
    pub(super) record: Option<KvEntry>,
}

/// A key that appeared to be in use.
struct Leftover {
    key: Key,
    version: VersionToken,
    lease: Duration,
    seen: Instant,
}

/// A key that no session uses.
struct Free {
    slot: Slot,
    /// The version of its tombstone. `None` if the key was never used.
    tombstone: Option<VersionToken>,
}

impl Slots {
    pub(super) fn new(store: Store, lease: Duration, evicted: Option<Key>) -> Self {
        let search = Search::default();
        Self { store, lease, evicted, leftovers: Vec::new(), search, opened: None }
    }

    /// Creates the key of a session. `record` is the key of a lock that is likely to be needed
    /// next.
    pub(super) async fn open(&mut self, record: &Key) -> KvResult<Opened> {
        let opened = self.find(record).await?;
        self.opened = Some((opened.key.clone(), Instant::now()));
        Ok(opened)
    }

    async fn find(&mut self, record: &Key) -> KvResult<Opened> {
        let mut window = 0..FIRST_WINDOW;
        let (mut is_first, mut is_confirmed) = (true, false);
        let mut salt = salt_of(&self.store);
        let mut found = None;
        while !window.is_empty() {
            let wanted = is_first.then_some(record);
            let (mut free, entry) = self.read(salt, window.clone(), wanted).await?;
            if free.is_empty() && is_first {
                free = hinted(salt, entry.as_ref(), &window);
            }
            found = entry.or(found);
            let is_unused = |free: &Free| free.tombstone.is_none();
            if !is_confirmed && free.iter().take(TRIES).any(is_unused) {
                self.store.refresh().await?;
                is_confirmed = true;
                let confirmed = salt_of(&self.store);
                if confirmed != salt {
                    // The store was deleted and created again since the handle was opened.
                    (salt, window, is_first) = (confirmed, 0..FIRST_WINDOW, true);
                    self.leftovers.clear();
                    continue;
                }
            }
            let has_free = free.iter().any(|free| window.contains(&free.slot.number));
            for free in free.into_iter().take(TRIES) {
                match self.acquire(free).await {
                    Ok(Some(opened)) => return Ok(Opened { record: found, ..opened }),
                    // Versions of this store are not numbers.
                    Ok(None) => return self.create_single_use(found).await,
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error),
                }
            }
            // Other processes were faster. The rest is read again.
            if !has_free {
                window = after(&window);
            }
            is_first = false;
        }
        self.create_single_use(found).await
    }

    /// Reads the keys with these numbers, together with the record of a lock. Returns the free
    /// ones: first those with a tombstone. Each kind is in random order, because other sessions are
    /// opened at the same time.
    async fn read(
        &mut self,
        salt: Option<u32>,
        window: Range<u32>,
        record: Option<&Key>,
    ) -> KvResult<(Vec<Free>, Option<KvEntry>)> {
        let slots = window.map(|number| Slot { salt, number });
        let mut keys = slots.clone().map(key_of_slot).collect::<KvResult<Vec<_>>>()?;
        keys.extend(record.cloned());
        let mut entries = self.store.entries(&keys).await?;
        let found = record.and_then(|_| entries.pop()).flatten();
        self.remember(&entries);
        let mut free = Vec::new();
        for (slot, entry) in slots.zip(entries) {
            match entry {
                None => free.push(Free { slot, tombstone: None }),
                Some(entry) if entry.is_tombstone() => {
                    // An expired entry is created again, which asks the store whether entries stay
                    // by now.
                    let stays = entry.operation != KvOperation::Expire;
                    free.push(Free { slot, tombstone: stays.then_some(entry.version) });
                }
                Some(_) => {}
            }
        }
        fastrand::shuffle(&mut free);
        let evicted = self.evicted.as_ref();
        let is_evicted =
            |free: &Free| evicted.is_some() && key_of_slot(free.slot).ok().as_ref() == evicted;
        free.sort_by_key(|free| (is_evicted(free), free.tombstone.is_none()));
        Ok((free, found))
    }

    /// Remembers keys that appear to be in use. A random part of them is enough, because other
    /// sessions that are opened at the same time remember other ones.
    fn remember(&mut self, entries: &[Option<KvEntry>]) {
        let seen = Instant::now();
        let own = self.opened.as_ref().map(|(key, _)| key);
        let is_new = |entry: &&KvEntry| {
            let is_known = || self.leftovers.iter().any(|leftover| leftover.key == entry.key);
            !entry.is_tombstone() && own != Some(&entry.key) && !is_known()
        };
        let mut new: Vec<_> = entries.iter().flatten().filter(is_new).collect();
        let room = MOST_LEFTOVERS - self.leftovers.len();
        if new.len() > room {
            keep_random(&mut new, room.max(MOST_LEFTOVERS / 2));
            keep_random(&mut self.leftovers, MOST_LEFTOVERS - new.len());
        }
        self.leftovers.extend(new.into_iter().map(|entry| {
            let (key, version) = (entry.key.clone(), entry.version);
            Leftover { key, version, lease: lease_of(entry), seen }
        }));
    }

    /// Acquires a free key. Returns `None`, and leaves the key free, if the versions of the store
    /// are not numbers. Entries of the key could then not be distinguished from older ones.
    async fn acquire(&self, free: Free) -> KvResult<Option<Opened>> {
        let Free { slot, tombstone } = free;
        let key = key_of_slot(slot)?;
        let nonce = SessionId::nonce();
        let (version, sent) = self.write(&key, Some(nonce), tombstone).await?;
        let Some(first) = version.as_u64() else {
            self.store.delete_with_version(&key, version).await?;
            return Ok(None);
        };
        let id = SessionId::at(SlotUse { slot, first }, nonce);
        Ok(Some(Opened { id, key, version, sent, record: None }))
    }

    /// Creates a key that no other session will use.
    async fn create_single_use(&self, record: Option<KvEntry>) -> KvResult<Opened> {
        let id = SessionId::random();
        let key = key_of(id)?;
        let (version, sent) = self.write(&key, None, None).await?;
        Ok(Opened { id, key, version, sent, record })
    }

    /// Writes the first entry of the session over a tombstone, or under a key without an entry.
    /// Returns the version of the entry, and the time at which it was sent.
    async fn write(
        &self,
        key: &Key,
        nonce: Option<u64>,
        tombstone: Option<VersionToken>,
    ) -> KvResult<(VersionToken, SuspendAwareInstant)> {
        let value = SessionEntry::of_session(nonce, self.lease, 0).to_bytes(tombstone);
        let sent = SuspendAwareInstant::now();
        let written = match tombstone {
            Some(version) => self.store.update(key, value.clone(), version).await,
            None => self.store.create(key, value.clone()).await,
        };
        let version = match written {
            // No other process writes this value.
            Err(error @ KvError::OutcomeUnknown { .. }) => {
                let found = self.store.leader_entry(key).await?;
                let is_ours = |entry: &KvEntry| !entry.is_tombstone() && *entry.value == *value;
                found.filter(is_ours).map(|entry| entry.version).ok_or(error)?
            }
            written => written?,
        };
        Ok((version, sent))
    }

    /// Deletes keys that appeared to be in use when this session read them, and have not been
    /// renewed for longer than their lease since. Like any silent session, such a session is ended
    /// by deleting exactly the observed version. Then reads the next keys of the search.
    ///
    /// Cancel safe: the next call continues.
    pub(super) async fn end_silent(&mut self) {
        self.end_due().await;
        let is_long_open = self
            .opened
            .as_ref()
            .is_some_and(|(_, since)| lease::is_silent(since.elapsed(), self.lease));
        // A session that ends sooner could not delete the keys that it finds.
        if is_long_open && self.leftovers.len() <= MOST_LEFTOVERS / 2 {
            self.search_on().await;
        }
    }

    /// Reads the next keys of the search.
    async fn search_on(&mut self) {
        let Some(numbers) = self.search.next() else { return };
        let salt = salt_of(&self.store);
        let slots = numbers.iter().map(|number| Slot { salt, number: *number });
        let Ok(keys) = slots.map(key_of_slot).collect::<KvResult<Vec<_>>>() else { return };
        let Ok(entries) = self.store.entries(&keys).await else { return };
        let used = numbers.iter().zip(&entries).filter(|(_, entry)| entry.is_some());
        self.search.note_read(used.map(|(number, _)| *number));
        self.remember(&entries);
    }

    async fn end_due(&mut self) {
        let is_due =
            |leftover: &&Leftover| lease::is_silent(leftover.seen.elapsed(), leftover.lease);
        let due = self.leftovers.iter().filter(is_due);
        let keys: Vec<_> = due.map(|leftover| leftover.key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        let Ok(entries) = self.store.entries(&keys).await else { return };
        for (key, entry) in keys.into_iter().zip(entries) {
            let index = self.leftovers.iter().position(|leftover| leftover.key == key);
            let Some(index) = index else { continue };
            let version = self.leftovers[index].version;
            let is_unchanged = entry.is_some_and(|entry| entry.version == version);
            if is_unchanged && self.store.delete_with_version(&key, version).await.is_ok() {
                self.search.note_dead();
                let store = self.store.name();
                tracing::debug!(store, %key, "deleted the key of a silent lock session");
            }
            self.leftovers.swap_remove(index);
        }
    }
}

/// Keeps this number of items, selected at random.
fn keep_random<T>(items: &mut Vec<T>, number: usize) {
    fastrand::shuffle(items);
    items.truncate(number);
}

/// Returns a key that is likely to be free, by the record of a lock, although none in the window
/// is. If many claims wait, the keys of their sessions are in use, and the next one is not.
fn hinted(salt: Option<u32>, record: Option<&KvEntry>, window: &Range<u32>) -> Vec<Free> {
    let record = record.filter(|entry| !entry.is_tombstone());
    let Some(record) = record.and_then(|entry| LockRecord::from_bytes(&entry.value).ok()) else {
        return Vec::new();
    };
    let uses = record.claims().filter_map(|claim| claim.id.session.slot_use());
    let used: BTreeSet<_> = uses.map(|used| used.slot).collect();
    let free =
        (window.end..SLOTS).map(|number| Slot { salt, number }).find(|slot| !used.contains(slot));
    free.map(|slot| Free { slot, tombstone: None }).into_iter().collect()
}

/// Returns the salt in the names of a store's session keys, derived from the newest known settings.
/// It differs from the salt of a deleted store of the same name.
pub(in crate::rw_lock) fn salt_of(store: &Store) -> Option<u32> {
    store.incarnation().map(|incarnation| {
        let word = |part: &[u8]| part.iter().fold(0, |word, byte| (word << 8) | u32::from(*byte));
        incarnation.chunks_exact(4).fold(0, |salt, part| salt ^ word(part))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    /// The hint is the next free key. Keys of another salt do not count.
    #[test]
    fn long_queue_hints_at_a_free_key_of_the_same_salt() {
        let claims = (0..10).map(|number| {
            let salt = if number < 9 { "0000002a." } else { "" };
            format!(r#"{{"session":"{salt}{number}-1-000000000000000{number}","number":1,"mode":"read"}}"#)
        });
        let queue: Vec<_> = claims.collect();
        let record =
            format!(r#"{{"shizuku_lock":1,"fence":0,"holders":[],"queue":[{}]}}"#, queue.join(","));
        let key = Key::new("rw_lock.r").unwrap();
        let entry = KvEntry::put(
            key,
            record.into(),
            VersionToken::from_u64(1),
            std::time::SystemTime::UNIX_EPOCH,
        );
        let free = hinted(Some(42), Some(&entry), &(0..FIRST_WINDOW));
        assert_eq!(free.len(), 1);
        assert_eq!(free[0].slot, Slot { salt: Some(42), number: 9 });
    }
}
