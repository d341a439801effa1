//! Watches: a state machine that reads from an ordered consumer and makes another one when that is lost.
//!
//! It runs inside the reader's own task: there is nothing to end when the watch is dropped but the consumer, whose
//! `Drop` deletes it. A reader that does not poll asks for no messages, so that nothing piles up.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::ExponentialBackoff;
use futures_core::future::BoxFuture;
use futures_util::stream;
use serde_json::json;

use super::bucket::{SHORTEST_TTL, StreamInfo};
use super::consumer::{Counting, Delivery, HEARTBEAT, OrderedConsumer, Spec, Start, filters};
use super::leader;
use super::state::StateSync;
use super::store::{NatsStore, StoreCore};
use super::wire::{Place, StreamMessage, delivered};
use crate::store::backoff;
use crate::store::timer::sleep;
use crate::store::{
    Deadline, KvError, KvOperation, KvResult, KvUpdate, KvWatcher, Moment, Watch, WatchCursor,
    WatchLink, WatchScope,
};

const OPERATION: &str = "watch";

/// How long one try to make a consumer may take.
const START_LIMIT: Duration = Duration::from_secs(10);

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
            let mut watch = NatsWatch::new(Arc::clone(&self.0), scope, from);
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
    /// There is no consumer: the watch is new, or its consumer was lost. Waits for the pause to pass and for the
    /// connection to be up, then makes one, from where the watch stands. Becomes `Reading`; stays, with a longer pause,
    /// when that fails; becomes `Ended` when the store is gone or the watch cannot go on without a gap.
    Starting { pause: Duration },
    /// Waits for what the consumer delivers. Becomes `Starting` when the consumer is lost.
    Reading(Box<OrderedConsumer>),
    /// Nothing follows.
    Ended,
}

type Item = (KvUpdate, WatchCursor);

/// A message that was delivered. If the leader has neither this message nor a newer one of its
/// subject, it has lost it.
#[derive(Debug, Default)]
struct Last {
    subject: String,
    sequence: u64,
    time: Option<SystemTime>,
    is_deletion: bool,
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
    /// The end of the stream when the watch began, and the time of the message there.
    floor: Option<(u64, SystemTime)>,
    /// There until the watch is caught up.
    state_sync: Option<StateSync>,
    /// Whether the server may have made a list for the present consumer, in which the consumer may
    /// stop.
    has_list: bool,
    caught_up: bool,
    queued: Option<Item>,
    /// Heartbeats in a row, once it is caught up.
    quiet: u32,
    /// The leader has something newer than what has come, as of the last heartbeat.
    missing: bool,
    /// When the watch last heard something that was of that moment.
    current: Moment,
    /// What the server's clock said, and when.
    clock: Option<(SystemTime, Moment)>,
    /// Time for which the lost consumer had received no request for messages.
    unasked: Duration,
    /// Guaranteed lifetime of tombstones when the last consumer was made.
    life: Option<Duration>,
    /// When the settings were last requested because the reader is behind.
    asked: Option<Moment>,
    /// Keys whose deletion was delivered to the reader.
    deleted: Deleted,
    /// What the reader is told of whether the watch hears from the server.
    link: tokio::sync::watch::Sender<WatchLink>,
}

impl NatsWatch {
    fn new(core: Arc<StoreCore>, scope: WatchScope, from: Option<WatchCursor>) -> Self {
        Self {
            filters: filters(&core.bucket.name, &scope, Counting::of(&core.link)),
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
            queued: None,
            quiet: 0,
            missing: false,
            current: Moment::now(),
            clock: None,
            unasked: Duration::ZERO,
            life: None,
            asked: None,
            deleted: Deleted::default(),
            link: tokio::sync::watch::Sender::default(),
        }
    }

