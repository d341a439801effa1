//! Proof that a watch has delivered the initial state.
//!
//! While a consumer works through the newest message of each subject, others write. A message that
//! is removed before its turn never comes. If it was superseded, its successor comes, behind the
//! end that the stream had. If it was evicted or purged, no message comes. So neither the number of
//! messages nor the old end of the stream shows that every key has been delivered. Neither does the
//! server: "nothing pending" is wrong after such a removal (on every version from 2.10.26 to
//! 2.15.1), and a consumer in a stream with a history stops there ([`OrderedConsumer::may_stall`]).
//! These are the proofs:
//!
//! 1. **The consumer's own count.** The number of messages that wait for a consumer when it is
//!    created is exact if nothing was written around the creation; otherwise it may be too small.
//!    If as many have come, all of them from before the end that the stream had, none of them was
//!    removed. This proof costs nothing. If the end of the stream is not known to be the same
//!    before and after the creation, the count proves nothing, not even a count of 0 (ADR 0046).
//! 2. **The leader.** It has nothing newer in scope than the last message delivered, and the stream
//!    is still the same one.
//! 3. **The leader's list of subjects**, if others write all the time: each has been seen, or
//!    arrives later, or has nothing newer at the leader. See [`StateSync::outstanding`].
//! 4. From a cursor on, **a count of the subjects** behind it, if the store keeps one message of
//!    each and never removes the newest by itself. The list of all subjects does not tell which of
//!    them have changed since. It tells which of the delivered ones still exist: a purged one is
//!    not counted, and would hide another one that has not been delivered.
//!
//! A watch of a few keys reads its state by name, behind the creation of a consumer that begins at
//! the end of the stream: see [`StateSync::was_read`] (ADR 0069).
//!
//! Without a proof the watch reads again, from its position on: see `watch` (ADR 0046).
//!
//! All of that holds for a consumer at the leader. A consumer elsewhere may have been created
//! before acknowledged writes had arrived there: see `leader`. For such a consumer only the proof
//! by the leader counts. If that does not succeed within a while, another consumer is due, until
//! one is at the leader (ADR 0012).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::consumer::{OrderedConsumer, Spec, Start};
use super::core::StoreCore;
use super::lag::Lag;
use super::leader;
use super::settings::Settings;
use super::stream_info::StreamInfo;
use super::subjects::{Subjects, Table};
use super::wire::DeliveryInfo;
use crate::store::{Deadline, KvResult};

/// Minimum time between two requests for a proof.
const REST: Duration = Duration::from_millis(10);

/// Maximum time for which the leader may have more than was delivered, before another consumer is
/// due.
const PATIENCE: Duration = Duration::from_millis(500);

/// How far the delivered messages are from the end of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// More is to come.
    Ahead,
    /// Only the leader knows.
    Unknown,
    Reached,
}

/// The initial state of a scope that is being delivered.
#[derive(Debug)]
pub(super) struct StateSync {
    core: Arc<StoreCore>,
    operation: &'static str,
    filters: Vec<String>,
    /// Incarnation of the stream in which the present consumer was created.
    incarnation: [u8; 16],
    /// Whether the watch began with the state, not from a cursor.
    from_state: bool,
    /// The last sequence in the stream information that belongs to the first consumer: from before
    /// its creation or, if the consumer was created first, from after it.
    floor: u64,
    /// The last sequence of the stream before and after the creation of the present consumer, if
    /// the two are known to be equal. The maximum for one existing key, which needs none.
    bound: Option<u64>,
    /// Sequence from which on the leader is asked: `bound`, or a later end that is known.
    end: u64,
    /// Position of the newest message in scope on the leader, if it was the last one delivered.
    reached: Option<u64>,
    lag: Lag,
    /// Whether every message of the present consumer was the newest of its subject when the watch
    /// began, or later. Every message behind the floor was.
    is_newest: bool,
    /// Time since which the leader is known to have more messages than were delivered.
    behind: Option<Instant>,
    /// Subjects delivered with a message at least as new as when the watch began.
    delivered: Subjects,
    /// Subjects of the leader's list that have not been delivered. A subject is removed when it is
    /// delivered, or if the leader has no newer message of it than the position.
    outstanding: Option<HashSet<String>>,
    /// The consumer whose count at its creation is the number of subjects after the cursor.
    counted: Option<Spec>,
    round: Option<Round>,
    /// No proof is requested before this time.
    rest: Instant,
}

