//! The start of a watch, new or resumed: the creation of a consumer, and the proof that the watch
//! can begin there without a gap.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::census::{Census, Change};
use super::super::consumer::{INACTIVE, OrderedConsumer, Spec, Start};
use super::super::denials::Form;
use super::super::expiry::{CursorState, Expiry, Retained, expiry};
use super::super::figures::exact_filter;
use super::super::filters::MOST_FILTERS;
use super::super::initial_sync::{End, StateSync};
use super::super::lag::Lag;
use super::super::leader::{self, MessageAt};
use super::super::settings::{SHORTEST_TTL, Settings};
use super::super::stream_info::StreamInfo;
use super::super::wire::StreamMessage;
use super::{Floor, NatsWatch, OPERATION};
use crate::store::{Deadline, Key, KvError, KvResult, SuspendAwareInstant, WatchScope};

impl NatsWatch {
    /// Creates a consumer at the position of the watch.
    pub(super) async fn start(&mut self, deadline: Deadline) -> KvResult<OrderedConsumer> {
        if self.can_start_at_once()
            && let Some(consumer) = self.start_at_once(deadline).await?
        {
            return Ok(consumer);
        }
        self.start_after_info(deadline).await
    }

    /// Returns whether the consumer can be created before the stream information is read.
    ///
    /// A user without the right to leader reads does not, because asking the leader for a message
    /// then needs several requests.
    fn can_start_at_once(&self) -> bool {
        self.from_state
            && !self.needs_info
            && few_keys(&self.scope).is_none()
            && !self.core.link.is_denied(Form::LeaderMessage, &self.core.bucket.stream)
    }

    /// Returns whether the server delivers the messages of one key only.
    pub(super) fn is_one_key(&self) -> bool {
        matches!(self.scope, WatchScope::Key(_)) && self.has_exact_filter()
    }

    /// Returns whether the server delivers the keys in scope and no others.
    fn has_exact_filter(&self) -> bool {
        exact_filter(&self.core, &self.scope).as_slice() == self.filters
    }

    /// Creates the consumer of the state before the stream information is read, which saves a round
    /// trip (ADR 0080, ADR 0091). Returns `None` if the creation is rejected, or the store was
    /// recreated since this handle last read its settings.
    ///
    /// - **Complete state.** The end of the stream afterwards is the end at the creation if it was
    ///   the same before, or if its message is older than the consumer. Otherwise the end is
    ///   unknown, and the leader is asked once the state is delivered. One existing key needs no
    ///   end: the consumer begins with the newest message of the key. If that message is superseded
    ///   before its turn, the successor arrives. So the first message completes the state.
    /// - **Incarnation.** The stream is the same before and after the creation, so that the
    ///   consumer belongs to it.
    /// - **Cursor of the marker.** If the end at the creation is known, the state includes all
    ///   messages up to it. Otherwise see [`catch_up`](Self::catch_up).
    async fn start_at_once(&mut self, deadline: Deadline) -> KvResult<Option<OrderedConsumer>> {
        let core = Arc::clone(&self.core);
        let (known, sent) = (core.bucket.settings_arc(), SuspendAwareInstant::now());
        let spec = self.spec(Start::LastPerSubject, &known);
        let (link, name) = (Arc::clone(&core.link), self.next_name());
        let created = OrderedConsumer::create(link, OPERATION, &spec, name, deadline).await?;
        let Ok(mut consumer) = created else {
            // The next attempt would be rejected for the same reason.
            self.needs_info = true;
            return Ok(None);
        };
        // The messages arrive while the stream information is read.
        consumer.request_first().await;
        let info = core.info(OPERATION, deadline);
        let info = consumer.while_connected(OPERATION, info).await?;
        if info.incarnation(&core.bucket.stream) != known.incarnation {
            return Ok(None);
        }
        let since = sent.elapsed();
        let lag = consumer.lag_before(&info, since);
        // The next consumer is created after its stream information, which can prove more about it.
        self.needs_info = lag != Lag::None;
        let keys = self.has_exact_filter().then_some(consumer.pending_at_start);
        self.check(&info, keys.filter(|_| lag == Lag::None), false, false)?;
        let is_unchanged = known.end == info.last_sequence() && known.end_time == info.last_time();
        let is_end_known = is_unchanged || consumer.is_newer_than_all(&info, since);
        self.set_floor(&info, is_end_known && lag == Lag::None);
        let bound = if self.is_one_key() && consumer.pending_at_start > 0 {
            Some(u64::MAX)
        } else {
            is_end_known.then(|| info.last_sequence())
        };
        let mut state = self.level_state(&spec, &info);
        state.begin(lag, spec.start, bound, &info);
        self.sync_state(state, &consumer, None);
        self.started(&info);
        Ok(Some(consumer))
    }

