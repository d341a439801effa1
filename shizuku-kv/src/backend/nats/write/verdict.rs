//! The server's answer to a write, or the event in place of an answer.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use super::super::api::ApiError;
use super::super::core::StoreCore;
use super::super::denials::Denial;
use super::super::link::{CROWD, Interruption};
use super::super::retry::has_no_responders;
use super::super::wire::EXPECTED_STREAM;
use super::message::WriteMessage;
use super::sent::Sent;
use crate::store::{Deadline, ErrorSource, KvError};

/// Returns the timeout for an acknowledgement before the write is searched for, on a connection
/// that seems to be alive. This is a quarter of the deadline from `since` on, from 100 ms to 5 s,
/// and at most two thirds of the remaining time. A lost copy therefore costs only a part of the
/// deadline, and the rest is enough for another search.
fn patience(since: Instant, deadline: Deadline) -> Duration {
    let share = (deadline.limit() / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
    let left = deadline.remaining();
    share.saturating_sub(since.elapsed()).min(left - left / 3)
}

/// The server's answer to one copy of a write.
#[derive(Debug)]
pub(super) enum Verdict {
    Taken(u64),
    /// The expected sequence is not the newest one, which the server may name.
    Conflict(Option<u64>),
    /// No responders: the stream does not exist, or has no leader now.
    NoResponders,
    Rejected(KvError),
    /// The server has rejected the write because of the server's load.
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
    /// No answer arrived, and none can arrive.
    Silence(Option<ErrorSource>),
    /// No answer yet.
    Late,
}

impl StoreCore {
    /// Waits for the acknowledgement, until the connection breaks or its share of the deadline has
    /// passed.
    pub(super) async fn await_verdict(&self, sent: &mut Sent, deadline: Deadline) -> Verdict {
        let subjects = [sent.subject.as_str()];
        let interrupted = self.link.interrupted_within(sent.mark, subjects, CROWD);
        tokio::select! {
            biased;
            answer = &mut sent.acknowledgement => return self.verdict(&sent.write, answer),
            interruption = interrupted => {
                if let Some(interruption) = interruption {
                    return self.interruption(sent, interruption);
                }
            }
            () = tokio::time::sleep(patience(sent.searched, deadline)) => return Verdict::Late,
        }
        // Boxed, because this is rare.
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
                    // The answer may be lost.
                    None => Verdict::Silence(
                        self.link.mark(operation).err().map(|error| Arc::new(error) as _),
                    ),
                },
            },
            Interruption::Denied(denial) if denial.names(&[sent.subject.as_str()]) => {
                Verdict::Rejected(denial.error(operation))
            }
            // The write is allowed, and only its acknowledgement cannot arrive.
            Interruption::Denied(denial) => {
                Verdict::Silence(Some(Arc::new(denial.error(operation))))
            }
        }
    }

    /// Returns the denial of a write whose event may have been lost among many others. The right is
    /// checked with a message that each stream rejects, because a copy of the write could take
    /// effect a second time.
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

    pub(super) fn verdict(&self, write: &WriteMessage, answer: Option<Message>) -> Verdict {
        let rejection = match answer {
            None => return Verdict::Silence(None),
            Some(message) if has_no_responders(&message) => return Verdict::NoResponders,
            Some(message) => match acknowledged(&message) {
                Ok(Ok(sequence)) => return Verdict::Taken(sequence),
                Ok(Err(error)) => error,
                Err(malformed) => return Verdict::Silence(Some(Arc::new(malformed))),
            },
        };
        match rejection.err_code {
            // The error "wrong last sequence: N" ends with the newest sequence.
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

    /// Returns the error of a rejected write, by the newest known settings.
    pub(super) fn rejection(&self, write: &WriteMessage, rejection: ApiError) -> KvError {
        let counts_replaced = self.bucket.settings().counts_replaced;
        rejection.into_write_error(
            write.operation,
            &self.bucket.name,
            write.rejected(),
            counts_replaced,
        )
    }
}

/// Parses the server's answer to a write: the sequence, or the reason of the rejection.
fn acknowledged(message: &Message) -> Result<Result<u64, ApiError>, serde_json::Error> {
    // This is not an enum of the two, which serde would read twice. With an error, the sequence may
    // be present as 0.
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

/// Returns the sequence at the end of a message such as "wrong last sequence: 7".
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
