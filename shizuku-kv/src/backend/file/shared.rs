//! The state that the threads of a database share, and their beginning and end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};

use super::cache::EntryCache;
use super::failure::Failure;
use super::folder::{Folder, Opened};
use super::hub::Hub;
use super::job::Job;
use super::queue::{READERS, Reads};
use super::record::nanos;
use super::tables::StoreId;
use super::wake::Wake;
use crate::store::{KvError, KvResult, lock};

/// Interval between two comparisons with the file while a watch waits.
const POLL: Duration = Duration::from_millis(50);

/// Name of the operation in errors of opening the database.
pub(super) const OPENING: &str = "connect";

/// The state that the threads of a database share.
pub(super) struct Shared {
    pub(super) folder: Folder,
    /// Locked for reading while a transaction runs, so that no thread closes the database
    /// meanwhile.
    database: RwLock<State>,
    /// The only permit belongs to the thread that copies, so that at most one such thread is
    /// blocked in redb.
    pub(super) copies: Arc<Semaphore>,
    pub(super) writes: Mutex<Writes>,
    pub(super) wakes_writer: Condvar,
    pub(super) reads: Mutex<Reads>,
    pub(super) wakes_reader: Condvar,
    pub(super) is_closed: AtomicBool,
    /// `None` if other processes can commit.
    pub(super) cache: Option<EntryCache>,
    pub(super) changes: Hub,
    pub(super) wake: Option<Wake>,
    /// Becomes true when the database has been closed.
    pub(super) is_ended: watch::Sender<bool>,
}

pub(super) enum State {
    Open(Opened),
    /// The database was closed after a failure. The next transaction opens it again.
    Interrupted,
    Closed,
}

#[derive(Default)]
pub(super) struct Writes {
    pub(super) jobs: VecDeque<Box<dyn Job>>,
    /// Time of the next expiry, in nanoseconds since 1970.
    pub(super) next_due: Option<u64>,
    /// Whether deleted stores may have entries.
    pub(super) collects: bool,
    /// Whether an earlier process may have left stores whose new settings are not applied.
    pub(super) resumes: bool,
    /// Stores whose settings have changed.
    pub(super) changed: Vec<StoreId>,
    pub(super) is_closed: bool,
}

impl Writes {
    /// Returns whether there is something to commit beside jobs.
    pub(super) fn is_upkeep_due(&self, now: u64) -> bool {
        self.collects
            || self.resumes
            || !self.changed.is_empty()
            || self.next_due.is_some_and(|due| due <= now)
    }
}

/// Returns the error for a thread that cannot be started.
pub(super) fn no_thread(operation: &'static str, error: std::io::Error) -> KvError {
    KvError::unavailable(operation, "no thread could be started: raise the limit of threads")
        .with_source(error)
}

impl Shared {
    pub(super) fn new(folder: Folder, database: Opened) -> Self {
        let notices = folder.mode().notices_others();
        let events = folder.has_events().then(|| folder.file().to_owned());
        let wake = notices.then(|| Wake::new(events, POLL));
        // The first round finds work that an earlier process has left.
        let writes =
            Writes { collects: true, resumes: true, next_due: Some(0), ..Writes::default() };
        let cache = (!notices).then(EntryCache::new);
        Self {
            folder,
            database: RwLock::new(State::Open(database)),
            copies: Arc::new(Semaphore::new(1)),
            writes: Mutex::new(writes),
            wakes_writer: Condvar::new(),
            reads: Mutex::default(),
            wakes_reader: Condvar::new(),
            is_closed: AtomicBool::new(false),
            cache,
            changes: Hub::default(),
            wake,
            is_ended: watch::Sender::new(false),
        }
    }

    /// Starts the other threads.
    pub(super) fn start(self: &Arc<Self>) -> KvResult<()> {
        for _ in 0..READERS {
            let shared = Arc::clone(self);
            let reader = thread::Builder::new().name("shizuku-kv-read".to_owned());
            let spawned = reader.spawn(move || shared.run_reader());
            spawned.map_err(|error| no_thread(OPENING, error))?;
        }
        if self.wake.is_some() {
            let shared = Arc::clone(self);
            let spawned = thread::Builder::new()
                .name("shizuku-kv-wake".to_owned())
                .spawn(move || shared.run_wake());
            spawned.map_err(|error| no_thread(OPENING, error))?;
        }
        Ok(())
    }

    /// Ends the threads. The writer thread first commits all queued jobs. The caller must hold no
    /// lock of this state.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        lock(&self.writes).is_closed = true;
        self.wakes_writer.notify_all();
        self.close_reads();
        if let Some(wake) = &self.wake {
            wake.close();
        }
        self.changes.notify_all();
    }

    pub(super) fn queue_write(&self, job: Box<dyn Job>) -> bool {
        {
            let mut writes = lock(&self.writes);
            if writes.is_closed {
                return false;
            }
            writes.jobs.push_back(job);
        }
        self.wakes_writer.notify_one();
        true
    }

    pub(super) fn database(&self) -> RwLockReadGuard<'_, State> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no transaction runs.
    pub(super) fn exclusively(&self) -> RwLockWriteGuard<'_, State> {
        self.database.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now() -> u64 {
        nanos(SystemTime::now())
    }

    /// Closes the database, which the next transaction opens again.
    pub(super) fn interrupt(&self) {
        let mut state = self.exclusively();
        // Before the lock of the file is released, because another process may then write. Also
        // before the database is opened again, which decides whether a failed commit has happened.
        if let Some(cache) = &self.cache {
            cache.clear();
        }
        if let State::Open(_) = &*state {
            *state = State::Interrupted;
            let mut writes = lock(&self.writes);
            // The transaction may have taken stores from the list without applying their settings.
            writes.resumes = true;
            // A failed commit that has happened may have deleted stores.
            writes.collects = true;
        }
    }

    /// Opens the database again if a failure has closed it. Notifies the watches of what another
    /// process may have done meanwhile.
    pub(super) fn reopen(&self) -> Result<(), Failure> {
        if !matches!(&*self.database(), State::Interrupted) {
            return Ok(());
        }
        let mut state = self.exclusively();
        // Another thread may have opened it.
        if !matches!(&*state, State::Interrupted) {
            return Ok(());
        }
        let reopened = self.folder.reopen().map(|opened| *state = State::Open(opened));
        drop(state);
        // The reads of the watches return the error of a file that was removed.
        if matches!(&reopened, Ok(()) | Err(Failure::Interfered(_))) {
            self.changes.notify_all();
        }
        reopened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer beside a held lock waits without a pause only for work that is due.
    #[test]
    fn upkeep_is_due_at_its_time_or_after_changes() {
        let due = |writes: &Writes| writes.is_upkeep_due(10);
        assert!(!due(&Writes::default()));
        assert!(!due(&Writes { next_due: Some(11), ..Writes::default() }));
        assert!(due(&Writes { next_due: Some(10), ..Writes::default() }));
        assert!(due(&Writes { changed: vec![StoreId(1)], ..Writes::default() }));
        assert!(due(&Writes { collects: true, ..Writes::default() }));
    }
}
