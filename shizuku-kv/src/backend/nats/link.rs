//! Requests that end: deadlines, reconnection, and the server's errors in our words.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::{
    Client, ClientError, Event, Message, PublishError, Server, ServerError, StatusCode,
    SubscribeError, Subscriber,
};
use backon::ExponentialBackoff;
use bytes::Bytes;
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use super::farewell::Consumers;
use super::refusals::{Detours, Refusal, Way};
use super::requests::{Copies, Requests, Size, Sizes, Table};
use super::session::{Outage, Session};
use super::space::ApiSpace;
use crate::store::timer::{sleep, sleep_until, timeout_at};
use crate::store::{Deadline, KvError, KvLimit, KvResult, backoff, in_runtime};

/// How often the state of the client is looked at beside its events, one of which can get lost when
/// many come at once.
const STATE_POLL: Duration = Duration::from_millis(50);

/// What the events of the client say.
#[derive(Clone, Debug, Default)]
struct LinkState {
    /// Counts disconnections: what was on its way in an earlier epoch may be lost.
    epoch: u64,
    /// The owner is shutting the connection down: what is on its way may end, nothing begins.
    closing: bool,
    /// The reason that no operation on this connection can succeed any more.
    over: Option<Over>,
    /// Number of denials that the server has reported.
    refusals: u64,
    /// The last denials, newest first. Each names a subject, not a request.
    refused: VecDeque<Arc<Refusal>>,
    /// Subject of the subscription to the answers of all requests.
    answers: Arc<str>,
    /// The denial of the subscription to answers, until the next reconnect.
    denied: Option<Arc<Refusal>>,
    /// The last rejection of any subscription, until the next reconnect.
    rejected: Option<Deaf>,
    /// The first request on this connection had no answer in time, and no other answer has arrived.
    is_silent: bool,
    /// Reason why the last attempt to connect failed; `None` while connected.
    trouble: Option<Trouble>,
    /// Number of subscriptions that were rejected because of a limit. The server does not name
    /// them.
    surplus: u64,
    /// Number of connections that the server ended because of the length of a protocol line.
    long_lines: u64,
    /// The subjects of the requests that the server may deny.
    space: ApiSpace,
    /// Number of connections that the server ended because of the size of a message.
    oversized: u64,
    /// The sizes that had been sent until then. The server does not name the message.
    sizes: Arc<Sizes>,
    /// Size that a message on this connection must not reach, because the last connection ended
    /// with it; `None` if the last connection ended in another way.
    bound: Option<Size>,
    /// The bound of the next connection.
    next_bound: Option<Size>,
}

/// Reason why no answer can arrive on a connection.
#[derive(Clone, Debug)]
enum Deaf {
    /// The user may not subscribe.
    Denied(Arc<Refusal>),
    /// The connection has reached its limit of subscriptions. Answers have one of them, and the
    /// client subscribes in an arbitrary order when it reconnects.
    Crowded,
}

impl Deaf {
    fn error(&self, operation: &'static str) -> KvError {
        match self {
            Self::Denied(refusal) => refusal.error(operation),
            Self::Crowded => too_many_subscriptions(operation),
        }
    }
}

/// Reason why a connection was lost, or why an attempt to connect failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) reason: Arc<str>,
    /// Whether the server rejected the credentials, or a file with credentials could not be used.
    pub(super) is_refusal: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// Its owner shut it down.
    ShutDown,
    /// The runtime that opened it has ended, together with the tasks that carry its bytes.
    RuntimeEnded,
}

impl LinkState {
    /// The error of an operation that begins now; `None` while it may begin.
    fn error(&self, operation: &'static str) -> Option<KvError> {
        match self.over {
            Some(Over::RuntimeEnded) => Some(KvError::NoRuntime {
                operation,
                reason: "the tokio runtime that opened this connection has ended; open the connection in the runtime \
                         that uses it",
            }),
            Some(Over::ShutDown) => Some(KvError::Closed { operation }),
            None if self.closing => Some(KvError::Closed { operation }),
            None => self.deaf().map(|deaf| deaf.error(operation)),
        }
    }

    /// Returns the reason why no answer can arrive; `None` if answers can arrive, as far as is
    /// known.
    ///
    /// The server does not name a subscription that is over the limit, and events get lost when
    /// many come at once. So a connection without any answer, on which subscriptions were rejected,
    /// counts as one without the subscription to answers.
    fn deaf(&self) -> Option<Deaf> {
        let denied = self.denied.clone().map(Deaf::Denied);
        denied.or_else(|| if self.is_silent { self.rejected.clone() } else { None })
    }

