//! The subjects that were delivered.

use std::hash::{BuildHasher, RandomState};

use hashbrown::hash_table::{Entry, HashTable};

/// The subjects that a listing or the initial state of a watch has delivered.
///
/// They are stored as 128-bit hashes with keys of this process, at 16 to 40 bytes each, because the
/// capacity doubles: as a list until a subject is searched for, which usually never happens,
/// because appending to it takes a fraction of the time of an insertion into a table.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    appended: Vec<(u64, u64)>,
    table: Table,
}

impl Subjects {
    /// Adds a subject that is expected to be new. A subject that is added twice is stored once when
    /// the list becomes a table.
    pub(super) fn add_unique(&mut self, subject: &str) {
        self.appended.push(self.table.hash(subject));
    }

    /// Adds a subject. Returns whether it is new.
    pub(super) fn insert(&mut self, subject: &str) -> bool {
        let table = self.table();
        let hash = table.hash(subject);
        table.insert(hash)
    }

    /// Returns all of them as a table.
    pub(super) fn table(&mut self) -> &mut Table {
        let appended = std::mem::take(&mut self.appended);
        self.table.hashes.reserve(appended.len(), |seen| seen.0);
        for hash in appended {
            self.table.insert(hash);
        }
        &mut self.table
    }

    /// Returns an empty table that can be compared with this set.
    pub(super) fn emptied(&self) -> Table {
        Table { keys: self.table.keys.clone(), hashes: HashTable::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.appended.is_empty() && self.table.hashes.is_empty()
    }
}

/// A set of subjects.
#[derive(Debug, Default)]
pub(super) struct Table {
    keys: [RandomState; 2],
    /// Placed by the first half of the hash, which need not be hashed again.
    hashes: HashTable<(u64, u64)>,
}

impl Table {
    fn hash(&self, subject: &str) -> (u64, u64) {
        (self.keys[0].hash_one(subject), self.keys[1].hash_one(subject))
    }

    /// Returns whether the hash is new.
    fn insert(&mut self, hash: (u64, u64)) -> bool {
        match self.hashes.entry(hash.0, |seen| *seen == hash, |seen| seen.0) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(hash);
                true
            }
        }
    }

    pub(super) fn contains(&self, subject: &str) -> bool {
        self.has(&self.hash(subject))
    }

    pub(super) fn add_all<'a>(&mut self, subjects: impl IntoIterator<Item = &'a str>) {
        for subject in subjects {
            self.insert(self.hash(subject));
        }
    }

    fn has(&self, hash: &(u64, u64)) -> bool {
        self.hashes.find(hash.0, |seen| seen == hash).is_some()
    }

    /// Removes the subjects that the other set does not have.
    pub(super) fn retain(&mut self, other: &Self) {
        self.hashes.retain(|hash| other.has(hash));
    }

    /// Returns the number of subjects that both sets have.
    pub(super) fn shared_with(&self, other: &Self) -> usize {
        self.hashes.iter().filter(|hash| other.has(hash)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_subjects_are_distinguished() {
        let mut subjects = Subjects::default();
        assert!(subjects.is_empty() && subjects.insert("a"));
        assert!(!subjects.insert("a"));
        subjects.add_unique("b");
        subjects.add_unique("b");
        assert!(!subjects.insert("b"));
        let mut others = subjects.emptied();
        others.add_all(["c", "d"]);
        let subjects = subjects.table();
        assert!(subjects.contains("a") && subjects.contains("b") && !subjects.contains("c"));
        assert_eq!(subjects.shared_with(&others), 0);
        others.add_all(["a"]);
        assert_eq!(subjects.shared_with(&others), 1);
        others.retain(subjects);
        assert!(others.contains("a") && !others.contains("c"));
    }
}
