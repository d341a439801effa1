//! The routes of an edge node: a table in memory, what the log brings back into it, and what the bucket changes in it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shizuku_kv::replica::{LogStorage, Replica, ReplicaError, TypedBatch};
use shizuku_kv::{KvOperation, KvReadError, TypedUpdate, WatchCursor};

use crate::Route;

/// The log in a node's directory.
pub(crate) fn log(directory: &Path) -> PathBuf {
    directory.join("routes.log")
}

/// Where each host is. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Routes(Arc<Mutex<BTreeMap<String, SocketAddr>>>);

impl Routes {
    /// The routes that a log held when its last writer ended, however that was; with the errors of what is no route.
    pub(crate) fn restore(storage: &LogStorage) -> (Self, Vec<KvReadError>) {
        let (routes, mut errors) = (Self::default(), Vec::new());
        storage.reader().for_each_record::<Route>(|route| match route {
            Ok(route) => drop(routes.table().insert(route.host.clone(), route.address)),
            Err(error) => errors.push(error),
        });
        (routes, errors)
    }

    /// Where a host is. No network, no disk.
    pub(crate) fn get(&self, host: &str) -> Option<SocketAddr> {
        self.table().get(host).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.table().len()
    }

    /// What an update changes. An update that has been applied already changes nothing: after a crash the last ones come
    /// again.
    fn apply(&self, update: &Result<TypedUpdate<Route>, KvReadError>) -> Option<Event> {
        match update {
            Ok(TypedUpdate::Put(route)) => {
                let was = self.table().insert(route.host.clone(), route.address);
                let (host, is) = (route.host.clone(), route.address);
                (was != Some(is)).then_some(Event::Set { host, was, is })
            }
            Ok(TypedUpdate::Delete { key, operation, .. }) => {
                let was = self.table().remove(&key.host)?;
                Some(Event::Gone { host: key.host.clone(), was, how: *operation })
            }
            // What was in force stays, until a restart: the log has only what the bucket has.
            Err(error) => Some(Event::Refused(error.clone())),
            Ok(_) => None,
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        // Each change is one call, so that a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happens to the routes.
pub(crate) enum Event {
    Set {
        host: String,
        was: Option<SocketAddr>,
        is: SocketAddr,
    },
    Gone {
        host: String,
        was: SocketAddr,
        how: KvOperation,
    },
    Refused(KvReadError),
    /// The table is that of the bucket, after so many updates.
    CaughtUp(usize),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { host, was: None, is } => write!(f, "{host}: new, {is}"),
            Self::Set { host, was: Some(was), is } => write!(f, "{host}: {was} -> {is}"),
            Self::Gone { host, was, how: KvOperation::Vanished } => {
                write!(f, "{host}: gone while this node could not know, was {was}")
            }
            Self::Gone { host, was, how: _ } => write!(f, "{host}: gone, was {was}"),
            // It names type, key and version, and nothing of the value: it can be shown.
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::CaughtUp(1) => f.write_str("caught up: the restart cost 1 update"),
            Self::CaughtUp(updates) => write!(f, "caught up: the restart cost {updates} updates"),
        }
    }
}

/// Keeps the routes as they are in the bucket, until the replica is stopped. Tells of each change, and once, when all is
/// there, how many updates that took.
pub(crate) async fn follow(
    replica: &mut Replica<LogStorage>,
    routes: &Routes,
    mut tell: impl FnMut(Event),
) -> Result<Option<WatchCursor>, ReplicaError> {
    let mut cost = Some(0);
    let apply = |batch: TypedBatch<Route>| {
        for update in batch.updates() {
            if let Some(event) = routes.apply(update) {
                tell(event);
            }
            match (update, cost) {
                (Ok(TypedUpdate::CaughtUp), Some(updates)) => {
                    tell(Event::CaughtUp(updates));
                    cost = None;
                }
                (_, Some(updates)) => cost = Some(updates + 1),
                (_, None) => {}
            }
        }
        // Nothing here is waited for. When this returns, the place is kept that says so.
        ready(Ok::<_, Infallible>(()))
    };
    replica.run_typed(apply).await
}

/// What a process finds when it starts.
pub(crate) fn restored(routes: &Routes, storage: &LogStorage) -> String {
    let count = routes.len();
    let routes = format!("restored {count} {}", if count == 1 { "route" } else { "routes" });
    match storage.reader().place() {
        Some(place) => format!("{routes} up to position {}", place.cursor().position()),
        // A new log, or a repair that was not finished.
        None => format!("{routes}, and no position to go on from"),
    }
}
