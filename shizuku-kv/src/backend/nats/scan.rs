//! Listings: read a consumer up to a proven end, and keys by name.

mod opening;

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_nats::Message;
use backon::ExponentialBackoff;
use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

use super::by_name::{BATCH_KEYS, Trust};
use super::consumer::{Delivery, INACTIVE, OrderedConsumer, Spec, Start};
use super::core::StoreCore;
use super::filters::filters_for;
use super::initial_sync::completes;
use super::lag::Lag;
use super::leader::{self, Last, Listing};
use super::stream_info::StreamInfo;
use super::subjects::Subjects;
use super::wire::{DeliveryInfo, StreamMessage, delivered, key_of};
use crate::backend::source::{self, items};
use crate::store::backoff;
use crate::store::timer::sleep;
use crate::store::{Deadline, Key, KvEntry, KvError, KvResult, KvStream, WatchScope};

/// Minimum time between two requests for the end of a history.
const REST: Duration = Duration::from_millis(10);

/// The live entries in scope.
pub(super) fn entries(
    core: Arc<StoreCore>,
    scope: WatchScope,
    limit: Duration,
) -> KvStream<KvEntry> {
    let scan = Scan::new("scan", core, scope, false, limit);
    KvStream::with_progress(scan.into_stream(StreamMessage::into_entry))
}

/// The live keys in scope.
pub(super) fn keys(core: Arc<StoreCore>, scope: WatchScope, limit: Duration) -> KvStream<Key> {
    let scan = Scan::new("keys", core, scope, true, limit);
    KvStream::with_progress(scan.into_stream(|message| message.key))
}

/// Returns the retained entries of one key.
pub(super) fn history(core: Arc<StoreCore>, key: Key, limit: Duration) -> KvStream<KvEntry> {
    let mut scan = Scan::new("history", core, WatchScope::Key(key), false, limit);
    (scan.newest, scan.source) = (false, Source::None);
    KvStream::new(scan.into_stream(StreamMessage::into_entry))
}

/// A listing in progress.
///
/// Exact keys are read by name. Other scopes are read from a consumer, which ends at a proof: the
/// consumer's own count, or the leader's answer that nothing newer exists (see `initial_sync`).
/// Messages that are removed before their turn prevent the first proof, and writers the second.
/// Then the leader lists the existing subjects, and the missing ones are read by name. A key that
/// lives throughout has been delivered, or is in that list.
///
/// If the consumer is lost, because the reader paused or the connection broke, the listing resumes
/// behind its last message: with another consumer if the stream has one message of each key,
/// otherwise by name (ADR 0069). A stream with a history is never read from its middle: the older
/// value of a key that was deleted since would appear to be live (ADR 0046).
struct Scan {
    operation: &'static str,
    core: Arc<StoreCore>,
    scope: WatchScope,
    spec: Spec,
    /// Timeout for progress: a message, or a page of names or values.
    limit: Duration,
    source: Source,
    /// The store that the listing began with.
    incarnation: Option<[u8; 16]>,
    /// The last sequence of the stream before the consumer was created, and the consumer's lag.
    bound: u64,
    lag: Lag,
    /// Whether the consumer's count at its creation is certain.
    is_counted: bool,
    /// Whether the newest entry of each key is requested, and not all existing entries.
    newest: bool,
    /// Subjects that were delivered.
    delivered: Subjects,
    /// Up to here each subject has one message at most: the end of the stream before the first
    /// consumer. 0 if that consumer may be behind the leader, and for later ones: if a server came
    /// back without some messages, it assigns their sequences again.
    unique_until: u64,
    /// The last message of a consumer.
    last: Last,
    /// Entries of a history that may still come; known from the first consumer on.
    entries_left: Option<u64>,
    rest: Instant,
    pauses: ExponentialBackoff,
}

impl source::Source for Box<Scan> {
    type Item = StreamMessage;

    fn next_at_once(&mut self) -> KvResult<Option<StreamMessage>> {
        Ok(self.next_plain())
    }

    async fn next(&mut self) -> KvResult<Option<StreamMessage>> {
        let mut deadline = Deadline::after(self.limit);
        while !matches!(self.source, Source::Done) {
            match deadline.bound(self.operation, None, self.step(deadline)).await? {
                Step::Item(message) => return Ok(Some(message)),
                Step::Progress => deadline = Deadline::after(self.limit),
                Step::Nothing => {}
            }
        }
        Ok(None)
    }
}

/// The next messages come from here.
enum Source {
    /// The consumer to be created.
    None,
    Consumer(Box<OrderedConsumer>),
    /// A request for the list of subjects, in progress.
    Names(Listing),
    /// Reads by name: the keys that are left, and messages that were read.
    Keys(Vec<Key>, Vec<StreamMessage>),
    Done,
}

