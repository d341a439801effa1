//! The entries that were read last, so that a get needs no thread of the database (ADR 0115).
//!
//! A cached entry is the newest one of its key, because this process is the only writer. A commit
//! marks the stripes of its keys and drops their entries before it becomes visible. An entry from a
//! snapshot is added only if no commit has marked its stripe since before the snapshot.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::place::ENTRY_CACHE;
use super::tables::StoreId;
use crate::store::{Key, KvEntry, lock};

/// Maximum time for which entries are returned without a check that the file is still at its path.
const UNCHECKED: Duration = Duration::from_millis(100);

/// Number of stripes. A commit of one key keeps few other keys from being added.
const STRIPES: usize = 256;

/// Size in bytes of a cached entry beside its key, its value and its metadata, approximately.
const OVERHEAD: usize = 256;

/// Number of entries for which the cache is laid out. It limits the number of parts of the cache,
/// because each part needs room for a large value.
const EXPECTED: usize = 256;

#[derive(PartialEq, Eq, Hash)]
struct CachedKey(StoreId, Key);

/// A [`CachedKey`] for a lookup.
#[derive(Hash)]
struct Wanted<'a>(StoreId, &'a Key);

impl Equivalent<CachedKey> for Wanted<'_> {
    fn equivalent(&self, key: &CachedKey) -> bool {
        self.0 == key.0 && *self.1 == key.1
    }
}

/// The newest entry of a key as a read has found it. `None` if no entry exists.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) entry: Option<KvEntry>,
    /// Time of the expiry, in nanoseconds since 1970.
    pub(super) due: Option<u64>,
}

#[derive(Clone)]
struct Size;

impl Weighter<CachedKey, Found> for Size {
    fn weight(&self, key: &CachedKey, found: &Found) -> u64 {
        let entry = found.entry.as_ref();
        let metadata = entry.and_then(|entry| entry.metadata.as_deref());
        let texts = metadata.map(|metadata| [metadata.author(), metadata.reason()]);
        let texts = texts.into_iter().flatten().flatten().map(str::len).sum::<usize>();
        let value = entry.map_or(0, |entry| entry.value.len());
        (key.1.len() + value + texts + OVERHEAD) as u64
    }
}

/// The keys that a commit changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    Keys(Vec<(StoreId, Key)>),
    /// A store was deleted, or its settings have changed.
    All,
}

impl Touched {
    pub(super) fn add(&mut self, id: StoreId, key: &Key) {
        if let Self::Keys(keys) = self {
            keys.push((id, key.clone()));
        }
    }
}

/// A part of all keys.
#[derive(Clone, Copy, Default)]
struct Stripe {
    /// Number of times that keys were about to change.
    changes: u64,
    /// Whether a commit of keys may be visible to some readers only.
    is_changing: bool,
}

/// The state of a stripe before a read began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    stripe: usize,
    changes: u64,
}

/// A cache of newest entries, bounded in bytes.
pub(super) struct EntryCache {
    entries: Cache<CachedKey, Found, Size>,
    stripes: Vec<Mutex<Stripe>>,
    hashes: RandomState,
    began: Instant,
    /// Time until which entries are returned, in nanoseconds since `began`.
    valid: AtomicU64,
}

impl EntryCache {
    pub(super) fn new() -> Self {
        Self {
            entries: Cache::with_weighter(EXPECTED, ENTRY_CACHE as u64, Size),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hashes: RandomState::new(),
            began: Instant::now(),
            valid: AtomicU64::new(0),
        }
    }

