//! Writing, and finding out what became of a write whose acknowledgement was lost.
//!
//! Every write carries an id of its own in a header. When the connection breaks before the acknowledgement came, the
//! id is looked for in the stream: found, the write took effect. Not found, what else is there tells whether it can
//! still have happened (see [`Fate`]). A message id for the server's own duplicate detection would not do: a repeated
//! compare-and-swap is refused for its sequence before it is recognised as a duplicate.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::future::Fuse;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};

use super::link::{Interruption, Mark, backoff};
use super::store::{NatsStore, StoreCore, pause};
use super::wire::{EXPECTED_SEQUENCE, KV_OPERATION, OPERATION_ID, ROLLUP, StreamMessage, TTL};
use crate::store::{
    Deadline, ErrorSource, Key, KvError, KvOperation, KvResult, KvTtl, KvWriter, VersionToken,
};

/// Writes of `put_many` on their way at a time.
const WRITES_IN_FLIGHT: usize = 1024;

/// The share of the deadline that is left for finding out, where no acknowledgement comes on a connection that seems
/// to be alive.
const FIND_OUT_SHARE: u32 = 3;

/// One write.
#[derive(Clone, Debug)]
struct Write {
    operation: &'static str,
    key: Key,
    value: Bytes,
    kind: KvOperation,
    expect: Expect,
    ttl: Option<Duration>,
}

/// What a write expects the newest stream sequence of its key to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Anything,
    /// Zero: no message at all.
    Exactly(u64),
}

impl Write {
    fn put(operation: &'static str, key: &Key, value: Bytes) -> Self {
        Self {
            operation,
            key: key.clone(),
            value,
            kind: KvOperation::Put,
            expect: Expect::Anything,
            ttl: None,
        }
    }

    fn deletion(operation: &'static str, key: &Key, kind: KvOperation) -> Self {
        Self { kind, ..Self::put(operation, key, Bytes::new()) }
    }

    /// The same with an expected version. One that this backend cannot have given out never matches.
    fn expecting(mut self, expected: VersionToken) -> KvResult<Self> {
        match expected.as_u64() {
            Some(sequence) if sequence > 0 => {
                self.expect = Expect::Exactly(sequence);
                Ok(self)
            }
            _ => Err(KvError::RevisionMismatch { key: self.key, expected, found: None }),
        }
    }

    fn headers(&self, expect: Expect, id: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(OPERATION_ID, id);
        }
        match self.kind {
            KvOperation::Delete => headers.insert(KV_OPERATION, "DEL"),
            KvOperation::Purge => {
                headers.insert(KV_OPERATION, "PURGE");
                headers.insert(ROLLUP, "sub");
            }
            _ => {}
        }
        if let Expect::Exactly(sequence) = expect {
            headers.insert(EXPECTED_SEQUENCE, sequence.to_string());
        }
        if let Some(ttl) = self.ttl {
            headers.insert(TTL, format!("{}s", ttl.as_secs()));
        }
        headers
    }

    fn unknown(&self, source: Option<ErrorSource>) -> KvError {
        KvError::OutcomeUnknown { operation: self.operation, key: self.key.clone(), source }
    }

    fn mismatch(&self, found: Option<u64>) -> KvError {
        let found = found.filter(|sequence| *sequence > 0).map(VersionToken::from_u64);
        match self.expect {
            Expect::Exactly(expected) if expected > 0 => KvError::RevisionMismatch {
                key: self.key.clone(),
                expected: VersionToken::from_u64(expected),
                found,
            },
            _ => KvError::AlreadyExists { key: self.key.clone(), found },
        }
    }
}

/// Fused, since it is listened to again while a write is searched for.
type Acknowledgement = Fuse<Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>>;

/// A write on its way.
struct Sent {
    write: Write,
    id: String,
    /// What was known to be taken before it was sent.
    observed: u64,
    expect: Expect,
    /// Whether it was sent more than once.
    repeated: bool,
    mark: Mark,
    subject: String,
    acknowledgement: Acknowledgement,
}

