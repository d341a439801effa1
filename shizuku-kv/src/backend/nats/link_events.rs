//! The state of a connection, as the events of the client library report it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ClientError, Event, Server, ServerError};
use tokio::sync::watch;

use super::denials::{Denial, Denials};
use super::outage::Outage;
use super::pending::{PendingRequests, Size, Sizes};
use super::server_errors::{
    ConnectionFailure, LINE_TOO_LONG, MESSAGE_TOO_LARGE, TOO_MANY_SUBSCRIPTIONS, VIOLATION,
    ends_the_connection, too_many_subscriptions,
};
use super::space::ApiSpace;
use crate::store::KvError;

/// Interval of polling the state of the client, in addition to its events. An event can get lost
/// when many arrive at once.
pub(super) const STATE_POLL: Duration = Duration::from_millis(50);

/// State of a connection.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    /// Number of disconnections. A message that was sent in an earlier epoch may be lost.
    pub(super) epoch: u64,
    /// Whether the owner is shutting the connection down. Operations in flight may end, and no new
    /// one begins.
    pub(super) closing: bool,
    /// Reason why no operation on this connection can succeed any more.
    pub(super) over: Option<EndReason>,
    /// The denials that the server has reported. Each names a subject, not a request.
    pub(super) denials: Denials,
    /// Subject of the subscription to the answers of all requests.
    answers: Arc<str>,
    /// The denial of the subscription to answers, until the next reconnect.
    denied: Option<Arc<Denial>>,
    /// The last rejection of any subscription, until the next reconnect.
    rejected: Option<NoAnswers>,
    /// Whether the first request on this connection had no answer in time, and no other answer has
    /// arrived.
    is_silent: bool,
    /// Reason why the last attempt to connect failed. `None` while connected.
    pub(super) failure: Option<ConnectionFailure>,
    /// Number of subscriptions that were rejected because of a limit. The server does not name
    /// them.
    pub(super) surplus: u64,
    /// Number of connections that the server ended because of the length of a protocol line.
    pub(super) long_lines: u64,
    /// The subjects of the requests that the server may deny.
    space: ApiSpace,
    /// Number of connections that the server ended because of the size of a message.
    pub(super) oversized: u64,
    /// The sizes of the messages that were sent before the last of these ends. The server does not
    /// name the message.
    pub(super) sizes: Arc<Sizes>,
    /// Size that a message on this connection must not reach, because the last connection ended
    /// with it. `None` if the last connection ended in another way.
    pub(super) bound: Option<Size>,
    /// The bound of the next connection.
    next_bound: Option<Size>,
}

/// Reason why no answer can arrive on a connection.
#[derive(Clone, Debug)]
pub(super) enum NoAnswers {
    /// The user may not subscribe.
    Denied(Arc<Denial>),
    /// The connection has reached its limit of subscriptions. The subscription to answers may be
    /// the rejected one, because the client subscribes in an arbitrary order when it reconnects.
    Crowded,
}

impl NoAnswers {
    fn error(&self, operation: &'static str) -> KvError {
        match self {
            Self::Denied(denial) => denial.error(operation),
            Self::Crowded => too_many_subscriptions(operation),
        }
    }
}

/// Reason why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// The owner shut the connection down.
    ShutDown,
    /// The runtime that opened the connection has ended, together with the tasks that transfer its
    /// bytes.
    RuntimeEnded,
}

impl LinkState {
    /// Returns the error of an operation that begins now. Returns `None` if the operation may
    /// begin.
    pub(super) fn error(&self, operation: &'static str) -> Option<KvError> {
        match self.over {
            Some(EndReason::RuntimeEnded) => Some(KvError::NoRuntime {
                operation,
                reason: "the tokio runtime that opened this connection has ended; open the \
                         connection in the runtime that uses it",
            }),
            Some(EndReason::ShutDown) => Some(KvError::Closed { operation }),
            None if self.closing => Some(KvError::Closed { operation }),
            None => self.no_answers().map(|cause| cause.error(operation)),
        }
    }

    /// Returns the reason why no answer can arrive, or `None` if answers can arrive, as far as is
    /// known.
    ///
    /// The server does not name a subscription that is over the limit, and events get lost when
    /// many arrive at once. So a connection without any answer counts as one without the
    /// subscription to answers, if subscriptions were rejected on it.
    pub(super) fn no_answers(&self) -> Option<NoAnswers> {
        let denied = self.denied.clone().map(NoAnswers::Denied);
        denied.or_else(|| if self.is_silent { self.rejected.clone() } else { None })
    }

    fn deny(&mut self, denial: Denial) {
        let denial = Arc::new(denial);
        if denial.names(&[&self.answers]) {
            self.denied = Some(Arc::clone(&denial));
        }
        if let Denial::Subscribe(_) = *denial {
            self.rejected = Some(NoAnswers::Denied(Arc::clone(&denial)));
        }
        self.denials.add(denial);
    }
}

/// Receives the client's events.
#[derive(Clone, Debug)]
pub(super) struct LinkEvents {
    state: Arc<watch::Sender<LinkState>>,
    outage: Arc<Outage>,
    pending: Arc<PendingRequests>,
}

