//! The handle that users hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    ConnectionCapabilities, Deadline, IntoKey, Key, KvEntry, KvError, KvResult, KvStore, KvStream, KvTtl,
    KvWatcher, KvWriter, VersionToken, Watch, WatchCursor, WatchScope,
};

/// What a write may overrun its deadline by: the backend uses the deadline to the end to find out what became of the
/// write, and this much later the handle stops waiting for the answer.
const WRITE_GRACE: Duration = Duration::from_millis(250);

/// One store (bucket): a handle that is cheap to clone and the same on every backend.
///
/// Keys are anything that is [`IntoKey`]: a [`Key`], or a string, which is checked before anything is sent. Values are
/// anything that becomes [`Bytes`]. Every operation has a deadline, 5 seconds unless
/// [set](crate::StoreConfig::deadline); it runs on tokio's clock, so a tokio runtime with its timer has to be there.
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
}

impl Store {
    /// A handle over a backend's store; for authors of backends.
    pub fn new(backend: Arc<dyn KvStore>, deadline: Duration) -> Self {
        Self { backend, deadline }
    }

    /// The store's name.
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// What this store can do.
    pub fn capabilities(&self) -> ConnectionCapabilities {
        self.backend.capabilities()
    }

    /// The largest value that can be written now, in bytes.
    pub fn max_value_size(&self) -> usize {
        self.backend.max_value_size()
    }

