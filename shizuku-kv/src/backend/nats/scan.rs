//! Listings: read a consumer up to a proven end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBackoff;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::time::Instant;

use super::consumer::{Counting, Delivery, OrderedConsumer, Spec, Start, filters};
use super::leader::{self, Lag};
use super::state::{Subjects, completes};
use super::store::{StoreCore, pause};
use super::wire::{Place, StreamMessage, delivered, key_of};
use crate::store::backoff;
use crate::store::timer::sleep;
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvResult, KvStream, ReadConsistency, WatchScope,
};

/// Maximum number of keys that are fetched one by one although a consumer could deliver them.
const FEW: usize = 512;

/// Maximum number of consumers that a listing creates because one stopped before its end.
const RELISTS: u32 = 3;

/// Minimum time between two requests for the end of a history.
const REST: Duration = Duration::from_millis(10);

/// The live entries in scope.
pub(super) fn entries(
    core: Arc<StoreCore>,
    scope: WatchScope,
    limit: Duration,
) -> KvStream<KvEntry> {
    let scan = Scan::new("scan", core, scope, false, limit);
    KvStream::new(scan.into_stream().map(|item| item.map(StreamMessage::into_entry)))
}

/// The live keys in scope.
pub(super) fn keys(core: Arc<StoreCore>, scope: WatchScope, limit: Duration) -> KvStream<Key> {
    let scan = Scan::new("keys", core, scope, true, limit);
    KvStream::new(scan.into_stream().map(|item| item.map(|message| message.key)))
}

/// What is held of one key.
pub(super) fn history(core: Arc<StoreCore>, key: Key, limit: Duration) -> KvStream<KvEntry> {
    let mut scan = Scan::new("history", core, WatchScope::Key(key), false, limit);
    scan.newest = false;
    KvStream::new(scan.into_stream().map(|item| item.map(StreamMessage::into_entry)))
}

/// A listing on its way.
///
/// It ends at a proof: the consumer's own count, or the leader's answer that nothing newer exists
/// (see `state`). Messages that are removed before their turn prevent the first proof, and writers
/// the second. Then the leader lists the existing subjects, and the missing ones are fetched: with
/// another consumer, or one by one if few are left. A key that lives throughout has been delivered,
/// or is in that list.
///
/// A stream with a history is never read from its middle: the older value of a key that was deleted
/// since would appear to be live.
struct Scan {
    operation: &'static str,
    core: Arc<StoreCore>,
    scope: WatchScope,
    spec: Spec,
    limit: Duration,
    consumer: Option<OrderedConsumer>,
    /// The end of the stream before the consumer was made, and how far the consumer may be behind
    /// that.
    bound: u64,
    lag: Lag,
    /// The newest of each key is asked for; else everything that is there.
    newest: bool,
    /// Subjects that were delivered.
    seen: Subjects,
    /// Subjects that were not delivered yet; known once the leader was asked.
    owed: Option<HashSet<String>>,
    /// The missing subjects, fetched one by one.
    fetched: Option<BoxStream<'static, KvResult<Option<StreamMessage>>>>,
    /// Number of consumers that stopped before their end.
    stops: u32,
    last_sequence: u64,
    /// Entries of a history that may still come; known from the first consumer on.
    entries_left: Option<u64>,
    rest: Instant,
    pauses: ExponentialBackoff,
    done: bool,
}

impl Scan {
    fn new(
        operation: &'static str,
        core: Arc<StoreCore>,
        scope: WatchScope,
        headers_only: bool,
        limit: Duration,
    ) -> Self {
        let spec = Spec {
            stream: core.bucket.stream.clone(),
            filters: filters(&core.bucket.name, &scope, Counting::of(&core.link)),
            start: Start::LastPerSubject,
            headers_only,
        };
        Self {
            entries_left: None,
            operation,
            core,
            scope,
            spec,
            limit,
            consumer: None,
            bound: 0,
            lag: Lag::Unknown,
            newest: true,
            seen: Subjects::default(),
            owed: None,
            fetched: None,
            stops: 0,
            last_sequence: 0,
            rest: Instant::now(),
            pauses: backoff(Duration::from_millis(20), Duration::from_secs(1)),
            done: false,
        }
    }

