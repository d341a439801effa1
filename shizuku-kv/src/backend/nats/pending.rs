//! The requests that wait for an answer.
//!
//! An entry exists as long as the future that waits for the answer, so that abandoned requests
//! leave no entry.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use async_nats::Message;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The requests of one client that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct PendingRequests(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Whether no answer can arrive any more.
    ended: bool,
    /// Number of the next request. No number is assigned twice, so that a late answer is never
    /// delivered to another request.
    number: u64,
    waiting: HashMap<u64, Waiter>,
    sizes: Sizes,
    /// The last number and the largest size of abandoned requests, which may be in flight until a
    /// later request is answered.
    abandoned: Option<(u64, Size)>,
}

/// Size of a message in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size {
    /// Size with the headers.
    pub(super) whole: usize,
    pub(super) payload: usize,
}

impl Size {
    pub(super) fn of(payload: &Bytes, headers: usize) -> Self {
        Self { whole: headers + payload.len(), payload: payload.len() }
    }
}

/// The number of the last message of each size class, which is a power of two.
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

    /// Returns whether no message after this number can have more than `limit` bytes.
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
    /// Released when the answer arrives, even if the answer is not read.
    turn: Option<OwnedSemaphorePermit>,
    size: Size,
}

// No entry is dropped or woken under the lock, because both can run code of the caller.
impl PendingRequests {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        size: Size,
        turn: Option<OwnedSemaphorePermit>,
    ) -> PendingAnswer {
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
        PendingAnswer { table: Arc::clone(self), number, answer: Some(receiver) }
    }

    /// Returns the size of the largest message in flight, and the sizes of all messages so far.
    pub(super) fn sizes(&self) -> (Option<Size>, Sizes) {
        let entries = self.lock();
        let in_flight = entries.waiting.values().map(|waiter| waiter.size);
        (in_flight.chain(entries.abandoned.map(|(_, size)| size)).max(), entries.sizes)
    }

    /// Delivers an answer to the request whose number is the last token of the subject, unless it
    /// was abandoned.
    pub(super) fn answer(&self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let waiter = number.and_then(|number: u64| self.lock().answered(number));
        if let Some(Waiter { answer, turn, .. }) = waiter {
            let _ = answer.send(message);
            // The number is recorded after the delivery, because `writes_are_over` relies on
            // delivered answers.
            drop(turn);
        }
    }

    fn forget(&self, number: u64) {
        let waiter = self.lock().forget(number);
        drop(waiter);
    }

    pub(super) fn end(&self) {
        let mut entries = self.lock();
        entries.ended = true;
        let waiting = std::mem::take(&mut entries.waiting);
        drop(entries);
        drop(waiting);
    }
}

/// A future for the answer to a sent request. Returns `None` if no answer can arrive. A later poll
/// waits forever. Dropping the future abandons the request.
#[derive(Debug)]
pub(super) struct PendingAnswer {
    table: Arc<PendingRequests>,
    number: u64,
    /// `None` once the request has ended.
    answer: Option<oneshot::Receiver<Message>>,
}

impl PendingAnswer {
    /// Returns the number of the request. Later ones have higher numbers.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Future for PendingAnswer {
    type Output = Option<Message>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(receiver) = &mut self.answer else { return Poll::Pending };
        let answer = ready!(Pin::new(receiver).poll(cx));
        // The entry is removed before the answer is sent or the sender is dropped.
        self.answer = None;
        Poll::Ready(answer.ok())
    }
}

/// The copies of one request that wait for an answer: the first and the last. A slow server answers
/// the first copy first. If the first copy was lost, the last one is answered.
#[derive(Debug, Default)]
pub(super) struct Copies {
    first: Option<PendingAnswer>,
    last: Option<PendingAnswer>,
}

impl Copies {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn add(&mut self, copy: PendingAnswer) {
        match self.first {
            None => self.first = Some(copy),
            Some(_) => self.last = Some(copy),
        }
    }

    /// Returns the first answer to any of the copies. Returns `None` if no answer can arrive.
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

impl Drop for PendingAnswer {
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
    use tokio::sync::Semaphore;

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

    fn len(table: &PendingRequests) -> usize {
        table.lock().waiting.len()
    }

    #[tokio::test]
    async fn each_answer_goes_to_its_request() {
        let table = Arc::<PendingRequests>::default();
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
        let table = Arc::<PendingRequests>::default();
        let waiting = table.enter(Size::default(), None);
        let payload = Bytes::from(vec![7; 1 << 20]);
        table.answer(Message { payload: payload.clone(), ..answer_to(0) });
        let answer = waiting.now_or_never().flatten().unwrap();
        assert_eq!(answer.payload.as_ptr(), payload.as_ptr());
    }

    #[test]
    fn abandoned_requests_leave_nothing_behind() {
        let table = Arc::<PendingRequests>::default();
        for _ in 0..10_000 {
            let mut waiting = table.enter(Size::default(), None);
            assert!((&mut waiting).now_or_never().is_none());
            assert_eq!(len(&table), 1);
            let number = waiting.number;
            drop(waiting);
            assert_eq!(len(&table), 0);
            // The answer arrives too late.
            table.answer(answer_to(number));
        }
        assert_eq!(Arc::strong_count(&table), 1);
    }

    #[test]
    fn message_that_is_not_an_answer_is_ignored() {
        let table = Arc::<PendingRequests>::default();
        let mut waiting = table.enter(Size::default(), None);
        for subject in
            ["_INBOX.x.1", "_INBOX.x.", "_INBOX.x.zero", "_INBOX.x.99999999999999999999999"]
        {
            table.answer(Message { subject: subject.into(), ..answer_to(0) });
        }
        assert!((&mut waiting).now_or_never().is_none());
        table.answer(answer_to(0));
        assert!((&mut waiting).now_or_never().flatten().is_some());
        // A later poll waits forever.
        table.answer(answer_to(0));
        assert!((&mut waiting).now_or_never().is_none());
    }

    #[test]
    fn end_fails_present_and_later_requests() {
        let table = Arc::<PendingRequests>::default();
        let (answered, early) =
            (table.enter(Size::default(), None), table.enter(Size::default(), None));
        table.answer(answer_to(0));
        table.end();
        assert!(answered.now_or_never().flatten().is_some());
        assert!(matches!(early.now_or_never(), Some(None)));
        assert!(matches!(table.enter(Size::default(), None).now_or_never(), Some(None)));
        assert_eq!(len(&table), 0);
    }

    #[test]
    fn abandoned_request_counts_until_a_later_answer() {
        let table = Arc::<PendingRequests>::default();
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
        let table = Arc::<PendingRequests>::default();
        let _in_flight = [10, 5000, 9000, 10, 1500].map(|bytes| table.enter(size(bytes), None));
        let sizes = table.sizes().1;
        let last: Vec<_> = (0..5).filter(|number| sizes.is_last_over(*number, 2048)).collect();
        assert_eq!(last, [2, 3, 4]);
        // A message of 1500 bytes can be over a limit of 1024.
        assert!(!sizes.is_last_over(3, 1024) && sizes.is_last_over(4, 1024));
    }

    #[test]
    fn a_turn_ends_with_the_answer_or_with_the_request() {
        let (table, turns) = (Arc::<PendingRequests>::default(), Arc::new(Semaphore::new(2)));
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
