//! A hash table that grows and shrinks one small segment at a time, and whose clones share the
//! segments.
//!
//! A usual table moves all of its entries when it doubles. With a million entries this takes 0.35 s
//! (issue 12), during which the lock around it is held. This table is divided into segments by
//! linear hashing (Litwin, VLDB 1980): an insertion divides at most one segment. A clone copies no
//! entry. A segment that a clone shares is copied before it changes (ADR 0070).

use std::hash::BuildHasher;
use std::mem;
use std::slice;
use std::sync::Arc;

use hashbrown::hash_table::HashTable;

/// Maximum average number of entries of a segment. Beyond it one more segment is added. The largest
/// segments have twice as many entries, which fit into the 1,024 slots of a `HashTable` at its load
/// of 7/8.
const SEGMENT: usize = if cfg!(test) { 6 } else { 400 };

/// Hashes keys, with a random seed for each table, so that chosen keys do not collide.
pub(crate) type KeyHasher = hashbrown::DefaultHashBuilder;

/// An entry that contains its key.
pub(crate) trait Keyed {
    /// Returns the key, which never changes.
    fn key_bytes(&self) -> &[u8];
}

/// Entries by key, in no particular order.
#[derive(Clone)]
pub(crate) struct Table<T> {
    segments: Vec<Arc<Segment<T>>>,
    len: usize,
    hasher: KeyHasher,
}

/// Some of the entries, without gaps in memory. A hash table leaves up to half of its slots free,
/// so only an index of positions has such slots (ADR 0118).
#[derive(Clone)]
struct Segment<T> {
    /// The position of each entry.
    index: HashTable<u32>,
    entries: Vec<Hashed<T>>,
}

/// An entry beside the hash of its key. A growing index reads the hash here, because a read of the
/// key may miss the CPU cache.
#[derive(Clone)]
struct Hashed<T> {
    hash: u64,
    entry: T,
}

impl<T> Default for Segment<T> {
    fn default() -> Self {
        Self { index: HashTable::new(), entries: Vec::new() }
    }
}

impl<T> Segment<T> {
    fn with_capacity(entries: usize) -> Self {
        Self { index: HashTable::with_capacity(entries), entries: Vec::with_capacity(entries) }
    }

    /// Stores an entry whose key is not in the segment.
    fn push(&mut self, held: Hashed<T>) {
        let entries = &self.entries;
        let hash = |at: &u32| entries.get(*at as usize).map_or(0, |held| held.hash);
        self.index.insert_unique(held.hash, entries.len() as u32, hash);
        if self.entries.len() == self.entries.capacity() {
            // An eighth, because doubling leaves a quarter of the memory unused on average.
            self.entries.reserve_exact(self.entries.len() / 8 + 4);
        }
        self.entries.push(held);
    }
}

impl<T: Keyed> Segment<T> {
    /// Returns the position of a key's entry.
    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let is_same = |at: &u32| {
            let held = self.entries.get(*at as usize);
            held.is_some_and(|held| held.hash == hash && held.entry.key_bytes() == key)
        };
        self.index.find(hash, is_same).map(|at| *at as usize)
    }

    fn get(&self, hash: u64, key: &[u8]) -> Option<&T> {
        self.entries.get(self.find(hash, key)?).map(|held| &held.entry)
    }

    /// Removes the entry at a position. The last entry takes its place.
    fn remove(&mut self, hash: u64, at: usize) -> Option<T> {
        let (removed, last) = (at as u32, self.entries.len().checked_sub(1)?);
        self.index.find_entry(hash, |held| *held == removed).ok()?.remove();
        let held = self.entries.swap_remove(at);
        if let Some(moved) = self.entries.get(at)
            && let Some(place) = self.index.find_mut(moved.hash, |held| *held == last as u32)
        {
            *place = removed;
        }
        Some(held.entry)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { segments: vec![Arc::default()], len: 0, hasher: KeyHasher::default() }
    }
}

/// Maximum number of segments, more than fit into memory.
const MOST: usize = 1 << 24;

/// Returns the bits of a hash that select a segment. A `HashTable` uses the lowest and the highest
/// bits.
fn number(hash: u64) -> usize {
    (hash >> 32) as usize & (MOST - 1)
}

/// Returns the mask of the bits that select among this number of segments.
fn mask(segments: usize) -> usize {
    segments.next_power_of_two() - 1
}

impl<T: Keyed> Table<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&T> {
        let hash = self.hasher.hash_one(key);
        self.segments.get(self.index(hash))?.get(hash, key)
    }

    pub(crate) fn iter(&self) -> Iter<'_, T> {
        Iter { segments: self.segments.iter(), segment: [].iter(), left: self.len }
    }

    /// Returns the index of a hash's segment. A segment that does not exist yet is part of the
    /// segment that will be divided for it.
    fn index(&self, hash: u64) -> usize {
        let mask = mask(self.segments.len());
        let index = number(hash) & mask;
        if index < self.segments.len() { index } else { index & (mask >> 1) }
    }
}