    fn into_stream(self) -> impl stream::Stream<Item = KvResult<StreamMessage>> + Send {
        stream::try_unfold(self, |mut scan| async move {
            Ok(scan.next().await?.map(|message| (message, scan)))
        })
    }

    async fn next(&mut self) -> KvResult<Option<StreamMessage>> {
        let deadline = Deadline::after(self.limit);
        deadline.bound(self.operation, None, self.advance(deadline)).await
    }

    async fn advance(&mut self, deadline: Deadline) -> KvResult<Option<StreamMessage>> {
        while !self.done {
            if let Some(fetched) = &mut self.fetched {
                match fetched.next().await.transpose()? {
                    Some(Some(message)) if !message.operation.is_deletion() => {
                        return Ok(Some(message));
                    }
                    Some(_) => {}
                    None => self.done = true,
                }
                continue;
            }
            let Some(consumer) = &mut self.consumer else {
                self.start(deadline).await?;
                continue;
            };
            match consumer.next().await {
                // A history goes on where it stands, also on a replica that is behind that.
                Delivery::Message(_, place)
                    if !self.newest && place.stream_sequence <= self.last_sequence => {}
                Delivery::Message(message, place) => {
                    let waiting = consumer.pending_at_start;
                    let subject = message.subject.clone();
                    self.last_sequence = place.stream_sequence;
                    let message = delivered(message, &place, &self.core.bucket.prefix);
                    let is_wanted = self.note(&subject, message.as_ref());
                    self.done |= self.lag == Lag::None && completes(&place, waiting, self.bound)
                        || self.owed.as_ref().is_some_and(HashSet::is_empty);
                    if !self.done && self.lag.may_end_with(&place, waiting, self.bound) {
                        self.settle(&place, deadline).await?;
                    }
                    if is_wanted {
                        return Ok(message);
                    }
                }
                Delivery::Idle => {
                    let place = self.last_sequence;
                    if self.reaches_leader(place, deadline).await? {
                        self.done = true;
                    } else {
                        self.stop(deadline).await?;
                    }
                }
                Delivery::Refused(text) => {
                    return Err(KvError::Unauthorized {
                        operation: self.operation,
                        reason: text.to_string(),
                    });
                }
                Delivery::Lost(reason) => {
                    tracing::debug!(store = %self.core.bucket.name, reason, "a listing starts over");
                    self.consumer = None;
                    self.wait().await;
                }
            }
        }
        self.consumer = None;
        Ok(None)
    }

    async fn wait(&mut self) {
        let pause = self.pauses.next().unwrap_or_default();
        sleep(pause).await;
    }

    /// Records a message. Returns whether it is to be delivered.
    fn note(&mut self, subject: &str, message: Option<&StreamMessage>) -> bool {
        let is_in_scope = message.is_some_and(|message| self.scope.matches(&message.key));
        if !self.newest {
            // As many as the store keeps, because entries that are written meanwhile could continue
            // without end.
            let left =
                self.entries_left.insert(self.entries_left.unwrap_or(u64::MAX).saturating_sub(1));
            self.done = *left == 0;
            return is_in_scope;
        }
        let is_deletion = message.is_some_and(|message| message.operation.is_deletion());
        if is_deletion && self.lag != Lag::None {
            // A replica that is behind may not have the value that followed.
            return false;
        }
        if let Some(owed) = &mut self.owed {
            owed.remove(subject);
        }
        self.seen.insert(subject) && is_in_scope && !is_deletion
    }

    /// Looks for the end once every initial entry has been delivered or removed.
    async fn settle(&mut self, place: &Place, deadline: Deadline) -> KvResult<()> {
        if self.owed.is_some() {
            // Missing subjects may have been removed, and the writes of others have no end.
            self.fetch_few();
            return Ok(());
        }
        if Instant::now() < self.rest {
            return Ok(());
        }
        self.done = self.reaches_leader(place.stream_sequence, deadline).await?;
        if !self.done && self.newest {
            self.take_owed(deadline).await?;
            self.fetch_few();
        }
        Ok(())
    }

