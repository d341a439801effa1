//! Messages and heartbeats of the consumer of a watch, and the caught-up marker.

use std::time::{Duration, SystemTime};

use async_nats::Message;

use super::super::consumer::HEARTBEAT;
use super::super::expiry::Expiry;
use super::super::initial_sync::End;
use super::super::leader::{self, Found, MessageAt};
use super::super::settings::SHORTEST_TTL;
use super::super::wire::{DeliveryInfo, StreamMessage, delivered};
use super::comparison::Comparison;
use super::{Floor, Item, NatsWatch, OPERATION, State, ends_a_watch};
use crate::store::{Deadline, KvResult, KvUpdate, SuspendAwareInstant, WatchCursor, WatchScope};

/// Interval between two comparisons of a watch that is never idle.
const COMPARE_BUSY: Duration = Duration::from_secs(30);

/// Minimum lifetime of tombstones: servers reject a shorter maximum age.
const SHORTEST_LIFE: Duration = Duration::from_millis(100);

impl NatsWatch {
    /// Returns the item of the next message that has arrived, if it needs nothing but its delivery:
    /// no request, no wait, and no other state of the watch.
    pub(super) fn next_plain(&mut self) -> Option<Item> {
        if self.is_marker_due || self.is_proof_due || !self.initial.is_empty() {
            return None;
        }
        loop {
            let State::Reading(consumer) = &mut self.state else { return None };
            if consumer.begin_slice() {
                self.plain_within = None;
            }
            let delivery = consumer.peek()?;
            if delivery.stream_sequence <= self.position || !self.is_plain(&delivery) {
                return None;
            }
            let State::Reading(consumer) = &mut self.state else { return None };
            if self.state_sync.as_ref().is_some_and(|s| !s.is_before_end(&delivery, consumer)) {
                return None;
            }
            let message = consumer.take(&delivery)?;
            if let Some(state) = &mut self.state_sync {
                state.record(&message.subject, delivery.stream_sequence);
            }
            if let Some(item) = self.deliver(message, &delivery) {
                return Some(item);
            }
        }
    }

    /// Returns whether [`receive`](Self::receive) would make no request because of the time.
    fn is_plain(&mut self, delivery: &DeliveryInfo) -> bool {
        let State::Reading(consumer) = &self.state else { return false };
        let now = consumer.had_arrived();
        let within = self.slice_within();
        within == Duration::MAX || self.behind(delivery.time(), &now) < within
    }

    /// Returns the delay below which the messages of the present slice are plain: `MAX` if each of
    /// them is. One time stands for the arrival of all.
    fn slice_within(&mut self) -> Duration {
        let State::Reading(consumer) = &mut self.state else { return Duration::ZERO };
        if let Some(within) = self.plain_within {
            return within;
        }
        if self.caught_up {
            consumer.use_long_heartbeat();
        }
        let (now, unasked) = (consumer.had_arrived(), consumer.unasked());
        (self.quiet, self.missing, self.pauses) = (0, false, None);
        let unheard = now.since(&self.current);
        let life = self.core.bucket.settings().tombstone_life;
        let is_compared = self.caught_up && now.since(&self.compared) >= COMPARE_BUSY;
        let within = if is_compared || life.is_some_and(|life| unasked >= life) {
            Duration::ZERO
        } else {
            let learns = (unheard >= SHORTEST_TTL && self.learns(&now)).then_some(SHORTEST_TTL);
            let within = life.into_iter().chain(learns).min();
            within.filter(|within| unheard >= *within).unwrap_or(Duration::MAX)
        };
        *self.plain_within.insert(within)
    }

