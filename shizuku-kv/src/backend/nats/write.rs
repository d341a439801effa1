//! Writing, and finding out what became of a write whose acknowledgement was lost.
//!
//! Every write carries an id of its own in a header. When the connection breaks before the
//! acknowledgement came, the id is looked for in the stream: found, the write took effect. Not
//! found, what else is there tells whether it can still have happened (see [`decide`]). A message
//! id for the server's own duplicate detection would not do: a repeated compare-and-swap is refused
//! for its sequence before it is recognised as a duplicate (ADR 0002).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use async_nats::client::PublishErrorKind;
use async_nats::{HeaderMap, Message};
use backon::ExponentialBackoff;
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use super::api::ApiError;
use super::bucket;
use super::core::{StoreCore, pause};
use super::denials::Denial;
use super::link::{CROWD, Interruption, Mark};
use super::outcome::{Evidence, Expect, Outcome, decide};
use super::pending::PendingAnswer;
use super::rejections::Rejected;
use super::retry::{first_patience, has_no_responders};
use super::wire::{
    AUTHOR, EXPECTED_SEQUENCE, EXPECTED_STREAM, FENCE, KV_OPERATION, OPERATION_ID, REASON, ROLLUP,
    StreamMessage, TTL, size_of,
};
use crate::store::backoff;
use crate::store::{
    Deadline, ErrorSource, FencingToken, Key, KvError, KvLimit, KvOperation, KvResult, Metadata,
    VersionToken,
};

