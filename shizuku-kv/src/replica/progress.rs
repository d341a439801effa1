//! How far a replica is, for those who ask.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::ReplicaError;
use crate::store::{Pulse, WatchCursor, WatchLink};

/// How far a replica is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReplicaProgress {
    /// The cursor up to which everything was applied and kept; `None` at first, and while the replica repairs itself.
    pub applied: Option<WatchCursor>,
    /// Whether the state has been complete since the run began, or since the last repair did.
    pub caught_up: bool,
    /// Whether the store is heard from; if not, since when and why.
    pub link: WatchLink,
    /// How many updates have come and are not applied and kept yet, as far as they are being applied.
    pub unapplied: usize,
    /// When the first of these came, by the local clock.
    pub unapplied_since: Option<SystemTime>,
    /// What is in the way of applying them: gone when it has worked. After the end of a run: why it ended.
    pub last_error: Option<Arc<ReplicaError>>,
    /// How many updates have been applied since the replica was made, those found by repairs included and caught-up
    /// markers not.
    pub updates: u64,
    /// How many times the state was taken anew since the replica was made, because there was no place to go on from or it
    /// a [comparison](super::Replica::compare_every) has found a difference.
    pub repairs: u64,
    /// Whether it runs.
    pub running: bool,
}

impl ReplicaProgress {
    /// Whether the state is that of the bucket but for what is on its way: it runs, is caught up, hears from the store, and
    /// nothing fails. False also while the store is away, when a node may well serve what it has: the guide
    /// `guide::replicas` has a readiness probe.
    pub fn is_current(&self) -> bool {
        self.running && self.caught_up && self.link.is_up() && self.last_error.is_none()
    }

    /// The run has ended. Whether that is new.
    pub(super) fn end(&mut self) -> bool {
        (self.unapplied, self.unapplied_since) = (0, None);
        std::mem::replace(&mut self.running, false)
    }

    /// How long the oldest update that has come and is not applied yet has been waiting; zero where there is none.
    pub fn lag(&self) -> Duration {
        let waits = |since: SystemTime| since.elapsed().unwrap_or_default();
        self.unapplied_since.map(waits).unwrap_or_default()
    }
}

/// Tells how far a replica is, also while it runs. From [`Replica::monitor`](super::Replica::monitor); cheap to clone.
///
/// The result describes the moment of the call. The link is down if the future of the run has not
/// been polled for 5 seconds, because its runtime is blocked or the process was suspended or
/// forked.
#[derive(Clone, Debug)]
pub struct ReplicaMonitor {
    pub(super) progress: watch::Receiver<ReplicaProgress>,
    pub(super) pulse: Arc<Pulse>,
}

impl ReplicaMonitor {
    /// How far it is now.
    pub fn progress(&self) -> ReplicaProgress {
        self.as_of_now(self.progress.borrow().clone())
    }

    fn as_of_now(&self, mut progress: ReplicaProgress) -> ReplicaProgress {
        if progress.running {
            progress.link = self.pulse.link(&progress.link);
        }
        progress
    }

    /// Waits until it is caught up with the bucket and nothing fails: [`ReplicaProgress::is_current`]. `false` when
    /// the replica was dropped before.
    ///
    /// It waits for as long as that takes. Dropping the future is safe.
    pub async fn current(&mut self) -> bool {
        loop {
            if self.progress.wait_for(ReplicaProgress::is_current).await.is_err() {
                return false;
            }
            if self.progress().is_current() {
                return true;
            }
            // No event marks the end of a silence.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for what is different from what this handle has seen. `None` when the replica was dropped.
    ///
    /// Dropping the future is safe.
    pub async fn changed(&mut self) -> Option<ReplicaProgress> {
        self.progress.changed().await.ok()?;
        let progress = self.progress.borrow_and_update().clone();
        Some(self.as_of_now(progress))
    }
}
