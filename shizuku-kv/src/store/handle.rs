//! The handle through which users call a store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::attached::{Attached, Attachments, User};
use super::timer::timeout_at;
use super::{
    Atomicity, ConnectionCapabilities, Deadline, IntoKey, Key, KvEntry, KvError, KvResult, KvStore,
    KvStream, KvWatcher, KvWriter, StoreFigures, VersionToken, Watch, WatchCursor, WatchScope,
    Write, in_runtime,
};

/// Maximum time by which a write may exceed its deadline. The backend uses the whole deadline to
/// resolve the outcome of the write. After this additional time, the handle stops waiting for the
/// answer (ADR 0001).
const WRITE_GRACE: Duration = Duration::from_millis(250);

/// Number of writes of one call that a backend is expected to have in flight, for the maximum
/// duration of the call.
const WRITES_IN_FLIGHT: usize = 1024;

/// Maximum size in bytes of the values of [`Store::put_many`] that are in flight within one
/// deadline.
const BYTES_IN_FLIGHT: usize = 32 * 1024 * 1024;

/// Interval between two comparisons of a follower with its store.
const COMPARE_EVERY: Duration = Duration::from_secs(60);

/// Maximum number of keys that are read within one deadline.
const GETS_TOGETHER: usize = 1024;

/// One store (bucket): a handle that is cheap to clone and the same on every backend.
///
/// A key is any [`IntoKey`]: a [`Key`], or a string, which is checked before anything is sent. A
/// value is any type that converts to [`Bytes`]. Every operation has a deadline, 5 seconds unless
/// [set](crate::StoreConfig::deadline). It runs on tokio's clock, so every operation needs a tokio
/// runtime with its timer and returns [`KvError::NoRuntime`] outside of one. A store on NATS also
/// needs the runtime that opened its connection.
///
/// Cancel safe: dropping the future of a read has no effect. A write whose future is dropped may
/// have happened or not; it leaves no other trace.
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
    pub(super) attachments: Arc<Attachments>,
    /// Counts the handles of users. `None` in the handle of a background task.
    _user: Option<Arc<User>>,
}

impl Store {
    /// Creates a handle over a backend's store; for authors of backends.
    pub fn new(backend: Arc<dyn KvStore>, deadline: Duration) -> Self {
        let attachments = Arc::<Attachments>::default();
        let _user = Some(Arc::new(User::of(&attachments)));
        Self { backend, deadline, compare_every: COMPARE_EVERY, attachments, _user }
    }

    /// Returns a handle for a background task, which ends when the users of the store have dropped
    /// theirs.
    pub(crate) fn of_task(&self) -> Self {
        Self { _user: None, ..self.clone() }
    }

    /// Waits until users have dropped the last clone of this handle.
    pub(crate) async fn abandoned(&self) {
        self.attachments.abandoned().await;
    }

    /// Returns the store's name.
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// Refreshes the store's settings, which another client may have changed.
    /// [`capabilities`](Self::capabilities), [`max_value_size`](Self::max_value_size),
    /// [`ttl`](Self::ttl) and [`fenced`](Self::fenced) use the newest ones from then on.
    ///
    /// Operations do not need it: each reads the settings itself if a promise depends on them. The
    /// `max_payload` of a NATS server is known from the last connect.
    ///
    /// Cancel safe: the known settings are then unchanged or new.
    ///
    /// # Errors
    /// Returns [`KvError::StoreNotFound`] if the store is gone. Returns [`KvError::Timeout`] or
    /// [`KvError::Unavailable`] if the store does not answer.
    pub async fn refresh(&self) -> KvResult<()> {
        let deadline = self.deadline_of("refresh", None)?;
        deadline.bound("refresh", None, self.backend.refresh(deadline)).await
    }

    /// Returns the store's incarnation from the newest known settings. Returns `None` if the
    /// backend does not know it.
    pub(crate) fn incarnation(&self) -> Option<[u8; 16]> {
        self.backend.incarnation()
    }

    /// Returns the store's abilities, by the newest known settings: see [`refresh`](Self::refresh).
    pub fn capabilities(&self) -> ConnectionCapabilities {
        self.backend.capabilities()
    }

    /// Returns the maximum size in bytes of a value that [`put`](Self::put) accepts, by the newest
    /// known settings. If the store has a limit of its own, the maximum of other writes may be
    /// slightly smaller: see [`StoreConfig::max_value_size`](crate::StoreConfig::max_value_size()).
    pub fn max_value_size(&self) -> usize {
        self.backend.max_value_size()
    }

