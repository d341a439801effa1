//! Requests to the leader of a bucket's stream, which has every acknowledged message.
//!
//! In a cluster the server places a consumer on any replica, even on one that is behind
//! ([`lag`](super::lag)). The leader answers requests for the stream information. A consumer that
//! was created on the leader after an answer is not behind that answer. For another consumer, only
//! the leader's answer shows whether a newer message exists. The leader is asked when the state
//! seems to be complete, so that one request is enough in most cases (ADR 0012).
//!
//! A user with rights to a part of a bucket may not ask the leader for messages: the request names
//! the stream, and the subject only in its payload. Then a consumer at the leader answers, whose
//! creation names the subject (`docs/adr/0066-rights-to-a-part-of-a-bucket.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Message;
use backon::ExponentialBackoff;
use futures_util::future::Either;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::consumer::{Delivery, INACTIVE, OrderedConsumer, Spec, Start};
use super::core::{StoreCore, pause};
use super::denials::Form;
use super::lag::Lag;
use super::wire::{DeliveryInfo, RawMessage, StreamMessage, examined};
use crate::store::{Deadline, Key, KvError, KvResult, backoff};

/// Maximum number of requests in flight.
pub(super) const IN_FLIGHT: usize = 64;

/// Number of subjects by which a page of a list begins earlier, if it had a gap to the one before.
const OVERLAP: usize = 1_000;

/// Returns the sequence of the newest message under any of the filters, from the leader; 0 if there
/// is none.
pub(super) async fn newest(
    core: &StoreCore,
    operation: &'static str,
    filters: &[String],
    deadline: Deadline,
) -> KvResult<u64> {
    // The subject of this request may have wildcards.
    stream::iter(filters.to_vec())
        .map(|filter| async move {
            let found = newest_of(core, operation, &filter, deadline).await?;
            Ok(found.map_or(0, |found| found.sequence))
        })
        .buffer_unordered(IN_FLIGHT)
        .try_fold(0, |newest, sequence| async move { Ok(newest.max(sequence)) })
        .await
}

/// Position of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) time: SystemTime,
}

impl From<&DeliveryInfo> for Found {
    fn from(delivery: &DeliveryInfo) -> Self {
        Self { sequence: delivery.stream_sequence, time: delivery.time() }
    }
}

/// The newest message under a filter, from the leader.
pub(super) async fn newest_of(
    core: &StoreCore,
    operation: &'static str,
    filter: &str,
    deadline: Deadline,
) -> KvResult<Option<Found>> {
    let query = json!({ "last_by_subj": filter });
    let other =
        || by_consumer(core, operation, vec![filter.to_owned()], Start::Last, true, deadline);
    Ok(match leader_or(core, operation, &query, other, deadline).await? {
        Either::Left(found) => {
            found.map(|found| Found { sequence: found.sequence(), time: found.time() })
        }
        Either::Right(found) => found.map(|(_, delivery)| Found::from(&delivery)),
    })
}

/// The message at a stream sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageAt {
    /// The message exists. The field is the server's time of its arrival.
    Time(SystemTime),
    /// It was removed.
    Gone,
    /// It was removed, or it is outside of the filters that the user may read.
    Unknown,
}

/// Looks up the message at a stream sequence.
pub(super) async fn message_at(
    core: &StoreCore,
    operation: &'static str,
    sequence: u64,
    filters: &[String],
    deadline: Deadline,
) -> KvResult<MessageAt> {
    let (query, start) = (json!({ "seq": sequence }), Start::Sequence(sequence));
    let other = || by_consumer(core, operation, filters.to_vec(), start, true, deadline);
    Ok(match leader_or(core, operation, &query, other, deadline).await? {
        Either::Left(found) => {
            found.map_or(MessageAt::Gone, |message| MessageAt::Time(message.time()))
        }
        Either::Right(found) => {
            let found = found.filter(|(_, delivery)| delivery.stream_sequence == sequence);
            found.map_or(MessageAt::Unknown, |(_, delivery)| MessageAt::Time(delivery.time()))
        }
    })
}

impl StoreCore {
    /// Returns the newest message of a key: from the leader, or with a proof that it is the
    /// leader's.
    pub(super) async fn newest_proven(
        &self,
        operation: &'static str,
        key: &Key,
        deadline: Deadline,
    ) -> KvResult<Option<StreamMessage>> {
        let subject = self.subject(key);
        let query = json!({ "last_by_subj": subject });
        let other = move || async move {
            // This takes one request, which needs no right to create consumers.
            let subject = vec![subject];
            if subjects(self, operation, &subject, deadline.remaining()).await?.is_empty() {
                return Ok(None);
            }
            by_consumer(self, operation, subject, Start::Last, false, deadline).await
        };
        match leader_or(self, operation, &query, other, deadline).await? {
            Either::Left(found) => {
                let parsed = found.map(|message| message.parse(&self.bucket.prefix)).transpose();
                parsed.map_err(|reason| KvError::Backend {
                    operation,
                    reason: reason.to_owned(),
                    source: None,
                })
            }
            Either::Right(found) => Ok(found.and_then(|(mut message, delivery)| {
                examined(&mut message, &delivery, &self.bucket.prefix)
            })),
        }
    }
}

