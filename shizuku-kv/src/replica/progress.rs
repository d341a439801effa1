//! The progress of a replica, for its users.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::ReplicaError;
use crate::store::{KvError, WatchCursor, WatchLink};
use crate::watch::Pulse;

/// The progress of a replica.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReplicaProgress {
    /// Cursor up to which everything was applied and committed. `None` at first, and during a
    /// resync.
    pub applied: Option<WatchCursor>,
    /// True if the state has been complete since the run or the last resync began. A run that
    /// resumed from a checkpoint is complete once a comparison with the store has shown that no
    /// update was missed.
    pub caught_up: bool,
    /// The connection state of the watch: up, or down since when and why.
    pub link: WatchLink,
    /// Number of updates that have come and are not applied and committed yet, as far as they are
    /// being applied.
    pub unapplied: usize,
    /// Time at which the first of these came, by the local clock.
    pub unapplied_since: Option<SystemTime>,
    /// The error that prevents applying. `None` after a success. After the end of a run, the reason
    /// why it ended.
    pub last_error: Option<Arc<ReplicaError>>,
    /// Error of the last comparison with the store that failed; `None` after a success. Until the
    /// first success a run that resumed from a checkpoint is not [current](Self::is_current).
    pub comparison_error: Option<Arc<KvError>>,
    /// Number of updates that have been applied since the replica was made. Includes those that a
    /// resync found, but no caught-up markers.
    pub updates: u64,
    /// Number of resyncs since the replica was made. A resync happens if the replica has no cursor
    /// from which it can resume, or a [comparison](super::Replica::compare_every) has found a
    /// difference.
    pub resyncs: u64,
    /// True while it runs.
    pub running: bool,
}

/// Compares errors by their messages.
impl PartialEq for ReplicaProgress {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            applied,
            caught_up,
            link,
            unapplied,
            unapplied_since,
            last_error,
            comparison_error,
            updates,
            resyncs,
            running,
        } = self;
        fn text<E: ToString>(error: &Option<Arc<E>>) -> Option<String> {
            error.as_ref().map(|error| error.to_string())
        }
        (applied, caught_up, link, unapplied, unapplied_since, updates, resyncs, running)
            == (
                &other.applied,
                &other.caught_up,
                &other.link,
                &other.unapplied,
                &other.unapplied_since,
                &other.updates,
                &other.resyncs,
                &other.running,
            )
            && text(last_error) == text(&other.last_error)
            && text(comparison_error) == text(&other.comparison_error)
    }
}

impl Eq for ReplicaProgress {}

impl ReplicaProgress {
    /// Returns true if the state is that of the store, except for updates in transit. The replica
    /// runs, is caught up, hears from the store, and nothing fails. Returns false during an outage
    /// of the store too, although a node may well serve its state then: the guide `guide::replicas`
    /// has a readiness probe.
    pub fn is_current(&self) -> bool {
        self.running && self.caught_up && self.link.is_up() && self.last_error.is_none()
    }

    /// Records that the run has ended. Returns true if it was running.
    pub(super) fn end(&mut self) -> bool {
        (self.unapplied, self.unapplied_since) = (0, None);
        std::mem::replace(&mut self.running, false)
    }

    /// Returns the age of the oldest update that has come and is not applied yet. Returns zero if
    /// no such update exists.
    pub fn lag(&self) -> Duration {
        let waits = |since: SystemTime| since.elapsed().unwrap_or_default();
        self.unapplied_since.map(waits).unwrap_or_default()
    }
}

/// Reports the progress of a replica, also while it runs. From
/// [`Replica::monitor`](super::Replica::monitor); cheap to clone.
///
/// The result describes the moment of the call. The link is down if the future of the run has not
/// been polled for 5 seconds. Its runtime is then blocked, or the process was suspended or forked.
#[derive(Clone, Debug)]
pub struct ReplicaMonitor {
    pub(super) progress: watch::Receiver<ReplicaProgress>,
    pub(super) pulse: Arc<Pulse>,
}

impl ReplicaMonitor {
    /// Returns the current progress.
    pub fn progress(&self) -> ReplicaProgress {
        self.as_of_now(self.progress.borrow().clone())
    }

    fn as_of_now(&self, mut progress: ReplicaProgress) -> ReplicaProgress {
        if progress.running {
            progress.link = self.pulse.link(&progress.link);
        }
        progress
    }

    /// Waits until the replica is caught up with the store and nothing fails:
    /// [`ReplicaProgress::is_current`]. Returns `false` if the replica was dropped before.
    ///
    /// It waits without a limit. Dropping the future is safe.
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

    /// Waits for a progress that differs from the last one that this handle has seen. Returns
    /// `None` if the replica was dropped.
    ///
    /// Dropping the future is safe.
    pub async fn changed(&mut self) -> Option<ReplicaProgress> {
        self.progress.changed().await.ok()?;
        let progress = self.progress.borrow_and_update().clone();
        Some(self.as_of_now(progress))
    }
}
