//! The tables of the database, and the keys and rows of those that do not hold entries (ADR 0100).
//!
//! All keys and rows are bytes, because redb does not check the text of a damaged file. A number
//! within a key is big-endian, so that the order of keys is that of numbers.

use std::time::Duration;

use ::redb::TableDefinition;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::record::{number, span};
use crate::backend::embedded::{Limits, defaults};
use crate::store::{StorageType, StoreConfig};

pub(super) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// From the name of a property of the file to its value.
pub(super) const ABOUT: Definition = TableDefinition::new("shizuku.about");
/// From the name of a store to its number.
pub(super) const NAMES: Definition = TableDefinition::new("shizuku.names");
/// From the number of a store to its [`StoreRow`].
pub(super) const STORES: Definition = TableDefinition::new("shizuku.stores");
/// From the number of a store to its [`Position`]. The number 0 belongs to no store. It has the
/// number of commits, by which a process notices the commits of others.
pub(super) const POSITIONS: Definition = TableDefinition::new("shizuku.positions");
/// The newest entry of each key, with its value.
pub(super) const STATE: Definition = TableDefinition::new("shizuku.state");
/// The older entries of each key that the history holds, with their values.
pub(super) const HISTORY: Definition = TableDefinition::new("shizuku.history");
/// The change log: from the version of each held entry to its key.
pub(super) const LOG: Definition = TableDefinition::new("shizuku.log");
/// The future expiries, in the order in which they fall due.
pub(super) const EXPIRY: Definition = TableDefinition::new("shizuku.expiry");
/// The numbers of deleted stores whose entries have not been removed yet.
pub(super) const DELETED: Definition = TableDefinition::new("shizuku.deleted");

/// All tables, in the order in which a new file gets them.
pub(super) const TABLES: [Definition; 9] =
    [ABOUT, NAMES, STORES, POSITIONS, STATE, HISTORY, LOG, EXPIRY, DELETED];

/// Key in [`ABOUT`] of the format of the tables.
pub(super) const FORMAT: &[u8] = b"format";
/// The format that this version writes, and the only one that it reads.
pub(super) const THIS_FORMAT: &[u8] = &[1];
/// Key in [`ABOUT`] of the number that the next store gets.
pub(super) const NEXT_STORE: &[u8] = b"next store";

/// The number of a store within the file. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StoreId(pub(super) u32);

impl StoreId {
    /// The row of [`POSITIONS`] that has the number of commits.
    pub(super) const COMMITS: Self = Self(0);
    /// The first store.
    pub(super) const FIRST: Self = Self(1);

    pub(super) fn bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failure> {
        let bytes = bytes.try_into().map_err(|_| Failure::damaged("a store has no number"))?;
        Ok(Self(u32::from_be_bytes(bytes)))
    }
}

/// Returns the key in [`STATE`] of a key, or of the start of a range of keys.
pub(super) fn state_key(id: StoreId, key: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + key.len());
    bytes.extend(id.bytes());
    bytes.extend(key.as_bytes());
    bytes
}

/// Returns the key in [`HISTORY`] of an entry. No key of a store has a byte of zero.
pub(super) fn history_key(id: StoreId, key: &str, version: u64) -> Vec<u8> {
    let mut bytes = state_key(id, key);
    bytes.push(0);
    bytes.extend(version.to_be_bytes());
    bytes
}

/// Returns the key in [`LOG`] of an entry.
pub(super) fn log_key(id: StoreId, version: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&id.bytes());
    bytes[4..].copy_from_slice(&version.to_be_bytes());
    bytes
}

/// Reads a key of [`LOG`].
pub(super) fn read_log_key(bytes: &[u8]) -> Result<(StoreId, u64), Failure> {
    let (id, version) =
        bytes.split_at_checked(4).ok_or_else(|| Failure::damaged("a position is too short"))?;
    Ok((StoreId::read(id)?, number(version)?))
}

