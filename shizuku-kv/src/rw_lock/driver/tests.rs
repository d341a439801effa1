//! The driver over a future that answers requests, in tokio's runtimes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot::{self, channel};
use tokio::task;

use super::*;

/// A request waits for its gate, and is answered with the id of the task that polls the future.
struct Request {
    gate: oneshot::Receiver<()>,
    reply: oneshot::Sender<Option<task::Id>>,
}

struct Service {
    driver: Arc<Driver>,
    requests: UnboundedSender<Request>,
}

impl Service {
    fn start() -> Self {
        let (requests, mut received) = unbounded_channel::<Request>();
        let future = async move {
            while let Some(Request { gate, reply }) = received.recv().await {
                if gate.await.is_err() {
                    panic!("the gate is gone");
                }
                let _ = reply.send(task::try_id());
            }
        };
        let runtime = Handle::current();
        let driver = Driver::new(runtime.id(), Box::pin(future));
        driver.start(&runtime);
        Self { driver, requests }
    }

    fn request(&self) -> (oneshot::Sender<()>, Answer<Option<task::Id>>) {
        let (open, gate) = channel();
        let (reply, receiver) = channel();
        let turn = self.driver.begin();
        self.requests.send(Request { gate, reply }).unwrap();
        (open, Answer::new(Some(turn), receiver))
    }
}

#[tokio::test(start_paused = true)]
async fn caller_polls_the_future_in_its_own_task() {
    let service = Service::start();
    let caller = task::spawn(async move {
        let (open, answer) = service.request();
        let opening = task::spawn(async move { open.send(()).unwrap() });
        let by = answer.await.unwrap();
        opening.await.unwrap();
        assert_eq!(by, task::try_id());
        service
    });
    let service = caller.await.unwrap();
    // A request without a caller is answered too.
    let (open, answer) = service.request();
    open.send(()).unwrap();
    let Answer { turn, receiver } = answer;
    drop(turn);
    assert!(receiver.await.unwrap().is_some());
}

/// A future that is held but not polled would otherwise stop all others.
#[tokio::test(start_paused = true)]
async fn stuck_caller_loses_its_turn() {
    for has_wake in [false, true] {
        let service = Service::start();
        let (open_stuck, mut stuck) = service.request();
        assert!(poll_immediate(&mut stuck).await.is_none());
        let open_stuck = if has_wake {
            open_stuck.send(()).unwrap();
            None
        } else {
            Some(open_stuck)
        };
        let start = Instant::now();
        let (open, answer) = service.request();
        open.send(()).unwrap();
        // This request is polled by the background task only.
        let Answer { turn, receiver } = answer;
        std::mem::forget(turn);
        if let Some(open_stuck) = open_stuck {
            task::yield_now().await;
            open_stuck.send(()).unwrap();
        }
        receiver.await.unwrap();
        assert!(start.elapsed() <= 2 * TURN, "{:?}", start.elapsed());
        assert!(stuck.await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_caller_leaves_its_wake_to_the_background_task() {
    for is_polled in [false, true] {
        let service = Service::start();
        let (open, mut dropped) = service.request();
        if is_polled {
            assert!(poll_immediate(&mut dropped).await.is_none());
        }
        open.send(()).unwrap();
        let (start, receiver) =
            (Instant::now(), std::mem::replace(&mut dropped.receiver, channel().1));
        drop(dropped);
        receiver.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

/// A timer of another runtime would not fire, or would panic.
#[test]
fn caller_on_another_runtime_does_not_poll() {
    let own = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let other = Builder::new_current_thread().enable_all().build().unwrap();
    let entered = own.enter();
    let service = Service::start();
    drop(entered);
    let (open, answer) = service.request();
    let by = other.block_on(async {
        let waiting = task::spawn(answer);
        open.send(()).unwrap();
        (waiting.await.unwrap().unwrap(), task::try_id())
    });
    assert!(by.0.is_some() && by.0 != by.1);
}

#[tokio::test]
async fn panic_of_the_future_reaches_callers_as_its_end() {
    let service = Service::start();
    let (open, answer) = service.request();
    let (_open_next, next) = service.request();
    drop(open);
    let (answer, next) = tokio::join!(answer, next);
    assert!(answer.is_err() && next.is_err());
    service.requests.closed().await;
}

/// The future is dropped with its runtime, although callers hold the driver.
#[test]
fn end_of_the_runtime_ends_the_future() {
    let own = Builder::new_current_thread().enable_all().build().unwrap();
    let service = own.block_on(async { Service::start() });
    let (_open, answer) = service.request();
    drop(own);
    assert!(service.requests.is_closed());
    let other = Builder::new_current_thread().build().unwrap();
    assert!(other.block_on(answer).is_err());
}

/// The future is ready all the time, and uses up the budget of the caller's task.
#[tokio::test]
async fn busy_future_lets_its_caller_continue() {
    let (reply, receiver) = channel();
    let mut reply = Some(reply);
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    let future = async move {
        while !ends.load(Ordering::Relaxed) {
            task::consume_budget().await;
            if let Some(reply) = reply.take() {
                let _ = reply.send(());
            }
        }
    };
    let driver = Driver::new(Handle::current().id(), future.boxed());
    driver.start(&Handle::current());
    Answer::new(Some(driver.begin()), receiver).await.unwrap();
    is_over.store(true, Ordering::Relaxed);
}
