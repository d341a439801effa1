//! An ordered pull consumer: every message once and in order, or the word that it was lost.
//!
//! Pull rather than push, because what is asked for is what can arrive: a reader that does not read
//! asks for nothing, so that memory stays bounded without the server having to guess. The consumer
//! acknowledges nothing and lives in the server's memory; when it is lost, whoever reads from it
//! makes another one from where it stands (the ordered consumer of ADR-17, on pull as ADR-37
//! recommends, ADR 0007).

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::unconstrained;

use super::api::ApiError;
use super::denials::{Denial, Form};
use super::farewell::Farewell;
use super::lag::Lag;
use super::link::{Interruption, Link};
use super::liveness::{Liveness, Trouble};
use super::stream_info::{Cluster, StreamInfo};
use super::wire::DeliveryInfo;
use crate::store::{Deadline, KvError, KvResult, SuspendAwareInstant};

/// Messages asked for at a time. More are asked for when half of them have come.
const PULL: usize = 8 * 1024;

/// How often an idle consumer tells that it is there. After some of these without a word it counts
/// as lost.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// The same where the end of what is there is waited for, which the first heartbeat shows.
pub(super) const SHORT_HEARTBEAT: Duration = Duration::from_millis(250);

/// How long one request for messages stays open on the server, in heartbeats.
const PULL_EXPIRES: u32 = 6;

/// How long nothing may be heard: two heartbeats, and what a loaded machine may add.
fn patience(heartbeat: Duration) -> Duration {
    heartbeat * 2 + Duration::from_secs(1)
}

/// How long the server keeps a consumer that nobody asks for messages: bounds what a client that
/// vanished leaves behind.
pub(super) const INACTIVE: Duration = Duration::from_secs(60);

/// Minimum time between the arrival of a message and the next poll for the message to count as old.
const LATE: Duration = Duration::from_secs(1);

/// What a consumer delivers.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) stream: String,
    /// Subjects, not overlapping; none of them is everything in the stream.
    pub(super) filters: Vec<String>,
    pub(super) start: Start,
    pub(super) headers_only: bool,
    /// How long the server keeps the consumer if no request arrives: [`INACTIVE`], or what the
    /// stream allows.
    pub(super) inactive: Duration,
}

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The newest message of each subject, then what follows.
    LastPerSubject,
    /// The newest message, then what follows.
    Last,
    /// Every message from this stream sequence on.
    Sequence(u64),
}

/// One thing that happened.
#[derive(Debug)]
pub(super) enum Delivery {
    Message(Message, DeliveryInfo),
    /// The consumer is alive and delivers nothing at the moment. That does not show that nothing is
    /// left to deliver.
    Idle,
    /// The consumer is gone, or something that it sent is. Make another one.
    Lost(&'static str),
    /// The server does not let this client read from consumers.
    Denied(Arc<Denial>),
}

#[derive(Debug)]
pub(super) struct OrderedConsumer {
    link: Arc<Link>,
    farewell: Farewell,
    inbox: String,
    messages: Subscriber,
    liveness: Liveness,
    pull_subject: String,
    pulls: u64,
    outstanding: usize,
    /// The most that may be asked for at a time: ours, or what the server allows.
    batch: usize,
    bytes: usize,
    /// The last request had no room for the next message, which is requested alone.
    is_next_large: bool,
    /// The last message at the last request.
    requested_after: u64,
    /// Number of messages that the server had to deliver after the last one, as far as it said.
    pending: u64,
    /// The connection that it was created on.
    epoch: u64,
    expires: Option<Duration>,
    /// When the server was last asked for messages, and how long that request stays open.
    asked: (SuspendAwareInstant, Duration),
    /// When the server last had a request that was neither filled nor expired, as far as is known.
    served: SuspendAwareInstant,
    /// The longest time for which the server may have had no request.
    unasked: Duration,
    last_sequence: u64,
    heartbeat: Duration,
    /// Whether the last delivery was waited for, and so is of this moment; else it may have been
    /// lying there.
    fresh: bool,
    /// Whether it began with the newest message of each subject.
    has_list: bool,
    /// Number of messages that were waiting when it was created. It is exact at that moment, and
    /// only then.
    pub(super) pending_at_start: u64,
    /// The server that has it; none where there is no cluster.
    server: Option<String>,
}

impl OrderedConsumer {
    /// Creates the consumer `name`. Creating it twice with the same specification is harmless, so
    /// that a creation whose answer was lost can be repeated and leaves one consumer at most.
    ///
    /// A cluster may place it on a server that has just died, which never answers, however often
    /// the request is repeated. So after a quarter of the deadline another consumer is created, and
    /// the first is deleted.
    pub(super) async fn create(
        link: Arc<Link>,
        operation: &'static str,
        spec: &Spec,
        name: String,
        deadline: Deadline,
    ) -> KvResult<Result<Self, ApiError>> {
        let mut others = 0_u32;
        loop {
            let name = if others == 0 { name.clone() } else { format!("{name}-{others}") };
            let share = deadline.at_most((deadline.limit() / 4).min(HEARTBEAT));
            match Self::create_one(Arc::clone(&link), operation, spec, name, share).await {
                Err(KvError::Timeout { .. }) if !deadline.remaining().is_zero() => others += 1,
                created => return created,
            }
        }
    }

