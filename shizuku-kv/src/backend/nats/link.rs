//! Requests that end: deadlines, reconnection, and the server's errors in our words.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::{
    Client, Event, Message, PublishError, ServerError, StatusCode, SubscribeError, Subscriber,
};
use backon::ExponentialBackoff;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::requests::{Copies, Requests};
use crate::store::timer::{sleep, sleep_until, timeout_at};
use crate::store::{Deadline, KvError, KvResult, backoff, in_runtime};

/// How often the state of the client is looked at beside its events, one of which can get lost when many come at once.
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
    /// Counts refusals for lack of permission.
    refusals: u64,
    /// The last refusals, the newest in front. Each names a subject, not a request.
    refused: VecDeque<Arc<str>>,
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
            None => self.closing.then_some(KvError::Closed { operation }),
        }
    }
}

/// Refusals that are kept: as many requests can be refused at the same time and all be told.
const REFUSALS: usize = 1024;

/// A moment on the link, before something was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    epoch: u64,
    refusals: u64,
}

/// Why no answer will come.
#[derive(Debug)]
pub(super) enum Interruption {
    /// The connection broke, or was closed: what was on its way may be lost.
    Lost,
    /// The server does not allow it.
    Refused(Arc<str>),
}

/// Receives the client's events.
#[derive(Clone, Debug)]
pub(super) struct LinkEvents(Arc<watch::Sender<LinkState>>);

impl LinkEvents {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(LinkState::default())))
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

    pub(super) fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                tracing::info!("connected to NATS");
                self.0.send_modify(|_| ());
            }
            Event::Disconnected => {
                tracing::warn!("disconnected from NATS");
                self.0.send_modify(|state| state.epoch += 1);
            }
            Event::ServerError(ServerError::Other(text)) => {
                tracing::warn!(error = %text, "NATS server error");
                if text.to_ascii_lowercase().contains("permissions violation") {
                    self.0.send_modify(|state| {
                        state.refusals += 1;
                        state.refused.push_front(text.as_str().into());
                        state.refused.truncate(REFUSALS);
                    });
                }
            }
            other => tracing::info!(event = %other, "NATS connection"),
        }
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

    /// The error in our words, for a request about a store.
    pub(super) fn into_error(self, operation: &'static str, store: &str) -> KvError {
        if self.err_code == Self::STREAM_NOT_FOUND {
            return KvError::StoreNotFound { store: store.to_owned() };
        }
        let Self { code, err_code, description } = self;
        let reason = format!("the server answered {code}: {description} ({err_code})");
        match code {
            401 | 403 => KvError::Unauthorized { operation, reason },
            503 | 408 => KvError::Unavailable { operation, reason, source: None },
            _ => KvError::Backend { operation, reason, source: None },
        }
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
    events: LinkEvents,
    operation_prefix: u64,
    operations: AtomicU64,
}

