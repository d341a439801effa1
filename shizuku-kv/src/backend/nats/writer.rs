//! The writing half of the contract.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;

use super::store::NatsStore;
use super::write::{Sent, Write};
use crate::store::{Deadline, Key, KvError, KvOperation, KvResult, KvTtl, KvWriter, VersionToken};

/// Writes of `put_many` on their way at a time.
const WRITES_IN_FLIGHT: usize = 1024;

impl KvWriter for NatsStore {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.write(Write::put("put", key, value), deadline))
    }

    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.create(Write::put("create", key, value), deadline))
    }

    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            self.0.write(Write::put("update", key, value).expecting(expected)?, deadline).await
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, deadline: Deadline) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.write(Write::deletion("delete", key, KvOperation::Delete), deadline))
    }

    fn delete_with_version<'a>(
        &'a self,
        key: &'a Key,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let write = Write::deletion("delete_with_version", key, KvOperation::Delete);
            self.0.write(write.expecting(expected)?, deadline).await
        })
    }

    fn purge<'a>(&'a self, key: &'a Key, deadline: Deadline) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.write(Write::deletion("purge", key, KvOperation::Purge), deadline))
    }

    fn put_many<'a>(
        &'a self,
        items: Vec<(Key, Bytes)>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(items.len());
            let mut on_their_way = VecDeque::new();
            // While there is no connection, the first item waits for it; the others then do not wait again.
            let mut waited: Option<Deadline> = None;
            for (key, value) in items {
                // Sent one after the other, so that writes of one key keep their order.
                let deadline = match waited {
                    Some(passed) if !self.0.link.is_connected() => passed,
                    _ => Deadline::after(deadline),
                };
                let write = Write::put("put_many", &key, value).pipelined();
                let sent = self.0.send(write, deadline).await;
                waited = matches!(sent, Err(KvError::Unavailable { .. })).then_some(deadline);
                on_their_way.push_back((sent, deadline));
                if on_their_way.len() >= WRITES_IN_FLIGHT {
                    answers.extend(self.settle_first(&mut on_their_way).await);
                }
            }
            // Acknowledgements arrive whether or not they are waited for, so that waiting for one after the other costs
            // nothing.
            while let Some(answer) = self.settle_first(&mut on_their_way).await {
                answers.push(answer);
            }
            answers
        })
    }
}

impl NatsStore {
    async fn settle_first(
        &self,
        on_their_way: &mut VecDeque<(KvResult<Sent>, Deadline)>,
    ) -> Option<KvResult<VersionToken>> {
        Some(match on_their_way.pop_front()? {
            (Ok(sent), deadline) => self.0.settle(sent, deadline).await,
            (Err(error), _) => Err(error),
        })
    }
}

impl KvTtl for NatsStore {
    fn granularity(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn put_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        let write = Write::put("put with a time to live", key, value).expiring(ttl);
        Box::pin(self.0.write(write, deadline))
    }

    fn create_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        let write = Write::put("create with a time to live", key, value).expiring(ttl);
        Box::pin(self.0.create(write, deadline))
    }

    fn update_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        let write = Write::put("update with a time to live", key, value).expiring(ttl);
        Box::pin(async move { self.0.write(write.expecting(expected)?, deadline).await })
    }
}
