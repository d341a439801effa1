//! A connection whose stores are parts of buckets: the keys under `part.`, as seen by a user with
//! rights to nothing else. An administrator opens the buckets.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use shizuku_kv::{
    Atomicity, Connection, ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError,
    KvFenced, KvReader, KvResult, KvStore, KvStream, KvTtl, KvUpdate, KvWatcher, KvWriter, Store,
    StoreConfig, StoreFigures, VersionToken, Watch, WatchCursor, WatchScope, Write,
};

const PART: &str = "part.";

/// The connection of a user with rights to the part, beside an administrator who opens and deletes.
#[derive(Debug)]
pub(crate) struct PartConnection {
    pub(crate) admin: Arc<dyn Connection>,
    pub(crate) app: Arc<dyn Connection>,
}

impl Connection for PartConnection {
    fn capabilities(&self) -> ConnectionCapabilities {
        self.app.capabilities()
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(async move {
            self.admin.store_with_config(name, config.clone()).await?;
            let mut config = config.must_exist();
            config.reconcile = false;
            let store = self.app.store_with_config(name, config).await?;
            Ok(Store::new(Arc::new(Part(Arc::clone(store.backend()))), store.deadline()))
        })
    }

    fn list_stores(&self) -> KvStream<String> {
        self.admin.list_stores()
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        self.admin.delete_store(name)
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        self.app.health()
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move { self.app.shutdown().await.and(self.admin.shutdown().await) })
    }
}

/// The part of a store.
#[derive(Clone)]
struct Part(Arc<dyn KvStore>);

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Part").field(&self.0).finish()
    }
}

fn inner(key: &Key) -> KvResult<Key> {
    Key::new(format!("{PART}{key}"))
}

fn outer(key: Key) -> Key {
    key.strip_prefix(PART).and_then(|key| Key::new(key).ok()).unwrap_or(key)
}

fn entry(mut entry: KvEntry) -> KvEntry {
    entry.key = outer(entry.key);
    entry
}

fn scope(scope: WatchScope) -> KvResult<WatchScope> {
    let prefix = |prefix: String| format!("{PART}{prefix}");
    Ok(match scope {
        WatchScope::All => WatchScope::prefix(PART),
        WatchScope::Key(key) => WatchScope::Key(inner(&key)?),
        WatchScope::Keys(keys) => {
            WatchScope::Keys(keys.iter().map(inner).collect::<KvResult<_>>()?)
        }
        WatchScope::Prefix(one) => WatchScope::Prefix(prefix(one)),
        WatchScope::Prefixes(all) => WatchScope::Prefixes(all.into_iter().map(prefix).collect()),
        other => other,
    })
}

fn error(mut error: KvError) -> KvError {
    match &mut error {
        KvError::AlreadyExists { key, .. }
        | KvError::RevisionMismatch { key, .. }
        | KvError::Fenced { key, .. }
        | KvError::ValueTooLarge { key, .. }
        | KvError::OutcomeUnknown { key, .. }
        | KvError::Timeout { key: Some(key), .. } => *key = outer(key.clone()),
        _ => {}
    }
    error
}

fn stream<T: Send + 'static>(items: KvStream<T>, outer: fn(T) -> T) -> KvStream<T> {
    KvStream::new(items.map(move |item| item.map(outer).map_err(error)))
}

/// A method of the part, implemented with that of the store and the longer key.
macro_rules! of_key {
    ($this:ident, $key:ident, $inner:ident => $call:expr) => {
        Box::pin(async move {
            let $inner = inner($key)?;
            $call.await.map_err(error)
        })
    };
}

impl KvStore for Part {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        self.0.capabilities()
    }

    fn max_value_size(&self) -> usize {
        self.0.max_value_size()
    }

    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        self.0.refresh(deadline)
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        self.0.writer().map(|_| self as &dyn KvWriter)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        self.0.watcher().map(|_| self as &dyn KvWatcher)
    }

    fn ttl(&self) -> Option<&dyn KvTtl> {
        self.0.ttl().map(|_| self as &dyn KvTtl)
    }

    fn fenced(&self) -> Option<&dyn KvFenced> {
        self.0.fenced().map(|_| self as &dyn KvFenced)
    }
}

impl KvReader for Part {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        of_key!(self, key, inner => self.0.entry(&inner, deadline).map(|r| r.map(|e| e.map(entry))))
    }

    fn leader_entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        of_key!(self, key, inner => {
            self.0.leader_entry(&inner, deadline).map(|found| found.map(|found| found.map(entry)))
        })
    }

    fn figures<'a>(
        &'a self,
        of: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        Box::pin(async move {
            let of = scope(of.clone())?;
            self.0.figures(&of, deadline).await.map_err(error)
        })
    }

    fn time(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        self.0.time(deadline)
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        Box::pin(async move {
            let keys = keys.iter().map(inner).collect::<KvResult<Vec<_>>>()?;
            let found = self.0.entries(&keys, deadline).await.map_err(error)?;
            Ok(found.into_iter().map(|found| found.map(entry)).collect())
        })
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        match inner(&key) {
            Ok(key) => stream(self.0.history(key, deadline), entry),
            Err(error) => KvStream::error(error),
        }
    }

    fn scan(&self, of: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        match scope(of) {
            Ok(of) => stream(self.0.scan(of, deadline), entry),
            Err(error) => KvStream::error(error),
        }
    }

    fn keys(&self, of: WatchScope, deadline: Duration) -> KvStream<Key> {
        match scope(of) {
            Ok(of) => stream(self.0.keys(of, deadline), outer),
            Err(error) => KvStream::error(error),
        }
    }
}

impl Part {
    fn w(&self) -> &dyn KvWriter {
        self.0.writer().expect("a store that can be written to")
    }

    fn t(&self) -> &dyn KvTtl {
        self.0.ttl().expect("a store with times to live")
    }

    fn f(&self) -> &dyn KvFenced {
        self.0.fenced().expect("a store with fenced writes")
    }
}

impl KvWriter for Part {
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        of_key!(self, key, inner => self.w().write(&inner, write, deadline))
    }

    fn write_many<'a>(
        &'a self,
        writes: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        Box::pin(async move {
            let many = writes.into_iter().map(|(key, write)| (inner(&key).unwrap_or(key), write));
            let answers = self.w().write_many(many.collect(), atomicity, deadline).await;
            answers.into_iter().map(|answer| answer.map_err(error)).collect()
        })
    }
}

impl KvWatcher for Part {
    fn watch(
        &self,
        of: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        Box::pin(async move {
            let watcher = self.0.watcher().expect("a store that can be watched");
            let watch = watcher.watch(scope(of)?, from, deadline).await.map_err(error)?;
            let items = futures_util::stream::unfold(watch, |watch| async move {
                let item = watch.next().await?.map_err(error);
                let item = item.map(|update| {
                    let update =
                        update.into_entry().map_or(KvUpdate::CaughtUp, |e| entry(e).into());
                    (update, watch.cursor().unwrap())
                });
                Some((item, watch))
            });
            Ok(Watch::new(items))
        })
    }
}

impl KvTtl for Part {
    fn granularity(&self) -> Duration {
        self.t().granularity()
    }
}

impl KvFenced for Part {
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        of_key!(self, key, inner => self.f().raise(&inner, token, deadline))
    }
}
