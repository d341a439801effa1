//! Watches: a state machine that reads from an ordered consumer, and recreates a lost one.
//!
//! A watch runs in the task of its reader. Dropping the watch therefore ends everything: the `Drop`
//! of the consumer deletes the consumer on the server. A reader that does not poll requests no more
//! messages than the first request contains, so that memory stays bounded.
//!
//! `opening` creates the consumers, `delivery` handles the messages, and `comparison` compares an
//! idle watch with the leader.

mod comparison;
mod delivery;
mod opening;

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use backon::ExponentialBackoff;
use futures_core::future::BoxFuture;

use super::census::Census;
use super::consumer::{Delivery, OrderedConsumer};
use super::core::StoreCore;
use super::deleted::Deleted;
use super::expiry::Expiry;
use super::filters::filters_for;
use super::initial_sync::StateSync;
use super::leader::Last;
use super::store::NatsStore;
use super::wire::StreamMessage;
use crate::backend::source::{Source, items};
use crate::store::backoff;
use crate::store::timer::sleep;
use crate::store::{
    Deadline, KvError, KvResult, KvUpdate, KvWatcher, SuspendAwareInstant, Watch, WatchCursor,
    WatchLink, WatchScope,
};

const OPERATION: &str = "watch";

/// Timeout for one attempt to create a consumer, unless earlier creations took longer.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Interval of checking why there is no connection.
const CONNECTION_CHECK: Duration = Duration::from_secs(1);

/// Returns the pauses between attempts. They are jittered, because all other watches lost their
/// consumer at the same time.
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
            // Boxed, because it is moved for each wait.
            let mut watch = Box::new(NatsWatch::new(Arc::clone(&self.0), scope, from));
            watch.begin(deadline).await?;
            let link = watch.link.subscribe();
            Ok(Watch::new(items(watch, |_| Poll::Ready(()))).with_link(link))
        })
    }
}

impl Source for Box<NatsWatch> {
    type Item = Item;

    fn next_at_once(&mut self) -> KvResult<Option<Item>> {
        Ok(self.next_plain())
    }

    async fn next(&mut self) -> KvResult<Option<Item>> {
        loop {
            self.plain_within = None;
            if let Some(item) = self.step().await? {
                return Ok(Some(item));
            }
        }
    }
}

/// Phase of a watch.
#[derive(Debug)]
enum State {
    /// No consumer exists: the watch is new, or its consumer was lost. Waits until the connection
    /// is up and the pause has passed, then creates a consumer at the position of the watch.
    /// Becomes `Reading`. Stays, with a longer pause, if that fails. The watch ends if the store is
    /// gone or the watch cannot resume without a gap.
    Starting { pause: Duration },
    /// Waits for the consumer. Becomes `Starting` if the consumer is lost.
    Reading(Box<OrderedConsumer>),
}

type Item = (KvUpdate, WatchCursor);

/// The end of the stream when a watch began.
#[derive(Clone, Copy, Debug)]
struct Floor {
    sequence: u64,
    /// Server's time of the message at `sequence`.
    time: SystemTime,
    /// Server's time of that report.
    told: SystemTime,
    is_empty: bool,
    /// Whether the present consumer is level with the leader, and nothing was written between its
    /// creation and this report, or the next one. If so, a complete state includes every message in
    /// scope up to `sequence`.
    is_covered: bool,
}

