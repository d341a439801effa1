//! The routes of an edge node: a table in memory that is restored from the log and follows the
//! store.

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

/// Returns the path of the log in a node's directory.
pub(crate) fn log(directory: &Path) -> PathBuf {
    directory.join("routes.log")
}

/// The address of each host. Clones share the table.
#[derive(Clone, Default)]
pub(crate) struct Routes(Arc<Mutex<BTreeMap<String, SocketAddr>>>);

impl Routes {
    /// Restores the routes that the log held when its last writer ended, however it ended. Also
    /// returns the errors of entries that are not routes.
    pub(crate) fn restore(storage: &LogStorage) -> (Self, Vec<KvReadError>) {
        let (routes, mut errors) = (Self::default(), Vec::new());
        storage.reader().for_each_record::<Route>(|route| match route {
            Ok(route) => drop(routes.table().insert(route.host.clone(), route.address)),
            Err(error) => errors.push(error),
        });
        (routes, errors)
    }

    /// Returns the address of a host, without network or disk access.
    pub(crate) fn get(&self, host: &str) -> Option<SocketAddr> {
        self.table().get(host).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.table().len()
    }

    /// Applies an update to the table. An update that was already applied changes nothing, because
    /// the last ones come again after a crash.
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
            // The current route stays until a restart, because the log has only the store's
            // entries.
            Err(error) => Some(Event::Refused(error.clone())),
            Ok(_) => None,
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        // Each change is one call, so that a panic in another thread leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event of the routes.
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
    /// The table equals the store, after this number of updates.
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
            // The error names type, key and version, but not the value, so it is safe to show.
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::CaughtUp(1) => f.write_str("caught up: the restart cost 1 update"),
            Self::CaughtUp(updates) => write!(f, "caught up: the restart cost {updates} updates"),
        }
    }
}

/// Keeps the routes equal to those of the store, until the replica is stopped. Reports each change,
/// and once, when all routes are present, the number of updates that this took.
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
        // Nothing is awaited here. After this returns, the replica commits its checkpoint.
        ready(Ok::<_, Infallible>(()))
    };
    replica.run_typed(apply).await
}

/// Describes the restored state of a process that starts.
pub(crate) fn restored(routes: &Routes, storage: &LogStorage) -> String {
    let count = routes.len();
    let routes = format!("restored {count} {}", if count == 1 { "route" } else { "routes" });
    match storage.reader().checkpoint() {
        Some(checkpoint) => format!("{routes} up to position {}", checkpoint.cursor().position()),
        // The log is new, or a resync was not finished.
        None => format!("{routes}, and no position to go on from"),
    }
}
