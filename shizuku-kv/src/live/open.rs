//! Opens live values: waits for their first state, and selects the first value.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::drive::{Candidate, LiveTask, Policy, candidate};
use super::shared::SharedLive;
use super::snapshot::LiveSnapshot;
use super::status::{LiveStatus, LiveSyncState, State};
use super::stream::TaskHandle;
use super::value::Live;
use crate::record::{ByteDeserialize, KeyValue, KvReadError, type_name};
use crate::store::{Deadline, Key, KvError, Store, in_runtime};
use crate::watch::{Event, Follower, upkeep};

/// Waits for the first good value, for as long as the store's deadline.
pub(crate) async fn live<T>(store: Store, key: Key) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut beginning = Beginning::new(store, key);
    let policy = Policy { present: |record| record, absent: None };
    // The last rejection, if a rejected value is the reason for the wait.
    let mut rejected = None;
    let error = loop {
        match beginning.next(policy.present).await {
            Ok(Candidate::Good(first)) => {
                return Ok(beginning.spawn(policy, first, LiveSyncState::Current));
            }
            Ok(Candidate::Bad(_, error)) => rejected = Some(error),
            Ok(Candidate::Absent(_)) => rejected = None,
            Err(error) => break error,
        }
    };
    if !beginning.deadline.remaining().is_zero() {
        return Err(error.into());
    }
    Err(match rejected.map(|error: Arc<KvReadError>| (*error).clone()) {
        Some(rejected) => rejected,
        None if beginning.follower.link().is_up() => {
            KvReadError::Absent { type_name: type_name::<T>(), key: beginning.key }
        }
        None => error.into(),
    })
}

/// Begins with the value of the store. Begins with a default if the value is absent, rejected, or
/// not known by the deadline.
pub(crate) async fn live_or<T>(store: Store, key: Key, default: T) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let policy = Policy { present: |record| record, absent: None };
    let mut beginning = Beginning::new(store, key);
    let candidate = match beginning.next(policy.present).await {
        Ok(candidate) => Some(candidate),
        // A default does not help if the store can never be followed.
        Err(
            error @ (KvError::Closed { .. }
            | KvError::NoRuntime { .. }
            | KvError::Unsupported { .. }),
        ) => {
            return Err(error.into());
        }
        Err(_) => None,
    };
    let default = LiveSnapshot::unversioned(default);
    let (first, sync_state) = match candidate {
        Some(Candidate::Good(first)) => (first, LiveSyncState::Current),
        Some(Candidate::Bad(version, error)) => {
            (default, LiveSyncState::Rejected { version, error })
        }
        Some(Candidate::Absent(tombstone)) => (default, LiveSyncState::Absent { tombstone }),
        None => (default, LiveSyncState::Unknown),
    };
    Ok(beginning.spawn(policy, first, sync_state))
}

/// Begins with the value of the store, or with `None` if it is absent.
pub(crate) async fn live_optional<T>(store: Store, key: Key) -> Result<Live<Option<T>>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let policy = Policy { present: Some, absent: Some(|| None) };
    let mut beginning = Beginning::new(store, key);
    let (first, sync_state) = match beginning.next(policy.present).await? {
        Candidate::Good(first) => (first, LiveSyncState::Current),
        Candidate::Absent(tombstone) => {
            (LiveSnapshot::unversioned(None), LiveSyncState::Absent { tombstone })
        }
        // A rejected value is not an absent one.
        Candidate::Bad(_, error) => return Err((*error).clone()),
    };
    Ok(beginning.spawn(policy, first, sync_state))
}

/// Reads the states of a key until a deadline, over several watches if needed, because the store
/// can be recreated meanwhile.
struct Beginning {
    store: Store,
    key: Key,
    deadline: Deadline,
    follower: Follower,
    /// The last loss, until a later update is delivered.
    last_error: Option<KvError>,
}

impl Beginning {
    fn new(store: Store, key: Key) -> Self {
        let deadline = Deadline::after(store.deadline());
        let follower = Follower::shared_after_read(&store, key.clone());
        Self { store, key, deadline, follower, last_error: None }
    }

    /// Returns the next state, or the reason for not having one by the deadline.
    async fn next<T, V>(&mut self, present: fn(T) -> V) -> Result<Candidate<V>, KvError>
    where
        T: KeyValue<Value: ByteDeserialize>,
    {
        let deadline = self.deadline;
        in_runtime("live")?;
        let next = timeout_at(deadline.instant(), self.candidate(present)).await;
        // A watch of a key that changes all the time is always ready, so the deadline is checked
        // too.
        match next.ok().filter(|_| !deadline.remaining().is_zero()) {
            Some(candidate) => candidate,
            None => Err(self
                .last_error
                .take()
                .unwrap_or_else(|| deadline.timeout("live", Some(&self.key)))),
        }
    }

    async fn candidate<T, V>(&mut self, present: fn(T) -> V) -> Result<Candidate<V>, KvError>
    where
        T: KeyValue<Value: ByteDeserialize>,
    {
        loop {
            let event = self.follower.next().await;
            if let Event::Update(_) | Event::CaughtUp { .. } = event {
                self.last_error = None;
            }
            match event {
                Event::Update(update) => {
                    if let Some(candidate) = candidate(update, present) {
                        return Ok(candidate);
                    }
                }
                Event::CaughtUp { is_empty: true } => return Ok(Candidate::Absent(None)),
                Event::Lost(error) if error.is_resolved_by_reopening() => {
                    self.last_error = Some(error);
                }
                Event::Lost(error) | Event::Closed(error) => return Err(error),
                Event::Opened | Event::CaughtUp { is_empty: false } | Event::LinkChanged => {}
            }
        }
    }

    fn spawn<T, V>(
        self,
        policy: Policy<T, V>,
        first: LiveSnapshot<V>,
        sync_state: LiveSyncState,
    ) -> Live<V>
    where
        T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let Self { store, key, mut follower, .. } = self;
        let upkeep = upkeep(&store);
        if let LiveSyncState::Current = sync_state
            && let Some(shared) = upkeep.shared::<SharedLive<V>>(&key)
            && let Some(live) = shared.handle(&first, &upkeep)
        {
            return live;
        }
        let known = match (first.version.zip(first.created), &sync_state) {
            (Some(value), _) => Some(Some(value)),
            (None, LiveSyncState::Absent { .. }) => Some(None),
            (None, _) => None,
        };
        let value = Arc::new(ArcSwap::from_pointee(first));
        let is_optional = policy.absent.is_some();
        let link = follower.link().clone();
        let state = State { generation: 0, status: LiveStatus { link, sync_state, is_optional } };
        let (sender, states) = watch::channel(state);
        // The wait is over. From here on, the watch has the time that it needs.
        let store = store.with_deadline(store.deadline().max(Deadline::DEFAULT));
        follower.set_store(store);
        let comparison = upkeep.compare::<SharedLive<V>>(key, known);
        let id = comparison.id();
        let task =
            LiveTask { follower, policy, value: Arc::clone(&value), states: sender, comparison };
        let task = TaskHandle::new(tokio::spawn(task.run()).abort_handle());
        let live = Live { value, states, seen: 0, task, upkeep };
        live.upkeep.share(id, SharedLive::of(&live));
        live
    }
}