/// Returns the key in [`EXPIRY`] of an entry.
pub(super) fn expiry_key(due: u64, id: StoreId, version: u64) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&due.to_be_bytes());
    bytes[8..].copy_from_slice(&log_key(id, version));
    bytes
}

/// Reads a key of [`EXPIRY`]: the time, the store and the version.
pub(super) fn read_expiry_key(bytes: &[u8]) -> Result<(u64, StoreId, u64), Failure> {
    let (due, rest) =
        bytes.split_at_checked(8).ok_or_else(|| Failure::damaged("an expiry is too short"))?;
    let (id, version) = read_log_key(rest)?;
    Ok((number(due)?, id, version))
}

/// The end of the change log of a store, and its sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The last version that was assigned. 0 before the first.
    pub(super) sequence: u64,
    /// Time of the write with that version, in nanoseconds since 1970. Before the first write, the
    /// creation of the store.
    pub(super) written: u64,
    /// The highest version of a tombstone that was forgotten as the newest entry of its key.
    pub(super) forgotten: u64,
    /// Size of the held keys and values.
    pub(super) bytes: u64,
    /// Number of changes of the settings.
    pub(super) settings: u64,
}

impl Position {
    pub(super) fn to_bytes(self) -> [u8; 40] {
        let fields = [self.sequence, self.written, self.forgotten, self.bytes, self.settings];
        let mut bytes = [0; 40];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failure> {
        let mut fields = bytes.chunks(8).map(number);
        let mut next =
            || fields.next().unwrap_or_else(|| Err(Failure::damaged("a position is too short")));
        Ok(Self {
            sequence: next()?,
            written: next()?,
            forgotten: next()?,
            bytes: next()?,
            settings: next()?,
        })
    }
}

/// New settings that have been applied to some keys of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LimitsChange {
    /// The last key to which the settings have been applied, in the order of keys.
    pub(super) after: Option<String>,
    /// Time of the change, in nanoseconds since 1970.
    pub(super) since: u64,
}

/// A store: its name, identity and settings. Stored as JSON, so that fields can be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreRow {
    pub(super) name: String,
    /// Distinguishes this store from every other, and from every other of its name.
    pub(super) incarnation: [u8; 16],
    pub(super) description: String,
    pub(super) history: u8,
    pub(super) max_value_size: Option<usize>,
    pub(super) max_bytes: Option<u64>,
    /// In nanoseconds.
    pub(super) max_age: Option<u64>,
    pub(super) key_ttl: bool,
    pub(super) in_memory: bool,
    pub(super) replicas: usize,
    pub(super) limits_change: Option<LimitsChange>,
}

impl StoreRow {
    /// Returns the row of a store with these settings, in which every field is filled in.
    pub(super) fn new(name: &str, incarnation: [u8; 16], config: &StoreConfig) -> Self {
        let config = config.clone().over(&defaults());
        Self {
            name: name.to_owned(),
            incarnation,
            description: config.description.unwrap_or_default(),
            history: config.history.unwrap_or(1),
            max_value_size: config.max_value_size.flatten(),
            max_bytes: config.max_bytes.flatten(),
            max_age: config.max_age.flatten().map(span),
            key_ttl: config.key_ttl == Some(true),
            in_memory: config.storage == Some(StorageType::Memory),
            replicas: config.replicas.unwrap_or(1),
            limits_change: None,
        }
    }

    /// Returns the settings, with every field filled in.
    pub(super) fn config(&self) -> StoreConfig {
        StoreConfig::new()
            .description(&self.description)
            .history(self.history)
            .max_value_size(self.max_value_size)
            .max_bytes(self.max_bytes)
            .max_age(self.max_age.map(Duration::from_nanos))
            .key_ttl(self.key_ttl)
            .storage(if self.in_memory { StorageType::Memory } else { StorageType::File })
            .replicas(self.replicas)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits::of(&self.config())
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, Failure> {
        serde_json::to_vec(self).map_err(|_| Failure::damaged("a store cannot be described"))
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(bytes)
            .map_err(|_| Failure::damaged("the settings of a store cannot be read"))
    }
}