    async fn create_one(
        link: Arc<Link>,
        operation: &'static str,
        spec: &Spec,
        name: String,
        deadline: Deadline,
    ) -> KvResult<Result<Self, ApiError>> {
        let mut config = json!({
            "name": name,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": nanos(spec.inactive),
            "headers_only": spec.headers_only,
        });
        match spec.filters.as_slice() {
            [] => {}
            [one] => config["filter_subject"] = json!(one),
            many => config["filter_subjects"] = json!(many),
        }
        match spec.start {
            Start::LastPerSubject => config["deliver_policy"] = json!("last_per_subject"),
            Start::Last => config["deliver_policy"] = json!("last"),
            Start::Sequence(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence.max(1));
            }
        }
        let mark = link.up(operation, deadline).await?;
        let inbox = link.client().new_inbox();
        let deliveries = format!("{inbox}.*");
        let messages = link.subscribe(operation, deliveries.clone()).await?;
        let request = json!({ "stream_name": spec.stream, "config": config });
        let pull_subject = link.space().api(&format!("CONSUMER.MSG.NEXT.{}.{name}", spec.stream));
        let mut consumer = Self {
            liveness: Liveness::new(
                Arc::clone(&link),
                mark,
                [pull_subject.clone(), deliveries.clone()],
            ),
            pull_subject,
            link: Arc::clone(&link),
            farewell: Farewell::new(&link, &spec.stream, &name),
            inbox,
            messages,
            pulls: 0,
            outstanding: 0,
            batch: PULL,
            bytes: link.pull_size.bytes(link.max_payload()),
            is_next_large: false,
            requested_after: 0,
            pending: 0,
            epoch: mark.epoch(),
            expires: None,
            asked: (SuspendAwareInstant::now(), Duration::ZERO),
            // Its position is the one of its creation, which is later.
            served: SuspendAwareInstant::now(),
            unasked: Duration::ZERO,
            fresh: true,
            last_sequence: 0,
            heartbeat: SHORT_HEARTBEAT,
            has_list: spec.start == Start::LastPerSubject,
            pending_at_start: 0,
            server: None,
        };
        // From here on the consumer may exist, so that dropping this future has to delete it:
        // `farewell` does.
        let created =
            match request_creation(&link, operation, spec, &name, &request, deadline).await? {
                Ok(created) => created,
                Err(rejected) => return Ok(Err(rejected)),
            };
        consumer.pending_at_start = created.num_pending;
        consumer.pending = created.num_pending;
        consumer.farewell.exists = true;
        consumer.server = created.cluster.and_then(|cluster| cluster.leader);
        // The server has said so before it answered.
        if let Some(denial) = link.denied(mark, &[&deliveries]) {
            return Err(denial.error(operation));
        }
        link.ensure_subscribed(operation, mark)?;
        Ok(Ok(consumer))
    }