    /// Reads the stream information, then creates a consumer at the position of the watch.
    async fn start_after_info(&mut self, deadline: Deadline) -> KvResult<OrderedConsumer> {
        let core = Arc::clone(&self.core);
        let by_name = few_keys(&self.scope).filter(|_| self.from_state);
        let info = core.info(OPERATION, deadline).await?;
        let start = match (self.from_state, &by_name) {
            (true, None) => Start::LastPerSubject,
            (true, Some(_)) => Start::Sequence(info.last_sequence() + 1),
            (false, _) => Start::Sequence(self.position + 1),
        };
        let spec = self.spec(start, &info.settings());
        let name = self.next_name();
        let create =
            OrderedConsumer::create(Arc::clone(&core.link), OPERATION, &spec, name, deadline);
        let read = async {
            // The consumer delivers the messages that were written after the stream information.
            let Some(keys) = by_name else { return Ok(None) };
            core.many_as_of(OPERATION, keys, info.last_sequence(), deadline).await.map(Some)
        };
        let (created, read, compared) =
            tokio::join!(create, read, self.compare_position(&info, deadline));
        // An expired cursor is reported even if the creation fails.
        let (rewritten, is_gone) = compared?;
        if is_gone && self.position == info.last_sequence() {
            // A write between the two requests may have superseded the message.
            let later = core.info(OPERATION, deadline).await?;
            self.check(&later, None, rewritten, is_gone)?;
        } else {
            self.check(&info, None, rewritten, is_gone)?;
        }
        let (life, read) = (info.settings().tombstone_life, read?);
        let mut consumer =
            created?.map_err(|error| error.into_error(OPERATION, &core.bucket.name))?;
        if spec.start == Start::LastPerSubject && self.has_exact_filter() {
            self.count_keys(&consumer);
        }
        // The messages arrive during the second request.
        consumer.request_first().await;
        // The store may have been recreated between the first request and the creation.
        let again = core.info(OPERATION, deadline);
        let again = consumer.while_connected(OPERATION, again).await?;
        if self.incarnation != Some(again.incarnation(&core.bucket.stream)) {
            return Err(self.recreated());
        }
        // If the lifetime of tombstones was shortened between the two, the consumer may have missed
        // some.
        if again.settings().tombstone_life != life {
            let reason = "the settings of the store were changed meanwhile".to_owned();
            return Err(KvError::Unavailable { operation: OPERATION, reason, source: None });
        }
        // Tombstones after the position may have expired before the consumer existed. A position at
        // the end had none yet.
        let is_at_end = self.position == info.last_sequence();
        let complete_until = if is_at_end { info.now().max(self.as_of) } else { self.as_of };
        self.check_cursor(&again, complete_until, false, false)?;
        let is_end_known = again.has_end_of(&info);
        let lag = consumer.lag(&info);
        self.set_floor(&info, is_end_known && lag == Lag::None);
        let outstanding = read.map(|read| self.read_by_name(read, &info));
        if !self.caught_up {
            let mut state = self.level_state(&spec, &info);
            let bound = is_end_known.then(|| info.last_sequence());
            state.begin(lag, spec.start, bound, &info);
            self.sync_state(state, &consumer, outstanding);
        }
        self.started(&info);
        Ok(consumer)
    }

    fn spec(&self, start: Start, settings: &Settings) -> Spec {
        Spec {
            stream: self.core.bucket.stream.clone(),
            filters: self.filters.clone(),
            start,
            headers_only: false,
            inactive: settings.longest_inactive(INACTIVE),
        }
    }

