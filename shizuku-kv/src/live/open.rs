//! Opening live values: what is waited for, and with what one begins.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::drive::{Driver, Policy, Seen, look};
use super::status::{LiveStanding, LiveStatus, State};
use super::{Live, LiveSnapshot, Task};
use crate::store::{Deadline, Key, KvError, Store, Watch, WatchLink, WatchScope};
use crate::typed::{ByteDeserialize, KeyValue, KvReadError, type_name};

/// Waits for the first good value, for as long as the store's deadline.
pub(crate) async fn live<T>(store: Store, key: Key) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let deadline = Deadline::after(store.deadline());
    let mut watch = store.shared_watch(WatchScope::Key(key.clone())).await?;
    // What is in the way.
    let mut refused = None;
    let mut is_known = false;
    loop {
        let next = timeout_at(deadline.instant(), watch.next()).await;
        // What changes all the time is always ready.
        let Some(update) = next.ok().filter(|_| !deadline.remaining().is_zero()) else {
            let timeout = || KvReadError::from(deadline.timeout("live", Some(&key)));
            let absent = || KvReadError::Absent { type_name: type_name::<T>(), key: key.clone() };
            return Err(match refused.map(|error: Arc<KvReadError>| (*error).clone()) {
                Some(refused) => refused,
                None if is_known && watch.link().is_up() => absent(),
                None => timeout(),
            });
        };
        is_known = true;
        match look(update.unwrap_or(Err(KvError::Closed { operation: "live" }))?) {
            Some(Seen::Good(first)) => {
                let policy = Policy { present: |record| record, absent: None };
                return Ok(spawn(store, key, policy, first, LiveStanding::Current, Ok(watch)));
            }
            Some(Seen::Bad(_, error)) => refused = Some(error),
            Some(Seen::Absent(_)) => refused = None,
            None => {}
        }
    }
}

/// Begins with the value of the store; or with a default where that is absent, refused, or not known by the deadline.
pub(crate) async fn live_or<T>(store: Store, key: Key, default: T) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let policy = Policy { present: |record| record, absent: None };
    let (seen, watch) = match first(&store, &key).await {
        Ok((seen, watch)) => (Some(seen), Ok(watch)),
        // No default helps where nothing will ever be followed.
        Err(error @ (KvError::Closed { .. } | KvError::Unsupported { .. })) => return Err(error.into()),
        Err(error) => (None, Err(error)),
    };
    let default = LiveSnapshot::unversioned(default);
    let (first, standing) = match seen {
        Some(Seen::Good(first)) => (first, LiveStanding::Current),
        Some(Seen::Bad(version, error)) => (default, LiveStanding::Rejected { version, error }),
        Some(Seen::Absent(tombstone)) => (default, LiveStanding::Absent { tombstone }),
        None => (default, LiveStanding::Unknown),
    };
    Ok(spawn(store, key, policy, first, standing, watch))
}

/// Begins with the value of the store, or with `None` where that is absent.
pub(crate) async fn live_optional<T>(store: Store, key: Key) -> Result<Live<Option<T>>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let policy = Policy { present: Some, absent: Some(|| None) };
    let (seen, watch) = first::<T>(&store, &key).await?;
    let (first, standing) = match seen {
        Seen::Good(first) => (first.map(Some), LiveStanding::Current),
        Seen::Absent(tombstone) => (LiveSnapshot::unversioned(None), LiveStanding::Absent { tombstone }),
        // What is there and refused is not absent.
        Seen::Bad(_, error) => return Err((*error).clone()),
    };
    Ok(spawn(store, key, policy, first, standing, Ok(watch)))
}

/// What the store has now.
async fn first<T: KeyValue<Value: ByteDeserialize>>(
    store: &Store,
    key: &Key,
) -> Result<(Seen<T>, Watch), KvError> {
    let deadline = Deadline::after(store.deadline());
    let mut watch = store.shared_watch(WatchScope::Key(key.clone())).await?;
    let next = timeout_at(deadline.instant(), watch.next()).await;
    let update = next.map_err(|_| deadline.timeout("live", Some(key)))?;
    let update = update.unwrap_or(Err(KvError::Closed { operation: "live" }))?;
    Ok((look(update).unwrap_or(Seen::Absent(None)), watch))
}

fn spawn<T, V>(
    store: Store,
    key: Key,
    policy: Policy<T, V>,
    first: LiveSnapshot<V>,
    standing: LiveStanding,
    watch: Result<Watch, KvError>,
) -> Live<V>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let value = Arc::new(ArcSwap::from_pointee(first));
    let link = match &watch {
        Ok(watch) => watch.link(),
        Err(error) => WatchLink::down(SystemTime::now(), error.to_string()),
    };
    let state = State { generation: 0, status: LiveStatus { link, standing } };
    let (sender, states) = watch::channel(state);
    // What was waited for is over; from here on the watch has the time that it needs.
    let store = store.with_deadline(store.deadline().max(Deadline::DEFAULT));
    let driver = Driver { store, key, policy, value: Arc::clone(&value), states: sender };
    let task = tokio::spawn(driver.run(watch.ok()));
    Live { value, states, seen: 0, task: Arc::new(Task(task.abort_handle())) }
}
