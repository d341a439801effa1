//! Requests that end: deadlines, reconnection, and the server's errors in our words.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Event, Message, ServerError, StatusCode, SubscribeError};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::requests::Requests;
use crate::store::{Deadline, ErrorSource, KvError, KvResult};

/// How often the state of the client is looked at beside its events, one of which can get lost when many come at once.
const STATE_POLL: Duration = Duration::from_millis(50);

/// What the events of the client say.
#[derive(Clone, Debug, Default)]
struct LinkState {
    /// Counts disconnections: what was on its way in an earlier epoch may be lost.
    epoch: u64,
    /// The owner is shutting the connection down: what is on its way may end, nothing begins.
    closing: bool,
    /// The connection is shut down.
    closed: bool,
    /// Counts refusals for lack of permission.
    refusals: u64,
    /// The last refusals, the newest in front. Each names a subject, not a request.
    refused: VecDeque<Arc<str>>,
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
        let requests = Requests::open(&client).await?;
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

    /// Waits until the connection is shut down.
    pub(super) async fn closed(&self) {
        // The sender lives in this very struct, so waiting does not fail.
        let _ = self.events.0.subscribe().wait_for(|state| state.closed).await;
    }

    /// Lets nothing begin any more. Whether this was the first to do so.
    pub(super) fn begin_close(&self) -> bool {
        self.events.0.send_if_modified(|state| !std::mem::replace(&mut state.closing, true))
    }

    /// Ends what is still on its way.
    pub(super) fn close(&self) {
        // In this order, so that whoever finds that no answer will come also finds why.
        self.events.0.send_modify(|state| state.closed = true);
        self.requests.end();
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    pub(super) fn is_closed(&self) -> bool {
        self.events.0.borrow().closed
    }

    /// An id that no other operation of any client has.
    pub(super) fn next_id(&self) -> String {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        // Of one width: the server counts headers, so that a bucket that is full takes a value of
        // the same size only if they have not become longer.
        format!("{:016x}{number:08x}", self.operation_prefix)
    }

    /// Whether the server is at least of this version; one that cannot be read counts as old.
    pub(super) fn server_is_at_least(&self, major: u64, minor: u64) -> bool {
        parse_version(&self.client.server_info().version) >= (major, minor)
    }

    /// Waits for the connection to be up.
    pub(super) async fn up(&self, operation: &'static str, deadline: Deadline) -> KvResult<Mark> {
        let (mark, closing) = self.mark();
        if closing {
            return Err(KvError::Closed { operation });
        }
        if self.is_connected() {
            return Ok(mark);
        }
        self.come_up(operation, deadline).await
    }

    fn mark(&self) -> (Mark, bool) {
        let state = self.events.0.borrow();
        (Mark { epoch: state.epoch, refusals: state.refusals }, state.closing)
    }

    async fn come_up(&self, operation: &'static str, deadline: Deadline) -> KvResult<Mark> {
        let mut state = self.events.0.subscribe();
        loop {
            state.mark_unchanged();
            let (mark, closing) = self.mark();
            if closing {
                return Err(KvError::Closed { operation });
            }
            if self.is_connected() {
                return Ok(mark);
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(KvError::Unavailable {
                    operation,
                    reason: format!("no connection to any of the servers within {:?}", deadline.limit()),
                    source: None,
                });
            }
            // Either is a reason to look again.
            let _ = tokio::time::timeout(left.min(STATE_POLL), state.changed()).await;
        }
    }

    /// Waits until what was sent to `subject` after `mark` will get no answer.
    pub(super) async fn interrupted(&self, mark: Mark, subject: &str) -> Interruption {
        let refusal = |state: &LinkState| {
            let new = usize::try_from(state.refusals - mark.refusals).unwrap_or(usize::MAX);
            let about_us = |text: &&Arc<str>| text.split('"').any(|part| part == subject);
            state.refused.iter().take(new).find(about_us).cloned()
        };
        let mut state = self.events.0.subscribe();
        let interrupted =
            state.wait_for(|state| state.epoch != mark.epoch || state.closed || refusal(state).is_some());
        match interrupted.await.as_deref().map(refusal) {
            Ok(Some(text)) => Interruption::Refused(text),
            // The sender lives in this very struct, so waiting does not fail.
            Ok(None) | Err(_) => Interruption::Lost,
        }
    }

    /// A request that may be sent again when the connection breaks, since it changes nothing. Waits for an answer as
    /// long as it is polled: the deadline is the caller's, who has a timer for it already.
    pub(super) async fn request(
        &self,
        operation: &'static str,
        subject: &str,
        payload: Bytes,
        deadline: Deadline,
    ) -> KvResult<Answer> {
        loop {
            let mark = self.up(operation, deadline).await?;
            let ask = async {
                match self.requests.ask(subject.to_owned(), payload.clone()).await {
                    Ok(waiting) => Ok(waiting.await),
                    Err(error) => Err(error),
                }
            };
            tokio::select! {
                biased;
                answer = ask => {
                    let (reason, source) = match answer {
                        Ok(Some(message)) if has_no_responders(&message) => return Ok(Answer::NobodyThere),
                        Ok(Some(message)) => return Ok(Answer::Message(message)),
                        _ if self.is_closed() => return Err(KvError::Closed { operation }),
                        Ok(None) => ("the connection ended before the answer came", None),
                        Err(error) => ("the request could not be sent", Some(Arc::new(error) as ErrorSource)),
                    };
                    return Err(KvError::Unavailable { operation, reason: reason.to_owned(), source });
                }
                interruption = self.interrupted(mark, subject) => {
                    if let Interruption::Refused(text) = interruption {
                        return Err(KvError::Unauthorized { operation, reason: text.to_string() });
                    }
                }
            }
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
        // A moment later than whoever waits for this and knows the key.
        let latest = deadline.instant() + Duration::from_millis(20);
        let request = self.request(operation, &subject, payload.into(), deadline);
        let answer = tokio::time::timeout_at(latest, request)
            .await
            .unwrap_or_else(|_| Err(deadline.timeout(operation, None)))?;
        match answer {
            Answer::Message(message) => match serde_json::from_slice(&message.payload).map_err(malformed)? {
                ApiAnswer::Granted(answer) => Ok(Ok(answer)),
                ApiAnswer::Refused { error } => Ok(Err(error)),
            },
            Answer::NobodyThere => Err(KvError::Unavailable {
                operation,
                reason: "JetStream is not enabled, or does not answer: start the server with `-js` or a `jetstream {}` block, and \
                         enable it for the account"
                    .to_owned(),
                source: None,
            }),
        }
    }
}

/// Whether the server says that nobody listens on the subject of a request.
pub(super) fn has_no_responders(answer: &Message) -> bool {
    answer.status == Some(StatusCode::NO_RESPONDERS)
}

/// Major and minor version; zeros for what is none.
pub(super) fn parse_version(version: &str) -> (u64, u64) {
    let mut parts = version.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0));
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
