//! A request that is repeated until an answer arrives or the deadline passes (ADR 0059).

use std::time::Duration;

use async_nats::{Message, PublishError, StatusCode};
use backon::ExponentialBackoff;
use bytes::Bytes;
use tokio::time::Instant;

use super::link::{CROWD, Interruption, Link, Mark};
use super::pending::Copies;
use crate::store::timer::sleep_until;
use crate::store::{Deadline, KvError, KvResult, backoff, in_runtime};

/// Returns the timeout for the answer to the first copy of a request, before another is sent. This
/// is an eighth of the deadline, so that the deadline has room for several copies, from 100 ms to 1
/// s.
///
/// A stream without a leader never answers a request, even after the next election. An election
/// takes 5 to 8 s after a leader was killed (ADR 0059).
pub(super) fn first_patience(deadline: Deadline) -> Duration {
    (deadline.limit() / 8).clamp(Duration::from_millis(100), Duration::from_secs(1))
}

/// Returns the timeouts for the answers to later copies of a request, of which the first had this
/// one. They are jittered, because all clients lost the leader at the same time.
fn later_patience(first: Duration, deadline: Deadline) -> ExponentialBackoff {
    let second = first * 2;
    backoff(second, (deadline.limit() / 4).min(Duration::from_secs(2)).max(second))
}

/// Time by which a request exceeds its deadline, so that the caller, which knows the key, times out
/// first.
const GRACE: Duration = Duration::from_millis(20);

/// Payload with which the server rejects every command of the JetStream API. The rejection shows
/// that the user has the right to send the command.
const NOT_A_COMMAND: Bytes = Bytes::from_static(b"?");

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    Message(Message),
    /// No responders: the stream does not exist, or has no leader now.
    NoResponders,
}

/// A request in flight, with as many copies as an answer needs. Dropping the value abandons the
/// request.
pub(super) struct Request<'a> {
    link: &'a Link,
    operation: &'static str,
    subject: &'a str,
    payload: Bytes,
    deadline: Deadline,
    copies: Copies,
    /// Whether no copy is sent while another may be in flight, because a late copy could undo later
    /// changes.
    is_single: bool,
    /// Minimum timeout for the answer to the first copy.
    patience: Duration,
}

impl Link {
    /// Returns a request that may be repeated, because it changes nothing or is idempotent.
    pub(super) fn request<'a>(
        &'a self,
        operation: &'static str,
        subject: &'a str,
        payload: Bytes,
        deadline: Deadline,
    ) -> Request<'a> {
        let copies = Copies::default();
        Request {
            link: self,
            operation,
            subject,
            payload,
            deadline,
            copies,
            is_single: false,
            patience: Duration::ZERO,
        }
    }
}

