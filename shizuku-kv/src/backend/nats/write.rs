//! Writing, and finding out what became of a write whose acknowledgement was lost.
//!
//! Every write carries an id of its own in a header. When the connection breaks before the acknowledgement came, the
//! id is looked for in the stream: found, the write took effect. Not found, what else is there tells whether it can
//! still have happened (see [`decide`]). A message id for the server's own duplicate detection would not do: a repeated
//! compare-and-swap is refused for its sequence before it is recognised as a duplicate.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use async_nats::client::PublishErrorKind;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use super::fate::{Evidence, Expect, Fate, decide};
use super::link::{ApiError, Interruption, Mark, has_no_responders};
use super::requests::Waiting;
use super::store::{StoreCore, pause};
use super::wire::{
    EXPECTED_SEQUENCE, FENCE, KV_OPERATION, OPERATION_ID, ROLLUP, StreamMessage, TTL,
};
use crate::store::backoff;
use crate::store::{
    Deadline, ErrorSource, FencingToken, Key, KvError, KvOperation, KvResult, VersionToken,
};

/// End of the wait for an acknowledgement before the write is searched for, on a connection that
/// seems to be alive: a quarter of the deadline from `since` on. So a lost copy costs only a part
/// of the deadline, and the rest is enough to search once more.
fn patience(since: Instant, deadline: Deadline) -> Duration {
    let share = (deadline.limit() / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
    let left = deadline.remaining();
    share.saturating_sub(since.elapsed()).min(left - left / 3)
}

/// Whether the time left is too short for another search.
fn is_last(deadline: Deadline) -> bool {
    deadline.remaining() <= deadline.limit() / 8
}

/// One write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    operation: &'static str,
    key: Key,
    value: Bytes,
    kind: KvOperation,
    expect: Expect,
    ttl: Option<Duration>,
    fence: Option<FencingToken>,
    /// Others of the same key may have been sent behind it, which it must not overtake by being sent again.
    pipelined: bool,
}

impl Write {
    pub(super) fn put(operation: &'static str, key: &Key, value: Bytes) -> Self {
        Self {
            operation,
            key: key.clone(),
            value,
            kind: KvOperation::Put,
            expect: Expect::Anything,
            ttl: None,
            fence: None,
            pipelined: false,
        }
    }

    pub(super) fn deletion(operation: &'static str, key: &Key, kind: KvOperation) -> Self {
        Self { kind, ..Self::put(operation, key, Bytes::new()) }
    }

    /// The same with a time to live, in whole seconds.
    pub(super) fn expiring(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// The same as one of many that are sent without waiting for each.
    pub(super) fn pipelined(self) -> Self {
        Self { pipelined: true, ..self }
    }

    /// The same with a fencing token, which its message then has.
    pub(super) fn under(self, token: FencingToken) -> Self {
        Self { fence: Some(token), ..self }
    }

    /// The same where the newest message of the key has this sequence; zero for none at all.
    pub(super) fn over(self, sequence: u64) -> Self {
        Self { expect: Expect::Exactly(sequence), ..self }
    }

    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// The same with an expected version. One that this backend cannot have given out never matches.
    pub(super) fn expecting(mut self, expected: VersionToken) -> KvResult<Self> {
        match expected.as_u64() {
            Some(sequence) if sequence > 0 => {
                self.expect = Expect::Exactly(sequence);
                Ok(self)
            }
            _ => Err(KvError::RevisionMismatch { key: self.key, expected, found: None }),
        }
    }

    fn headers(&self, id: Option<&str>) -> HeaderMap {
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
        if let Expect::Exactly(sequence) = self.expect {
            headers.insert(EXPECTED_SEQUENCE, sequence.to_string());
        }
        if let Some(token) = self.fence {
            headers.insert(FENCE, token.to_string());
        }
        if let Some(ttl) = self.ttl {
            headers.insert(TTL, format!("{}s", ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)));
        }
        headers
    }

