//! A read-only store around a writable one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use shizuku_kv::{
    ConnectionCapabilities, Deadline, Key, KvEntry, KvReader, KvResult, KvStore, KvStream,
    WatchScope,
};

#[derive(Debug)]
pub(crate) struct ReadOnly(pub(crate) Arc<dyn KvStore>);

impl KvStore for ReadOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        ConnectionCapabilities::default()
    }

    fn max_value_size(&self) -> usize {
        self.0.max_value_size()
    }
}

impl KvReader for ReadOnly {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        self.0.entry(key, deadline)
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        self.0.entries(keys, deadline)
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        self.0.history(key, deadline)
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        self.0.scan(scope, deadline)
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        self.0.keys(scope, deadline)
    }
}
