//! Limits that a server does not announce: it names them in errors, or ends the connection
//! (ADR 0068).

use super::link::{Link, Mark};
use super::server_errors::{LINE_TOO_LONG, MESSAGE_TOO_LARGE, too_many_subscriptions};
use crate::store::{KvError, KvLimit, KvResult};

/// Maximum length of a subject that counts as short. Only longer ones are reported as too long,
/// because the server does not name the line. Other requests in flight are sent again.
const LONG_SUBJECT: usize = 256;

/// Subscriptions and protocol lines.
impl Link {
    /// Reports a rejection to all subscriptions since `mark`, because the server does not name the
    /// rejected one.
    ///
    /// The answer to a later request shows that the server has processed them.
    ///
    /// # Errors
    /// Returns [`KvError::LimitReached`] if the connection has reached its limit of subscriptions.
    pub(super) fn ensure_subscribed(&self, operation: &'static str, mark: Mark) -> KvResult<()> {
        if self.events.state().surplus == mark.surplus {
            return Ok(());
        }
        Err(too_many_subscriptions(operation))
    }

    /// Returns the error of a request that was in flight when the connection broke, if its protocol
    /// line can have been too long.
    pub(super) fn too_long(
        &self,
        operation: &'static str,
        subject: &str,
        mark: Mark,
    ) -> Option<KvError> {
        let is_suspect =
            subject.len() > LONG_SUBJECT && self.events.state().long_lines != mark.long_lines;
        is_suspect.then(|| KvError::LimitReached {
            operation,
            limit: KvLimit::LineLength,
            reason: format!(
                "the server answered {LINE_TOO_LONG:?} and ended the connection; use shorter keys, \
                 or raise max_control_line of the server"
            ),
        })
    }
}

/// Sizes of messages.
impl Link {
    /// Returns the maximum size in bytes of a message with its headers that every server on the way
    /// accepts, as far as is known.
    ///
    /// A server announces its own limit when a client connects, and never announces the limit of an
    /// account. After the server has ended a connection because of a message, the size of the
    /// largest message in flight counts as too large.
    pub(super) fn max_payload(&self) -> usize {
        let told = self.client().max_payload().saturating_sub(self.space().overhead());
        self.bound().map_or(told, |bound| told.min(bound.saturating_sub(1)))
    }

    /// Returns the size of a payload that is too large, unless the announced limit explains the end
    /// of the last connection.
    pub(super) fn bound(&self) -> Option<usize> {
        let bound = self.events.state().bound?;
        // The headers are not counted, so that the message is not sent again without the optional
        // ones.
        (bound.whole <= self.client().max_payload()).then_some(bound.payload)
    }

    /// Returns the maximum size in bytes of a request that can be split. If only a bound is known,
    /// this is half of the bound, so that few connections end until the limit is respected.
    pub(super) fn max_request(&self) -> usize {
        self.bound().map_or(usize::MAX, |bound| bound / 2).min(self.max_payload())
    }

    /// Returns the error of a write that was in flight when the connection broke. Returns `None`
    /// unless the server has ended the connection because of the size of a message, possibly of
    /// this one.
    pub(super) fn oversized(&self, operation: &'static str, mark: Mark) -> Option<KvError> {
        (self.events.state().oversized != mark.oversized).then(|| KvError::LimitReached {
            operation,
            limit: KvLimit::MessageSize,
            reason: format!(
                "the server answered {MESSAGE_TOO_LARGE:?} and ended the connection; write smaller \
                 values, or raise max_payload of the server or the account"
            ),
        })
    }

    /// Returns whether the server has certainly not accepted this message. This is the last message
    /// above the limit, and the server ended the connection because of such a message. An earlier
    /// one may have been accepted before the limit was lowered.
    pub(super) fn is_rejected_for_size(&self, number: u64) -> bool {
        let limit = self.max_payload();
        self.events.state().sizes.is_last_over(number, limit)
    }

    /// Returns the error of a request that is larger than the server accepts.
    pub(super) fn request_too_large(&self, operation: &'static str) -> KvError {
        KvError::LimitReached {
            operation,
            limit: KvLimit::MessageSize,
            reason: format!(
                "the request is larger than the server accepts, {} bytes: name fewer or shorter \
                 keys, or raise max_payload of the server or the account",
                self.max_payload()
            ),
        }
    }
}
