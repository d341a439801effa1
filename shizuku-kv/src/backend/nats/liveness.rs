//! What may come in the place of a message: the end of the connection, a denial, or nothing at
//! all.
//!
//! Kept from one message to the next. A timer and a listener that are made anew for each cost more
//! than the message does.

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
    /// Goes off now and then, and is put off where it is not time yet.
    silence: Pin<Box<Sleep>>,
    /// Whose timer that is.
    runtime: Option<runtime::Id>,
}

#[derive(Debug)]
pub(super) enum Trouble {
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

    /// Waits for trouble. So long nothing may be heard from now on, not from the last word: whoever
    /// did not ask has heard nothing either. Dropping the future is safe.
    pub(super) async fn trouble(&mut self, patience: Duration) -> Trouble {
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
                interruption = &mut self.interruption => return Trouble::Interrupted(interruption),
                () = silence => {
                    if Instant::now() >= due {
                        return Trouble::Silence;
                    }
                    self.silence.as_mut().reset(due);
                }
            }
        }
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookout").finish_non_exhaustive()
    }
}