/// What the server said to one copy of a write.
#[derive(Debug)]
enum Verdict {
    Taken(u64),
    /// The expected sequence is not the newest; the newest, where the server told.
    Conflict(Option<u64>),
    /// Nobody took it: there is no such stream, or no leader at the moment.
    NobodyThere,
    Refused(KvError),
    /// No answer, and none will come.
    Silence(Option<ErrorSource>),
}

/// What became of a write that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It took effect at this sequence.
    Landed(u64),
    /// It did not, and cannot any more; the newest sequence of the key is this.
    Lost(u64),
    /// It did not up to now. A copy that expects this sequence takes effect at most once, together with the first.
    NotYet(u64),
    Unknown,
}

/// What the stream shows of a key after a write was not acknowledged, none of it being that write.
#[derive(Clone, Copy, Debug)]
struct Evidence {
    /// The newest sequence of the key; 0 where there is no message.
    newest: u64,
    /// What this client knew to be taken before it sent the write.
    observed: u64,
    /// Every message of the key behind the expected sequence is still there.
    complete: bool,
    /// Requests arrive in the order in which they were sent.
    single_server: bool,
}

/// The decision, without which a lost acknowledgement would be a guess.
///
/// Sequences only grow, so that a message at or below `observed` was there before the write was sent: if that is the
/// newest of the key, then nothing has been written since, this write included. A compare-and-swap whose expected
/// sequence is no longer the newest cannot take effect any more; whether it had done so before can be told only if
/// everything since is still there. A write without expectation is repeated only as a compare-and-swap against what is
/// there, and only where its first copy cannot overtake that.
fn decide(expect: Expect, evidence: &Evidence) -> Fate {
    let nothing_since = evidence.newest <= evidence.observed;
    match expect {
        Expect::Exactly(expected) if evidence.newest == expected => Fate::NotYet(expected),
        Expect::Exactly(_) if nothing_since || evidence.complete => Fate::Lost(evidence.newest),
        Expect::Anything if nothing_since && evidence.single_server => Fate::NotYet(evidence.newest),
        _ => Fate::Unknown,
    }
}

impl StoreCore {
    async fn write(&self, write: Write, deadline: Deadline) -> KvResult<VersionToken> {
        let sent = self.send(write, deadline).await?;
        self.settle(sent, deadline).await
    }

    /// Sends a write. An error means that it was not sent.
    async fn send(&self, write: Write, deadline: Deadline) -> KvResult<Sent> {
        let id = self.link.next_id();
        let observed = self.observed();
        let subject = self.subject(&write.key);
        let expect = write.expect;
        let (mark, acknowledgement) = self.publish(&write, &subject, expect, &id, deadline).await?;
        Ok(Sent { write, id, observed, expect, repeated: false, mark, subject, acknowledgement })
    }

