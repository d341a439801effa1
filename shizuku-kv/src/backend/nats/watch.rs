//! Watches: a state machine that reads from an ordered consumer and makes another one when that is
//! lost.
//!
//! It runs inside the reader's own task: there is nothing to end when the watch is dropped but the
//! consumer, whose `Drop` deletes it. A reader that does not poll asks for no more messages than
//! the first request holds, so that little piles up.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Message;
use backon::ExponentialBackoff;
use futures_core::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::bucket::{SHORTEST_TTL, Settings, StreamInfo};
use super::census::{Census, Change};
use super::consumer::{
    Delivery, HEARTBEAT, INACTIVE, MOST_FILTERS, OrderedConsumer, Spec, Start, filters_for,
};
use super::deleted::Deleted;
use super::expiry::{CursorState, Expiry, Retained, expiry};
use super::figures::{exact_filter, scope_keys};
use super::initial_sync::StateSync;
use super::leader::{self, Found, Last, MessageAt};
use super::store::{NatsStore, StoreCore};
use super::wire::{DeliveryInfo, StreamMessage, delivered};
use crate::store::backoff;
use crate::store::timer::sleep;
use crate::store::{
    Deadline, Key, KvError, KvResult, KvUpdate, KvWatcher, SuspendAwareInstant, Watch, WatchCursor,
    WatchLink, WatchScope,
};

const OPERATION: &str = "watch";

/// Interval between two comparisons of a watch that is never idle.
const COMPARE_BUSY: Duration = Duration::from_secs(30);

/// Minimum lifetime of tombstones: servers reject a shorter maximum age.
const SHORTEST_LIFE: Duration = Duration::from_millis(100);

/// How long one try to make a consumer may take.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Interval of looks at the reason that there is no connection.
const LOOK: Duration = Duration::from_secs(1);

/// The pauses between tries. Jittered, since everybody else's watch broke at the same moment.
fn pauses() -> ExponentialBackoff {
    backoff(Duration::from_millis(50), Duration::from_secs(10))
}

impl KvWatcher for NatsStore {
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        Box::pin(async move {
            // Boxed, because it is moved for each item.
            let mut watch = Box::new(NatsWatch::new(Arc::clone(&self.0), scope, from));
            watch.begin(deadline).await?;
            let link = watch.link.subscribe();
            let updates = stream::unfold(watch, |mut watch| async move {
                watch.next().await.map(|item| (item, watch))
            });
            Ok(Watch::new(updates).with_link(link))
        })
    }
}

/// What a watch is doing.
#[derive(Debug)]
enum State {
    /// There is no consumer: the watch is new, or its consumer was lost. Waits for the pause to
    /// pass and for the connection to be up, then makes one, from where the watch stands. Becomes
    /// `Reading`; stays, with a longer pause, when that fails; becomes `Ended` when the store is
    /// gone or the watch cannot go on without a gap.
    Starting { pause: Duration },
    /// Waits for what the consumer delivers. Becomes `Starting` when the consumer is lost.
    Reading(Box<OrderedConsumer>),
    /// Nothing follows.
    Ended,
}

type Item = (KvUpdate, WatchCursor);

/// The end of the stream when a watch began.
#[derive(Clone, Copy, Debug)]
struct Floor {
    sequence: u64,
    /// When the message there was taken.
    time: SystemTime,
    /// When the server told it.
    told: SystemTime,
    is_empty: bool,
}