    /// Asks for one message at a time from now on.
    pub(super) fn one_at_a_time(&mut self) {
        self.batch = 1;
    }

    /// Returns how far behind it may be, if it was created after this look at the stream.
    pub(super) fn lag(&self, before: &StreamInfo) -> Lag {
        Lag::of(self.server.as_deref(), before.leader())
    }

    /// Returns how far behind it may be, if its creation was requested `since` before this look at
    /// the stream.
    pub(super) fn lag_before(&self, look: &StreamInfo, since: Duration) -> Lag {
        Lag::before(self.server.as_deref(), look, since)
    }

    /// Asks for the first messages, which arrive while the caller does something else. A request
    /// that cannot be sent is sent again by [`next`](Self::next).
    pub(super) async fn ask(&mut self) {
        if self.outstanding == 0 {
            let _ = self.pull().await;
        }
    }

    /// The next thing that happens. Asks for more messages when few are left to come.
    pub(super) async fn next(&mut self) -> Delivery {
        loop {
            if self.is_request_due() && self.pull().await.is_err() {
                return Delivery::Lost("the request for messages could not be sent");
            }
            // Gives way to other tasks here. The queue below must not, or a message in it would
            // seem to have been waited for.
            tokio::task::consume_budget().await;
            // A message that has arrived is taken without setting up timers.
            let message = match unconstrained(self.messages.next()).now_or_never() {
                Some(message) => {
                    self.fresh = false;
                    message
                }
                None => {
                    self.note_empty_queue();
                    let begun = SuspendAwareInstant::now();
                    let patience = patience(self.heartbeat);
                    let (message, arrived) = tokio::select! {
                        biased;
                        arrival = arrival(&mut self.messages) => arrival,
                        trouble = self.liveness.trouble(patience) => {
                            return match trouble {
                                Trouble::Interrupted(Interruption::Lost) => {
                                    self.reduce_if_filling();
                                    Delivery::Lost("disconnected")
                                }
                                Trouble::Interrupted(Interruption::Denied(text)) => {
                                    Delivery::Denied(text)
                                }
                                Trouble::Silence => Delivery::Lost("no heartbeat"),
                            };
                        }
                    };
                    let late = arrived.elapsed();
                    if begun.elapsed().saturating_sub(late) > patience {
                        // The process was suspended, so the message may have been in the socket.
                        return Delivery::Lost("no heartbeat");
                    }
                    self.fresh = late < LATE;
                    self.served = arrived;
                    message
                }
            };
            let Some(message) = message else {
                return Delivery::Lost("the subscription ended");
            };
            if let Some(delivery) = self.receive(message) {
                return delivery;
            }
        }
    }

    /// Whether few of the requested messages are left to arrive.
    fn is_request_due(&self) -> bool {
        self.outstanding <= if self.is_next_large { 0 } else { self.batch / 2 }
    }