    /// The first start, whose errors are the caller's: what can be mended is tried again up to the deadline.
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
            if !error.is_retryable() || deadline.remaining() <= pause {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn next(&mut self) -> Option<KvResult<Item>> {
        loop {
            if let Some(item) = self.queued.take() {
                return Some(Ok(item));
            }
            match &mut self.state {
                State::Ended => return None,
                State::Starting { pause } => {
                    // The pause comes after the connection, or all watches would begin in the same moment when it is
                    // back.
                    match self.core.link.up(OPERATION, Deadline::after(START_LIMIT)).await {
                        Err(error) if error.is_over() => return self.end(error),
                        Err(_) => continue,
                        Ok(_) => sleep(*pause).await,
                    }
                    match self.start(Deadline::after(START_LIMIT)).await {
                        Ok(consumer) => self.read_from(consumer),
                        Err(error) if ends_a_watch(&error) => return self.end(error),
                        Err(error) => {
                            tracing::warn!(store = %self.core.bucket.name, %error, "a watch cannot go on yet");
                            self.cut_off(&error.to_string());
                            self.state = State::Starting { pause: self.pause() };
                        }
                    }
                }
                State::Reading(consumer) => match next_of(consumer, &self.core).await {
                    Delivery::Lost(NOT_ASKED) => {
                        self.unasked = consumer.unasked();
                        self.state = State::Starting { pause: self.pause() };
                    }
                    // A replica that is behind begins where it stands, which is before what was asked for.
                    Delivery::Message(_, place) if place.stream_sequence <= self.position => {
                        let fresh = consumer.is_fresh();
                        self.alive(fresh);
                    }
                    Delivery::Message(message, place) => {
                        (self.quiet, self.missing) = (0, false);
                        let complete = match &mut self.state_sync {
                            Some(state) => {
                                let deadline = Deadline::after(HEARTBEAT);
                                state.receive(&message.subject, &place, consumer, deadline).await
                            }
                            None => false,
                        };
                        if self.caught_up || complete {
                            consumer.settle();
                        }
                        let stalls = self.has_list && consumer.may_stall();
                        let fresh = consumer.is_fresh();
                        self.alive(fresh);
                        if complete && stalls {
                            self.leave_list();
                        } else if !complete {
                            self.leave_behind(false);
                        }
                        self.learn_if_behind(&place).await;
                        if self.is_behind_the_tombstones(&place) {
                            let error = self.expired(Expiry::TombstonesForgotten);
                            return self.end(error);
                        }
                        let subject = message.subject.clone();
                        let message = delivered(message, &place, &self.core.bucket.prefix);
                        let is_deletion =
                            message.as_ref().is_some_and(|message| message.operation.is_deletion());
                        self.remember(&subject, &place, is_deletion);
                        let life = self.core.bucket.settings().tombstone_ttl;
                        let update = message
                            .filter(|message| self.scope.matches(&message.key))
                            .filter(|message| self.deleted.is_news(message, life))
                            .map(|message| KvUpdate::from(message.into_entry()));
                        if let Some(item) = self.advance(update, &place, complete) {
                            return Some(Ok(item));
                        }
                    }
                    Delivery::Idle => {
                        let stalls = self.has_list && consumer.may_stall();
                        let complete = match &mut self.state_sync {
                            Some(state) => {
                                state
                                    .reaches_leader(self.position, Deadline::after(HEARTBEAT))
                                    .await
                            }
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
                                    self.cut_off(
                                        "the consumer does not deliver all existing messages",
                                    );
                                    self.state = State::Starting { pause: self.pause() };
                                    continue;
                                }
                                Comparison::SetBack => {
                                    let error = self.expired(Expiry::Lost);
                                    return self.end(error);
                                }
                            }
                        }
                        if stalls && complete.is_ok() {
                            self.leave_list();
                        }
                        match complete {
                            Ok(true) => return Some(Ok(self.catch_up())),
                            Err(error) if ends_a_watch(&error) => return self.end(error),
                            // A leader that cannot be asked is asked at the next heartbeat.
                            Ok(false) | Err(_) => self.leave_behind(true),
                        }
                    }
                    Delivery::Refused(text) => {
                        let reason = text.to_string();
                        return self.end(KvError::Unauthorized { operation: OPERATION, reason });
                    }
                    Delivery::Lost(reason) => {
                        if let Some(error) = self.core.link.over(OPERATION) {
                            return self.end(error);
                        }
                        tracing::debug!(store = %self.core.bucket.name, reason, "a watch lost its consumer");
                        self.cut_off(reason);
                        self.state = State::Starting { pause: self.pause() };
                    }
                },
            }
        }
    }

    fn end(&mut self, error: KvError) -> Option<KvResult<Item>> {
        self.state = State::Ended;
        Some(Err(error))
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
    /// message, which must have arrived by the next heartbeat.
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
            return Comparison::SetBack;
        }
        let is_newer = newest > self.position;
        if std::mem::replace(&mut self.missing, is_newer) && is_newer {
            Comparison::LeftOut
        } else {
            Comparison::Alike
        }
    }

    /// Records the last message delivered, reusing the allocation of the one before.
    fn remember(&mut self, subject: &str, place: &Place, is_deletion: bool) {
        let last = self.last.get_or_insert_default();
        last.subject.clear();
        last.subject.push_str(subject);
        (last.sequence, last.time) = (place.stream_sequence, Some(place.time()));
        last.is_deletion = is_deletion;
    }

    /// Whether the leader has lost the last message that this watch has delivered: a server that
    /// was restored from a copy, or another one that holds a copy. Its sequences continue with
    /// other messages, which may have been superseded. So neither the end of the stream nor the
    /// message at the position need show the loss.
    async fn is_set_back(&self, deadline: Deadline) -> KvResult<bool> {
        let Some(last) = &self.last else { return Ok(false) };
        let query = json!({ "last_by_subj": last.subject });
        let found = self.core.leader_answer(OPERATION, &query, deadline).await?;
        Ok(match found {
            // Other clients clean up tombstones, and some stores remove the newest entry of a key
            // by themselves.
            None => !last.is_deletion && !self.core.bucket.settings().forgets_newest(),
            Some(found) if found.sequence() == last.sequence => last.time != Some(found.time()),
            Some(found) => found.sequence() < last.sequence,
        })
    }

    /// Tells the reader that nothing is heard, since the last word and for the first reason.
    fn cut_off(&self, reason: &str) {
        self.link.send_if_modified(|link| {
            let is_new = link.is_up();
            if is_new {
                *link = WatchLink::down(self.current.wall(), reason);
            }
            is_new
        });
    }

    /// The time until the next try.
    fn pause(&mut self) -> Duration {
        self.pauses.get_or_insert_with(pauses).next().unwrap_or_default()
    }

    /// A sign of life. One that was lying there says nothing about this moment.
    fn alive(&mut self, fresh: bool) {
        if fresh {
            self.current = Moment::now();
        }
        self.pauses = None;
    }

    /// How far the watch is behind with this message.
    fn behind(&self, place: &Place) -> Duration {
        // The age of the message by the server's clock, which is extrapolated from the last start.
        let age = self
            .clock
            .and_then(|(then, at)| (then + at.elapsed()).duration_since(place.time()).ok());
        age.unwrap_or_default().min(self.current.elapsed())
    }

    /// Requests the settings periodically while the reader is behind, because tombstones may live
    /// shorter by now. A leader that does not answer is asked again later.
    async fn learn_if_behind(&mut self, place: &Place) {
        let is_due = |last: Duration| last >= SHORTEST_TTL;
        if is_due(self.behind(place))
            && is_due(self.core.bucket.settings().age())
            && self.asked.is_none_or(|asked| is_due(asked.elapsed()))
        {
            self.asked = Some(Moment::now());
            let _ = self.core.info(OPERATION, Deadline::after(SHORTEST_TTL)).await;
        }
    }

    /// Whether the watch is so far behind that tombstones before this message may have been forgotten before their
    /// turn.
    fn is_behind_the_tombstones(&self, place: &Place) -> bool {
        let life = self.core.bucket.settings().tombstone_life;
        life.is_some_and(|life| self.behind(place) >= life)
    }

    fn read_from(&mut self, consumer: OrderedConsumer) {
        self.link.send_if_modified(|link| !std::mem::take(link).is_up());
        self.state = State::Reading(Box::new(consumer));
    }

    /// Takes note of a message, and tells what is to be delivered for it.
    fn advance(&mut self, update: Option<KvUpdate>, place: &Place, complete: bool) -> Option<Item> {
        (self.position, self.as_of) = (place.stream_sequence, place.time());
        self.from_state = false;
        let item = update.map(|update| (update, self.cursor()));
        let marker = complete.then(|| self.catch_up());
        let mut due = [item, marker].into_iter().flatten();
        let first = due.next();
        self.queued = due.next();
        first
    }

    /// The caught-up marker.
    fn catch_up(&mut self) -> Item {
        self.caught_up = true;
        self.state_sync = None;
        self.from_state = false;
        // Everything up to the floor is known to be covered, also where the last message in scope is older: a cursor that
        // is as new as can be.
        if let Some((floor, time)) = self.floor
            && floor >= self.position
        {
            (self.position, self.as_of) = (floor, time);
        }
        (KvUpdate::CaughtUp, self.cursor())
    }

    fn cursor(&self) -> WatchCursor {
        WatchCursor::new(self.incarnation.unwrap_or_default(), self.position, self.as_of)
    }

    /// Looks at the stream and makes a consumer that goes on where the watch stands.
    async fn start(&mut self, deadline: Deadline) -> KvResult<OrderedConsumer> {
        let core = Arc::clone(&self.core);
        let info = core.info(OPERATION, deadline).await?;
        // A server that came back with less than it had acknowledged takes new messages at sequences that this watch
        // has seen with others.
        let rewritten = !self.from_state
            && (1..=info.last_sequence()).contains(&self.position)
            && (self.is_set_back(deadline).await?
                || core
                    .time_of(OPERATION, self.position, deadline)
                    .await?
                    .is_some_and(|time| time != self.as_of));
        self.check(&info, rewritten)?;
        let life = info.settings().tombstone_life;
        let spec = Spec {
            stream: core.bucket.stream.clone(),
            filters: self.filters.clone(),
            start: if self.from_state {
                Start::LastPerSubject
            } else {
                Start::Sequence(self.position + 1)
            },
            headers_only: false,
        };
        // The same name until it exists, so that a creation whose answer was lost leaves one consumer, not two.
        let name = format!("shizuku-{}-{}", self.id, self.consumers);
        let link = Arc::clone(&core.link);
        let created = OrderedConsumer::create(link, OPERATION, &spec, name, deadline).await?;
        let consumer = created.map_err(|error| error.into_error(OPERATION, &core.bucket.name))?;
        self.consumers += 1;
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
            // An empty stream has no last message; what is known is of now.
            let time = if info.last_sequence() == 0 { info.now() } else { info.last_time() };
            self.floor = Some((info.last_sequence(), time));
        }
        if !self.caught_up {
            // Of what came from a replica that may be behind it counts only how far it went.
            let known = self.state_sync.take().filter(StateSync::is_level);
            let state = known.unwrap_or_else(|| {
                StateSync::new(Arc::clone(&core), OPERATION, &spec, info.last_sequence())
            });
            let state = self.state_sync.insert(state);
            state.begin(&consumer, spec.start, &info);
            // Nothing was waiting: the consumer may not get anything to deliver.
            if consumer.pending_at_start == 0 && state.is_empty(self.position, deadline).await? {
                self.queued = Some(self.catch_up());
            }
        }
        // With one message for each subject the server goes through the stream.
        self.has_list = core.bucket.settings().history != 1;
        self.unchecked_cursor = false;
        self.life = life;
        self.unasked = Duration::ZERO;
        self.current = Moment::now();
        self.clock = Some((info.now(), Moment::now()));
        Ok(consumer)
    }

    /// Whether the watch can go on without a gap.
    fn check(&mut self, info: &StreamInfo, rewritten: bool) -> KvResult<()> {
        let found = info.incarnation(&self.core.bucket.stream);
        if self.from_state {
            self.incarnation = Some(found);
        }
        // By the server's clock since the last message, or since the last fresh word, whichever is later.
        let age = info.now().duration_since(self.as_of).unwrap_or_default();
        let heard = self.current.elapsed().max(self.unasked);
        let age = if self.unchecked_cursor { age } else { age.min(heard) };
        let standing = Standing {
            same_incarnation: self.incarnation == Some(found),
            position: self.position,
            rewritten,
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
        match expiry(&standing, &stream) {
            None => Ok(()),
            Some(expiry) => Err(self.expired(expiry)),
        }
    }

    /// What a start says that has found two stores: a watch that takes the state as it is may take that of the other.
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
    SetBack,
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

/// Where a watch stands.
#[derive(Clone, Copy, Debug)]
struct Standing {
    same_incarnation: bool,
    position: u64,
    /// Another message has this position now, or the last message delivered is lost.
    rewritten: bool,
    /// How long ago the watch was known to miss nothing.
    age: Duration,
    /// The position is from a cursor that was kept somewhere; else the watch itself was there a moment ago.
    given_by_user: bool,
    /// The watch has delivered nothing and takes the state as it is.
    fresh: bool,
}

/// What the stream still holds.
#[derive(Clone, Copy, Debug)]
struct Retained {
    first: u64,
    last: u64,
    /// Tombstones behind an earlier position may have lived shorter than the settings show.
    cursors_from: u64,
    tombstone_life: Option<Duration>,
}

/// Why a watch cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    MadeAgain,
    Lost,
    Compacted,
    TombstonesForgotten,
}