    async fn publish(
        &self,
        write: &Write,
        subject: &str,
        expect: Expect,
        id: &str,
        deadline: Deadline,
    ) -> KvResult<(Mark, Acknowledgement)> {
        let operation = write.operation;
        // Not while disconnected: the client would keep the message and send it whenever it is back, even after the
        // deadline.
        let mark = self.link.up(operation, deadline).await?;
        let publish = self.link.jetstream().publish_with_headers(
            subject.to_owned(),
            write.headers(expect, self.bucket.has_operation_ids().then_some(id)),
            write.value.clone(),
        );
        match tokio::time::timeout_at(deadline.instant(), publish).await {
            Ok(Ok(acknowledgement)) => Ok((mark, acknowledgement.into_future().fuse())),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(self.too_large(write))
            }
            Ok(Err(_)) if self.link.is_closed() => Err(KvError::Closed { operation }),
            Ok(Err(error)) => Err(KvError::Unavailable {
                operation,
                reason: "the write could not be sent".to_owned(),
                source: Some(Arc::new(error)),
            }),
            Err(_) => Err(deadline.timeout(operation, Some(&write.key))),
        }
    }

    fn too_large(&self, write: &Write) -> KvError {
        KvError::ValueTooLarge {
            key: write.key.clone(),
            size: write.value.len(),
            limit: self.bucket.max_value_size(self.link.client().max_payload()),
        }
    }

    /// Waits for what becomes of a write, up to the deadline.
    async fn settle(&self, mut sent: Sent, deadline: Deadline) -> KvResult<VersionToken> {
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let silence = match self.await_verdict(&mut sent, deadline).await {
                Verdict::Taken(sequence) => return Ok(self.taken(sequence)),
                Verdict::Conflict(found) if !sent.repeated => return Err(sent.write.mismatch(found)),
                Verdict::Refused(error) if !sent.repeated => return Err(error),
                Verdict::NobodyThere if !sent.repeated => {
                    self.exists(sent.write.operation, deadline).await?;
                    pause(&mut pauses, sent.write.operation, deadline).await?;
                    // Nobody has the first copy, so that this one is the first.
                    let (write, id) = (&sent.write, &sent.id);
                    let again = self.publish(write, &sent.subject, sent.expect, id, deadline).await?;
                    (sent.mark, sent.acknowledgement) = again;
                    continue;
                }
                Verdict::Conflict(_) | Verdict::NobodyThere => None,
                Verdict::Refused(error) => Some(Arc::new(error) as ErrorSource),
                Verdict::Silence(source) => source,
            };
            let expected = match self.find_out(&mut sent, deadline).await {
                Fate::Landed(sequence) => return Ok(self.taken(sequence)),
                Fate::Lost(newest) => return Err(sent.write.mismatch(Some(newest))),
                Fate::Unknown => return Err(sent.write.unknown(silence)),
                Fate::NotYet(expected) => expected,
            };
            let pause = pauses.next().unwrap_or_default();
            if deadline.remaining() <= pause {
                return Err(sent.write.unknown(silence));
            }
            tokio::time::sleep(pause).await;
            sent.expect = Expect::Exactly(expected);
            sent.repeated = true;
            let (write, id) = (&sent.write, &sent.id);
            match self.publish(write, &sent.subject, sent.expect, id, deadline).await {
                Ok(again) => (sent.mark, sent.acknowledgement) = again,
                Err(error) => return Err(sent.write.unknown(Some(Arc::new(error)))),
            }
        }
    }

    fn taken(&self, sequence: u64) -> VersionToken {
        self.observe(sequence);
        VersionToken::from_u64(sequence)
    }

    /// Waits for the acknowledgement, until the connection breaks or so little time is left that it is better used
    /// for finding out.
    async fn await_verdict(&self, sent: &mut Sent, deadline: Deadline) -> Verdict {
        let patience = deadline.remaining() - deadline.remaining() / FIND_OUT_SHARE;
        tokio::select! {
            biased;
            answer = &mut sent.acknowledgement => self.verdict(&sent.write, answer),
            interruption = self.link.interrupted(sent.mark, &sent.subject) => match interruption {
                Interruption::Lost => Verdict::Silence(None),
                Interruption::Refused(text) => Verdict::Refused(KvError::Unauthorized {
                    operation: sent.write.operation,
                    reason: text.to_string(),
                }),
            },
            () = tokio::time::sleep(patience) => Verdict::Silence(None),
        }
    }

    fn verdict(&self, write: &Write, answer: Result<PublishAck, PublishError>) -> Verdict {
        use std::error::Error as _;

        let error = match answer {
            Ok(ack) => return Verdict::Taken(ack.sequence),
            Err(error) => error,
        };
        match error.kind() {
            PublishErrorKind::StreamNotFound => return Verdict::NobodyThere,
            PublishErrorKind::WrongLastSequence => {}
            PublishErrorKind::Other => {}
            _ => return Verdict::Silence(Some(Arc::new(error))),
        }
        let api = error.source().and_then(|s| s.downcast_ref::<async_nats::jetstream::Error>());
        let Some(api) = api else {
            return Verdict::Silence(Some(Arc::new(error)));
        };
        let description = api.to_string();
        let reason = format!("the server answered {description}");
        let (operation, store) = (write.operation, self.bucket.name.clone());
        // The codes are those of the server's errors.json.
        match api.error_code().0 {
            // The newest sequence stands at the end of "wrong last sequence: N".
            10071 | 10164 => Verdict::Conflict(newest_in(&description)),
            10054 => Verdict::Refused(self.too_large(write)),
            10077 | 10122 => Verdict::Refused(KvError::StoreFull {
                store,
                limit: "its maximum size is reached".to_owned(),
            }),
            10023 | 10028 | 10047 => Verdict::Refused(KvError::StoreFull {
                store,
                limit: format!("the server or account has no room ({description})"),
            }),
            _ => match api.code() {
                503 => Verdict::Refused(KvError::Unavailable { operation, reason, source: None }),
                _ => Verdict::Refused(KvError::Backend { operation, reason, source: None }),
            },
        }
    }

    /// Finds out what became of a write, while still listening for its acknowledgement.
    async fn find_out(&self, sent: &mut Sent, deadline: Deadline) -> Fate {
        let Sent { write, id, observed, expect, subject: _, acknowledgement, .. } = sent;
        let search = self.search(write, id, *observed, *expect, deadline);
        tokio::pin!(search);
        tokio::select! {
            biased;
            // Only good news are final: a refusal may be about one copy of several.
            Ok(ack) = acknowledgement => Fate::Landed(ack.sequence),
            fate = &mut search => fate.unwrap_or(Fate::Unknown),
        }
    }

    /// Looks for the write by its id.
    async fn search(
        &self,
        write: &Write,
        id: &str,
        observed: u64,
        expect: Expect,
        deadline: Deadline,
    ) -> KvResult<Fate> {
        let operation = write.operation;
        let is_ours = |message: &StreamMessage| message.operation_id.as_deref() == Some(id);
        let single_server = self.link.is_single_server();
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        let newest = loop {
            match self.newest_of_leader(operation, &write.key, deadline).await {
                Ok(newest) => break newest,
                // A server that comes back may need a moment.
                Err(error) if error.is_retryable() => pause(&mut pauses, operation, deadline).await?,
                Err(error) => return Err(error),
            }
        };
        let Some(newest) = newest else {
            let evidence = Evidence { newest: 0, observed, complete: false, single_server };
            return Ok(decide(expect, &evidence));
        };
        if is_ours(&newest) {
            return Ok(Fate::Landed(newest.sequence));
        }
        // With a longer history, what was written since may still be there.
        let from = match expect {
            Expect::Exactly(expected) => expected,
            Expect::Anything => observed,
        };
        let mut complete = false;
        if self.bucket.history > 1 && newest.sequence > from {
            let (mut next, mut seen, mut dropped) = (from + 1, 0, false);
            while let Some(message) = self.next_of_leader(operation, &write.key, next, deadline).await? {
                if is_ours(&message) {
                    return Ok(Fate::Landed(message.sequence));
                }
                seen += 1;
                // These drop what was before them.
                dropped |= matches!(message.operation, KvOperation::Purge | KvOperation::Expire);
                next = message.sequence + 1;
            }
            complete = !dropped && seen < usize::from(self.bucket.history);
        }
        Ok(decide(expect, &Evidence { newest: newest.sequence, observed, complete, single_server }))
    }

    /// Writes where the key is absent. A tombstone needs a second try that expects it, and a concurrent deletion
    /// between the two a third (nats-server #5162): so as long as the newest entry is a tombstone.
    async fn create(&self, mut write: Write, deadline: Deadline) -> KvResult<VersionToken> {
        write.expect = Expect::Exactly(0);
        loop {
            let mut try_this = write.clone();
            let found = match self.write(try_this.clone(), deadline).await {
                Err(KvError::AlreadyExists { .. } | KvError::RevisionMismatch { .. }) => {
                    self.newest_of_leader(write.operation, &write.key, deadline).await?
                }
                result => return result,
            };
            try_this.expect = match found {
                Some(message) if !message.operation.is_deletion() => {
                    return Err(KvError::AlreadyExists {
                        key: write.key,
                        found: Some(VersionToken::from_u64(message.sequence)),
                    });
                }
                Some(tombstone) => Expect::Exactly(tombstone.sequence),
                None => Expect::Exactly(0),
            };
            if deadline.remaining().is_zero() {
                return Err(deadline.timeout(write.operation, Some(&write.key)));
            }
            write = try_this;
        }
    }
}

