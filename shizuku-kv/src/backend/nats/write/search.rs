//! The search for a write whose acknowledgement was lost, by its operation id (ADR 0002).

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::core::{StoreCore, pause};
use super::super::link::Mark;
use super::super::outcome::{Evidence, Expect, Outcome, decide};
use super::super::pending::PendingAnswer;
use super::super::wire::StreamMessage;
use super::message::WriteMessage;
use super::sent::Sent;
use super::verdict::Verdict;
use crate::store::{Deadline, KvResult, backoff};

/// Result of the search for a write without an acknowledgement.
pub(super) enum Found {
    Outcome(Outcome),
    /// The server's late answer.
    Answer(Verdict),
}

impl StoreCore {
    /// Determines the outcome of a write, while its acknowledgement may still arrive.
    pub(super) async fn determine_outcome(
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

    /// Returns whether no copy that was sent at that time can still take effect, because the stream
    /// has had another leader since.
    ///
    /// On an unbroken connection the server has forwarded all messages that were sent before this
    /// request. The replicas reject a copy that was forwarded to a replaced leader. A copy that was
    /// forwarded to the new leader arrived before the request. Only a newer message of the key
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
        // This precedes the read of the key, so that the same leader or a later one answers that
        // read.
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
                // A restarted server may need some time.
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
        // With a longer history, later writes may still exist. They certainly do if the expected
        // message exists, because the oldest messages are removed first.
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
}