impl Expiry {
    fn reason(self) -> &'static str {
        match self {
            Self::MadeAgain => {
                "it belongs to another store, or to one that was deleted and made again"
            }
            Self::Lost => {
                "the server has lost acknowledged writes, or an operator has removed them"
            }
            Self::Compacted => "the store no longer holds everything that followed it",
            Self::TombstonesForgotten => "deletions that followed it may have been forgotten since",
        }
    }
}

/// Whether something that followed a position may be missing from the stream.
///
/// Messages vanish from a bucket because a newer one of the same key came, which a watch may skip, or without a
/// successor: tombstones that have reached their age, and what an operator removed. From a cursor that was kept
/// somewhere nothing is known about the time since, so that any gap at the front counts. A watch that was there a
/// moment ago needs only the tombstones of that moment.
fn expiry(standing: &Standing, stream: &Retained) -> Option<Expiry> {
    if standing.fresh {
        return None;
    }
    if !standing.same_incarnation {
        return Some(Expiry::MadeAgain);
    }
    if standing.position > stream.last || standing.rewritten {
        return Some(Expiry::Lost);
    }
    if standing.position == stream.last {
        return None;
    }
    if standing.given_by_user && standing.position + 1 < stream.first {
        return Some(Expiry::Compacted);
    }
    let is_before_the_settings = standing.given_by_user && standing.position < stream.cursors_from;
    if is_before_the_settings || stream.tombstone_life.is_some_and(|life| standing.age >= life) {
        return Some(Expiry::TombstonesForgotten);
    }
    None
}