/// Requests a message from the leader, or runs the alternative if the user has no right to that
/// request. If the alternative is denied too, the request is sent again: rights may have changed
/// since its denial.
///
/// # Errors
/// Returns the denial of the request if both are denied, because it names the usual right.
async fn leader_or<T, F>(
    core: &StoreCore,
    operation: &'static str,
    query: &Value,
    other: impl FnOnce() -> F,
    deadline: Deadline,
) -> KvResult<Either<Option<RawMessage>, T>>
where
    F: Future<Output = KvResult<T>>,
{
    let stream = &core.bucket.stream;
    let mut denied = None;
    if !core.link.is_denied(Form::LeaderMessage, stream) {
        match core.leader_answer(operation, query, deadline).await {
            Err(error @ KvError::Unauthorized { .. }) if core.link.is_hearing() => {
                core.link.deny(Form::LeaderMessage, stream);
                denied = Some(error);
            }
            found => return found.map(Either::Left),
        }
    }
    // Boxed, since it is rare.
    match (Box::pin(other()).await, denied) {
        (Err(KvError::Unauthorized { .. }), Some(denied)) => Err(denied),
        (Err(KvError::Unauthorized { .. }), None) => {
            let found = core.leader_answer(operation, query, deadline).await?;
            core.link.allow(Form::LeaderMessage, stream);
            Ok(Either::Left(found))
        }
        (found, _) => found.map(Either::Right),
    }
}

/// The first message of a consumer at the leader; `None` if nothing waits for it.
async fn by_consumer(
    core: &StoreCore,
    operation: &'static str,
    filters: Vec<String>,
    start: Start,
    headers_only: bool,
    deadline: Deadline,
) -> KvResult<Option<(Message, DeliveryInfo)>> {
    let stream = core.bucket.stream.clone();
    let inactive = core.bucket.settings().longest_inactive(INACTIVE);
    let spec = Spec { stream, filters, start, headers_only, inactive };
    let mut pauses = placement_pauses();
    loop {
        let info = core.info(operation, deadline).await?;
        let (link, name) = (Arc::clone(&core.link), format!("shizuku-{}", core.link.next_id()));
        let consumer = OrderedConsumer::create(link, operation, &spec, name, deadline).await?;
        let mut consumer =
            consumer.map_err(|error| error.into_error(operation, &core.bucket.name))?;
        // A cluster may place it elsewhere, where something may be missing.
        if consumer.lag(&info) == Lag::None {
            if consumer.pending_at_start == 0 {
                return Ok(None);
            }
            consumer.one_at_a_time();
            match deadline.bound(operation, None, async { Ok(consumer.next().await) }).await? {
                Delivery::Message(message, delivery) => return Ok(Some((message, delivery))),
                Delivery::Denied(denial) => return Err(denial.error(operation)),
                // It was removed meanwhile, or the consumer was.
                Delivery::Idle | Delivery::Lost(_) => {}
            }
        }
        pause(&mut pauses, operation, deadline).await?;
    }
}

/// Returns the pauses between attempts to create a consumer on the leader. A cluster selects the
/// server at random, so that of three attempts one succeeds. Long pauses would leave too few.
pub(super) fn placement_pauses() -> ExponentialBackoff {
    backoff(Duration::from_millis(10), Duration::from_millis(50))
}

/// Returns the subjects under the filters that have a message, from the leader. `limit` is the
/// timeout for each page.
pub(super) async fn subjects(
    core: &StoreCore,
    operation: &'static str,
    filters: &[String],
    limit: Duration,
) -> KvResult<Vec<String>> {
    let mut listing = Listing::new(filters);
    while !listing.is_complete() {
        listing.read_page(core, operation, Deadline::after(limit)).await?;
    }
    Ok(listing.into_subjects())
}

/// A list of the subjects under some filters that have a message, from the leader.
///
/// The server answers in pages of 100,000 in the order of the names, and each page is of its own
/// moment. A subject that has messages throughout is in one of them.
#[derive(Debug)]
pub(super) struct Listing {
    /// The filters that are left, the present one last.
    filters: Vec<String>,
    /// The subjects under the present filter so far.
    names: BTreeSet<String>,
    /// Number of subjects that the next page skips.
    offset: usize,
    /// Number of subjects by which the next page begins earlier after a gap.
    back: usize,
    all: Vec<String>,
}