#[derive(Debug)]
struct NatsWatch {
    core: Arc<StoreCore>,
    scope: WatchScope,
    filters: Vec<String>,
    state: State,
    /// `None` after a sign of life, so that the next loss begins with the first pause.
    pauses: Option<ExponentialBackoff>,
    /// Part of the names of this watch's consumers, with the number of attempts to create one.
    id: String,
    consumers: u64,
    /// Incarnation of the store, from the cursor or from the first stream information.
    incarnation: Option<[u8; 16]>,
    /// Stream sequence up to which every message in scope has been delivered.
    position: u64,
    /// Server's time of the message at the position.
    as_of: SystemTime,
    /// The last message delivered, in scope or not. The position may be behind it.
    last: Option<Last>,
    /// Whether the watch begins with the newest value of each key, because nothing was delivered
    /// yet.
    from_state: bool,
    /// Whether the cursor of the user has not been checked yet.
    unchecked_cursor: bool,
    /// Whether a consumer is created only after the stream information is read, because the one
    /// created before it may be behind the leader.
    needs_info: bool,
    /// The end of the stream when the watch began.
    floor: Option<Floor>,
    /// `None` once the watch has caught up.
    state_sync: Option<StateSync>,
    /// Whether the server may have made a list for the present consumer, in which the consumer may
    /// stop.
    has_list: bool,
    caught_up: bool,
    /// The state that was read by name and not delivered yet, the newest message first.
    initial: Vec<StreamMessage>,
    /// The state is complete, and the caught-up marker follows the delivered items.
    is_marker_due: bool,
    /// The leader is asked whether the state is complete with the delivered items.
    is_proof_due: bool,
    /// Number of heartbeats in a row since the watch has caught up.
    quiet: u32,
    /// The messages of the present slice of the consumer that are delayed by less need no decision
    /// that depends on the time. `None` if that is unknown.
    plain_within: Option<Duration>,
    /// Whether the leader had a newer message than the delivered ones at the last heartbeat.
    missing: bool,
    /// Time at which the watch last received a message directly after its arrival.
    current: SuspendAwareInstant,
    /// A reading of the server's clock, and the local time of that reading.
    clock: Option<(SystemTime, SuspendAwareInstant)>,
    /// Time for which the lost consumer had received no request for messages.
    unasked: Duration,
    /// Guaranteed lifetime of tombstones when the last consumer was created.
    life: Option<Duration>,
    /// When the settings were last requested because the reader is behind.
    asked: Option<SuspendAwareInstant>,
    /// Keys whose deletion was delivered to the reader.
    deleted: Deleted,
    /// Whether all tombstones in scope were delivered, because the watch began with the state.
    knows_tombstones: bool,
    /// The figures of the stream at the last comparison, and the time of that comparison.
    census: Option<Census>,
    compared: SuspendAwareInstant,
    /// Whether, at the start of the watch, the settings let the store lose entries without a
    /// message to any watch.
    is_silent: bool,
    /// The connection state, for the reader.
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
            needs_info: false,
            floor: None,
            state_sync: None,
            has_list: false,
            caught_up: false,
            initial: Vec::new(),
            is_marker_due: false,
            is_proof_due: false,
            quiet: 0,
            plain_within: None,
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