    /// Returns the deadline of each operation.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Returns a handle with another deadline for each operation. A deadline of zero has passed
    /// already: every operation returns [`KvError::Timeout`], and sends nothing.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Returns a handle with this interval between comparisons of its followers with the store: 60
    /// s by default, at least 1 s. Followers are live values, live maps and replicas. A comparison
    /// finds entries that left the store without a message: evicted, purged by an operator, or lost
    /// by a server that came back older.
    #[must_use]
    pub fn with_comparison(&self, interval: Duration) -> Self {
        Self { compare_every: interval.max(Duration::from_secs(1)), ..self.clone() }
    }

    /// Returns the interval between two comparisons of a follower with the store.
    pub(crate) fn compare_every(&self) -> Duration {
        self.compare_every
    }

    /// Returns the backend behind the handle, for code that wraps a store.
    pub fn backend(&self) -> &Arc<dyn KvStore> {
        &self.backend
    }

    /// Returns the value of a key. Returns `None` if the key is absent: never written, deleted,
    /// purged or expired.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if the key is not valid. Returns [`KvError::StoreNotFound`]
    /// if the store is gone. Returns [`KvError::Timeout`] or [`KvError::Unavailable`] if the store
    /// does not answer.
    pub async fn get(&self, key: impl IntoKey) -> KvResult<Option<KvEntry>> {
        Ok(self.read("get", key.into_key()?).await?.filter(|entry| !entry.is_tombstone()))
    }

