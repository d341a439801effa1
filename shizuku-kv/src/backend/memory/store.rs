//! The traits of the contract, implemented by a handle on a shared store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::future::BoxFuture;
use futures_util::{TryStreamExt, stream};

use super::scan::{PAGE, scan};
use super::shared::{Call, StoreState};
use super::watch::watch;
use crate::backend::embedded::{TTL_GRANULARITY, check_fences, check_settings};
use crate::store::{
    Atomicity, ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvFenced, KvReader,
    KvResult, KvStore, KvStream, KvTtl, KvWatcher, KvWriter, StoreFigures, VersionToken, Watch,
    WatchCursor, WatchScope, Write, WriteCondition,
};

pub(super) const CAPABILITIES: ConnectionCapabilities = ConnectionCapabilities {
    write: true,
    compare_and_swap: true,
    atomic_writes: false,
    watch: true,
    watch_resume: true,
    ordered_versions: true,
    max_history: 64,
    max_age: true,
    key_ttl: true,
    fenced_writes: true,
    expiry_events: true,
    leader_reads: true,
    linearizable_reads: true,
    persistent: false,
    shared: false,
};

/// A handle on a store.
///
/// Its operations wait only for their turn, and for the application of due expiries.
pub(super) struct MemoryStore {
    shared: Arc<StoreState>,
}

impl MemoryStore {
    pub(super) fn new(shared: Arc<StoreState>) -> Self {
        Self { shared }
    }

    async fn apply(&self, key: &Key, write: Write, deadline: Deadline) -> KvResult<VersionToken> {
        write.check()?;
        let (operation, condition) = (write.name(), write.condition);
        let call = Call::new(operation).of(key).by(deadline);
        let written = self.shared.with(call, |contents| {
            check_settings(&self.shared.name, &contents.config, key, &write)?;
            let now = contents.now();
            let written = contents.log.write(key, write, now);
            written.map_err(|rejection| {
                rejection.into_error(&self.shared.name, operation, key, condition)
            })
        });
        written.await
    }
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

    fn incarnation(&self) -> Option<[u8; 16]> {
        Some(self.shared.incarnation)
    }

    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(self.shared.with(Call::new("refresh").by(deadline), |_| Ok(())))
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
        let figures = self.shared.with(Call::new("figures").by(deadline), |contents| {
            Ok(StoreFigures::told(self.shared.incarnation, contents.log.sequence()))
        });
        Box::pin(figures)
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
                    // The page took as much work as many single reads.
                    self.shared.yield_now().await;
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
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.apply(key, write, deadline))
    }

    fn write_many<'a>(
        &'a self,
        writes: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        Box::pin(async move {
            if let Err(error) = atomicity.check_each() {
                return vec![Err(error); writes.len()];
            }
            let mut answers = Vec::with_capacity(writes.len());
            for (key, write) in writes {
                answers.push(self.apply(&key, write, Deadline::after(deadline)).await);
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
        Box::pin(async move { watch(Arc::clone(&self.shared), scope, from, deadline).await })
    }
}

impl KvTtl for MemoryStore {
    fn granularity(&self) -> Duration {
        TTL_GRANULARITY
    }
}

impl KvFenced for MemoryStore {
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        const OPERATION: &str = "raise";
        Box::pin(self.shared.with(Call::new(OPERATION).of(key).by(deadline), move |contents| {
            let name = &self.shared.name;
            check_fences(name, OPERATION, &contents.config)?;
            let now = contents.now();
            let raised = contents.log.raise(key, token, now);
            raised.map_err(|rejection| {
                rejection.into_error(name, OPERATION, key, WriteCondition::Any)
            })
        }))
    }
}
