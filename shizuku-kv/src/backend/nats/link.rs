//! A connection: waits until it is up, and detects that an answer cannot arrive.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::{Client, PublishError, SubscribeError, Subscriber};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::denials::{Denial, DeniedForms, Form};
use super::link_events::{LinkEvents, LinkState, NoAnswers, STATE_POLL};
use super::open_consumers::OpenConsumers;
use super::pace::CreationPace;
use super::requests::Requests;
use super::server_errors::ConnectionFailure;
use super::session::Session;
use super::space::ApiSpace;
use crate::store::timer::timeout_at;
use crate::store::{Deadline, KvError, KvResult, in_runtime};

/// Number of denials after which further ones may have been lost. The client library queues 128
/// events of a connection, and drops the rest without a report.
pub(super) const CROWD: u64 = 100;

/// Maximum number of requests and writes that check their right at the same time after many
/// denials. The queue of events has room for all of their denials.
const CHECKS_IN_CROWD: usize = 32;

/// Minimum time between two reconnects of a connection that receives no answers.
const RENEWAL: Duration = Duration::from_secs(1);

/// The state of the connection at a time, before a message was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Number of disconnections before that time.
    epoch: u64,
    denials: u64,
    pub(super) surplus: u64,
    pub(super) long_lines: u64,
    pub(super) oversized: u64,
}

impl Mark {
    /// Returns whether the connection has not broken between the two marks.
    pub(super) fn is_of_connection(self, other: Self) -> bool {
        self.epoch == other.epoch
    }
}

/// Reason why no answer can arrive.
#[derive(Debug)]
pub(super) enum Interruption {
    /// The connection broke, was closed or receives no answers: messages in flight may be lost.
    Lost,
    /// The server denied the request, or the subscription to its answer.
    Denied(Arc<Denial>),
}

/// The client, and the state of its connection.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    /// The runtime of the client's tasks.
    pub(super) runtime: Handle,
    requests: Requests,
    consumers: OpenConsumers,
    pace: CreationPace,
    pub(super) events: LinkEvents,
    pub(super) session: Session,
    space: ApiSpace,
    operation_prefix: u64,
    operations: AtomicU64,
    denied_forms: DeniedForms,
    /// Locked by the operation that reconnects because no answers arrive; the time of the last
    /// reconnect.
    renewal: tokio::sync::Mutex<Option<Instant>>,
    /// Limits the number of concurrent checks of rights after many denials.
    crowd: Semaphore,
}

impl Link {
    pub(super) async fn open(
        client: Client,
        events: LinkEvents,
        space: ApiSpace,
    ) -> Result<Arc<Self>, SubscribeError> {
        events.uses_space(&space);
        let requests = Requests::open(&client, events.clone()).await?;
        Ok(Arc::new(Self {
            session: Session::new(&client),
            client,
            runtime: Handle::current(),
            requests,
            consumers: OpenConsumers::default(),
            pace: CreationPace::default(),
            events,
            space,
            // The standard library's hasher is keyed by the operating system's randomness.
            operation_prefix: RandomState::new().hash_one(std::process::id()),
            operations: AtomicU64::new(0),
            denied_forms: DeniedForms::default(),
            renewal: tokio::sync::Mutex::default(),
            crowd: Semaphore::new(CHECKS_IN_CROWD),
        }))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }

    pub(super) fn consumers(&self) -> &OpenConsumers {
        &self.consumers
    }

    /// Returns the time that the server takes to create a consumer.
    pub(super) fn pace(&self) -> &CreationPace {
        &self.pace
    }

    /// Returns the subjects of the JetStream that this connection uses.
    pub(super) fn space(&self) -> &ApiSpace {
        &self.space
    }

