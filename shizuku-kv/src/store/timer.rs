//! Timers of futures that, like streams, may be polled on another runtime than the one on which
//! they began.
//!
//! tokio's own timer belongs to one runtime. It panics once that runtime has ended, and does not
//! fire while that runtime does not run (ADR 0058).

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
#[cfg(any(test, feature = "nats", feature = "file"))]
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

/// Returns the runtime of the caller, if there is one.
pub(crate) fn current_runtime() -> Option<Id> {
    Some(Handle::try_current().ok()?.id())
}

/// Waits until a moment, by the clock of the runtime that polls it.
pub(crate) async fn sleep_until(at: Instant) {
    let mut runtime = current_runtime();
    // Unconstrained, because a task that uses up its budget would otherwise never see its deadline.
    let mut timer = pin!(tokio::task::unconstrained(tokio::time::sleep_until(at)));
    poll_fn(|context| {
        let here = current_runtime();
        if here.is_some() && here != runtime {
            runtime = here;
            timer.set(tokio::task::unconstrained(tokio::time::sleep_until(at)));
        }
        timer.as_mut().poll(context)
    })
    .await;
}

/// Waits for a duration.
#[cfg(any(test, feature = "nats", feature = "file"))]
pub(crate) async fn sleep(span: Duration) {
    let now = Instant::now();
    sleep_until(now.checked_add(span).unwrap_or(now)).await;
}

/// Returns the result of a future that is ready by a moment, otherwise `None`. A future that is
/// ready at once needs no timer.
pub(crate) async fn timeout_at<T>(at: Instant, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut timer = pin!(None);
    poll_fn(|context| {
        if let Poll::Ready(result) = future.as_mut().poll(context) {
            return Poll::Ready(Some(result));
        }
        if timer.is_none() {
            timer.set(Some(sleep_until(at)));
        }
        match timer.as_mut().as_pin_mut() {
            Some(timer) => timer.poll(context).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests {
    use std::task::Context;

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn timer_outlives_its_first_runtime() {
        let span = Duration::from_secs(1);
        let mut sleep = Box::pin(sleep(span));
        let mut timeout = Box::pin(timeout_at(Instant::now() + span, std::future::pending::<()>()));
        let ending = runtime();
        ending.block_on(async {
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(sleep.as_mut().poll(&mut context).is_pending());
            assert!(timeout.as_mut().poll(&mut context).is_pending());
        });
        drop(ending);
        runtime().block_on(async {
            sleep.await;
            assert!(timeout.await.is_none());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn busy_future_ends_at_its_deadline() {
        let busy = async {
            loop {
                tokio::task::consume_budget().await;
            }
        };
        assert!(timeout_at(Instant::now(), busy).await.is_none_or(|()| false));
    }
}