    /// Returns the first denial after `mark` that names one of these subjects.
    fn refusal(&self, mark: Mark, subjects: &[&str]) -> Option<Arc<Refusal>> {
        let new = usize::try_from(self.refusals - mark.refusals).unwrap_or(usize::MAX);
        self.refused.iter().take(new).find(|refusal| refusal.names(subjects)).cloned()
    }

    fn refuse(&mut self, refusal: Refusal) {
        let refusal = Arc::new(refusal);
        if refusal.names(&[&self.answers]) {
            self.denied = Some(Arc::clone(&refusal));
        }
        if let Refusal::Subscribe(_) = *refusal {
            self.rejected = Some(Deaf::Denied(Arc::clone(&refusal)));
        }
        self.refusals += 1;
        self.refused.push_front(refusal);
        self.refused.truncate(REFUSALS);
    }
}

/// Text of the server's error if a connection has reached its limit of subscriptions.
const TOO_MANY_SUBSCRIPTIONS: &str = "maximum subscriptions exceeded";

/// Text of the server's error before it ends a connection because a protocol line is too long.
const LINE_TOO_LONG: &str = "maximum control line exceeded";

/// Text of the server's error before it ends a connection because a message is too large.
const MESSAGE_TOO_LARGE: &str = "maximum payload violation";

/// Minimum length of a subject that can have made a protocol line too long. The server does not
/// name the line, and other requests in flight are sent again.
const LONG_SUBJECT: usize = 256;

/// Maximum number of stored denials. If more requests are denied at the same time, some of them do
/// not learn the reason.
const REFUSALS: usize = 1024;

/// Refusals in a row after which others may have been lost: the client library queues 128 events
/// of a connection, and drops the rest without a trace.
const CROWD: u64 = 100;

/// Number of requests and writes whose right is asked for at a time after a crowd of refusals. All
/// of their refusals have room among the events.
const TURNS_IN_CROWD: usize = 32;

/// Minimum time between two reconnects of a connection that receives no answers.
const RENEWAL: Duration = Duration::from_secs(1);

/// A moment on the link, before something was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    epoch: u64,
    refusals: u64,
    surplus: u64,
    long_lines: u64,
    oversized: u64,
}

/// Why no answer will come.
#[derive(Debug)]
pub(super) enum Interruption {
    /// The connection broke, was closed or receives no answers: what was on its way may be lost.
    Lost,
    /// The server denied the request, or the subscription to its answer.
    Refused(Arc<Refusal>),
}

/// Receives the client's events.
#[derive(Clone, Debug)]
pub(super) struct LinkEvents(Arc<watch::Sender<LinkState>>, Arc<Outage>, Arc<Table>);

