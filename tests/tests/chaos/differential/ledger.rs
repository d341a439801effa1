//! The record of every acknowledged write, which both backends must agree with.
//!
//! Writes of one key are never concurrent, so their order is known. Times are ticks of one logical
//! clock: a write takes effect somewhere between the tick before it was sent and the tick after its
//! acknowledgement.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use shizuku_kv::{FencingToken, Key, KvEntry, KvOperation, VersionToken, WatchScope};

/// The two backends that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    Memory,
    Nats,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Memory, Self::Nats];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// One acknowledged write of one key.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) operation: KvOperation,
    pub(crate) value: Bytes,
    pub(crate) fence: Option<FencingToken>,
    /// Its version on each side.
    pub(crate) versions: [VersionToken; 2],
    /// The tick before it was sent, on each side.
    pub(crate) sent: [u64; 2],
    /// The tick after its acknowledgement, on each side.
    pub(crate) acknowledged: [u64; 2],
}

impl Write {
    pub(crate) fn is_live(&self) -> bool {
        self.operation == KvOperation::Put
    }
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    clock: AtomicU64,
    writes: Mutex<BTreeMap<Key, Vec<Write>>>,
    /// True if purges leave the tombstones of deletions, as in stores with times to live and no
    /// history.
    purges_by_deleting: bool,
}

impl Ledger {
    pub(crate) fn new(purges_by_deleting: bool) -> Self {
        Self { purges_by_deleting, ..Self::default() }
    }

    /// Returns the next tick.
    pub(crate) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn writes(&self) -> MutexGuard<'_, BTreeMap<Key, Vec<Write>>> {
        self.writes.lock().unwrap()
    }

    pub(crate) fn add(&self, key: &Key, mut write: Write) {
        if self.purges_by_deleting && write.operation == KvOperation::Purge {
            write.operation = KvOperation::Delete;
        }
        self.writes().entry(key.clone()).or_default().push(write);
    }

    pub(crate) fn newest(&self, key: &Key) -> Option<Write> {
        self.writes().get(key)?.last().cloned()
    }

    /// Returns the writes of a key that a store with this history still holds, the oldest first.
    pub(crate) fn held(&self, key: &Key, history: usize) -> Vec<Write> {
        let writes = self.writes();
        let Some(all) = writes.get(key) else { return Vec::new() };
        let purged =
            all.iter().rposition(|write| write.operation == KvOperation::Purge).unwrap_or(0);
        all[purged.max(all.len().saturating_sub(history))..].to_vec()
    }

    /// Returns the live keys in a scope with their newest writes.
    pub(crate) fn live(&self, scope: &WatchScope) -> BTreeMap<Key, Write> {
        let writes = self.writes();
        let newest = writes.iter().filter_map(|(key, all)| Some((key, all.last()?)));
        newest
            .filter(|(key, write)| write.is_live() && scope.matches(key))
            .map(|(key, write)| (key.clone(), write.clone()))
            .collect()
    }

    /// Explains why an entry of one side is not the given write. Returns `None` if it is.
    pub(crate) fn differs(
        entry: Option<&KvEntry>,
        write: Option<&Write>,
        side: Side,
    ) -> Option<String> {
        match (entry, write) {
            (None, None) => None,
            (Some(entry), Some(write))
                if entry.version == write.versions[side.index()]
                    && entry.operation == write.operation
                    && entry.value == write.value
                    && entry.fence == write.fence =>
            {
                None
            }
            (entry, write) => Some(format!(
                "{side:?} has {entry:?}, expected {:?} with version {:?} and fence {:?}",
                write.map(|write| write.operation),
                write.map(|write| write.versions[side.index()]),
                write.and_then(|write| write.fence),
            )),
        }
    }
}