    /// Returns the newest entry of a key, a tombstone included. Returns `None` if no entry exists.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn entry(&self, key: impl IntoKey) -> KvResult<Option<KvEntry>> {
        self.read("entry", key.into_key()?).await
    }

    /// Returns the newest entry of a key, from the replica that decides writes.
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

    /// Returns the time of the store's clock. Returns `None` if the backend does not know it.
    pub(crate) async fn time(&self) -> KvResult<Option<SystemTime>> {
        let deadline = self.deadline_of("time", None)?;
        deadline.bound("time", None, self.backend.time(deadline)).await
    }

    async fn read(&self, operation: &'static str, key: Key) -> KvResult<Option<KvEntry>> {
        let deadline = self.deadline_of(operation, Some(&key))?;
        deadline.bound(operation, Some(&key), self.backend.entry(&key, deadline)).await
    }

    /// Returns the values of many keys, in the order of the keys; `None` for each that is absent.
    /// They may be from different moments. The deadline applies to each batch of up to 1,024 keys.
    ///
    /// # Errors
    /// As for [`get`](Self::get). One error is the error of the whole call.
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
        let mut entries = Vec::with_capacity(keys.len());
        for some in keys.chunks(GETS_TOGETHER) {
            let deadline = self.deadline_of("get_many", None)?;
            let found =
                deadline.bound("get_many", None, self.backend.entries(some, deadline)).await?;
            entries.extend(found);
        }
        Ok(entries)
    }

    /// Returns the stored entries of a key, the oldest first, tombstones included: at most as many
    /// entries as the store keeps versions. The deadline is that of the whole stream, from this
    /// call on.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if the key is not valid. Items can be the errors of
    /// [`get`](Self::get).
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

    /// Returns the live entries in scope, in no particular order. Every key that lives throughout
    /// the scan appears exactly once, with a value that it had at some time during the scan. If no
    /// key can start with a prefix, the only item is [`KvError::InvalidKey`].
    ///
    /// The deadline limits the time without progress. An item may take longer if many tombstones or
    /// keys out of scope precede it.
    pub fn scan(&self, scope: impl Into<WatchScope>) -> KvStream<KvEntry> {
        self.items("scan", scope.into(), |scope| self.backend.scan(scope, self.deadline))
    }

    /// Returns the live keys in scope, in no particular order, each exactly once as for
    /// [`scan`](Self::scan), with the same deadline.
    pub fn keys(&self, scope: impl Into<WatchScope>) -> KvStream<Key> {
        self.items("keys", scope.into(), |scope| self.backend.keys(scope, self.deadline))
    }

    /// Returns a stream of the backend in which each item has the deadline.
    fn items<T: Send + 'static>(
        &self,
        operation: &'static str,
        scope: WatchScope,
        open: impl FnOnce(WatchScope) -> KvStream<T>,
    ) -> KvStream<T> {
        let limit = self.deadline;
        match scope.check_prefixes().and_then(|()| self.deadline_of(operation, None)) {
            Ok(_) => open(scope).bounded(operation, None, move || Deadline::after(limit)),
            Err(error) => KvStream::error(error),
        }
    }

    /// Stores a value over any previous entry, and returns the key's new version.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] or [`KvError::ValueTooLarge`] before the value is sent.
    /// Returns [`KvError::Timeout`] or [`KvError::Unavailable`] if it was not written, and
    /// [`KvError::OutcomeUnknown`] if that cannot be known. Returns [`KvError::StoreFull`] if the
    /// store has no room. Returns [`KvError::StoreNotFound`] if the store is gone. Returns
    /// [`KvError::Unsupported`] if the store is read-only.
    pub async fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> KvResult<VersionToken> {
        self.write(key, Write::put(value)).await
    }

    /// Stores a value if the key is absent (never written, deleted, purged or expired), and returns
    /// its version.
    ///
    /// # Errors
    /// Returns [`KvError::AlreadyExists`] if the key has a live value. Otherwise as for
    /// [`put`](Self::put).
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
    ) -> KvResult<VersionToken> {
        self.write(key, Write::create(value)).await
    }

    /// Compares and swaps: stores a value if the key's newest entry has the version `expected`, and
    /// returns the new version. A deletion is an entry with a version of its own. A value that was
    /// deleted since is therefore not replaced. The version of the tombstone itself (from
    /// [`entry`](Self::entry) or [`delete`](Self::delete)) matches.
    ///
    /// # Errors
    /// Returns [`KvError::RevisionMismatch`] if the newest entry has another version or no entry
    /// exists. Otherwise as for [`put`](Self::put).
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
    ) -> KvResult<VersionToken> {
        self.write(key, Write::update(value, expected)).await
    }

    /// Deletes a key, and returns the version of the tombstone. Deleting an absent key succeeds.
    ///
    /// The tombstone stays, so that watches and cursors deliver the deletion. It stays forever, or
    /// for an hour in a store with [`key_ttl`](crate::StoreConfig::key_ttl()) or
    /// [`max_age`](crate::StoreConfig::max_age()), and no longer than that age. Its end is not
    /// delivered to watches, and brings no older value back.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, key: impl IntoKey) -> KvResult<VersionToken> {
        self.write(key, Write::delete()).await
    }

    /// Compares and deletes: deletes a key if it has the version `expected`.
    ///
    /// # Errors
    /// Returns [`KvError::RevisionMismatch`] if it has another version. Otherwise as for
    /// [`put`](Self::put).
    pub async fn delete_with_version(
        &self,
        key: impl IntoKey,
        expected: VersionToken,
    ) -> KvResult<VersionToken> {
        self.write(key, Write::delete_with_version(expected)).await
    }

    /// Deletes a key and its stored history, and returns the version of the tombstone.
    ///
    /// In a store with a history of 1 whose tombstones expire, this is [`delete`](Self::delete),
    /// and leaves the tombstone of a deletion.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn purge(&self, key: impl IntoKey) -> KvResult<VersionToken> {
        self.write(key, Write::purge()).await
    }

    /// Stores many values, pipelined, and returns the answers in the order given. Each is a write
    /// of its own: some can succeed while others fail. Writes of one key take effect in the order
    /// given. Each has its own deadline, which begins with its turn. About a thousand writes are in
    /// flight at a time, with a total size of some ten megabytes. A write that a server rejects
    /// because of its load is sent again. If a later item has the same key, it is
    /// [`KvError::LimitReached`] instead.
    ///
    /// The total wait is at most one deadline for each started 1,024 items or 32 MiB, whichever are
    /// more, plus one. If the backend has not answered by then, every item is
    /// [`KvError::OutcomeUnknown`].
    pub async fn put_many<K: IntoKey, V: Into<Bytes>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<KvResult<VersionToken>> {
        let item = |(key, value): (K, V)| Ok((key.into_key()?, Write::put(value)));
        self.write_many("put_many", items.into_iter().map(item).collect()).await
    }

    /// Watches a scope: first the current value of every key in it, then [`KvUpdate::CaughtUp`],
    /// then every change.
    ///
    /// A watch is state sync, not an event log. Per key, versions never go back and the last one
    /// always arrives. Values that were superseded before they could be delivered may be skipped.
    /// No update arrives twice. Deletion, purge and expiry arrive; tombstones that the store still
    /// holds may be part of the initial state. A watch recovers by itself after faults and holds a
    /// bounded amount of memory: a slow reader slows its source.
    ///
    /// Entries can leave a store without a message, for example if an operator purges a stream. A
    /// watch of everything, or of a prefix that ends in a dot, compares the number of keys at least
    /// once a minute. It ends with [`KvError::CursorExpired`] if more keys are gone than the
    /// deletions that it has delivered explain. It does not notice keys that were replaced by as
    /// many new ones. A watch that was resumed from a cursor, or that has another scope, notices
    /// less: a purge of the whole stream, or of the last entry that it delivered. [Live
    /// values](crate::Live), [live maps](crate::LiveMap) and [replicas](crate::watch_applied)
    /// notice every missing entry.
    ///
    /// [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp
    ///
    /// # Errors
    /// Returns [`KvError::InvalidKey`] if no key can start with a prefix. Returns
    /// [`KvError::Unsupported`] if the store cannot be watched. Returns [`KvError::StoreNotFound`]
    /// if the store is gone. Returns [`KvError::Timeout`] or [`KvError::Unavailable`] if the store
    /// does not answer.
    pub async fn watch(&self, scope: impl Into<WatchScope>) -> KvResult<Watch> {
        self.start_watch(scope.into(), None).await
    }

    /// Watches a scope from a cursor on: the changes after it, then [`KvUpdate::CaughtUp`], then
    /// every change.
    ///
    /// Use the scope of the watch that the cursor is from. For keys outside it, only changes after
    /// the cursor arrive.
    ///
    /// A cursor is accepted if no later change can have been forgotten. This is judged by the age
    /// of the store's tombstones now and, as far as it is known, before. The library cannot know of
    /// tombstones that are removed by hand. On NATS, `PurgeDeletes`, a purge with a time to live
    /// (`PurgeTTL`) of another client, or an operator removes them. It also cannot know of a
    /// maximum age that another client has set and removed again while no handle looked. Such a
    /// deletion is skipped. Values that an operator or another client purges from the server's
    /// stream leave no tombstone. If the entry at the cursor was purged and no other followed it,
    /// the cursor has expired. Otherwise the purge is skipped, and the reader still has the purged
    /// values. A [replica](crate::watch_applied), which compares itself with the store, finds both.
    ///
    /// [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp
    ///
    /// # Errors
    /// Returns [`KvError::CursorExpired`] if a change after the cursor may be missing from the
    /// store. Otherwise as for [`watch`](Self::watch).
    pub async fn watch_from(
        &self,
        scope: impl Into<WatchScope>,
        cursor: WatchCursor,
    ) -> KvResult<Watch> {
        self.start_watch(scope.into(), Some(cursor)).await
    }

    async fn start_watch(&self, scope: WatchScope, from: Option<WatchCursor>) -> KvResult<Watch> {
        scope.check_prefixes()?;
        let operation = if from.is_some() { "watch_from" } else { "watch" };
        let watcher: &dyn KvWatcher = self
            .backend
            .watcher()
            .ok_or_else(|| self.unsupported(operation, "cannot be watched"))?;
        let deadline = self.deadline_of(operation, None)?;
        deadline.bound(operation, None, watcher.watch(scope, from, deadline)).await
    }

    /// Returns the state that a higher layer keeps for this handle and its clones.
    pub(crate) fn attached<T: Attached>(&self) -> Arc<T> {
        self.attachments.get()
    }

    /// Makes one write: the only way from the handles of users to a backend's writer.
    pub(super) async fn write(&self, key: impl IntoKey, write: Write) -> KvResult<VersionToken> {
        let key = key.into_key()?;
        self.learn_limit_for(size_of_value(&write)).await;
        self.ensure_fits(&key, &write)?;
        let operation = write.name();
        let writer = self.writer(operation)?;
        let deadline = self.deadline_of(operation, Some(&key))?;
        self.finish(operation, &key, deadline, writer.write(&key, write, deadline)).await
    }

    /// Makes many writes. An item that is rejected here keeps its place among the answers.
    pub(super) async fn write_many(
        &self,
        operation: &'static str,
        writes: Vec<KvResult<(Key, Write)>>,
    ) -> Vec<KvResult<VersionToken>> {
        let largest = writes.iter().flatten().map(|(_, write)| size_of_value(write)).max();
        self.learn_limit_for(largest.unwrap_or(0)).await;
        let mut answers = Vec::with_capacity(writes.len());
        let mut accepted = Vec::with_capacity(writes.len());
        for item in writes {
            match item
                .and_then(|(key, write)| self.ensure_fits(&key, &write).map(|()| (key, write)))
            {
                Ok(item) => {
                    accepted.push(item);
                    answers.push(None);
                }
                Err(error) => answers.push(Some(Err(error))),
            }
        }
        let mut written = self.write_accepted(operation, accepted).await.into_iter();
        answers
            .into_iter()
            .map(|answer| {
                answer.or_else(|| written.next()).unwrap_or_else(|| {
                    Err(KvError::backend(
                        operation,
                        "the backend answered for fewer items than it was given",
                    ))
                })
            })
            .collect()
    }

    /// Refreshes the store's limit if a value exceeds it, because another client may have raised
    /// it.
    async fn learn_limit_for(&self, size: usize) {
        if size > self.backend.max_value_size() && !self.deadline.is_zero() {
            // If the store does not answer, the known limit counts.
            let _ = self.refresh().await;
        }
    }

    fn ensure_fits(&self, key: &Key, write: &Write) -> KvResult<()> {
        let (limit, size) = (self.backend.max_value_size(), size_of_value(write));
        if size > limit {
            return Err(KvError::ValueTooLarge { key: key.clone(), size, limit });
        }
        Ok(())
    }

    /// Makes writes that were checked. Waits no longer than a backend needs that keeps the deadline
    /// of each.
    async fn write_accepted(
        &self,
        operation: &'static str,
        writes: Vec<(Key, Write)>,
    ) -> Vec<KvResult<VersionToken>> {
        let keys: Vec<Key> = writes.iter().map(|(key, _)| key.clone()).collect();
        let writer = self.writer(operation).and_then(|writer| {
            in_runtime(operation)?;
            Ok(writer)
        });
        let writer = match writer {
            Ok(writer) => writer,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        if self.deadline.is_zero() {
            let deadline = Deadline::after(self.deadline);
            return keys.iter().map(|key| Err(deadline.timeout(operation, Some(key)))).collect();
        }
        let sizes = writes.iter().map(|(_, write)| size_of_value(write));
        let bytes = sizes.fold(0_usize, usize::saturating_add);
        let turns = keys.len().div_ceil(WRITES_IN_FLIGHT).max(bytes.div_ceil(BYTES_IN_FLIGHT));
        let turns = u32::try_from(turns).unwrap_or(u32::MAX).saturating_add(1);
        let latest = Deadline::after(self.deadline.saturating_mul(turns)).instant_and(WRITE_GRACE);
        let answers = writer.write_many(writes, Atomicity::Each, self.deadline);
        match timeout_at(latest, answers).await {
            Some(answers) => answers
                .into_iter()
                .map(|answer| answer.map_err(|error| error.of_operation(operation)))
                .collect(),
            None => keys
                .into_iter()
                .map(|key| Err(KvError::OutcomeUnknown { operation, key, source: None }))
                .collect(),
        }
    }

    fn writer(&self, operation: &'static str) -> KvResult<&dyn KvWriter> {
        self.backend.writer().ok_or_else(|| self.unsupported(operation, "is read-only"))
    }

    /// Returns the deadline of an operation that begins now.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`] if the deadline is zero, on every backend alike. Returns
    /// [`KvError::NoRuntime`] outside of a tokio runtime.
    pub(crate) fn deadline_of(
        &self,
        operation: &'static str,
        key: Option<&Key>,
    ) -> KvResult<Deadline> {
        in_runtime(operation)?;
        let deadline = Deadline::after(self.deadline);
        if self.deadline.is_zero() { Err(deadline.timeout(operation, key)) } else { Ok(deadline) }
    }

    fn unsupported(&self, operation: &'static str, reason: &str) -> KvError {
        KvError::Unsupported {
            operation,
            reason: format!("store {:?} {reason}; use another backend or URL", self.name()),
        }
    }

    /// Waits for a write. The backend keeps the deadline itself. If it does not, the wait ends soon
    /// after the deadline, and the outcome of the write is unknown.
    pub(super) async fn finish<T>(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
        write: impl Future<Output = KvResult<T>>,
    ) -> KvResult<T> {
        let latest = deadline.instant_and(WRITE_GRACE);
        match timeout_at(latest, write).await {
            Some(result) => result.map_err(|error| error.of_operation(operation)),
            None => Err(KvError::OutcomeUnknown { operation, key: key.clone(), source: None }),
        }
    }
}

fn size_of_value(write: &Write) -> usize {
    write.value().map_or(0, Bytes::len)
}

/// Supports functions that take an owned or a borrowed store.
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
