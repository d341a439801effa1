//! Signs of life of the followers of a store. While their tasks do not run, a value must not be
//! reported as current (ADR 0049).

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::store::{Deadline, KvError, KvStore, SuspendAwareInstant, WatchLink, WatchScope, lock};

/// Interval between signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// Time without a sign of life after which the runtime counts as stopped: a blocked runtime, a
/// suspended process, a forked child.
const BOUND: Duration = Duration::from_secs(5);

/// The last sign of life of one runtime, or of one future.
#[derive(Debug)]
pub(crate) struct Pulse {
    last: Mutex<SuspendAwareInstant>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { last: Mutex::new(SuspendAwareInstant::now()) }
    }
}

impl Pulse {
    fn last(&self) -> SuspendAwareInstant {
        *lock(&self.last)
    }

    pub(crate) fn beat(&self) {
        *lock(&self.last) = SuspendAwareInstant::now();
    }

    /// Returns the time since which no task has run. Returns `None` if tasks run.
    fn silent_since(&self) -> Option<SystemTime> {
        let last = self.last();
        (last.elapsed() > BOUND).then(|| last.wall())
    }

    /// Returns the connection state: down if no task runs that would detect a change, otherwise
    /// `link`.
    pub(crate) fn link(&self, link: &WatchLink) -> WatchLink {
        match self.silent_since() {
            Some(since) if link.is_up() => WatchLink::down(
                since,
                "no task runs that would receive updates of the store: its runtime is blocked or \
                 has ended, or the process was suspended or forked",
            ),
            _ => link.clone(),
        }
    }

    /// Waits until the next sign of life is due, and records it. After a silence, waits for an
    /// answer of the store first, because earlier updates do not show the present state.
    pub(crate) async fn next(&self, store: &dyn KvStore) {
        tokio::time::sleep(BEAT).await;
        while self.silent_since().is_some() {
            let deadline = Deadline::after(Deadline::DEFAULT);
            let answer = store.figures(&WatchScope::All, deadline);
            match deadline.bound("figures", None, answer).await {
                Err(KvError::Timeout { .. } | KvError::Unavailable { .. }) => {
                    tokio::time::sleep(BEAT).await
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.beat();
    }
}