impl LinkEvents {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(LinkState::default())), Arc::default(), Arc::default())
    }

    /// The requests that wait for answers.
    pub(super) fn table(&self) -> &Arc<Table> {
        &self.2
    }

    /// Records the client's list of servers before an attempt to connect.
    pub(super) fn attempted(&self, servers: &[Server]) {
        if let Some(trouble) = self.1.attempted(servers) {
            self.0.send_modify(|state| state.trouble = Some(trouble));
        }
    }

    /// Records that the server has answered.
    pub(super) fn answered(&self, server: &str, version: &str) {
        self.1.ended(server, version);
        self.0.send_modify(|state| state.trouble = None);
    }

    /// Records that an answer has arrived.
    pub(super) fn heard(&self) {
        if self.0.borrow().is_silent {
            self.0.send_modify(|state| state.is_silent = false);
        }
    }

    /// Number of connections in a row that the server ended before it had answered.
    pub(super) fn unanswered(&self) -> usize {
        self.1.unanswered()
    }

    /// The events from now on.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// Ends the connection with the tasks that carried it, unless it was shut down before.
    pub(super) fn end_with_runtime(&self) {
        self.end(Over::RuntimeEnded);
    }

    fn end(&self, over: Over) {
        self.0.send_if_modified(|state| {
            let is_first = state.over.is_none();
            state.over.get_or_insert(over);
            is_first
        });
    }

    /// Records the subject of the subscription to answers, before the client subscribes.
    pub(super) fn answers_come_to(&self, subject: &str) {
        self.0.send_modify(|state| state.answers = subject.into());
    }

    pub(super) fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.1.connected();
                self.0.send_modify(|_| ());
            }
            Event::Disconnected => {
                self.1.began(None);
                self.0.send_modify(|state| {
                    state.epoch += 1;
                    state.bound = state.next_bound.take();
                    // The client subscribes again to every subject when it reconnects.
                    (state.denied, state.rejected, state.is_silent) = (None, None, false);
                });
            }
            Event::ServerError(ServerError::AuthorizationViolation) => {
                self.lost("authorization violation");
            }
            Event::ServerError(ServerError::Other(text)) if ends_the_connection(text) => {
                self.lost(text)
            }
            Event::ClientError(ClientError::Other(text)) => {
                // Other errors are recorded by server, in `attempted`.
                if text.contains("DNS") {
                    let attempts =
                        vec![("a host".to_owned(), "no address was found for it".into())];
                    let trouble = self.1.failed(attempts);
                    self.0.send_modify(|state| state.trouble = trouble);
                }
            }
            Event::ServerError(ServerError::Other(text)) => {
                tracing::warn!(error = %text, "NATS server error");
                self.0.send_if_modified(|state| {
                    let refusal = Refusal::parse(text, &state.space);
                    refusal.map(|refusal| state.refuse(refusal)).is_some()
                });
                if text.to_ascii_lowercase().contains(TOO_MANY_SUBSCRIPTIONS) {
                    self.0.send_modify(|state| {
                        state.surplus += 1;
                        state.rejected = Some(Deaf::Crowded);
                    });
                }
                if text.to_ascii_lowercase().contains(MESSAGE_TOO_LARGE) {
                    let (largest, sizes) = self.2.sizes();
                    self.0.send_modify(|state| {
                        state.oversized += 1;
                        state.next_bound = largest.into_iter().chain(state.bound).min();
                        state.sizes = Arc::new(sizes);
                    });
                }
                if text.to_ascii_lowercase().contains(LINE_TOO_LONG) {
                    self.0.send_modify(|state| state.long_lines += 1);
                }
            }
            other => tracing::info!(event = %other, "NATS connection"),
        }
    }

    /// Records the reason why the server ends the connection.
    fn lost(&self, text: &str) {
        self.1.began(Some(text));
        let is_refusal = is_refusal(text);
        let mut reason = format!("the server ended the connection ({text})");
        if is_refusal {
            reason = format!("{reason}: the credentials are rejected; {RENEW}");
        }
        self.0.send_modify(|state| {
            state.trouble = Some(Trouble { reason: reason.into(), is_refusal })
        });
    }
}

/// Notifications of a link's events, without their content.
#[derive(Debug)]
pub(super) struct Changes(watch::Receiver<LinkState>);

impl Changes {
    /// Waits for the next event. Returns `false` if no event can follow. Cancel safe.
    pub(super) async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// The way out if credentials are rejected that a server has accepted before.
pub(super) const RENEW: &str = "renew them, or restore the user on the server";

const VIOLATION: &str = "authorization violation";

/// Returns the words about credentials in an error of the server, or of an attempt to connect.
pub(super) fn refusal_in(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    [
        "failed signing nonce",
        "authentication expired",
        "authentication revoked",
        "authentication timeout",
        VIOLATION,
    ]
    .into_iter()
    .find(|words| text.contains(words))
}

/// Returns the words of a refusal in brackets, if they say more than that there is one.
pub(super) fn details_of(refusal: &str) -> String {
    if refusal == VIOLATION { String::new() } else { format!(" ({refusal})") }
}

/// Whether an error of the server, or of an attempt to connect, is about credentials.
pub(super) fn is_refusal(text: &str) -> bool {
    refusal_in(text).is_some()
}

/// Whether the server closes the connection after this error.
fn ends_the_connection(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    is_refusal(text)
        || lower.contains("maximum connections")
        || lower.contains("active connections")
}

fn too_many_subscriptions(operation: &'static str) -> KvError {
    KvError::LimitReached {
        operation,
        limit: KvLimit::Subscriptions,
        reason: format!(
            "the server answered {TOO_MANY_SUBSCRIPTIONS:?}; drop other watches and listings, or raise \
             max_subscriptions of the server or the account"
        ),
    }
}

/// An error of the JetStream API.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ApiError {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl ApiError {
    pub(super) const NO_META_LEADER: u64 = 10008;
    pub(super) const MESSAGE_NOT_FOUND: u64 = 10037;
    pub(super) const STREAM_NOT_FOUND: u64 = 10059;
    pub(super) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(super) const STREAM_UPDATE_REFUSED: u64 = 10052;