impl Link {
    pub(super) async fn open(client: Client, events: LinkEvents) -> Result<Self, SubscribeError> {
        let requests = Requests::open(&client, events.clone()).await?;
        Ok(Self {
            client,
            requests,
            events,
            // The standard library's hasher is keyed by the operating system's randomness.
            operation_prefix: RandomState::new().hash_one(std::process::id()),
            operations: AtomicU64::new(0),
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn requests(&self) -> &Requests {
        &self.requests
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

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
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
    pub(super) async fn up(&self, operation: &'static str, deadline: Deadline) -> KvResult<Mark> {
        let mark = self.mark(operation)?;
        if self.is_connected() {
            return Ok(mark);
        }
        self.come_up(operation, deadline).await
    }

    /// Returns this moment, unless no operation may begin any more.
    fn mark(&self, operation: &'static str) -> KvResult<Mark> {
        let state = self.events.0.borrow();
        match state.error(operation) {
            None => Ok(Mark { epoch: state.epoch, refusals: state.refusals }),
            Some(error) => Err(error),
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
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(KvError::Unavailable {
                    operation,
                    reason: format!(
                        "no connection to any of the servers within {:?}",
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

    /// Waits until what was sent to `subject` after `mark` will get no answer.
    pub(super) async fn interrupted(&self, mark: Mark, subject: &str) -> Interruption {
        let refusal = |state: &LinkState| {
            let new = usize::try_from(state.refusals - mark.refusals).unwrap_or(usize::MAX);
            let about_us = |text: &&Arc<str>| text.split('"').any(|part| part == subject);
            state.refused.iter().take(new).find(about_us).cloned()
        };
        let mut state = self.events.0.subscribe();
        let interrupted = state.wait_for(|state| {
            state.epoch != mark.epoch || state.over.is_some() || refusal(state).is_some()
        });
        match interrupted.await.as_deref().map(refusal) {
            Ok(Some(text)) => Interruption::Refused(text),
            // The sender lives in this very struct, so waiting does not fail.
            Ok(None) | Err(_) => Interruption::Lost,
        }
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

    /// A request to the JetStream API, `$JS.API.` before its subject, that may be sent again. Ends by the deadline.
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
        let subject = format!("$JS.API.{subject}");
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
                return Err(no_jetstream(operation));
            }
            let error = match answer? {
                Answer::Message(message) => {
                    match serde_json::from_slice(&message.payload).map_err(malformed)? {
                        ApiAnswer::Granted(answer) => return Ok(Ok(answer)),
                        ApiAnswer::Refused { error } => error,
                    }
                }
                Answer::NobodyThere => return Err(no_jetstream(operation)),
            };
            let pauses = pauses.get_or_insert_with(|| {
                backoff(Duration::from_millis(50), Duration::from_millis(500))
            });
            let pause = pauses.next().unwrap_or_default();
            if error.err_code != ApiError::NO_META_LEADER || deadline.remaining() <= pause {
                return Ok(Err(error));
            }
            // The cluster elects the leader for streams and consumers, which takes a moment.
            sleep(pause).await;
            asking.copies = Copies::default();
        }
    }
}

fn no_jetstream(operation: &'static str) -> KvError {
    KvError::Unavailable {
        operation,
        reason: "JetStream is not enabled, or does not answer: start the server with `-js` or a `jetstream {}` block, and \
                 enable it for the account"
            .to_owned(),
        source: None,
    }
}

/// Timeout for the answer to the first copy of a request, before another is sent: an eighth of the
/// deadline, so that the deadline has room for several.
///
/// A stream without a leader never answers a request, not even once it has one (5 to 8 s after a
/// leader was killed).
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
        let silence = (Instant::now() + patience).min(deadline.instant() + GRACE);
        loop {
            let mark = link.up(operation, deadline).await?;
            let ask = async {
                link.requests.ask(copies, subject.to_owned(), payload.clone()).await?;
                Ok::<_, PublishError>(copies.answer().await)
            };
            tokio::select! {
                biased;
                answer = ask => return match answer {
                    Ok(Some(message)) if has_no_responders(&message) => Ok(Some(Answer::NobodyThere)),
                    Ok(Some(message)) => Ok(Some(Answer::Message(message))),
                    Ok(None) => Err(link.over(operation).unwrap_or_else(|| KvError::Unavailable {
                        operation,
                        reason: "the connection ended before the answer came".to_owned(),
                        source: None,
                    })),
                    Err(error) => Err(link.not_sent(operation, "the request could not be sent", error)),
                },
                interruption = link.interrupted(mark, subject) => {
                    if let Interruption::Refused(text) = interruption {
                        return Err(KvError::Unauthorized { operation, reason: text.to_string() });
                    }
                    if is_single {
                        return Err(link.over(operation).unwrap_or_else(|| KvError::Unavailable {
                            operation,
                            reason: "the connection broke before the answer came, so that it may have happened".to_owned(),
                            source: None,
                        }));
                    }
                    // No earlier copy will be answered.
                    *copies = Copies::default();
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
