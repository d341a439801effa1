//! Requests that leave nothing behind: who waits for an answer stands in a table of ours until it
//! comes or is given up.
//!
//! async-nats keeps the sender and the token of its own requests until they are answered (nats.rs
//! #1617). One that is given up because the link was lost is never answered, and would stay as long
//! as the connection. So the answers come to one subscription here, a task hands each to who waits
//! for it, and the entry goes with the future that waits.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, Message, SubscribeError, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::link::LinkEvents;
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
    /// Where the answers come to, up to the number of the request.
    inbox: String,
    table: Arc<Table>,
    writes: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    router: AbortHandle,
}

impl Requests {
    /// Subscribes to the answers. The task that hands them out runs on this runtime, as the
    /// client's own do: where it ends, so does the client.
    pub(super) async fn open(client: &Client, events: LinkEvents) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox() + ".";
        let subject = format!("{inbox}*");
        events.answers_come_to(&subject);
        let answers = client.subscribe(subject).await?;
        let table = Arc::clone(events.table());
        let end = EndOnDrop { table: Arc::clone(&table), events };
        let router = tokio::spawn(route(answers, end)).abort_handle();
        let writes = Arc::new(Semaphore::new(WRITES_IN_FLIGHT as usize));
        let copies = Arc::new(Semaphore::new(COPIES_IN_FLIGHT));
        Ok(Self { client: client.clone(), inbox, table, writes, copies, router })
    }

    /// Sends a request, or another copy of an earlier one. Sends nothing if the number of second
    /// copies is at its maximum.
    pub(super) async fn ask(
        &self,
        copies: &mut Copies,
        subject: String,
        payload: Bytes,
    ) -> Result<(), PublishError> {
        let mut turn = None;
        if copies.first.is_some() {
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

    /// Sends a write when it is its turn. One that is sent after another also arrives after it.
    pub(super) async fn write(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Waiting, PublishError> {
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
    pub(super) fn other(&self, payload: &Bytes) -> Waiting {
        self.table.enter(Size::of(payload, 0), None)
    }

    fn reply_to(&self, waiting: &Waiting) -> String {
        format!("{}{}", self.inbox, waiting.number)
    }

    /// Waits until every write is answered or given up.
    pub(super) async fn writes_are_over(&self) {
        // The semaphore is never closed, so waiting does not fail.
        let _ = self.writes.acquire_many(WRITES_IN_FLIGHT).await;
    }

    /// Fails all that wait and all that will, and ends the subscription.
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

/// Hands out the answers until there will be no more.
async fn route(mut answers: Subscriber, end: EndOnDrop) {
    while let Some(message) = answers.next().await {
        end.table.answer(message);
        // Not before: a request that finds no answer then relies on this.
        end.events.heard();
    }
}

/// Also where the task is dropped with its runtime.
struct EndOnDrop {
    table: Arc<Table>,
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

/// Those who wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// No answer will come any more.
    ended: bool,
    /// Of the next request. None is given twice, so that a late answer never goes to another.
    number: u64,
    waiting: HashMap<u64, Waiter>,
    sizes: Sizes,
    /// The last number and the largest size of requests that were given up. They may be in flight
    /// until a later request is answered.
    abandoned: Option<(u64, Size)>,
}

/// Size of a message in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size {
    /// With its headers.
    pub(super) whole: usize,
    pub(super) payload: usize,
}

impl Size {
    fn of(payload: &Bytes, headers: usize) -> Self {
        Self { whole: headers + payload.len(), payload: payload.len() }
    }
}

/// The number of the last message of each size, by its power of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes([Option<u64>; usize::BITS as usize]);

impl Default for Sizes {
    fn default() -> Self {
        Self([None; usize::BITS as usize])
    }
}

impl Sizes {
    fn class(size: usize) -> usize {
        size.max(1).ilog2() as usize
    }

    /// Whether no message after this number can have more than `limit` bytes.
    pub(super) fn is_last_over(&self, number: u64, limit: usize) -> bool {
        self.0.iter().skip(Self::class(limit)).flatten().all(|last| *last <= number)
    }
}

impl Entries {
    fn answered(&mut self, number: u64) -> Option<Waiter> {
        self.abandoned.take_if(|(last, _)| *last < number);
        self.waiting.remove(&number)
    }

    fn forget(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&number)?;
        let (last, largest) = self.abandoned.unwrap_or_default();
        self.abandoned = Some((last.max(number), largest.max(waiter.size)));
        Some(waiter)
    }
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Message>,
    /// Given back as soon as the answer is there, whether or not somebody looks at it.
    turn: Option<OwnedSemaphorePermit>,
    size: Size,
}

// Nothing of an entry is dropped or woken under the lock: that can run code of others.
impl Table {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, size: Size, turn: Option<OwnedSemaphorePermit>) -> Waiting {
        let (answer, receiver) = oneshot::channel();
        let waiter = Waiter { answer, turn, size };
        let mut entries = self.lock();
        let number = entries.number;
        entries.number += 1;
        if let Some(last) = entries.sizes.0.get_mut(Sizes::class(size.whole)) {
            *last = Some(number);
        }
        if !entries.ended {
            entries.waiting.insert(number, waiter);
        }
        drop(entries);
        Waiting { table: Arc::clone(self), number, answer: Some(receiver) }
    }

    /// Returns the size of the largest message in flight, and the sizes of all messages so far.
    pub(super) fn sizes(&self) -> (Option<Size>, Sizes) {
        let entries = self.lock();
        let in_flight = entries.waiting.values().map(|waiter| waiter.size);
        (in_flight.chain(entries.abandoned.map(|(_, size)| size)).max(), entries.sizes)
    }

    /// The one who waits under the last token of the subject gets the message; where it was given
    /// up, nobody does.
    fn answer(&self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let waiter = number.and_then(|number: u64| self.lock().answered(number));
        if let Some(Waiter { answer, turn, .. }) = waiter {
            let _ = answer.send(message);
            // Not before: who waits for all turns relies on the answers being there.
            drop(turn);
        }
    }

    fn forget(&self, number: u64) {
        let waiter = self.lock().forget(number);
        drop(waiter);
    }

    fn end(&self) {
        let mut entries = self.lock();
        entries.ended = true;
        let waiting = std::mem::take(&mut entries.waiting);
        drop(entries);
        drop(waiting);
    }
}

/// Waits for the answer to a request that was sent; none where no answer will come. May be polled
/// again after that, and then waits for ever. Dropping it gives the request up.
#[derive(Debug)]
pub(super) struct Waiting {
    table: Arc<Table>,
    number: u64,
    /// There as long as the request is not over.
    answer: Option<oneshot::Receiver<Message>>,
}

impl Waiting {
    /// Number of the request. Later ones have higher numbers.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Future for Waiting {
    type Output = Option<Message>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(receiver) = &mut self.answer else { return Poll::Pending };
        let answer = ready!(Pin::new(receiver).poll(cx));
        // Whoever sent it, or dropped the sender, has taken the entry out.
        self.answer = None;
        Poll::Ready(answer.ok())
    }
}