    /// Returns an id that no other operation of any client has.
    pub(super) fn next_id(&self) -> String {
        operation_id(self.operation_prefix, self.operations.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns whether the server is at least of this version. An unreadable version counts as old.
    pub(super) fn server_is_at_least(&self, major: u64, minor: u64) -> bool {
        parse_version(&self.client.server_info().version) >= (major, minor)
    }

    /// Returns whether the server has denied this form of request for a stream on the current
    /// connection.
    pub(super) fn is_denied(&self, form: Form, stream: &str) -> bool {
        self.denied_forms.is_denied(form, stream, self.events.state().epoch)
    }

    /// Skips this form of request from now on, until it is allowed or the next reconnect.
    pub(super) fn deny(&self, form: Form, stream: &str) {
        let epoch = self.events.state().epoch;
        self.denied_forms.deny(form, stream, epoch);
    }

    /// Uses this form of request again.
    pub(super) fn allow(&self, form: Form, stream: &str) {
        self.denied_forms.allow(form, stream);
    }

    /// Subscribes to a subject that is valid.
    pub(super) async fn subscribe(
        &self,
        operation: &'static str,
        subject: String,
    ) -> KvResult<Subscriber> {
        self.client.subscribe(subject).await.map_err(|error| {
            self.events.end_with_runtime();
            self.over(operation).unwrap_or_else(|| KvError::Unavailable {
                operation,
                reason: "cannot create the subscription".to_owned(),
                source: Some(Arc::new(error)),
            })
        })
    }

    /// Returns the error of a request that the client did not accept.
    pub(super) fn not_sent(
        &self,
        operation: &'static str,
        reason: &str,
        error: PublishError,
    ) -> KvError {
        if error.kind() == PublishErrorKind::MaxPayloadExceeded {
            return self.request_too_large(operation);
        }
        if error.kind() == PublishErrorKind::Send {
            // The client's task has ended. Our task has ended too, or is about to end.
            self.events.end_with_runtime();
        }
        self.over(operation).unwrap_or_else(|| KvError::Unavailable {
            operation,
            reason: reason.to_owned(),
            source: Some(Arc::new(error)),
        })
    }
}

/// The state of the connection.
impl Link {
    /// Whether the connection is up: the server has answered on it. The client reports a
    /// connection earlier, one to three times before a server rejects credentials that have
    /// just expired.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected && self.session.is_answered()
    }

    /// Returns the reason why the connection is down, if it is down and the reason is known.
    pub(super) fn failure(&self) -> Option<ConnectionFailure> {
        self.events.state().failure.clone().filter(|_| !self.is_connected())
    }

    /// Whether answers can arrive: the server has not rejected the subscription to them.
    pub(super) fn is_hearing(&self) -> bool {
        self.events.state().no_answers().is_none()
    }

    /// Whether every operation on this connection fails from now on.
    pub(super) fn is_over(&self) -> bool {
        self.events.state().over.is_some()
    }

    /// Whether a shutdown has begun, or the connection is over.
    pub(super) fn is_ending(&self) -> bool {
        let state = self.events.state();
        state.closing || state.over.is_some()
    }

    /// Returns the error of an operation if the connection is over, otherwise `None`.
    pub(super) fn over(&self, operation: &'static str) -> Option<KvError> {
        let state = self.events.state();
        state.over.and_then(|_| state.error(operation))
    }

    /// Waits until the connection is over.
    pub(super) async fn closed(&self) {
        // The sender lives in this struct, so that waiting does not fail.
        let _ = self.events.subscribe().wait_for(|state| state.over.is_some()).await;
    }

    /// Rejects later operations. Returns whether this was the first call.
    pub(super) fn begin_close(&self) -> bool {
        self.events.begin_close()
    }

    /// Ends the operations in flight.
    pub(super) fn close(&self) {
        // The order matters: a request whose answer can no longer arrive must also find the reason.
        self.events.shut_down();
        self.requests.end();
    }

    /// Returns the current mark, or the error of an operation that may not begin.
    pub(super) fn mark(&self, operation: &'static str) -> KvResult<Mark> {
        let state = self.events.state();
        match state.error(operation) {
            None => Ok(Mark {
                epoch: state.epoch,
                denials: state.denials.count(),
                surplus: state.surplus,
                long_lines: state.long_lines,
                oversized: state.oversized,
            }),
            Some(error) => Err(error),
        }
    }

    /// Returns whether the connection has not broken since `mark`.
    pub(super) fn is_unbroken(&self, mark: Mark) -> bool {
        self.is_connected() && self.events.state().epoch == mark.epoch
    }

    /// Waits until the connection is up.
    ///
    /// # Errors
    /// Returns the reason if the server rejects the subscription to answers. The permission may be
    /// granted later, and other subscriptions may end. But only a reconnect restores the
    /// subscription, so this reconnects from time to time.
    pub(super) async fn up(&self, operation: &'static str, deadline: Deadline) -> KvResult<Mark> {
        let mark = match self.mark(operation) {
            Err(error) if !self.is_hearing() => {
                self.renew().await;
                return Err(error);
            }
            mark => mark?,
        };
        if self.is_connected() {
            return Ok(mark);
        }
        self.come_up(operation, deadline).await
    }

    async fn come_up(&self, operation: &'static str, deadline: Deadline) -> KvResult<Mark> {
        in_runtime(operation)?;
        let mut state = self.events.subscribe();
        loop {
            state.mark_unchanged();
            let mark = self.mark(operation)?;
            if self.is_connected() {
                return Ok(mark);
            }
            self.session.check();
            let left = deadline.remaining();
            if left.is_zero() {
                let why = self
                    .failure()
                    .map_or_else(String::new, |failure| format!(": {}", failure.reason));
                return Err(KvError::Unavailable {
                    operation,
                    reason: format!(
                        "no connection to any of the servers within {:?}{why}",
                        deadline.limit()
                    ),
                    source: None,
                });
            }
            // The state is polled too, because an event can get lost.
            let _ = timeout_at(Instant::now() + left.min(STATE_POLL), state.changed()).await;
        }
    }

    /// Reconnects, unless the last reconnect was less than [`RENEWAL`] ago.
    async fn renew(&self) {
        let Ok(mut last) = self.renewal.try_lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= RENEWAL) {
            *last = Some(Instant::now());
            // This fails only if the client's task has ended.
            let _ = self.client.force_reconnect().await;
        }
    }
}