    /// Whether JetStream is not enabled, for the account or for the server.
    pub(super) fn is_not_enabled(&self) -> bool {
        matches!(self.err_code, 10039 | 10076)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ApiAnswer<T> {
    Refused { error: ApiError },
    Granted(T),
}

/// What came back from a request.
#[derive(Debug)]
pub(super) enum Answer {
    Message(Message),
    /// Nobody listens on the subject: no such stream, or one that has no leader at the moment.
    NobodyThere,
}

/// The client with everything that makes its requests end.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    requests: Requests,
    consumers: Consumers,
    events: LinkEvents,
    pub(super) session: Session,
    space: ApiSpace,
    operation_prefix: u64,
    operations: AtomicU64,
    detours: Detours,
    /// Locked by the operation that reconnects because no answers arrive; the time of the last
    /// reconnect.
    renewal: tokio::sync::Mutex<Option<Instant>>,
    /// Limits the questions after a crowd of refusals.
    crowd: Semaphore,
}

impl Link {
    pub(super) async fn open(
        client: Client,
        events: LinkEvents,
        space: ApiSpace,
    ) -> Result<Arc<Self>, SubscribeError> {
        events.0.send_modify(|state| state.space = space.clone());
        let requests = Requests::open(&client, events.clone()).await?;
        let link = Arc::new(Self {
            session: Session::new(&client),
            client,
            requests,
            consumers: Consumers::default(),
            events: events.clone(),
            space,
            // The standard library's hasher is keyed by the operating system's randomness.
            operation_prefix: RandomState::new().hash_one(std::process::id()),
            operations: AtomicU64::new(0),
            detours: Detours::default(),
            renewal: tokio::sync::Mutex::default(),
            crowd: Semaphore::new(TURNS_IN_CROWD),
        });
        link.session.start(Arc::downgrade(&link), events);
        Ok(link)
    }

    /// The subjects of the JetStream that this connection uses.
    pub(super) fn space(&self) -> &ApiSpace {
        &self.space
    }

    /// Returns the reason why the connection is down, if it is down and the reason is known.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.events.0.borrow().trouble.clone().filter(|_| !self.is_connected())
    }

    /// Waits for the server's first answer on a new connection.
    ///
    /// # Errors
    /// Returns [`KvError::Unauthorized`] or [`KvError::Unavailable`] if the server ends the
    /// connection instead, and the denial if the server denies the subscription to answers.
    pub(super) async fn first_answer(&self, operation: &'static str) -> KvResult<()> {
        let mut state = self.events.0.subscribe();
        loop {
            state.mark_unchanged();
            if self.is_connected() {
                return self.mark(operation).map(|_| ());
            }
            if let Some(trouble) = self.trouble() {
                return Err(trouble.into_error(operation));
            }
            let _ = timeout_at(Instant::now() + STATE_POLL, state.changed()).await;
        }
    }

    /// Sends a request that every user may send. Waits for its answer, for a denial of the request
    /// or of the subscription to its answer, or until `patience` has passed. Returns whether the
    /// connection still exists.
    ///
    /// A denial of the subscription to answers arrives before any answer, because a server
    /// processes the messages of a client in order.
    pub(super) async fn probe(&self, patience: Duration) -> bool {
        let mark = match self.mark("connect") {
            Ok(mark) => mark,
            Err(_) => return !self.is_hearing(),
        };
        let subject = self.space.api("INFO");
        let mut copies = Copies::default();
        let ask = async {
            match self.requests.ask(&mut copies, subject.clone(), Bytes::new()).await {
                Ok(()) => copies.answer().await.is_some(),
                Err(_) => false,
            }
        };
        tokio::select! {
            biased;
            answered = ask => return answered,
            interruption = self.interrupted(mark, [&subject]) => {
                return matches!(interruption, Interruption::Refused(_));
            }
            () = sleep(patience) => {}
        }
        self.events.0.send_modify(|state| state.is_silent = true);
        // An answer that arrived before that line.
        if let Some(Some(_)) = copies.answer().now_or_never() {
            self.events.heard();
        }
        // A cluster that has lost its majority does not answer, but its streams may.
        true
    }

    /// Whether the server has denied this form of request for a stream on the current connection.
    pub(super) fn is_closed_way(&self, way: Way, stream: &str) -> bool {
        self.detours.is_closed(way, stream, self.events.0.borrow().epoch)
    }

    /// Skips this form of request from now on, until it is opened or the next reconnect.
    pub(super) fn close_way(&self, way: Way, stream: &str) {
        let epoch = self.events.0.borrow().epoch;
        self.detours.close(way, stream, epoch);
    }

    /// Uses this form of request again.
    pub(super) fn open_way(&self, way: Way, stream: &str) {
        self.detours.open(way, stream);
    }

    /// Returns the denial of one of these subjects, if the server has reported it since `mark`.
    pub(super) fn refused(&self, mark: Mark, subjects: &[&str]) -> Option<Arc<Refusal>> {
        self.events.0.borrow().refusal(mark, subjects)
    }