/// The outcome of one step.
enum Step {
    Item(StreamMessage),
    Progress,
    /// Nothing new is known.
    Nothing,
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
            filters: filters_for(&core.link, &core.bucket.name, &scope),
            start: Start::LastPerSubject,
            headers_only,
            inactive: INACTIVE,
        };
        let source = match &scope {
            WatchScope::Key(key) => Source::Keys(vec![key.clone()], Vec::new()),
            WatchScope::Keys(keys) => {
                let mut keys = keys.clone();
                keys.sort_unstable();
                keys.dedup();
                Source::Keys(keys, Vec::new())
            }
            _ => Source::None,
        };
        Self {
            operation,
            core,
            scope,
            spec,
            limit,
            source,
            incarnation: None,
            bound: 0,
            lag: Lag::Unknown,
            is_counted: false,
            newest: true,
            delivered: Subjects::default(),
            unique_until: 0,
            last: Last::default(),
            entries_left: None,
            rest: Instant::now(),
            pauses: backoff(Duration::from_millis(20), Duration::from_secs(1)),
        }
    }

    /// Returns the listed messages, each passed through `project`.
    fn into_stream<T: Send + 'static>(
        self,
        project: fn(StreamMessage) -> T,
    ) -> impl Stream<Item = KvResult<T>> + Send {
        items(Box::new(self), |_| Poll::Ready(())).map(move |message| message.map(project))
    }

    /// Returns the next arrived item, unless the listing may end with it.
    fn next_plain(&mut self) -> Option<StreamMessage> {
        loop {
            let Source::Consumer(consumer) = &mut self.source else { return None };
            consumer.begin_slice();
            let delivery = consumer.peek()?;
            if !(self.newest
                && self.lag == Lag::None
                && delivery.stream_sequence > self.last.sequence
                && delivery.stream_sequence < self.bound
                && delivery.consumer_sequence < consumer.pending_at_start)
            {
                return None;
            }
            let message = consumer.take(&delivery)?;
            if let Step::Item(message) = self.receive(message, &delivery) {
                return Some(message);
            }
        }
    }

    async fn step(&mut self, deadline: Deadline) -> KvResult<Step> {
        match &mut self.source {
            Source::Done => Ok(Step::Nothing),
            Source::Consumer(consumer) => match consumer.next().await {
                Delivery::Message(message, delivery)
                    if delivery.stream_sequence > self.last.sequence =>
                {
                    let waiting = consumer.pending_at_start;
                    let step = self.receive(message, &delivery);
                    if self.entries_left == Some(0)
                        || self.is_counted && completes(&delivery, waiting, self.bound)
                    {
                        self.source = Source::Done;
                    } else if self.lag.may_end_with(&delivery, waiting, self.bound)
                        || !self.is_counted && delivery.consumer_sequence >= waiting
                    {
                        Box::pin(self.find_end(deadline)).await?;
                    }
                    Ok(step)
                }
                // A replica that is behind begins where it stands, which is before what was asked
                // for.
                Delivery::Message(..) => Ok(Step::Nothing),
                Delivery::Idle => Box::pin(self.leave_idle(deadline)).await,
                Delivery::Denied(denial) => Err(denial.error(self.operation)),
                Delivery::Lost(reason) => {
                    let store = &self.core.bucket.name;
                    tracing::debug!(%store, reason, "lost the consumer of a listing");
                    Box::pin(self.restart()).await;
                    Ok(Step::Nothing)
                }
            },
            Source::Keys(_, read) if !read.is_empty() => {
                let message = read.pop().filter(|message| !message.operation.is_deletion());
                Ok(message.map_or(Step::Progress, Step::Item))
            }
            Source::None | Source::Names(_) | Source::Keys(..) => {
                Box::pin(self.prepare(deadline)).await
            }
        }
    }

    /// Gets a consumer, names, or messages that are read by name.
    async fn prepare(&mut self, deadline: Deadline) -> KvResult<Step> {
        match &mut self.source {
            Source::None => {
                self.start(deadline).await?;
                Ok(Step::Nothing)
            }
            Source::Names(listing) => {
                listing.read_page(&self.core, self.operation, deadline).await?;
                if listing.is_complete() {
                    let listing = std::mem::replace(listing, Listing::new(&[]));
                    self.source = Source::Keys(self.unseen(listing), Vec::new());
                }
                Ok(Step::Progress)
            }
            Source::Keys(left, _) if left.is_empty() => {
                if self.incarnation.is_some() {
                    self.check_store(&self.core.info(self.operation, deadline).await?)?;
                }
                self.source = Source::Done;
                Ok(Step::Nothing)
            }
            Source::Keys(left, _) => {
                if self.incarnation.is_none() && left.len() > BATCH_KEYS {
                    let info = self.core.info(self.operation, deadline).await?;
                    self.incarnation = Some(info.incarnation(&self.core.bucket.stream));
                }
                self.read_page(deadline).await?;
                Ok(Step::Progress)
            }
            Source::Consumer(_) | Source::Done => Ok(Step::Nothing),
        }
    }

    /// Reads some of the keys by name. One answer is of one store, so a scan of few keys needs no
    /// information about the stream. If it takes several answers, the store of the first page has
    /// to be the known one. Otherwise the page is read again, because the reader has nothing of it.
    async fn read_page(&mut self, deadline: Deadline) -> KvResult<()> {
        let Source::Keys(left, read) = &mut self.source else { return Ok(()) };
        let core = &self.core;
        let known = core.bucket.settings().created;
        let keys = self.incarnation.is_none().then(|| left.clone());
        let page = core.read_some(self.operation, left, Trust::Values, deadline).await?;
        *read = page.messages;
        if let Some(keys) = keys.filter(|_| !(left.is_empty() && page.is_of_one_answer)) {
            let info = core.info(self.operation, deadline).await?;
            let is_known = info.settings().created == known;
            if !is_known {
                (*left, *read) = (keys, Vec::new());
            }
            if !left.is_empty() {
                self.incarnation = Some(info.incarnation(&core.bucket.stream));
            }
        }
        Ok(())
    }

    /// Records a message of the consumer.
    fn receive(&mut self, mut message: Message, delivery: &DeliveryInfo) -> Step {
        let delivered = delivered(&mut message, delivery, &self.core.bucket.prefix);
        let is_deletion = delivered.as_ref().is_some_and(|message| message.operation.is_deletion());
        self.last.remember(&message.subject, delivery.into(), is_deletion);
        let is_wanted = self.note(&message.subject, delivery.stream_sequence, delivered.as_ref());
        delivered.filter(|_| is_wanted).map_or(Step::Progress, Step::Item)
    }

    /// Ends the listing if it is complete, and otherwise leaves the consumer, which may have
    /// stopped.
    async fn leave_idle(&mut self, deadline: Deadline) -> KvResult<Step> {
        if self.reaches_leader(deadline).await? {
            self.source = Source::Done;
        } else if self.newest {
            self.read_rest();
        } else {
            self.restart().await;
        }
        Ok(Step::Nothing)
    }

    /// Discards the consumer, which is recreated after a pause.
    async fn restart(&mut self) {
        self.source = Source::None;
        let pause = self.pauses.next().unwrap_or_default();
        sleep(pause).await;
    }

    /// Records a message. Returns whether it is to be delivered.
    fn note(&mut self, subject: &str, sequence: u64, message: Option<&StreamMessage>) -> bool {
        let is_deletion = message.is_some_and(|message| message.operation.is_deletion());
        let is_in_scope = message.is_some_and(|message| self.scope.matches(&message.key));
        if !self.newest {
            // As many as the store keeps, because entries that are written meanwhile could continue
            // without end.
            self.entries_left = Some(self.entries_left.unwrap_or(u64::MAX).saturating_sub(1));
            return is_in_scope;
        }
        if is_deletion && self.lag != Lag::None {
            // A replica that is behind may not have the value that followed (ADR 0012).
            return false;
        }
        if sequence <= self.unique_until {
            self.delivered.add_unique(subject);
            return is_in_scope && !is_deletion;
        }
        self.delivered.insert(subject) && is_in_scope && !is_deletion
    }

    /// Searches for the end once every initial entry has been delivered or removed.
    async fn find_end(&mut self, deadline: Deadline) -> KvResult<()> {
        if Instant::now() < self.rest {
            return Ok(());
        }
        if self.reaches_leader(deadline).await? {
            self.source = Source::Done;
        } else if self.newest {
            // The writes of others have no end.
            self.read_rest();
        }
        Ok(())
    }

    /// Whether the leader has nothing in scope that is newer than the messages delivered by this
    /// consumer.
    ///
    /// # Errors
    /// Returns [`KvError::Unavailable`] if that is true of another store, whose sequences start
    /// over.
    async fn reaches_leader(&mut self, deadline: Deadline) -> KvResult<bool> {
        let begun = Instant::now();
        let newest =
            leader::newest(&self.core, self.operation, &self.spec.filters, deadline).await?;
        // Messages wait for the answer, which can be slow (`leader`).
        self.rest = Instant::now() + REST.max(begun.elapsed() * 4);
        if newest > self.last.sequence {
            return Ok(false);
        }
        self.check_store(&self.core.info(self.operation, deadline).await?)?;
        Ok(true)
    }

    /// Ends the consumer, and reads the keys that have not been delivered yet by name.
    fn read_rest(&mut self) {
        self.source = Source::Names(Listing::new(&self.spec.filters));
    }

    /// The keys of a list that have not been delivered yet.
    fn unseen(&mut self, listing: Listing) -> Vec<Key> {
        let delivered = self.delivered.table();
        let unseen = |subject: String| {
            let key = key_of(&subject, &self.core.bucket.prefix)?;
            (self.scope.matches(&key) && !delivered.contains(&subject)).then_some(key)
        };
        listing.into_subjects().into_iter().filter_map(unseen).collect()
    }

    /// # Errors
    /// Returns [`KvError::Unavailable`] if the store is not the one that the listing began with.
    fn check_store(&mut self, info: &StreamInfo) -> KvResult<()> {
        let found = info.incarnation(&self.core.bucket.stream);
        if self.last.sequence == 0 && self.delivered.is_empty() {
            self.incarnation.get_or_insert(found);
        }
        if self.incarnation == Some(found) {
            return Ok(());
        }
        let reason = format!(
            "store {:?} was deleted and recreated during the listing; list it again",
            self.core.bucket.name
        );
        Err(KvError::Unavailable { operation: self.operation, reason, source: None })
    }
}