impl<T: Keyed + Clone> Table<T> {
    #[cfg(any(test, feature = "memory"))]
    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut T> {
        let hash = self.hasher.hash_one(key);
        let index = self.index(hash);
        let segment = self.segments.get_mut(index)?;
        // A shared segment is copied only if it contains the key.
        let at = segment.find(hash, key)?;
        Arc::make_mut(segment).entries.get_mut(at).map(|held| &mut held.entry)
    }

    /// Stores an entry, and returns the previous entry of its key.
    #[cfg(any(test, feature = "memory"))]
    pub(crate) fn insert(&mut self, entry: T) -> Option<T> {
        self.insert_hashed(self.hasher.hash_one(entry.key_bytes()), entry)
    }

    /// Stores an entry whose hash is known.
    pub(crate) fn insert_hashed(&mut self, hash: u64, entry: T) -> Option<T> {
        let index = self.index(hash);
        let segment = self.segments.get_mut(index)?;
        let found = segment.find(hash, entry.key_bytes());
        let segment = Arc::make_mut(segment);
        if let Some(held) = found.and_then(|at| segment.entries.get_mut(at)) {
            return Some(mem::replace(&mut held.entry, entry));
        }
        segment.push(Hashed { hash, entry });
        self.len += 1;
        if self.len > self.capacity() {
            self.divide();
        }
        None
    }

    #[cfg(any(test, feature = "memory"))]
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<T> {
        self.remove_hashed(self.hasher.hash_one(key), key)
    }

    /// Removes the entry of a key whose hash is known.
    pub(crate) fn remove_hashed(&mut self, hash: u64, key: &[u8]) -> Option<T> {
        let index = self.index(hash);
        let segment = self.segments.get_mut(index)?;
        // A shared segment is copied only if it contains the key.
        let at = segment.find(hash, key)?;
        let removed = Arc::make_mut(segment).remove(hash, at);
        self.len -= 1;
        if self.len < self.capacity() / 4 {
            self.unite();
        }
        removed
    }

    /// Returns the number of entries beyond which another segment is added.
    pub(crate) fn capacity(&self) -> usize {
        self.segments.len() * SEGMENT
    }

    /// Resizes the table for this total number of entries, and frees the memory that they do not
    /// need. Moves each entry.
    pub(crate) fn resize(&mut self, entries: usize) {
        let entries = entries.max(self.len);
        let segments = entries.div_ceil(SEGMENT).clamp(1, MOST);
        // Segments that are not divided yet have twice as many entries as the others.
        let undivided = mask(segments) / 2 + 1;
        let new = |index| {
            let is_divided = index >= undivided || index + undivided < segments;
            let share = entries / if is_divided { 2 * undivided } else { undivided };
            // With a margin, because hashes are not spread evenly.
            Arc::new(Segment::with_capacity(share.min(2 * SEGMENT) * 17 / 16))
        };
        let old = mem::replace(&mut self.segments, (0..segments).map(new).collect());
        self.len = 0;
        for held in old.into_iter().flat_map(|segment| Arc::unwrap_or_clone(segment).entries) {
            let index = self.index(held.hash);
            if let Some(segment) = self.segments.get_mut(index) {
                Arc::make_mut(segment).push(held);
                self.len += 1;
            }
        }
    }

    /// Applies a change to each entry. The change must not modify the key.
    pub(crate) fn for_each_mut(&mut self, mut change: impl FnMut(&mut T)) {
        self.segments
            .iter_mut()
            .flat_map(|segment| Arc::make_mut(segment).entries.iter_mut())
            .for_each(|held| change(&mut held.entry));
    }

    /// Divides one segment, and adds a new one with half of its entries.
    fn divide(&mut self) {
        let new = self.segments.len();
        let mask = mask(new + 1);
        if new >= MOST {
            return;
        }
        let Some(divided) = self.segments.get_mut(new & (mask >> 1)) else { return };
        let entries = Arc::unwrap_or_clone(mem::take(divided)).entries;
        let half = || Segment::with_capacity(entries.len() / 2);
        let (mut kept, mut moved) = (half(), half());
        for held in entries {
            let half = if number(held.hash) & mask == new { &mut moved } else { &mut kept };
            half.push(held);
        }
        *divided = Arc::new(kept);
        self.segments.push(Arc::new(moved));
    }