/// The sequence at the end of a message like "wrong last sequence: 7".
fn newest_in(description: &str) -> Option<u64> {
    let after = description.split("wrong last sequence: ").nth(1)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

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
            let mut on_their_way = FuturesOrdered::new();
            // While there is no connection, the first item waits for it; the others then do not wait again.
            let mut waited: Option<Deadline> = None;
            for (key, value) in items {
                // Sent one after the other, so that writes of one key keep their order.
                let deadline = match waited {
                    Some(passed) if !self.0.link.is_connected() => passed,
                    _ => Deadline::after(deadline),
                };
                let sent = self.0.send(Write::put("put_many", &key, value), deadline).await;
                waited = matches!(sent, Err(KvError::Unavailable { .. })).then_some(deadline);
                on_their_way.push_back(async move { self.0.settle(sent?, deadline).await });
                if on_their_way.len() >= WRITES_IN_FLIGHT {
                    answers.extend(on_their_way.next().await);
                }
            }
            while let Some(answer) = on_their_way.next().await {
                answers.push(answer);
            }
            answers
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
        let write = Write { ttl: Some(ttl), ..Write::put("put with a time to live", key, value) };
        Box::pin(self.0.write(write, deadline))
    }

    fn create_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        let write = Write { ttl: Some(ttl), ..Write::put("create with a time to live", key, value) };
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
        let write = Write { ttl: Some(ttl), ..Write::put("update with a time to live", key, value) };
        Box::pin(async move { self.0.write(write.expecting(expected)?, deadline).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(newest: u64, observed: u64) -> Evidence {
        Evidence { newest, observed, complete: false, single_server: true }
    }

    #[test]
    fn a_swap_whose_expectation_still_holds_may_be_repeated() {
        assert_eq!(decide(Expect::Exactly(7), &evidence(7, 7)), Fate::NotYet(7));
        assert_eq!(decide(Expect::Exactly(0), &evidence(0, 9)), Fate::NotYet(0));
    }

    #[test]
    fn a_swap_that_was_overtaken_is_lost_only_where_that_is_certain() {
        // Something newer than anything known before: it may have replaced ours.
        assert_eq!(decide(Expect::Exactly(7), &evidence(9, 8)), Fate::Unknown);
        // It was there before ours was sent.
        assert_eq!(decide(Expect::Exactly(7), &evidence(8, 8)), Fate::Lost(8));
        let complete = Evidence { complete: true, ..evidence(9, 7) };
        assert_eq!(decide(Expect::Exactly(7), &complete), Fate::Lost(9));
    }

    #[test]
    fn a_write_without_expectation_is_repeated_only_where_nothing_can_overtake_it() {
        assert_eq!(decide(Expect::Anything, &evidence(7, 7)), Fate::NotYet(7));
        assert_eq!(decide(Expect::Anything, &evidence(8, 7)), Fate::Unknown);
        let clustered = Evidence { single_server: false, ..evidence(7, 7) };
        assert_eq!(decide(Expect::Anything, &clustered), Fate::Unknown);
    }

    #[test]
    fn the_newest_sequence_is_read_from_the_error() {
        assert_eq!(newest_in("wrong last sequence: 17 (code 400)"), Some(17));
        assert_eq!(newest_in("wrong last sequence"), None);
    }
}
