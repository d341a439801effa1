//! The writer collects updates in memory, and writes them to the file at checkpoints.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::compact::{self, Outcome};
use super::disk::{Access, Disk, DiskFile, StdDisk};
use super::frame::{Ending, FRAME_HEADER};
use super::load::{Loaded, load_file};
use super::log::{Log, PART_SIZE, create, remove_leftover};
use super::record::{encode, written};
use super::shared::SharedLog;
use super::{Change, Snapshot, SnapshotError, SnapshotOptions, SyncPolicy};
use crate::local_file::{self, Identity};
use crate::store::{KvUpdate, WatchCursor};

/// Maximum number of times that the log is reopened because another writer replaced it between the
/// opening and the lock.
const OPENINGS: usize = 16;

/// Writes a snapshot log. The caller appends updates as they come, and checkpoints them from time
/// to time. At a checkpoint all of them become valid together with the cursor.
///
/// Every call blocks for as long as the disk takes; in asynchronous code use
/// [`spawn_blocking`](tokio::task::spawn_blocking) or a thread of its own.
///
/// A file has one writer at a time, in all processes: the writer locks the file itself. No other
/// program may rename, truncate, replace or remove it meanwhile, log rotation in particular. Each
/// checkpoint and [`close`](Self::close) check for that, and return [`SnapshotError::Interfered`].
///
/// Links in the path are resolved once, when the log is opened. Compaction writes a file beside the
/// log, whose name ends in `.compact`, and renames it. The new file gets mode, group and owner of
/// the log as far as the system allows. Extended attributes and access lists are not copied, and
/// other names (hard links) stay with the old file.
///
/// Dropping the writer discards the updates that were appended since the last checkpoint, and stops
/// a running compaction. With [`SyncPolicy::Interval`] it waits for one last sync.
/// [`close`](Self::close) does the same and returns errors.
///
/// ```
/// use shizuku_kv::snapshot::{self, SnapshotOptions, SnapshotWriter};
/// # use shizuku_kv::{Key, KvEntry, KvUpdate, VersionToken};
/// # use std::time::SystemTime;
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("state");
/// # let (key, version) = (Key::new("a.b")?, VersionToken::from_u64(1));
/// # let entry = KvEntry::put(key, "value".into(), version, SystemTime::now());
/// # let update = KvUpdate::Put(entry);
///
/// let (mut writer, before) = SnapshotWriter::open(&path, SnapshotOptions::new())?;
/// assert!(before.entries.is_empty());
/// writer.append(&update)?;
/// writer.checkpoint(None)?;
/// writer.close()?;
///
/// let state = snapshot::load(&path)?;
/// assert_eq!(state.entries.get("a.b").unwrap().value, "value");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SnapshotWriter {
    shared: Arc<SharedLog>,
    options: SnapshotOptions,
    /// The records since the last frame, after room for their header.
    buffer: Vec<u8>,
    /// Length at which the log is compacted, and the length that it should not exceed.
    compact_at: u64,
    limit: u64,
    compaction: Option<JoinHandle<Result<Outcome, SnapshotError>>>,
    compaction_error: Option<SnapshotError>,
    syncing: Option<JoinHandle<()>>,
    /// True if the owner has received the result of closing.
    closed: bool,
}

impl SnapshotWriter {
    /// Opens the log, or creates it. Also returns its content, because it has to be read anyway.
    /// The directory must exist. An empty file becomes a log and keeps its owner and mode; only its
    /// owner can read a new file.
    ///
    /// Cuts off the incomplete data that a crash left after the last checkpoint. The cursor is
    /// `None` if the log's scope tag differs from the one of `options`. Unless the policy is
    /// [`SyncPolicy::Never`], the returned content is on the disk.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Locked`] if another writer exists. Returns
    /// [`SnapshotError::NotASnapshot`] if the path names anything other than a log or an empty
    /// file, or is a link to a missing file. Returns the errors of [`load`](super::load) if an
    /// existing file cannot be read. The file is left unchanged in these cases. Returns
    /// [`SnapshotError::Io`] if the system rejects an operation.
    pub fn open(
        path: impl AsRef<Path>,
        options: SnapshotOptions,
    ) -> Result<(Self, Snapshot), SnapshotError> {
        let opened = Self::open_whatever_scope(path.as_ref(), options)?;
        Ok(of_scope(opened, options))
    }

    /// Opens the log as [`open`](Self::open) does, but returns the stored cursor of any scope.
    pub(crate) fn open_whatever_scope(
        path: &Path,
        options: SnapshotOptions,
    ) -> Result<(Self, Snapshot), SnapshotError> {
        let resolved =
            local_file::resolve(path).map_err(|source| SnapshotError::not_opened(path, source))?;
        Self::recover_on(Arc::new(StdDisk), &resolved, options)
    }

