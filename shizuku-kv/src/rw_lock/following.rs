//! A watch that is there while it is wanted, and again when it was lost.

use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::time::Instant;

use crate::store::{KvError, KvResult, KvUpdate, Store, Watch, WatchScope};

/// A watch of a scope, of which others can have a part.
pub(super) struct Following {
    store: Store,
    scope: WatchScope,
    state: State,
}

enum State {
    Not,
    Opening(BoxFuture<'static, KvResult<Watch>>),
    Open(Watch),
    /// It was lost: not before this moment again.
    Resting(Instant),
}

/// What happens to it.
#[derive(Debug)]
pub(super) enum Event {
    /// It is there: the state comes next.
    Opened,
    Update(KvUpdate),
    /// What was known may be of a store that is no more. It goes on by itself.
    Lost,
}

impl Following {
    pub(super) fn new(store: &Store, scope: WatchScope) -> Self {
        Self { store: store.clone(), scope, state: State::Not }
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

    /// The next thing that happens; never while it is not started.
    ///
    /// Dropping the future is safe.
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
                    Some(Ok(update)) => return Event::Update(update),
                    Some(Err(error)) => error,
                    None => KvError::Closed { operation: "watch" },
                },
            };
            tracing::debug!(store = self.store.name(), %error, "a lock is not watched for now");
            // Jittered: everybody else's watch was lost at the same moment.
            let rest = Duration::from_millis(fastrand::u64(50..250));
            self.state = State::Resting(Instant::now() + rest);
            return Event::Lost;
        }
    }
}