    /// Starts for the first time. Retries until the deadline if the error is retryable.
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
            // Without time for an answer, another attempt would end in a timeout, which is less
            // specific than this error.
            if !error.is_retryable() || deadline.remaining() <= pause + deadline.limit() / 8 {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits for the next item, by one or more steps.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    async fn step(&mut self) -> KvResult<Option<Item>> {
        if let Some(message) = self.initial.pop() {
            return Ok(self.deliver_initial(message));
        }
        if std::mem::take(&mut self.is_marker_due) {
            return Ok(Some(Box::pin(self.catch_up()).await));
        }
        if self.is_proof_due {
            Box::pin(self.prove()).await?;
            return Ok(None);
        }
        let consumer = match &mut self.state {
            State::Starting { pause } => {
                let pause = *pause;
                return Box::pin(self.restart(pause)).await;
            }
            State::Reading(consumer) => consumer,
        };
        match next_of(consumer, &self.core).await {
            Delivery::Lost(NOT_ASKED) => {
                self.unasked = consumer.unasked();
                self.state = State::Starting { pause: self.pause() };
                Ok(None)
            }
            // A consumer on a replica that is behind begins at the end of that replica, which is
            // before the requested position.
            Delivery::Message(_, delivery) if delivery.stream_sequence <= self.position => {
                self.alive();
                Ok(None)
            }
            Delivery::Message(message, delivery) => self.receive(message, &delivery).await,
            Delivery::Idle => Box::pin(self.idle()).await,
            Delivery::Denied(denial) => Err(denial.error(OPERATION)),
            Delivery::Lost(reason) => match self.core.link.over(OPERATION) {
                Some(error) => Err(error),
                None => {
                    let store = &self.core.bucket.name;
                    tracing::debug!(%store, reason, "lost the consumer of a watch");
                    self.cut_off(reason);
                    self.state = State::Starting { pause: self.pause() };
                    Ok(None)
                }
            },
        }
    }

    /// Waits for the connection, then starts again.
    ///
    /// # Errors
    /// Returns errors that end the watch.
    async fn restart(&mut self, pause: Duration) -> KvResult<Option<Item>> {
        // The pause follows the reconnect. Otherwise all watches would start at the same time.
        match self.core.link.up(OPERATION, Deadline::after(CONNECTION_CHECK)).await {
            Err(error) if ends_a_watch(&error) => return Err(error),
            // This error is returned at once, unlike that of a connection that is down.
            Err(error @ KvError::LimitReached { .. }) => {
                self.cut_off(&error.to_string());
                let pause = self.pause();
                sleep(pause).await;
                return Ok(None);
            }
            Err(_) => {
                if let Some(failure) = self.core.link.failure() {
                    self.cut_off(&failure.reason);
                }
                return Ok(None);
            }
            Ok(_) => sleep(pause).await,
        }
        let limit = self.core.link.pace().patience(START_LIMIT);
        match self.start(Deadline::after(limit)).await {
            Ok(consumer) => self.read_from(consumer),
            Err(error) if ends_a_watch(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(store = %self.core.bucket.name, %error, "cannot resume a watch, retrying");
                self.cut_off(&error.to_string());
                self.state = State::Starting { pause: self.pause() };
            }
        }
        Ok(None)
    }

    fn read_from(&mut self, consumer: OrderedConsumer) {
        self.link.send_if_modified(|link| !std::mem::take(link).is_up());
        self.state = State::Reading(Box::new(consumer));
    }

    /// Reports to the reader that the watch is down, with the time of the loss and the newest
    /// reason.
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

    /// Returns the pause before the next attempt.
    fn pause(&mut self) -> Duration {
        self.pauses.get_or_insert_with(pauses).next().unwrap_or_default()
    }

    /// Records a sign of life from the consumer. Returns a time at which it had arrived. A message
    /// is only fresh if the reader waited for its arrival.
    fn alive(&mut self) -> SuspendAwareInstant {
        let State::Reading(consumer) = &self.state else { return self.current };
        let now = consumer.had_arrived();
        if consumer.is_fresh() {
            self.current = now;
        }
        self.pauses = None;
        now
    }

    fn cursor(&self) -> WatchCursor {
        WatchCursor::new(self.incarnation.unwrap_or_default(), self.position, self.as_of)
    }

    fn expired(&self, expiry: Expiry) -> KvError {
        KvError::CursorExpired { store: self.core.bucket.name.clone(), reason: expiry.reason() }
    }
}

/// Reason of a loss if no messages were requested for longer than a tombstone lives.
const NOT_ASKED: &str = "the reader requested no messages for longer than a deletion is kept";

/// Returns the next event of the consumer, or a loss if a tombstone can have been written and
/// removed while no messages were requested. The watch then has to prove that it can resume.
async fn next_of(consumer: &mut OrderedConsumer, core: &StoreCore) -> Delivery {
    let delivery = consumer.next().await;
    let life = core.bucket.settings().tombstone_life;
    if life.is_some_and(|life| consumer.unasked() >= life) {
        Delivery::Lost(NOT_ASKED)
    } else {
        delivery
    }
}

/// Returns whether a later attempt cannot succeed after this error.
fn ends_a_watch(error: &KvError) -> bool {
    matches!(
        error,
        KvError::StoreNotFound { .. }
            | KvError::CursorExpired { .. }
            | KvError::Unauthorized { .. }
    ) || error.is_over()
}
