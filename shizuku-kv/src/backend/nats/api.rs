//! Requests to the JetStream API, and the errors in its answers.

use std::time::Duration;

use async_nats::Message;
use backon::ExponentialBackoff;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::retry::{Answer, has_no_responders};
use crate::store::timer::sleep;
use crate::store::{Deadline, KvError, KvResult, backoff};

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
    pub(super) const STREAM_UPDATE_REJECTED: u64 = 10052;

    /// Returns whether JetStream is not enabled, for the account or for the server.
    pub(super) fn is_not_enabled(&self) -> bool {
        matches!(self.err_code, 10039 | 10076)
    }

    /// Returns whether the server rejected the request because of load or an election, and did not
    /// execute it. The same request may then succeed later.
    pub(super) fn is_passing(&self) -> bool {
        // 10167, 10210 and 10211 are "too many"; the others are "temporarily unavailable".
        self.code == 429 || matches!(self.err_code, Self::NO_META_LEADER | 10009 | 10163)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ApiAnswer<T> {
    Rejected { error: ApiError },
    Granted(T),
}

/// Returns whether the same request may succeed later than this answer to it.
pub(super) fn may_pass(answer: &Message) -> bool {
    has_no_responders(answer)
        || match serde_json::from_slice(&answer.payload) {
            Ok(ApiAnswer::<IgnoredAny>::Rejected { error }) => error.is_passing(),
            _ => false,
        }
}

impl Link {
    /// Sends a repeatable request to the JetStream API, with the API prefix before the subject.
    /// Ends by the deadline.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
    ) -> KvResult<Result<T, ApiError>> {
        self.api_patiently(operation, subject, payload, deadline, Duration::ZERO).await
    }

    /// Sends a request like [`api`](Self::api). The first copy has at least `patience` before
    /// another is sent.
    pub(super) async fn api_patiently<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
        patience: Duration,
    ) -> KvResult<Result<T, ApiError>> {
        self.send_api(operation, subject, payload, deadline, Some(patience)).await
    }

    /// Sends a command like [`api`](Self::api), and sends no copy while another may be in flight,
    /// because a late copy could undo later changes.
    pub(super) async fn api_once<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
    ) -> KvResult<Result<T, ApiError>> {
        self.send_api(operation, subject, payload, deadline, None).await
    }

    /// Sends a request with the minimum patience for the first copy. `None` sends a single copy.
    async fn send_api<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: &str,
        payload: &impl Serialize,
        deadline: Deadline,
        patience: Option<Duration>,
    ) -> KvResult<Result<T, ApiError>> {
        let malformed = |source: serde_json::Error| KvError::Backend {
            operation,
            reason: format!(
                "cannot read the answer to {subject}: {:?} at line {} column {}",
                source.classify(),
                source.line(),
                source.column()
            ),
            source: None,
        };
        let payload = serde_json::to_vec(payload).map_err(malformed)?;
        let subject = self.space().api(subject);
        let mut request = self
            .request(operation, &subject, payload.into(), deadline)
            .single(patience.is_none())
            .patient(patience.unwrap_or_default());
        let mut pauses: Option<ExponentialBackoff> = None;
        loop {
            let answer = request.answer().await;
            if matches!(answer, Err(KvError::Timeout { .. }))
                && !self.client().server_info().jetstream
            {
                // While a client subscribes to everything, the server does not report "no
                // responders".
                return Err(self.no_jetstream(operation));
            }
            let error = match answer? {
                Answer::Message(message) => {
                    match serde_json::from_slice(&message.payload).map_err(malformed)? {
                        ApiAnswer::Granted(answer) => return Ok(Ok(answer)),
                        ApiAnswer::Rejected { error } => error,
                    }
                }
                Answer::NoResponders => return Err(self.no_jetstream(operation)),
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
            request.renew();
        }
    }

    /// Returns the error of a request that no JetStream server has received.
    fn no_jetstream(&self, operation: &'static str) -> KvError {
        KvError::Unavailable { operation, reason: self.space().no_answer(), source: None }
    }
}
