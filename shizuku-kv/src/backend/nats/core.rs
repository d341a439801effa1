//! The parts of a bucket that reads, writes and watches share, and the reads of single messages.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{HeaderName, HeaderValue, Message, StatusCode};
use bytes::Bytes;
use futures_util::future::{Either, select};
use serde::Deserialize;
use serde_json::json;

use super::api::ApiError;
use super::bucket::Bucket;
use super::link::Link;
use super::retry::{Answer, Request, first_patience};
use super::settings::Settings;
use super::stream_info::StreamInfo;
use super::streams;
use super::wire::{RawMessage, StreamMessage, parse_direct};
use crate::store::timer::sleep;
use crate::store::{Deadline, Key, KvError, KvResult, ReadConsistency};

/// Maximum age of the settings that a write with a time to live relies on.
const RECENT: Duration = Duration::from_secs(1);

/// The parts of a bucket that reads, writes and watches share.
#[derive(Debug)]
pub(super) struct StoreCore {
    pub(super) link: Arc<Link>,
    pub(super) bucket: Bucket,
    pub(super) consistency: ReadConsistency,
    /// The last sequence that the stream is known to have reached.
    pub(super) reached: AtomicU64,
}

impl StoreCore {
    pub(super) fn new(link: Arc<Link>, bucket: Bucket, consistency: ReadConsistency) -> Self {
        let reached = AtomicU64::new(bucket.settings().end);
        Self { link, bucket, consistency, reached }
    }

    /// Returns the subject under which the messages of a key are stored.
    pub(super) fn subject(&self, key: &Key) -> String {
        let prefix = &self.bucket.prefix;
        let mut subject = String::with_capacity(prefix.len() + key.len());
        subject.push_str(prefix);
        subject.push_str(key);
        subject
    }

    /// Returns the subject to which a write of a key is sent.
    pub(super) fn write_subject(&self, key: &Key) -> String {
        self.link.space().write(self.subject(key))
    }

    /// Returns the newest message of a key, with the consistency of the store.
    pub(super) async fn newest(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        if self.consistency == ReadConsistency::Leader || !self.bucket.settings().allow_direct {
            return Box::pin(self.newest_of_leader(operation, key, deadline)).await;
        }
        let subject = format!("DIRECT.GET.{}.{}", self.bucket.stream, self.subject(key));
        let subject = self.link.space().api(&subject);
        let mut request = self.link.request(operation, &subject, Bytes::new(), deadline);
        let answer = match request.attempt(first_patience(deadline)).await? {
            Some(Answer::Message(message)) => self.direct_answer(operation, message)?,
            // No replica answers, or an operator has disabled direct gets, so that the leader is
            // asked.
            Some(Answer::NoResponders) => None,
            None => return Box::pin(self.newest_unanswered(request, key, deadline)).await,
        };
        match answer {
            Some(message) => Ok(Some(message)),
            None => Box::pin(self.newest_proven(operation, key, deadline)).await,
        }
    }

    /// Returns the newest message of a key on a replica, if a replica answers at once.
    pub(super) async fn direct(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        if !self.bucket.settings().allow_direct {
            return Ok(None);
        }
        let subject = self.link.space().api(&format!(
            "DIRECT.GET.{}.{}",
            self.bucket.stream,
            self.subject(key)
        ));
        let mut request = self.link.request(operation, &subject, Bytes::new(), deadline);
        match request.attempt(first_patience(deadline)).await? {
            Some(Answer::Message(message)) => self.direct_answer(operation, message),
            Some(Answer::NoResponders) | None => Ok(None),
        }
    }

    /// Returns the newest message of a key after no replica has answered in time. The causes can be
    /// those of a "no responders" answer, which the server does not send while any client
    /// subscribes to everything. The stream information distinguishes the causes, and renews the
    /// settings. Meanwhile a replica may still answer.
    async fn newest_unanswered(
        &self,
        mut request: Request<'_>,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let operation = request.operation();
        let of_leader = pin!(async {
            self.info(operation, deadline).await?;
            self.newest_proven(operation, key, deadline).await
        });
        let direct = |answer: Answer| match answer {
            Answer::Message(message) => self.direct_answer(operation, message),
            Answer::NoResponders => Ok(None),
        };
        match select(of_leader, pin!(request.answer())).await {
            Either::Left((Err(error), replica)) if error.is_retryable() => {
                direct(replica.await?)?.map_or(Err(error), |message| Ok(Some(message)))
            }
            Either::Left((answer, _)) => answer,
            Either::Right((replica, of_leader)) => match direct(replica?)? {
                Some(message) => Ok(Some(message)),
                None => of_leader.await,
            },
        }
    }

    /// Returns the message in an answer to a direct get. Returns `None` unless the message is known
    /// to be the bucket's.
    ///
    /// Mirrors of the bucket answer its direct gets (`mirror_direct`) with their own messages. An
    /// answer with a message names its stream. An answer without a message does not: the key is
    /// absent, or only missing in a mirror.
    pub(super) fn direct_answer(
        &self,
        operation: &'static str,
        message: Message,
    ) -> KvResult<Option<StreamMessage>> {
        let backend = |reason: String| KvError::Backend { operation, reason, source: None };
        match status_of(&message) {
            None => {}
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            // The replica is overloaded, and the leader may answer.
            Some(status) if matches!(status.as_u16(), 429 | 503) => return Ok(None),
            Some(status) => {
                return Err(backend(format!("the server answered with status {status}")));
            }
        }
        if stream_of(&message) != Some(&self.bucket.stream) {
            return Ok(None);
        }
        let message = parse_direct(message, &self.bucket.prefix);
        message.map(Some).map_err(|reason| backend(reason.to_owned()))
    }

