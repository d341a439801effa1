//! The arrived messages of a consumer, read several at a time.

use std::collections::VecDeque;

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::task::{consume_budget, unconstrained};

use super::super::arrival::arrival;
use crate::store::SuspendAwareInstant;

/// Maximum number of messages in a slice.
const SLICE: usize = 64;

/// The messages of a subscription that have arrived and were not read.
///
/// They leave the subscription in slices. A slice has one time at which all of its messages had
/// arrived, so that its messages need no clock.
#[derive(Debug)]
pub(super) struct Queue {
    arriving: Subscriber,
    slice: VecDeque<Message>,
    /// A time at which all messages of the slice had arrived.
    had_arrived: SuspendAwareInstant,
}

impl Queue {
    pub(super) fn new(arriving: Subscriber) -> Self {
        Self { arriving, slice: VecDeque::new(), had_arrived: SuspendAwareInstant::now() }
    }

    /// Returns the next message of the slice.
    pub(super) fn first(&self) -> Option<&Message> {
        self.slice.front()
    }

    /// Removes the next message from the slice.
    pub(super) fn take_first(&mut self) -> Option<Message> {
        self.slice.pop_front()
    }

    /// Returns a time at which the last message that was read had arrived.
    pub(super) fn had_arrived(&self) -> SuspendAwareInstant {
        self.had_arrived
    }

    /// Lets other tasks run if it is their turn, then begins a slice of the messages that have
    /// arrived, if any.
    pub(super) async fn begin_slice(&mut self) {
        // The first read below ignores the budget. Otherwise the reader would wait for a message
        // that has arrived, and the message would count as fresh.
        consume_budget().await;
        let first = unconstrained(self.arriving.next()).now_or_never().flatten();
        self.fill(first);
    }

    /// Like [`begin_slice`](Self::begin_slice), without a wait. Returns `false` if the present
    /// slice has a message left, if no message has arrived, or if it is the turn of other tasks.
    pub(super) fn begin_slice_at_once(&mut self) -> bool {
        if !self.slice.is_empty() {
            return false;
        }
        let first = self.arriving.next().now_or_never().flatten();
        self.fill(first);
        !self.slice.is_empty()
    }

    fn fill(&mut self, first: Option<Message>) {
        let Some(first) = first else { return };
        self.slice.push_back(first);
        while self.slice.len() < SLICE
            && let Some(Some(message)) = self.arriving.next().now_or_never()
        {
            self.slice.push_back(message);
        }
        self.had_arrived = SuspendAwareInstant::now();
    }

    /// Waits for a message while no slice has any. Returns the message and the time of its
    /// arrival, or `None` if the subscription has ended. Cancel safe.
    pub(super) async fn arrival(&mut self) -> (Option<Message>, SuspendAwareInstant) {
        let (message, arrived) = arrival(&mut self.arriving).await;
        self.had_arrived = SuspendAwareInstant::now();
        (message, arrived)
    }
}
