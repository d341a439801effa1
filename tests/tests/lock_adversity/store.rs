//! A store as one process reaches it, which applies the faults that a test has planned.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream;
use shizuku_kv::{
    Atomicity, ConnectionCapabilities, Deadline, Key, KvEntry, KvFenced, KvReader, KvResult,
    KvStore, KvStream, KvUpdate, KvWatcher, KvWriter, Store, VersionToken, Watch, WatchCursor,
    WatchScope, Write, WriteCondition,
};
use tokio::time::sleep;

use crate::faults::{Fate, Faults, Kind, other_version, unknown};

/// Time for which a process waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_millis(300);

/// Deadline of late writes, which arrive whatever happened to their sender.
const LONG: Duration = Duration::from_secs(60);

/// The layer between a process and the store.
pub(crate) struct FaultyStore {
    /// The original store, for properties that do not change.
    first: Arc<dyn KvStore>,
    now: Mutex<Arc<dyn KvStore>>,
    late: Mutex<Vec<(Key, Write)>>,
    faults: Arc<Faults>,
}

impl FaultyStore {
    pub(crate) fn over(store: &Store, faults: &Arc<Faults>) -> Arc<Self> {
        let inner = store.backend();
        Arc::new(Self {
            first: Arc::clone(inner),
            now: Mutex::new(Arc::clone(inner)),
            late: Mutex::default(),
            faults: Arc::clone(faults),
        })
    }

    /// Replaces the store by the recreated one of the same name.
    pub(crate) fn switch_to(&self, store: &Store) {
        *self.now.lock().unwrap() = Arc::clone(store.backend());
    }

    /// Lets the writes in transit arrive, and returns their results.
    pub(crate) async fn arrive(&self) -> Vec<KvResult<VersionToken>> {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        let mut results = Vec::new();
        for (key, write) in late {
            results.push(self.apply(&key, write, Deadline::after(LONG)).await);
        }
        results
    }

    fn inner(&self) -> Arc<dyn KvStore> {
        Arc::clone(&self.now.lock().unwrap())
    }

    async fn send(&self, key: &Key, write: Write, deadline: Deadline) -> KvResult<VersionToken> {
        let operation = write.name();
        self.faults.called();
        self.faults.sent().await;
        let Some(fate) = self.faults.fate(Kind::of(operation, key)).await else {
            return self.apply(key, write, deadline).await;
        };
        match fate {
            Fate::Rejected(error) => return Err(error),
            Fate::Panics => panic!("a backend panics, as it was told to"),
            Fate::Slow(by) => {
                let result = self.apply(key, write, deadline).await;
                if by < deadline.remaining() {
                    sleep(by).await;
                    return result;
                }
                sleep(deadline.remaining()).await;
                return Err(unknown(operation, key));
            }
            Fate::Lost => {}
            Fate::Unanswered => drop(self.apply(key, write, deadline).await?),
            Fate::Late => self.late.lock().unwrap().push((key.clone(), write)),
        }
        sleep(PATIENCE.min(deadline.remaining())).await;
        Err(unknown(operation, key))
    }

    async fn apply(
        &self,
        key: &Key,
        mut write: Write,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let inner = self.inner();
        let writer = inner.writer().expect("it can be written");
        match write.condition {
            WriteCondition::Exactly(expected) if self.faults.is_lost(key) => {
                return Err(other_version(key, expected));
            }
            // The lost entry no longer exists.
            WriteCondition::Any | WriteCondition::Absent
                if !write.is_deletion() && self.faults.find_key(key) =>
            {
                write.condition = WriteCondition::Any;
            }
            _ => {}
        }
        writer.write(key, write, deadline).await
    }

    async fn read(&self, key: &Key, deadline: Deadline) -> KvResult<Option<KvEntry>> {
        self.faults.called();
        self.faults.sent().await;
        let found = match self.faults.finding(key).await {
            Some(found) => found,
            None => self.inner().entry(key, deadline).await,
        };
        Ok(found?.map(|entry| self.faults.dated(entry)))
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").finish_non_exhaustive()
    }
}

impl KvStore for FaultyStore {
    fn name(&self) -> &str {
        self.first.name()
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        self.first.capabilities()
    }

    fn max_value_size(&self) -> usize {
        self.first.max_value_size()
    }

    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move { self.inner().refresh(deadline).await })
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        self.inner().incarnation()
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        Some(self)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        Some(self)
    }

    /// No lock here writes with tokens. The ability only shows that the store forgets no entry.
    fn fenced(&self) -> Option<&dyn KvFenced> {
        self.first.fenced()
    }
}

impl KvReader for FaultyStore {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(self.read(key, deadline))
    }

    /// A leader may have been replaced too, and not know it yet.
    fn leader_entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(self.read(key, deadline))
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        Box::pin(async move {
            self.faults.called();
            self.faults.sent().await;
            let entries = self.inner().entries(keys, deadline).await?;
            let found = |entry: Option<KvEntry>| {
                entry
                    .filter(|entry| !self.faults.is_lost(&entry.key))
                    .map(|entry| self.faults.dated(entry))
            };
            Ok(entries.into_iter().map(found).collect())
        })
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        self.inner().history(key, deadline)
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        self.inner().scan(scope, deadline)
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        self.inner().keys(scope, deadline)
    }
}

impl KvWriter for FaultyStore {
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.send(key, write, deadline))
    }

    fn write_many<'a>(
        &'a self,
        writes: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        self.first.writer().expect("it can be written").write_many(writes, atomicity, deadline)
    }
}

impl KvWatcher for FaultyStore {
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        Box::pin(async move {
            self.faults.sent().await;
            self.faults.watching().await?;
            let store = self.inner();
            let inner =
                store.watcher().expect("it can be watched").watch(scope, from, deadline).await?;
            let watching = Watching { inner, faults: Arc::clone(&self.faults) };
            Ok(Watch::new(stream::unfold(watching, |mut watching| async move {
                Some((watching.next().await?, watching))
            })))
        })
    }
}

/// A watch that delivers nothing to a crashed process, and nothing about lost keys.
struct Watching {
    inner: Watch,
    faults: Arc<Faults>,
}

impl Watching {
    async fn next(&mut self) -> Option<KvResult<(KvUpdate, WatchCursor)>> {
        loop {
            let update = self.inner.next().await?;
            self.faults.sent().await;
            self.faults.heard().await;
            let entry = update.as_ref().ok().and_then(KvUpdate::entry);
            if entry.is_some_and(|entry| self.faults.is_lost(&entry.key)) {
                continue;
            }
            let nowhere = WatchCursor::new([0; 16], 0, SystemTime::UNIX_EPOCH);
            let cursor = self.inner.cursor().unwrap_or(nowhere);
            let dated = |update: KvUpdate| match update.entry() {
                Some(entry) => KvUpdate::from(self.faults.dated(entry.clone())),
                None => update,
            };
            return Some(update.map(|update| (dated(update), cursor)));
        }
    }
}