    /// Removes the last segment, and moves its entries to the segment that was divided for it.
    fn unite(&mut self) {
        if self.segments.len() < 2 {
            return;
        }
        let Some(last) = self.segments.pop() else { return };
        let index = self.segments.len() & (mask(self.segments.len() + 1) >> 1);
        let Some(segment) = self.segments.get_mut(index) else { return };
        let segment = Arc::make_mut(segment);
        for held in Arc::unwrap_or_clone(last).entries {
            segment.push(held);
        }
    }
}

/// Iterator over the entries of a table.
pub(crate) struct Iter<'a, T> {
    segments: slice::Iter<'a, Arc<Segment<T>>>,
    segment: slice::Iter<'a, Hashed<T>>,
    left: usize,
}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Self { segments: self.segments.clone(), segment: self.segment.clone(), left: self.left }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(held) = self.segment.next() {
                self.left = self.left.saturating_sub(1);
                return Some(&held.entry);
            }
            self.segment = self.segments.next()?.entries.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for Iter<'_, T> {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;

    thread_local! {
        /// Number of entries that were copied or hashed again.
        static TOUCHED: Cell<usize> = const { Cell::new(0) };
    }

    #[derive(Debug, PartialEq)]
    struct Pair(String, u32);

    impl Keyed for Pair {
        fn key_bytes(&self) -> &[u8] {
            TOUCHED.set(TOUCHED.get() + 1);
            self.0.as_bytes()
        }
    }

    impl Clone for Pair {
        fn clone(&self) -> Self {
            TOUCHED.set(TOUCHED.get() + 1);
            Self(self.0.clone(), self.1)
        }
    }

    fn content(table: &Table<Pair>) -> BTreeMap<String, u32> {
        let content: BTreeMap<_, _> = table.iter().map(|pair| (pair.0.clone(), pair.1)).collect();
        assert_eq!((content.len(), table.iter().len()), (table.len(), table.len()));
        content
    }

    #[test]
    fn table_equals_a_map_and_clones_do_not_change() {
        let seed = std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("SHIZUKU_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut table, mut model) = (Table::default(), BTreeMap::new());
        let mut clones = Vec::new();
        for step in 0..20_000_u32 {
            // The table grows, becomes empty, and grows again.
            let key = random.u32(..if step / 4000 % 2 == 0 { 2000 } else { 20_000 }).to_string();
            if random.u32(..20_000) < step % 8000 * 2 {
                let removed = table.remove(key.as_bytes()).map(|pair: Pair| pair.1);
                assert_eq!(removed, model.remove(&key));
            } else if random.u8(..4) == 0 {
                assert_eq!(table.get(key.as_bytes()).map(|pair| pair.1), model.get(&key).copied());
                if let Some(pair) = table.get_mut(key.as_bytes()) {
                    pair.1 += 1;
                    *model.get_mut(&key).unwrap() += 1;
                }
            } else {
                let replaced = table.insert(Pair(key.clone(), step)).map(|pair| pair.1);
                assert_eq!(replaced, model.insert(key, step));
            }
            match random.u16(..500) {
                0 => clones.push((table.clone(), model.clone())),
                1 => table.resize(random.usize(..3000)),
                _ => {}
            }
        }
        assert_eq!(content(&table), model);
        for (table, model) in clones {
            assert_eq!(content(&table), model);
        }
        for key in model.keys() {
            assert!(table.remove(key.as_bytes()).is_some());
        }
        assert_eq!((table.len(), table.segments.len()), (0, 1));
    }

    /// The key of the new entry is read twice, to hash it and to search for it.
    #[test]
    fn growing_table_reads_no_key_of_a_stored_entry() {
        let mut table = Table::default();
        for number in 0..20_000 {
            TOUCHED.set(0);
            table.insert(Pair(number.to_string(), 0));
            assert_eq!(TOUCHED.get(), 2, "insertion {number}");
        }
        TOUCHED.set(0);
        table.resize(40_000);
        assert_eq!(TOUCHED.get(), 0);
    }

    /// In a usual table one of these insertions moves all entries, and cloning copies them.
    #[test]
    fn no_call_touches_more_than_a_few_segments() {
        let mut table = Table::default();
        let mut most = 0;
        let mut shared = table.clone();
        for number in 0..20_000 {
            TOUCHED.set(0);
            if number % 1000 == 0 {
                shared = table.clone();
            }
            table.insert(Pair(number.to_string(), 0));
            most = most.max(TOUCHED.get());
        }
        for number in 0..20_000 {
            TOUCHED.set(0);
            assert!(table.remove(number.to_string().as_bytes()).is_some());
            most = most.max(TOUCHED.get());
        }
        assert!(most <= 60 * SEGMENT, "{most}");
        assert!(shared.len() > 18_000);
    }
}