    /// Maximum size in bytes of a message with its headers that every server on the way accepts, as
    /// far as is known.
    ///
    /// A server tells its own limit when a client connects, and never tells the limit of an
    /// account. After it has ended a connection because of a message, the sizes from the largest
    /// message on are known to be too large.
    pub(super) fn max_payload(&self) -> usize {
        let told = self.client.max_payload().saturating_sub(self.space.overhead());
        self.bound().map_or(told, |bound| told.min(bound.saturating_sub(1)))
    }

    /// Size of a payload that is too large, unless the server has told a limit that explains why
    /// the last connection ended.
    fn bound(&self) -> Option<usize> {
        let bound = self.events.0.borrow().bound?;
        // The headers of the message do not count, so that it is not sent again without the
        // optional ones.
        (bound.whole <= self.client.max_payload()).then_some(bound.payload)
    }

    /// Maximum size in bytes of a request that can be split. If a bound is all that is known, this
    /// is half of it, so that few connections end until the limit is respected.
    pub(super) fn max_request(&self) -> usize {
        self.bound().map_or(usize::MAX, |bound| bound / 2).min(self.max_payload())
    }

    /// Returns the error of a write that was in flight when the connection broke, if the server has
    /// ended the connection because of the size of a message, possibly of this one.
    pub(super) fn oversized(&self, operation: &'static str, mark: Mark) -> Option<KvError> {
        (self.events.0.borrow().oversized != mark.oversized).then(|| KvError::LimitReached {
            operation,
            limit: KvLimit::MessageSize,
            reason: format!(
                "the server answered {MESSAGE_TOO_LARGE:?} and ended the connection; write smaller values, or raise \
                 max_payload of the server or the account"
            ),
        })
    }

    /// Whether the server has certainly not taken this message, which is larger than it accepts:
    /// the server ended the connection because of this message or an earlier one. An earlier
    /// message may have been accepted before the limit was lowered.
    pub(super) fn is_rejected_for_size(&self, number: u64) -> bool {
        let limit = self.max_payload();
        self.events.0.borrow().sizes.is_last_over(number, limit)
    }

    /// The error of a request that is larger than the server accepts.
    fn request_too_large(&self, operation: &'static str) -> KvError {
        KvError::LimitReached {
            operation,
            limit: KvLimit::MessageSize,
            reason: format!(
                "the request is larger than the server accepts, {} bytes: name fewer or shorter keys, or raise \
                 max_payload of the server or the account",
                self.max_payload()
            ),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }

    pub(super) fn consumers(&self) -> &Consumers {
        &self.consumers
    }

    /// Waits until the connection is over.
    pub(super) async fn closed(&self) {
        // The sender lives in this very struct, so waiting does not fail.
        let _ = self.events.0.subscribe().wait_for(|state| state.over.is_some()).await;
    }

    /// Lets nothing begin any more. Whether this was the first to do so.
    pub(super) fn begin_close(&self) -> bool {
        self.events.0.send_if_modified(|state| !std::mem::replace(&mut state.closing, true))
    }

    /// Ends what is still on its way.
    pub(super) fn close(&self) {
        // In this order, so that whoever finds that no answer will come also finds why.
        self.events.0.send_modify(|state| state.over = Some(Over::ShutDown));
        self.requests.end();
    }

    /// Whether the connection is up: the server has answered on it. The client reports a
    /// connection earlier, one to three times before a server rejects credentials that have
    /// just expired.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected && self.session.is_answered()
    }

    /// Whether answers can arrive: the server has not rejected the subscription to them.
    pub(super) fn is_hearing(&self) -> bool {
        self.events.0.borrow().deaf().is_none()
    }

    /// Whether every operation on this connection fails from now on.
    pub(super) fn is_over(&self) -> bool {
        self.events.0.borrow().over.is_some()
    }

    /// The error of an operation if the connection is over; `None` while it is not.
    pub(super) fn over(&self, operation: &'static str) -> Option<KvError> {
        let state = self.events.0.borrow();
        state.over.and_then(|_| state.error(operation))
    }

