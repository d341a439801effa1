//! A connection whose calls go through a hook.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use shizuku_kv::{
    Connection, ConnectionCapabilities, Deadline, KvError, KvResult, KvStream, Store, StoreConfig,
};

use super::store::{ask, flatten};
use super::{Answer, Hook, Next, Operation};

/// A connection whose calls go through a [`Hook`].
#[derive(Debug)]
pub struct FaultyConnection<H> {
    connection: Arc<dyn Connection>,
    hook: Arc<H>,
}

impl<H: Hook> FaultyConnection<H> {
    /// Returns `connection` with calls that go through `hook`.
    pub fn over(connection: Arc<dyn Connection>, hook: &Arc<H>) -> Arc<dyn Connection> {
        Arc::new(Self { connection, hook: Arc::clone(hook) })
    }

    fn call<T>(&self, operation: Operation) -> BoxFuture<'static, KvResult<T>>
    where
        T: TryFrom<Answer, Error = KvError> + Send,
    {
        let next = Next::Connection(Arc::clone(&self.connection));
        ask(&self.hook, next, operation, Deadline::after(Deadline::DEFAULT))
    }
}

impl<H: Hook> Connection for FaultyConnection<H> {
    fn capabilities(&self) -> ConnectionCapabilities {
        self.hook.capabilities(self.connection.capabilities())
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        self.call(Operation::Open(name.to_owned(), config))
    }

    fn list_stores(&self) -> KvStream<String> {
        flatten(self.call(Operation::ListStores))
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        self.call(Operation::DeleteStore(name.to_owned()))
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        self.call(Operation::Health)
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        self.call(Operation::Shutdown)
    }
}
