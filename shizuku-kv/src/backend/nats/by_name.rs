//! Reads of many keys by name: in batched direct gets (ADR-31), or one by one.
//!
//! No consumer is involved, so that the cost is that of the keys, however many others the store
//! has.

use std::collections::{HashMap, HashSet};

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::time::Instant;

use super::core::{StoreCore, status_of};
use super::denials::Form;
use super::link::Interruption;
use super::retry::first_patience;
use super::wire::StreamMessage;
use crate::store::{Deadline, Key, KvEntry, KvError, KvResult, ReadConsistency};

/// Maximum number of single gets in flight.
const GETS_IN_FLIGHT: usize = 64;

/// Maximum number of keys in one batch request: the server takes at most 1,024.
pub(super) const BATCH_KEYS: usize = 512;

/// Maximum bytes of subjects in one batch request; fewer if the server accepts less.
const BATCH_BYTES: usize = 256 * 1024;

/// Bytes of a batch request beside the subjects.
const BATCH_FRAME: usize = 80;

/// Maximum bytes in the answer to one batch request, apart from its last message.
const ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// Minimum number of keys in a batch. Fewer keys are requested one by one, because a batch costs a
/// subscription.
const BATCH_MIN: usize = 4;

/// The answers that count as proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Those of any replica.
    Replica,
    /// Values of any replica. That a key has none, the leader confirms: a replica that is behind
    /// may lack a value that was acknowledged before.
    Values,
    /// Those of a replica that has everything up to this sequence, and of the leader. A replica
    /// looks at the end of its stream first, and leaves out a key that is written after that.
    UpTo(u64),
}

/// Messages that were read.
pub(super) struct Page {
    pub(super) messages: Vec<StreamMessage>,
    /// One answer has them all, so that they are of one store.
    pub(super) is_of_one_answer: bool,
}