    /// Whether the leader has nothing in scope that is newer than the messages delivered by this
    /// consumer.
    async fn reaches_leader(&mut self, position: u64, deadline: Deadline) -> KvResult<bool> {
        let newest =
            leader::newest(&self.core, self.operation, &self.spec.filters, deadline).await?;
        self.rest = Instant::now() + REST;
        Ok(newest <= position)
    }

    /// Continues without a consumer that delivers nothing although more messages exist.
    async fn stop(&mut self, deadline: Deadline) -> KvResult<()> {
        self.consumer = None;
        if !self.newest {
            self.wait().await;
            return Ok(());
        }
        self.take_owed(deadline).await?;
        self.stops += 1;
        if self.stops > RELISTS {
            self.fetch();
        } else {
            self.fetch_few();
        }
        Ok(())
    }

    /// Asks the leader for the existing subjects, and records the ones that were not delivered yet.
    async fn take_owed(&mut self, deadline: Deadline) -> KvResult<()> {
        if self.owed.is_none() {
            let subjects =
                leader::subjects(&self.core, self.operation, &self.spec.filters, deadline).await?;
            let prefix = &self.core.bucket.prefix;
            let is_owed = |subject: &String| {
                key_of(subject, prefix).is_some_and(|key| self.scope.matches(&key))
                    && !self.seen.contains(subject)
            };
            self.owed = Some(subjects.into_iter().filter(is_owed).collect());
        }
        Ok(())
    }

    fn fetch_few(&mut self) {
        if self.owed.as_ref().is_some_and(|owed| owed.len() <= FEW) {
            self.fetch();
        }
    }

    /// Fetches the owed subjects from the leader, one by one, from now on.
    fn fetch(&mut self) {
        self.consumer = None;
        let (core, operation, limit) = (Arc::clone(&self.core), self.operation, self.limit);
        let found = stream::iter(self.owed.take().unwrap_or_default()).map(move |subject| {
            let core = Arc::clone(&core);
            async move {
                let query = json!({ "last_by_subj": subject });
                core.raw_message(operation, &query, Deadline::after(limit)).await
            }
        });
        self.fetched = Some(found.buffer_unordered(leader::IN_FLIGHT).boxed());
    }

    /// Makes the consumer, again where one was lost. A history goes on behind its last message, a listing starts over
    /// and leaves out what it has delivered.
    async fn start(&mut self, deadline: Deadline) -> KvResult<()> {
        if self.newest {
            self.last_sequence = 0;
        } else {
            self.spec.start = Start::Sequence(self.last_sequence + 1);
        }
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let core = &self.core;
            let info = core.info(self.operation, deadline).await?;
            // A bucket of other clients may keep more than can be counted here, and then drops none
            // meanwhile.
            self.entries_left.get_or_insert_with(|| match info.settings().history {
                u8::MAX => u64::MAX,
                history => u64::from(history),
            });
            let (link, name) = (Arc::clone(&core.link), format!("shizuku-{}", core.link.next_id()));
            match OrderedConsumer::create(link, self.operation, &self.spec, name, deadline).await? {
                // Another replica may still have values that were replaced and keys that were deleted.
                Ok(consumer)
                    if core.consistency == ReadConsistency::Leader
                        && consumer.lag(&info) != Lag::None => {}
                Ok(consumer) => {
                    self.lag = consumer.lag(&info);
                    self.bound = info.last_sequence();
                    self.done = consumer.pending_at_start == 0
                        && (self.lag == Lag::None
                            || self.reaches_leader(self.last_sequence, deadline).await?);
                    self.consumer = Some(consumer);
                    return Ok(());
                }
                Err(error) if error.code == 503 => {
                    pause(&mut pauses, self.operation, deadline).await?
                }
                Err(error) => return Err(error.into_error(self.operation, &core.bucket.name)),
            }
        }
    }
}
