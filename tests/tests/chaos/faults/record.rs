//! The written values: every value belongs to one write, and names it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shizuku_kv::KeyValue;

/// The value of one write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "{group}.{number}", codec = json)]
pub(crate) struct Cell {
    pub(crate) group: String,
    pub(crate) number: u32,
    /// The number of the write in the history.
    pub(crate) write: usize,
    /// The count of a counter.
    pub(crate) count: u64,
}

impl Cell {
    /// Returns the value of a write to a key such as `plain.3`.
    pub(crate) fn new(key: &str, write: usize, count: u64) -> Self {
        let (group, number) = key.split_once('.').expect("a group and a number");
        Self { group: group.to_owned(), number: number.parse().expect("a number"), write, count }
    }

    pub(crate) fn key(&self) -> String {
        format!("{}.{}", self.group, self.number)
    }

    pub(crate) fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("it can be encoded").into()
    }

    /// Decodes the value found under a key, which must belong to that key.
    pub(crate) fn found(key: &str, value: &[u8]) -> Result<Self, String> {
        let cell: Self =
            serde_json::from_slice(value).map_err(|error| format!("{key}: {error}"))?;
        if cell.key() == key {
            Ok(cell)
        } else {
            Err(format!("{key} has the value of {}", cell.key()))
        }
    }
}
