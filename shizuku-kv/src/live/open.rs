//! Opens live values: waits for their first state, and selects the first value.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use backon::ExponentialBackoff;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::drive::{Candidate, LiveTask, Policy, look, pauses};
use super::status::{LiveStatus, LiveSyncState, State};
use super::{Live, LiveSnapshot, Task};
use crate::record::{ByteDeserialize, KeyValue, KvReadError, type_name};
use crate::store::{
    Deadline, Follower, Key, KvError, Store, Watch, WatchLink, WatchScope, in_runtime,
};

/// Waits for the first good value, for as long as the store's deadline.
pub(crate) async fn live<T>(store: Store, key: Key) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut beginning = Beginning::new(store, key);
    let policy = Policy { present: |record| record, absent: None };
    // The last rejection, if a rejected value is the reason for the wait.
    let mut refused = None;
    let error = loop {
        match beginning.next(policy.present).await {
            Ok(Candidate::Good(first)) => {
                return Ok(beginning.spawn(policy, first, LiveSyncState::Current));
            }
            Ok(Candidate::Bad(_, error)) => refused = Some(error),
            Ok(Candidate::Absent(_)) => refused = None,
            Err(error) => break error,
        }
    };
    if !beginning.deadline.remaining().is_zero() {
        return Err(error.into());
    }
    Err(match refused.map(|error: Arc<KvReadError>| (*error).clone()) {
        Some(refused) => refused,
        None if beginning.is_known() => {
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
    let seen = match beginning.next(policy.present).await {
        Ok(seen) => Some(seen),
        // A default does not help if the store can never be followed.
        Err(
            error @ (KvError::Closed { .. }
            | KvError::NoRuntime { .. }
            | KvError::Unsupported { .. }),
        ) => {
            return Err(error.into());
        }
        Err(error) => {
            beginning.trouble = Some(error);
            None
        }
    };
    let default = LiveSnapshot::unversioned(default);
    let (first, sync_state) = match seen {
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
    watch: Option<Watch>,
    /// Reason for the end of the last watch, or for the failure of its opening.
    trouble: Option<KvError>,
    /// Whether the watch has delivered an update.
    begun: bool,
    pauses: ExponentialBackoff,
}

impl Beginning {
    fn new(store: Store, key: Key) -> Self {
        let deadline = Deadline::after(store.deadline());
        Self { store, key, deadline, watch: None, trouble: None, begun: false, pauses: pauses() }
    }

    /// Returns the next state, or the reason for not having one by the deadline.
    async fn next<T, V>(&mut self, present: fn(T) -> V) -> Result<Candidate<V>, KvError>
    where
        T: KeyValue<Value: ByteDeserialize>,
    {
        let deadline = self.deadline;
        in_runtime("live")?;
        let next = timeout_at(deadline.instant(), self.seen(present)).await;
        // A watch of a key that changes all the time is always ready, so the deadline is checked
        // too.
        match next.ok().filter(|_| !deadline.remaining().is_zero()) {
            Some(seen) => seen,
            None => Err(self
                .trouble
                .take()
                .unwrap_or_else(|| deadline.timeout("live", Some(&self.key)))),
        }
    }

    async fn seen<T, V>(&mut self, present: fn(T) -> V) -> Result<Candidate<V>, KvError>
    where
        T: KeyValue<Value: ByteDeserialize>,
    {
        loop {
            let ended = match &mut self.watch {
                Some(watch) => {
                    match watch.next().await.unwrap_or(Err(KvError::Closed { operation: "live" })) {
                        Ok(update) => {
                            self.trouble = None;
                            let is_first = !std::mem::replace(&mut self.begun, true);
                            match look(update, present) {
                                Some(seen) => return Ok(seen),
                                // The marker came first, so the key is absent.
                                None if is_first => return Ok(Candidate::Absent(None)),
                                None => continue,
                            }
                        }
                        Err(error) => error,
                    }
                }
                None => match self.store.shared_watch(WatchScope::Key(self.key.clone())).await {
                    Ok(watch) => {
                        self.watch = Some(watch);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            (self.watch, self.begun) = (None, false);
            if !ended.is_retryable() && !matches!(ended, KvError::CursorExpired { .. }) {
                return Err(ended);
            }
            self.trouble = Some(ended);
            tokio::time::sleep(self.pauses.next().unwrap_or_default()).await;
        }
    }

    /// Returns whether the state of the key in the store is known.
    fn is_known(&self) -> bool {
        self.begun && self.watch.as_ref().is_some_and(|watch| watch.link().is_up())
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
        let link = match (&self.watch, self.trouble) {
            (Some(watch), _) => watch.link(),
            (None, Some(error)) => WatchLink::down(SystemTime::now(), error.to_string()),
            (None, None) => WatchLink::down(SystemTime::now(), "the store has not answered yet"),
        };
        let first_heard = first.version.zip(first.created);
        let is_absent = matches!(sync_state, LiveSyncState::Absent { .. });
        let value = Arc::new(ArcSwap::from_pointee(first));
        let is_optional = policy.absent.is_some();
        let state = State { generation: 0, status: LiveStatus { link, sync_state, is_optional } };
        let (sender, states) = watch::channel(state);
        // The wait is over. From here on, the watch has the time that it needs.
        let store = self.store.with_deadline(self.store.deadline().max(Deadline::DEFAULT));
        let heard = match (&first_heard, is_absent) {
            (Some(heard), _) => Some(Some(*heard)),
            (None, true) => Some(None),
            (None, false) => None,
        };
        let follower = Arc::new(Follower::new(self.key.clone(), heard));
        let upkeep = store.upkeep();
        let following = upkeep.follow(Arc::clone(&follower));
        let driver = LiveTask {
            store,
            key: self.key,
            policy,
            value: Arc::clone(&value),
            states: sender,
            follower,
            _following: following,
        };
        let task = tokio::spawn(driver.run(self.watch));
        Live { value, states, seen: 0, task: Arc::new(Task(task.abort_handle())), upkeep }
    }
}