    /// Returns the name of the next consumer.
    fn next_name(&mut self) -> String {
        // The server may execute the deletion after a failed creation later than the next creation.
        let name = format!("shizuku-{}-{}", self.id, self.consumers);
        self.consumers += 1;
        name
    }

    /// Returns whether another message has the position now, or the last delivered message is lost,
    /// and whether the message at the position is gone.
    ///
    /// A server that was restored without some acknowledged messages assigns their sequences again.
    /// This watch may have delivered other messages with these sequences.
    async fn compare_position(
        &self,
        info: &StreamInfo,
        deadline: Deadline,
    ) -> KvResult<(bool, bool)> {
        if self.from_state || !(1..=info.last_sequence()).contains(&self.position) {
            return Ok((false, false));
        }
        let (found, is_set_back) = tokio::try_join!(
            leader::message_at(&self.core, OPERATION, self.position, &self.filters, deadline),
            self.is_set_back(deadline),
        )?;
        let is_other = matches!(found, MessageAt::Time(time) if time != self.as_of);
        let was_gone = info.last_time() > SystemTime::UNIX_EPOCH && self.as_of > info.last_time();
        Ok((is_other || is_set_back, found == MessageAt::Gone && !was_gone))
    }

    /// Adopts the number of keys that the consumer delivers first. From here on, a purge of one of
    /// them is detected.
    fn count_keys(&mut self, consumer: &OrderedConsumer) {
        self.census = self.census.map(|census| census.or_keys(consumer.pending_at_start));
    }

    /// Records the end of the stream, unless the watch has delivered something since the first
    /// record. Then the present consumer still decides whether the end is covered.
    fn set_floor(&mut self, info: &StreamInfo, is_covered: bool) {
        if let Some(floor) = self.floor.as_mut().filter(|_| !self.from_state) {
            floor.is_covered = is_covered;
        } else {
            self.floor = Some(Floor {
                sequence: info.last_sequence(),
                time: info.last_time(),
                told: info.now(),
                is_empty: info.messages() == 0,
                is_covered,
            });
        }
    }

    /// Returns the state of the last consumer if that consumer was level with the leader, otherwise
    /// a new state. Messages of a replica that may be behind prove nothing after their position.
    fn level_state(&mut self, spec: &Spec, info: &StreamInfo) -> StateSync {
        self.state_sync.take().filter(StateSync::is_level).unwrap_or_else(|| {
            StateSync::new(Arc::clone(&self.core), OPERATION, spec, info.last_sequence())
        })
    }

    /// Queues the caught-up marker if the state is complete already. `outstanding` has the subjects
    /// that a read by name left to the consumer.
    fn sync_state(
        &mut self,
        state: StateSync,
        consumer: &OrderedConsumer,
        outstanding: Option<HashSet<String>>,
    ) {
        let state = self.state_sync.insert(state);
        let end = match outstanding {
            Some(outstanding) => state.was_read(outstanding),
            // No message was waiting, so that the consumer may never deliver one.
            None if consumer.pending_at_start == 0 => state.is_empty(),
            _ => End::Ahead,
        };
        self.note_end(end);
    }

    /// Records that the watch reads from a consumer that was created close to this stream
    /// information.
    fn started(&mut self, info: &StreamInfo) {
        // With one message for each subject, the server reads the stream in order and has no list.
        self.has_list = self.core.bucket.settings().history != 1;
        self.unchecked_cursor = false;
        self.life = info.settings().tombstone_life;
        self.unasked = Duration::ZERO;
        self.current = SuspendAwareInstant::now();
        self.clock = Some((info.now(), SuspendAwareInstant::now()));
    }

    /// Adopts a state that was read by name, up to the last sequence in the stream information.
    /// Returns the subjects that have a newer message.
    fn read_by_name(&mut self, mut read: Vec<StreamMessage>, info: &StreamInfo) -> HashSet<String> {
        let end = info.last_sequence();
        let later = read.extract_if(.., |message| message.sequence > end);
        let outstanding = later.map(|message| self.core.subject(&message.key)).collect();
        read.sort_unstable_by_key(|message| Reverse(message.sequence));
        self.initial = read;
        self.position = end;
        self.as_of = if info.messages() == 0 { info.now() } else { info.last_time() };
        self.from_state = false;
        outstanding
    }

