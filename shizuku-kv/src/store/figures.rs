//! Figures of a store, by which followers notice that entries left it without a message.
//!
//! A watch delivers writes, deletions and expiries. An eviction, an operator's purge, a server that
//! came back older and some expiries remove entries without a message. So each follower compares
//! its state with these figures periodically, and reads the store again if the difference has no
//! other explanation (ADR 0048).

use std::time::SystemTime;

/// Figures of a scope of a store, all of one moment, from
/// [`KvReader::figures`](crate::KvReader::figures).
///
/// On NATS, the number of keys of a prefix that is written all the time may be older than the
/// position. A follower then reads the store once more than needed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFigures {
    /// The store's incarnation, as in its cursors.
    pub incarnation: [u8; 16],
    /// Position of the newest change in scope; 0 before the first. If the scope is everything, the
    /// store need not hold that change any longer. No entry that [`keys`](Self::keys) counts is
    /// newer.
    pub newest: u64,
    /// Time of that change by the store's clock, if it is known.
    pub newest_at: Option<SystemTime>,
    /// Number of keys in scope with an entry, tombstones included. `None` if every entry that
    /// leaves the store is reported to its watches, so that no comparison is needed.
    pub keys: Option<u64>,
    /// Position of the newest change in the whole store.
    pub end: u64,
    /// Number of entries in the whole store, superseded ones included, if it is known.
    pub entries: Option<u64>,
    /// Whether an older entry of a key can become its newest one without a message.
    pub reverts: bool,
}

impl StoreFigures {
    /// Returns figures of a store that reports every leaving entry to its watches; for authors of
    /// backends.
    pub fn told(incarnation: [u8; 16], newest: u64) -> Self {
        let (end, keys, entries) = (newest, None, None);
        Self { incarnation, newest, newest_at: None, keys, end, entries, reverts: false }
    }

    /// Returns figures with the number of keys with an entry; for authors of backends.
    pub fn counted(incarnation: [u8; 16], newest: u64, keys: u64) -> Self {
        Self { keys: Some(keys), ..Self::told(incarnation, newest) }
    }

    /// Returns whether the store has lost entries since earlier figures, without a write in
    /// between.
    pub(crate) fn has_shrunk(&self, earlier: Option<&Self>) -> bool {
        earlier.is_some_and(|earlier| self.end == earlier.end && self.entries < earlier.entries)
    }
}
