//! The creation of the consumer of a listing.

use std::sync::Arc;
use std::time::Duration;

use super::super::consumer::{INACTIVE, OrderedConsumer, Start};
use super::super::core::pause;
use super::super::lag::Lag;
use super::super::leader::{self, Last, MessageAt};
use super::super::stream_info::StreamInfo;
use super::{Scan, Source};
use crate::store::{Deadline, KvError, KvResult, ReadConsistency, backoff};

impl Scan {
    /// Whether the leader still has the last message, or one that superseded it. If it does not,
    /// the stream was restored from a copy, and other messages may have taken the sequences before
    /// it.
    async fn is_intact(&self, info: &StreamInfo, deadline: Deadline) -> KvResult<bool> {
        let (core, operation, last) = (&self.core, self.operation, &self.last);
        if info.last_sequence() < last.sequence {
            return Ok(false);
        }
        let found =
            leader::message_at(core, operation, last.sequence, &self.spec.filters, deadline)
                .await?;
        let is_other = matches!(found, MessageAt::Time(time) if last.time != Some(time));
        Ok(!is_other && !last.is_lost(core, operation, deadline).await?)
    }

    /// Creates the first consumer, or another one that resumes after the last message.
    pub(super) async fn start(&mut self, deadline: Deadline) -> KvResult<()> {
        let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
        let mut placing = leader::placement_pauses();
        loop {
            let info = self.core.info(self.operation, deadline).await?;
            self.check_store(&info)?;
            let settings = info.settings();
            // A bucket of other clients may keep more than can be counted here, and then drops none
            // meanwhile.
            self.entries_left.get_or_insert_with(|| match settings.history {
                u8::MAX => u64::MAX,
                history => u64::from(history),
            });
            if self.newest && self.last.sequence > 0 {
                if !self.is_intact(&info, deadline).await? {
                    (self.last, self.unique_until) = (Last::default(), 0);
                } else if settings.history != 1 {
                    self.read_rest();
                    return Ok(());
                }
            }
            self.spec.start = match self.last.sequence {
                0 if self.newest => Start::LastPerSubject,
                last => Start::Sequence(last + 1),
            };
            self.spec.inactive = settings.longest_inactive(INACTIVE);
            let core = &self.core;
            let (link, name) = (Arc::clone(&core.link), format!("shizuku-{}", core.link.next_id()));
            match OrderedConsumer::create(link, self.operation, &self.spec, name, deadline).await? {
                // Another replica may still have values that were replaced and keys that were
                // deleted.
                Ok(consumer)
                    if core.consistency == ReadConsistency::Leader
                        && consumer.lag(&info) != Lag::None =>
                {
                    drop(consumer);
                    pause(&mut placing, self.operation, deadline).await?;
                }
                Ok(mut consumer) => {
                    // The messages arrive during the second request.
                    consumer.request_first().await;
                    let again = core.info(self.operation, deadline);
                    let again = match consumer.while_connected(self.operation, again).await {
                        Ok(again) => again,
                        Err(KvError::Unavailable { .. }) => {
                            drop(consumer);
                            pause(&mut pauses, self.operation, deadline).await?;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    let is_first = self.last.sequence == 0 && self.delivered.is_empty();
                    if self.last.sequence > 0 {
                        // The store may have been recreated between the stream information and the
                        // consumer.
                        self.check_store(&again)?;
                    }
                    self.lag = consumer.lag(&info);
                    self.bound = info.last_sequence();
                    self.is_counted = self.lag == Lag::None && again.has_end_of(&info);
                    self.unique_until =
                        if is_first && self.lag == Lag::None { self.bound } else { 0 };
                    let is_done = consumer.pending_at_start == 0
                        && (self.is_counted || self.reaches_leader(deadline).await?);
                    self.source =
                        if is_done { Source::Done } else { Source::Consumer(Box::new(consumer)) };
                    return Ok(());
                }
                Err(error) if error.code == 503 => {
                    pause(&mut pauses, self.operation, deadline).await?;
                }
                Err(error) => return Err(error.into_error(self.operation, &core.bucket.name)),
            }
        }
    }
}