impl Listing {
    pub(super) fn new(filters: &[String]) -> Self {
        Self {
            filters: filters.to_vec(),
            names: BTreeSet::new(),
            offset: 0,
            back: OVERLAP,
            all: Vec::new(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.filters.is_empty()
    }

    pub(super) fn into_subjects(self) -> Vec<String> {
        self.all
    }

    /// Requests one more page.
    pub(super) async fn read_page(
        &mut self,
        core: &StoreCore,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<()> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            total: usize,
            state: Page,
        }
        #[derive(Deserialize)]
        struct Page {
            subjects: Option<BTreeMap<String, IgnoredAny>>,
        }
        let Some(filter) = self.filters.last() else { return Ok(()) };
        let info = format!("STREAM.INFO.{}", core.bucket.stream);
        let query = json!({ "subjects_filter": filter, "offset": self.offset });
        let answer = core.link.api::<Info>(operation, &info, &query, deadline).await?;
        let answer = answer.map_err(|error| error.into_error(operation, &core.bucket.name))?;
        self.add(answer.state.subjects.unwrap_or_default().into_keys().collect(), answer.total);
        Ok(())
    }

    /// Adds a page of a list of `total` subjects. Pages overlap by one name. If they do not,
    /// earlier names were removed meanwhile, and others moved from this page into the one before.
    fn add(&mut self, page: BTreeSet<String>, total: usize) {
        let has_gap = self.offset > 0
            && self.names.last().is_some_and(|last| page.first().is_none_or(|first| first > last));
        if has_gap {
            self.offset = self.offset.saturating_sub(self.back);
            self.back *= 2;
            return;
        }
        let end = self.offset + page.len();
        let is_last = page.is_empty() || end >= total;
        self.names.extend(page);
        // A page of one name does not overlap with the next.
        self.offset = end.saturating_sub(1).max(self.offset + 1);
        self.back = OVERLAP;
        if is_last {
            self.filters.pop();
            self.all.extend(std::mem::take(&mut self.names));
            self.offset = 0;
        }
    }
}

/// A message that was delivered. If the leader has neither this message nor a newer one of its
/// subject, it has lost it.
#[derive(Debug, Default)]
pub(super) struct Last {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) time: Option<SystemTime>,
    pub(super) is_deletion: bool,
}

impl Last {
    /// Records the last message delivered, reusing the allocation of the one before.
    pub(super) fn remember(&mut self, subject: &str, found: Found, is_deletion: bool) {
        self.subject.clear();
        self.subject.push_str(subject);
        (self.sequence, self.time) = (found.sequence, Some(found.time));
        self.is_deletion = is_deletion;
    }

    /// Whether the leader has lost it: a server that was restored from a copy, or another one that
    /// holds a copy. Its sequences continue with other messages, which may have been superseded. So
    /// neither the end of the stream nor the message at the position need show the loss.
    pub(super) async fn is_lost(
        &self,
        core: &StoreCore,
        operation: &'static str,
        deadline: Deadline,
    ) -> KvResult<bool> {
        let found = newest_of(core, operation, &self.subject, deadline).await?;
        Ok(match found {
            // Other clients clean up tombstones, and some stores remove the newest entry of a key
            // by themselves.
            None => !self.is_deletion && !core.bucket.settings().forgets_newest(),
            Some(found) if found.sequence == self.sequence => self.time != Some(found.time),
            Some(found) => found.sequence < self.sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_be_empty() {
        let mut listing = Listing::new(&["a".to_owned(), "b".to_owned()]);
        listing.add(BTreeSet::new(), 0);
        assert!(!listing.is_complete());
        listing.add(BTreeSet::from(["a".to_owned()]), 1);
        assert!(listing.is_complete());
        assert_eq!(listing.into_subjects(), ["a"]);
    }

    #[test]
    fn a_list_has_every_subject_that_stays() {
        const PAGE: usize = 100;
        let mut names: BTreeSet<String> = (0..1000).map(|number| format!("s{number:04}")).collect();
        let kept: Vec<_> = names.iter().filter(|name| name.ends_with('7')).cloned().collect();
        let mut listing = Listing { back: 3, ..Listing::new(&["s>".to_owned()]) };
        let mut pages = 0;
        while !listing.is_complete() {
            pages += 1;
            assert!(pages < 200, "the list does not end");
            let page = names.iter().skip(listing.offset).take(PAGE).cloned().collect();
            listing.add(page, names.len());
            // Names leave at the front and at the end of the page that was read.
            let gone: Vec<_> =
                names.iter().filter(|name| !name.ends_with('7')).take(20).cloned().collect();
            for name in gone {
                names.remove(&name);
            }
        }
        let listed: BTreeSet<_> = listing.into_subjects().into_iter().collect();
        assert!(kept.iter().all(|name| listed.contains(name)));
    }
}