    /// Returns the newest message of a key, from the leader.
    pub(super) async fn newest_of_leader(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let query = json!({ "last_by_subj": self.subject(key) });
        self.raw_message(operation, &query, deadline).await
    }

    /// Returns the first message of a key from a stream sequence on, from the leader.
    pub(super) async fn next_of_leader(
        &self,
        operation: &'static str,
        key: &Key,
        from: u64,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let query = json!({ "seq": from, "next_by_subj": self.subject(key) });
        self.raw_message(operation, &query, deadline).await
    }

    /// Returns one message from the leader, parsed. Returns `None` if no such message exists.
    pub(super) async fn raw_message(
        &self,
        operation: &'static str,
        query: &serde_json::Value,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let Some(message) = self.leader_answer(operation, query, deadline).await? else {
            return Ok(None);
        };
        match message.parse(&self.bucket.prefix) {
            Ok(message) => Ok(Some(message)),
            Err(reason) => {
                Err(KvError::Backend { operation, reason: reason.to_owned(), source: None })
            }
        }
    }

    /// Requests one message from the leader. Returns `None` if no such message exists.
    pub(super) async fn leader_answer(
        &self,
        operation: &'static str,
        query: &serde_json::Value,
        deadline: Deadline,
    ) -> KvResult<Option<RawMessage>> {
        #[derive(Deserialize)]
        struct Found {
            message: RawMessage,
        }
        let subject = format!("STREAM.MSG.GET.{}", self.bucket.stream);
        match self.link.api::<Found>(operation, &subject, query, deadline).await? {
            Ok(Found { message }) => Ok(Some(message)),
            Err(error) if error.err_code == ApiError::MESSAGE_NOT_FOUND => Ok(None),
            Err(error) => Err(error.into_error(operation, &self.bucket.name)),
        }
    }

    /// Returns the current stream information of the bucket, and adopts the settings in it.
    pub(super) async fn info(
        &self,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<StreamInfo> {
        let info = streams::info(&self.link, operation, &self.bucket.name, deadline).await?;
        self.learn(&info);
        Ok(info)
    }

    /// Adopts the state of the bucket's stream from an answer of the server.
    pub(super) fn learn(&self, info: &StreamInfo) {
        let before = self.bucket.settings().created;
        self.bucket.learn(info);
        if self.bucket.settings().created == before {
            self.reached.fetch_max(info.last_sequence(), Ordering::Relaxed);
        } else {
            // The store was recreated, and its sequences start over.
            self.reached.store(info.last_sequence(), Ordering::Relaxed);
        }
    }

    /// Returns the current settings, from the leader.
    pub(super) async fn settings_of_now(
        &self,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<Arc<Settings>> {
        Ok(Arc::new(self.info(operation, deadline).await?.settings()))
    }

    /// Returns settings that are at most [`RECENT`] old.
    pub(super) async fn recent_settings(
        &self,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<Arc<Settings>> {
        let recent = || Some(self.bucket.settings_arc()).filter(|settings| settings.age() < RECENT);
        if let Some(settings) = recent() {
            return Ok(settings);
        }
        let _turn = self.bucket.refreshing.lock().await;
        match recent() {
            Some(settings) => Ok(settings),
            None => self.settings_of_now(operation, deadline).await,
        }
    }

    /// Looks for the reason why no server answers, for a part of the deadline.
    ///
    /// # Errors
    /// Returns the reason if no server will answer later either, for example because the store was
    /// deleted. A stream without a leader is not an error.
    pub(super) async fn diagnose(
        &self,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<()> {
        match self.info(operation, deadline.at_most(first_patience(deadline))).await {
            Err(error) if !error.is_retryable() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Returns the status of a message of the server. Returns `None` for a stored message, which names
/// its stream, even if another client gave it a status.
pub(super) fn status_of(message: &Message) -> Option<StatusCode> {
    let stored =
        message.headers.as_ref().is_some_and(|headers| headers.get("Nats-Stream").is_some());
    message.status.filter(|_| !stored)
}

/// Returns the stream that sent an answer to a direct get. Other clients may have stored headers of
/// the same name, and the server's own is the last one.
fn stream_of(message: &Message) -> Option<&str> {
    message
        .headers
        .as_ref()?
        .get_last(HeaderName::from_static("Nats-Stream"))
        .map(HeaderValue::as_str)
}

/// Waits before the next attempt. Returns an error if the deadline is nearer.
pub(super) async fn pause(
    pauses: &mut impl Iterator<Item = Duration>,
    operation: &'static str,
    deadline: Deadline,
) -> KvResult<()> {
    let pause = pauses.next().unwrap_or(Duration::from_millis(500));
    if deadline.remaining() <= pause {
        return Err(KvError::Unavailable {
            operation,
            reason: format!("the store has no leader that answers within {:?}", deadline.limit()),
            source: None,
        });
    }
    sleep(pause).await;
    Ok(())
}
