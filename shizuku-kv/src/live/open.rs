//! Opening live values: what is waited for, and with what one begins.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use backon::ExponentialBackoff;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::drive::{Driver, Policy, Seen, look, pauses};
use super::status::{LiveStanding, LiveStatus, State};
use super::{Live, LiveSnapshot, Task};
use crate::store::{
    Deadline, Follower, Key, KvError, Store, Watch, WatchLink, WatchScope, in_runtime,
};
use crate::typed::{ByteDeserialize, KeyValue, KvReadError, type_name};

/// Waits for the first good value, for as long as the store's deadline.
pub(crate) async fn live<T>(store: Store, key: Key) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut beginning = Beginning::new(store, key);
    // What is in the way.
    let mut refused = None;
    let error = loop {
        match beginning.next().await {
            Ok(Seen::Good(first)) => {
                let policy = Policy { present: |record| record, absent: None };
                return Ok(beginning.spawn(policy, first, LiveStanding::Current));
            }
            Ok(Seen::Bad(_, error)) => refused = Some(error),
            Ok(Seen::Absent(_)) => refused = None,
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

/// Begins with the value of the store; or with a default where that is absent, refused, or not known by the deadline.
pub(crate) async fn live_or<T>(store: Store, key: Key, default: T) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let policy = Policy { present: |record| record, absent: None };
    let mut beginning = Beginning::new(store, key);
    let seen = match beginning.next().await {
        Ok(seen) => Some(seen),
        // No default helps where nothing will ever be followed.
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
    let (first, standing) = match seen {
        Some(Seen::Good(first)) => (first, LiveStanding::Current),
        Some(Seen::Bad(version, error)) => (default, LiveStanding::Rejected { version, error }),
        Some(Seen::Absent(tombstone)) => (default, LiveStanding::Absent { tombstone }),
        None => (default, LiveStanding::Unknown),
    };
    Ok(beginning.spawn(policy, first, standing))
}

/// Begins with the value of the store, or with `None` where that is absent.
pub(crate) async fn live_optional<T>(store: Store, key: Key) -> Result<Live<Option<T>>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let policy = Policy { present: Some, absent: Some(|| None) };
    let mut beginning = Beginning::new(store, key);
    let (first, standing) = match beginning.next::<T>().await? {
        Seen::Good(first) => (first.map(Some), LiveStanding::Current),
        Seen::Absent(tombstone) => {
            (LiveSnapshot::unversioned(None), LiveStanding::Absent { tombstone })
        }
        // What is there and refused is not absent.
        Seen::Bad(_, error) => return Err((*error).clone()),
    };
    Ok(beginning.spawn(policy, first, standing))
}

/// What is seen of a key until a deadline, over as many watches as it takes: the store can be made again meanwhile.
struct Beginning {
    store: Store,
    key: Key,
    deadline: Deadline,
    watch: Option<Watch>,
    /// Why the last watch ended, or could not be opened.
    trouble: Option<KvError>,
    /// Whether the watch has delivered something.
    begun: bool,
    pauses: ExponentialBackoff,
}

impl Beginning {
    fn new(store: Store, key: Key) -> Self {
        let deadline = Deadline::after(store.deadline());
        Self { store, key, deadline, watch: None, trouble: None, begun: false, pauses: pauses() }
    }

    /// What is seen next, or why there will be nothing by the deadline.
    async fn next<T: KeyValue<Value: ByteDeserialize>>(&mut self) -> Result<Seen<T>, KvError> {
        let deadline = self.deadline;
        in_runtime("live")?;
        let next = timeout_at(deadline.instant(), self.seen()).await;
        // What changes all the time is always ready.
        match next.ok().filter(|_| !deadline.remaining().is_zero()) {
            Some(seen) => seen,
            None => Err(self
                .trouble
                .take()
                .unwrap_or_else(|| deadline.timeout("live", Some(&self.key)))),
        }
    }

    async fn seen<T: KeyValue<Value: ByteDeserialize>>(&mut self) -> Result<Seen<T>, KvError> {
        loop {
            let ended = match &mut self.watch {
                Some(watch) => {
                    match watch.next().await.unwrap_or(Err(KvError::Closed { operation: "live" })) {
                        Ok(update) => {
                            self.trouble = None;
                            let is_first = !std::mem::replace(&mut self.begun, true);
                            match look(update) {
                                Some(seen) => return Ok(seen),
                                // The marker before anything else: there is nothing.
                                None if is_first => return Ok(Seen::Absent(None)),
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

    /// Whether it is known what the store has.
    fn is_known(&self) -> bool {
        self.begun && self.watch.as_ref().is_some_and(|watch| watch.link().is_up())
    }

    fn spawn<T, V>(
        self,
        policy: Policy<T, V>,
        first: LiveSnapshot<V>,
        standing: LiveStanding,
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
        let is_absent = matches!(standing, LiveStanding::Absent { .. });
        let value = Arc::new(ArcSwap::from_pointee(first));
        let state = State { generation: 0, status: LiveStatus { link, standing } };
        let (sender, states) = watch::channel(state);
        // What was waited for is over; from here on the watch has the time that it needs.
        let store = self.store.with_deadline(self.store.deadline().max(Deadline::DEFAULT));
        let heard = match (&first_heard, is_absent) {
            (Some(heard), _) => Some(Some(*heard)),
            (None, true) => Some(None),
            (None, false) => None,
        };
        let follower = Arc::new(Follower::new(self.key.clone(), heard));
        let upkeep = store.upkeep();
        let following = upkeep.follow(Arc::clone(&follower));
        let driver = Driver {
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