#[derive(Debug)]
struct NatsWatch {
    core: Arc<StoreCore>,
    scope: WatchScope,
    filters: Vec<String>,
    state: State,
    /// None after a sign of life: the next loss is a new one.
    pauses: Option<ExponentialBackoff>,
    /// Names the consumers of this watch: one more for each that came to be.
    id: String,
    consumers: u64,
    /// The stream as it was created once, from the cursor or from the first look at it.
    incarnation: Option<[u8; 16]>,
    /// Everything up to this stream sequence has been delivered, as far as it is in scope.
    position: u64,
    /// When the message at the position was taken, by the server's clock.
    as_of: SystemTime,
    /// The last message delivered, in scope or not. The position may be behind it.
    last: Option<Last>,
    /// Whether nothing is assumed to be known: the newest value of each key is due first.
    from_state: bool,
    /// The cursor that the user gave is still to be checked.
    unchecked_cursor: bool,
    /// The stream when the watch began.
    floor: Option<Floor>,
    /// There until the watch is caught up.
    state_sync: Option<StateSync>,
    /// Whether the server may have made a list for the present consumer, in which the consumer may
    /// stop.
    has_list: bool,
    caught_up: bool,
    /// The state that was read by name and not delivered yet, the newest message first.
    initial: Vec<StreamMessage>,
    queued: Option<Item>,
    /// Heartbeats in a row, once it is caught up.
    quiet: u32,
    /// The leader has something newer than what has come, as of the last heartbeat.
    missing: bool,
    /// When the watch last heard something that was of that moment.
    current: SuspendAwareInstant,
    /// What the server's clock said, and when.
    clock: Option<(SystemTime, SuspendAwareInstant)>,
    /// Time for which the lost consumer had received no request for messages.
    unasked: Duration,
    /// Guaranteed lifetime of tombstones when the last consumer was made.
    life: Option<Duration>,
    /// When the settings were last requested because the reader is behind.
    asked: Option<SuspendAwareInstant>,
    /// Keys whose deletion was delivered to the reader.
    deleted: Deleted,
    /// Whether all tombstones in scope were delivered, because the watch began with the state.
    knows_tombstones: bool,
    /// The figures of the stream at the last comparison, and when that was.
    census: Option<Census>,
    compared: SuspendAwareInstant,
    /// Whether the store lost entries by its own settings, without a message to any watch, when the
    /// watch began.
    is_silent: bool,
    /// What the reader is told of whether the watch hears from the server.
    link: tokio::sync::watch::Sender<WatchLink>,
}

impl NatsWatch {
    fn new(core: Arc<StoreCore>, scope: WatchScope, from: Option<WatchCursor>) -> Self {
        Self {
            filters: filters_for(&core.link, &core.bucket.name, &scope),
            id: core.link.next_id(),
            core,
            scope,
            state: State::Starting { pause: Duration::ZERO },
            pauses: None,
            consumers: 0,
            incarnation: from.map(|cursor| *cursor.incarnation()),
            position: from.map_or(0, |cursor| cursor.position()),
            as_of: from.map_or(SystemTime::UNIX_EPOCH, |cursor| cursor.as_of()),
            last: None,
            from_state: from.is_none(),
            unchecked_cursor: from.is_some(),
            floor: None,
            state_sync: None,
            has_list: false,
            caught_up: false,
            initial: Vec::new(),
            queued: None,
            quiet: 0,
            missing: false,
            current: SuspendAwareInstant::now(),
            clock: None,
            unasked: Duration::ZERO,
            life: None,
            asked: None,
            deleted: Deleted::default(),
            knows_tombstones: from.is_none(),
            census: None,
            compared: SuspendAwareInstant::now(),
            is_silent: false,
            link: tokio::sync::watch::Sender::default(),
        }
    }

