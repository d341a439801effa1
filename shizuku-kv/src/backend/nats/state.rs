//! Knowing when the state that was there has been delivered.
//!
//! While a consumer works through the newest message of each subject, others write. A message that is superseded before
//! its turn never comes; its successor does, behind the end that the stream had. So neither the number of messages nor
//! the old end of the stream tells that every key has been delivered. The server counts what is pending, but loses count
//! when messages are superseded while it delivers (seen on every version from 2.10.26 to 2.15.1), so that a "nothing
//! pending" can be wrong. What it does count exactly is what waits for a consumer at the moment that this is created:
//! how many subjects there are. That number is compared with the subjects that have been seen. In buckets whose messages
//! age it proves nothing; there the state is complete at the end of the stream, or when the consumer is idle.
//!
//! All of that holds for a consumer that is at the leader. One that is elsewhere may have been made before what was
//! acknowledged had got there: see `leader`. What was waiting for it proves nothing then, and the subjects that have been
//! seen may have been seen with values that were replaced before. So its state is complete when the leader has nothing
//! newer, and where that does not come about in a while, another consumer is due, until one is at the leader. Numbers of
//! subjects are only taken from there.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::hash_table::{Entry, HashTable};
use tokio::time::Instant;

use super::bucket::StreamInfo;
use super::consumer::{OrderedConsumer, Spec, Start};
use super::leader::{self, Lag};
use super::store::StoreCore;
use super::wire::Place;
use crate::store::{Deadline, KvResult};

/// The shortest time between two questions to the server.
const REST: Duration = Duration::from_millis(10);

/// How long a consumer may be behind the leader. Elsewhere the state may be complete sooner: where others write all the
/// time, at the leader only.
const PATIENCE: Duration = Duration::from_millis(500);

/// The state of a scope on its way.
#[derive(Debug)]
pub(super) struct StateSync {
    core: Arc<StoreCore>,
    operation: &'static str,
    filters: Vec<String>,
    /// Which keys there are is all that is asked for, whatever the age of their values.
    keys_only: bool,
    lag: Lag,
    /// Since when the leader is known to have more than has come.
    behind: Option<Instant>,
    /// What a consumer would be made like whose pending messages are the subjects to be seen, one each.
    subjects: Option<Spec>,
    /// The end of the stream before the consumer was made.
    floor: u64,
    seen: Seen,
    round: Option<Round>,
    rest: Instant,
}

/// An answer of the server that is still to be compared: so many subjects there were, and the stream ended here a
/// moment before.
#[derive(Clone, Copy, Debug)]
struct Round {
    end: u64,
    subjects: usize,
}

/// Where a message stands to the end of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    NotYet,
    /// The state was complete before this message.
    Before,
    /// The state is complete with this message.
    With,
}

impl StateSync {
    /// The state from `spec` on, of which the consumer is about to be made. `floor` is the end of the stream just
    /// before.
    pub(super) fn new(core: Arc<StoreCore>, operation: &'static str, spec: &Spec, floor: u64) -> Self {
        // With a longer history a key has several messages behind a sequence, which says nothing about their subjects.
        // Where messages age, subjects that were seen leave the stream, and counting them would hide others.
        let countable = (spec.start == Start::LastPerSubject || core.bucket.settings().history == 1)
            && core.bucket.settings().tombstone_life.is_none();
        Self {
            core,
            operation,
            filters: spec.filters.clone(),
            keys_only: false,
            lag: Lag::Unknown,
            behind: None,
            subjects: countable.then(|| spec.clone()),
            floor,
            seen: Seen::default(),
            round: None,
            rest: Instant::now(),
        }
    }