/// Interruptions of requests in flight.
impl Link {
    /// Returns the denial of one of these subjects, if the server has reported it since `mark`.
    pub(super) fn denied(&self, mark: Mark, subjects: &[&str]) -> Option<Arc<Denial>> {
        self.events.state().denials.after(mark.denials, subjects)
    }

    /// Waits until no message can arrive any more for these subjects: those of requests and
    /// subscriptions after `mark`.
    pub(super) async fn interrupted<const N: usize>(
        &self,
        mark: Mark,
        subjects: [&str; N],
    ) -> Interruption {
        let interrupted = self.interrupted_within(mark, subjects, u64::MAX).await;
        interrupted.unwrap_or(Interruption::Lost)
    }

    /// Like [`interrupted`](Self::interrupted). Returns `None` after `crowd` denials, because the
    /// client may not have received all of them.
    pub(super) async fn interrupted_within<const N: usize>(
        &self,
        mark: Mark,
        subjects: [&str; N],
        crowd: u64,
    ) -> Option<Interruption> {
        let denial = |state: &LinkState| match state.no_answers() {
            Some(NoAnswers::Denied(denial)) => Some(denial),
            _ => state.denials.after(mark.denials, &subjects),
        };
        let is_lost = |state: &LinkState| {
            state.epoch != mark.epoch
                || state.over.is_some()
                || matches!(state.no_answers(), Some(NoAnswers::Crowded))
        };
        let is_crowded = |state: &LinkState| state.denials.count() - mark.denials >= crowd;
        let mut state = self.events.subscribe();
        let state = state
            .wait_for(|state| is_lost(state) || is_crowded(state) || denial(state).is_some())
            .await;
        // The sender lives in this struct, so that waiting does not fail.
        let Ok(state) = state else { return Some(Interruption::Lost) };
        match denial(&state) {
            Some(denial) => Some(Interruption::Denied(denial)),
            None => is_lost(&state).then_some(Interruption::Lost),
        }
    }

    /// Waits until the connection has broken or ended since `mark`.
    pub(super) async fn broken(&self, mark: Mark) {
        let is_broken = |state: &LinkState| state.epoch != mark.epoch || state.over.is_some();
        // The sender lives in this struct, so that waiting does not fail.
        let _ = self.events.subscribe().wait_for(is_broken).await;
    }

    /// Waits for a turn to check a right after many denials.
    pub(super) async fn turn_in_crowd(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed, so that waiting does not fail.
        self.crowd.acquire().await.ok()
    }
}

/// Returns 24 hexadecimal digits: 56 bits of the prefix, and 40 bits of the number, which a
/// connection does not exhaust. The width is constant, because the server counts headers. A full
/// bucket accepts a value of the same size only if the headers have not become longer.
fn operation_id(prefix: u64, number: u64) -> String {
    let id = u128::from(prefix >> 8) << 40 | u128::from(number & ((1 << 40) - 1));
    let digits = (0..24).rev().map(|digit| (id >> (4 * digit)) as usize % 16);
    digits.map(|digit| char::from(b"0123456789abcdef"[digit])).collect()
}

/// Returns the major and the minor version, with zeros for unreadable parts.
pub(super) fn parse_version(version: &str) -> (u64, u64) {
    let mut parts =
        version.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_and_have_one_width() {
        assert_eq!(operation_id(0xfedc_ba98_7654_3210, 0x12), "fedcba987654320000000012");
        let ids = [0, 1, 15, 16, u64::from(u32::MAX) + 1, (1 << 40) - 1];
        let ids: HashSet<_> = ids.map(|number| operation_id(u64::MAX, number)).into();
        assert!(ids.len() == 6 && ids.iter().all(|id| id.len() == 24));
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version("2.15.1"), (2, 15));
        assert_eq!(parse_version("v2.9.10-beta.1"), (2, 9));
        assert_eq!(parse_version(""), (0, 0));
        assert!(parse_version("2.10.26") >= (2, 10));
    }
}