/// The deletions that a watch has delivered, by key.
///
/// The server follows a tombstone that has a time to live with a marker, which is not a change. An
/// earlier marker is of a value that was written after the tombstone and superseded before its
/// turn, and is delivered. There can be as many deletions as there are keys, so only the last
/// [`Deleted::LIMIT`] are known. The markers of earlier ones are delivered, each as one more
/// deletion. Only hashes are held.
#[derive(Debug, Default)]
struct Deleted {
    hasher: RandomState,
    /// When each tombstone ends, by the server's clock.
    ends: HashMap<u64, SystemTime>,
    order: VecDeque<u64>,
}

impl Deleted {
    const LIMIT: usize = 32 * 1024;

    /// Records a message. Returns whether it is a change of its key for the reader. `life` is the
    /// time to live of tombstones, if they have one.
    fn is_news(&mut self, message: &StreamMessage, life: Option<Duration>) -> bool {
        // The usual case: no deletion in scope so far.
        if message.operation == KvOperation::Put && self.ends.is_empty() {
            return true;
        }
        let hash = self.hasher.hash_one(&message.key);
        match message.operation {
            KvOperation::Expire => self.ends.get(&hash).is_none_or(|end| message.time < *end),
            KvOperation::Put => {
                self.ends.remove(&hash);
                true
            }
            _ => {
                let Some(end) = life.and_then(|life| message.time.checked_add(life)) else {
                    self.ends.remove(&hash);
                    return true;
                };
                if self.ends.insert(hash, end).is_none() {
                    self.order.push_back(hash);
                }
                if self.order.len() > Self::LIMIT
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.ends.remove(&oldest);
                }
                true
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::Key;

    const STANDING: Standing = Standing {
        same_incarnation: true,
        position: 10,
        rewritten: false,
        age: Duration::from_secs(60),
        given_by_user: true,
        fresh: false,
    };
    const STREAM: Retained = Retained { first: 5, last: 20, cursors_from: 0, tombstone_life: None };

    #[test]
    fn what_makes_a_cursor_expire() {
        assert_eq!(expiry(&STANDING, &STREAM), None);
        assert_eq!(
            expiry(&Standing { same_incarnation: false, ..STANDING }, &STREAM),
            Some(Expiry::MadeAgain)
        );
        assert_eq!(expiry(&Standing { position: 21, ..STANDING }, &STREAM), Some(Expiry::Lost));
        assert_eq!(expiry(&Standing { rewritten: true, ..STANDING }, &STREAM), Some(Expiry::Lost));
        assert_eq!(expiry(&STANDING, &Retained { first: 11, ..STREAM }), None);
        assert_eq!(expiry(&STANDING, &Retained { first: 12, ..STREAM }), Some(Expiry::Compacted));
        // Nothing followed it, so that nothing can be missing.
        let at_end = Standing { position: 20, ..STANDING };
        assert_eq!(expiry(&at_end, &Retained { first: 21, ..STREAM }), None);
        let forgets = |life| Retained { tombstone_life: Some(Duration::from_secs(life)), ..STREAM };
        assert_eq!(expiry(&STANDING, &forgets(61)), None);
        assert_eq!(expiry(&STANDING, &forgets(60)), Some(Expiry::TombstonesForgotten));
        assert_eq!(expiry(&at_end, &forgets(1)), None);
        // Before the present settings were in force.
        let since = |cursors_from| Retained { cursors_from, ..STREAM };
        assert_eq!(expiry(&STANDING, &since(10)), None);
        assert_eq!(expiry(&STANDING, &since(11)), Some(Expiry::TombstonesForgotten));
        assert_eq!(expiry(&at_end, &since(21)), None);
    }

    #[test]
    fn the_marker_of_a_deletion_that_was_delivered_is_no_news() {
        use KvOperation::{Delete, Expire, Purge, Put};
        const LIFE: Duration = Duration::from_secs(3600);
        let message = |number: usize, operation, seconds| StreamMessage {
            key: Key::new(format!("k.{number}")).expect("a key"),
            sequence: 1,
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            operation,
            operation_id: None,
            fence: None,
            expires: false,
            value: Bytes::new(),
        };
        let mut deleted = Deleted::default();
        let mut is_news = |number, operation, seconds| {
            deleted.is_news(&message(number, operation, seconds), Some(LIFE))
        };
        assert!(is_news(0, Expire, 0));
        assert!(is_news(0, Delete, 100));
        // Of a value that came between and is gone.
        assert!(is_news(0, Expire, 3699));
        // The server can leave one more after a restart.
        assert!(!is_news(0, Expire, 3700));
        assert!(!is_news(0, Expire, 3800));
        assert!(is_news(1, Expire, 3800));
        assert!(is_news(0, Put, 3900));
        assert!(is_news(0, Expire, 9000));
        for number in 0..=Deleted::LIMIT {
            assert!(is_news(number, Purge, 9000));
        }
        assert!(is_news(0, Expire, 99_000));
        assert!(!is_news(1, Expire, 99_000));
        assert_eq!(deleted.order.len(), Deleted::LIMIT);
        assert!(deleted.is_news(&message(1, Delete, 9000), None));
    }

    #[test]
    fn a_watch_that_was_there_a_moment_ago_goes_on_over_compaction() {
        let own = Standing { given_by_user: false, ..STANDING };
        assert_eq!(expiry(&own, &Retained { first: 15, ..STREAM }), None);
        let fresh = Standing { fresh: true, same_incarnation: false, position: 0, ..own };
        assert_eq!(expiry(&fresh, &STREAM), None);
    }
}
