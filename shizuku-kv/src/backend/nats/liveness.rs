//! Events in place of a message: the end of the connection, a denial, or silence.
//!
//! The timer and the listener are reused for the next message, because creating them for each
//! message costs more than the message itself.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Fuse;
use tokio::runtime;
use tokio::time::{Instant, Sleep, sleep_until};

use super::link::{Interruption, Link, Mark};
use crate::store::timer::current_runtime;

pub(super) struct Liveness {
    interruption: Fuse<Pin<Box<dyn Future<Output = Interruption> + Send + Sync>>>,
    /// A timer that expires from time to time, and is reset if the timeout has not passed.
    silence: Pin<Box<Sleep>>,
    /// The runtime of that timer.
    runtime: Option<runtime::Id>,
}

#[derive(Debug)]
pub(super) enum LivenessEvent {
    Interrupted(Interruption),
    Silence,
}

impl Liveness {
    /// Observes requests and subscriptions to these subjects after `mark`.
    pub(super) fn new(link: Arc<Link>, mark: Mark, subjects: [String; 2]) -> Self {
        let interruption: Pin<Box<dyn Future<Output = Interruption> + Send + Sync>> =
            Box::pin(async move {
                link.interrupted(mark, subjects.each_ref().map(String::as_str)).await
            });
        Self {
            interruption: interruption.fuse(),
            silence: Box::pin(sleep_until(Instant::now())),
            runtime: current_runtime(),
        }
    }

    /// Waits for an event in place of a message. The timeout begins now, not at the last message,
    /// because a reader that did not poll has received nothing either. Cancel safe: the next call
    /// begins another timeout.
    pub(super) async fn next_event(&mut self, patience: Duration) -> LivenessEvent {
        let due = Instant::now() + patience;
        loop {
            let silence = poll_fn(|context| {
                let here = current_runtime();
                if here != self.runtime {
                    // The timer of a runtime that has ended panics.
                    (self.silence, self.runtime) = (Box::pin(sleep_until(due)), here);
                }
                self.silence.as_mut().poll(context)
            });
            tokio::select! {
                biased;
                interruption = &mut self.interruption => {
                    return LivenessEvent::Interrupted(interruption);
                }
                () = silence => {
                    if Instant::now() >= due {
                        return LivenessEvent::Silence;
                    }
                    self.silence.as_mut().reset(due);
                }
            }
        }
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Liveness").finish_non_exhaustive()
    }
}
