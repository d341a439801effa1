//! Writing under a lock: a read of the newest message with its token, and a compare-and-swap on
//! that message.
//!
//! The server does not know tokens. But the server accepts the write only if the message that was
//! read is still the newest. So the comparison holds at the moment of the write, even if a deposed
//! leader answered the read. If another client wrote in between, the read is repeated (ADR 0004).
//!
//! A missing entry proves nothing by itself: a maximum age that another client has just set may
//! have removed it together with its token. So a read that finds nothing, or the marker of an
//! expired entry, asks the leader for the settings. An existing entry needs no such proof, whatever
//! the settings are: no newer entry can have been removed before it, and if it is removed itself,
//! the compare-and-swap fails (ADR 0005, ADR 0060).

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::time::Duration;

use futures_core::future::BoxFuture;

use super::core::StoreCore;
use super::store::NatsStore;
use super::wire::StreamMessage;
use super::write::WriteMessage;
use crate::store::backoff;
use crate::store::{
    Deadline, FencingToken, Key, KvError, KvFenced, KvOperation, KvResult, VersionToken,
    WriteCondition,
};

/// The newest message of a key, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Newest {
    sequence: u64,
    is_deletion: bool,
    fence: Option<FencingToken>,
}

impl From<&StreamMessage> for Newest {
    fn from(message: &StreamMessage) -> Self {
        Self {
            sequence: message.sequence,
            is_deletion: message.operation.is_deletion(),
            fence: message.fence,
        }
    }
}

/// Decision about a write, from the newest message of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// The write may supersede the message with this sequence. Zero if the key has no message.
    Over(u64),
    /// This newer token has written to the key.
    Fenced(FencingToken),
    /// The key had to be absent, and has a value.
    Exists(u64),
    /// The message has another version than was expected, or there is none.
    Mismatch { expected: VersionToken, found: Option<u64> },
}

/// Decides about a write. The token is compared first, so that the error of a lost lock precedes
/// all others (ADR 0006).
fn admit(condition: WriteCondition, token: FencingToken, newest: Option<Newest>) -> Admission {
    if let Some(newer) = token.rejected_by(newest.and_then(|newest| newest.fence)) {
        return Admission::Fenced(newer);
    }
    let found = newest.map(|newest| newest.sequence);
    match (condition, newest) {
        (WriteCondition::Absent, Some(newest)) if !newest.is_deletion => {
            Admission::Exists(newest.sequence)
        }
        (WriteCondition::Exactly(expected), _)
            if found.map(VersionToken::from_u64) != Some(expected) =>
        {
            Admission::Mismatch { expected, found }
        }
        _ => Admission::Over(found.unwrap_or(0)),
    }
}

impl Admission {
    /// The sequence to expect.
    ///
    /// # Errors
    /// Returns the reason if the write is rejected.
    fn sequence(self, key: &Key, token: FencingToken) -> KvResult<u64> {
        let key = || key.clone();
        match self {
            Self::Over(sequence) => Ok(sequence),
            Self::Fenced(newest) => Err(KvError::Fenced { key: key(), token, newest }),
            Self::Exists(sequence) => Err(KvError::AlreadyExists {
                key: key(),
                found: Some(VersionToken::from_u64(sequence)),
            }),
            Self::Mismatch { expected, found } => Err(KvError::RevisionMismatch {
                key: key(),
                expected,
                found: found.map(VersionToken::from_u64),
            }),
        }
    }
}

impl StoreCore {
    /// Returns the newest message of a key, provided that no message with a token can have been
    /// lost.
    async fn newest_of_kept(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let known = self.bucket.settings().keeps_fences();
        let newest = self.newest_proven(operation, key, deadline).await?;
        let may_be_lost =
            newest.as_ref().is_none_or(|newest| newest.operation == KvOperation::Expire);
        if may_be_lost || !known {
            let settings = self.settings_of_now(operation, deadline).await?;
            settings.ensure_newest_stay(operation, &self.bucket.name)?;
        }
        Ok(newest)
    }

    pub(super) async fn write_fenced(
        &self,
        write: WriteMessage,
        token: FencingToken,
        condition: WriteCondition,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let write = write.under(token);
        let (operation, key) = (write.operation(), write.key());
        let decide = |newest: Option<StreamMessage>| {
            let admission = admit(condition, token, newest.as_ref().map(Newest::from));
            let sequence = admission.sequence(key, token)?;
            Ok(ControlFlow::<Infallible, WriteMessage>::Continue(write.clone().over(sequence)))
        };
        match self.read_and_swap(operation, key, decide, deadline).await? {
            ControlFlow::Continue(version) => Ok(version),
            ControlFlow::Break(never) => match never {},
        }
    }

