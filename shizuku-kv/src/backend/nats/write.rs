//! Writing, and finding the outcome of a write whose acknowledgement was lost.
//!
//! Each write carries an id of its own in a header. If the connection breaks before the
//! acknowledgement arrives, the stream is searched for the id. If the id is found, the write took
//! effect. Otherwise the other messages show whether the write may have taken effect (see
//! [`decide`](super::outcome::decide)). A message id for the server's own duplicate detection is
//! not enough. The server rejects a repeated compare-and-swap because of its sequence, before the
//! duplicate is recognized (ADR 0002).

mod message;
mod search;
mod sent;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::PublishErrorKind;
use backon::ExponentialBackoff;
use tokio::time::Instant;

pub(super) use self::message::WriteMessage;
use self::search::Found;
pub(super) use self::sent::Sent;
use self::verdict::Verdict;
use super::core::{StoreCore, pause};
use super::link::Mark;
use super::outcome::{Expect, Outcome};
use super::pending::PendingAnswer;
use super::retry::first_patience;
use super::streams;
use super::wire::{StreamMessage, size_of};
use crate::store::{Deadline, ErrorSource, KvError, KvLimit, KvResult, VersionToken, backoff};

/// An id with the width of all ids.
const ANY_ID: &str = "000000000000000000000000";

/// Whether the time left is too short for another search.
fn is_last(deadline: Deadline) -> bool {
    deadline.remaining() <= deadline.limit() / 8
}

impl StoreCore {
    pub(super) async fn write(
        &self,
        write: WriteMessage,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let sent = self.send(write, deadline).await?;
        self.resolve(sent, deadline).await
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
            Ok(Err(error)) => Err(self.link.not_sent(operation, "cannot send the write", error)),
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

    /// Waits for the outcome of a write, up to the deadline.
    pub(super) async fn resolve(
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
                Verdict::NoResponders if !sent.repeated => {
                    let reason = Box::pin(self.no_listener(sent.write.operation, deadline)).await?;
                    if sent.write.pipelined {
                        return Err(reason.unwrap_or_else(|| sent.write.not_accepted()));
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
                Verdict::Conflict(_)
                | Verdict::NoResponders
                | Verdict::TooLarge
                | Verdict::Late => None,
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
            let found = match Box::pin(self.determine_outcome(&mut sent, is_late, deadline)).await {
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
                Ok(Outcome::NotYet) if sent.write.pipelined => {
                    return Err(sent.write.not_accepted());
                }
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
    /// temporary reason, or `None` if the stream has no leader now.
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
        match streams::described(&self.link, operation, name, deadline).await {
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

    /// Returns the message that the leader has just named as the newest of a key, or otherwise the
    /// leader's newest one.
    async fn conflicting_message(
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
                ) => Box::pin(self.conflicting_message(&write, found, deadline)).await?,
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
