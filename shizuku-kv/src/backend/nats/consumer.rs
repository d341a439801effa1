//! An ordered pull consumer: delivers each message once and in order, or reports that it was lost.
//!
//! Pull rather than push, because only requested messages can arrive. A reader that does not poll
//! requests nothing. Memory stays bounded, and the server needs no estimate of the reader's speed.
//! The consumer acknowledges nothing and is in the server's memory. The reader recreates a lost
//! consumer at the position of the reader (the ordered consumer of ADR-17, on pull as ADR-37
//! recommends, ADR 0007).

mod creation;
mod queue;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::{Message, StatusCode};
use serde_json::{Value, json};

use self::queue::Queue;
use super::delete_on_drop::DeleteOnDrop;
use super::denials::Denial;
use super::lag::Lag;
use super::link::{Interruption, Link, Mark};
use super::liveness::{Liveness, LivenessEvent};
use super::stream_info::StreamInfo;
use super::wire::DeliveryInfo;
use crate::store::{KvError, KvResult, SuspendAwareInstant};

/// Maximum number of messages requested at a time. More are requested when half of them have
/// arrived.
const PULL: usize = 8 * 1024;

/// Maximum number of bytes requested at a time. If one message can be larger, the server's limit on
/// messages is used instead, because a request without room for a message delivers nothing.
const PULL_BYTES: usize = 8 * 1024 * 1024;

/// Interval of the heartbeats of an idle consumer.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// Interval of the heartbeats until the end of the existing messages, which the first heartbeat
/// shows.
pub(super) const SHORT_HEARTBEAT: Duration = Duration::from_millis(250);

/// Number of heartbeats for which a request for messages stays open on the server.
const PULL_EXPIRES: u32 = 6;

/// Returns the timeout after which a silent consumer counts as lost: two heartbeats, and the delay
/// of a loaded machine.
fn patience(heartbeat: Duration) -> Duration {
    heartbeat * 2 + Duration::from_secs(1)
}

/// Time for which the server keeps a consumer without a request. This bounds the number of
/// consumers that a crashed client leaves.
pub(super) const INACTIVE: Duration = Duration::from_secs(60);

/// Minimum time between the arrival of a message and its read for the message to count as old.
const LATE: Duration = Duration::from_secs(1);

/// The messages that a consumer delivers.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) stream: String,
    /// Subjects, not overlapping; none of them is everything in the stream.
    pub(super) filters: Vec<String>,
    pub(super) start: Start,
    pub(super) headers_only: bool,
    /// Time for which the server keeps the consumer without a request: [`INACTIVE`], or the maximum
    /// of the stream.
    pub(super) inactive: Duration,
}

/// The first message of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The newest message of each subject, then the later messages.
    LastPerSubject,
    /// The newest message, then the later messages.
    Last,
    /// Every message from this stream sequence on.
    Sequence(u64),
}

/// An event of a consumer.
#[derive(Debug)]
pub(super) enum Delivery {
    Message(Message, DeliveryInfo),
    /// The consumer is alive and delivers nothing at the moment. That does not show that nothing is
    /// left to deliver.
    Idle,
    /// The consumer or one of its messages is lost, so that the reader has to recreate the
    /// consumer.
    Lost(&'static str),
    /// The user has no right to read from consumers.
    Denied(Arc<Denial>),
}

#[derive(Debug)]
pub(super) struct OrderedConsumer {
    link: Arc<Link>,
    delete_on_drop: DeleteOnDrop,
    inbox: String,
    queue: Queue,
    liveness: Liveness,
    pull_subject: String,
    pulls: u64,
    outstanding: usize,
    /// Maximum number of messages requested at a time: [`PULL`], or the server's limit.
    batch: usize,
    bytes: usize,
    /// The state of the connection before the creation of the consumer.
    mark: Mark,
    expires: Option<Duration>,
    /// The time of the last request for messages, and the duration for which it stays open.
    asked: (SuspendAwareInstant, Duration),
    /// When the server last had a request that was neither filled nor expired, as far as is known.
    served: SuspendAwareInstant,
    /// The longest time for which the server may have had no request.
    unasked: Duration,
    last_sequence: u64,
    heartbeat: Duration,
    /// Whether the last delivery was read directly after its arrival, while the reader waited.
    /// Otherwise the delivery may be old.
    fresh: bool,
    /// Whether it began with the newest message of each subject.
    has_list: bool,
    /// Number of messages that were waiting when it was created. It is certain only if nothing was
    /// written from the creation until the next stream information: the server subtracts a message
    /// that is overwritten meanwhile at once, and adds its successor later.
    pub(super) pending_at_start: u64,
    /// The server that has the consumer. `None` without a cluster.
    server: Option<String>,
    /// Time of its creation, by the clock of the server.
    created: SystemTime,
}

impl OrderedConsumer {
    /// Requests one message at a time from now on.
    pub(super) fn one_at_a_time(&mut self) {
        self.batch = 1;
    }

