//! Callers poll the coordinator of their lock in their own tasks (ADR 0093). So they must be able
//! to stop at any time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use crate::adversity::world::{World, within};

/// Polls a future this many times, each time after it was woken. Returns whether it is ready.
async fn polled<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let (mut future, mut left) = (pin!(future), times);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let polled = future.as_mut().poll(context).map(Some);
        if polled.is_pending() && left == 0 { Poll::Ready(None) } else { polled }
    })
    .await
}

#[tokio::test]
async fn caller_dropped_after_any_poll_leaves_no_trace() {
    let world = World::on_nats().await;
    let [one, other] = world.processes().await;
    let _alive = one.stay_alive().await;
    for times in 0.. {
        let is_complete = match polled(one.lock().write(), times).await {
            None => false,
            Some(guard) => polled(guard.unwrap().release(), times).await.is_some(),
        };
        let next = within(5, "the next is granted", other.lock().write()).await.unwrap();
        next.release().await.unwrap();
        world.held_by(0).await;
        if is_complete {
            assert!(times > 1, "nothing was cut off");
            break;
        }
    }
}

/// A future that is held, but not polled, must not stop the coordinator for others.
#[tokio::test]
async fn stuck_callers_stop_no_other_caller() {
    let world = World::on_nats().await;
    let [one, other] = world.processes().await;
    let held = one.lock().write().await.unwrap();
    let mut release = Box::pin(held.release());
    assert!(polled(&mut release, 1).await.is_none());
    let next = within(5, "the release is written", other.lock().read()).await.unwrap();
    let mut claim = Box::pin(async { one.lock().read().await });
    assert!(polled(&mut claim, 1).await.is_none());
    world.held_by(2).await;
    let third = within(5, "a caller of the same process is granted", one.lock().read()).await;
    third.unwrap().release().await.unwrap();
    release.await.unwrap();
    claim.await.unwrap().release().await.unwrap();
    next.release().await.unwrap();
    world.held_by(0).await;
}

/// In memory no step waits. The caller yields nevertheless.
#[tokio::test]
async fn caller_that_never_waits_lets_other_tasks_run() {
    let world = World::in_memory().await;
    let [process] = world.processes().await;
    let (lock, has_run) = (process.lock(), Arc::new(AtomicBool::new(false)));
    lock.write().await.unwrap().release().await.unwrap();
    let runs = Arc::clone(&has_run);
    let other = tokio::spawn(async move { runs.store(true, Ordering::Relaxed) });
    for turn in 0.. {
        lock.write().await.unwrap().release().await.unwrap();
        if has_run.load(Ordering::Relaxed) {
            break;
        }
        assert!(turn < 10_000, "the other task does not run");
    }
    other.await.unwrap();
}