    fn receive(&mut self, message: Message) -> Option<Delivery> {
        // What is stored has its place in the reply subject, whatever status another client gave
        // it; what the server says has none.
        if let Some(place) = message.reply.as_deref().and_then(DeliveryInfo::parse) {
            self.outstanding = self.outstanding.saturating_sub(1);
            if place.consumer_sequence != self.last_sequence + 1 {
                return Some(Delivery::Lost("a message is missing"));
            }
            self.last_sequence = place.consumer_sequence;
            (self.pending, self.is_next_large) = (place.pending, false);
            return Some(Delivery::Message(message, place));
        }
        let Some(status) = message.status else {
            return Some(Delivery::Lost("a message without its place"));
        };
        let header = |name: &str| {
            let value = message.headers.as_ref().and_then(|headers| headers.get(name));
            value.and_then(|value| value.as_str().parse::<u64>().ok())
        };
        if status == StatusCode::IDLE_HEARTBEAT {
            let delivered = header("Nats-Last-Consumer").unwrap_or(self.last_sequence);
            return Some(if delivered == self.last_sequence {
                Delivery::Idle
            } else {
                Delivery::Lost("a message before a heartbeat is missing")
            });
        }
        // Every other status ends one request for messages.
        let description = message.description.as_deref().unwrap_or_default();
        match status.as_u16() {
            // The server allows less at a time than was requested, and says how much.
            409 if description.contains("MaxRequest") => {
                self.adopt(description);
                self.outstanding = 0;
                return None;
            }
            // The request has no room for the next message, or was filled.
            409 if description.contains("MaxBytes") => {
                self.is_next_large = self.last_sequence == self.requested_after;
            }
            // 404: no message, 408: expired, 409 of this kind: filled.
            404 | 408 => {}
            409 if description.contains("Batch Completed") => {}
            503 => return Some(Delivery::Lost("the consumer is gone")),
            _ => {
                tracing::debug!(%status, description, "the server ended a consumer");
                return Some(Delivery::Lost("the server ended the consumer"));
            }
        }
        let unfilled = header("Nats-Pending-Messages").and_then(|n| usize::try_from(n).ok());
        self.outstanding = self.outstanding.saturating_sub(unfilled.unwrap_or(self.outstanding));
        (status.as_u16() == 408).then_some(Delivery::Idle)
    }

    /// From the next request for messages on, heartbeats come as seldom as for a consumer that
    /// lives long.
    pub(super) fn use_long_heartbeat(&mut self) {
        self.heartbeat = HEARTBEAT;
    }

    /// Whether a message that is removed before its turn may stop it. A server that keeps several
    /// messages of a subject lists the newest ones when it creates the consumer. The consumer stops
    /// at each removed one until an event wakes it, and reports meanwhile that nothing is pending.
    pub(super) fn may_stall(&self) -> bool {
        self.has_list && self.last_sequence < self.pending_at_start
    }

    /// Takes over a limit that the server names, as in "Exceeded MaxRequestBatch of 100".
    fn adopt(&mut self, description: &str) {
        let limit = description.rsplit(' ').next().and_then(|limit| limit.parse::<usize>().ok());
        if description.contains("MaxRequestBatch") {
            self.batch = limit.unwrap_or(self.batch / 2).clamp(1, PULL);
        } else if description.contains("MaxRequestMaxBytes") {
            self.bytes = limit.unwrap_or(self.bytes / 2).max(1);
        } else {
            let before = self.expires.unwrap_or(self.heartbeat * PULL_EXPIRES);
            self.expires = Some((before / 2).max(Duration::from_millis(10)));
        }
    }

    /// Whether the last delivery is of this moment: it was waited for. What was lying there may be
    /// old.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The longest time for which the server may have had no request for messages, because the
    /// reader did not poll. Messages that were written and removed meanwhile are not delivered.
    ///
    /// A request ends when it expires, and also when it is filled, which is known only once its
    /// messages have been read.
    pub(super) fn unasked(&self) -> Duration {
        self.unasked
    }

    /// The queue is empty. If more messages were requested, the server has that request still.
    fn note_empty_queue(&mut self) {
        let (asked, open) = &self.asked;
        if self.outstanding > 0 && asked.elapsed() < *open {
            self.served = SuspendAwareInstant::now();
        }
    }

    /// Requests less at a time on the next connection if this one broke while the server was filling
    /// a request.
    fn reduce_if_filling(&self) {
        if self.outstanding > 0 && self.pending > 0 {
            self.link.pull_size.reduce(self.epoch, self.bytes);
        }
    }