    fn not_taken(&self) -> KvError {
        KvError::Unavailable {
            operation: self.operation,
            reason: "the store had no leader to take the write".to_owned(),
            source: None,
        }
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

/// A write on its way.
pub(super) struct Sent {
    write: Write,
    id: String,
    since: Instant,
    /// When the last copy was sent.
    last: Instant,
    /// When the write was last searched for, or sent.
    searched: Instant,
    /// The last sequence of the stream before the write, and when that stream was created.
    known: u64,
    created: SystemTime,
    /// Whether it was sent more than once, so that a rejection may concern one copy of several.
    repeated: bool,
    mark: Mark,
    subject: String,
    /// It is listened to again while the write is searched for.
    acknowledgement: Waiting,
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
    /// The value is larger than the server accepts.
    TooLarge,
    /// No answer, and none will come.
    Silence(Option<ErrorSource>),
    /// No answer yet.
    Late,
}

impl StoreCore {
    pub(super) async fn write(&self, write: Write, deadline: Deadline) -> KvResult<VersionToken> {
        let sent = self.send(write, deadline).await?;
        self.settle(sent, deadline).await
    }

    /// Sends a write. An error means that it was not sent.
    pub(super) async fn send(&self, write: Write, deadline: Deadline) -> KvResult<Sent> {
        let id = self.link.next_id();
        let subject = self.subject(&write.key);
        let since = Instant::now();
        let created = self.bucket.settings().created;
        let known = self.reached.load(Ordering::Relaxed);
        let (mark, acknowledgement) = self.publish(&write, &subject, &id, deadline).await?;
        let (last, searched) = (since, since);
        let repeated = false;
        Ok(Sent {
            write,
            id,
            since,
            last,
            searched,
            known,
            created,
            repeated,
            mark,
            subject,
            acknowledgement,
        })
    }

    async fn publish(
        &self,
        write: &Write,
        subject: &str,
        id: &str,
        deadline: Deadline,
    ) -> KvResult<(Mark, Waiting)> {
        let operation = write.operation;
        // Not while disconnected: the client would keep the message and send it whenever it is back, even after the
        // deadline.
        let mark = self.link.up(operation, deadline).await?;
        let publish = self.link.requests().write(
            subject.to_owned(),
            write.headers(self.bucket.settings().has_operation_ids().then_some(id)),
            write.value.clone(),
        );
        match tokio::time::timeout_at(deadline.instant(), publish).await {
            Ok(Ok(acknowledgement)) => Ok((mark, acknowledgement)),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(self.too_large(write))
            }
            Ok(Err(error)) => {
                Err(self.link.not_sent(operation, "the write could not be sent", error))
            }
            Err(_) => Err(deadline.timeout(operation, Some(&write.key))),
        }
    }

    fn too_large(&self, write: &Write) -> KvError {
        KvError::ValueTooLarge {
            key: write.key.clone(),
            size: write.value.len(),
            limit: self.bucket.settings().max_value_size(self.link.client().max_payload()),
        }
    }

    /// Waits for what becomes of a write, up to the deadline.
    pub(super) async fn settle(
        &self,
        mut sent: Sent,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let verdict = self.await_verdict(&mut sent, deadline).await;
            let is_late = matches!(verdict, Verdict::Late);
            let silence = match verdict {
                Verdict::Taken(sequence) => {
                    self.reached.fetch_max(sequence, Ordering::Relaxed);
                    return Ok(VersionToken::from_u64(sequence));
                }
                Verdict::Conflict(found) if !sent.repeated => {
                    return Err(sent.write.mismatch(found));
                }
                Verdict::Refused(error) if !sent.repeated => return Err(error),
                Verdict::NobodyThere if !sent.repeated => {
                    Box::pin(self.look(sent.write.operation, deadline)).await?;
                    if sent.write.pipelined {
                        return Err(sent.write.not_taken());
                    }
                    pause(&mut pauses, sent.write.operation, deadline).await?;
                    // Nobody has the first copy, so that this one is the first.
                    let (write, id) = (&sent.write, &sent.id);
                    let again = self.publish(write, &sent.subject, id, deadline).await?;
                    (sent.mark, sent.acknowledgement) = again;
                    continue;
                }
                Verdict::TooLarge if !sent.repeated => {
                    // Checked before it was sent: another client has made the limit smaller since.
                    let newest = Box::pin(self.info(sent.write.operation, deadline)).await;
                    return Err(newest.err().unwrap_or_else(|| self.too_large(&sent.write)));
                }
                Verdict::Conflict(_) | Verdict::NobodyThere | Verdict::TooLarge | Verdict::Late => {
                    None
                }
                Verdict::Refused(error) => Some(Arc::new(error) as ErrorSource),
                Verdict::Silence(source) => source,
            };
            // Boxed, since it is rare: a future that is small is cheap to make.
            match Box::pin(self.find_out(&mut sent, is_late, deadline)).await {
                Ok(Fate::Landed(sequence)) => return Ok(VersionToken::from_u64(sequence)),
                Ok(Fate::Lost(newest)) => return Err(sent.write.mismatch(Some(newest))),
                Ok(Fate::NotYet) if sent.write.pipelined => return Err(sent.write.not_taken()),
                Ok(Fate::NotYet) => {}
                // The write may be in flight.
                Ok(Fate::Unknown) if is_late && !is_last(deadline) => {
                    sent.searched = Instant::now();
                    continue;
                }
                Ok(Fate::Unknown) => return Err(sent.write.unknown(silence)),
                // The written value is gone with the store.
                Err(error @ KvError::StoreNotFound { .. }) => return Err(error),
                Err(error) => return Err(sent.write.unknown(silence.or(Some(Arc::new(error))))),
            }
            let pause = pauses.next().unwrap_or_default();
            if deadline.remaining() <= pause {
                return Err(sent.write.unknown(silence));
            }
            tokio::time::sleep(pause).await;
            // No other copy of a write without expectation is left.
            sent.repeated = sent.write.expect != Expect::Anything;
            sent.last = Instant::now();
            sent.searched = sent.last;
            let (write, id) = (&sent.write, &sent.id);
            match self.publish(write, &sent.subject, id, deadline).await {
                Ok(again) => (sent.mark, sent.acknowledgement) = again,
                Err(error) => return Err(sent.write.unknown(Some(Arc::new(error)))),
            }
        }
    }