impl Request<'_> {
    /// Sets whether no copy is sent while another may be in flight.
    pub(super) fn single(self, is_single: bool) -> Self {
        Self { is_single, ..self }
    }

    /// Sets the minimum timeout for the answer to the first copy.
    pub(super) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    /// Forgets the copies, so that the next attempt sends the request again after the server has
    /// rejected it.
    pub(super) fn renew(&mut self) {
        self.copies = Copies::default();
    }

    /// Sends copies until one is answered. Each copy has a part of the deadline before the next is
    /// sent.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`] if the deadline passed.
    pub(super) async fn answer(&mut self) -> KvResult<Answer> {
        let first = first_patience(self.deadline).max(self.patience);
        let mut patience = if self.is_single { self.deadline.remaining() + GRACE } else { first };
        let mut later: Option<ExponentialBackoff> = None;
        loop {
            if let Some(answer) = self.attempt(patience).await? {
                return Ok(answer);
            }
            if self.deadline.remaining().is_zero() {
                return Err(self.deadline.timeout(self.operation, None));
            }
            let later = later.get_or_insert_with(|| later_patience(first, self.deadline));
            patience = later.next().unwrap_or(patience);
        }
    }

    /// Sends one copy, which is repeated if the connection breaks. Waits for an answer to any copy.
    /// Returns `None` if `patience` has passed.
    pub(super) async fn attempt(&mut self, patience: Duration) -> KvResult<Option<Answer>> {
        let Self {
            link, operation, subject, ref payload, deadline, ref mut copies, is_single, ..
        } = *self;
        in_runtime(operation)?;
        let received = |answer: Option<Message>| match answer {
            Some(message) if has_no_responders(&message) => Ok(Some(Answer::NoResponders)),
            Some(message) => Ok(Some(Answer::Message(message))),
            None => Err(link.over(operation).unwrap_or_else(|| {
                unavailable(operation, "the connection ended before the answer arrived")
            })),
        };
        let broken = || {
            link.over(operation).unwrap_or_else(|| {
                let reason = "the connection broke before the answer arrived, so that the command \
                              may have been executed";
                unavailable(operation, reason)
            })
        };
        let until = |patience| (Instant::now() + patience).min(deadline.instant() + GRACE);
        let mut silence = until(patience);
        // A copy that checks the right after many denials, and the turn to send this copy.
        let (mut check, mut turn) = (Copies::default(), None);
        let (mut crowd, mut sent): (_, Option<Mark>) = (CROWD, None);
        loop {
            let mark = link.up(operation, deadline).await?;
            if link.bound().is_some_and(|bound| payload.len() >= bound) {
                return Err(link.request_too_large(operation));
            }
            // A copy counts only once the client library has accepted it.
            let is_sent = is_single && !copies.is_empty();
            if is_sent && sent.is_some_and(|sent| !sent.is_of_connection(mark)) {
                return Err(broken());
            }
            if !is_sent {
                sent = Some(mark);
            }
            let ask = async {
                let subject = subject.to_owned();
                if turn.is_some() {
                    let payload = if is_single { NOT_A_COMMAND } else { payload.clone() };
                    link.requests().send(&mut check, subject, payload).await?;
                } else if !is_sent {
                    link.requests().send(copies, subject, payload.clone()).await?;
                }
                Ok::<_, PublishError>(tokio::select! {
                    biased;
                    answer = copies.answer() => Some(answer),
                    answer = check.answer() => (!is_single).then_some(answer),
                })
            };
            tokio::select! {
                biased;
                answer = ask => match answer {
                    Ok(Some(answer)) => return received(answer),
                    // The user has the right, so that the command will be answered.
                    Ok(None) => (check, turn, crowd) = (Copies::default(), None, u64::MAX),
                    Err(error) => {
                        return Err(link.not_sent(operation, "cannot send the request", error));
                    }
                },
                interruption = link.interrupted_within(mark, [subject], crowd) => {
                    if let Some(Interruption::Denied(denial)) = interruption {
                        return Err(denial.error(operation));
                    }
                    if interruption.is_none() {
                        // The client may not have received the denial. Until the turn, silence
                        // therefore proves nothing.
                        drop(turn.take());
                        check = Copies::default();
                        // Boxed, because this is rare.
                        let next = Box::pin(async {
                            tokio::select! {
                                biased;
                                answer = copies.answer() => Err(received(answer)),
                                next = link.turn_in_crowd() => Ok(next),
                                () = sleep_until(deadline.instant() + GRACE) => Err(Ok(None)),
                            }
                        });
                        match next.await {
                            Ok(next) => turn = next,
                            Err(done) => return done,
                        }
                        silence = until(patience);
                        continue;
                    }
                    if let Some(error) = link.too_long(operation, subject, mark) {
                        return Err(error);
                    }
                    if is_single && !copies.is_empty() {
                        return Err(broken());
                    }
                    // Earlier copies can no longer be answered.
                    (*copies, check, turn) = (Copies::default(), Copies::default(), None);
                }
                () = sleep_until(silence) => return Ok(None),
            }
        }
    }
}

fn unavailable(operation: &'static str, reason: &str) -> KvError {
    KvError::Unavailable { operation, reason: reason.to_owned(), source: None }
}

/// Returns whether no server subscribes to the subject of a request.
pub(super) fn has_no_responders(answer: &Message) -> bool {
    answer.status == Some(StatusCode::NO_RESPONDERS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::pin::pin;

    use async_nats::Event;
    use futures_util::FutureExt;

    use super::super::scripted::link;
    use super::*;

    #[tokio::test]
    async fn command_that_was_not_accepted_is_sent_again() {
        let link = link(|_| String::new()).await;
        let deadline = Deadline::after(Duration::from_secs(20));
        let command = link.request("delete_store", "command", Bytes::new(), deadline);
        let mut command = command.single(true);
        let mut answer = pin!(command.answer());
        // The client's task runs only while the test waits, so that its queue stays full.
        link.client().publish("other", Bytes::new()).now_or_never().unwrap().unwrap();
        assert!(answer.as_mut().now_or_never().is_none());
        link.events.on_event(&Event::Disconnected);
        assert!(matches!(answer.await, Ok(Answer::Message(_))));
    }

    #[tokio::test]
    async fn accepted_command_is_not_sent_again() {
        let link = link(|_| String::new()).await;
        let deadline = Deadline::after(Duration::from_secs(20));
        let command = link.request("delete_store", "command", Bytes::new(), deadline);
        let mut command = command.single(true);
        let mut answer = pin!(command.answer());
        assert!(answer.as_mut().now_or_never().is_none());
        link.events.on_event(&Event::Disconnected);
        assert!(matches!(answer.await, Err(KvError::Unavailable { .. })));
    }
}