    /// The first start, whose errors are the caller's: what can be mended is tried again up to the
    /// deadline.
    async fn begin(&mut self, deadline: Deadline) -> KvResult<()> {
        loop {
            let error = match self.start(deadline).await {
                Ok(consumer) => {
                    self.read_from(consumer);
                    return Ok(());
                }
                Err(error) => error,
            };
            let pause = self.pause();
            // A try without time for an answer would end in a timeout, which says less than this
            // error.
            if !error.is_retryable() || deadline.remaining() <= pause + deadline.limit() / 8 {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The next item. Everything that does not happen for each message is boxed, because the future
    /// of an item is copied for each item.
    async fn next(&mut self) -> Option<KvResult<Item>> {
        loop {
            if let Some(message) = self.initial.pop() {
                if let Some(item) = self.take_initial(message) {
                    return Some(Ok(item));
                }
                continue;
            }
            if let Some(item) = self.queued.take() {
                return Some(Ok(item));
            }
            let step = match &mut self.state {
                State::Ended => return None,
                State::Starting { pause } => {
                    let pause = *pause;
                    Box::pin(self.restart(pause)).await
                }
                State::Reading(consumer) => match next_of(consumer, &self.core).await {
                    Delivery::Lost(NOT_ASKED) => {
                        self.unasked = consumer.unasked();
                        self.state = State::Starting { pause: self.pause() };
                        Ok(None)
                    }
                    // A replica that is behind begins where it stands, which is before what was
                    // asked for.
                    Delivery::Message(_, place) if place.stream_sequence <= self.position => {
                        let fresh = consumer.is_fresh();
                        self.alive(fresh);
                        Ok(None)
                    }
                    Delivery::Message(message, place) => self.receive(message, &place).await,
                    Delivery::Idle => Box::pin(self.idle()).await,
                    Delivery::Refused(refusal) => Err(refusal.error(OPERATION)),
                    Delivery::Lost(reason) => match self.core.link.over(OPERATION) {
                        Some(error) => Err(error),
                        None => {
                            let store = &self.core.bucket.name;
                            tracing::debug!(%store, reason, "a watch lost its consumer");
                            self.cut_off(reason);
                            self.state = State::Starting { pause: self.pause() };
                            Ok(None)
                        }
                    },
                },
            };
            match step {
                Ok(None) => {}
                Ok(Some(item)) => return Some(Ok(item)),
                Err(error) => {
                    self.state = State::Ended;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Waits for the connection, then starts again.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    async fn restart(&mut self, pause: Duration) -> KvResult<Option<Item>> {
        // The pause comes after the connection, or all watches would begin in the same moment when
        // it is back.
        match self.core.link.up(OPERATION, Deadline::after(LOOK)).await {
            Err(error) if ends_a_watch(&error) => return Err(error),
            // At once, unlike an error of a connection that is down.
            Err(error @ KvError::LimitReached { .. }) => {
                self.cut_off(&error.to_string());
                let pause = self.pause();
                sleep(pause).await;
                return Ok(None);
            }
            Err(_) => {
                if let Some(trouble) = self.core.link.trouble() {
                    self.cut_off(&trouble.reason);
                }
                return Ok(None);
            }
            Ok(_) => sleep(pause).await,
        }
        match self.start(Deadline::after(START_LIMIT)).await {
            Ok(consumer) => self.read_from(consumer),
            Err(error) if ends_a_watch(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(store = %self.core.bucket.name, %error, "a watch cannot go on yet");
                self.cut_off(&error.to_string());
                self.state = State::Starting { pause: self.pause() };
            }
        }
        Ok(None)
    }

    /// Records a message behind the position.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    async fn receive(
        &mut self,
        mut message: Message,
        place: &DeliveryInfo,
    ) -> KvResult<Option<Item>> {
        let State::Reading(consumer) = &mut self.state else { return Ok(None) };
        (self.quiet, self.missing) = (0, false);
        let complete = match &mut self.state_sync {
            Some(state) => {
                let deadline = Deadline::after(HEARTBEAT);
                state.receive(&message.subject, place, consumer, deadline).await
            }
            None => false,
        };
        if self.caught_up || complete {
            consumer.settle();
        }
        let stalls = self.has_list && consumer.may_stall();
        let fresh = consumer.is_fresh();
        let now = self.alive(fresh);
        if complete && stalls {
            self.leave_list();
        } else if !complete {
            self.leave_behind(false);
        }
        let behind = self.behind(place, &now);
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
        let delivered = delivered(&mut message, place, &self.core.bucket.prefix);
        let is_deletion = delivered.as_ref().is_some_and(|message| message.operation.is_deletion());
        self.last.get_or_insert_default().remember(&message.subject, place.into(), is_deletion);
        let update = delivered.and_then(|message| self.news(message));
        Ok(self.advance(update, place, complete).await)
    }

    /// Records a heartbeat.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    async fn idle(&mut self) -> KvResult<Option<Item>> {
        let State::Reading(consumer) = &mut self.state else { return Ok(None) };
        let stalls = self.has_list && consumer.may_stall();
        let complete = match &mut self.state_sync {
            Some(state) => state.reaches_leader(self.position, Deadline::after(HEARTBEAT)).await,
            None => Ok(false),
        };
        if self.caught_up || complete.as_ref().is_ok_and(|complete| *complete) {
            consumer.settle();
        }
        let fresh = consumer.is_fresh();
        self.alive(fresh);
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
            // A leader that cannot be asked is asked at the next heartbeat.
            Ok(false) | Err(_) => self.leave_behind(true),
        }
        Ok(None)
    }

    /// The update of a message, unless it is out of scope or known.
    fn news(&mut self, message: StreamMessage) -> Option<KvUpdate> {
        let life = self.core.bucket.settings().tombstone_ttl;
        let is_news = self.scope.matches(&message.key) && self.deleted.is_news(&message, life);
        is_news.then(|| KvUpdate::from(message.into_entry()))
    }

    /// The item of a message that was read by name. Older ones were delivered before.
    fn take_initial(&mut self, message: StreamMessage) -> Option<Item> {
        let found = Found { sequence: message.sequence, time: message.time };
        let subject = self.core.subject(&message.key);
        let is_deletion = message.operation.is_deletion();
        self.last.get_or_insert_default().remember(&subject, found, is_deletion);
        let incarnation = self.incarnation.unwrap_or_default();
        let cursor = WatchCursor::new(incarnation, found.sequence, found.time);
        self.news(message).map(|update| (update, cursor))
    }

    /// Replaces a consumer that has stopped within its list, or is about to. The watch resumes at
    /// its position, because newer messages are in no list. Before the first message there is no
    /// position, and the state is read again.
    fn leave_list(&mut self) {
        tracing::debug!(store = %self.core.bucket.name, "a watch leaves a consumer that has stopped");
        self.state = State::Starting { pause: self.pause() };
    }

    /// Has another consumer made in place of one that does not get to where the leader is.
    fn leave_behind(&mut self, is_idle: bool) {
        if matches!(self.state, State::Reading(_))
            && self.state_sync.as_ref().is_some_and(|state| state.is_left_behind(is_idle))
        {
            tracing::debug!(store = %self.core.bucket.name, "a watch leaves a replica that is behind");
            self.state = State::Starting { pause: self.pause() };
        }
    }

    /// Compares an idle watch with the leader. Servers lose count of pending messages
    /// ([`state`](super::state)), and may then wait for another message before they continue. So
    /// after some heartbeats, and periodically from then on, the leader is asked for its newest
    /// message, which must have arrived by the next heartbeat (ADR 0010).
    async fn compare(&mut self) -> Comparison {
        self.quiet = self.quiet.saturating_add(1);
        let asks = self.missing || matches!(self.quiet, 2 | 6) || self.quiet.is_multiple_of(12);
        if !asks {
            return Comparison::Alike;
        }
        let deadline = Deadline::after(HEARTBEAT);
        let newest = leader::newest(&self.core, OPERATION, &self.filters, deadline).await;
        let Ok(newest) = newest else { return Comparison::Alike };
        let is_older = self.last.as_ref().is_some_and(|last| newest < last.sequence);
        if is_older && self.is_set_back(deadline).await.unwrap_or(false) {
            return Comparison::Expired(Expiry::Lost);
        }
        self.compared = SuspendAwareInstant::now();
        if self.has_lost(deadline).await {
            return Comparison::Expired(Expiry::Vanished);
        }
        let is_newer = newest > self.position;
        if std::mem::replace(&mut self.missing, is_newer) && is_newer {
            Comparison::LeftOut
        } else {
            Comparison::Alike
        }
    }

    /// Whether entries have left the stream without a message since the last comparison. A leader
    /// that does not answer is asked again at the next one.
    async fn has_lost(&mut self, deadline: Deadline) -> bool {
        let counted = scope_keys(&self.core, OPERATION, &self.scope, deadline).await;
        let Ok((info, keys)) = counted else { return false };
        if self.incarnation != Some(info.incarnation(&self.core.bucket.stream)) {
            // The consumer is lost too.
            return false;
        }
        let (census, settings, before) = (Census::new(&info, keys), info.settings(), self.census);
        match self.compare_census(census, &settings) {
            Change::None => false,
            Change::Lost => true,
            Change::Fewer(left) => match self.cleaned_up(&settings, deadline).await {
                Ok(Some(cleaned_up)) => left > cleaned_up,
                // Tombstones end by themselves, or are too many.
                Ok(None) => false,
                Err(_) => {
                    self.census = before;
                    false
                }
            },
        }
    }

    /// Compares a census with the last one, which it replaces.
    fn compare_census(&mut self, census: Census, settings: &Settings) -> Change {
        let before = self.census.replace(census.or_keys_of(self.census));
        let Some(before) = before else {
            self.is_silent = settings.loses_newest && !settings.expiry_events;
            return Change::None;
        };
        let change = census.compare(&before, self.deleted.count(), self.knows_tombstones);
        // Some stores lose entries by their own settings, without a message to any watch.
        if self.is_silent { Change::None } else { change }
    }

    /// Number of delivered tombstones that another client has cleaned up, which are forgotten.
    /// `None` if tombstones end by themselves, or are too many for requests about each.
    async fn cleaned_up(
        &mut self,
        settings: &Settings,
        deadline: Deadline,
    ) -> KvResult<Option<u64>> {
        let Some(keys) = self.deleted.keys().filter(|_| settings.tombstone_life.is_none()) else {
            return Ok(None);
        };
        let core = &self.core;
        let looks = stream::iter(keys.clone()).map(|key| async move {
            let found = core.newest_of_leader(OPERATION, &key, deadline).await?;
            Ok::<_, KvError>((key, found.is_none()))
        });
        let looks: Vec<(Key, bool)> =
            looks.buffer_unordered(leader::IN_FLIGHT).try_collect().await?;
        let gone: Vec<_> =
            looks.into_iter().filter_map(|(key, is_gone)| is_gone.then_some(key)).collect();
        for key in &gone {
            self.deleted.forget(key);
        }
        Ok(Some(gone.len() as u64))
    }

    /// Whether the leader has lost the last message that this watch has delivered.
    async fn is_set_back(&self, deadline: Deadline) -> KvResult<bool> {
        match &self.last {
            Some(last) => last.is_lost(&self.core, OPERATION, deadline).await,
            None => Ok(false),
        }
    }

    /// Tells the reader that nothing is heard, since when, and the newest reason.
    fn cut_off(&self, reason: &str) {
        self.link.send_if_modified(|link| {
            let since = match link {
                WatchLink::Up => self.current.wall(),
                WatchLink::Down { reason: told, .. } if **told == *reason => return false,
                WatchLink::Down { since, .. } => *since,
            };
            *link = WatchLink::down(since, reason);
            true
        });
    }

    /// The time until the next try.
    fn pause(&mut self) -> Duration {
        self.pauses.get_or_insert_with(pauses).next().unwrap_or_default()
    }

    /// Records a sign of life, and returns the present moment. A sign that was lying there says
    /// nothing about this moment.
    fn alive(&mut self, fresh: bool) -> SuspendAwareInstant {
        let now = SuspendAwareInstant::now();
        if fresh {
            self.current = now;
        }
        self.pauses = None;
        now
    }

    /// How far the watch is behind with this message: the time since it was sent, or since the
    /// watch last heard something new, whichever is shorter.
    fn behind(&self, place: &DeliveryInfo, now: &SuspendAwareInstant) -> Duration {
        let unheard = now.since(&self.current);
        if unheard < SHORTEST_LIFE {
            return unheard;
        }
        // The age of the message by the server's clock, which is extrapolated from the last start.
        let age = self
            .clock
            .and_then(|(then, at)| (then + now.since(&at)).duration_since(place.time()).ok());
        age.unwrap_or_default().min(unheard)
    }

    /// Requests the settings periodically while the reader is behind, because tombstones may live
    /// shorter by now. A leader that does not answer is asked again later.
    async fn learn(&mut self, now: &SuspendAwareInstant) {
        let is_due = |last: Duration| last >= SHORTEST_TTL;
        if self.asked.is_none_or(|asked| is_due(now.since(&asked)))
            && is_due(self.core.bucket.settings().age())
        {
            self.asked = Some(*now);
            let _ = Box::pin(self.core.info(OPERATION, Deadline::after(SHORTEST_TTL))).await;
        }
    }

    fn read_from(&mut self, consumer: OrderedConsumer) {
        self.link.send_if_modified(|link| !std::mem::take(link).is_up());
        self.state = State::Reading(Box::new(consumer));
    }

    /// Takes note of a message, and tells what is to be delivered for it.
    async fn advance(
        &mut self,
        update: Option<KvUpdate>,
        place: &DeliveryInfo,
        complete: bool,
    ) -> Option<Item> {
        (self.position, self.as_of) = (place.stream_sequence, place.time());
        self.from_state = false;
        let item = update.map(|update| (update, self.cursor()));
        let marker = if complete { Some(Box::pin(self.catch_up()).await) } else { None };
        let mut due = [item, marker].into_iter().flatten();
        let first = due.next();
        self.queued = due.next();
        first
    }

    /// The caught-up marker.
    async fn catch_up(&mut self) -> Item {
        self.caught_up = true;
        self.state_sync = None;
        self.from_state = false;
        // Everything up to the floor is known to be covered, also where the last message in scope
        // is older: a cursor that is as new as can be.
        if let Some(floor) = self.floor
            && (floor.sequence > self.position || self.position == 0)
        {
            // If its message is gone, the cursor is of a later moment: see `CursorState::is_gone`.
            // A watch of everything would have delivered it.
            let is_gone =
                floor.is_empty || self.scope == WatchScope::All && self.is_gone(&floor).await;
            (self.position, self.as_of) =
                (floor.sequence, if is_gone { floor.told } else { floor.time });
        }
        (KvUpdate::CaughtUp, self.cursor())
    }

    /// Whether the message at the end of the stream was removed. Without an answer it counts as
    /// there.
    async fn is_gone(&self, floor: &Floor) -> bool {
        let deadline = Deadline::after(HEARTBEAT);
        let found =
            leader::message_at(&self.core, OPERATION, floor.sequence, &self.filters, deadline)
                .await;
        found.is_ok_and(|found| found == MessageAt::Gone)
    }

    fn cursor(&self) -> WatchCursor {
        WatchCursor::new(self.incarnation.unwrap_or_default(), self.position, self.as_of)
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

    async fn create(&mut self, spec: &Spec, deadline: Deadline) -> KvResult<OrderedConsumer> {
        // The same name until it exists, so that a creation whose answer was lost leaves one
        // consumer, not two.
        let name = format!("shizuku-{}-{}", self.id, self.consumers);
        let link = Arc::clone(&self.core.link);
        let created = OrderedConsumer::create(link, OPERATION, spec, name, deadline).await?;
        let consumer =
            created.map_err(|error| error.into_error(OPERATION, &self.core.bucket.name))?;
        self.consumers += 1;
        Ok(consumer)
    }

    /// Looks at the stream and makes a consumer that goes on where the watch stands.
    async fn start(&mut self, deadline: Deadline) -> KvResult<OrderedConsumer> {
        let core = Arc::clone(&self.core);
        let by_name = few_keys(&self.scope).filter(|_| self.from_state);
        let mut info = core.info(OPERATION, deadline).await?;
        // A server that came back with less than it had acknowledged takes new messages at
        // sequences that this watch has seen with others.
        let (mut rewritten, mut is_gone) = (false, false);
        if !self.from_state && (1..=info.last_sequence()).contains(&self.position) {
            let found =
                leader::message_at(&core, OPERATION, self.position, &self.filters, deadline)
                    .await?;
            rewritten = matches!(found, MessageAt::Time(time) if time != self.as_of)
                || self.is_set_back(deadline).await?;
            let was_gone =
                info.last_time() > SystemTime::UNIX_EPOCH && self.as_of > info.last_time();
            is_gone = found == MessageAt::Gone && !was_gone;
            if is_gone && self.position == info.last_sequence() {
                // A write between the two looks may have superseded it.
                info = core.info(OPERATION, deadline).await?;
            }
        }
        self.check(&info, rewritten, is_gone)?;
        let life = info.settings().tombstone_life;
        let start = match (self.from_state, &by_name) {
            (true, None) => Start::LastPerSubject,
            (true, Some(_)) => Start::Sequence(info.last_sequence() + 1),
            (false, _) => Start::Sequence(self.position + 1),
        };
        let spec = self.spec(start, &info.settings());
        let read = async {
            // The consumer delivers whatever is written after the look.
            let Some(keys) = by_name else { return Ok(None) };
            core.many_as_of(OPERATION, keys, info.last_sequence(), deadline).await.map(Some)
        };
        let (mut consumer, read) = tokio::try_join!(self.create(&spec, deadline), read)?;
        if spec.start == Start::LastPerSubject
            && exact_filter(&core, &self.scope).as_slice() == self.filters
        {
            // The consumer counts the keys that it delivers first. A purge of one of them is
            // noticed from here on.
            self.census = self.census.map(|census| census.or_keys(consumer.pending_at_start));
        }
        // Its messages arrive during the second look.
        consumer.ask().await;
        // The store can have been made again between the look and the consumer.
        let again = core.info(OPERATION, deadline).await?;
        if self.incarnation != Some(again.incarnation(&core.bucket.stream)) {
            return Err(self.made_again());
        }
        // If tombstones began to live shorter between the two, it is also unknown what the consumer
        // missed.
        if again.settings().tombstone_life != life {
            let reason = "the settings of the store were changed meanwhile".to_owned();
            return Err(KvError::Unavailable { operation: OPERATION, reason, source: None });
        }
        if self.floor.is_none() {
            self.floor = Some(Floor {
                sequence: info.last_sequence(),
                time: info.last_time(),
                told: info.now(),
                is_empty: info.messages() == 0,
            });
        }
        let owed = read.map(|read| self.read_by_name(read, &info));
        if !self.caught_up {
            // Of what came from a replica that may be behind it counts only how far it went.
            let known = self.state_sync.take().filter(StateSync::is_level);
            let state = known.unwrap_or_else(|| {
                StateSync::new(Arc::clone(&core), OPERATION, &spec, info.last_sequence())
            });
            let state = self.state_sync.insert(state);
            state.begin(&consumer, spec.start, &info);
            let is_complete = match owed {
                Some(owed) => state.was_read(owed),
                // Nothing was waiting: the consumer may not get anything to deliver.
                None if consumer.pending_at_start == 0 => {
                    state.is_empty(self.position, deadline).await?
                }
                None => false,
            };
            if is_complete {
                self.queued = Some(self.catch_up().await);
            }
        }
        // With one message for each subject the server goes through the stream.
        self.has_list = core.bucket.settings().history != 1;
        self.unchecked_cursor = false;
        self.life = life;
        self.unasked = Duration::ZERO;
        self.current = SuspendAwareInstant::now();
        self.clock = Some((info.now(), SuspendAwareInstant::now()));
        Ok(consumer)
    }

    /// Takes over the state, of which everything up to the end that the stream had at a look was
    /// read by name. Returns the subjects that have a newer message.
    fn read_by_name(&mut self, mut read: Vec<StreamMessage>, look: &StreamInfo) -> HashSet<String> {
        let end = look.last_sequence();
        let later = read.extract_if(.., |message| message.sequence > end);
        let owed = later.map(|message| self.core.subject(&message.key)).collect();
        read.sort_unstable_by_key(|message| Reverse(message.sequence));
        self.initial = read;
        self.position = end;
        self.as_of = if look.messages() == 0 { look.now() } else { look.last_time() };
        self.from_state = false;
        owed
    }

    /// Whether the watch can go on without a gap.
    fn check(&mut self, info: &StreamInfo, rewritten: bool, is_gone: bool) -> KvResult<()> {
        let found = info.incarnation(&self.core.bucket.stream);
        if self.from_state {
            self.incarnation = Some(found);
        }
        // By the server's clock since the last message, or since the last fresh word, whichever is
        // later.
        let age = info.now().duration_since(self.as_of).unwrap_or_default();
        let heard = self.current.elapsed().max(self.unasked);
        let age = if self.unchecked_cursor { age } else { age.min(heard) };
        let standing = CursorState {
            same_incarnation: self.incarnation == Some(found),
            position: self.position,
            rewritten,
            is_gone,
            age,
            given_by_user: self.unchecked_cursor,
            fresh: self.from_state,
        };
        let (settings, known) = (info.settings(), self.core.bucket.settings_arc());
        // The shortest lifetime of three: by the current settings, by those of the last start of
        // the watch, and by the last known ones.
        let life =
            [settings.tombstone_life, self.life, known.tombstone_life].into_iter().flatten().min();
        // If other clients can write tombstones that end without a trace, only a stream without
        // gaps is a proof.
        let vanishes = settings.tombstones_vanish && self.unchecked_cursor && !info.is_gapless();
        let stream = Retained {
            first: info.first_sequence(),
            last: info.last_sequence(),
            cursors_from: settings.cursors_from.max(known.cursors_from),
            tombstone_life: life.into_iter().chain(vanishes.then_some(SHORTEST_TTL)).min(),
        };
        if let Some(expiry) = expiry(&standing, &stream) {
            return Err(self.expired(expiry));
        }
        if self.from_state {
            self.census = None;
        }
        let keys = (self.scope == WatchScope::All).then(|| info.subjects());
        let census = Census::new(info, keys);
        // Before the watch has caught up, entries may leave that were not delivered. They are
        // compared afterwards, with the first census.
        if self.caught_up || self.census.is_none() {
            let before = self.census;
            match self.compare_census(census, &settings) {
                Change::None => {}
                Change::Lost => return Err(self.expired(Expiry::Vanished)),
                // The next comparison asks for the tombstones.
                Change::Fewer(_) => self.census = before,
            }
        }
        Ok(())
    }

    /// What a start says that has found two stores: a watch that takes the state as it is may take
    /// that of the other.
    fn made_again(&self) -> KvError {
        if !self.from_state {
            return self.expired(Expiry::MadeAgain);
        }
        let reason = "the store was made again meanwhile".to_owned();
        KvError::Unavailable { operation: OPERATION, reason, source: None }
    }

    fn expired(&self, expiry: Expiry) -> KvError {
        KvError::CursorExpired { store: self.core.bucket.name.clone(), reason: expiry.reason() }
    }
}

/// The keys of a scope whose state is read by name: a server takes long to find the newest messages
/// of several subjects among many others.
fn few_keys(scope: &WatchScope) -> Option<Vec<Key>> {
    let WatchScope::Keys(keys) = scope else { return None };
    let keys: HashSet<&Key> = keys.iter().collect();
    (2..=MOST_FILTERS).contains(&keys.len()).then(|| keys.into_iter().cloned().collect())
}

/// The consumer was not asked for longer than a tombstone lives.
const NOT_ASKED: &str = "nobody asked for messages for longer than a deletion is kept";

/// The next thing that happens, unless a deletion can have come and gone while nobody asked for
/// messages. Then the watch has to show that it can go on from where it stands.
async fn next_of(consumer: &mut OrderedConsumer, core: &StoreCore) -> Delivery {
    let delivery = consumer.next().await;
    let life = core.bucket.settings().tombstone_life;
    if life.is_some_and(|life| consumer.unasked() >= life) {
        Delivery::Lost(NOT_ASKED)
    } else {
        delivery
    }
}

/// How an idle watch compares with the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Alike,
    /// The leader has had a newer message in scope for a whole heartbeat.
    LeftOut,
    /// The leader has lost delivered messages.
    Expired(Expiry),
}

/// Errors that trying again cannot mend.
fn ends_a_watch(error: &KvError) -> bool {
    matches!(
        error,
        KvError::StoreNotFound { .. }
            | KvError::CursorExpired { .. }
            | KvError::Unauthorized { .. }
    ) || error.is_over()
}