    /// The error of a request that the client did not accept.
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
            // Its task has ended. So has ours, or will in a moment.
            self.events.end_with_runtime();
        }
        self.over(operation).unwrap_or_else(|| KvError::Unavailable {
            operation,
            reason: reason.to_owned(),
            source: Some(Arc::new(error)),
        })
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
                reason: "the subscription could not be made".to_owned(),
                source: Some(Arc::new(error)),
            })
        })
    }

    /// An id that no other operation of any client has.
    pub(super) fn next_id(&self) -> String {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        // Of constant width: the server counts headers, so a full bucket accepts a value of the
        // same size only if the headers have not become longer.
        format!("{:016x}{number:08x}", self.operation_prefix)
    }

    /// Whether the server is at least of this version; one that cannot be read counts as old.
    pub(super) fn server_is_at_least(&self, major: u64, minor: u64) -> bool {
        parse_version(&self.client.server_info().version) >= (major, minor)
    }

    /// Waits for the connection to be up.
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

    /// Returns this moment, unless no operation may begin any more.
    pub(super) fn mark(&self, operation: &'static str) -> KvResult<Mark> {
        let state = self.events.0.borrow();
        match state.error(operation) {
            None => Ok(Mark {
                epoch: state.epoch,
                refusals: state.refusals,
                surplus: state.surplus,
                long_lines: state.long_lines,
                oversized: state.oversized,
            }),
            Some(error) => Err(error),
        }
    }

    /// Reconnects, unless the last reconnect was a moment ago.
    async fn renew(&self) {
        let Ok(mut last) = self.renewal.try_lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= RENEWAL) {
            *last = Some(Instant::now());
            // This fails only if the client's task has ended.
            let _ = self.client.force_reconnect().await;
        }
    }

    async fn come_up(&self, operation: &'static str, deadline: Deadline) -> KvResult<Mark> {
        in_runtime(operation)?;
        let mut state = self.events.0.subscribe();
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
                    .trouble()
                    .map_or_else(String::new, |trouble| format!(": {}", trouble.reason));
                return Err(KvError::Unavailable {
                    operation,
                    reason: format!(
                        "no connection to any of the servers within {:?}{why}",
                        deadline.limit()
                    ),
                    source: None,
                });
            }
            // Either is a reason to look again.
            let _ = timeout_at(Instant::now() + left.min(STATE_POLL), state.changed()).await;
        }
    }

    /// Whether the connection has not broken since then.
    pub(super) fn is_unbroken(&self, mark: Mark) -> bool {
        self.is_connected() && self.events.0.borrow().epoch == mark.epoch
    }

    /// Reports a rejection to all subscriptions since that moment, because the server does not name
    /// the rejected one.
    ///
    /// The answer to a later request shows that the server has processed them.
    ///
    /// # Errors
    /// Returns [`KvError::LimitReached`] if the connection has reached its limit of subscriptions.
    pub(super) fn ensure_subscribed(&self, operation: &'static str, mark: Mark) -> KvResult<()> {
        if self.events.0.borrow().surplus == mark.surplus {
            return Ok(());
        }
        Err(too_many_subscriptions(operation))
    }

    /// Returns the error of a request that was in flight when the connection broke, if its protocol
    /// line can have been too long.
    pub(super) fn too_long(
        &self,
        operation: &'static str,
        subject: &str,
        mark: Mark,
    ) -> Option<KvError> {
        let is_suspect =
            subject.len() > LONG_SUBJECT && self.events.0.borrow().long_lines != mark.long_lines;
        is_suspect.then(|| KvError::LimitReached {
            operation,
            limit: KvLimit::LineLength,
            reason: format!(
                "the server answered {LINE_TOO_LONG:?} and ended the connection; use shorter keys, or raise \
                 max_control_line of the server"
            ),
        })
    }

    /// Waits until no message can arrive any more for these subjects: those of requests and
    /// subscriptions after `mark`.
    pub(super) async fn interrupted<const N: usize>(
        &self,
        mark: Mark,
        subjects: [&str; N],
    ) -> Interruption {
        self.interrupted_within(mark, subjects, u64::MAX).await.unwrap_or(Interruption::Lost)
    }

    /// The same. Returns `None` after so many refusals that the client may not have been told of
    /// all.
    pub(super) async fn interrupted_or_crowded<const N: usize>(
        &self,
        mark: Mark,
        subjects: [&str; N],
    ) -> Option<Interruption> {
        self.interrupted_within(mark, subjects, CROWD).await
    }

    async fn interrupted_within<const N: usize>(
        &self,
        mark: Mark,
        subjects: [&str; N],
        crowd: u64,
    ) -> Option<Interruption> {
        let refusal = |state: &LinkState| match state.deaf() {
            Some(Deaf::Denied(refusal)) => Some(refusal),
            _ => state.refusal(mark, &subjects),
        };
        let is_lost = |state: &LinkState| {
            state.epoch != mark.epoch
                || state.over.is_some()
                || matches!(state.deaf(), Some(Deaf::Crowded))
        };
        let is_crowded = |state: &LinkState| state.refusals - mark.refusals >= crowd;
        let mut state = self.events.0.subscribe();
        let state = state
            .wait_for(|state| is_lost(state) || is_crowded(state) || refusal(state).is_some())
            .await;
        // The sender lives in this very struct, so waiting does not fail.
        let Ok(state) = state else { return Some(Interruption::Lost) };
        match refusal(&state) {
            Some(refusal) => Some(Interruption::Refused(refusal)),
            None => is_lost(&state).then_some(Interruption::Lost),
        }
    }

    /// Waits for a turn to ask for a right after a crowd of refusals.
    pub(super) async fn turn_in_crowd(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed, so waiting does not fail.
        self.crowd.acquire().await.ok()
    }

    /// A request that may be repeated, because it changes nothing or is idempotent.
    pub(super) fn asking<'a>(
        &'a self,
        operation: &'static str,
        subject: &'a str,
        payload: Bytes,
        deadline: Deadline,
    ) -> Asking<'a> {
        Asking {
            link: self,
            operation,
            subject,
            payload,
            deadline,
            copies: Copies::default(),
            is_single: false,
        }
    }

    /// Sends a request to the JetStream API that may be repeated, with the API prefix before the
    /// subject. Ends by the deadline.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
    ) -> KvResult<Result<T, ApiError>> {
        self.ask_api(operation, subject, payload, deadline, false).await
    }

    /// A request to the JetStream API whose late copy would do harm: no copy is sent while another
    /// may be in flight.
    pub(super) async fn api_once<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
    ) -> KvResult<Result<T, ApiError>> {
        self.ask_api(operation, subject, payload, deadline, true).await
    }

    async fn ask_api<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
        is_single: bool,
    ) -> KvResult<Result<T, ApiError>> {
        let malformed = |source: serde_json::Error| KvError::Backend {
            operation,
            reason: format!(
                "the answer to {subject} cannot be read: {:?} at line {} column {}",
                source.classify(),
                source.line(),
                source.column()
            ),
            source: None,
        };
        let payload = serde_json::to_vec(payload).map_err(malformed)?;
        let subject = self.space.api(subject);
        let mut asking =
            Asking { is_single, ..self.asking(operation, &subject, payload.into(), deadline) };
        let mut pauses: Option<ExponentialBackoff> = None;
        loop {
            let answer = asking.answer().await;
            if matches!(answer, Err(KvError::Timeout { .. }))
                && !self.client.server_info().jetstream
            {
                // While a client subscribes to everything, the server does not report "no
                // responders".
                return Err(self.no_jetstream(operation));
            }
            let error = match answer? {
                Answer::Message(message) => {
                    match serde_json::from_slice(&message.payload).map_err(malformed)? {
                        ApiAnswer::Granted(answer) => return Ok(Ok(answer)),
                        ApiAnswer::Refused { error } => error,
                    }
                }
                Answer::NobodyThere => return Err(self.no_jetstream(operation)),
            };
            let pauses = pauses.get_or_insert_with(|| {
                backoff(Duration::from_millis(50), Duration::from_millis(500))
            });
            let pause = pauses.next().unwrap_or_default();
            if !error.is_passing() || deadline.remaining() <= pause {
                return Ok(Err(error));
            }
            // The cluster is electing its meta leader, or the server is overloaded.
            sleep(pause).await;
            asking.copies = Copies::default();
        }
    }

    /// Returns the error of a request that no JetStream has received.
    fn no_jetstream(&self, operation: &'static str) -> KvError {
        KvError::Unavailable { operation, reason: self.space.no_answer(), source: None }
    }
}

