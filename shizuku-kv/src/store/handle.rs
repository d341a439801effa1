//! The handle that users hold.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::handle_fenced::StoreFenced;
use super::handle_ttl::StoreTtl;
use super::shared::{Attached, Shared, Upkeep, User};
use super::timer::timeout_at;
use super::{
    COMPARE_EVERY, ConnectionCapabilities, Deadline, IntoKey, Key, KvEntry, KvError, KvResult,
    KvStore, KvStream, KvWatcher, KvWriter, StoreFigures, VersionToken, Watch, WatchCursor,
    WatchScope, in_runtime,
};

/// What a write may overrun its deadline by: the backend uses the deadline to the end to find out what became of the
/// write, and this much later the handle stops waiting for the answer.
const WRITE_GRACE: Duration = Duration::from_millis(250);

/// How many writes of a `put_many` a backend is expected to have on their way at a time, for the time that the whole may
/// take.
const PUTS_IN_FLIGHT: usize = 1024;

/// One store (bucket): a handle that is cheap to clone and the same on every backend.
///
/// Keys are anything that is [`IntoKey`]: a [`Key`], or a string, which is checked before anything
/// is sent. Values are anything that becomes [`Bytes`]. Every operation has a deadline, 5 seconds
/// unless [set](crate::StoreConfig::deadline). It runs on tokio's clock, so every operation needs a
/// tokio runtime with its timer and returns [`KvError::NoRuntime`] outside of one. A store on NATS
/// also needs the runtime that opened its connection.
///
/// Dropping the future of a read is safe. A write whose future is dropped may have happened or not; nothing else is
/// left behind.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), shizuku_kv::KvError> {
/// let connection = shizuku_kv::connect("memory:").await?;
/// let store = connection.store("config").await?;
///
/// let first = store.create("greeting", "hello").await?;
/// let second = store.update("greeting", "good morning", first).await?;
/// let lost = store.update("greeting", "good evening", first).await.unwrap_err();
/// assert!(lost.is_conflict());
/// assert_eq!(store.get("greeting").await?.unwrap().version, second);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn KvStore>,
    deadline: Duration,
    compare_every: Duration,
    pub(super) shared: Arc<Shared>,
    /// Counts the handles of users. `None` in the handle of a background task.
    _user: Option<Arc<User>>,
}

impl Store {
    /// A handle over a backend's store; for authors of backends.
    pub fn new(backend: Arc<dyn KvStore>, deadline: Duration) -> Self {
        let shared = Arc::<Shared>::default();
        let _user = Some(Arc::new(User::of(&shared)));
        Self { backend, deadline, compare_every: COMPARE_EVERY, shared, _user }
    }

    /// Returns a handle for a background task, which ends when the users of the store have dropped theirs.
    pub(crate) fn of_task(&self) -> Self {
        Self { _user: None, ..self.clone() }
    }

    /// Waits until users have dropped the last clone of this handle.
    pub(crate) async fn abandoned(&self) {
        self.shared.abandoned().await;
    }

    /// The store's name.
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// Refreshes the store's settings, which another client may have changed.
    /// [`capabilities`](Self::capabilities), [`max_value_size`](Self::max_value_size),
    /// [`ttl`](Self::ttl) and [`fenced`](Self::fenced) use the newest ones from then on.
    ///
    /// Operations do not need it: each reads the settings itself if a promise depends on them.
    /// Cancel safe.
    ///
    /// # Errors
    /// Returns [`KvError::StoreNotFound`] if the store is gone; [`KvError::Timeout`] and
    /// [`KvError::Unavailable`] if the store does not answer.
    pub async fn refresh(&self) -> KvResult<()> {
        let deadline = self.deadline_of("refresh", None)?;
        deadline.bound("refresh", None, self.backend.refresh(deadline)).await
    }

    /// The store's abilities, by the newest known settings: see [`refresh`](Self::refresh).
    pub fn capabilities(&self) -> ConnectionCapabilities {
        self.backend.capabilities()
    }

    /// Maximum size of a value in bytes, by the newest known settings.
    pub fn max_value_size(&self) -> usize {
        self.backend.max_value_size()
    }

    /// The deadline of each operation.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The same store with another deadline for each operation. One of zero has passed already: every operation
    /// answers [`KvError::Timeout`], and nothing is sent.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Returns a handle with this interval between comparisons of its live values, live maps and
    /// replicas with the store: 60 s by default, at least 1 s. A comparison finds entries that left
    /// the store without a message: evicted, purged by an operator, or lost by a server that came
    /// back older.
    #[must_use]
    pub fn with_comparison(&self, interval: Duration) -> Self {
        Self { compare_every: interval.max(Duration::from_secs(1)), ..self.clone() }
    }