/// End of the wait for an acknowledgement before the write is searched for, on a connection that
/// seems to be alive: a quarter of the deadline from `since` on. So a lost copy costs only a part
/// of the deadline, and the rest is enough to search once more.
fn patience(since: Instant, deadline: Deadline) -> Duration {
    let share = (deadline.limit() / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
    let left = deadline.remaining();
    share.saturating_sub(since.elapsed()).min(left - left / 3)
}

/// An id with the width of all ids.
const ANY_ID: &str = "000000000000000000000000";

/// Whether the time left is too short for another search.
fn is_last(deadline: Deadline) -> bool {
    deadline.remaining() <= deadline.limit() / 8
}

/// One write, as a message for the server.
#[derive(Clone, Debug)]
pub(super) struct WriteMessage {
    operation: &'static str,
    key: Key,
    value: Bytes,
    kind: KvOperation,
    expect: Expect,
    ttl: Option<Duration>,
    fence: Option<FencingToken>,
    metadata: Option<Arc<Metadata>>,
    /// Others of the same key may have been sent behind it, which it must not overtake by being
    /// sent again.
    pipelined: bool,
    /// No later write of the same key was sent with it, so that sending it again after a rejection
    /// overwrites no later one.
    is_last: bool,
    /// Its message has no operation id, to make it smaller.
    is_bare: bool,
}

impl WriteMessage {
    pub(super) fn put(operation: &'static str, key: &Key, value: Bytes) -> Self {
        Self {
            operation,
            key: key.clone(),
            value,
            kind: KvOperation::Put,
            expect: Expect::Anything,
            ttl: None,
            fence: None,
            metadata: None,
            pipelined: false,
            is_last: true,
            is_bare: false,
        }
    }

    pub(super) fn deletion(operation: &'static str, key: &Key, kind: KvOperation) -> Self {
        Self { kind, ..Self::put(operation, key, Bytes::new()) }
    }

    /// The same with a time to live, in whole seconds.
    pub(super) fn expiring(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// The deletion of a key whose history is not removed.
    pub(super) fn without_rollup(self) -> Self {
        Self { kind: KvOperation::Delete, ..self }
    }

    /// Marks a write that is sent without waiting for the one before. `is_last`: no later write has
    /// its key.
    pub(super) fn pipelined(self, is_last: bool) -> Self {
        Self { pipelined: true, is_last, ..self }
    }

    pub(super) fn is_deletion(&self) -> bool {
        self.kind != KvOperation::Put
    }

    fn rejected(&self) -> Rejected {
        match self.expect {
            _ if !self.is_deletion() => Rejected::Put,
            Expect::Exactly(_) if self.fence.is_none() => Rejected::DeletionOfVersion,
            _ => Rejected::Deletion,
        }
    }

    fn can_be_smaller(&self) -> bool {
        self.is_deletion() && !self.is_bare
    }

    /// Removes the optional headers of a deletion. With a history of 1 a purge becomes a deletion,
    /// whose headers are shorter.
    fn make_smaller(&mut self, history: u8) {
        self.is_bare = true;
        self.metadata = None;
        if history == 1 {
            self.kind = KvOperation::Delete;
        }
    }

    /// The same with an author and a reason, which its message then has.
    pub(super) fn by(self, metadata: Option<Arc<Metadata>>) -> Self {
        Self { metadata, ..self }
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

    /// The same with an expected version. One that this backend cannot have given out never
    /// matches.
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
        if let Some(metadata) = &self.metadata {
            for (name, text) in [(AUTHOR, metadata.author()), (REASON, metadata.reason())] {
                if let Some(text) = text {
                    headers.insert(name, text);
                }
            }
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
    write: WriteMessage,
    id: String,
    /// Whether every copy carries the id in a header.
    has_id: bool,
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
    acknowledgement: PendingAnswer,
}

impl Sent {
    /// Size in bytes of the last copy.
    fn message_size(&self) -> usize {
        let id = self.has_id.then_some(self.id.as_str());
        size_of(&self.write.headers(id)) + self.write.value.len()
    }
}

/// What the server said to one copy of a write.
#[derive(Debug)]
enum Verdict {
    Taken(u64),
    /// The expected sequence is not the newest; the newest, where the server told.
    Conflict(Option<u64>),
    /// Nobody took it: there is no such stream, or no leader at the moment.
    NobodyThere,
    Rejected(KvError),
    /// The server has rejected the write because of its load.
    Busy(KvError),
    /// The store has reached its limit in bytes. A smaller message may have room.
    FullOfBytes(ApiError),
    /// The value is larger than the server accepts.
    TooLarge,
    /// The server has ended the connection because a protocol line was too long, possibly the line
    /// of this write.
    TooLong(KvError),
    /// The server has ended the connection because a message was too large, possibly this write.
    Oversized(KvError),
    /// No answer, and none will come.
    Silence(Option<ErrorSource>),
    /// No answer yet.
    Late,
}

/// Result of the search for a write without an acknowledgement.
enum Found {
    Outcome(Outcome),
    /// The server's late answer.
    Answer(Verdict),
}

impl StoreCore {
    pub(super) async fn write(
        &self,
        write: WriteMessage,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let sent = self.send(write, deadline).await?;
        self.settle(sent, deadline).await
    }

    /// Sends a write. An error means that it was not sent.
    pub(super) async fn send(&self, write: WriteMessage, deadline: Deadline) -> KvResult<Sent> {
        let id = self.link.next_id();
        let subject = self.write_subject(&write.key);
        let since = Instant::now();
        let created = self.bucket.settings().created;
        let known = self.reached.load(Ordering::Relaxed);
        let (mark, acknowledgement, has_id) = self.publish(&write, &subject, &id, deadline).await?;
        let (last, searched) = (since, since);
        let repeated = false;
        Ok(Sent {
            write,
            id,
            has_id,
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
        write: &WriteMessage,
        subject: &str,
        id: &str,
        deadline: Deadline,
    ) -> KvResult<(Mark, PendingAnswer, bool)> {
        let operation = write.operation;
        let (headers, has_id) = match self.fitting_headers(write, id) {
            Ok(fitting) => fitting,
            Err(_) => {
                // Another client may have raised the limit.
                Box::pin(self.info(operation, deadline)).await?;
                self.fitting_headers(write, id)?
            }
        };
        // Not while disconnected: the client would keep the message and send it whenever it is
        // back, even after the deadline (ADR 0003).
        let mark = self.link.up(operation, deadline).await?;
        let publish = self.link.requests().write(subject.to_owned(), headers, write.value.clone());
        match tokio::time::timeout_at(deadline.instant(), publish).await {
            Ok(Ok(acknowledgement)) => Ok((mark, acknowledgement, has_id)),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(self.too_large(write))
            }
            Ok(Err(error)) => {
                Err(self.link.not_sent(operation, "the write could not be sent", error))
            }
            Err(_) => Err(deadline.timeout(operation, Some(&write.key))),
        }
    }

    /// Returns the headers of a write, and whether they contain its id. The id is left out if the
    /// value leaves no room for it. Fenced writes always contain it, because without it a lost
    /// acknowledgement could not be distinguished from a lost lock.
    ///
    /// # Errors
    /// Returns the error of a write that does not fit at all.
    fn fitting_headers(&self, write: &WriteMessage, id: &str) -> KvResult<(HeaderMap, bool)> {
        let most = self.bucket.settings().max_message_size(self.link.max_payload());
        let fits = |headers: &HeaderMap| size_of(headers) + write.value.len() <= most;
        let with_id = write.headers(Some(id));
        if !write.is_bare && fits(&with_id) {
            return Ok((with_id, true));
        }
        let without = write.headers(None);
        if write.fence.is_none() && fits(&without) {
            Ok((without, false))
        } else {
            Err(self.too_large(write))
        }
    }

    /// Returns the error of a write that does not fit. Its limit is that of such a write: an
    /// expected version, a fencing token and a time to live use a part of the store's limit.
    fn too_large(&self, write: &WriteMessage) -> KvError {
        let (settings, max_payload) = (self.bucket.settings(), self.link.max_payload());
        let most = settings.max_message_size(max_payload);
        let headers = size_of(&write.headers(write.fence.is_some().then_some(ANY_ID)));
        if write.is_deletion() {
            return KvError::LimitReached {
                operation: write.operation,
                limit: KvLimit::MessageSize,
                reason: format!(
                    "store {:?} takes messages of at most {most} bytes, and this deletion has {headers}; raise \
                     max_msg_size of its stream, or max_payload of the server",
                    self.bucket.name
                ),
            };
        }
        let limit = most.saturating_sub(headers).min(settings.max_value_size(max_payload));
        KvError::ValueTooLarge { key: write.key.clone(), size: write.value.len(), limit }
    }

    /// Waits for what becomes of a write, up to the deadline.
    pub(super) async fn settle(
        &self,
        mut sent: Sent,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        let mut rests: Option<ExponentialBackoff> = None;
        let mut answered: Option<Verdict> = None;
        loop {
            let verdict = match answered.take() {
                Some(verdict) => verdict,
                None => self.await_verdict(&mut sent, deadline).await,
            };
            let is_late = matches!(verdict, Verdict::Late);
            let is_too_long = matches!(verdict, Verdict::TooLong(_));
            let is_oversized = matches!(verdict, Verdict::Oversized(_));
            let silence = match verdict {
                Verdict::Taken(sequence) => {
                    self.reached.fetch_max(sequence, Ordering::Relaxed);
                    return Ok(VersionToken::from_u64(sequence));
                }
                Verdict::Conflict(found) if !sent.repeated => {
                    return Err(sent.write.mismatch(found));
                }
                Verdict::Rejected(error) if !sent.repeated => return Err(error),
                Verdict::Busy(error) if !sent.repeated => {
                    let rests = rests.get_or_insert_with(|| {
                        backoff(Duration::from_millis(1), Duration::from_millis(500))
                    });
                    let pause = rests.next().unwrap_or_default();
                    // Another copy needs time for its answer. Without the answer its outcome would
                    // be unknown.
                    if !sent.write.is_last || deadline.remaining() <= pause + deadline.limit() / 8 {
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                    self.publish_anew(&mut sent, deadline).await?;
                    continue;
                }
                // A tombstone can be larger than a small value. Without an id it is 38 bytes
                // smaller. If its acknowledgement is lost too, the outcome is unknown.
                Verdict::FullOfBytes(rejection) if !sent.repeated => {
                    // The message and the way out depend on settings that another client may have
                    // changed.
                    let operation = sent.write.operation;
                    if !sent.write.can_be_smaller() {
                        let _ = Box::pin(self.recent_settings(operation, deadline)).await;
                    } else if Box::pin(self.info(operation, deadline)).await.is_ok() {
                        sent.write.make_smaller(self.bucket.settings().history);
                        self.publish_anew(&mut sent, deadline).await?;
                        continue;
                    }
                    return Err(self.rejection(&sent.write, rejection));
                }
                Verdict::NobodyThere if !sent.repeated => {
                    let reason = Box::pin(self.no_listener(sent.write.operation, deadline)).await?;
                    if sent.write.pipelined {
                        return Err(reason.unwrap_or_else(|| sent.write.not_taken()));
                    }
                    let paused = pause(&mut pauses, sent.write.operation, deadline).await;
                    paused.map_err(|error| reason.unwrap_or(error))?;
                    self.publish_anew(&mut sent, deadline).await?;
                    continue;
                }
                Verdict::TooLarge if !sent.repeated => {
                    // Checked before it was sent: another client has made the limit smaller since.
                    Box::pin(self.info(sent.write.operation, deadline)).await?;
                    let (write, id) = (&sent.write, &sent.id);
                    match self.fitting_headers(write, id) {
                        // The value fits without the id.
                        Ok((_, false)) if sent.has_id && !write.pipelined => {}
                        _ => return Err(self.too_large(write)),
                    }
                    self.publish_anew(&mut sent, deadline).await?;
                    continue;
                }
                Verdict::Conflict(_) | Verdict::NobodyThere | Verdict::TooLarge | Verdict::Late => {
                    None
                }
                Verdict::Rejected(error)
                | Verdict::Busy(error)
                | Verdict::TooLong(error)
                | Verdict::Oversized(error) => Some(Arc::new(error) as ErrorSource),
                Verdict::FullOfBytes(rejection) => {
                    Some(Arc::new(self.rejection(&sent.write, rejection)) as ErrorSource)
                }
                Verdict::Silence(source) => source,
            };
            // Boxed, since it is rare: a future that is small is cheap to make.
            let found = match Box::pin(self.find_out(&mut sent, is_late, deadline)).await {
                Ok(Found::Answer(verdict)) => {
                    answered = Some(verdict);
                    continue;
                }
                Ok(Found::Outcome(outcome)) => Ok(outcome),
                Err(error) => Err(error),
            };
            match found {
                Ok(Outcome::Landed(sequence)) => return Ok(VersionToken::from_u64(sequence)),
                Ok(Outcome::Lost(newest)) => return Err(sent.write.mismatch(Some(newest))),
                // The new connection has told the limit, or has a bound.
                Ok(Outcome::NotYet | Outcome::Unknown)
                    if is_oversized && sent.message_size() > self.link.max_payload() =>
                {
                    let too_large = self.too_large(&sent.write);
                    if sent.repeated
                        || !self.link.is_rejected_for_size(sent.acknowledgement.number())
                    {
                        return Err(sent.write.unknown(Some(Arc::new(too_large))));
                    }
                    match self.fitting_headers(&sent.write, &sent.id) {
                        // The value fits without the id.
                        Ok((_, false)) if sent.has_id && !sent.write.pipelined => {}
                        _ => return Err(too_large),
                    }
                }
                // Another copy would make the server end the connection again.
                Ok(Outcome::NotYet) if is_too_long => return Err(sent.write.unknown(silence)),
                Ok(Outcome::NotYet) if sent.write.pipelined => return Err(sent.write.not_taken()),
                Ok(Outcome::NotYet) => {}
                // The write may be in flight.
                Ok(Outcome::Unknown) if is_late && !is_last(deadline) => {
                    sent.searched = Instant::now();
                    continue;
                }
                Ok(Outcome::Unknown) => {
                    let reason = self.link.space().no_acknowledgement(&self.bucket.name);
                    let hint = reason.map(|reason| {
                        let operation = sent.write.operation;
                        Arc::new(KvError::Unavailable { operation, reason, source: None })
                            as ErrorSource
                    });
                    return Err(sent.write.unknown(silence.or(hint)));
                }
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
                Ok((mark, acknowledgement, has_id)) => {
                    (sent.mark, sent.acknowledgement) = (mark, acknowledgement);
                    sent.has_id &= has_id;
                }
                Err(error) => return Err(sent.write.unknown(Some(Arc::new(error)))),
            }
        }
    }

    /// Looks for the reason why no server receives a write, for a part of the deadline. Returns a
    /// reason that may pass, or `None` if the stream has no leader at the moment.
    ///
    /// # Errors
    /// Returns the reason if no server will receive the write later either: the store was deleted,
    /// its stream takes other subjects, or JetStream is not enabled.
    async fn no_listener(
        &self,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<Option<KvError>> {
        let (name, deadline) = (&self.bucket.name, deadline.at_most(first_patience(deadline)));
        match bucket::described(&self.link, operation, name, deadline).await {
            Ok(Ok(info)) => {
                self.learn(&info);
                info.takes_no_writes(name)
                    .map_or(Ok(None), |reason| Err(KvError::Unsupported { operation, reason }))
            }
            Ok(Err(error)) => {
                let is_final = error.is_not_enabled();
                let error = error.into_error(operation, name);
                if is_final || !error.is_retryable() { Err(error) } else { Ok(Some(error)) }
            }
            Err(KvError::Timeout { .. }) => Ok(None),
            Err(error) if error.is_retryable() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// Sends a write again. No earlier copy can take effect: the server has not received one, or
    /// has rejected the only one.
    async fn publish_anew(&self, sent: &mut Sent, deadline: Deadline) -> KvResult<()> {
        let again = self.publish(&sent.write, &sent.subject, &sent.id, deadline).await?;
        (sent.mark, sent.acknowledgement, sent.has_id) = again;
        sent.last = Instant::now();
        sent.searched = sent.last;
        Ok(())
    }

    /// Waits for the acknowledgement, until the connection breaks or its share of the deadline has
    /// passed.
    async fn await_verdict(&self, sent: &mut Sent, deadline: Deadline) -> Verdict {
        tokio::select! {
            biased;
            answer = &mut sent.acknowledgement => return self.verdict(&sent.write, answer),
            interruption = self.link.interrupted_within(sent.mark, [sent.subject.as_str()], CROWD) => {
                if let Some(interruption) = interruption {
                    return self.interruption(sent, interruption);
                }
            }
            () = tokio::time::sleep(patience(sent.searched, deadline)) => return Verdict::Late,
        }
        // Boxed, since it is rare.
        let (link, subject) = (&self.link, sent.subject.as_str());
        let denied = Box::pin(self.denied_in_crowd(sent.write.operation, subject));
        tokio::select! {
            biased;
            answer = &mut sent.acknowledgement => self.verdict(&sent.write, answer),
            interruption = link.interrupted(sent.mark, [subject]) => {
                self.interruption(sent, interruption)
            }
            Some(denial) = denied => Verdict::Rejected(denial.error(sent.write.operation)),
            () = tokio::time::sleep(patience(sent.searched, deadline)) => Verdict::Late,
        }
    }

    fn interruption(&self, sent: &Sent, interruption: Interruption) -> Verdict {
        let operation = sent.write.operation;
        match interruption {
            Interruption::Lost => match self.link.too_long(operation, &sent.subject, sent.mark) {
                Some(error) => Verdict::TooLong(error),
                None => match self.link.oversized(operation, sent.mark) {
                    Some(error) => Verdict::Oversized(error),
                    // Answers may not arrive any more.
                    None => Verdict::Silence(
                        self.link.mark(operation).err().map(|error| Arc::new(error) as _),
                    ),
                },
            },
            Interruption::Denied(denial) if denial.names(&[sent.subject.as_str()]) => {
                Verdict::Rejected(denial.error(operation))
            }
            // Only its acknowledgement cannot arrive.
            Interruption::Denied(denial) => {
                Verdict::Silence(Some(Arc::new(denial.error(operation))))
            }
        }
    }

    /// The denial of a write whose event may have been lost among many others. Asks with a message
    /// that each stream rejects, because a copy of the write could take effect a second time.
    async fn denied_in_crowd(&self, operation: &'static str, subject: &str) -> Option<Arc<Denial>> {
        let _turn = self.link.turn_in_crowd().await;
        let mark = self.link.mark(operation).ok()?;
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_STREAM, "none");
        let answer =
            self.link.requests().write(subject.to_owned(), headers, Bytes::new()).await.ok()?;
        tokio::select! {
            biased;
            _ = answer => None,
            interruption = self.link.interrupted(mark, [subject]) => match interruption {
                Interruption::Denied(denial) => {
                    Some(denial).filter(|denial| denial.names(&[subject]))
                }
                Interruption::Lost => None,
            },
        }
    }

    fn verdict(&self, write: &WriteMessage, answer: Option<Message>) -> Verdict {
        let rejection = match answer {
            None => return Verdict::Silence(None),
            Some(message) if has_no_responders(&message) => return Verdict::NobodyThere,
            Some(message) => match acknowledged(&message) {
                Ok(Ok(sequence)) => return Verdict::Taken(sequence),
                Ok(Err(error)) => error,
                Err(malformed) => return Verdict::Silence(Some(Arc::new(malformed))),
            },
        };
        match rejection.err_code {
            // The newest sequence stands at the end of "wrong last sequence: N".
            10071 | 10164 => return Verdict::Conflict(newest_in(&rejection.description)),
            10054 => return Verdict::TooLarge,
            _ => {}
        }
        if rejection.is_passing() {
            Verdict::Busy(self.rejection(write, rejection))
        } else if rejection.is_full_of_bytes() {
            Verdict::FullOfBytes(rejection)
        } else {
            Verdict::Rejected(self.rejection(write, rejection))
        }
    }

    /// The error of a rejected write, by the newest known settings.
    fn rejection(&self, write: &WriteMessage, rejection: ApiError) -> KvError {
        let counts_replaced = self.bucket.settings().counts_replaced;
        rejection.into_write_error(
            write.operation,
            &self.bucket.name,
            write.rejected(),
            counts_replaced,
        )
    }

    /// Finds out what became of a write, while still listening for its acknowledgement.
    async fn find_out(
        &self,
        sent: &mut Sent,
        is_late: bool,
        deadline: Deadline,
    ) -> KvResult<Found> {
        let Sent {
            write,
            id,
            has_id,
            since,
            last,
            known,
            created,
            mark,
            acknowledgement,
            repeated,
            ..
        } = sent;
        let may_be_given_up = is_late && write.expect == Expect::Anything;
        let last = may_be_given_up.then_some((*last, *mark, *created));
        let search = self.search(write, has_id.then_some(id), *since, last, *known, deadline);
        tokio::pin!(search);
        tokio::select! {
            biased;
            Some(verdict) = self.late_answer(write, acknowledgement, *repeated) => {
                Ok(Found::Answer(verdict))
            }
            outcome = &mut search => outcome.map(Found::Outcome),
        }
    }

    /// Returns the server's answer to a write that is being searched for, or `None` if it proves
    /// nothing. The rejection of one of several copies proves nothing.
    async fn late_answer(
        &self,
        write: &WriteMessage,
        acknowledgement: &mut PendingAnswer,
        repeated: bool,
    ) -> Option<Verdict> {
        match self.verdict(write, acknowledgement.await) {
            Verdict::Silence(_) => None,
            verdict => (!repeated || matches!(verdict, Verdict::Taken(_))).then_some(verdict),
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

    /// Searches for the write by its id, if every copy has one. `last` is the time at which the
    /// last copy was sent, if the caller needs to know whether that copy is lost.
    async fn search(
        &self,
        write: &WriteMessage,
        id: Option<&str>,
        since: Instant,
        last: Option<(Instant, Mark, SystemTime)>,
        known: u64,
        deadline: Deadline,
    ) -> KvResult<Outcome> {
        let operation = write.operation;
        // Before the read of the key, so that the same leader or a later one answers that read.
        let is_given_up = match last {
            Some(last) => self.is_given_up(operation, last, deadline).await?,
            None => false,
        };
        let is_ours =
            |message: &StreamMessage| id.is_some() && message.operation_id.as_deref() == id;
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        let newest = loop {
            match self.newest_proven(operation, &write.key, deadline).await {
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
            return Ok(Outcome::Landed(newest.sequence));
        }
        // With a longer history, what was written since may still be there: for certain, where the
        // expected message is, since the oldest go first.
        let mut complete = false;
        if self.bucket.settings().history > 1 && id.is_some() {
            let expected = match write.expect {
                Expect::Exactly(expected) => expected,
                Expect::Anything => 0,
            };
            let mut next = expected.max(1);
            while let Some(message) =
                self.next_of_leader(operation, &write.key, next, deadline).await?
            {
                if is_ours(&message) {
                    return Ok(Outcome::Landed(message.sequence));
                }
                complete |= message.sequence == expected;
                next = message.sequence + 1;
            }
        }
        let evidence =
            Evidence { newest: newest.sequence, complete, may_have_aged, is_given_up, known };
        Ok(decide(write.expect, &evidence))
    }

    /// Returns the message that the leader has just named as the newest of a key, or otherwise the
    /// leader's newest one.
    async fn in_the_way(
        &self,
        write: &WriteMessage,
        found: Option<VersionToken>,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let (operation, key) = (write.operation, &write.key);
        // A sequence has the same message on every replica. The right to read the key is enough to
        // request it, but a leader read needs the right to read the whole bucket.
        match self.direct(operation, key, deadline).await {
            Ok(Some(message)) if Some(VersionToken::from_u64(message.sequence)) == found => {
                Ok(Some(message))
            }
            Ok(_) | Err(KvError::Unauthorized { .. }) => {
                self.newest_proven(operation, key, deadline).await
            }
            Err(error) => Err(error),
        }
    }

    /// Writes where the key is absent. A tombstone needs a second try that expects it, and a
    /// concurrent deletion between the two a third (nats-server #5162): so as long as the newest
    /// entry is a tombstone.
    pub(super) async fn create(
        &self,
        mut write: WriteMessage,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        write.expect = Expect::Exactly(0);
        loop {
            let mut try_this = write.clone();
            let found = match self.write(try_this.clone(), deadline).await {
                Err(
                    KvError::AlreadyExists { found, .. } | KvError::RevisionMismatch { found, .. },
                ) => Box::pin(self.in_the_way(&write, found, deadline)).await?,
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
    // Not an enum of the two, which would be read twice. Beside an error there may be a sequence
    // of 0.
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
