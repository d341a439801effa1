//! A watch that is open while it is wanted, and is reopened after it was lost.

use std::time::Duration;

use backon::ExponentialBackoff;
use futures_core::future::BoxFuture;
use tokio::time::Instant;

use crate::store::{KvError, KvResult, KvUpdate, Store, Watch, WatchScope, backoff};

/// A watch of a scope. It may share its upstream with other watches.
pub(super) struct Following {
    store: Store,
    scope: WatchScope,
    state: State,
    /// `None` after an update. A watch of a user without permission fails again each time, as does
    /// one whose messages are denied.
    pauses: Option<ExponentialBackoff>,
}

enum State {
    Not,
    Opening(BoxFuture<'static, KvResult<Watch>>),
    Open(Watch),
    /// The watch was lost, and is not reopened before this moment.
    Resting(Instant),
}

/// A change of the watch.
#[derive(Debug)]
pub(super) enum Event {
    /// The watch is open, and the initial state follows.
    Opened,
    Update(KvUpdate),
    /// The watch ended, so that the known state may belong to a deleted store. Another one is
    /// opened.
    Lost(KvError),
}

impl Following {
    pub(super) fn new(store: &Store, scope: WatchScope) -> Self {
        Self { store: store.clone(), scope, state: State::Not, pauses: None }
    }

    pub(super) fn start(&mut self) {
        if matches!(self.state, State::Not) {
            self.open();
        }
    }

    pub(super) fn stop(&mut self) {
        self.state = State::Not;
    }

    pub(super) fn is_started(&self) -> bool {
        !matches!(self.state, State::Not)
    }

    fn open(&mut self) {
        let (store, scope) = (self.store.clone(), self.scope.clone());
        self.state = State::Opening(Box::pin(async move { store.shared_watch(scope).await }));
    }

    /// Returns the next event. Waits forever while the watch is not started.
    ///
    /// Cancel safe: the next call continues the wait.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let error = match &mut self.state {
                State::Not => std::future::pending().await,
                State::Resting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.open();
                    continue;
                }
                State::Opening(opening) => match opening.await {
                    Ok(watch) => {
                        self.state = State::Open(watch);
                        return Event::Opened;
                    }
                    Err(error) => error,
                },
                State::Open(watch) => match watch.next().await {
                    Some(Ok(update)) => {
                        self.pauses = None;
                        return Event::Update(update);
                    }
                    Some(Err(error)) => error,
                    None => KvError::Closed { operation: "watch" },
                },
            };
            tracing::debug!(store = self.store.name(), %error, "a lock is not watched for now");
            let pause = self.pauses.get_or_insert_with(backoff_between_watches).next();
            self.state = State::Resting(Instant::now() + pause.unwrap_or_default());
            return Event::Lost(error);
        }
    }
}

/// Returns the pauses before a watch that has ended is reopened.
pub(super) fn backoff_between_watches() -> ExponentialBackoff {
    backoff(Duration::from_millis(50), Duration::from_secs(2))
}