    async fn pull(&mut self) -> Result<(), async_nats::PublishError> {
        let batch = self.batch.saturating_sub(self.outstanding).max(1);
        let expires = self.heartbeat * PULL_EXPIRES;
        let expires = self.expires.map_or(expires, |most| most.min(expires));
        let batch = if self.is_next_large { 1 } else { batch };
        let mut request = json!({
            "batch": batch,
            "expires": nanos(expires),
            // The server takes at most half of it.
            "idle_heartbeat": nanos(self.heartbeat.min(expires / 2)),
        });
        if !self.is_next_large {
            request["max_bytes"] = json!(self.bytes);
        }
        self.requested_after = self.last_sequence;
        self.pulls += 1;
        let reply = format!("{}.{}", self.inbox, self.pulls);
        let payload = request.to_string().into();
        self.unasked = self.unasked.max(self.served.elapsed());
        self.served = SuspendAwareInstant::now();
        self.asked = (self.served, expires);
        self.link.client().publish_with_reply(self.pull_subject.clone(), reply, payload).await?;
        self.outstanding += batch;
        Ok(())
    }
}

/// The server's description of a new consumer.
#[derive(Deserialize)]
struct Created {
    num_pending: u64,
    #[serde(default)]
    cluster: Option<Cluster>,
}

/// Requests a consumer, in the form that the user has a right to.
///
/// The server compares a filter with the user's rights only if the subject contains it. A user may
/// instead have the right to any consumer of the bucket, and not to the longer subject. So a denied
/// form is replaced by the other one, also if the other one was denied before: a reload of the
/// server's configuration changes rights on an open connection.
async fn request_creation(
    link: &Link,
    operation: &'static str,
    spec: &Spec,
    name: &str,
    request: &Value,
    deadline: Deadline,
) -> KvResult<Result<Created, ApiError>> {
    let plain = format!("CONSUMER.CREATE.{}.{name}", spec.stream);
    let [filter] = spec.filters.as_slice() else {
        return link.api(operation, &plain, request, deadline).await;
    };
    let with_filter = format!("{plain}.{filter}");
    let is_closed = link.is_denied(Form::FilterInSubject, &spec.stream);
    let (usual, other) = if is_closed { (&plain, &with_filter) } else { (&with_filter, &plain) };
    let denied = match link.api(operation, usual, request, deadline).await {
        Err(denied @ KvError::Unauthorized { .. }) => denied,
        created => return created,
    };
    match link.api(operation, other, request, deadline).await {
        // The longer subject is the smaller right.
        Err(also @ KvError::Unauthorized { .. }) => Err(if is_closed { also } else { denied }),
        created => {
            match created {
                Err(_) => {}
                Ok(_) if is_closed => link.allow(Form::FilterInSubject, &spec.stream),
                Ok(_) => link.deny(Form::FilterInSubject, &spec.stream),
            }
            created
        }
    }
}

/// Waits for a message. Returns it with the moment of its arrival, because the reader may not have
/// polled since.
async fn arrival(messages: &mut Subscriber) -> (Option<Message>, SuspendAwareInstant) {
    let mut bell: Option<Arc<Bell>> = None;
    poll_fn(|context| {
        let rung = bell.as_ref().and_then(|bell| bell.rung.get().copied());
        let bell = match &mut bell {
            Some(bell) if rung.is_none() && bell.waker.will_wake(context.waker()) => bell,
            bell => {
                let waker = context.waker().clone();
                bell.insert(Arc::new(Bell { waker, rung: OnceLock::new() }))
            }
        };
        let waker = Waker::from(Arc::clone(bell));
        let message = messages.poll_next_unpin(&mut Context::from_waker(&waker));
        message.map(|message| (message, rung.unwrap_or_else(SuspendAwareInstant::now)))
    })
    .await
}

/// A waker that notes when it is woken first.
struct Bell {
    waker: Waker,
    rung: OnceLock<SuspendAwareInstant>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.get_or_init(SuspendAwareInstant::now);
        self.waker.wake_by_ref();
    }
}

fn nanos(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