/// The copies of one request that wait for an answer: the first, whose answer comes first if the
/// server is slow, and the last, which is answered if the first was lost.
#[derive(Debug, Default)]
pub(super) struct Copies {
    first: Option<Waiting>,
    last: Option<Waiting>,
}

impl Copies {
    fn add(&mut self, copy: Waiting) {
        match self.first {
            None => self.first = Some(copy),
            Some(_) => self.last = Some(copy),
        }
    }

    /// The first answer to any of them; `None` if no answer will come.
    pub(super) async fn answer(&mut self) -> Option<Message> {
        poll_fn(|context| {
            let mut all = self.first.iter_mut().chain(&mut self.last);
            let ready = all.find_map(|copy| match Pin::new(copy).poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.table.forget(self.number);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    fn answer_to(number: u64) -> Message {
        Message {
            subject: format!("_INBOX.x.{number}").into(),
            reply: None,
            payload: Bytes::from_static(b"answer"),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    fn size(bytes: usize) -> Size {
        Size { whole: bytes, payload: bytes }
    }

    fn len(table: &Table) -> usize {
        table.lock().waiting.len()
    }

    #[tokio::test]
    async fn each_answer_goes_to_its_request() {
        let table = Arc::<Table>::default();
        let waiting: Vec<_> = (0..100).map(|_| table.enter(Size::default(), None)).collect();
        for number in (0..100).rev() {
            table.answer(answer_to(number));
        }
        assert_eq!(len(&table), 0);
        for (number, answer) in join_all(waiting).await.into_iter().enumerate() {
            assert_eq!(answer.unwrap().subject.as_str(), format!("_INBOX.x.{number}"));
        }
    }

    #[test]
    fn an_answer_is_not_copied() {
        let table = Arc::<Table>::default();
        let waiting = table.enter(Size::default(), None);
        let payload = Bytes::from(vec![7; 1 << 20]);
        table.answer(Message { payload: payload.clone(), ..answer_to(0) });
        let answer = waiting.now_or_never().flatten().unwrap();
        assert_eq!(answer.payload.as_ptr(), payload.as_ptr());
    }

    #[test]
    fn requests_that_are_given_up_leave_nothing_behind() {
        let table = Arc::<Table>::default();
        for _ in 0..10_000 {
            let mut waiting = table.enter(Size::default(), None);
            assert!((&mut waiting).now_or_never().is_none());
            assert_eq!(len(&table), 1);
            let number = waiting.number;
            drop(waiting);
            assert_eq!(len(&table), 0);
            // It comes too late.
            table.answer(answer_to(number));
        }
        assert_eq!(Arc::strong_count(&table), 1);
    }

    #[test]
    fn what_is_no_answer_is_ignored() {
        let table = Arc::<Table>::default();
        let mut waiting = table.enter(Size::default(), None);
        for subject in
            ["_INBOX.x.1", "_INBOX.x.", "_INBOX.x.zero", "_INBOX.x.99999999999999999999999"]
        {
            table.answer(Message { subject: subject.into(), ..answer_to(0) });
        }
        assert!((&mut waiting).now_or_never().is_none());
        table.answer(answer_to(0));
        assert!((&mut waiting).now_or_never().flatten().is_some());
        // Whoever asks once more waits for ever.
        table.answer(answer_to(0));
        assert!((&mut waiting).now_or_never().is_none());
    }

    #[test]
    fn the_end_fails_those_who_wait_and_those_who_come_later() {
        let table = Arc::<Table>::default();
        let (answered, early) =
            (table.enter(Size::default(), None), table.enter(Size::default(), None));
        table.answer(answer_to(0));
        drop(EndOnDrop { table: Arc::clone(&table), events: LinkEvents::new() });
        assert!(answered.now_or_never().flatten().is_some());
        assert!(matches!(early.now_or_never(), Some(None)));
        assert!(matches!(table.enter(Size::default(), None).now_or_never(), Some(None)));
        assert_eq!(len(&table), 0);
    }

    #[test]
    fn abandoned_request_counts_until_a_later_answer() {
        let table = Arc::<Table>::default();
        let (large, small) = (table.enter(size(5000), None), table.enter(size(10), None));
        assert_eq!(table.sizes().0, Some(size(5000)));
        drop(large);
        assert_eq!(table.sizes().0, Some(size(5000)));
        table.answer(answer_to(1));
        assert_eq!(table.sizes().0, None);
        drop(small);
        assert_eq!(table.sizes().0, None);
    }

    #[test]
    fn last_message_over_a_limit_is_known() {
        let table = Arc::<Table>::default();
        let _in_flight = [10, 5000, 9000, 10, 1500].map(|bytes| table.enter(size(bytes), None));
        let sizes = table.sizes().1;
        let last: Vec<_> = (0..5).filter(|number| sizes.is_last_over(*number, 2048)).collect();
        assert_eq!(last, [2, 3, 4]);
        // A message of 1500 bytes can be over a limit of 1024.
        assert!(!sizes.is_last_over(3, 1024) && sizes.is_last_over(4, 1024));
    }

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

    #[test]
    fn a_turn_ends_with_the_answer_or_with_the_request() {
        let (table, turns) = (Arc::<Table>::default(), Arc::new(Semaphore::new(2)));
        let turn = || Arc::clone(&turns).try_acquire_owned().ok();
        let (answered, given_up) =
            (table.enter(Size::default(), turn()), table.enter(Size::default(), turn()));
        assert!(turn().is_none());
        table.answer(answer_to(0));
        assert_eq!(turns.available_permits(), 1);
        drop(given_up);
        assert_eq!(turns.available_permits(), 2);
        assert!(answered.now_or_never().flatten().is_some());
    }
}