    fn since_begin(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes that the file was at its path at this time or later.
    pub(super) fn confirm(&self, at: Instant) {
        self.valid.fetch_max(self.since_begin(at + UNCHECKED), Ordering::Relaxed);
    }

    /// Returns the newest entry of a key, if it is cached and has not expired. `now` returns the
    /// nanoseconds since 1970.
    pub(super) fn get(
        &self,
        (id, key): (StoreId, &Key),
        at: Instant,
        now: impl FnOnce() -> u64,
    ) -> Option<Option<KvEntry>> {
        if self.since_begin(at) >= self.valid.load(Ordering::Relaxed) {
            return None;
        }
        let found = self.entries.get(&Wanted(id, key))?;
        match found.due {
            Some(due) if due <= now() => None,
            _ => Some(found.entry),
        }
    }

    fn stripe(&self, id: StoreId, key: &Key) -> usize {
        let hash = self.hashes.hash_one(Wanted(id, key));
        usize::try_from(hash % STRIPES as u64).unwrap_or_default()
    }

    fn with<T>(&self, stripe: usize, work: impl FnOnce(&mut Stripe) -> T) -> Option<T> {
        self.stripes.get(stripe).map(|stripe| work(&mut lock(stripe)))
    }

    /// Begins a read whose result is to be [added](Self::add). Returns `None` while a commit may
    /// change the key.
    pub(super) fn before(&self, id: StoreId, key: &Key) -> Option<Before> {
        let stripe = self.stripe(id, key);
        self.with(stripe, |found| {
            (!found.is_changing).then_some(Before { stripe, changes: found.changes })
        })?
    }

    /// Adds the result of a read, unless its key may have changed since the read began.
    pub(super) fn add(&self, before: Before, id: StoreId, key: Key, found: Found) {
        // An expired entry that is hidden can be live again, if the clock is set back.
        if found.entry.is_none() && found.due.is_some() {
            return;
        }
        self.with(before.stripe, |stripe| {
            // Within the lock, so that no change begins in between.
            if stripe.changes == before.changes {
                self.entries.insert(CachedKey(id, key), found);
            }
        });
    }

    /// Drops the entries of keys, which are about to change. No other ones are added until
    /// [`end`](Self::end).
    pub(super) fn begin(&self, touched: &Touched) {
        self.mark(touched, |stripe| {
            stripe.changes += 1;
            stripe.is_changing = true;
        });
        match touched {
            Touched::Keys(keys) => {
                for (id, key) in keys {
                    self.entries.remove(&Wanted(*id, key));
                }
            }
            Touched::All => self.entries.clear(),
        }
    }

    /// Notes that the commit of these keys is visible to all readers.
    pub(super) fn end(&self, touched: &Touched) {
        self.mark(touched, |stripe| stripe.is_changing = false);
    }

    /// Drops all entries, because the database was closed. Another process may change it now.
    pub(super) fn clear(&self) {
        self.mark(&Touched::All, |stripe| {
            stripe.changes += 1;
            stripe.is_changing = false;
        });
        self.entries.clear();
    }

    fn mark(&self, touched: &Touched, change: fn(&mut Stripe)) {
        let mark = |stripe: usize| {
            self.with(stripe, change);
        };
        match touched {
            Touched::Keys(keys) => keys.iter().for_each(|(id, key)| mark(self.stripe(*id, key))),
            Touched::All => (0..STRIPES).for_each(mark),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;
    use crate::backend::file::FileConnection;
    use crate::store::{Connection, Deadline, VersionToken};

    const ID: StoreId = StoreId(1);

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    fn found(value: Vec<u8>, due: Option<u64>) -> Found {
        let version = VersionToken::from_u64(1);
        let entry = KvEntry::put(key("key"), Bytes::from(value), version, SystemTime::UNIX_EPOCH);
        Found { entry: Some(entry), due }
    }

    /// Returns a cache whose entries are valid during the test.
    fn cache() -> EntryCache {
        let cache = EntryCache::new();
        cache.confirm(cache.began + Duration::from_secs(3600));
        cache
    }

    fn is_cached(cache: &EntryCache, name: &str) -> bool {
        cache.get((ID, &key(name)), cache.began, || 0).is_some()
    }

    fn add(cache: &EntryCache, before: Option<Before>, name: &str) -> bool {
        if let Some(before) = before {
            cache.add(before, ID, key(name), found(vec![1], None));
        }
        is_cached(cache, name)
    }

    /// A snapshot that began before a commit became visible may have the superseded entry.
    #[test]
    fn entry_of_an_older_snapshot_is_not_added() {
        for touched in [Touched::Keys(vec![(ID, key("key"))]), Touched::All] {
            let cache = cache();
            let before = cache.before(ID, &key("key"));
            assert!(add(&cache, before, "key"));
            cache.begin(&touched);
            assert!(!is_cached(&cache, "key"));
            assert!(!add(&cache, before, "key"));
            let during = cache.before(ID, &key("key"));
            assert!(!add(&cache, during, "key"));
            cache.end(&touched);
            assert!(!add(&cache, before, "key") && !add(&cache, during, "key"));
            assert!(add(&cache, cache.before(ID, &key("key")), "key"));
        }
    }

    #[test]
    fn entry_is_not_added_after_a_failed_commit() {
        let cache = cache();
        let touched = Touched::Keys(vec![(ID, key("key"))]);
        let before = cache.before(ID, &key("key"));
        assert!(add(&cache, cache.before(ID, &key("other")), "other"));
        cache.begin(&touched);
        cache.clear();
        assert!(!is_cached(&cache, "other") && !add(&cache, before, "key"));
        assert!(add(&cache, cache.before(ID, &key("key")), "key"));
    }

    #[test]
    fn expired_entry_is_not_returned() {
        let cache = cache();
        let (key, before) = (key("key"), cache.before(ID, &key("key")).unwrap());
        cache.add(before, ID, key.clone(), found(vec![1], Some(10)));
        assert!(cache.get((ID, &key), cache.began, || 9).is_some());
        assert!(cache.get((ID, &key), cache.began, || 10).is_none());
        // A hidden entry is not the same as an absent one.
        cache.clear();
        let before = cache.before(ID, &key).unwrap();
        cache.add(before, ID, key.clone(), Found { entry: None, due: Some(10) });
        assert!(cache.get((ID, &key), cache.began, || 9).is_none());
        cache.add(before, ID, key.clone(), Found { entry: None, due: None });
        assert!(cache.get((ID, &key), cache.began, || 9).unwrap().is_none());
    }

    #[test]
    fn entry_is_not_returned_without_a_check_of_the_file() {
        let cache = EntryCache::new();
        let (key, before) = (key("key"), cache.before(ID, &key("key")).unwrap());
        cache.add(before, ID, key.clone(), found(vec![1], None));
        assert!(cache.get((ID, &key), cache.began, || 0).is_none());
        cache.confirm(cache.began);
        let at = |after| cache.get((ID, &key), cache.began + after, || 0);
        assert!(at(UNCHECKED - Duration::from_millis(1)).is_some());
        assert!(at(UNCHECKED).is_none());
    }

    #[test]
    fn entries_are_bounded_in_bytes() {
        let cache = cache();
        for number in 0..40_000_u32 {
            let key = key(&format!("key.{number}"));
            let before = cache.before(ID, &key).unwrap();
            let len = if number % 100 == 0 { 500_000 } else { 1000 };
            let absent = Found { entry: None, due: None };
            let entry = if number % 2 == 0 { found(vec![1; len], None) } else { absent };
            cache.add(before, ID, key, entry);
        }
        let weight = cache.entries.weight();
        assert!((ENTRY_CACHE as u64 / 2..=ENTRY_CACHE as u64).contains(&weight), "{weight}");
    }

    /// No read transaction can begin meanwhile.
    #[tokio::test]
    async fn repeated_get_needs_no_thread() {
        for options in ["", "?exclusive=true"] {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("file:{}/data{options}", folder.path().display());
            let connection = FileConnection::open(&url).await.unwrap();
            let store = connection.store("config").await.unwrap();
            store.put("key", "value").await.unwrap();
            for key in ["key", "absent"] {
                store.get(key).await.unwrap();
            }
            let shared = connection.0.engine.shared();
            shared.cache.as_ref().unwrap().confirm(Instant::now() + Duration::from_secs(3600));
            let _held = shared.exclusively();
            // The first get may be the last one of a turn, after which the task has to yield.
            let get = |key| store.get(key).now_or_never().or_else(|| store.get(key).now_or_never());
            let present = get("key").unwrap().unwrap();
            assert!(present.is_some_and(|entry| entry.value == "value"));
            assert!(get("absent").unwrap().unwrap().is_none());
        }
    }

    /// A loop of gets that never wait would otherwise keep its thread for itself.
    #[test]
    fn repeated_gets_let_other_tasks_run() {
        let (ended, watchdog) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("file:{}/data", folder.path().display());
                let connection = FileConnection::open(&url).await.unwrap();
                let store = connection.store("config").await.unwrap();
                store.get("key").await.unwrap();
                let shared = connection.0.engine.shared();
                shared.cache.as_ref().unwrap().confirm(Instant::now() + Duration::from_secs(3600));
                let gets = async {
                    loop {
                        store.get("key").await.unwrap();
                    }
                };
                let ended: Result<(), _> = tokio::time::timeout(UNCHECKED, gets).await;
                ended.unwrap_err();
            });
            ended.send(()).unwrap();
        });
        watchdog.recv_timeout(Deadline::DEFAULT * 10).unwrap();
    }

    /// The lock of the file is free until the database is opened again.
    #[tokio::test]
    async fn write_of_another_process_after_a_failure_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file:{}", folder.path().join("data").display());
        let connection = FileConnection::open(&url).await.unwrap();
        let store = connection.store("config").await.unwrap();
        store.put("key", "old").await.unwrap();
        assert!(store.get("key").await.unwrap().is_some_and(|entry| entry.value == "old"));
        let shared = connection.0.engine.shared();
        shared.cache.as_ref().unwrap().confirm(Instant::now() + Duration::from_secs(3600));
        shared.interrupt();
        let other = FileConnection::open(&url).await.unwrap();
        other.store("config").await.unwrap().put("key", "new").await.unwrap();
        other.shutdown().await.unwrap();
        let watched = shared.changes.subscribe(StoreId::FIRST);
        assert!(store.get("key").await.unwrap().is_some_and(|entry| entry.value == "new"));
        assert!(watched.has_changed().unwrap());
    }
}