    /// The same where old values will do, if only every key comes.
    pub(super) fn of_keys(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// From now on what comes is from this consumer, which was made after a look at the stream.
    pub(super) fn begin(&mut self, consumer: &OrderedConsumer, before: &StreamInfo) {
        self.lag = consumer.lag(before);
        self.behind = None;
        self.round = None;
    }

    /// Whether what has been seen is at least as new as what was there at the beginning.
    pub(super) fn is_level(&self) -> bool {
        self.lag == Lag::None
    }

    /// Whether another consumer is due, since this one does not get to where the leader is.
    pub(super) fn is_left_behind(&self) -> bool {
        self.behind.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// Whether the state is complete where the consumer has nothing (more) to deliver. Everything up to `position` has
    /// been delivered.
    pub(super) async fn is_covered(&mut self, position: u64, deadline: Deadline) -> KvResult<bool> {
        Ok(self.lag == Lag::None || self.reaches_leader(position, deadline).await?)
    }

    /// Takes note of a message, and tells whether its subject is new and whether the state is complete.
    pub(super) async fn receive(
        &mut self,
        subject: &str,
        place: &Place,
        consumer: &OrderedConsumer,
        deadline: Deadline,
    ) -> (bool, Completion) {
        let sequence = place.stream_sequence;
        let before = self.passed(sequence, |end| sequence > end);
        let new = self.seen.insert(subject);
        if before {
            return (new, Completion::Before);
        }
        let waiting = consumer.pending_at_start;
        let complete = self.lag == Lag::None && completes(place, waiting, self.floor)
            || self.passed(sequence, |end| sequence == end)
            // An answer that fails to come is asked for again with the next message.
            || self.lag.may_end_with(place, waiting, self.floor)
                && self.ask(sequence, deadline).await.unwrap_or(false);
        (new, if complete { Completion::With } else { Completion::NotYet })
    }

    /// Whether the answer that is held, if its end of the stream has been reached, shows that every subject has been
    /// seen. Only subjects from before that end have been noted then, so that none is counted which the answer does not
    /// count.
    fn passed(&mut self, sequence: u64, reached: impl Fn(u64) -> bool) -> bool {
        debug_assert!(sequence > 0, "streams begin at 1");
        let round = self.round.take_if(|round| reached(round.end));
        round.is_some_and(|round| self.seen.len() >= round.subjects)
    }

    /// Asks the leader whether there is anything newer than what has been delivered, up to `position`.
    async fn reaches_leader(&mut self, position: u64, deadline: Deadline) -> KvResult<bool> {
        if Instant::now() < self.rest {
            return Ok(false);
        }
        let newest = leader::newest(&self.core, self.operation, &self.filters, deadline).await;
        self.rest = Instant::now() + REST;
        let newest = newest?;
        self.lag = Lag::Until(newest);
        self.behind.get_or_insert(self.rest);
        Ok(newest <= position)
    }

    /// Asks the server how many subjects there are, once everything that was there in the beginning has come.
    async fn ask(&mut self, sequence: u64, deadline: Deadline) -> KvResult<bool> {
        if self.round.is_some() || Instant::now() < self.rest {
            return Ok(false);
        }
        if self.lag != Lag::None {
            let reached = self.reaches_leader(sequence, deadline).await?;
            if reached || !self.keys_only {
                return Ok(reached);
            }
        }
        let core = &self.core;
        let info = core.info(self.operation, deadline).await?;
        let end = info.last_sequence();
        self.rest = Instant::now() + REST;
        if end <= sequence {
            return Ok(true);
        }
        let Some(spec) = &self.subjects else { return Ok(false) };
        let name = format!("shizuku-{}", core.link.next_id());
        let link = Arc::clone(&core.link);
        let counted = OrderedConsumer::create(link, self.operation, spec, name, deadline).await?;
        let Ok(counted) = counted else { return Ok(false) };
        if counted.lag(&info) != Lag::None {
            return Ok(false);
        }
        let subjects = usize::try_from(counted.pending_at_start).unwrap_or(usize::MAX);
        self.round = Some(Round { end, subjects });
        // Everything seen so far is from before the end.
        if self.seen.len() >= subjects {
            self.round = None;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Whether a message is the last of the state, nothing of which was superseded: as many have come as were waiting, none
/// of them from behind the old end of the stream.
fn completes(place: &Place, waiting: u64, floor: u64) -> bool {
    place.consumer_sequence == waiting && place.stream_sequence <= floor
}

/// Subjects, as 128-bit hashes with keys of this process: what a listing or the state phase of a watch has delivered,
/// at some 20 bytes each.
#[derive(Debug, Default)]
struct Seen {
    keys: [RandomState; 2],
    /// By the first half: it need not be hashed again.
    hashes: HashTable<(u64, u64)>,
}

impl Seen {
    /// Whether the subject is new.
    fn insert(&mut self, subject: &str) -> bool {
        let hash = (self.keys[0].hash_one(subject), self.keys[1].hash_one(subject));
        match self.hashes.entry(hash.0, |seen| *seen == hash, |seen| seen.0) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(hash);
                true
            }
        }
    }

    fn len(&self) -> usize {
        self.hashes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_complete_only_when_nothing_of_it_can_be_missing() {
        let place = |consumer_sequence, stream_sequence| Place {
            stream_sequence,
            consumer_sequence,
            nanos: 0,
            pending: 0,
        };
        // Three were waiting, the floor is at 10.
        assert!(completes(&place(3, 10), 3, 10));
        // At the floor, but one was superseded and is still to come from behind it, whatever is said to be pending.
        assert!(!completes(&place(2, 10), 3, 10));
        assert!(!completes(&place(3, 11), 3, 10));
    }
}
