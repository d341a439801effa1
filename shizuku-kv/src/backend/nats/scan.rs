//! Listings: what a consumer has to deliver, up to the end.

use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBackoff;
use futures_util::{StreamExt, stream};

use super::consumer::{Counting, Delivery, OrderedConsumer, Spec, Start, filters};
use super::leader::Lag;
use super::state::{Completion, StateSync};
use super::store::{StoreCore, pause};
use super::wire::{StreamMessage, delivered};
use crate::store::backoff;
use crate::store::timer::sleep;
use crate::store::{Deadline, Key, KvEntry, KvError, KvResult, KvStream, ReadConsistency, WatchScope};

/// The live entries in scope.
pub(super) fn entries(core: Arc<StoreCore>, scope: WatchScope, limit: Duration) -> KvStream<KvEntry> {
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
/// A key that is written while the listing runs may come twice: with the value that was there at the beginning, and
/// with the newer one; and a value that is superseded before its turn comes only as the newer one. So a listing goes on
/// until every key is known to have come, and leaves out what comes again.
struct Scan {
    operation: &'static str,
    core: Arc<StoreCore>,
    scope: WatchScope,
    spec: Spec,
    limit: Duration,
    consumer: Option<OrderedConsumer>,
    /// The newest of each key is asked for; else everything that is there.
    newest: bool,
    /// What has been delivered; there from the first consumer on.
    state: Option<StateSync>,
    last_sequence: u64,
    /// Entries of a history that may still come.
    entries_left: u64,
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
        // A bucket of other clients may keep more than can be counted here, and then drops none meanwhile.
        let entries_left = match core.bucket.settings().history {
            u8::MAX => u64::MAX,
            history => u64::from(history),
        };
        Self {
            entries_left,
            operation,
            core,
            scope,
            spec,
            limit,
            consumer: None,
            newest: true,
            state: None,
            last_sequence: 0,
            pauses: backoff(Duration::from_millis(20), Duration::from_secs(1)),
            done: false,
        }
    }

    fn into_stream(self) -> impl stream::Stream<Item = KvResult<StreamMessage>> + Send {
        stream::try_unfold(
            self,
            |mut scan| async move { Ok(scan.next().await?.map(|message| (message, scan))) },
        )
    }

    async fn next(&mut self) -> KvResult<Option<StreamMessage>> {
        let deadline = Deadline::after(self.limit);
        deadline.bound(self.operation, None, self.advance(deadline)).await
    }

    async fn advance(&mut self, deadline: Deadline) -> KvResult<Option<StreamMessage>> {
        while !self.done {
            let Some(consumer) = &mut self.consumer else {
                self.start(deadline).await?;
                continue;
            };
            let Some(state) = &mut self.state else {
                self.consumer = None;
                continue;
            };
            match consumer.next().await {
                // A history goes on where it stands, also on a replica that is behind that.
                Delivery::Message(_, place)
                    if !self.newest && place.stream_sequence <= self.last_sequence => {}
                Delivery::Message(message, place) => {
                    self.last_sequence = place.stream_sequence;
                    let (new, completion) = state.receive(&message.subject, &place, consumer, deadline).await;
                    self.done = completion != Completion::NotYet;
                    if !self.newest {
                        // As many as the store keeps: what is written meanwhile would have no end.
                        self.entries_left = self.entries_left.saturating_sub(1);
                        self.done |= self.entries_left == 0;
                    }
                    if state.is_left_behind() {
                        self.consumer = None;
                    }
                    let message = delivered(message, &place, &self.core.bucket.prefix);
                    if let Some(message) = message.filter(|message| self.wants(message, new)) {
                        return Ok(Some(message));
                    }
                }
                // What was pending can have expired before its turn; then no message was the last.
                Delivery::Idle if consumer.is_drained(self.operation, deadline).await? => {
                    self.done = state.is_covered(self.last_sequence, deadline).await?;
                    if !self.done && state.is_left_behind() {
                        self.consumer = None;
                    }
                }
                Delivery::Idle => {}
                Delivery::Refused(text) => {
                    return Err(KvError::Unauthorized {
                        operation: self.operation,
                        reason: text.to_string(),
                    });
                }
                Delivery::Lost(reason) => {
                    tracing::debug!(store = %self.core.bucket.name, reason, "a listing starts over");
                    self.consumer = None;
                    let pause = self.pauses.next().unwrap_or_default();
                    sleep(pause).await;
                }
            }
        }
        self.consumer = None;
        Ok(None)
    }

    fn wants(&self, message: &StreamMessage, new: bool) -> bool {
        self.scope.matches(&message.key) && (!self.newest || (new && !message.operation.is_deletion()))
    }

    /// Makes the consumer, again where one was lost. A history goes on behind its last message, a listing starts over
    /// and leaves out what it has delivered.
    async fn start(&mut self, deadline: Deadline) -> KvResult<()> {
        if !self.newest {
            self.spec.start = Start::Sequence(self.last_sequence + 1);
        }
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let core = &self.core;
            let info = core.info(self.operation, deadline).await?;
            let floor = info.last_sequence();
            let state = self.state.get_or_insert_with(|| {
                StateSync::new(Arc::clone(core), self.operation, &self.spec, floor).of_keys()
            });
            let (link, name) = (Arc::clone(&core.link), format!("shizuku-{}", core.link.next_id()));
            match OrderedConsumer::create(link, self.operation, &self.spec, name, deadline).await? {
                // Another replica may still have values that were replaced and keys that were deleted.
                Ok(consumer)
                    if core.consistency == ReadConsistency::Leader && consumer.lag(&info) != Lag::None => {}
                Ok(consumer) => {
                    state.begin(&consumer, &info);
                    self.done = consumer.pending_at_start == 0
                        && state.is_covered(self.last_sequence, deadline).await?;
                    self.consumer = Some(consumer);
                    return Ok(());
                }
                Err(error) if error.code == 503 => pause(&mut pauses, self.operation, deadline).await?,
                Err(error) => return Err(error.into_error(self.operation, &core.bucket.name)),
            }
        }
    }
}