    #[cfg(test)]
    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        options: SnapshotOptions,
    ) -> Result<(Self, Snapshot), SnapshotError> {
        Ok(of_scope(Self::recover_on(disk, path, options)?, options))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Sets the scope tag of the following checkpoints.
    pub(crate) fn set_scope_tag(&mut self, tag: [u8; 16]) {
        self.options.scope_tag = tag;
    }

    fn recover_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        options: SnapshotOptions,
    ) -> Result<(Self, Snapshot), SnapshotError> {
        let path: Arc<Path> = path.into();
        let (log, loaded) = open_log(&*disk, &path, options)?;
        let (threshold, live) = (options.compaction_threshold, loaded.entries.record_bytes());
        let state = loaded.into_snapshot();
        let shared = Arc::new(SharedLog::new(disk, log));
        let mut writer = Self {
            shared,
            options,
            buffer: vec![0; FRAME_HEADER],
            compact_at: due(threshold, live),
            limit: limit(threshold, live),
            compaction: None,
            compaction_error: None,
            syncing: None,
            closed: false,
        };
        if let SyncPolicy::Interval(interval) = options.sync {
            let shared = Arc::clone(&writer.shared);
            let thread = thread::Builder::new().name("snapshot-sync".to_owned());
            let spawned = thread.spawn(move || shared.sync_on_time(interval));
            writer.syncing = Some(
                spawned.map_err(|source| SnapshotError::io(&path, "start a thread for", source))?,
            );
        }
        Ok((writer, state))
    }

    /// Appends an update to the next checkpoint. Skips the caught-up marker.
    ///
    /// Writes to memory only. After about each 1 MiB it writes a part of the checkpoint to the
    /// file, which becomes valid no earlier than the rest.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Io`] if a part cannot be written. This update was then not appended
    /// and earlier ones were; the caller can append it again. Returns
    /// [`SnapshotError::ValueTooLarge`] for a value above about 4 GiB. Returns
    /// [`SnapshotError::Poisoned`] if the writer cannot be used any more.
    pub fn append(&mut self, update: &KvUpdate) -> Result<(), SnapshotError> {
        let Some((entry, deletion)) = written(update)? else { return Ok(()) };
        self.make_room(entry.value.len())?;
        encode(&mut self.buffer, entry, deletion);
        Ok(())
    }

    /// Appends a change as [`append`](Self::append) does an update, without encoding it again.
    pub(crate) fn append_change(&mut self, change: &Change) -> Result<(), SnapshotError> {
        let record = change.record();
        self.make_room(record.len())?;
        self.buffer.extend_from_slice(record.bytes());
        Ok(())
    }

    /// Writes a part if the buffer is full, or has no room for a large value.
    fn make_room(&mut self, size: usize) -> Result<(), SnapshotError> {
        self.shared.check()?;
        let filled = self.buffer.len();
        if filled >= PART_SIZE || (filled > FRAME_HEADER && filled + size > 2 * PART_SIZE) {
            self.shared.log().append(&mut self.buffer, None)?;
            self.empty_buffer();
        }
        Ok(())
    }

    /// Commits everything that was appended since the last checkpoint, together with the cursor.
    /// After a crash the log has either both or neither. `None` says that the state has no position
    /// from which a watch can resume, as during a replica's resync. The [`SyncPolicy`] decides how
    /// durable the checkpoint is when the call returns.
    ///
    /// If the log grows faster than it is compacted, this waits for the compaction; see
    /// [`compaction_threshold`](SnapshotOptions::compaction_threshold()).
    ///
    /// # Errors
    /// Returns [`SnapshotError::Io`] if the checkpoint cannot be written, for instance because the
    /// disk is full. The file is then unchanged, and the appended updates are kept for the next
    /// call, or to be [discarded](Self::discard). Returns [`SnapshotError::Interfered`] if another
    /// program touched the file. Returns [`SnapshotError::Poisoned`] if the sync failed, or an
    /// earlier operation after which the file's state is unknown.
    pub fn checkpoint(&mut self, cursor: Option<&WatchCursor>) -> Result<(), SnapshotError> {
        let ending = Ending { cursor: cursor.copied(), tag: self.options.scope_tag };
        let filled = self.buffer.len();
        let (good, was_synced, has_compacted) = {
            let mut log = self.shared.log();
            log.check()?;
            let is_new = filled > FRAME_HEADER || log.end > log.good || log.ending != Some(ending);
            let was_synced = log.synced >= log.good;
            if is_new {
                ending.append_to(&mut self.buffer);
                if let Err(error) = log.append(&mut self.buffer, Some(ending)) {
                    self.buffer.truncate(filled);
                    return Err(error);
                }
            } else {
                log.check_file()?;
            }
            (log.good, was_synced, log.compaction.is_none())
        };
        self.empty_buffer();
        match self.options.sync {
            SyncPolicy::EveryCheckpoint => self.shared.sync()?,
            // The thread waits for the first only, and sees the others when it has slept.
            SyncPolicy::Interval(_) if was_synced => self.shared.notify(),
            SyncPolicy::Interval(_) | SyncPolicy::Never => {}
        }
        // The thread of the compaction may not have ended yet.
        self.take_compaction(has_compacted);
        if good >= self.compact_at {
            self.start_compaction();
        }
        self.shared.hold_back(self.limit);
        Ok(())
    }

    /// Discards everything that was appended since the last checkpoint.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Io`] if parts that are already in the file cannot be cut off;
    /// nothing is then discarded. Returns [`SnapshotError::Poisoned`] if the writer cannot be used
    /// any more.
    pub fn discard(&mut self) -> Result<(), SnapshotError> {
        self.shared.log().roll_back()?;
        self.empty_buffer();
        Ok(())
    }

    /// Makes the last checkpoint durable now, whatever the policy.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Poisoned`] if the sync fails, or the writer cannot be used any
    /// more.
    pub fn sync(&mut self) -> Result<(), SnapshotError> {
        self.shared.sync()
    }

    /// Rewrites the log without superseded entries, and waits for the end of that. The appended
    /// updates also stay, and become valid with the next checkpoint. It needs room on the disk for
    /// the live entries, beside the present file.
    ///
    /// A log that has grown is compacted automatically by a background thread; see
    /// [`compaction_threshold`](SnapshotOptions::compaction_threshold).
    ///
    /// # Errors
    /// Returns the error of the compaction. The log is unchanged, and the writer remains usable
    /// unless the error is [`SnapshotError::Poisoned`].
    pub fn compact(&mut self) -> Result<(), SnapshotError> {
        self.take_compaction(true);
        self.shared.log().check()?;
        self.start_compaction();
        self.take_compaction(true);
        match &self.compaction_error {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Starts compacting the log in the background, unless a compaction is already running.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Poisoned`] if the writer cannot be used any more.
    /// [`last_compaction_error`](Self::last_compaction_error) returns the result later.
    pub fn compact_in_background(&mut self) -> Result<(), SnapshotError> {
        self.take_compaction(false);
        self.shared.log().check()?;
        self.start_compaction();
        Ok(())
    }

    /// Returns true if a compaction is running.
    pub fn is_compacting(&self) -> bool {
        self.compaction.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Returns the error of the last compaction. Returns `None` if it did not fail. The writer
    /// retries when the log has grown by another half.
    pub fn last_compaction_error(&mut self) -> Option<&SnapshotError> {
        self.take_compaction(false);
        self.compaction_error.as_ref()
    }

    /// Returns the length of the file in bytes, up to the last checkpoint.
    pub fn file_len(&self) -> u64 {
        self.shared.log().good
    }

    /// Closes the log. Discards everything that was appended since the last checkpoint, and stops a
    /// running compaction. Unless the policy is [`SyncPolicy::Never`], everything is on the disk
    /// when this returns.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Poisoned`] if the last sync or an earlier operation failed. Returns
    /// [`SnapshotError::Interfered`] if another program touched the file.
    pub fn close(mut self) -> Result<(), SnapshotError> {
        self.closed = true;
        self.end()
    }

    fn end(&mut self) -> Result<(), SnapshotError> {
        self.shared.stop();
        self.take_compaction(true);
        if let Some(thread) = self.syncing.take() {
            let _ = thread.join();
        }
        let rolled_back = self.shared.log().roll_back();
        if self.options.sync != SyncPolicy::Never {
            self.shared.sync()?;
        }
        self.shared.log().check_file()?;
        rolled_back
    }

    /// Ends as a killed process does, without a last sync, but leaves no thread behind.
    #[cfg(test)]
    pub(super) fn kill(mut self) {
        self.take_compaction(true);
        self.shared.stop();
        if let Some(thread) = self.syncing.take() {
            let _ = thread.join();
        }
        self.closed = true;
    }

    /// Returns a function that is true while a call waits for a compaction.
    #[cfg(test)]
    pub(super) fn held_back(&self) -> impl Fn() -> bool + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.waiting.load(std::sync::atomic::Ordering::Acquire) > 0
    }

    /// Returns a function that is true after the threads were told to end.
    #[cfg(test)]
    pub(super) fn stopping(&self) -> impl Fn() -> bool + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.is_stopping()
    }

    fn empty_buffer(&mut self) {
        self.buffer.truncate(FRAME_HEADER);
        // Frees the memory of a large value, because smaller ones follow.
        self.buffer.shrink_to(2 * PART_SIZE);
    }

    fn start_compaction(&mut self) {
        if self.compaction.is_some() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("snapshot-compact".to_owned());
        self.shared.compaction_begins();
        match thread.spawn(move || compact::run(&shared)) {
            Ok(thread) => self.compaction = Some(thread),
            Err(source) => {
                self.shared.compaction_ended();
                let error = SnapshotError::io(&self.shared.path, "start a thread for", source);
                self.compaction_failed(error);
            }
        }
    }

    /// Records the result of a compaction that has ended. With `wait`, waits for its end.
    fn take_compaction(&mut self, wait: bool) {
        let Some(thread) = self.compaction.take_if(|thread| wait || thread.is_finished()) else {
            return;
        };
        match thread.join() {
            Ok(Ok(Outcome::Done(live))) => {
                self.compaction_error = None;
                self.compact_at = due(self.options.compaction_threshold, live);
                self.limit = limit(self.options.compaction_threshold, live);
            }
            Ok(Ok(Outcome::Stopped)) => {}
            Ok(Err(error)) => self.compaction_failed(error),
            Err(_panic) => {
                let source = std::io::Error::other("the compacting thread panicked");
                self.compaction_failed(SnapshotError::io(&self.shared.path, "compact", source));
            }
        }
    }

    fn compaction_failed(&mut self, error: SnapshotError) {
        tracing::warn!(%error, "the snapshot log could not be compacted; it is used as it is");
        let len = self.file_len();
        // The retry is no earlier than a compaction without a failure would be.
        self.compact_at =
            due(self.options.compaction_threshold, 0).max(len.saturating_add(len / 2));
        self.compaction_error = Some(error);
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.closed
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, "the snapshot log was dropped and may not be on the disk");
        }
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("path", &self.shared.path)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Removes a cursor of another scope.
fn of_scope(
    (writer, mut state): (SnapshotWriter, Snapshot),
    options: SnapshotOptions,
) -> (SnapshotWriter, Snapshot) {
    if state.scope_tag != options.scope_tag {
        state.cursor = None;
    }
    (writer, state)
}