impl Trouble {
    pub(super) fn into_error(self, operation: &'static str) -> KvError {
        let reason = self.reason.to_string();
        match self.is_refusal {
            true => KvError::Unauthorized { operation, reason },
            false => KvError::Unavailable { operation, reason, source: None },
        }
    }
}

/// Timeout for the answer to the first copy of a request, before another is sent: an eighth of the
/// deadline, so that the deadline has room for several.
///
/// A stream without a leader never answers a request, not even once it has one (5 to 8 s after a
/// leader was killed) (ADR 0059).
pub(super) fn first_patience(deadline: Deadline) -> Duration {
    (deadline.limit() / 8).clamp(Duration::from_millis(100), Duration::from_secs(1))
}

/// Timeout for the answer to later copies of a request. Jittered, because all clients lost the
/// leader at the same moment.
fn later_patience(deadline: Deadline) -> ExponentialBackoff {
    let first = first_patience(deadline) * 2;
    backoff(first, (deadline.limit() / 4).clamp(first, Duration::from_secs(2)))
}

/// Time by which a request outlives its deadline, so that its caller, which knows the key, times
/// out first.
const GRACE: Duration = Duration::from_millis(20);

/// A request in flight, in as many copies as it takes to get an answer. Dropping it abandons the
/// request.
pub(super) struct Asking<'a> {
    link: &'a Link,
    operation: &'static str,
    subject: &'a str,
    payload: Bytes,
    deadline: Deadline,
    copies: Copies,
    /// Sends no second copy while a first may be in flight.
    is_single: bool,
}

