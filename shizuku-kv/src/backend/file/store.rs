//! The traits of the contract, implemented by a handle on a shared store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::{TryStreamExt, stream};

use super::engine::Call;
use super::failure::Failure;
use super::options::Mode;
use super::record::system;
use super::scan::{PAGE, scan};
use super::state::{StoreState, max_value_size};
use super::transaction::Transaction;
use super::view::Budget;
use super::watch::watch;
use crate::backend::embedded::{TTL_GRANULARITY, check_fences, check_settings};
use crate::store::{
    Atomicity, ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError, KvFenced,
    KvReader, KvResult, KvStore, KvStream, KvTtl, KvWatcher, KvWriter, StoreConfig, StoreFigures,
    VersionToken, Watch, WatchCursor, WatchScope, Write, WriteCondition,
};

/// Maximum number of writes and of bytes of one job of many writes.
const JOB_WRITES: usize = 256;
const JOB_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of a write beside key and value, approximately.
const WRITE_BYTES: usize = 64;

pub(super) fn capabilities(mode: Mode) -> ConnectionCapabilities {
    let writes = !mode.is_read_only();
    ConnectionCapabilities {
        write: writes,
        compare_and_swap: writes,
        atomic_writes: writes,
        watch: true,
        watch_resume: true,
        ordered_versions: true,
        max_history: 64,
        max_age: true,
        key_ttl: writes,
        fenced_writes: writes,
        expiry_events: true,
        leader_reads: true,
        // Not claimed for the reader of another process's file.
        linearizable_reads: writes,
        persistent: true,
        shared: mode == Mode::Shared,
    }
}

/// A handle on a store.
pub(super) struct FileStore {
    state: Arc<StoreState>,
}

impl FileStore {
    pub(super) fn new(state: Arc<StoreState>) -> Self {
        Self { state }
    }

    fn writes(&self) -> bool {
        !self.state.engine.folder().mode().is_read_only()
    }

    /// Makes writes in one transaction.
    async fn write_together(
        &self,
        call: Call<'_>,
        writes: Vec<(Key, Write)>,
    ) -> KvResult<Vec<KvResult<VersionToken>>> {
        let bytes = writes.iter().map(|(key, write)| size(key, write)).sum();
        let written = self.state.write(call, bytes, false, move |state, config, tables| {
            let written =
                writes.iter().map(|(key, write)| apply(state, config, tables, key, write));
            Ok(Ok(written.collect::<Result<_, Failure>>()?))
        });
        written.await
    }

    /// Makes all writes or none.
    async fn write_all(
        &self,
        writes: Vec<(Key, Write)>,
        deadline: Deadline,
    ) -> Vec<KvResult<VersionToken>> {
        let count = writes.len();
        let Some((first, write)) = writes.first() else { return Vec::new() };
        let (key, operation) = (first.clone(), write.name());
        let bytes = writes.iter().map(|(key, write)| size(key, write)).sum();
        let call = Call::new(operation, deadline).of(&key);
        let written = self.state.write(call, bytes, true, move |state, config, tables| {
            let mut versions = Vec::with_capacity(writes.len());
            for (key, write) in &writes {
                match apply(state, config, tables, key, write)? {
                    Ok(version) => versions.push(version),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(Ok(versions))
        });
        match written.await {
            Ok(versions) => versions.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }
}

fn size(key: &Key, write: &Write) -> usize {
    key.len() + write.value().map_or(0, Bytes::len) + WRITE_BYTES
}

/// Returns the error of several writes as that of one key.
fn of_key(error: &KvError, key: Key) -> KvError {
    let mut error = error.clone();
    match &mut error {
        KvError::OutcomeUnknown { key: found, .. } | KvError::Timeout { key: Some(found), .. } => {
            *found = key;
        }
        _ => {}
    }
    error
}

/// Makes one write within a transaction.
fn apply(
    state: &StoreState,
    config: &StoreConfig,
    tables: &mut Transaction<'_>,
    key: &Key,
    write: &Write,
) -> Result<KvResult<VersionToken>, Failure> {
    if let Err(error) = write.check().and_then(|()| check_settings(&state.name, config, key, write))
    {
        return Ok(Err(error));
    }
    // The limit may be lower than the one that the handle has checked.
    let (limit, size) = (max_value_size(config), write.value().map_or(0, Bytes::len));
    if size > limit {
        return Ok(Err(KvError::ValueTooLarge { key: key.clone(), size, limit }));
    }
    let written = tables.write(state.id, key, write)?;
    Ok(written
        .map_err(|rejection| rejection.into_error(&state.name, write.name(), key, write.condition)))
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("name", &self.state.name).finish_non_exhaustive()
    }
}

impl KvStore for FileStore {
    fn name(&self) -> &str {
        &self.state.name
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        let capabilities = capabilities(self.state.engine.folder().mode());
        ConnectionCapabilities {
            key_ttl: capabilities.key_ttl && self.state.key_ttl(),
            fenced_writes: capabilities.fenced_writes && self.state.keeps_fences(),
            ..capabilities
        }
    }

    fn max_value_size(&self) -> usize {
        self.state.max_value_size()
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        Some(self.state.incarnation)
    }

    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(self.state.read(Call::new("refresh", deadline), |_, _| Ok(())))
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        self.writes().then_some(self as &dyn KvWriter)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        Some(self)
    }

    fn ttl(&self) -> Option<&dyn KvTtl> {
        (self.writes() && self.state.key_ttl()).then_some(self as &dyn KvTtl)
    }

    fn fenced(&self) -> Option<&dyn KvFenced> {
        (self.writes() && self.state.keeps_fences()).then_some(self as &dyn KvFenced)
    }
}

impl KvReader for FileStore {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(self.state.entry(Call::new("get", deadline).of(key), key))
    }

