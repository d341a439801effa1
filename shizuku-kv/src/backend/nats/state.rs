//! Knowing when the state that was there has been delivered.
//!
//! While a consumer works through the newest message of each subject, others write. A message that is superseded before
//! its turn never comes; its successor does, behind the end that the stream had. So neither the number of messages nor
//! the old end of the stream tells that every key has been delivered. The server counts what is pending, but loses count
//! when messages are superseded while it delivers (seen on every version from 2.10.26 to 2.15.1), so that a "nothing
//! pending" can be wrong. What it does count exactly is what waits for a consumer at the moment that this is created:
//! how many subjects there are. That number is compared with the subjects that have been seen. In buckets whose messages
//! age it proves nothing; there the state is complete at the end of the stream, or when the consumer is idle.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::bucket;
use super::consumer::{OrderedConsumer, Spec, Start};
use super::store::StoreCore;
use super::wire::Place;
use crate::store::{Deadline, KvResult};

/// The shortest time between two questions to the server.
const REST: Duration = Duration::from_millis(10);

/// The state of a scope on its way.
#[derive(Debug)]
pub(super) struct StateSync {
    core: Arc<StoreCore>,
    operation: &'static str,
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
        let countable = (spec.start == Start::LastPerSubject || core.bucket.history == 1)
            && core.bucket.tombstone_life.is_none();
        Self {
            core,
            operation,
            subjects: countable.then(|| spec.clone()),
            floor,
            seen: Seen::default(),
            round: None,
            rest: Instant::now(),
        }
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
        let complete = completes(place, consumer.pending_at_start, self.floor)
            || self.passed(sequence, |end| sequence == end)
            // An answer that fails to come is asked for again with the next message.
            || self.ask(sequence, deadline).await.unwrap_or(false);
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

    /// Asks the server how many subjects there are, once the old end of the stream has been reached.
    async fn ask(&mut self, sequence: u64, deadline: Deadline) -> KvResult<bool> {
        if sequence < self.floor || self.round.is_some() || Instant::now() < self.rest {
            return Ok(false);
        }
        let core = &self.core;
        let bucket = &core.bucket.name;
        let end = bucket::info(&core.link, self.operation, bucket, deadline).await?.last_sequence();
        self.rest = Instant::now() + REST;
        if end <= sequence {
            return Ok(true);
        }
        let Some(spec) = &self.subjects else { return Ok(false) };
        let name = format!("shizuku-{}", core.link.next_id());
        let link = Arc::clone(&core.link);
        let counted = OrderedConsumer::create(link, self.operation, spec, name, deadline).await?;
        let Ok(counted) = counted else { return Ok(false) };
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
    hashes: HashSet<(u64, u64)>,
}

impl Seen {
    /// Whether the subject is new.
    fn insert(&mut self, subject: &str) -> bool {
        self.hashes.insert((self.keys[0].hash_one(subject), self.keys[1].hash_one(subject)))
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
