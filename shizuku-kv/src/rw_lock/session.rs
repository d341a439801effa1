//! The session of a process: one key for all its locks of a store, which proves that the process
//! lives. The process renews it. Other processes delete it if they have seen no renewal for longer
//! than its lease. `docs/locks.md` explains why that is safe (ADR 0041).

mod entry;
mod keep_alive;
mod registry;
mod search;
mod slots;
mod state;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;

pub(super) use self::entry::{is_later, is_older, key_of, lease_of, marker, meaning_of};
use self::keep_alive::KeepAlive;
use self::registry::Joined;
pub(super) use self::registry::Registry;
pub(super) use self::slots::salt_of;
pub(super) use self::state::SessionUse;
use crate::store::{Deadline, Key, KvError, Store};

/// The sessions of a store's handle.
#[derive(Debug, Default)]
pub(super) struct Sessions(Arc<Registry>);

impl Sessions {
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.0
    }

    /// Returns a session that holds, opening one if none exists. The record of a lock that is
    /// likely to be wanted next is read together with the keys of sessions.
    ///
    /// Cancel safe: the next caller uses a session that was begun, otherwise the session ends by
    /// itself.
    pub(super) async fn get(
        &self,
        store: &Store,
        lease: Duration,
        record: &Key,
    ) -> Result<SessionUse, KvError> {
        let runtime = runtime::Handle::current();
        let in_use = match self.0.join(runtime.id(), lease)? {
            Joined::Existing(in_use) => in_use,
            Joined::New(in_use) => {
                let store = store.with_deadline(Deadline::DEFAULT).of_task();
                let (registry, session) = (Arc::clone(&self.0), Arc::clone(in_use.session()));
                runtime.spawn(KeepAlive::new(registry, session, store).run(record.clone()));
                in_use
            }
        };
        in_use.opened().await
    }

    /// Rejects the opening of sessions from now on.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Ends all sessions, because the connection is about to be shut down. Waits until their keys
    /// are deleted.
    pub(super) async fn end_all(&self) {
        self.0.end_all().await;
    }
}
