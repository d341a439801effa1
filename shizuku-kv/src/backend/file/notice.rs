//! Notifications of changes: which watches have something to read, after a commit of this process
//! or of another one.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::failure::Failure;
use super::shared::{Shared, State};
use super::tables::{Position, StoreId};
use super::view::View;
use crate::store::lock;

/// Notifications of changes of a store.
pub(super) struct Changes {
    receiver: watch::Receiver<u64>,
    /// Owns the sender, so that waiting does not fail.
    _shared: Arc<Shared>,
}

impl Changes {
    /// Marks all changes until now as seen.
    pub(super) fn see(&mut self) {
        self.receiver.borrow_and_update();
    }

    /// Waits for a change after the last one that was seen.
    pub(super) async fn next(&mut self) {
        let _ = self.receiver.changed().await;
    }
}

/// The state of a file as it was seen last.
#[derive(PartialEq, Eq)]
struct Seen {
    commits: u64,
    next_due: Option<u64>,
    stores: HashMap<StoreId, Option<Position>>,
}

impl Shared {
    /// Returns the notifications of a store. While they live, the commits of other processes are
    /// noticed.
    pub(super) fn changes_of(self: &Arc<Self>, id: StoreId) -> Changes {
        let receiver = self.changes.subscribe(id);
        if let Some(wake) = &self.wake {
            wake.begin();
        }
        // The writer thread looks for a replaced file while there is a watch.
        drop(lock(&self.writes));
        self.wakes_writer.notify_one();
        Changes { receiver, _shared: Arc::clone(self) }
    }

    /// Notices the commits of other processes.
    pub(super) fn run_wake(&self) {
        let Some(wake) = &self.wake else { return };
        let mut last: Option<Result<Seen, ()>> = None;
        while wake.wait(|| self.changes.is_watched()) {
            let seen = self.look().map_err(|failure| {
                tracing::debug!(?failure, "cannot check a file for changes");
            });
            match (&seen, &last) {
                (Ok(seen), Some(Ok(last))) if seen == last => {}
                (Ok(seen), Some(Ok(last))) => {
                    let changed =
                        seen.stores.iter().filter(|(id, at)| last.stores.get(id) != Some(at));
                    self.changes.notify(changed.map(|(id, _)| *id));
                }
                // The reads of the watches return the error.
                (Err(()), Some(Err(()))) => {}
                _ => self.changes.notify_all(),
            }
            if let Ok(seen) = &seen
                && !matches!(&last, Some(Ok(last)) if last.commits == seen.commits)
            {
                lock(&self.writes).next_due = seen.next_due;
                self.wakes_writer.notify_one();
            }
            last = Some(seen);
        }
    }

    fn look(&self) -> Result<Seen, Failure> {
        self.reopen()?;
        self.folder.check_identity()?;
        let watched = self.changes.watched();
        let database = self.database();
        let State::Open(opened) = &*database else {
            return Err(Failure::Busy("the database is closed".to_owned()));
        };
        let transaction = opened.begin_read()?;
        let view = View::new(&transaction, Self::now(), true);
        let mut stores = HashMap::new();
        for id in watched {
            stores.insert(id, view.position(id)?);
        }
        Ok(Seen { commits: view.commits()?, next_due: view.next_due()?, stores })
    }
}
