//! What a writer shares with its threads: the log behind a lock, and the one place where it is synced.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SnapshotError;
use super::disk::Disk;
use super::log::Log;

pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: Arc<Path>,
    log: Mutex<Log>,
    poisoned: Arc<AtomicBool>,
    /// Held from the start of a sync to its seal, so that between two seals there is always a sync.
    syncing: Mutex<()>,
    /// Something to sync has come, or the end.
    changed: Condvar,
    /// The threads are to end.
    stop: AtomicBool,
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, log: Log) -> Self {
        Self {
            disk,
            path: Arc::clone(&log.path),
            poisoned: Arc::clone(&log.poisoned),
            log: Mutex::new(log),
            syncing: Mutex::new(()),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        // Nothing that holds the lock can panic; if it does all the same, the log says itself how far it is right.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the log can be used still, without waiting for it where it can.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        if self.poisoned.load(Ordering::Acquire) { self.log().check() } else { Ok(()) }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        // Under the lock, so that a thread that is about to wait is not missed.
        let _log = self.log();
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Tells the thread of [`sync_on_time`](Self::sync_on_time) that there is something to sync.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Makes the last checkpoint durable. The log is not locked meanwhile.
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
            // A compaction has brought it all to the disk, in another file.
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

    /// Syncs a checkpoint when `interval` has passed since it came, until the end. What fails poisons the log.
    pub(super) fn sync_on_time(&self, interval: Duration) {
        let mut log = self.log();
        while !self.is_stopping() {
            if log.synced >= log.good || log.check().is_err() {
                log = self.changed.wait(log).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.changed.wait_timeout_while(log, interval, |_| !self.is_stopping());
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            // Whoever calls next hears of an error, from the log.
            let _ = self.sync();
            log = self.log();
        }
    }

    /// A name beside the file's.
    pub(super) fn beside(path: &Path, extension: &str) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(extension);
        name.into()
    }
}