    /// Returns the lag of a consumer that was created after this stream information was read.
    pub(super) fn lag(&self, before: &StreamInfo) -> Lag {
        Lag::of(self.server.as_deref(), before.leader())
    }

    /// Returns the lag of a consumer whose creation was requested `since` before this stream
    /// information was read.
    pub(super) fn lag_before(&self, info: &StreamInfo, since: Duration) -> Lag {
        Lag::before(self.server.as_deref(), info, since)
    }

    /// Returns whether the last message of the stream is certainly older than the consumer. The
    /// creation was requested `since` before this stream information was read.
    ///
    /// Without a cluster, one clock dates both. The clock may have been set forward in between,
    /// which makes later messages look even later. It may also have been set back. If the stream
    /// information is still dated after the creation, it was set back by less than `since`. A later
    /// message is then dated too early by less than that.
    pub(super) fn is_newer_than_all(&self, info: &StreamInfo, since: Duration) -> bool {
        self.server.is_none()
            && self.created <= info.now()
            && info.last_time().checked_add(since).is_some_and(|time| time < self.created)
    }

    /// Awaits a request while the connection of the consumer exists.
    ///
    /// The client subscribes again when it reconnects, and the server then continues to fill the
    /// open request for messages. If the server ended the connection because of that request, it
    /// would end the next connection too, before it answers another request.
    ///
    /// # Errors
    /// Returns [`KvError::Unavailable`] if the connection broke.
    pub(super) async fn while_connected<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = KvResult<T>>,
    ) -> KvResult<T> {
        tokio::select! {
            biased;
            () = self.link.broken(self.mark) => {}
            result = request => return result,
        }
        Err(self.link.over(operation).unwrap_or_else(|| KvError::Unavailable {
            operation,
            reason: "lost the connection before the consumer was ready".to_owned(),
            source: None,
        }))
    }

    /// Requests the first messages, which arrive while the caller continues. [`next`](Self::next)
    /// repeats a request that could not be sent.
    pub(super) async fn request_first(&mut self) {
        if self.outstanding == 0 {
            let _ = self.pull().await;
        }
    }

    /// Waits for the next event. Requests more messages if few are left to arrive.
    pub(super) async fn next(&mut self) -> Delivery {
        loop {
            if self.needs_pull() && self.pull().await.is_err() {
                return Delivery::Lost("cannot send the request for messages");
            }
            if let Some(message) = self.queue.take_first() {
                match self.receive(message) {
                    Some(delivery) => return delivery,
                    None => continue,
                }
            }
            // A message that has arrived is taken without setting up timers.
            self.queue.begin_slice().await;
            if self.queue.first().is_some() {
                self.fresh = false;
                continue;
            }
            self.note_empty_queue();
            let begun = SuspendAwareInstant::now();
            let patience = patience(self.heartbeat);
            let (message, arrived) = tokio::select! {
                biased;
                arrival = self.queue.arrival() => arrival,
                event = self.liveness.next_event(patience) => {
                    return match event {
                        LivenessEvent::Interrupted(Interruption::Lost) => {
                            Delivery::Lost("disconnected")
                        }
                        LivenessEvent::Interrupted(Interruption::Denied(text)) => {
                            Delivery::Denied(text)
                        }
                        LivenessEvent::Silence => Delivery::Lost("no heartbeat"),
                    };
                }
            };
            let now = self.queue.had_arrived();
            let late = now.since(&arrived);
            if now.since(&begun).saturating_sub(late) > patience {
                // The process was suspended, so the message may have been in the socket.
                return Delivery::Lost("no heartbeat");
            }
            self.fresh = late < LATE;
            self.served = arrived;
            let Some(message) = message else {
                return Delivery::Lost("the subscription ended");
            };
            if let Some(delivery) = self.receive(message) {
                return delivery;
            }
        }
    }

