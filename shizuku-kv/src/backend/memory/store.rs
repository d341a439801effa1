//! The traits of the contract, over the shared store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::{TryStreamExt, stream};

use super::log::{Change, Condition, Refusal};
use super::scan::{PAGE, scan};
use super::shared::{Call, Contents, Shared};
use super::{CAPABILITIES, watch, yield_once};
use crate::store::{
    ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError, KvFenced, KvReader,
    KvResult, KvStore, KvStream, KvTtl, KvWatcher, KvWriter, StoreFigures, VersionToken, Watch,
    WatchCursor, WatchScope, check_ttl,
};

/// As on NATS, so that what a program does with it works there too.
const TTL_GRANULARITY: Duration = Duration::from_secs(1);

/// A handle on a store.
///
/// Nothing here waits for anything but its turn, and for what has expired to be applied.
pub(super) struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn write(
        &self,
        operation: &'static str,
        key: &Key,
        change: Change,
        condition: Condition,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        self.write_with(operation, key, change, condition, None, deadline).await
    }

    async fn write_with(
        &self,
        operation: &'static str,
        key: &Key,
        change: Change,
        condition: Condition,
        fence: Option<FencingToken>,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let write = self.shared.with(Call::new(operation).of(key).by(deadline), |contents| {
            // A missing lock record may have been lost together with a lock that is held.
            let is_of_locks = matches!(condition, Condition::Absent) && key.is_of_locks();
            if fence.is_some() || is_of_locks {
                self.check_fences(operation, contents)?;
            }
            if let Change::Put { ttl: Some(ttl), .. } = change
                && contents.config.key_ttl == Some(true)
            {
                check_ttl(ttl, contents.config.max_age.flatten())?;
            }
            if matches!(change, Change::Put { ttl: Some(_), .. })
                && contents.config.key_ttl != Some(true)
            {
                return Err(KvError::Unsupported {
                    operation,
                    reason: format!(
                        "store {:?} does not have times to live any more",
                        self.shared.name
                    ),
                });
            }
            let now = contents.now();
            let written = contents.log.write_with(key, change, condition, fence, now);
            written.map_err(|refusal| self.refused(operation, key, condition, refusal))
        });
        write.await
    }

    /// Tokens and locks are lost if values age.
    fn check_fences(&self, operation: &'static str, contents: &Contents) -> KvResult<()> {
        if contents.config.max_age.flatten().is_none() {
            return Ok(());
        }
        Err(KvError::Unsupported {
            operation,
            reason: format!(
                "entries of store {:?} can now expire: fencing tokens and locks would be lost",
                self.shared.name
            ),
        })
    }

    fn refused(
        &self,
        operation: &'static str,
        key: &Key,
        condition: Condition,
        refusal: Refusal,
    ) -> KvError {
        match refusal {
            Refusal::Fenced { token, newest } => {
                KvError::Fenced { key: key.clone(), token, newest }
            }
            Refusal::Exists(found) => {
                KvError::AlreadyExists { key: key.clone(), found: Some(found) }
            }
            Refusal::Mismatch(found) => match condition {
                Condition::Version(expected) => {
                    KvError::RevisionMismatch { key: key.clone(), expected, found }
                }
                Condition::Any | Condition::Absent => {
                    KvError::AlreadyExists { key: key.clone(), found }
                }
            },
            Refusal::Full(limit) => KvError::StoreFull {
                store: self.shared.name.clone(),
                limit: format!("it may hold {limit} bytes of keys and values"),
            },
            Refusal::Expires => KvError::Unsupported {
                operation,
                reason: format!("key {key} has a time to live, and its token would expire with it"),
            },
        }
    }

    async fn write_with_ttl(
        &self,
        operation: &'static str,
        key: &Key,
        value: Bytes,
        ttl: Duration,
        condition: Condition,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        if ttl < TTL_GRANULARITY {
            return Err(KvError::InvalidConfig {
                field: "time to live",
                reason: format!(
                    "{ttl:?} is below the shortest that the store keeps, {TTL_GRANULARITY:?}"
                ),
            });
        }
        self.write(operation, key, Change::Put { value, ttl: Some(ttl) }, condition, deadline).await
    }
}

/// A write of a value that lives as long as the store says.
fn put(value: Bytes) -> Change {
    Change::Put { value, ttl: None }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl KvStore for MemoryStore {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        ConnectionCapabilities {
            key_ttl: self.shared.key_ttl(),
            fenced_writes: self.shared.keeps_fences(),
            ..CAPABILITIES
        }
    }

    fn max_value_size(&self) -> usize {
        self.shared.max_value_size()
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        Some(self)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        Some(self)
    }

    fn ttl(&self) -> Option<&dyn KvTtl> {
        self.shared.key_ttl().then_some(self as &dyn KvTtl)
    }

    fn fenced(&self) -> Option<&dyn KvFenced> {
        self.shared.keeps_fences().then_some(self as &dyn KvFenced)
    }
}

