//! Tests with several readers of one stream: each item arrives once, and no wake-up is lost.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;

#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn counted() -> (Arc<Count>, Waker) {
    let count = Arc::<Count>::default();
    (Arc::clone(&count), Waker::from(count))
}

fn channel() -> (mpsc::UnboundedSender<u64>, Readers<impl Stream<Item = u64> + Unpin>) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    (sender, Readers::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx))))
}

#[test]
fn every_waiting_reader_is_woken_once_per_item() {
    let (sender, readers) = channel();
    let (first, second) = (counted(), counted());
    let (mut one, mut two) = (pin!(readers.next()), pin!(readers.next()));
    assert!(one.as_mut().poll(&mut Context::from_waker(&second.1)).is_pending());
    assert!(one.as_mut().poll(&mut Context::from_waker(&first.1)).is_pending());
    assert!(two.as_mut().poll(&mut Context::from_waker(&second.1)).is_pending());
    for _ in 0..1000 {
        let mut dropped = Box::pin(readers.next());
        assert!(dropped.as_mut().poll(&mut Context::from_waker(&second.1)).is_pending());
    }
    assert_eq!(lock(&readers.waiting.entered).wakers.len(), 2);
    sender.send(7).unwrap();
    assert_eq!([&first.0, &second.0].map(|count| count.0.load(Ordering::Relaxed)), [1, 1]);
    assert_eq!(one.as_mut().poll(&mut Context::from_waker(&first.1)), Poll::Ready(Some(7)));
    assert!(two.as_mut().poll(&mut Context::from_waker(&second.1)).is_pending());
    sender.send(8).unwrap();
    assert_eq!(two.as_mut().poll(&mut Context::from_waker(&second.1)), Poll::Ready(Some(8)));
}

/// A stream may wake its reader within the poll, as streams of tokio do at the end of a task's
/// budget.
#[test]
fn wake_within_a_poll_is_not_lost() {
    let mut polls = 0;
    let readers = Readers::new(futures_util::stream::poll_fn(move |cx| {
        polls += 1;
        if polls % 2 == 0 {
            return Poll::Ready(Some(polls));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
    let (count, waker) = counted();
    let mut next = pin!(readers.next());
    assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(next.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Some(2)));
}

/// The reader that was woken may never be polled again. Another one then takes the item.
#[test]
fn reader_no_longer_polled_blocks_no_other() {
    let (sender, readers) = channel();
    let (held, other) = (counted(), counted());
    let mut kept = pin!(readers.next());
    let mut polled = pin!(readers.next());
    assert!(polled.as_mut().poll(&mut Context::from_waker(&other.1)).is_pending());
    assert!(kept.as_mut().poll(&mut Context::from_waker(&held.1)).is_pending());
    sender.send(1).unwrap();
    assert_eq!(other.0.0.load(Ordering::Relaxed), 1);
    assert_eq!(polled.as_mut().poll(&mut Context::from_waker(&other.1)), Poll::Ready(Some(1)));
    sender.send(2).unwrap();
    assert_eq!(kept.as_mut().poll(&mut Context::from_waker(&held.1)), Poll::Ready(Some(2)));
}

/// A stream that is polled again before it has woken its reader need not wake it any more. The
/// reader that receives the item wakes the others, so that they pass the waker to the stream again.
#[test]
fn reader_with_an_item_wakes_the_others() {
    let mut items = [Poll::Pending, Poll::Ready(Some(1)), Poll::Ready(Some(2))].into_iter();
    let readers = Readers::new(futures_util::stream::poll_fn(move |_| items.next().unwrap()));
    let (waits, takes) = (counted(), counted());
    let (mut waiting, mut taking) = (pin!(readers.next()), pin!(readers.next()));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waits.1)).is_pending());
    assert_eq!(taking.as_mut().poll(&mut Context::from_waker(&takes.1)), Poll::Ready(Some(1)));
    assert_eq!([&waits.0, &takes.0].map(|count| count.0.load(Ordering::Relaxed)), [1, 0]);
    assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(&waits.1)), Poll::Ready(Some(2)));
}

/// Eight tasks on four threads cancel their reads at random moments, also when an item has just
/// arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_item_arrives_once_under_random_cancellation() {
    const ITEMS: u64 = 20_000;
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let (sender, readers) = channel();
    let readers = Arc::new(readers);
    let tasks = (0..8_u64).map(|task| {
        let readers = Arc::clone(&readers);
        let mut random = fastrand::Rng::with_seed(seed ^ task);
        tokio::spawn(async move {
            let mut taken = Vec::new();
            loop {
                let polls = random.u32(1..4);
                let mut left = polls;
                let mut next = pin!(readers.next());
                // The future is dropped after some polls, at random.
                let item = poll_fn(|cx| match next.as_mut().poll(cx) {
                    Poll::Ready(item) => Poll::Ready(Some(item)),
                    Poll::Pending if left == 0 => Poll::Ready(None),
                    Poll::Pending => {
                        left -= 1;
                        if left == 0 {
                            cx.waker().wake_by_ref();
                        }
                        Poll::Pending
                    }
                });
                match item.await {
                    Some(Some(item)) => taken.push(item),
                    Some(None) => return taken,
                    None => {}
                }
            }
        })
    });
    let tasks = tasks.collect::<Vec<_>>();
    let mut random = fastrand::Rng::with_seed(seed);
    for item in 0..ITEMS {
        sender.send(item).unwrap();
        if random.u8(..) < 64 {
            tokio::task::yield_now().await;
        }
    }
    drop(sender);
    let mut all = HashSet::new();
    let mut count = 0;
    for task in tasks {
        let taken = tokio::time::timeout(Duration::from_secs(60), task)
            .await
            .expect("a lost wake-up")
            .unwrap();
        count += taken.len();
        all.extend(taken);
    }
    assert_eq!((count, all.len()), (20_000, 20_000));
}