    /// Records a message after the position.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    pub(super) async fn receive(
        &mut self,
        message: Message,
        delivery: &DeliveryInfo,
    ) -> KvResult<Option<Item>> {
        let State::Reading(consumer) = &mut self.state else { return Ok(None) };
        (self.quiet, self.missing) = (0, false);
        let end = match &mut self.state_sync {
            Some(state) => state.receive(&message.subject, delivery, consumer),
            None => End::Ahead,
        };
        if self.caught_up {
            consumer.use_long_heartbeat();
        }
        let now = self.alive();
        let behind = self.behind(delivery.time(), &now);
        if behind >= SHORTEST_TTL {
            self.learn(&now).await;
        }
        if self.caught_up && now.since(&self.compared) >= COMPARE_BUSY {
            self.compared = now;
            if Box::pin(self.has_lost(Deadline::after(HEARTBEAT))).await {
                return Err(self.expired(Expiry::Vanished));
            }
        }
        // Tombstones before this message may have been forgotten before their turn.
        let life = self.core.bucket.settings().tombstone_life;
        if life.is_some_and(|life| behind >= life) {
            return Err(self.expired(Expiry::TombstonesForgotten));
        }
        let item = self.deliver(message, delivery);
        self.note_end(end);
        Ok(item)
    }

    /// Records how far the delivered messages are from the end of the state.
    pub(super) fn note_end(&mut self, end: End) {
        (self.is_marker_due, self.is_proof_due) = (end == End::Reached, end == End::Unknown);
        match end {
            End::Reached => self.complete(),
            End::Unknown => {}
            End::Ahead => self.leave_behind(false),
        }
    }

    /// Asks the leader whether the state is complete. Everything up to the position has been
    /// delivered. If no answer arrives, a later message asks again.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    pub(super) async fn prove(&mut self) -> KvResult<()> {
        let is_complete = match &mut self.state_sync {
            Some(state) => state.prove(self.position, Deadline::after(HEARTBEAT)).await,
            None => Ok(false),
        };
        if !is_complete.unwrap_or(false) {
            self.note_end(End::Ahead);
            return Ok(());
        }
        // The leader may have removed a tombstone that has not been delivered. The messages of the
        // slice arrived before the answer.
        let behind = self.behind(self.as_of, &SuspendAwareInstant::now());
        let life = self.core.bucket.settings().tombstone_life;
        if life.is_some_and(|life| behind >= life) {
            return Err(self.expired(Expiry::TombstonesForgotten));
        }
        self.note_end(End::Reached);
        Ok(())
    }

    /// The state is complete with the messages delivered so far.
    fn complete(&mut self) {
        let State::Reading(consumer) = &mut self.state else { return };
        consumer.use_long_heartbeat();
        if self.has_list && consumer.may_stall() {
            self.leave_list();
        }
    }

    /// Moves the position to a message. Returns the item to deliver.
    fn deliver(&mut self, mut message: Message, delivery: &DeliveryInfo) -> Option<Item> {
        let delivered = delivered(&mut message, delivery, &self.core.bucket.prefix);
        let is_deletion = delivered.as_ref().is_some_and(|message| message.operation.is_deletion());
        self.last.get_or_insert_default().remember(&message.subject, delivery.into(), is_deletion);
        (self.position, self.as_of) = (delivery.stream_sequence, delivery.time());
        self.from_state = false;
        let update = delivered.and_then(|message| self.news(message));
        update.map(|update| (update, self.cursor()))
    }

    /// Records a heartbeat.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    pub(super) async fn idle(&mut self) -> KvResult<Option<Item>> {
        let State::Reading(consumer) = &mut self.state else { return Ok(None) };
        let stalls = self.has_list && consumer.may_stall();
        let complete = match &mut self.state_sync {
            Some(state) => state.reaches_leader(self.position, Deadline::after(HEARTBEAT)).await,
            None => Ok(false),
        };
        if self.caught_up || complete.as_ref().is_ok_and(|complete| *complete) {
            consumer.use_long_heartbeat();
        }
        let fresh = consumer.is_fresh();
        self.alive();
        if fresh && self.caught_up {
            match self.compare().await {
                Comparison::Alike => {}
                Comparison::LeftOut => {
                    self.cut_off("the consumer does not deliver all existing messages");
                    self.state = State::Starting { pause: self.pause() };
                    return Ok(None);
                }
                Comparison::Expired(expiry) => return Err(self.expired(expiry)),
            }
        }
        if stalls && complete.is_ok() {
            self.leave_list();
        }
        match complete {
            Ok(true) => return Ok(Some(self.catch_up().await)),
            Err(error) if ends_a_watch(&error) => return Err(error),
            // A leader that does not answer is asked again at the next heartbeat.
            Ok(false) | Err(_) => self.leave_behind(true),
        }
        Ok(None)
    }

    /// Returns the update of a message, or `None` if it is out of scope or known.
    fn news(&mut self, message: StreamMessage) -> Option<KvUpdate> {
        let is_deletion = message.operation.is_deletion();
        let life = is_deletion.then(|| self.core.bucket.settings().tombstone_ttl).flatten();
        let is_news = self.scope.matches(&message.key) && self.deleted.is_news(&message, life);
        is_news.then(|| KvUpdate::from(message.into_entry()))
    }

    /// Returns the item of a message that was read by name. Older messages were delivered before.
    pub(super) fn deliver_initial(&mut self, message: StreamMessage) -> Option<Item> {
        let found = Found { sequence: message.sequence, time: message.time };
        let subject = self.core.subject(&message.key);
        let is_deletion = message.operation.is_deletion();
        self.last.get_or_insert_default().remember(&subject, found, is_deletion);
        let incarnation = self.incarnation.unwrap_or_default();
        let cursor = WatchCursor::new(incarnation, found.sequence, found.time);
        self.news(message).map(|update| (update, cursor))
    }

    /// Replaces a consumer that has stopped in its list, or may stop there. The watch resumes at
    /// its position, because newer messages are in no list. Without a first message the watch has
    /// no position, and the state is read again.
    fn leave_list(&mut self) {
        tracing::debug!(store = %self.core.bucket.name, "replacing a consumer that may have stopped");
        self.state = State::Starting { pause: self.pause() };
    }

    /// Replaces a consumer that does not reach the leader's position.
    fn leave_behind(&mut self, is_idle: bool) {
        if matches!(self.state, State::Reading(_))
            && self.state_sync.as_ref().is_some_and(|state| state.is_left_behind(is_idle))
        {
            let store = &self.core.bucket.name;
            tracing::debug!(%store, "replacing a consumer on a replica that is behind");
            self.state = State::Starting { pause: self.pause() };
        }
    }

    /// Returns the delay of a message: the time since it was stored, or since the watch last
    /// received a fresh message, whichever is shorter.
    fn behind(&self, stored: SystemTime, now: &SuspendAwareInstant) -> Duration {
        let unheard = now.since(&self.current);
        if unheard < SHORTEST_LIFE {
            return unheard;
        }
        // The age of the message by the server's clock, which is extrapolated from the last start.
        let age =
            self.clock.and_then(|(then, at)| (then + now.since(&at)).duration_since(stored).ok());
        age.unwrap_or_default().min(unheard)
    }

    /// Requests the settings periodically while the reader is behind, because the lifetime of
    /// tombstones may have become shorter. A leader that does not answer is asked again later.
    async fn learn(&mut self, now: &SuspendAwareInstant) {
        if self.learns(now) {
            self.asked = Some(*now);
            let _ = Box::pin(self.core.info(OPERATION, Deadline::after(SHORTEST_TTL))).await;
        }
    }

    /// Returns whether the settings may have changed since they were last requested.
    fn learns(&self, now: &SuspendAwareInstant) -> bool {
        self.asked.is_none_or(|asked| now.since(&asked) >= SHORTEST_TTL)
            && self.core.bucket.settings().age() >= SHORTEST_TTL
    }

    /// Returns the caught-up marker.
    ///
    /// Its cursor is the floor if the last message in scope is older, and nothing in between is
    /// still to come. That is certain if the floor is covered. Otherwise a deletion in between may
    /// have arrived, although the leader has nothing newer because its tombstone was removed. Then
    /// the leader's answer counts only if no key of the reader can be deleted so: before the first
    /// message, and with one key, whose message at the position still exists (ADR 0080).
    pub(super) async fn catch_up(&mut self) -> Item {
        self.caught_up = true;
        let state = self.state_sync.take();
        let has_reached = state.is_some_and(|state| state.has_reached(self.position));
        self.from_state = false;
        if let Some(floor) = self.floor
            && (floor.sequence > self.position || self.position == 0)
        {
            let may_ask = self.position == 0 || self.is_one_key();
            if floor.is_covered || may_ask && (has_reached || self.covers_floor().await) {
                // If the message at the floor is gone, the cursor has a later time: see
                // `CursorState::is_gone`. A watch of all keys would have delivered that message.
                let is_gone =
                    floor.is_empty || self.scope == WatchScope::All && self.is_gone(&floor).await;
                (self.position, self.as_of) =
                    (floor.sequence, if is_gone { floor.told } else { floor.time });
            } else if self.position == 0 {
                // No message in scope has been delivered yet.
                self.as_of = floor.told;
            }
        }
        (KvUpdate::CaughtUp, self.cursor())
    }

    /// Whether the newest message in scope on the leader is the last one delivered, so that nothing
    /// follows it up to the floor, which is older than this answer. Without an answer, or if that
    /// message is gone, a later one may exist: it may be a tombstone that was delivered to the
    /// consumer, and has since been removed.
    async fn covers_floor(&self) -> bool {
        let deadline = Deadline::after(HEARTBEAT);
        let newest = leader::newest(&self.core, OPERATION, &self.filters, deadline).await;
        newest.is_ok_and(|newest| newest == self.position)
    }

    /// Returns whether the message at the floor was removed. Returns false without an answer.
    async fn is_gone(&self, floor: &Floor) -> bool {
        let deadline = Deadline::after(HEARTBEAT);
        let found =
            leader::message_at(&self.core, OPERATION, floor.sequence, &self.filters, deadline)
                .await;
        found.is_ok_and(|found| found == MessageAt::Gone)
    }
}