    /// Interval between two comparisons of a follower with the store.
    pub(crate) fn compare_every(&self) -> Duration {
        self.compare_every
    }

    /// The upkeep of live values on this runtime.
    pub(crate) fn upkeep(&self) -> Arc<Upkeep> {
        self.shared.upkeep(&self.backend, self.compare_every)
    }

    /// The backend behind the handle; for what wraps a store.
    pub fn backend(&self) -> &Arc<dyn KvStore> {
        &self.backend
    }

    /// The value of a key; `None` where it is absent: never written, deleted, purged or expired.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`], Returns [`KvError::StoreNotFound`] if the store is gone;
    /// [`KvError::Timeout`] and [`KvError::Unavailable`] if the store does not answer.
    pub async fn get(&self, key: impl IntoKey) -> KvResult<Option<KvEntry>> {
        Ok(self.read("get", key.into_key()?).await?.filter(|entry| !entry.is_tombstone()))
    }

    /// The newest entry of a key, a tombstone included; `None` where there is none.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn entry(&self, key: impl IntoKey) -> KvResult<Option<KvEntry>> {
        self.read("entry", key.into_key()?).await
    }

    /// The newest entry of a key, from the replica that decides writes.
    pub(crate) async fn leader_entry(&self, key: &Key) -> KvResult<Option<KvEntry>> {
        let deadline = self.deadline_of("entry", Some(key))?;
        deadline.bound("entry", Some(key), self.backend.leader_entry(key, deadline)).await
    }

    /// Returns figures of a scope, by which a follower notices that entries have left the store
    /// without a message.
    pub(crate) async fn figures(&self, scope: &WatchScope) -> KvResult<StoreFigures> {
        let deadline = self.deadline_of("figures", None)?;
        deadline.bound("figures", None, self.backend.figures(scope, deadline)).await
    }

    /// Returns the time of the store's clock; `None` if the backend does not know it.
    pub(crate) async fn time(&self) -> KvResult<Option<SystemTime>> {
        let deadline = self.deadline_of("time", None)?;
        deadline.bound("time", None, self.backend.time(deadline)).await
    }

    async fn read(&self, operation: &'static str, key: Key) -> KvResult<Option<KvEntry>> {
        let deadline = self.deadline_of(operation, Some(&key))?;
        deadline.bound(operation, Some(&key), self.backend.entry(&key, deadline)).await
    }

    /// The values of many keys, in the order of the keys; `None` for each that is absent. They may be of different
    /// moments. The deadline is that of the whole.
    ///
    /// # Errors
    /// As for [`get`](Self::get); one error is the error of the whole.
    pub async fn get_many<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> KvResult<Vec<Option<KvEntry>>> {
        let keys = keys.into_iter().map(K::into_key).collect::<KvResult<Vec<_>>>()?;
        let mut entries = self.entries(&keys).await?;
        for entry in &mut entries {
            entry.take_if(|entry| entry.is_tombstone());
        }
        Ok(entries)
    }

    /// Reads the newest entries of many keys, tombstones included, in the order of the keys.
    pub(crate) async fn entries(&self, keys: &[Key]) -> KvResult<Vec<Option<KvEntry>>> {
        let deadline = self.deadline_of("get_many", None)?;
        deadline.bound("get_many", None, self.backend.entries(keys, deadline)).await
    }

    /// What the store holds of a key, the oldest first, tombstones included: at most as many entries as the store
    /// keeps versions. The deadline is that of the whole, from this call on.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] here; as items, those of [`get`](Self::get).
    pub fn history(&self, key: impl IntoKey) -> KvResult<KvStream<KvEntry>> {
        let key = key.into_key()?;
        Ok(match self.deadline_of("history", Some(&key)) {
            Ok(deadline) => {
                let items = self.backend.history(key.clone(), deadline);
                items.bounded("history", Some(key), move || deadline)
            }
            Err(passed) => KvStream::error(passed),
        })
    }

    /// The live entries in scope, in no particular order. Every key that lives throughout the scan appears exactly
    /// once, with a value that it had at some time during the scan. The deadline is that of each item.
    pub fn scan(&self, scope: impl Into<WatchScope>) -> KvStream<KvEntry> {
        self.items("scan", || self.backend.scan(scope.into(), self.deadline))
    }

    /// The live keys in scope, in no particular order, each exactly once as for [`scan`](Self::scan). The deadline is
    /// that of each item.
    pub fn keys(&self, scope: impl Into<WatchScope>) -> KvStream<Key> {
        self.items("keys", || self.backend.keys(scope.into(), self.deadline))
    }

    /// A stream of the backend, of which each item has the deadline.
    fn items<T: Send + 'static>(
        &self,
        operation: &'static str,
        open: impl FnOnce() -> KvStream<T>,
    ) -> KvStream<T> {
        let limit = self.deadline;
        match self.deadline_of(operation, None) {
            Ok(_) => open().bounded(operation, None, move || Deadline::after(limit)),
            Err(passed) => KvStream::error(passed),
        }
    }

    /// Stores a value, whatever was there, and returns the key's new version.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] and [`KvError::ValueTooLarge`] before the value is sent;
    /// [`KvError::Timeout`] and [`KvError::Unavailable`] if it was not written;
    /// [`KvError::OutcomeUnknown`] if that cannot be known; [`KvError::StoreFull`] if the store has
    /// no room; [`KvError::StoreNotFound`] if the store is gone; [`KvError::Unsupported`] on a
    /// read-only store.
    pub async fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> KvResult<VersionToken> {
        let (key, value) = self.key_and_value(key, value).await?;
        let (writer, deadline) = self.writer("put", &key)?;
        self.finish("put", &key, deadline, writer.put(&key, value, deadline)).await
    }

    /// Stores a value where the key is absent (never written, deleted, purged or expired), and returns its version.
    ///
    /// # Errors
    /// [`KvError::AlreadyExists`] over a live value; else as for [`put`](Self::put).
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.key_and_value(key, value).await?;
        let (writer, deadline) = self.writer("create", &key)?;
        self.finish("create", &key, deadline, writer.create(&key, value, deadline)).await
    }

    /// Compare-and-swap: stores a value where the key's newest entry has the version `expected`, and returns the new
    /// version. A deletion is an entry with a version of its own: a value that was deleted since is not replaced, and
    /// the version of the tombstone itself (from [`entry`](Self::entry) or [`delete`](Self::delete)) matches.
    ///
    /// # Errors
    /// [`KvError::RevisionMismatch`] where the newest entry has another version or there is none; else as for
    /// [`put`](Self::put).
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.key_and_value(key, value).await?;
        let (writer, deadline) = self.writer("update", &key)?;
        self.finish("update", &key, deadline, writer.update(&key, value, expected, deadline)).await
    }

    /// Deletes a key, whatever it has, and returns the version of the tombstone. Deleting an absent key succeeds.
    ///
    /// The tombstone stays, so that watches and cursors learn of the deletion: for ever, or for an
    /// hour in a store with [`key_ttl`](crate::StoreConfig::key_ttl()) or
    /// [`max_age`](crate::StoreConfig::max_age()), and no longer than that age. Its end is not
    /// delivered to watches, and brings no older value back.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, key: impl IntoKey) -> KvResult<VersionToken> {
        let key = key.into_key()?;
        let (writer, deadline) = self.writer("delete", &key)?;
        self.finish("delete", &key, deadline, writer.delete(&key, deadline)).await
    }

    /// Compare-and-delete: deletes a key where it has the version `expected`.
    ///
    /// # Errors
    /// [`KvError::RevisionMismatch`] where it has another; else as for [`put`](Self::put).
    pub async fn delete_with_version(
        &self,
        key: impl IntoKey,
        expected: VersionToken,
    ) -> KvResult<VersionToken> {
        let key = key.into_key()?;
        let (writer, deadline) = self.writer("delete_with_version", &key)?;
        let write = writer.delete_with_version(&key, expected, deadline);
        self.finish("delete_with_version", &key, deadline, write).await
    }

    /// Deletes a key and what the store holds of its history, and returns the version of the tombstone.
    ///
    /// In a store with a history of 1 whose tombstones have an end, this is
    /// [`delete`](Self::delete), and leaves the tombstone of a deletion.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn purge(&self, key: impl IntoKey) -> KvResult<VersionToken> {
        let key = key.into_key()?;
        let (writer, deadline) = self.writer("purge", &key)?;
        self.finish("purge", &key, deadline, writer.purge(&key, deadline)).await
    }

    /// Stores many values, pipelined, and answers for each in the order given. Each is a write of its own: some can
    /// succeed while others fail. Writes of one key take effect in the order given. Each has its own deadline, from
    /// the moment that it is sent, and a thousand or so are on their way at a time.
    ///
    /// The whole is not waited for longer than the deadline for each 1,024 items or part of them, and once more; a
    /// backend that has not answered by then leaves every item [`KvError::OutcomeUnknown`].
    pub async fn put_many<K: IntoKey, V: Into<Bytes>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<KvResult<VersionToken>> {
        let items: Vec<_> = items
            .into_iter()
            .map(|(key, value)| key.into_key().map(|key| (key, value.into())))
            .collect();
        let largest = items.iter().flatten().map(|(_, value): &(Key, Bytes)| value.len()).max();
        self.learn_limit_for(largest.unwrap_or(0)).await;
        // What is refused here keeps its place in the answer.
        let mut answers = Vec::new();
        let mut accepted = Vec::new();
        for item in items {
            match item.and_then(|(key, value)| self.fitting(key, value)) {
                Ok(item) => {
                    accepted.push(item);
                    answers.push(None);
                }
                Err(error) => answers.push(Some(Err(error))),
            }
        }
        let mut written = self.put_accepted(accepted).await.into_iter();
        answers
            .into_iter()
            .map(|answer| {
                answer.or_else(|| written.next()).unwrap_or_else(|| {
                    Err(KvError::Backend {
                        operation: "put_many",
                        reason: "the backend answered for fewer items than it was given".to_owned(),
                        source: None,
                    })
                })
            })
            .collect()
    }

    /// Watches a scope: first the current value of every key in it, then [`KvUpdate::CaughtUp`], then every change.
    ///
    /// A watch is state sync, not an event log: per key, versions never go back and the last one always arrives, but
    /// values that were superseded before they could be delivered may be skipped. Nothing arrives twice. Deletion,
    /// purge and expiry arrive; tombstones that the store still holds may be part of the state. A watch heals itself
    /// after faults and holds a bounded amount of memory: a slow reader slows its source.
    ///
    /// [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp
    ///
    /// # Errors
    /// [`KvError::Unsupported`], Returns [`KvError::StoreNotFound`] if the store is gone;
    /// [`KvError::Timeout`] and [`KvError::Unavailable`] if the store does not answer.
    pub async fn watch(&self, scope: impl Into<WatchScope>) -> KvResult<Watch> {
        self.start_watch(scope.into(), None).await
    }

    /// Watches a scope from a cursor on: what came after it, then [`KvUpdate::CaughtUp`], then every change.
    ///
    /// Use the scope of the watch that the cursor is from. Of keys outside it only what changed after the cursor
    /// arrives.
    ///
    /// A cursor is honoured if nothing that followed it can have been forgotten: by the age of the
    /// store's tombstones now, and, as far as it is known, before. Tombstones that are removed by
    /// hand cannot be known of: on NATS, by `PurgeDeletes`, by a purge with a time to live
    /// (`PurgeTTL`) of another client, or by an operator; nor can a maximum age that another client
    /// has set and removed again while no handle looked. Such a deletion is skipped. Values that an
    /// operator or another client purges from the server's stream leave no tombstone, and are
    /// skipped too: a reader that kept them keeps them. A [replica](crate::watch_applied) that
    /// compares itself with the store finds both.
    ///
    /// [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp
    ///
    /// # Errors
    /// [`KvError::CursorExpired`] where something that followed the cursor may be missing from the store; else as for
    /// [`watch`](Self::watch).
    pub async fn watch_from(
        &self,
        scope: impl Into<WatchScope>,
        cursor: WatchCursor,
    ) -> KvResult<Watch> {
        self.start_watch(scope.into(), Some(cursor)).await
    }

    async fn start_watch(&self, scope: WatchScope, from: Option<WatchCursor>) -> KvResult<Watch> {
        let watcher: &dyn KvWatcher =
            self.backend.watcher().ok_or_else(|| self.unsupported("watch", "cannot be watched"))?;
        let deadline = self.deadline_of("watch", None)?;
        deadline.bound("watch", None, watcher.watch(scope, from, deadline)).await
    }

    /// A watch that others of the same handle and its clones can have a part in: they read one stream of the server's
    /// together. A slow reader does not slow its source then, but finds the newest of each key.
    pub(crate) async fn shared_watch(&self, scope: WatchScope) -> KvResult<Watch> {
        let deadline = self.deadline_of("watch", None)?;
        self.shared.watch(&self.backend, scope, deadline).await
    }

    /// What a layer above keeps for this handle and its clones.
    pub(crate) fn attached<T: Attached>(&self) -> Arc<T> {
        self.shared.attached()
    }

    /// Times to live of single keys; `None` where the store does not have them (see
    /// [`StoreConfig::key_ttl`](crate::StoreConfig::key_ttl)).
    pub fn ttl(&self) -> Option<StoreTtl<'_>> {
        self.backend.ttl().map(|ttl| StoreTtl::new(self, ttl))
    }

    /// Writing under a lock, so that a holder whose lease has ended does no harm; `None` where the store does not have
    /// it. Stores whose values expire with age do not: what they remember of tokens would expire too.
    pub fn fenced(&self) -> Option<StoreFenced<'_>> {
        self.backend.fenced().map(|fenced| StoreFenced::new(self, fenced))
    }

    pub(super) async fn key_and_value(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
    ) -> KvResult<(Key, Bytes)> {
        let (key, value) = (key.into_key()?, value.into());
        self.learn_limit_for(value.len()).await;
        self.fitting(key, value)
    }

    /// Refreshes the store's limit if a value exceeds it, because another client may have raised
    /// it.
    async fn learn_limit_for(&self, size: usize) {
        if size > self.backend.max_value_size() && !self.deadline.is_zero() {
            // Without an answer, the known limit counts.
            let _ = self.refresh().await;
        }
    }

    fn fitting(&self, key: Key, value: Bytes) -> KvResult<(Key, Bytes)> {
        let limit = self.backend.max_value_size();
        if value.len() > limit {
            return Err(KvError::ValueTooLarge { key, size: value.len(), limit });
        }
        Ok((key, value))
    }

    /// Writes what was checked, and waits for it no longer than a backend can need that keeps the deadline of each.
    async fn put_accepted(&self, items: Vec<(Key, Bytes)>) -> Vec<KvResult<VersionToken>> {
        let operation = "put_many";
        let keys: Vec<Key> = items.iter().map(|(key, _)| key.clone()).collect();
        let writer = match self.backend.writer() {
            Some(_) if self.deadline.is_zero() => {
                let timeout =
                    |key: &Key| Err(Deadline::after(self.deadline).timeout(operation, Some(key)));
                return keys.iter().map(timeout).collect();
            }
            Some(writer) => writer,
            None => {
                let error = self.unsupported(operation, "is read-only");
                return keys.iter().map(|_| Err(error.clone())).collect();
            }
        };
        if let Err(error) = in_runtime(operation) {
            return keys.iter().map(|_| Err(error.clone())).collect();
        }
        let turns = u32::try_from(keys.len().div_ceil(PUTS_IN_FLIGHT))
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let latest = Deadline::after(self.deadline.saturating_mul(turns)).instant_and(WRITE_GRACE);
        match timeout_at(latest, writer.put_many(items, self.deadline)).await {
            Some(answers) => answers,
            None => keys
                .into_iter()
                .map(|key| Err(KvError::OutcomeUnknown { operation, key, source: None }))
                .collect(),
        }
    }

    fn writer(&self, operation: &'static str, key: &Key) -> KvResult<(&dyn KvWriter, Deadline)> {
        match self.backend.writer() {
            Some(writer) => Ok((writer, self.deadline_of(operation, Some(key))?)),
            None => Err(self.unsupported(operation, "is read-only")),
        }
    }

    /// The deadline of an operation that begins now.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`] if the deadline is zero, on every backend alike, and
    /// [`KvError::NoRuntime`] outside of a tokio runtime.
    pub(super) fn deadline_of(
        &self,
        operation: &'static str,
        key: Option<&Key>,
    ) -> KvResult<Deadline> {
        in_runtime(operation)?;
        let deadline = Deadline::after(self.deadline);
        if self.deadline.is_zero() { Err(deadline.timeout(operation, key)) } else { Ok(deadline) }
    }

    fn unsupported(&self, operation: &'static str, reason: &str) -> KvError {
        KvError::Unsupported { operation, reason: format!("store {:?} {reason}", self.name()) }
    }

    /// Waits for a write. The backend holds the deadline itself; one that does not is not waited for much longer, and
    /// what became of the write is not known then.
    pub(super) async fn finish<T>(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
        write: impl Future<Output = KvResult<T>>,
    ) -> KvResult<T> {
        let latest = deadline.instant_and(WRITE_GRACE);
        match timeout_at(latest, write).await {
            Some(result) => result,
            None => Err(KvError::OutcomeUnknown { operation, key: key.clone(), source: None }),
        }
    }
}

/// For what takes a store that is owned or borrowed.
impl AsRef<Self> for Store {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("name", &self.name()).finish_non_exhaustive()
    }
}