/// A count that is still to be compared.
#[derive(Debug)]
struct Round {
    /// The end of the stream a moment before the count.
    end: u64,
    /// The number of subjects after the cursor.
    subjects: usize,
    /// The subjects of the leader's lists before and after the count. Of the delivered subjects,
    /// the count includes exactly these, unless one was purged and written again between the lists.
    listed: Table,
}

impl Round {
    /// Returns whether every counted subject has been delivered.
    fn is_passed(&self, delivered: &mut Subjects) -> bool {
        delivered.table().shared_with(&self.listed) >= self.subjects
    }
}

impl StateSync {
    /// Returns the state that begins with `spec`. `floor` is the end in the stream
    /// information that belongs to its consumer.
    pub(super) fn new(
        core: Arc<StoreCore>,
        operation: &'static str,
        spec: &Spec,
        floor: u64,
    ) -> Self {
        let from_state = spec.start == Start::LastPerSubject;
        let settings = core.bucket.settings();
        let is_countable = !from_state && is_countable(&settings);
        drop(settings);
        Self {
            core,
            operation,
            filters: spec.filters.clone(),
            incarnation: [0; 16],
            from_state,
            floor,
            bound: None,
            end: floor,
            reached: None,
            lag: Lag::Unknown,
            is_newest: false,
            behind: None,
            delivered: Subjects::default(),
            outstanding: None,
            counted: is_countable.then(|| spec.clone()),
            round: None,
            rest: Instant::now(),
        }
    }

    /// The state up to the floor was read by name. Subjects whose newest message is behind the
    /// floor are outstanding: the consumer delivers them. Returns the end of the state.
    pub(super) fn was_read(&mut self, outstanding: HashSet<String>) -> End {
        self.from_state = true;
        let is_complete = self.outstanding.insert(outstanding).is_empty();
        if is_complete { End::Reached } else { End::Ahead }
    }

    /// Records that messages are from a consumer that was just created with this start and lag, in
    /// the stream of this information. `bound` is the last sequence around its creation, if that is
    /// known.
    pub(super) fn begin(&mut self, lag: Lag, start: Start, bound: Option<u64>, info: &StreamInfo) {
        self.lag = lag;
        self.incarnation = info.incarnation(&self.core.bucket.stream);
        (self.bound, self.end) = (bound, bound.unwrap_or(info.last_sequence()));
        let is_newest = start == Start::LastPerSubject || self.core.bucket.settings().history == 1;
        self.is_newest = is_newest && self.lag == Lag::None;
        (self.behind, self.round, self.reached) = (None, None, None);
    }

    /// Returns whether the delivered messages are at least as new as those at the start of the
    /// watch.
    pub(super) fn is_level(&self) -> bool {
        self.lag == Lag::None
    }

