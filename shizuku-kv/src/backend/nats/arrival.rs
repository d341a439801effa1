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
    let mut bell: Option<Arc<Bell>> = None;
    poll_fn(|context| {
        let rung = bell.as_ref().and_then(|bell| bell.rung.get().copied());
        let bell = match &mut bell {
            Some(bell) if rung.is_none() && bell.waker.will_wake(context.waker()) => bell,
            bell => {
                let waker = context.waker().clone();
                bell.insert(Arc::new(Bell { waker, rung: OnceLock::new() }))
            }
        };
        let waker = Waker::from(Arc::clone(bell));
        let message = messages.poll_next_unpin(&mut Context::from_waker(&waker));
        message.map(|message| (message, rung.unwrap_or_else(SuspendAwareInstant::now)))
    })
    .await
}

/// A waker that records the time of its first wake.
struct Bell {
    waker: Waker,
    rung: OnceLock<SuspendAwareInstant>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.get_or_init(SuspendAwareInstant::now);
        self.waker.wake_by_ref();
    }
}
