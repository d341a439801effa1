//! The time at which a message arrives.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;

use crate::store::SuspendAwareInstant;

/// Waits for a message. Returns the message and the time of its arrival, because the reader may be
/// polled later.
pub(super) async fn arrival(messages: &mut Subscriber) -> (Option<Message>, SuspendAwareInstant) {
    let mut timed: Option<Arc<TimedWaker>> = None;
    poll_fn(|context| {
        let woken = timed.as_ref().and_then(|timed| timed.woken.get().copied());
        let timed = match &mut timed {
            Some(timed) if woken.is_none() && timed.waker.will_wake(context.waker()) => timed,
            timed => {
                let waker = context.waker().clone();
                timed.insert(Arc::new(TimedWaker { waker, woken: OnceLock::new() }))
            }
        };
        let waker = Waker::from(Arc::clone(timed));
        let message = messages.poll_next_unpin(&mut Context::from_waker(&waker));
        message.map(|message| (message, woken.unwrap_or_else(SuspendAwareInstant::now)))
    })
    .await
}

/// A waker that records the time of its first wake.
struct TimedWaker {
    waker: Waker,
    woken: OnceLock<SuspendAwareInstant>,
}

impl Wake for TimedWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.get_or_init(SuspendAwareInstant::now);
        self.waker.wake_by_ref();
    }
}
