//! The store of a bucket: the traits of the contract.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::future::BoxFuture;

use super::bucket::{self, Bucket};
use super::core::StoreCore;
use super::figures::figures;
use super::link::Link;
use super::scan;
use super::wire::StreamMessage;
use crate::store::{
    ConnectionCapabilities, Deadline, Key, KvEntry, KvFenced, KvReader, KvResult, KvStore,
    KvStream, KvTtl, KvWatcher, KvWriter, ReadConsistency, StoreFigures, WatchScope,
};

/// One bucket. Shared by the handle, its watches and its scans.
#[derive(Debug)]
pub(super) struct NatsStore(pub(super) Arc<StoreCore>);

impl NatsStore {
    pub(super) fn new(link: Arc<Link>, bucket: Bucket, consistency: ReadConsistency) -> Self {
        Self(Arc::new(StoreCore::new(link, bucket, consistency)))
    }
}

impl KvStore for NatsStore {
    fn name(&self) -> &str {
        &self.0.bucket.name
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        let mut capabilities = bucket::capabilities(&self.0.link);
        capabilities.key_ttl = self.0.bucket.settings().key_ttl;
        capabilities.fenced_writes = self.0.bucket.settings().keeps_fences();
        capabilities.expiry_events = self.0.bucket.settings().expiry_events;
        capabilities.linearizable_reads = self.0.bucket.settings().has_one_copy;
        capabilities
    }

    fn max_value_size(&self) -> usize {
        self.0.bucket.settings().max_value_size(self.0.link.max_payload())
    }

    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        const OPERATION: &str = "refresh";
        Box::pin(async move {
            deadline.bound(OPERATION, None, self.0.info(OPERATION, deadline)).await.map(|_| ())
        })
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        Some(self.0.bucket.settings().incarnation)
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        Some(self)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        Some(self)
    }

    fn ttl(&self) -> Option<&dyn KvTtl> {
        self.0.bucket.settings().key_ttl.then_some(self)
    }

    fn ttl_fault(&self) -> String {
        self.0.bucket.settings().ttl_fault()
    }

    fn fenced(&self) -> Option<&dyn KvFenced> {
        self.0.bucket.settings().keeps_fences().then_some(self)
    }
}

impl KvReader for NatsStore {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(async move {
            Ok(self.0.newest("get", key, deadline).await?.map(StreamMessage::into_entry))
        })
    }

    fn leader_entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(async move {
            Ok(self.0.newest_proven("get", key, deadline).await?.map(StreamMessage::into_entry))
        })
    }

    fn figures<'a>(
        &'a self,
        scope: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        Box::pin(
            async move { deadline.bound("figures", None, figures(&self.0, scope, deadline)).await },
        )
    }

    fn time(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        Box::pin(async move {
            let info = self.0.info("time", deadline).await?;
            // A server that does not report its time leaves the epoch.
            Ok(Some(info.now()).filter(|now| *now > SystemTime::UNIX_EPOCH))
        })
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        Box::pin(async move { deadline.bound("get_many", None, self.0.many(keys, deadline)).await })
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        scan::history(Arc::clone(&self.0), key, deadline.limit())
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        scan::entries(Arc::clone(&self.0), scope, deadline)
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        scan::keys(Arc::clone(&self.0), scope, deadline)
    }
}