    /// Checks that the watch can resume without a gap, and that no entry has left the store without
    /// a message. `keys` is the number of keys in scope, if it is already known.
    fn check(
        &mut self,
        info: &StreamInfo,
        keys: Option<u64>,
        rewritten: bool,
        is_gone: bool,
    ) -> KvResult<()> {
        if self.from_state {
            self.incarnation = Some(info.incarnation(&self.core.bucket.stream));
        }
        self.check_cursor(info, self.as_of, rewritten, is_gone)?;
        if self.from_state {
            self.census = None;
        }
        let settings = info.settings();
        let keys = keys.or_else(|| (self.scope == WatchScope::All).then(|| info.subjects()));
        let census = Census::new(info, keys);
        // Before the watch has caught up, entries that were not delivered may be removed. The
        // comparison then follows later, with the first census.
        if self.caught_up || self.census.is_none() {
            let before = self.census;
            match self.compare_census(census, &settings) {
                Change::None => {}
                Change::Lost => return Err(self.expired(Expiry::Vanished)),
                // The next comparison requests the tombstones.
                Change::Fewer(_) => self.census = before,
            }
        }
        Ok(())
    }

    /// Checks that the watch can resume without a gap. It missed nothing until `complete_until`.
    fn check_cursor(
        &self,
        info: &StreamInfo,
        complete_until: SystemTime,
        rewritten: bool,
        is_gone: bool,
    ) -> KvResult<()> {
        let found = info.incarnation(&self.core.bucket.stream);
        // The age is measured by the server's clock, or since the watch last received a fresh
        // message, whichever is shorter.
        let age = info.now().duration_since(complete_until).unwrap_or_default();
        let heard = self.current.elapsed().max(self.unasked);
        let age = if self.unchecked_cursor { age } else { age.min(heard) };
        let cursor = CursorState {
            same_incarnation: self.incarnation == Some(found),
            position: self.position,
            rewritten,
            is_gone,
            age,
            given_by_user: self.unchecked_cursor && complete_until == self.as_of,
            fresh: self.from_state,
        };
        let (settings, known) = (info.settings(), self.core.bucket.settings_arc());
        // The shortest of three lifetimes: by the current settings, by those of the last start of
        // the watch, and by the last known ones.
        let life =
            [settings.tombstone_life, self.life, known.tombstone_life].into_iter().flatten().min();
        // If other clients can write tombstones that expire without a marker, only a stream without
        // gaps is a proof.
        let vanishes = settings.tombstones_vanish && self.unchecked_cursor && !info.is_gapless();
        let stream = Retained {
            first: info.first_sequence(),
            last: info.last_sequence(),
            cursors_from: settings.cursors_from.max(known.cursors_from),
            tombstone_life: life.into_iter().chain(vanishes.then_some(SHORTEST_TTL)).min(),
        };
        expiry(&cursor, &stream).map_or(Ok(()), |expiry| Err(self.expired(expiry)))
    }

    /// Returns the error of a start that has found two incarnations of the store. A watch that
    /// begins with the state may retry with the later one.
    fn recreated(&self) -> KvError {
        if !self.from_state {
            return self.expired(Expiry::Recreated);
        }
        let reason = "the store was deleted and recreated meanwhile".to_owned();
        KvError::Unavailable { operation: OPERATION, reason, source: None }
    }
}

/// Returns the keys of a scope whose state is read by name. A server needs a long time to find the
/// newest messages of several subjects among many others.
fn few_keys(scope: &WatchScope) -> Option<Vec<Key>> {
    let WatchScope::Keys(keys) = scope else { return None };
    let keys: HashSet<&Key> = keys.iter().collect();
    (2..=MOST_FILTERS).contains(&keys.len()).then(|| keys.into_iter().cloned().collect())
}
