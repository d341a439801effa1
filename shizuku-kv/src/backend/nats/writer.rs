//! The writing half of the contract.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;

use super::store::{NatsStore, StoreCore};
use super::write::{Sent, Write};
use crate::store::{
    Deadline, Key, KvError, KvOperation, KvResult, KvTtl, KvWriter, VersionToken, check_ttl,
};

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
        Box::pin(async move {
            if key.is_of_locks() {
                self.0.ensure_locks_stay("create", key, deadline).await?;
            }
            self.0.create(Write::put("create", key, value), deadline).await
        })
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

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.delete("delete", key, KvOperation::Delete, None, deadline))
    }

    fn delete_with_version<'a>(
        &'a self,
        key: &'a Key,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.delete(
            "delete_with_version",
            key,
            KvOperation::Delete,
            Some(expected),
            deadline,
        ))
    }

    fn purge<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.delete("purge", key, KvOperation::Purge, None, deadline))
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

impl StoreCore {
    /// Writes a tombstone. It has a time to live if its end cannot bring back an older value: see
    /// [`Settings::tombstone_ttl`](super::bucket::Settings::tombstone_ttl).
    async fn delete(
        &self,
        operation: &'static str,
        key: &Key,
        kind: KvOperation,
        expected: Option<VersionToken>,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let mut life = self.bucket.settings().tombstone_ttl.filter(|_| !key.is_of_locks());
        if life.is_some() {
            // Another client may just have asked for a longer history.
            let settings = deadline
                .bound(operation, Some(key), self.settings_of_now(operation, deadline))
                .await?;
            life = settings.tombstone_ttl;
        }
        let write = match life {
            // With a history of 1 a deletion leaves no older entry, like a purge. A rollup with a
            // time to live would bring back the purged values, if the server is killed after its
            // end.
            Some(life) => Write::deletion(operation, key, KvOperation::Delete).expiring(life),
            None => Write::deletion(operation, key, kind),
        };
        let write = match expected {
            Some(expected) => write.expecting(expected)?,
            None => write,
        };
        self.write(write, deadline).await
    }

    /// Rejects creating the record of a lock or of a session in a store that can lose it: a missing
    /// record may have been lost already, together with a lock that is held.
    async fn ensure_locks_stay(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<()> {
        let settings =
            deadline.bound(operation, Some(key), self.settings_of_now(operation, deadline)).await?;
        settings.ensure_newest_stay(operation, &self.bucket.name)
    }

    /// Returns a write with a time to live, unless the store cannot keep that.
    async fn expiring(&self, write: Write, ttl: Duration, deadline: Deadline) -> KvResult<Write> {
        let operation = write.operation();
        let settings = self.recent_settings(operation, deadline);
        let settings = deadline.bound(operation, Some(write.key()), settings).await?;
        if !settings.key_ttl {
            return Err(KvError::Unsupported {
                operation,
                reason: format!(
                    "store {:?} does not have times to live any more",
                    self.bucket.name
                ),
            });
        }
        check_ttl(ttl, settings.max_age)?;
        Ok(write.expiring(ttl))
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
        let write = Write::put("put with a time to live", key, value);
        Box::pin(async move {
            let write = self.0.expiring(write, ttl, deadline).await?;
            self.0.write(write, deadline).await
        })
    }

    fn create_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        let write = Write::put("create with a time to live", key, value);
        Box::pin(async move {
            let write = self.0.expiring(write, ttl, deadline).await?;
            self.0.create(write, deadline).await
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
        let write = Write::put("update with a time to live", key, value);
        Box::pin(async move {
            let write = self.0.expiring(write.expecting(expected)?, ttl, deadline).await?;
            self.0.write(write, deadline).await
        })
    }
}
