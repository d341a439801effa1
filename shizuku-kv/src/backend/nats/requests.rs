//! Sending requests, and routing their answers.
//!
//! async-nats keeps the sender and the token of its own requests until they are answered (nats.rs
//! #1617). A request that is abandoned because the connection was lost is never answered, and its
//! entry would exist as long as the client. So all answers arrive at one subscription here, and a
//! task delivers each answer to its request ([`pending`](super::pending)).

use std::sync::Arc;

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, SubscribeError, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::link_events::LinkEvents;
use super::pending::{Copies, PendingAnswer, PendingRequests, Size};
use super::wire::size_of;

/// Maximum number of writes of a connection in flight. Further writes wait for a turn, to avoid an
/// overload of the server, which queues 10,000 for a stream and rejects the rest.
const WRITES_IN_FLIGHT: u32 = 5000;

/// Size in bytes of a write for each turn that it takes. So all writes in flight have at most 40
/// MB, of the 128 MB that the server queues for a stream.
const TURN: usize = 8 * 1024;

/// Number of turns that a write of this size takes.
fn turns(size: usize) -> u32 {
    u32::try_from(size.div_ceil(TURN)).unwrap_or(u32::MAX).clamp(1, WRITES_IN_FLIGHT)
}

/// Maximum number of second copies of requests in flight, so that they do not fill a connection
/// that is silent as a whole.
const COPIES_IN_FLIGHT: usize = 256;

/// The requests of one client.
#[derive(Debug)]
pub(super) struct Requests {
    client: Client,
    /// Subject of the answers, up to the number of the request.
    inbox: String,
    table: Arc<PendingRequests>,
    writes: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    router: AbortHandle,
}

impl Requests {
    /// Subscribes to the answers. The task that routes them runs on this runtime, like the tasks of
    /// the client: if it ends, so does the client.
    pub(super) async fn open(client: &Client, events: LinkEvents) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox() + ".";
        let subject = format!("{inbox}*");
        events.answers_arrive_at(&subject);
        let answers = client.subscribe(subject).await?;
        let table = Arc::clone(events.pending());
        let end = EndOnDrop { table: Arc::clone(&table), events };
        let router = tokio::spawn(route(answers, end)).abort_handle();
        let writes = Arc::new(Semaphore::new(WRITES_IN_FLIGHT as usize));
        let copies = Arc::new(Semaphore::new(COPIES_IN_FLIGHT));
        Ok(Self { client: client.clone(), inbox, table, writes, copies, router })
    }

    /// Sends a request, or another copy of an earlier one. Sends nothing if the number of second
    /// copies is at its maximum.
    pub(super) async fn send(
        &self,
        copies: &mut Copies,
        subject: String,
        payload: Bytes,
    ) -> Result<(), PublishError> {
        let mut turn = None;
        if !copies.is_empty() {
            turn = Arc::clone(&self.copies).try_acquire_owned().ok();
            if turn.is_none() {
                return Ok(());
            }
        }
        let waiting = self.table.enter(Size::of(&payload, 0), turn);
        self.client.publish_with_reply(subject, self.reply_to(&waiting), payload).await?;
        copies.add(waiting);
        Ok(())
    }

    /// Sends a write when it is its turn. Writes arrive in the order of their sending.
    pub(super) async fn write(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PendingAnswer, PublishError> {
        // The semaphore is never closed, so waiting does not fail.
        let turns = turns(payload.len());
        let turn = Arc::clone(&self.writes).acquire_many_owned(turns).await.ok();
        let waiting = self.table.enter(Size::of(&payload, size_of(&headers)), turn);
        let reply = self.reply_to(&waiting);
        self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await?;
        Ok(waiting)
    }

    /// Records a request whose answers go to a subscription of its own, until the result is
    /// dropped.
    pub(super) fn other(&self, payload: &Bytes) -> PendingAnswer {
        self.table.enter(Size::of(payload, 0), None)
    }

    fn reply_to(&self, waiting: &PendingAnswer) -> String {
        format!("{}{}", self.inbox, waiting.number())
    }

    /// Waits until every write is answered or abandoned.
    pub(super) async fn writes_are_over(&self) {
        // The semaphore is never closed, so waiting does not fail.
        let _ = self.writes.acquire_many(WRITES_IN_FLIGHT).await;
    }

    /// Fails all present and later requests, and ends the subscription.
    pub(super) fn end(&self) {
        self.router.abort();
        self.table.end();
    }
}

/// The subscription keeps the client alive, so that the task has to end first.
impl Drop for Requests {
    fn drop(&mut self) {
        self.end();
    }
}

/// Routes the answers until no more can arrive.
async fn route(mut answers: Subscriber, end: EndOnDrop) {
    while let Some(message) = answers.next().await {
        end.table.answer(message);
        // Not before: a request that finds no answer then relies on this.
        end.events.heard();
    }
}

/// Ends the requests, even if the task is dropped with its runtime.
struct EndOnDrop {
    table: Arc<PendingRequests>,
    events: LinkEvents,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        // In this order, so that a caller that finds that no answer will come also finds the
        // reason. Apart from this only a shutdown ends the task, and it records its reason first.
        self.events.end_with_runtime();
        self.table.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_write_takes_more_turns() {
        assert_eq!([0, 1, TURN].map(turns), [1; 3]);
        assert_eq!(turns(TURN + 1), 2);
        assert_eq!(turns(1024 * 1024), 128);
        // A write that needed more turns than exist would wait for ever.
        assert_eq!(
            [WRITES_IN_FLIGHT as usize * TURN + 1, usize::MAX].map(turns),
            [WRITES_IN_FLIGHT; 2]
        );
    }
}