    /// Whether another consumer is due, because this one does not reach the leader's position: it
    /// is idle, or another one has a proof that this one lacks.
    pub(super) fn is_left_behind(&self, is_idle: bool) -> bool {
        let is_needed = is_idle || self.lag != Lag::None || !self.from_state;
        is_needed && self.behind.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// Returns the end of the state with a consumer that had nothing to deliver when it was made.
    pub(super) fn is_empty(&self) -> End {
        let is_exact = self.lag == Lag::None && self.bound.is_some();
        if is_exact { End::Reached } else { End::Unknown }
    }

    /// Whether the leader has nothing newer than `position`, up to which everything was delivered.
    pub(super) async fn reaches_leader(
        &mut self,
        position: u64,
        deadline: Deadline,
    ) -> KvResult<bool> {
        let newest = leader::newest(&self.core, self.operation, &self.filters, deadline).await;
        self.rest = Instant::now() + REST;
        let newest = newest?;
        if self.lag != Lag::None {
            self.lag = Lag::Until(newest);
        }
        self.behind.get_or_insert(self.rest);
        let reaches = newest <= position && self.is_same_store(deadline).await?;
        self.reached = (reaches && newest == position).then_some(position);
        Ok(reaches)
    }

    /// Returns whether the leader had no newer message in scope than the one at `position`.
    pub(super) fn has_reached(&self, position: u64) -> bool {
        self.reached == Some(position)
    }

    /// Returns whether the answers so far are from the stream in which the consumer was created.
    /// The sequences of a recreated stream start over.
    async fn is_same_store(&self, deadline: Deadline) -> KvResult<bool> {
        let info = self.core.info(self.operation, deadline).await?;
        Ok(self.incarnation == info.incarnation(&self.core.bucket.stream))
    }

    /// Returns whether a message cannot complete the state, whatever the leader would answer.
    pub(super) fn is_before_end(
        &self,
        delivery: &DeliveryInfo,
        consumer: &OrderedConsumer,
    ) -> bool {
        self.lag == Lag::None
            && delivery.stream_sequence < self.end
            && delivery.consumer_sequence < consumer.pending_at_start
            && self.round.is_none()
            && self.outstanding.is_none()
            && self.behind.is_none()
    }

    /// Records the subject of a message.
    pub(super) fn record(&mut self, subject: &str, sequence: u64) {
        if self.is_newest && sequence <= self.end {
            // The consumer delivers each subject once up to the bound, and few again up to the end.
            self.delivered.add_unique(subject);
        } else if self.is_newest || sequence > self.floor {
            self.delivered.insert(subject);
        } else {
            return;
        }
        self.outstanding.as_mut().map(|outstanding| outstanding.remove(subject));
    }

    /// Records a message. Returns the end of the state, after this message.
    pub(super) fn receive(
        &mut self,
        subject: &str,
        delivery: &DeliveryInfo,
        consumer: &OrderedConsumer,
    ) -> End {
        let sequence = delivery.stream_sequence;
        let was_complete = self.passes(|end| sequence > end);
        self.record(subject, sequence);
        let waiting = consumer.pending_at_start;
        let is_complete = was_complete
            || self.lag == Lag::None
                && self.bound.is_some_and(|bound| completes(delivery, waiting, bound))
            || self.passes(|end| sequence == end)
            || self.outstanding.as_ref().is_some_and(HashSet::is_empty);
        let may_end = self.lag.may_end_with(delivery, waiting, self.end)
            || self.bound.is_none() && delivery.consumer_sequence >= waiting;
        match (is_complete, may_end) {
            (true, _) => End::Reached,
            (false, true) => End::Unknown,
            (false, false) => End::Ahead,
        }
    }

    /// Returns whether the count shows that every subject has been delivered, once the end that
    /// belongs to the count has been reached. At that moment only subjects from before that end
    /// have been recorded, so the count includes none that the server did not count.
    fn passes(&mut self, reached: impl Fn(u64) -> bool) -> bool {
        let round = self.round.take_if(|round| reached(round.end));
        round.is_some_and(|round| round.is_passed(&mut self.delivered))
    }

    /// Requests a proof, once every initial entry has been delivered or removed. Requests take a
    /// fifth of the time at most, because an answer can be slow (`leader`), and messages wait
    /// meanwhile.
    pub(super) async fn prove(&mut self, position: u64, deadline: Deadline) -> KvResult<bool> {
        let begun = Instant::now();
        if self.round.is_some() || begun < self.rest {
            return Ok(false);
        }
        let answer = self.prove_now(position, deadline).await;
        self.rest = self.rest.max(Instant::now() + begun.elapsed() * 4);
        answer
    }

    async fn prove_now(&mut self, position: u64, deadline: Deadline) -> KvResult<bool> {
        if self.reaches_leader(position, deadline).await? {
            return Ok(true);
        }
        if self.lag != Lag::None {
            return Ok(false);
        }
        if self.from_state {
            self.compare_subjects(position, deadline).await
        } else {
            self.count(deadline).await
        }
    }

    /// Requests the leader's list of subjects, or checks whether some outstanding subjects were
    /// delivered long ago.
    async fn compare_subjects(&mut self, position: u64, deadline: Deadline) -> KvResult<bool> {
        let (core, operation) = (&self.core, self.operation);
        let Some(outstanding) = &self.outstanding else {
            let mut subjects =
                leader::subjects(core, operation, &self.filters, deadline.limit()).await?;
            let delivered = self.delivered.table();
            subjects.retain(|subject| !delivered.contains(subject));
            if !self.is_same_store(deadline).await? {
                return Ok(false);
            }
            return Ok(self.outstanding.insert(subjects.into_iter().collect()).is_empty());
        };
        let some: Vec<_> = outstanding.iter().take(leader::IN_FLIGHT).cloned().collect();
        let newest = stream::iter(some).map(|subject| async move {
            let newest = leader::newest_of(core, operation, &subject, deadline).await?;
            Ok((subject, newest.map_or(0, |message| message.sequence)))
        });
        let newest: Vec<(String, u64)> =
            newest.buffer_unordered(leader::IN_FLIGHT).try_collect().await?;
        if !self.is_same_store(deadline).await? {
            return Ok(false);
        }
        let Some(outstanding) = &mut self.outstanding else { return Ok(false) };
        for (subject, _) in newest.iter().filter(|(_, newest)| *newest <= position) {
            outstanding.remove(subject);
        }
        Ok(outstanding.is_empty())
    }

    /// Counts the subjects after the cursor.
    async fn count(&mut self, deadline: Deadline) -> KvResult<bool> {
        let Some(spec) = &self.counted else { return Ok(false) };
        let core = &self.core;
        let before = self.listed(deadline).await?;
        let info = core.info(self.operation, deadline).await?;
        // The settings may have been changed since the watch began.
        if !is_countable(&core.bucket.settings()) {
            return Ok(false);
        }
        let name = format!("shizuku-{}", core.link.next_id());
        let link = Arc::clone(&core.link);
        let counted = OrderedConsumer::create(link, self.operation, spec, name, deadline).await?;
        let Ok(counted) = counted else { return Ok(false) };
        if counted.lag(&info) != Lag::None {
            return Ok(false);
        }
        let subjects = usize::try_from(counted.pending_at_start).unwrap_or(usize::MAX);
        drop(counted);
        let mut listed = self.listed(deadline).await?;
        if !self.is_same_store(deadline).await? {
            return Ok(false);
        }
        listed.retain(&before);
        let round = Round { end: info.last_sequence(), subjects, listed };
        // All messages so far are from before the end.
        let is_complete = round.is_passed(&mut self.delivered);
        self.round = (!is_complete).then_some(round);
        Ok(is_complete)
    }

    /// Returns the leader's list of subjects.
    async fn listed(&self, deadline: Deadline) -> KvResult<Table> {
        let limit = deadline.limit();
        let subjects = leader::subjects(&self.core, self.operation, &self.filters, limit).await?;
        let mut listed = self.delivered.emptied();
        listed.add_all(subjects.iter().map(String::as_str));
        Ok(listed)
    }
}

/// Returns whether the messages behind a cursor are as many as their subjects.
///
/// With a longer history a subject has several messages behind a sequence. If the newest are
/// removed, subjects that were seen leave the stream, and counting them would hide others.
fn is_countable(settings: &Settings) -> bool {
    settings.history == 1 && !settings.forgets_newest()
}

/// Whether a message is the last one that was waiting for its consumer, and none was removed: as
/// many have come as were waiting, none of them from behind `bound`, the end of the stream before
/// the consumer was made.
pub(super) fn completes(delivery: &DeliveryInfo, waiting: u64, bound: u64) -> bool {
    delivery.consumer_sequence == waiting && delivery.stream_sequence <= bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_complete_only_if_no_message_can_be_missing() {
        let delivery = |consumer_sequence, stream_sequence| DeliveryInfo {
            stream_sequence,
            consumer_sequence,
            nanos: 0,
        };
        // Three were waiting, the stream ended at 10.
        assert!(completes(&delivery(3, 10), 3, 10));
        // At the end, but one was superseded and is still to come from behind it, whatever the
        // pending count is.
        assert!(!completes(&delivery(2, 10), 3, 10));
        assert!(!completes(&delivery(3, 11), 3, 10));
    }

    /// A delivered subject that was purged before the count does not stand for another one.
    #[test]
    fn purged_subject_hides_no_other_subject() {
        let mut delivered = Subjects::default();
        delivered.add_unique("kept");
        delivered.add_unique("purged");
        let mut listed = delivered.emptied();
        listed.add_all(["kept", "late"]);
        let round = Round { end: 10, subjects: 2, listed };
        assert!(!round.is_passed(&mut delivered));
        delivered.add_unique("late");
        assert!(round.is_passed(&mut delivered));
    }
}