    /// Reads the newest message of a key, and writes its successor over exactly that message;
    /// retries if another message came in between. Breaks if nothing is to be written.
    async fn read_and_swap<T>(
        &self,
        operation: &'static str,
        key: &Key,
        decide: impl Fn(Option<StreamMessage>) -> KvResult<ControlFlow<T, WriteMessage>>,
        deadline: Deadline,
    ) -> KvResult<ControlFlow<T, VersionToken>> {
        let mut pauses = backoff(Duration::from_millis(1), Duration::from_millis(100));
        loop {
            let read = self.newest_of_kept(operation, key, deadline);
            let not_yet = match deadline.bound(operation, Some(key), read).await {
                Ok(newest) => match decide(newest)? {
                    ControlFlow::Break(nothing) => return Ok(ControlFlow::Break(nothing)),
                    ControlFlow::Continue(write) => match self.write(write, deadline).await {
                        // Another client wrote in between. The next read shows whether that was a
                        // newer holder.
                        Err(KvError::RevisionMismatch { .. } | KvError::AlreadyExists { .. }) => {
                            deadline.timeout(operation, Some(key))
                        }
                        result => return result.map(ControlFlow::Continue),
                    },
                },
                // A cluster without a leader may have one in a moment.
                Err(error @ KvError::Unavailable { .. }) => error,
                Err(error) => return Err(error),
            };
            let pause = pauses.next().unwrap_or_default();
            if deadline.remaining() <= pause {
                return Err(not_yet);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl KvFenced for NatsStore {
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        const OPERATION: &str = "raise";
        let decide = move |newest: Option<StreamMessage>| {
            if let Some(fence) =
                newest.as_ref().and_then(|newest| newest.fence).filter(|fence| *fence >= token)
            {
                return Ok(ControlFlow::Break(fence));
            }
            let sequence = newest.as_ref().map_or(0, |newest| newest.sequence);
            let metadata = newest.as_ref().and_then(|newest| newest.metadata.clone());
            let write = match newest.filter(|newest| !newest.operation.is_deletion()) {
                Some(value) if value.expires => {
                    return Err(KvError::Unsupported {
                        operation: OPERATION,
                        reason: format!(
                            "key {key} has a time to live, and its token would expire with it; write it without one first"
                        ),
                    });
                }
                Some(value) => WriteMessage::put(OPERATION, key, value.value),
                None => WriteMessage::deletion(OPERATION, key, KvOperation::Delete),
            };
            Ok(ControlFlow::Continue(write.by(metadata).under(token).over(sequence)))
        };
        Box::pin(async move {
            match self.0.read_and_swap(OPERATION, key, decide, deadline).await? {
                ControlFlow::Break(fence) => Ok(fence),
                ControlFlow::Continue(_) => Ok(token),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: FencingToken = FencingToken::from_u64(7);

    fn newest(sequence: u64, is_deletion: bool, fence: Option<u64>) -> Option<Newest> {
        Some(Newest { sequence, is_deletion, fence: fence.map(FencingToken::from_u64) })
    }

    fn version(sequence: u64) -> WriteCondition {
        WriteCondition::Exactly(VersionToken::from_u64(sequence))
    }

    #[test]
    fn newer_token_rejects_every_condition() {
        for condition in [WriteCondition::Any, WriteCondition::Absent, version(3), version(4)] {
            for is_deletion in [false, true] {
                let admission = admit(condition, TOKEN, newest(3, is_deletion, Some(8)));
                assert_eq!(
                    admission,
                    Admission::Fenced(FencingToken::from_u64(8)),
                    "{condition:?}"
                );
            }
        }
    }

    #[test]
    fn admitted_write_supersedes_the_message_that_was_read() {
        for fence in [None, Some(6), Some(7)] {
            for is_deletion in [false, true] {
                let newest = newest(3, is_deletion, fence);
                assert_eq!(admit(WriteCondition::Any, TOKEN, newest), Admission::Over(3));
                assert_eq!(admit(version(3), TOKEN, newest), Admission::Over(3));
            }
            assert_eq!(
                admit(WriteCondition::Absent, TOKEN, newest(3, true, fence)),
                Admission::Over(3)
            );
            assert_eq!(
                admit(WriteCondition::Absent, TOKEN, newest(3, false, fence)),
                Admission::Exists(3)
            );
        }
        assert_eq!(admit(WriteCondition::Any, TOKEN, None), Admission::Over(0));
        assert_eq!(admit(WriteCondition::Absent, TOKEN, None), Admission::Over(0));
    }

    #[test]
    fn a_swap_needs_the_version_that_it_expects() {
        let mismatch = |sequence, found| Admission::Mismatch {
            expected: VersionToken::from_u64(sequence),
            found,
        };
        assert_eq!(admit(version(2), TOKEN, newest(3, false, Some(7))), mismatch(2, Some(3)));
        assert_eq!(admit(version(4), TOKEN, newest(3, true, None)), mismatch(4, Some(3)));
        // An absent key has no version, not even zero.
        assert_eq!(admit(version(0), TOKEN, None), mismatch(0, None));
    }
}
