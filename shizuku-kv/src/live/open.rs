//! Opening live values: what is waited for, and with what one begins.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::drive::{Driver, Policy, Seen, look};
use super::status::{LiveStanding, LiveStatus, State};
use super::{Live, LiveSnapshot, Task};
use crate::store::{Deadline, Key, KvError, News, Store, Subscription, WatchLink, WatchScope};
use crate::typed::{ByteDeserialize, KeyValue, KvReadError, type_name};

/// Waits for the first good value, for as long as the store's deadline.
pub(crate) async fn live<T>(store: Store, key: Key) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut opening = Opening::new(&store, &key)?;
    // What is in the way.
    let mut refused = None;
    loop {
        match opening.next().await? {
            Some(Seen::Good(first)) => {
                let policy = Policy { present: |record| record, absent: None };
                return Ok(opening.spawn(policy, first, LiveStanding::Current));
            }
            Some(Seen::Bad(_, error)) => refused = Some(error),
            Some(Seen::Absent(_)) => refused = None,
            None => {
                let in_the_way = refused.map(|error: Arc<KvReadError>| (*error).clone());
                let in_the_way = in_the_way.or(opening.trouble().map(KvReadError::from));
                return Err(in_the_way.unwrap_or(KvReadError::Absent { type_name: type_name::<T>(), key }));
            }
        }
    }
}

/// Begins with the value of the store; or with a default where that is absent, refused, or not known by the deadline.
pub(crate) async fn live_or<T>(store: Store, key: Key, default: T) -> Result<Live<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut opening = Opening::new(&store, &key)?;
    let default = LiveSnapshot::unversioned(default);
    let (first, standing) = match opening.next().await {
        Ok(Some(Seen::Good(first))) => (first, LiveStanding::Current),
        Ok(Some(Seen::Bad(version, error))) => (default, LiveStanding::Rejected { version, error }),
        Ok(Some(Seen::Absent(tombstone))) => (default, LiveStanding::Absent { tombstone }),
        // No default helps where nothing will ever be followed.
        Err(error @ (KvError::Closed { .. } | KvError::Unsupported { .. })) => return Err(error.into()),
        Ok(None) | Err(_) => (default, LiveStanding::Unknown),
    };
    let policy = Policy { present: |record| record, absent: None };
    Ok(opening.spawn(policy, first, standing))
}

/// Begins with the value of the store, or with `None` where that is absent.
pub(crate) async fn live_optional<T>(store: Store, key: Key) -> Result<Live<Option<T>>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut opening = Opening::new(&store, &key)?;
    let (first, standing) = match opening.next::<T>().await? {
        Some(Seen::Good(first)) => (first.map(Some), LiveStanding::Current),
        Some(Seen::Absent(tombstone)) => {
            (LiveSnapshot::unversioned(None), LiveStanding::Absent { tombstone })
        }
        // What is there and refused is not absent.
        Some(Seen::Bad(_, error)) => return Err((*error).clone()),
        None => {
            let timeout = || opening.deadline.timeout("live", Some(&key));
            return Err(opening.trouble.take().unwrap_or_else(timeout).into());
        }
    };
    let policy = Policy { present: Some, absent: Some(|| None) };
    Ok(opening.spawn(policy, first, standing))
}

/// A subscription from which what the store has is still to come.
struct Opening {
    store: Store,
    key: Key,
    news: Subscription,
    deadline: Deadline,
    link: WatchLink,
    trouble: Option<KvError>,
    /// Whether an entry has come, and the marker after which there is none.
    is_known: bool,
    is_caught_up: bool,
}

impl Opening {
    fn new(store: &Store, key: &Key) -> Result<Self, KvError> {
        if store.backend().watcher().is_none() {
            let reason = format!("store {:?} cannot be watched", store.name());
            return Err(KvError::Unsupported { operation: "live", reason });
        }
        let deadline = Deadline::after(store.deadline());
        let news = store.subscribe(WatchScope::Key(key.clone()));
        let (store, key) = (store.clone(), key.clone());
        Ok(Self {
            store,
            key,
            news,
            deadline,
            link: WatchLink::Up,
            trouble: None,
            is_known: false,
            is_caught_up: false,
        })
    }

    /// What is seen next; none when the deadline has passed.
    ///
    /// # Errors
    /// What trying again cannot mend.
    async fn next<T: KeyValue<Value: ByteDeserialize>>(&mut self) -> Result<Option<Seen<T>>, KvError> {
        loop {
            let Ok(news) = timeout_at(self.deadline.instant(), self.news.next()).await else {
                return Ok(None);
            };
            match news {
                None => return Err(self.trouble.take().unwrap_or(KvError::Closed { operation: "live" })),
                Some(News::Entry(entry)) => {
                    self.is_known = true;
                    self.trouble = None;
                    return Ok(Some(look(&entry)));
                }
                Some(News::Gone(_)) => return Ok(Some(Seen::Absent(None))),
                Some(News::CaughtUp) => {
                    self.is_caught_up = true;
                    self.trouble = None;
                    if !self.is_known {
                        return Ok(Some(Seen::Absent(None)));
                    }
                }
                Some(News::Link(link)) => self.link = link,
                Some(News::Trouble(error)) if error.is_retryable() => self.trouble = Some(error),
                Some(News::Trouble(error)) => return Err(error),
            }
        }
    }

    /// Why nothing is heard, where nothing is.
    fn trouble(&mut self) -> Option<KvError> {
        let trouble = self.trouble.take();
        trouble.or_else(|| (!self.link.is_up()).then(|| self.deadline.timeout("live", None)))
    }

    fn spawn<T, V>(self, policy: Policy<T, V>, first: LiveSnapshot<V>, standing: LiveStanding) -> Live<V>
    where
        T: KeyValue<Value: ByteDeserialize> + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let value = Arc::new(ArcSwap::from_pointee(first));
        let state = State { generation: 0, status: LiveStatus { link: self.link, standing } };
        let (sender, states) = watch::channel(state);
        let (store, key) = (self.store, self.key);
        let driver = Driver { store, key, policy, value: Arc::clone(&value), states: sender };
        let task = tokio::spawn(driver.run(self.news, self.is_known || self.is_caught_up));
        Live { value, states, seen: 0, task: Arc::new(Task(task.abort_handle())) }
    }
}