/// The answer to a batch request.
struct Batch {
    end: BatchEnd,
    /// The sequence up to which the replica that answered has everything; 0 if it does not tell.
    up_to: u64,
    found: HashMap<Key, StreamMessage>,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchEnd {
    /// Every key that is there was answered.
    Complete,
    /// The answer is incomplete, so that the missing keys have to be requested again.
    Cut,
    /// A mirror may have answered, so the leader has to be asked for the missing keys.
    Unknown,
}

impl StoreCore {
    /// The newest entries of some keys, in their order.
    pub(super) async fn many(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> KvResult<Vec<Option<KvEntry>>> {
        let (mut left, mut found) = (keys.to_vec(), HashMap::new());
        while !left.is_empty() {
            let page = self.read_some("get_many", &mut left, Trust::Replica, deadline).await?;
            let some = page.messages.into_iter();
            found.extend(some.map(|message| (message.key.clone(), message.into_entry())));
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    /// The newest messages of some keys, those that have one, from a replica that has everything up
    /// to `sequence`.
    pub(super) async fn many_as_of(
        &self,
        operation: &'static str,
        mut left: Vec<Key>,
        sequence: u64,
        deadline: Deadline,
    ) -> KvResult<Vec<StreamMessage>> {
        let mut found = Vec::new();
        while !left.is_empty() {
            let trust = Trust::UpTo(sequence);
            found.extend(self.read_some(operation, &mut left, trust, deadline).await?.messages);
        }
        Ok(found)
    }

    /// Reads some of the keys, as many as one answer may contain, and removes them from `left`.
    /// Returns the newest messages of those that have one, in no order.
    pub(super) async fn read_some(
        &self,
        operation: &'static str,
        left: &mut Vec<Key>,
        trust: Trust,
        deadline: Deadline,
    ) -> KvResult<Page> {
        let most = self.link.max_request().saturating_sub(BATCH_FRAME).min(BATCH_BYTES);
        let part = batch_of(left, self.bucket.prefix.len(), most);
        let can_batch = self.consistency == ReadConsistency::Any
            && self.bucket.settings().allow_direct
            && part >= BATCH_MIN
            && self.link.server_is_at_least(2, 11);
        let is_closed = || self.link.is_denied(Form::Batch, &self.bucket.stream);
        let mut denied = None;
        if !can_batch || is_closed() {
            let some = left.split_off(left.len().saturating_sub(GETS_IN_FLIGHT));
            match self.singles(operation, some.clone(), trust, deadline).await {
                // Rights may have changed since the batch was denied.
                Err(error @ KvError::Unauthorized { .. }) if can_batch => {
                    left.extend(some);
                    self.link.allow(Form::Batch, &self.bucket.stream);
                    denied = Some(error);
                }
                found => {
                    let is_of_one_answer = some.len() <= 1;
                    return found.map(|messages| Page { messages, is_of_one_answer });
                }
            }
        }
        let part = left.split_off(left.len() - part);
        let Batch { end, up_to, mut found } = self.batch(operation, &part, deadline).await?;
        if let Some(denied) = denied.filter(|_| is_closed()) {
            return Err(denied);
        }
        match trust {
            Trust::Replica => {}
            Trust::Values => found.retain(|_, message| !message.operation.is_deletion()),
            Trust::UpTo(sequence) if up_to >= sequence => {}
            Trust::UpTo(_) => found.clear(),
        }
        let missing: Vec<_> = part.into_iter().filter(|key| !found.contains_key(key)).collect();
        let is_of_one_answer = missing.is_empty();
        let found = found.into_values();
        let singles = match (end, trust) {
            (BatchEnd::Complete, Trust::Replica) => Vec::new(),
            (BatchEnd::Complete | BatchEnd::Unknown, _) => {
                self.of_leader(operation, missing, deadline).await?
            }
            (BatchEnd::Cut, _) if found.len() > 0 => {
                left.extend(missing);
                Vec::new()
            }
            (BatchEnd::Cut, _) => self.singles(operation, missing, trust, deadline).await?,
        };
        Ok(Page { messages: found.chain(singles).collect(), is_of_one_answer })
    }

    /// The newest messages of some keys, one by one.
    async fn singles(
        &self,
        operation: &'static str,
        keys: Vec<Key>,
        trust: Trust,
        deadline: Deadline,
    ) -> KvResult<Vec<StreamMessage>> {
        if let Trust::UpTo(_) = trust {
            return self.of_leader(operation, keys, deadline).await;
        }
        let singles = stream::iter(keys).map(|key| async move {
            let found = self.newest(operation, &key, deadline).await?;
            let is_deletion = found.as_ref().is_some_and(|message| message.operation.is_deletion());
            if is_deletion && trust == Trust::Values && self.consistency == ReadConsistency::Any {
                return self.newest_proven(operation, &key, deadline).await;
            }
            Ok(found)
        });
        let singles = singles.buffer_unordered(GETS_IN_FLIGHT);
        singles.try_filter_map(|found| async { Ok(found) }).try_collect().await
    }

    /// The newest messages of some keys, from the leader.
    async fn of_leader(
        &self,
        operation: &'static str,
        keys: Vec<Key>,
        deadline: Deadline,
    ) -> KvResult<Vec<StreamMessage>> {
        // A key that was given twice is asked for once.
        let keys: HashSet<Key> = keys.into_iter().collect();
        let singles = stream::iter(keys)
            .map(|key| async move { self.newest_proven(operation, &key, deadline).await })
            .buffer_unordered(GETS_IN_FLIGHT);
        singles.try_filter_map(|found| async { Ok(found) }).try_collect().await
    }

    /// Reads keys with one request and one subscription.
    async fn batch(
        &self,
        operation: &'static str,
        keys: &[Key],
        deadline: Deadline,
    ) -> KvResult<Batch> {
        let mark = self.link.up(operation, deadline).await?;
        let client = self.link.client();
        let inbox = client.new_inbox();
        let mut answers = self.link.subscribe(operation, inbox.clone()).await?;
        let subjects: Vec<_> = keys.iter().map(|key| self.subject(key)).collect();
        let query =
            json!({ "multi_last": subjects, "batch": subjects.len(), "max_bytes": ANSWER_BYTES });
        let subject = self.link.space().api(&format!("DIRECT.GET.{}", self.bucket.stream));
        let query = Bytes::from(query.to_string());
        let _in_flight = self.link.requests().other(&query);
        client
            .publish_with_reply(subject.clone(), inbox.clone(), query)
            .await
            .map_err(|error| self.link.not_sent(operation, "cannot send the request", error))?;
        let mut found = HashMap::new();
        let mut up_to = 0;
        // All messages of an answer come from one stream.
        let mut is_of_bucket = false;
        let end = loop {
            let silence = (Instant::now() + first_patience(deadline)).min(deadline.instant());
            let message = tokio::select! {
                biased;
                message = answers.next() => message,
                interruption = self.link.interrupted(mark, [subject.as_str(), inbox.as_str()]) => {
                    if let Interruption::Denied(_) = interruption {
                        self.link.deny(Form::Batch, &self.bucket.stream);
                    }
                    break BatchEnd::Cut;
                }
                () = tokio::time::sleep_until(silence) => {
                    // Direct gets may have been turned off.
                    self.diagnose(operation, deadline).await?;
                    break BatchEnd::Cut;
                }
            };
            let Some(message) = message else { break BatchEnd::Cut };
            match status_of(&message) {
                None => match self.direct_answer(operation, message)? {
                    Some(message) => {
                        is_of_bucket = true;
                        found.insert(message.key.clone(), message);
                    }
                    None => break BatchEnd::Unknown,
                },
                // 204: end of the batch. 404: the answering server has none of them.
                Some(status) if status.as_u16() == 204 => {
                    up_to = number(&message, "Nats-UpTo-Sequence").unwrap_or(0);
                    let is_complete =
                        number(&message, "Nats-Num-Pending").is_none_or(|left| left == 0);
                    break match (is_complete, is_of_bucket) {
                        (true, true) => BatchEnd::Complete,
                        (true, false) => BatchEnd::Unknown,
                        (false, _) => BatchEnd::Cut,
                    };
                }
                Some(StatusCode::NOT_FOUND) => break BatchEnd::Unknown,
                Some(StatusCode::NO_RESPONDERS) => {
                    self.diagnose(operation, deadline).await?;
                    break BatchEnd::Cut;
                }
                // After 413 or another rejection, keys are requested one by one, which works on
                // every server.
                Some(_) => break BatchEnd::Cut,
            }
        };
        Ok(Batch { end, up_to, found })
    }
}

fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}

/// The number of keys at the end of `keys` for one request of at most `most` bytes of subjects. One
/// key counts at least, however large.
fn batch_of(keys: &[Key], prefix: usize, most: usize) -> usize {
    let mut bytes = 0;
    let fits = keys.iter().rev().take(BATCH_KEYS).take_while(|key| {
        bytes += key.len() + prefix + 3;
        bytes <= most
    });
    fits.count().max(1).min(keys.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn batches(keys: &[Key], most: usize) -> Vec<Vec<Key>> {
        let mut left = keys.to_vec();
        let mut parts = Vec::new();
        while !left.is_empty() {
            parts.push(left.split_off(left.len() - batch_of(&left, 10, most)));
        }
        parts.reverse();
        parts
    }

    #[test]
    fn batches_hold_every_key_once_and_stay_below_the_limit() {
        let keys: Vec<Key> =
            [3, 200, 1, 1024, 50, 50, 50, 700].map(|len| Key::new("k".repeat(len)).unwrap()).into();
        for most in [0, 10, 100, 300, 1000, 5000] {
            let parts = batches(&keys, most);
            assert_eq!(parts.concat(), keys, "{most}");
            for part in parts {
                let bytes: usize = part.iter().map(|key| key.len() + 13).sum();
                assert!(bytes <= most || part.len() == 1, "{most}: {bytes}");
            }
        }
        let many: Vec<Key> = (0..1500).map(|n| Key::new(format!("k{n}")).unwrap()).collect();
        let lens: Vec<usize> = batches(&many, usize::MAX).iter().map(Vec::len).collect();
        assert_eq!(lens, [476, 512, 512]);
    }
}
