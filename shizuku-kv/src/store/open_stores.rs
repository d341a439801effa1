//! The handles that a connection has returned, so that it can release their locks before it ends
//! (ADR 0056).

use std::fmt;
use std::sync::{Mutex, Weak};

use futures_util::future::join_all;

use super::attached::Attachments;
#[allow(unused_imports, reason = "named in the documentation")]
use super::{Connection, KvError};
use super::{Deadline, KvResult, Store, lock};

/// The handles that a connection has returned; for authors of backends.
///
/// Handles hold locks, and a connection that is shut down releases them while its stores still
/// answer. A backend [adds](Self::add) each handle that it creates, and calls
/// [`close`](Self::close) at the beginning of [`Connection::shutdown`].
#[derive(Default)]
pub struct OpenStores(Mutex<Handles>);

#[derive(Default)]
struct Handles {
    known: Vec<Weak<Attachments>>,
    /// Whether the connection is about to be shut down.
    are_closed: bool,
}

impl OpenStores {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handle. Its clones count as the same handle. After [`close`](Self::close), its claims
    /// are [`KvError::Closed`].
    pub fn add(&self, store: &Store) {
        let mut handles = lock(&self.0);
        handles.known.retain(|store| store.strong_count() > 0);
        handles.known.push(std::sync::Arc::downgrade(&store.attachments));
        if handles.are_closed {
            store.attachments.reject();
        }
    }

    /// Releases the locks that are held through the handles, and waits until their stores have
    /// acknowledged that. Holders are notified first: their guards are lost from then on, and later
    /// claims are [`KvError::Closed`].
    ///
    /// Cancel safe: the release continues in the background for as long as the stores answer.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`] if a store did not answer by the deadline. Locks that could not
    /// be released end with their leases.
    pub async fn close(&self, deadline: Deadline) -> KvResult<()> {
        let stores: Vec<_> = {
            let mut handles = lock(&self.0);
            handles.are_closed = true;
            handles.known.iter().filter_map(Weak::upgrade).collect()
        };
        stores.iter().for_each(|store| store.reject());
        let closed = join_all(stores.iter().map(|store| store.close(deadline))).await;
        closed.into_iter().collect()
    }
}

impl fmt::Debug for OpenStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStores").finish_non_exhaustive()
    }
}