    fn figures<'a>(
        &'a self,
        _: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        // An expired entry leaves a tombstone, and a watch that missed an expired tombstone ends.
        let incarnation = self.state.incarnation;
        Box::pin(self.state.read(Call::new("figures", deadline), move |_, end| {
            Ok(StoreFigures::told(incarnation, end.sequence))
        }))
    }

    fn time(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        Box::pin(self.state.read(Call::new("time", deadline), |entries, end| {
            Ok(Some(system(entries.now().max(end.written))))
        }))
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(keys.len());
            while let Some(rest) = keys.get(found.len()..).filter(|rest| !rest.is_empty()) {
                let page: Vec<_> = rest.iter().take(PAGE).cloned().collect();
                let call = Call::new("get_many", deadline).slice();
                let read = self.state.read(call, move |entries, _| {
                    let (mut found, mut budget) = (Vec::new(), Budget::new(PAGE));
                    for key in &page {
                        if budget.is_used_up() && !found.is_empty() {
                            break;
                        }
                        let entry = entries.newest(key)?;
                        budget.take(entry.as_ref().map_or(0, |entry| entry.value.len()));
                        found.push(entry);
                    }
                    Ok(found)
                });
                found.extend(read.await?);
            }
            Ok(found)
        })
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        let state = Arc::clone(&self.state);
        let pages = stream::try_unfold(Some((state, key, 0)), move |next| async move {
            let Some((state, key, after)) = next else { return Ok(None) };
            let (call, wanted) = (Call::new("history", deadline).of(&key).slice(), key.clone());
            let read = state
                .read(call, move |entries, _| entries.history(&wanted, after, Budget::new(PAGE)));
            let (entries, last) = read.await?;
            let next = last.map(|last| (state, key, last));
            Ok(Some((stream::iter(entries.into_iter().map(Ok)), next)))
        });
        KvStream::new(pages.try_flatten())
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        scan(Arc::clone(&self.state), "scan", &scope, deadline, |key, head, value| {
            head.into_entry(key, Bytes::copy_from_slice(value))
        })
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        scan(Arc::clone(&self.state), "keys", &scope, deadline, |key, _, _| key)
    }
}

impl KvWriter for FileStore {
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            write.check()?;
            let call = Call::new(write.name(), deadline).of(key);
            let (bytes, wanted) = (size(key, &write), key.clone());
            let written = self.state.write(call, bytes, false, move |state, config, tables| {
                apply(state, config, tables, &wanted, &write)
            });
            written.await
        })
    }

    fn write_many<'a>(
        &'a self,
        writes: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        Box::pin(async move {
            if atomicity == Atomicity::All {
                return self.write_all(writes, Deadline::after(deadline)).await;
            }
            let mut answers = Vec::with_capacity(writes.len());
            let mut rest = writes.into_iter().peekable();
            while rest.peek().is_some() {
                let (mut job, mut bytes) = (Vec::new(), 0);
                while job.len() < JOB_WRITES
                    && bytes < JOB_BYTES
                    && let Some((key, write)) = rest.next()
                {
                    bytes += size(&key, &write);
                    job.push((key, write));
                }
                let keys: Vec<_> = job.iter().map(|(key, _)| key.clone()).collect();
                let call = Call::new("write_many", Deadline::after(deadline));
                let call = keys.first().map_or(call, |key| call.of(key));
                match self.write_together(call, job).await {
                    Ok(written) => answers.extend(written),
                    Err(error) => {
                        answers.extend(keys.into_iter().map(|key| Err(of_key(&error, key))))
                    }
                }
            }
            answers
        })
    }
}

impl KvWatcher for FileStore {
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        Box::pin(watch(Arc::clone(&self.state), scope, from, deadline))
    }
}

impl KvTtl for FileStore {
    fn granularity(&self) -> Duration {
        TTL_GRANULARITY
    }
}

impl KvFenced for FileStore {
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        const OPERATION: &str = "raise";
        let (call, wanted) = (Call::new(OPERATION, deadline).of(key), key.clone());
        Box::pin(self.state.write(call, WRITE_BYTES, false, move |state, config, tables| {
            if let Err(error) = check_fences(&state.name, OPERATION, config) {
                return Ok(Err(error));
            }
            let raised = tables.raise(state.id, &wanted, token)?;
            Ok(raised.map_err(|rejection| {
                rejection.into_error(&state.name, OPERATION, &wanted, WriteCondition::Any)
            }))
        }))
    }
}
