//! The task that follows the record of a live value.

use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::{Either, select};
use tokio::sync::watch;

use super::panics::{catch_panic, read};
use super::snapshot::LiveSnapshot;
use super::status::{LiveSyncState, State};
use crate::record::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvError, KvOperation, KvUpdate, VersionToken};
use crate::watch::{Event, Follower, KeyComparison};

/// Conversion of a record, or of its absence, to the current value.
pub(super) struct Policy<T, V> {
    /// Converts a record.
    pub(super) present: fn(T) -> V,
    /// Returns the current value if the store has no record. Without it, the last value stays
    /// current.
    pub(super) absent: Option<fn() -> V>,
}

/// A state of the record in the store that is not the current value yet.
pub(super) enum Candidate<V> {
    Good(LiveSnapshot<V>),
    Bad(VersionToken, Arc<KvReadError>),
    Absent(Option<(KvOperation, VersionToken)>),
}

/// Reads an update of a record. Returns `None` for the caught-up marker.
pub(super) fn candidate<T, V>(update: KvUpdate, present: fn(T) -> V) -> Option<Candidate<V>>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let entry = update.into_entry()?;
    let version = entry.version;
    if entry.is_tombstone() {
        return Some(Candidate::Absent(Some((entry.operation, version))));
    }
    Some(match read::<T, _>(&entry, |_| ()) {
        Ok((value, ())) => {
            Candidate::Good(LiveSnapshot::of(present(value), version, entry.created))
        }
        Err(error) => {
            // The error names the type, the key and the fault, and nothing of the value.
            tracing::warn!(%error, "rejected a live value, keeping the last good one");
            Candidate::Bad(version, Arc::new(error))
        }
    })
}

/// Follows one record for as long as it is not aborted.
pub(super) struct LiveTask<T, V> {
    pub(super) follower: Follower,
    pub(super) policy: Policy<T, V>,
    pub(super) value: Arc<ArcSwap<LiveSnapshot<V>>>,
    pub(super) states: watch::Sender<State>,
    pub(super) comparison: KeyComparison,
}

impl<T, V> LiveTask<T, V>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    /// Runs until the connection is closed or the type's own code panics.
    pub(super) async fn run(mut self) {
        let states = self.states.clone();
        let end = |error| {
            states.send_modify(|state| state.status.sync_state = LiveSyncState::Ended { error })
        };
        catch_panic::<T>("live", async { end(self.follow().await) }, end).await;
    }

    /// Applies the changes of the record, until the connection is closed. Returns the reason. A key
    /// that is missing in an initial state is absent. After a loss, the connection state is down,
    /// and the current value may be stale, until the next watch has delivered the record.
    async fn follow(&mut self) -> KvError {
        loop {
            self.states.send_if_modified(|state| self.follower.update_link(&mut state.status.link));
            let event =
                match select(pin!(self.follower.next()), pin!(self.comparison.differs())).await {
                    Either::Left((event, _)) => Some(event),
                    Either::Right(_) => None,
                };
            match event.unwrap_or_else(|| self.follower.lose_after_difference()) {
                Event::Update(update) => {
                    let value = update.entry().filter(|entry| !entry.is_tombstone());
                    let known = value.map(|entry| (entry.version, entry.created));
                    if let Some(candidate) = candidate(update, self.policy.present) {
                        self.apply(candidate);
                        self.comparison.record(known);
                    }
                }
                Event::CaughtUp { is_empty: true } => {
                    self.apply(Candidate::Absent(None));
                    self.comparison.record(None);
                }
                // The owner of the shared watch logs the warning of a loss for all its readers.
                Event::Opened
                | Event::CaughtUp { is_empty: false }
                | Event::LinkChanged
                | Event::Lost(_) => {}
                Event::Closed(error) => return error,
            }
            // A key that changes all the time must not block other tasks of the thread, nor the end
            // of this task.
            tokio::task::consume_budget().await;
        }
    }

    fn apply(&self, candidate: Candidate<V>) {
        let (value, sync_state) = match candidate {
            Candidate::Good(found) => {
                let held = self.value.load();
                // In a recreated store, versions start again. The time distinguishes an entry from
                // an earlier one with the same version (ADR 0027).
                let is_new = (held.version, held.created) != (found.version, found.created);
                (is_new.then_some(found), LiveSyncState::Current)
            }
            Candidate::Bad(version, error) => (None, LiveSyncState::Rejected { version, error }),
            Candidate::Absent(tombstone) => {
                let is_new = self.value.load().version.is_some();
                let value = self.policy.absent.filter(|_| is_new);
                let value = value.map(|absent| LiveSnapshot::unversioned(absent()));
                (value, LiveSyncState::Absent { tombstone })
            }
        };
        let held = self.value.load().generation;
        let generation = held + u64::from(value.is_some());
        // The value is stored before the handles are notified.
        if let Some(value) = value {
            self.value.store(Arc::new(LiveSnapshot { generation, ..value }));
        }
        self.states.send_modify(|state| {
            state.generation = generation;
            state.status.sync_state = sync_state;
        });
    }
}
