//! The state that a writer shares with its threads: the log behind a lock, and the only function
//! that syncs it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SnapshotError;
use super::disk::Disk;
use super::log::{Compaction, Log};

pub(super) struct SharedLog {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: Arc<Path>,
    log: Mutex<Log>,
    poisoned: Arc<AtomicBool>,
    /// Held from the start of a sync to its seal, so that between two seals there is always a sync.
    syncing: Mutex<()>,
    /// Notifies of new data to sync, of progress of a compaction, and of the end.
    changed: Condvar,
    /// Number of threads that wait for a compaction, or for the lock.
    #[cfg(test)]
    pub(super) waiting: std::sync::atomic::AtomicUsize,
    /// True if the threads must end.
    stop: AtomicBool,
}

impl SharedLog {
    pub(super) fn new(disk: Arc<dyn Disk>, log: Log) -> Self {
        Self {
            disk,
            path: Arc::clone(&log.path),
            poisoned: Arc::clone(&log.poisoned),
            log: Mutex::new(log),
            syncing: Mutex::new(()),
            changed: Condvar::new(),
            #[cfg(test)]
            waiting: std::sync::atomic::AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        #[cfg(test)]
        {
            if let Ok(log) = self.log.try_lock() {
                return log;
            }
            self.waiting.fetch_add(1, Ordering::AcqRel);
        }
        // No code that holds the lock can panic. If it panics after all, the log itself records how
        // far it is valid.
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        log
    }

    /// Returns the error that poisoned the log, if any. Waits for the log only if it is poisoned.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        if self.poisoned.load(Ordering::Acquire) { self.log().check() } else { Ok(()) }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        // Holds the lock, so that a thread that is about to wait does not miss the change.
        let _log = self.log();
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Tells the thread of [`sync_on_time`](Self::sync_on_time) that there is something to sync.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Records the start of a compaction.
    pub(super) fn compaction_begins(&self) {
        let mut log = self.log();
        log.compaction = Some(Compaction { from: log.good, read: 0, of: 1 });
    }

    /// Records that a compaction has read `read` of `of` bytes.
    pub(super) fn compaction_read(&self, read: u64, of: u64) {
        if let Some(compaction) = &mut self.log().compaction {
            (compaction.read, compaction.of) = (read, of);
        }
        self.changed.notify_all();
    }

    pub(super) fn compaction_ended(&self) {
        self.log().compaction = None;
        self.changed.notify_all();
    }

    /// Blocks the writer of a log that grows faster than its running compaction. When the
    /// compaction ends, the log is no longer than `limit`, or than the end of its last checkpoint.
    pub(super) fn hold_back(&self, limit: u64) {
        let mut log = self.log();
        while log.is_ahead(limit) {
            #[cfg(test)]
            self.waiting.fetch_add(1, Ordering::AcqRel);
            log = self.changed.wait(log).unwrap_or_else(PoisonError::into_inner);
            #[cfg(test)]
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Makes the last checkpoint durable, without locking the log meanwhile.
    pub(super) fn sync(&self) -> Result<(), SnapshotError> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, good, generation) = {
            let mut log = self.log();
            log.check()?;
            if log.synced >= log.good {
                return Ok(());
            }
            log.write_again()?;
            (Arc::clone(&log.file), log.good, log.generation)
        };
        let result = file.sync();
        let mut log = self.log();
        log.check()?;
        if log.generation != generation {
            // A compaction has already synced everything, in another file.
            return Ok(());
        }
        match result {
            Ok(()) => {
                log.check_file()?;
                log.seal(good);
                Ok(())
            }
            Err(source) => Err(log.poison("the sync", source)),
        }
    }

    /// Syncs a checkpoint when `interval` has passed since it was written, until the end. An error
    /// poisons the log.
    pub(super) fn sync_on_time(&self, interval: Duration) {
        let mut log = self.log();
        while !self.is_stopping() {
            if log.synced >= log.good || log.check().is_err() {
                log = self.changed.wait(log).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.changed.wait_timeout_while(log, interval, |_| !self.is_stopping());
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            // The log returns an error to the next caller.
            let _ = self.sync();
            log = self.log();
        }
    }

    /// Returns the file's name with an extension appended.
    pub(super) fn beside(path: &Path, extension: &str) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(extension);
        name.into()
    }
}