impl Asking<'_> {
    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    /// Sends copies until one is answered, each after the one before has had a part of the
    /// deadline.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`] if the deadline passed.
    pub(super) async fn answer(&mut self) -> KvResult<Answer> {
        let mut patience = if self.is_single {
            self.deadline.remaining() + GRACE
        } else {
            first_patience(self.deadline)
        };
        let mut later: Option<ExponentialBackoff> = None;
        loop {
            if let Some(answer) = self.attempt(patience).await? {
                return Ok(answer);
            }
            if self.deadline.remaining().is_zero() {
                return Err(self.deadline.timeout(self.operation, None));
            }
            let later = later.get_or_insert_with(|| later_patience(self.deadline));
            patience = later.next().unwrap_or(patience);
        }
    }

    /// Sends one copy, again if the connection breaks, and waits for an answer to any of them.
    /// Returns `None` if the time has passed.
    pub(super) async fn attempt(&mut self, patience: Duration) -> KvResult<Option<Answer>> {
        let Self { link, operation, subject, ref payload, deadline, ref mut copies, is_single } =
            *self;
        in_runtime(operation)?;
        let received = |answer: Option<Message>| match answer {
            Some(message) if has_no_responders(&message) => Ok(Some(Answer::NobodyThere)),
            Some(message) => Ok(Some(Answer::Message(message))),
            None => Err(link.over(operation).unwrap_or_else(|| KvError::Unavailable {
                operation,
                reason: "the connection ended before the answer came".to_owned(),
                source: None,
            })),
        };
        let until = |patience| (Instant::now() + patience).min(deadline.instant() + GRACE);
        let mut silence = until(patience);
        // A copy that asks for the right after a crowd of refusals, and the turn to send it.
        let (mut question, mut turn) = (Copies::default(), None);
        let crowd = if is_single { u64::MAX } else { CROWD };
        loop {
            let mark = link.up(operation, deadline).await?;
            if link.bound().is_some_and(|bound| payload.len() >= bound) {
                return Err(link.request_too_large(operation));
            }
            let ask = async {
                let copy = if turn.is_some() { &mut question } else { &mut *copies };
                link.requests.ask(copy, subject.to_owned(), payload.clone()).await?;
                Ok::<_, PublishError>(tokio::select! {
                    biased;
                    answer = copies.answer() => answer,
                    answer = question.answer() => answer,
                })
            };
            tokio::select! {
                biased;
                answer = ask => return match answer {
                    Ok(answer) => received(answer),
                    Err(error) => Err(link.not_sent(operation, "the request could not be sent", error)),
                },
                interruption = link.interrupted_within(mark, [subject], crowd) => {
                    if let Some(Interruption::Refused(refusal)) = interruption {
                        return Err(refusal.error(operation));
                    }
                    if interruption.is_none() {
                        // The client may not have been told of the refusal, so silence proves
                        // nothing before the turn.
                        drop(turn.take());
                        question = Copies::default();
                        // Boxed, since it is rare.
                        let next = Box::pin(async {
                            tokio::select! {
                                biased;
                                answer = copies.answer() => Err(received(answer)),
                                next = link.turn_in_crowd() => Ok(next),
                                () = sleep_until(deadline.instant() + GRACE) => Err(Ok(None)),
                            }
                        });
                        match next.await {
                            Ok(next) => turn = next,
                            Err(done) => return done,
                        }
                        silence = until(patience);
                        continue;
                    }
                    if let Some(error) = link.too_long(operation, subject, mark) {
                        return Err(error);
                    }
                    if is_single {
                        return Err(link.over(operation).unwrap_or_else(|| KvError::Unavailable {
                            operation,
                            reason: "the connection broke before the answer came, so that it may have happened".to_owned(),
                            source: None,
                        }));
                    }
                    // No earlier copy will be answered.
                    (*copies, question, turn) = (Copies::default(), Copies::default(), None);
                }
                () = sleep_until(silence) => return Ok(None),
            }
        }
    }
}

/// Whether the server says that nobody listens on the subject of a request.
pub(super) fn has_no_responders(answer: &Message) -> bool {
    answer.status == Some(StatusCode::NO_RESPONDERS)
}

/// Major and minor version; zeros for what is none.
pub(super) fn parse_version(version: &str) -> (u64, u64) {
    let mut parts =
        version.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("2.15.1"), (2, 15));
        assert_eq!(parse_version("v2.9.10-beta.1"), (2, 9));
        assert_eq!(parse_version(""), (0, 0));
        assert!(parse_version("2.10.26") >= (2, 10));
    }
}