    /// Waits for the acknowledgement, until the connection breaks or its share of the deadline has
    /// passed.
    async fn await_verdict(&self, sent: &mut Sent, deadline: Deadline) -> Verdict {
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
            () = tokio::time::sleep(patience(sent.searched, deadline)) => Verdict::Late,
        }
    }

    fn verdict(&self, write: &Write, answer: Option<Message>) -> Verdict {
        let ApiError { code, err_code, description } = match answer {
            None => return Verdict::Silence(None),
            Some(message) if has_no_responders(&message) => return Verdict::NobodyThere,
            Some(message) => match acknowledged(&message) {
                Ok(Ok(sequence)) => return Verdict::Taken(sequence),
                Ok(Err(error)) => error,
                Err(malformed) => return Verdict::Silence(Some(Arc::new(malformed))),
            },
        };
        let reason = format!("the server answered {code}: {description} ({err_code})");
        let (operation, store) = (write.operation, self.bucket.name.clone());
        // The codes are those of the server's errors.json.
        match err_code {
            // The newest sequence stands at the end of "wrong last sequence: N".
            10071 | 10164 => Verdict::Conflict(newest_in(&description)),
            10054 => Verdict::TooLarge,
            10077 | 10122 => Verdict::Refused(KvError::StoreFull {
                store,
                // Several limits have this code.
                limit: format!("a limit of the store is reached ({description})"),
            }),
            10023 | 10028 | 10047 => Verdict::Refused(KvError::StoreFull {
                store,
                limit: format!("the server or account has no room ({description})"),
            }),
            _ => match code {
                503 => Verdict::Refused(KvError::Unavailable { operation, reason, source: None }),
                _ => Verdict::Refused(KvError::Backend { operation, reason, source: None }),
            },
        }
    }

    /// Finds out what became of a write, while still listening for its acknowledgement.
    async fn find_out(&self, sent: &mut Sent, is_late: bool, deadline: Deadline) -> KvResult<Fate> {
        let Sent { write, id, since, last, known, created, mark, acknowledgement, .. } = sent;
        let may_be_given_up = is_late && write.expect == Expect::Anything;
        let last = may_be_given_up.then_some((*last, *mark, *created));
        let search = self.search(write, id, *since, last, *known, deadline);
        tokio::pin!(search);
        tokio::select! {
            biased;
            // Only good news are final: a refusal may be about one copy of several.
            Some(sequence) = taken(acknowledgement) => Ok(Fate::Landed(sequence)),
            fate = &mut search => fate,
        }
    }

    /// Whether no copy of a write that was sent at that moment can take effect any more, unless it
    /// already has: the stream has had another leader since.
    ///
    /// On an unbroken connection the server has passed on everything that was sent before this
    /// request. The replicas reject a copy that it passed on to a replaced leader. A copy that it
    /// passed on to the new leader arrived before the request. Only a newer message of the key
    /// removes a value.
    async fn is_given_up(
        &self,
        operation: &'static str,
        (last, mark, created): (Instant, Mark, SystemTime),
        deadline: Deadline,
    ) -> KvResult<bool> {
        let since = last.elapsed();
        let info = match self.info(operation, deadline).await {
            Ok(info) => info,
            Err(error) if error.is_retryable() => return Ok(false),
            Err(error) => return Err(error),
        };
        let settings = self.bucket.settings();
        Ok(info.led_for().is_some_and(|led| led < since)
            && settings.created == created
            && !settings.loses_newest
            && self.link.is_unbroken(mark))
    }

    /// Looks for the write by its id. `last` is when the last copy was sent, if the caller needs to
    /// know whether it is lost.
    async fn search(
        &self,
        write: &Write,
        id: &str,
        since: Instant,
        last: Option<(Instant, Mark, SystemTime)>,
        known: u64,
        deadline: Deadline,
    ) -> KvResult<Fate> {
        let operation = write.operation;
        // Before the read of the key, so that the same leader or a later one answers that read.
        let is_given_up = match last {
            Some(last) => self.is_given_up(operation, last, deadline).await?,
            None => false,
        };
        let is_ours = |message: &StreamMessage| message.operation_id.as_deref() == Some(id);
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        let newest = loop {
            match self.newest_of_leader(operation, &write.key, deadline).await {
                Ok(newest) => break newest,
                // A server that comes back may need a moment.
                Err(error) if error.is_retryable() => {
                    pause(&mut pauses, operation, deadline).await?
                }
                Err(error) => return Err(error),
            }
        };
        let life = self.bucket.settings().tombstone_life.into_iter().chain(write.ttl).min();
        let may_have_aged = life.is_some_and(|life| since.elapsed() >= life);
        let Some(newest) = newest else {
            let evidence =
                Evidence { newest: 0, complete: false, may_have_aged, is_given_up, known };
            return Ok(decide(write.expect, &evidence));
        };
        if is_ours(&newest) {
            return Ok(Fate::Landed(newest.sequence));
        }
        // With a longer history, what was written since may still be there: for certain, where the expected message
        // is, since the oldest go first.
        let mut complete = false;
        if self.bucket.settings().history > 1 {
            let expected = match write.expect {
                Expect::Exactly(expected) => expected,
                Expect::Anything => 0,
            };
            let mut next = expected.max(1);
            while let Some(message) =
                self.next_of_leader(operation, &write.key, next, deadline).await?
            {
                if is_ours(&message) {
                    return Ok(Fate::Landed(message.sequence));
                }
                complete |= message.sequence == expected;
                next = message.sequence + 1;
            }
        }
        let evidence =
            Evidence { newest: newest.sequence, complete, may_have_aged, is_given_up, known };
        Ok(decide(write.expect, &evidence))
    }

    /// Writes where the key is absent. A tombstone needs a second try that expects it, and a concurrent deletion
    /// between the two a third (nats-server #5162): so as long as the newest entry is a tombstone.
    pub(super) async fn create(
        &self,
        mut write: Write,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
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

/// What the server answered to a write: the sequence under which it was taken, or why it was not.
fn acknowledged(message: &Message) -> Result<Result<u64, ApiError>, serde_json::Error> {
    // Not an enum of the two, which would be read twice. Beside an error there may be a sequence of 0.
    #[derive(Deserialize)]
    struct Acknowledgement {
        error: Option<ApiError>,
        seq: Option<u64>,
    }
    let Acknowledgement { error, seq } = serde_json::from_slice(&message.payload)?;
    match (error, seq) {
        (Some(error), _) => Ok(Err(error)),
        (None, Some(sequence)) => Ok(Ok(sequence)),
        (None, None) => Err(serde::de::Error::missing_field("seq")),
    }
}

/// The sequence under which a write was taken, where the server says so.
async fn taken(acknowledgement: &mut Waiting) -> Option<u64> {
    let message = acknowledgement.await.filter(|message| !has_no_responders(message))?;
    acknowledged(&message).ok()?.ok()
}

/// The sequence at the end of a message like "wrong last sequence: 7".
fn newest_in(description: &str) -> Option<u64> {
    let after = description.split("wrong last sequence: ").nth(1)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sequence_is_read_from_the_error() {
        assert_eq!(newest_in("wrong last sequence: 17 (code 400)"), Some(17));
        assert_eq!(newest_in("wrong last sequence"), None);
    }
}
