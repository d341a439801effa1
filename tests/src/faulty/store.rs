//! A store whose calls go through a hook.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use shizuku_kv::{
    Atomicity, ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError, KvFenced,
    KvReader, KvResult, KvStore, KvStream, KvTtl, KvWatcher, KvWriter, Store, StoreFigures,
    VersionToken, Watch, WatchCursor, WatchScope, Write,
};

use super::{Abilities, Answer, Call, Hook, Next, Operation};

/// A store whose calls go through a [`Hook`].
#[derive(Debug)]
pub struct FaultyStore<H> {
    store: Arc<dyn KvStore>,
    hook: Arc<H>,
}

impl<H: Hook> FaultyStore<H> {
    /// Returns a handle to `store` whose calls go through `hook`, with the same deadline.
    pub fn over(store: &Store, hook: &Arc<H>) -> Store {
        let faulty = Self { store: Arc::clone(store.backend()), hook: Arc::clone(hook) };
        Store::new(Arc::new(faulty), store.deadline())
    }

    fn abilities(&self) -> Abilities {
        self.hook.abilities(Abilities {
            capabilities: self.store.capabilities(),
            max_value_size: self.store.max_value_size(),
            incarnation: self.store.incarnation(),
            writes: self.store.writer().is_some(),
            watches: self.store.watcher().is_some(),
            granularity: self.store.ttl().map(KvTtl::granularity),
            fences: self.store.fenced().is_some(),
        })
    }

    fn call<T>(&self, operation: Operation, deadline: Deadline) -> BoxFuture<'static, KvResult<T>>
    where
        T: TryFrom<Answer, Error = KvError> + Send,
    {
        ask(&self.hook, Next::Store(Arc::clone(&self.store)), operation, deadline)
    }

    fn stream<T: Send + 'static>(&self, operation: Operation, deadline: Deadline) -> KvStream<T>
    where
        KvStream<T>: TryFrom<Answer, Error = KvError>,
    {
        flatten(self.call(operation, deadline))
    }
}

/// Passes a call to the hook.
pub(super) fn ask<H: Hook, T>(
    hook: &Arc<H>,
    next: Next,
    operation: Operation,
    deadline: Deadline,
) -> BoxFuture<'static, KvResult<T>>
where
    T: TryFrom<Answer, Error = KvError> + Send,
{
    let hook = Arc::clone(hook);
    Box::pin(async move { hook.call(Call { operation, deadline }, &next).await?.try_into() })
}

/// Returns the items of a stream that is not open yet. The stream does not measure progress, unlike
/// that of a backend, because the hook may wait too.
pub(super) fn flatten<T: Send + 'static>(
    opening: BoxFuture<'static, KvResult<KvStream<T>>>,
) -> KvStream<T> {
    let items = stream::once(opening).flat_map(|items| items.unwrap_or_else(KvStream::error));
    KvStream::new(items)
}

impl<H: Hook> KvStore for FaultyStore<H> {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        self.abilities().capabilities
    }

    fn max_value_size(&self) -> usize {
        self.abilities().max_value_size
    }

    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        self.call(Operation::Refresh, deadline)
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        self.abilities().incarnation
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        self.abilities().writes.then_some(self)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        self.abilities().watches.then_some(self)
    }

    fn ttl(&self) -> Option<&dyn KvTtl> {
        self.abilities().granularity.map(|_| self as &dyn KvTtl)
    }

    fn ttl_fault(&self) -> String {
        self.store.ttl_fault()
    }

    fn fenced(&self) -> Option<&dyn KvFenced> {
        self.abilities().fences.then_some(self)
    }
}

impl<H: Hook> KvReader for FaultyStore<H> {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        self.call(Operation::Entry(key.clone()), deadline)
    }

    fn leader_entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        self.call(Operation::LeaderEntry(key.clone()), deadline)
    }

    fn figures<'a>(
        &'a self,
        scope: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        self.call(Operation::Figures(scope.clone()), deadline)
    }

    fn time(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        self.call(Operation::Time, deadline)
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        self.call(Operation::Entries(keys.to_vec()), deadline)
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        self.stream(Operation::History(key), deadline)
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        self.stream(Operation::Scan(scope), Deadline::after(deadline))
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        self.stream(Operation::Keys(scope), Deadline::after(deadline))
    }
}

impl<H: Hook> KvWriter for FaultyStore<H> {
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        self.call(Operation::Write(key.clone(), write), deadline)
    }

    fn write_many<'a>(
        &'a self,
        writes: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        let count = writes.len();
        let answers = self.call::<Vec<KvResult<VersionToken>>>(
            Operation::WriteMany(writes, atomicity),
            Deadline::after(deadline),
        );
        Box::pin(async move { answers.await.unwrap_or_else(|error| vec![Err(error); count]) })
    }
}

impl<H: Hook> KvWatcher for FaultyStore<H> {
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        self.call(Operation::Watch(scope, from), deadline)
    }
}

impl<H: Hook> KvTtl for FaultyStore<H> {
    fn granularity(&self) -> Duration {
        self.abilities().granularity.unwrap_or(Duration::MAX)
    }
}

impl<H: Hook> KvFenced for FaultyStore<H> {
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        self.call(Operation::Raise(key.clone(), token), deadline)
    }
}