impl KvReader for MemoryStore {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        let call = Call::new("get").of(key).by(deadline);
        Box::pin(self.shared.with(call, |contents| Ok(contents.log.newest(key).cloned())))
    }

    fn figures<'a>(
        &'a self,
        _: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        // An expired entry leaves a tombstone, and a watch that missed an expired tombstone ends.
        let look = self.shared.with(Call::new("figures").by(deadline), |contents| {
            Ok(StoreFigures::told(self.shared.incarnation, contents.log.sequence()))
        });
        Box::pin(look)
    }

    fn time(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        let call = Call::new("time").by(deadline);
        Box::pin(self.shared.with(call, |contents| Ok(Some(contents.log.time(contents.now())))))
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        Box::pin(async move {
            let mut entries = Vec::with_capacity(keys.len());
            for page in keys.chunks(PAGE) {
                let read = self.shared.with(Call::new("get_many").by(deadline), |contents| {
                    entries.extend(page.iter().map(|key| contents.log.newest(key).cloned()));
                    Ok(())
                });
                read.await?;
                if page.len() == PAGE {
                    // It was as much as many single reads.
                    yield_once().await;
                }
            }
            Ok(entries)
        })
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        let shared = Arc::clone(&self.shared);
        let entries = async move {
            let call = Call::new("history").of(&key).by(deadline);
            let entries = shared.with(call, |contents| Ok(contents.log.history(&key))).await?;
            Ok(stream::iter(entries.into_iter().map(Ok)))
        };
        KvStream::new(stream::once(entries).try_flatten())
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        scan(Arc::clone(&self.shared), "scan", &scope, deadline, KvEntry::clone)
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        scan(Arc::clone(&self.shared), "keys", &scope, deadline, |entry| entry.key.clone())
    }
}

impl KvWriter for MemoryStore {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move { self.write("put", key, put(value), Condition::Any, deadline).await })
    }

    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(
            async move { self.write("create", key, put(value), Condition::Absent, deadline).await },
        )
    }

    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write("update", key, put(value), Condition::Version(expected), deadline).await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write("delete", key, Change::Delete, Condition::Any, deadline).await
        })
    }

    fn delete_with_version<'a>(
        &'a self,
        key: &'a Key,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write(
                "delete_with_version",
                key,
                Change::Delete,
                Condition::Version(expected),
                deadline,
            )
            .await
        })
    }

    fn purge<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(
            async move { self.write("purge", key, Change::Purge, Condition::Any, deadline).await },
        )
    }

    fn put_many<'a>(
        &'a self,
        items: Vec<(Key, Bytes)>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(items.len());
            for (key, value) in items {
                let deadline = Deadline::after(deadline);
                answers
                    .push(self.write("put_many", &key, put(value), Condition::Any, deadline).await);
            }
            answers
        })
    }
}

impl KvWatcher for MemoryStore {
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        Box::pin(async move { watch::watch(Arc::clone(&self.shared), scope, from, deadline).await })
    }
}

impl KvTtl for MemoryStore {
    fn granularity(&self) -> Duration {
        TTL_GRANULARITY
    }

    fn put_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write_with_ttl("put_with_ttl", key, value, ttl, Condition::Any, deadline).await
        })
    }

    fn create_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write_with_ttl("create_with_ttl", key, value, ttl, Condition::Absent, deadline)
                .await
        })
    }

    fn update_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write_with_ttl(
                "update_with_ttl",
                key,
                value,
                ttl,
                Condition::Version(expected),
                deadline,
            )
            .await
        })
    }
}

impl KvFenced for MemoryStore {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write_with("fenced put", key, put(value), Condition::Any, Some(token), deadline)
                .await
        })
    }

    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write_with(
                "fenced create",
                key,
                put(value),
                Condition::Absent,
                Some(token),
                deadline,
            )
            .await
        })
    }

    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let condition = Condition::Version(expected);
            self.write_with("fenced update", key, put(value), condition, Some(token), deadline)
                .await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.write_with(
                "fenced delete",
                key,
                Change::Delete,
                Condition::Any,
                Some(token),
                deadline,
            )
            .await
        })
    }

    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        const OPERATION: &str = "raise";
        Box::pin(self.shared.with(Call::new(OPERATION).of(key).by(deadline), move |contents| {
            self.check_fences(OPERATION, contents)?;
            let now = contents.now();
            let raised = contents.log.raise(key, token, now);
            raised.map_err(|refusal| self.refused(OPERATION, key, Condition::Any, refusal))
        }))
    }
}
