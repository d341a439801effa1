//! The writing half of the contract.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_core::future::BoxFuture;

use super::core::StoreCore;
use super::store::NatsStore;
use super::write::{Sent, WriteMessage};
use crate::store::{
    Atomicity, Deadline, Key, KvError, KvOperation, KvResult, KvTtl, KvWriter, VersionToken, Write,
    WriteCondition, WriteOperation, check_ttl,
};

/// Maximum number of writes of one call that are in flight.
const WRITES_IN_FLIGHT: usize = 1024;

/// Returns for each item whether no later item has its key.
fn last_of_each_key(items: &[(Key, Write)]) -> Vec<bool> {
    let mut later = HashSet::with_capacity(items.len());
    let mut is_last: Vec<bool> = items.iter().rev().map(|(key, _)| later.insert(key)).collect();
    is_last.reverse();
    is_last
}

impl KvWriter for NatsStore {
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.0.apply(key, write, deadline))
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
            let mut in_flight = VecDeque::new();
            let is_last = last_of_each_key(&writes);
            // While there is no connection, the first write waits for it; the others then do not
            // wait again.
            let mut waited: Option<Deadline> = None;
            for ((key, write), is_last) in writes.into_iter().zip(is_last) {
                // Sent one after the other, so that writes of one key keep their order.
                let deadline = match waited {
                    Some(passed) if !self.0.link.is_connected() => passed,
                    _ => Deadline::after(deadline),
                };
                if !is_single_message(&write) {
                    answers.extend(self.resolve_all(&mut in_flight).await);
                    answers.push(self.0.apply(&key, write, deadline).await);
                    continue;
                }
                let sent = self.0.send_single(&key, write, is_last, deadline).await;
                waited = matches!(sent, Err(KvError::Unavailable { .. })).then_some(deadline);
                in_flight.push_back((sent, deadline));
                if in_flight.len() >= WRITES_IN_FLIGHT {
                    answers.extend(self.resolve_first(&mut in_flight).await);
                }
            }
            answers.extend(self.resolve_all(&mut in_flight).await);
            answers
        })
    }
}

/// Whether a write is one message that depends on nothing in the store, so that it can be sent
/// before the one ahead of it is acknowledged.
fn is_single_message(write: &Write) -> bool {
    !write.is_deletion() && write.condition == WriteCondition::Any && write.fence.is_none()
}

impl StoreCore {
    async fn apply(&self, key: &Key, write: Write, deadline: Deadline) -> KvResult<VersionToken> {
        write.check()?;
        let operation = write.name();
        let Write { condition, ttl, fence, metadata, .. } = write;
        let message = match write.operation {
            WriteOperation::Put(value) => WriteMessage::put(operation, key, value),
            WriteOperation::Delete => WriteMessage::deletion(operation, key, KvOperation::Delete),
            WriteOperation::Purge => WriteMessage::deletion(operation, key, KvOperation::Purge),
        };
        let message = message.by(metadata);
        if let Some(token) = fence {
            // A deletion has no time to live: a tombstone with one can bring the value before it
            // back (nats-server #8505), and with it the token.
            return self.write_fenced(message, token, condition, deadline).await;
        }
        if condition == WriteCondition::Absent && key.is_of_locks() {
            self.ensure_locks_stay(operation, key, deadline).await?;
        }
        let message = match condition {
            WriteCondition::Exactly(expected) => message.expecting(expected)?,
            WriteCondition::Any | WriteCondition::Absent => message,
        };
        let message = match ttl {
            Some(ttl) => self.expiring(message, ttl, deadline).await?,
            None if message.is_deletion() => self.ending(message, deadline).await?,
            None => message,
        };
        match condition {
            WriteCondition::Absent => self.create(message, deadline).await,
            WriteCondition::Any | WriteCondition::Exactly(_) => self.write(message, deadline).await,
        }
    }

    /// Sends a write that is a single message, without waiting for its acknowledgement. `is_last`:
    /// no later write of the call has its key.
    async fn send_single(
        &self,
        key: &Key,
        write: Write,
        is_last: bool,
        deadline: Deadline,
    ) -> KvResult<Sent> {
        let (operation, ttl) = (write.name(), write.ttl);
        let value = write.value().cloned().unwrap_or_default();
        let message =
            WriteMessage::put(operation, key, value).by(write.metadata).pipelined(is_last);
        let message = match ttl {
            Some(ttl) => self.expiring(message, ttl, deadline).await?,
            None => message,
        };
        self.send(message, deadline).await
    }

    /// Gives a tombstone a time to live if its end cannot bring back an older value: see
    /// [`Settings::tombstone_ttl`](super::settings::Settings::tombstone_ttl).
    async fn ending(&self, message: WriteMessage, deadline: Deadline) -> KvResult<WriteMessage> {
        let (operation, key) = (message.operation(), message.key());
        if self.bucket.settings().tombstone_ttl.is_none() || key.is_of_locks() {
            return Ok(message);
        }
        // Another client may just have asked for a longer history.
        let settings =
            deadline.bound(operation, Some(key), self.settings_of_now(operation, deadline)).await?;
        Ok(match settings.tombstone_ttl {
            // With a history of 1 a deletion leaves no older entry, like a purge. A rollup with a
            // time to live would bring back the purged values, if the server is killed after its
            // end.
            Some(life) => message.without_rollup().expiring(life),
            None => message,
        })
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
    async fn expiring(
        &self,
        write: WriteMessage,
        ttl: Duration,
        deadline: Deadline,
    ) -> KvResult<WriteMessage> {
        let operation = write.operation();
        let settings = self.recent_settings(operation, deadline);
        let settings = deadline.bound(operation, Some(write.key()), settings).await?;
        // Those of the bucket, which know of the handle's request, are as new.
        if !self.bucket.settings().key_ttl {
            return Err(KvError::Unsupported {
                operation,
                reason: format!(
                    "store {:?} {}",
                    self.bucket.name,
                    self.bucket.settings().ttl_fault()
                ),
            });
        }
        check_ttl(ttl, settings.max_age)?;
        Ok(write.expiring(ttl))
    }
}

/// Writes that were sent, or the errors of those that were not, each with its deadline.
type InFlight = VecDeque<(KvResult<Sent>, Deadline)>;

impl NatsStore {
    async fn resolve_first(&self, in_flight: &mut InFlight) -> Option<KvResult<VersionToken>> {
        Some(match in_flight.pop_front()? {
            (Ok(sent), deadline) => self.0.resolve(sent, deadline).await,
            (Err(error), _) => Err(error),
        })
    }

    /// Acknowledgements arrive whether or not they are waited for, so that waiting for one after
    /// the other costs nothing.
    async fn resolve_all(&self, in_flight: &mut InFlight) -> Vec<KvResult<VersionToken>> {
        let mut answers = Vec::with_capacity(in_flight.len());
        while let Some(answer) = self.resolve_first(in_flight).await {
            answers.push(answer);
        }
        answers
    }
}

impl KvTtl for NatsStore {
    fn granularity(&self) -> Duration {
        Duration::from_secs(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn last_item_of_each_key_is_known() {
        let items: Vec<_> =
            ["a", "b", "a", "c", "b"].map(|key| (Key::new(key).unwrap(), Write::delete())).into();
        assert_eq!(last_of_each_key(&items), [false, false, true, true, true]);
    }
}