    /// Begins a slice of the messages that have arrived, without a wait. Returns `false` if no
    /// message has, if the present slice has a message left, or if it is the turn of other tasks.
    pub(super) fn begin_slice(&mut self) -> bool {
        let begins = self.queue.begin_slice_at_once();
        self.fresh &= !begins;
        begins
    }

    /// Returns the position of the next message of the slice. Returns `None` if that message is not
    /// the expected one, or if more messages have to be requested first.
    pub(super) fn peek(&self) -> Option<DeliveryInfo> {
        let delivery = DeliveryInfo::parse(self.queue.first()?.reply.as_deref()?)?;
        let is_expected = delivery.consumer_sequence == self.last_sequence + 1;
        (is_expected && !self.needs_pull()).then_some(delivery)
    }

    /// Takes the message at the position that [`peek`](Self::peek) has returned.
    pub(super) fn take(&mut self, delivery: &DeliveryInfo) -> Option<Message> {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.last_sequence = delivery.consumer_sequence;
        self.queue.take_first()
    }

    /// Returns whether more messages have to be requested.
    fn needs_pull(&self) -> bool {
        self.outstanding <= self.batch / 2
    }

    fn receive(&mut self, message: Message) -> Option<Delivery> {
        // A stored message has its position in the reply subject, even if another client gave it a
        // status. A message of the server has none.
        if let Some(delivery) = message.reply.as_deref().and_then(DeliveryInfo::parse) {
            self.outstanding = self.outstanding.saturating_sub(1);
            if delivery.consumer_sequence != self.last_sequence + 1 {
                return Some(Delivery::Lost("a message is missing"));
            }
            self.last_sequence = delivery.consumer_sequence;
            return Some(Delivery::Message(message, delivery));
        }
        let Some(status) = message.status else {
            return Some(Delivery::Lost("a message has no position"));
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
            // The server rejects a request above its limit, which it names.
            409 if description.contains("MaxRequest") => {
                self.adopt(description);
                self.outstanding = 0;
                return None;
            }
            // Code 404 means no message, 408 expired, and 409 of these kinds filled.
            404 | 408 => {}
            409 if description.contains("MaxBytes") || description.contains("Batch Completed") => {}
            503 => return Some(Delivery::Lost("the consumer is gone")),
            _ => {
                tracing::debug!(%status, description, "server ended a consumer");
                return Some(Delivery::Lost("the server ended the consumer"));
            }
        }
        let unfilled = header("Nats-Pending-Messages").and_then(|n| usize::try_from(n).ok());
        self.outstanding = self.outstanding.saturating_sub(unfilled.unwrap_or(self.outstanding));
        (status.as_u16() == 408).then_some(Delivery::Idle)
    }

    /// Uses the interval of long-lived consumers for heartbeats, from the next request on.
    pub(super) fn use_long_heartbeat(&mut self) {
        self.heartbeat = HEARTBEAT;
    }

    /// Whether a message that is removed before its turn may stop it. A server that keeps several
    /// messages of a subject lists the newest ones when it creates the consumer. The consumer stops
    /// at each removed one until an event wakes it, and reports meanwhile that nothing is pending.
    pub(super) fn may_stall(&self) -> bool {
        self.has_list && self.last_sequence < self.pending_at_start
    }

    /// Adopts a limit that the server has named, as in "Exceeded MaxRequestBatch of 100".
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

    /// Returns whether the last delivery was read directly after its arrival. Otherwise it may be
    /// old.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Returns a time at which the last delivery had arrived.
    pub(super) fn had_arrived(&self) -> SuspendAwareInstant {
        self.queue.had_arrived()
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

    async fn pull(&mut self) -> Result<(), async_nats::PublishError> {
        let batch = self.batch.saturating_sub(self.outstanding).max(1);
        let expires = self.heartbeat * PULL_EXPIRES;
        let expires = self.expires.map_or(expires, |most| most.min(expires));
        let request = json!({
            "batch": batch,
            "max_bytes": self.bytes,
            "expires": nanos(expires),
            // The server takes at most half of it.
            "idle_heartbeat": nanos(self.heartbeat.min(expires / 2)),
        });
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

fn nanos(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