    /// The deadline of each operation.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The same store with another deadline for each operation.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { backend: Arc::clone(&self.backend), deadline }
    }

    /// The backend behind the handle; for what wraps a store.
    pub fn backend(&self) -> &Arc<dyn KvStore> {
        &self.backend
    }

    /// The value of a key; `None` where it is absent: never written, deleted, purged or expired.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`], [`KvError::StoreNotFound`], [`KvError::Timeout`], [`KvError::Unavailable`].
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

    async fn read(&self, operation: &'static str, key: Key) -> KvResult<Option<KvEntry>> {
        let deadline = Deadline::after(self.deadline);
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
        let deadline = Deadline::after(self.deadline);
        let mut entries = deadline.bound("get_many", None, self.backend.entries(&keys, deadline)).await?;
        for entry in &mut entries {
            entry.take_if(|entry| entry.is_tombstone());
        }
        Ok(entries)
    }

    /// What the store holds of a key, the oldest first, tombstones included: at most as many entries as the store
    /// keeps versions.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] here; as items, those of [`get`](Self::get).
    pub fn history(&self, key: impl IntoKey) -> KvResult<KvStream<KvEntry>> {
        Ok(self.backend.history(key.into_key()?, Deadline::after(self.deadline)))
    }

    /// The live entries in scope, in no particular order. Every key that lives throughout the scan appears exactly
    /// once, with a value that it had at some time during the scan. The deadline is that of each item.
    pub fn scan(&self, scope: impl Into<WatchScope>) -> KvStream<KvEntry> {
        self.backend.scan(scope.into(), self.deadline)
    }

    /// The live keys in scope, in no particular order, each exactly once as for [`scan`](Self::scan). The deadline is
    /// that of each item.
    pub fn keys(&self, scope: impl Into<WatchScope>) -> KvStream<Key> {
        self.backend.keys(scope.into(), self.deadline)
    }

    /// Stores a value, whatever was there, and returns the key's new version.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`] and [`KvError::ValueTooLarge`] before anything is sent; [`KvError::Timeout`] and
    /// [`KvError::Unavailable`] when it did not happen; [`KvError::OutcomeUnknown`] when that cannot be known;
    /// [`KvError::StoreFull`], [`KvError::StoreNotFound`]; [`KvError::Unsupported`] on a read-only store.
    pub async fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> KvResult<VersionToken> {
        let (key, value) = self.key_and_value(key, value)?;
        let (writer, deadline) = self.writer("put")?;
        self.finish("put", &key, deadline, writer.put(&key, value, deadline)).await
    }

    /// Stores a value where the key is absent (never written, deleted, purged or expired), and returns its version.
    ///
    /// # Errors
    /// [`KvError::AlreadyExists`] over a live value; else as for [`put`](Self::put).
    pub async fn create(&self, key: impl IntoKey, value: impl Into<Bytes>) -> KvResult<VersionToken> {
        let (key, value) = self.key_and_value(key, value)?;
        let (writer, deadline) = self.writer("create")?;
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
        let (key, value) = self.key_and_value(key, value)?;
        let (writer, deadline) = self.writer("update")?;
        self.finish("update", &key, deadline, writer.update(&key, value, expected, deadline)).await
    }

    /// Deletes a key, whatever it has, and returns the version of the tombstone. Deleting an absent key succeeds.
    ///
    /// The tombstone stays, so that watches and cursors learn of the deletion: for ever, or for an hour in a store with
    /// a [`max_age`](crate::StoreConfig::max_age()) or [`key_ttl`](crate::StoreConfig::key_ttl()).
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, key: impl IntoKey) -> KvResult<VersionToken> {
        let key = key.into_key()?;
        let (writer, deadline) = self.writer("delete")?;
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
        let (writer, deadline) = self.writer("delete_with_version")?;
        let write = writer.delete_with_version(&key, expected, deadline);
        self.finish("delete_with_version", &key, deadline, write).await
    }

    /// Deletes a key and what the store holds of its history, and returns the version of the tombstone.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn purge(&self, key: impl IntoKey) -> KvResult<VersionToken> {
        let key = key.into_key()?;
        let (writer, deadline) = self.writer("purge")?;
        self.finish("purge", &key, deadline, writer.purge(&key, deadline)).await
    }

    /// Stores many values, pipelined, and answers for each in the order given. Each is a write of its own: some can
    /// succeed while others fail. Writes of one key take effect in the order given. Each has its own deadline, from
    /// the moment that it is sent.
    pub async fn put_many<K: IntoKey, V: Into<Bytes>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<KvResult<VersionToken>> {
        // What is refused here keeps its place in the answer.
        let mut answers = Vec::new();
        let mut accepted = Vec::new();
        for (key, value) in items {
            match self.key_and_value(key, value) {
                Ok(item) => {
                    accepted.push(item);
                    answers.push(None);
                }
                Err(error) => answers.push(Some(Err(error))),
            }
        }
        let mut written = match self.writer("put_many") {
            Ok((writer, _)) => writer.put_many(accepted, self.deadline).await,
            Err(error) => accepted.iter().map(|_| Err(error.clone())).collect(),
        }
        .into_iter();
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
    /// [`KvError::Unsupported`], [`KvError::StoreNotFound`], [`KvError::Timeout`], [`KvError::Unavailable`].
    pub async fn watch(&self, scope: impl Into<WatchScope>) -> KvResult<Watch> {
        self.start_watch(scope.into(), None).await
    }

    /// Watches a scope from a cursor on: what came after it, then [`KvUpdate::CaughtUp`], then every change.
    ///
    /// Use the scope of the watch that the cursor is from. Of keys outside it only what changed after the cursor
    /// arrives.
    ///
    /// [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp
    ///
    /// # Errors
    /// [`KvError::CursorExpired`] where something that followed the cursor may be missing from the store; else as for
    /// [`watch`](Self::watch).
    pub async fn watch_from(&self, scope: impl Into<WatchScope>, cursor: WatchCursor) -> KvResult<Watch> {
        self.start_watch(scope.into(), Some(cursor)).await
    }

    async fn start_watch(&self, scope: WatchScope, from: Option<WatchCursor>) -> KvResult<Watch> {
        let watcher: &dyn KvWatcher =
            self.backend.watcher().ok_or_else(|| self.unsupported("watch", "cannot be watched"))?;
        let deadline = Deadline::after(self.deadline);
        deadline.bound("watch", None, watcher.watch(scope, from, deadline)).await
    }

    /// Times to live of single keys; `None` where the store does not have them (see
    /// [`StoreConfig::key_ttl`](crate::StoreConfig::key_ttl)).
    pub fn ttl(&self) -> Option<StoreTtl<'_>> {
        self.backend.ttl().map(|ttl| StoreTtl { store: self, ttl })
    }

    fn key_and_value(&self, key: impl IntoKey, value: impl Into<Bytes>) -> KvResult<(Key, Bytes)> {
        let (key, value) = (key.into_key()?, value.into());
        let limit = self.backend.max_value_size();
        if value.len() > limit {
            return Err(KvError::ValueTooLarge { key, size: value.len(), limit });
        }
        Ok((key, value))
    }

    fn writer(&self, operation: &'static str) -> KvResult<(&dyn KvWriter, Deadline)> {
        match self.backend.writer() {
            Some(writer) => Ok((writer, Deadline::after(self.deadline))),
            None => Err(self.unsupported(operation, "is read-only")),
        }
    }

    fn unsupported(&self, operation: &'static str, reason: &str) -> KvError {
        KvError::Unsupported { operation, reason: format!("store {:?} {reason}", self.name()) }
    }

    /// Waits for a write. The backend holds the deadline itself; one that does not is not waited for much longer, and
    /// what became of the write is not known then.
    async fn finish(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
        write: impl Future<Output = KvResult<VersionToken>>,
    ) -> KvResult<VersionToken> {
        let latest = deadline.instant() + WRITE_GRACE;
        match tokio::time::timeout_at(latest, write).await {
            Ok(result) => result,
            Err(_) => Err(KvError::OutcomeUnknown { operation, key: key.clone(), source: None }),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// Writing values that expire. From [`Store::ttl`].
///
/// A value expires its time to live after it was written, unless it was written again before. Expiry is a deletion: it
/// arrives at watches, and `create` succeeds over it.
#[derive(Clone, Copy)]
pub struct StoreTtl<'a> {
    store: &'a Store,
    ttl: &'a dyn KvTtl,
}

impl StoreTtl<'_> {
    /// The shortest time to live, and the step in which they are counted: one that is no multiple of it is rounded up.
    pub fn granularity(&self) -> Duration {
        self.ttl.granularity()
    }

    /// As [`Store::put`], with a time to live.
    ///
    /// # Errors
    /// [`KvError::InvalidConfig`] for a time to live below the [granularity](Self::granularity); else as for
    /// [`Store::put`].
    pub async fn put(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.store.key_and_value(key, value)?;
        let (ttl, deadline) = (self.checked(ttl)?, Deadline::after(self.store.deadline));
        let write = self.ttl.put_with_ttl(&key, value, ttl, deadline);
        self.store.finish("put with a time to live", &key, deadline, write).await
    }

    /// As [`Store::create`], with a time to live.
    ///
    /// # Errors
    /// As for [`put`](Self::put), and [`KvError::AlreadyExists`].
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.store.key_and_value(key, value)?;
        let (ttl, deadline) = (self.checked(ttl)?, Deadline::after(self.store.deadline));
        let write = self.ttl.create_with_ttl(&key, value, ttl, deadline);
        self.store.finish("create with a time to live", &key, deadline, write).await
    }

    /// As [`Store::update`], with a time to live: how a lease is renewed.
    ///
    /// # Errors
    /// As for [`put`](Self::put), and [`KvError::RevisionMismatch`].
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
        ttl: Duration,
    ) -> KvResult<VersionToken> {
        let (key, value) = self.store.key_and_value(key, value)?;
        let (ttl, deadline) = (self.checked(ttl)?, Deadline::after(self.store.deadline));
        let write = self.ttl.update_with_ttl(&key, value, expected, ttl, deadline);
        self.store.finish("update with a time to live", &key, deadline, write).await
    }

    fn checked(&self, ttl: Duration) -> KvResult<Duration> {
        let step = self.ttl.granularity();
        if ttl < step {
            return Err(KvError::InvalidConfig {
                field: "time to live",
                reason: format!("{ttl:?} is below the shortest that the store keeps, {step:?}"),
            });
        }
        let steps = ttl.as_nanos().div_ceil(step.as_nanos().max(1));
        u32::try_from(steps).ok().and_then(|steps| step.checked_mul(steps)).ok_or_else(|| {
            KvError::InvalidConfig {
                field: "time to live",
                reason: format!("{ttl:?} is longer than the store can count"),
            }
        })
    }
}

impl fmt::Debug for StoreTtl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTtl").field("store", &self.store).finish_non_exhaustive()
    }
}