impl LinkEvents {
    pub(super) fn new() -> Self {
        let state = Arc::new(watch::Sender::new(LinkState::default()));
        Self { state, outage: Arc::default(), pending: Arc::default() }
    }

    /// Returns the requests that wait for answers.
    pub(super) fn pending(&self) -> &Arc<PendingRequests> {
        &self.pending
    }

    /// Returns the present state. Must not be held across an `await`.
    pub(super) fn state(&self) -> watch::Ref<'_, LinkState> {
        self.state.borrow()
    }

    /// Returns the present state and its later changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Returns the events from now on.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.state.subscribe())
    }

    /// Records the subjects of the JetStream that the connection uses.
    pub(super) fn uses_space(&self, space: &ApiSpace) {
        self.state.send_modify(|state| state.space = space.clone());
    }

    /// Records the client's list of servers before an attempt to connect.
    pub(super) fn attempted(&self, servers: &[Server]) {
        if let Some(failure) = self.outage.attempted(servers) {
            self.state.send_modify(|state| state.failure = Some(failure));
        }
    }

    /// Records that the server has answered on a new connection.
    pub(super) fn answered(&self, server: &str, version: &str) {
        self.outage.ended(server, version);
        self.state.send_modify(|state| state.failure = None);
    }

    /// Records that an answer has arrived.
    pub(super) fn heard(&self) {
        if self.state().is_silent {
            self.state.send_modify(|state| state.is_silent = false);
        }
    }

    /// Records that the first request had no answer in time.
    pub(super) fn silent(&self) {
        self.state.send_modify(|state| state.is_silent = true);
    }

    /// Returns the number of successive connections on which the server has not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.outage.unanswered()
    }

    /// Rejects later operations. Returns whether this was the first call.
    pub(super) fn begin_close(&self) -> bool {
        self.state.send_if_modified(|state| !std::mem::replace(&mut state.closing, true))
    }

    /// Ends the connection as shut down by its owner.
    pub(super) fn shut_down(&self) {
        self.state.send_modify(|state| state.over = Some(EndReason::ShutDown));
    }

    /// Ends the connection because the runtime of its tasks has ended, unless it was shut down
    /// before.
    pub(super) fn end_with_runtime(&self) {
        self.state.send_if_modified(|state| {
            let is_first = state.over.is_none();
            state.over.get_or_insert(EndReason::RuntimeEnded);
            is_first
        });
    }

    /// Records the subject of the subscription to answers, before the client subscribes.
    pub(super) fn answers_arrive_at(&self, subject: &str) {
        self.state.send_modify(|state| state.answers = subject.into());
    }

    pub(super) fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.outage.connected();
                self.state.send_modify(|_| ());
            }
            Event::Disconnected => {
                self.outage.began(None);
                self.state.send_modify(|state| {
                    state.epoch += 1;
                    state.bound = state.next_bound.take();
                    // The client subscribes again to every subject when it reconnects.
                    (state.denied, state.rejected, state.is_silent) = (None, None, false);
                });
            }
            Event::ServerError(ServerError::AuthorizationViolation) => self.lost(VIOLATION),
            Event::ServerError(ServerError::Other(text)) if ends_the_connection(text) => {
                self.lost(text)
            }
            Event::ClientError(ClientError::Other(text)) => {
                // Other errors are recorded by server, in `attempted`.
                if text.contains("DNS") {
                    let attempts =
                        vec![("a host".to_owned(), "no address was found for it".into())];
                    let failure = self.outage.failed(attempts);
                    self.state.send_modify(|state| state.failure = failure);
                }
            }
            Event::ServerError(ServerError::Other(text)) => self.server_error(text),
            other => tracing::info!(event = %other, "received a connection event"),
        }
    }

    /// Records an error after which the server keeps the connection, or ends it because of one
    /// message.
    fn server_error(&self, text: &str) {
        tracing::warn!(error = %text, "received an error of the NATS server");
        self.state.send_if_modified(|state| {
            let denial = Denial::parse(text, &state.space);
            denial.map(|denial| state.deny(denial)).is_some()
        });
        let text = text.to_ascii_lowercase();
        if text.contains(TOO_MANY_SUBSCRIPTIONS) {
            self.state.send_modify(|state| {
                state.surplus += 1;
                state.rejected = Some(NoAnswers::Crowded);
            });
        }
        if text.contains(MESSAGE_TOO_LARGE) {
            let (largest, sizes) = self.pending.sizes();
            self.state.send_modify(|state| {
                state.oversized += 1;
                state.next_bound = largest.into_iter().chain(state.bound).min();
                state.sizes = Arc::new(sizes);
            });
        }
        if text.contains(LINE_TOO_LONG) {
            self.state.send_modify(|state| state.long_lines += 1);
        }
    }

    /// Records the reason why the server ends the connection.
    fn lost(&self, text: &str) {
        self.outage.began(Some(text));
        let failure = ConnectionFailure::of_server(text);
        self.state.send_modify(|state| state.failure = Some(failure));
    }
}

/// Notifications of a link's events, without their content.
#[derive(Debug)]
pub(super) struct Changes(watch::Receiver<LinkState>);

impl Changes {
    /// Waits for the next event. Returns `false` if no event can follow. Cancel safe: the next call
    /// continues the wait.
    pub(super) async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}