/// Returns the length at which a log with this live size is compacted. It is early enough to let
/// the log grow meanwhile.
fn due(threshold: u64, live: u64) -> u64 {
    threshold.max(live.saturating_add(live / 2))
}

/// Returns the length that a log with this live size exceeds by at most one checkpoint.
fn limit(threshold: u64, live: u64) -> u64 {
    live.saturating_mul(2).saturating_add(threshold.max(PART_SIZE as u64))
}

/// Opens the file at the path, or creates it, and locks it. The returned file had that name when it
/// was locked.
fn open_locked(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, SnapshotError> {
    let is = |kind| move |error: &io::Error| error.kind() == kind;
    for _ in 0..OPENINGS {
        let opened = match disk.open(path, Access::Write) {
            Err(absent) if is(io::ErrorKind::NotFound)(&absent) => {
                match disk.open(path, Access::Create) {
                    Err(present) if is(io::ErrorKind::AlreadyExists)(&present) => continue,
                    created => created,
                }
            }
            opened => opened,
        };
        let file = match opened {
            Ok(file) => file,
            // On Windows a file that another writer has open cannot be opened for writing.
            Err(source) if cfg!(windows) && source.raw_os_error() == Some(32) => break,
            Err(source) => return Err(SnapshotError::not_opened(path, source)),
        };
        if !file.try_lock().map_err(|source| SnapshotError::io(path, "lock", source))? {
            break;
        }
        // Another writer may have compacted or closed the log after this one opened the file. This
        // is then the old file.
        if file.identity(path) == Identity::Kept {
            return Ok(file);
        }
    }
    Err(SnapshotError::Locked { path: path.to_owned() })
}

fn open_log(
    disk: &dyn Disk,
    path: &Arc<Path>,
    options: SnapshotOptions,
) -> Result<(Log, Loaded), SnapshotError> {
    let durable = options.sync != SyncPolicy::Never;
    let file = open_locked(disk, path)?;
    let mut loaded = load_file(&file, path)?;
    remove_leftover(disk, &SharedLog::beside(path, compact::EXTENSION))?;
    let header = match loaded.header {
        Some(header) => header,
        None => {
            let header = create(&*file, path)?;
            loaded = Loaded::empty(header);
            header
        }
    };
    // An earlier crash may have left a new or compacted file here whose name is not durable. Syncs
    // with every policy, because a later call to `sync` syncs only the file.
    disk.sync_dir(path)
        .map_err(|source| SnapshotError::io(path, "sync the directory of", source))?;
    let log = Log::recover(Arc::clone(path), file, &loaded, header, durable)?;
    Ok((log, loaded))
}
