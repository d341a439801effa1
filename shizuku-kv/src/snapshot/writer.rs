//! The writer: updates gathered in memory, checkpoints that put them into the file.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::compact::{self, Outcome};
use super::disk::{Access, Disk, DiskFile, StdDisk};
use super::frame::{Ending, FRAME_HEADER};
use super::load::{Loaded, load_file};
use super::log::{Log, create, remove_leftover};
use super::record::{MAX_VALUE_LEN, encode};
use super::shared::Shared;
use super::{Snapshot, SnapshotError, SnapshotOptions, SyncPolicy, small_in_tests};
use crate::local_file::{self, Place};
use crate::store::{KvUpdate, WatchCursor};

/// A checkpoint of more than this, in bytes, is written in parts as it grows.
pub(super) const PART: usize = small_in_tests(1024 * 1024, 256);

/// Maximum number of times that the log is reopened because another writer replaced it between the
/// opening and the lock.
const OPENINGS: usize = 16;

/// Writes a snapshot log: updates as they come, and now and then a checkpoint, at which all of them count together with
/// the cursor.
///
/// Every call blocks for as long as the disk takes; in asynchronous code use
/// [`spawn_blocking`](tokio::task::spawn_blocking) or a thread of its own.
///
/// A file has one writer at a time, in all processes: the writer locks the file itself. No other
/// program may rename, truncate, replace or remove it meanwhile, log rotation in particular. Each
/// checkpoint and [`close`](Self::close) check for that, and return [`SnapshotError::Interfered`].
///
/// Links in the path are resolved once, when it is opened. Compaction writes a file beside the log,
/// whose name ends in `.compact`, and renames it. The new file gets mode, group and owner of the
/// log as far as the system allows; extended attributes and access lists are not copied, and
/// further names (hard links) stay with the old file.
///
/// Dropping the writer forgets what was appended since the last checkpoint, stops a compaction that is under way, and
/// with [`SyncPolicy::Interval`] waits for one last sync. [`close`](Self::close) does the same and tells of errors.
///
/// ```
/// use shizuku_kv::snapshot::{self, SnapshotOptions, SnapshotWriter};
/// # use shizuku_kv::{Key, KvEntry, KvUpdate, VersionToken};
/// # use std::time::SystemTime;
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("state");
/// # let entry = KvEntry::put(Key::new("a.b")?, "value".into(), VersionToken::from_u64(1), SystemTime::now());
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
    shared: Arc<Shared>,
    options: SnapshotOptions,
    /// The records since the last frame, behind room for the header of theirs.
    buffer: Vec<u8>,
    /// The length at which the log is compacted.
    compact_at: u64,
    compaction: Option<JoinHandle<Result<Outcome, SnapshotError>>>,
    compaction_error: Option<SnapshotError>,
    syncing: Option<JoinHandle<()>>,
    /// Whether whoever has it was told how it ended.
    closed: bool,
}

impl SnapshotWriter {
    /// Opens the log, or creates it. Also returns its content, because it has to be read anyway.
    /// The directory must exist. An empty file becomes a log and keeps its owner and mode; only its
    /// owner can read a new file.
    ///
    /// What a crash left behind the last checkpoint is cut off. The cursor is none where the log's scope tag is not
    /// the one of `options`. Unless the policy is [`SyncPolicy::Never`], what is returned is on the disk.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Locked`] if there is another writer;
    /// [`SnapshotError::NotASnapshot`] if the path names anything other than a log or an empty
    /// file, or is a link to a missing file; the errors of [`load`](super::load) if an existing
    /// file cannot be read. The file is left unchanged in these cases. Returns
    /// [`SnapshotError::Io`] if the system rejects an operation.
    pub fn open(
        path: impl AsRef<Path>,
        options: SnapshotOptions,
    ) -> Result<(Self, Snapshot), SnapshotError> {
        let opened = Self::open_whatever_scope(path.as_ref(), options)?;
        Ok(of_scope(opened, options))
    }

    /// The same with the cursor that is there, of whatever scope it is.
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

    /// What the checkpoints from now on are of.
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
        let compact_at = due(options.compaction_threshold, loaded.entries.record_bytes());
        let state = loaded.into_snapshot();
        let shared = Arc::new(Shared::new(disk, log));
        let mut writer = Self {
            shared,
            options,
            buffer: vec![0; FRAME_HEADER],
            compact_at,
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

    /// Takes an update into the next checkpoint. The caught-up marker is passed over.
    ///
    /// Only memory is written to, but for each 1 MiB or so, which goes to the file as a part of the checkpoint; it
    /// counts no earlier than the rest.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if a part cannot be written: then this update was not taken, those before were, and it can
    /// be appended again. [`SnapshotError::ValueTooLarge`] above some 4 GiB. [`SnapshotError::Poisoned`] once the writer
    /// cannot be used any more.
    pub fn append(&mut self, update: &KvUpdate) -> Result<(), SnapshotError> {
        let (entry, deletion) = match update {
            KvUpdate::Put(entry) => (entry, false),
            KvUpdate::Delete(entry) => (entry, true),
            KvUpdate::CaughtUp => return Ok(()),
        };
        let size = entry.value.len();
        if size > MAX_VALUE_LEN {
            return Err(SnapshotError::ValueTooLarge {
                key: entry.key.clone(),
                size,
                limit: MAX_VALUE_LEN,
            });
        }
        self.shared.check()?;
        let filled = self.buffer.len();
        if filled >= PART || (filled > FRAME_HEADER && filled + size > 2 * PART) {
            self.shared.log().append(&mut self.buffer, None)?;
            self.empty_buffer();
        }
        encode(&mut self.buffer, entry, deletion);
        Ok(())
    }

    /// Makes everything that was appended since the last checkpoint count, together with the cursor: after a crash
    /// there is either both or neither. `None` says that the state has no place to go on from, as while a replica is
    /// being repaired. How durable it is when the call returns, the [`SyncPolicy`] says.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if it cannot be written, for instance because the disk is full. The
    /// file is as it was, and the appended updates are kept for the next call, or to be
    /// [discarded](Self::discard). Returns Returns [`SnapshotError::Interfered`] if another program
    /// touched the file. Returns [`SnapshotError::Poisoned`] if the sync failed, or an earlier
    /// operation after which the file's state is unknown.
    pub fn checkpoint(&mut self, cursor: Option<&WatchCursor>) -> Result<(), SnapshotError> {
        let ending = Ending { cursor: cursor.copied(), tag: self.options.scope_tag };
        let filled = self.buffer.len();
        let (good, was_synced) = {
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
            (log.good, was_synced)
        };
        self.empty_buffer();
        match self.options.sync {
            SyncPolicy::EveryCheckpoint => self.shared.sync()?,
            // It waits for the first only, and sees the others when it has slept.
            SyncPolicy::Interval(_) if was_synced => self.shared.notify(),
            SyncPolicy::Interval(_) | SyncPolicy::Never => {}
        }
        self.take_compaction(false);
        if good >= self.compact_at {
            self.start_compaction();
        }
        Ok(())
    }

    /// Forgets what was appended since the last checkpoint.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if parts of it that are in the file already cannot be cut off; then nothing is forgotten.
    /// [`SnapshotError::Poisoned`] once the writer cannot be used any more.
    pub fn discard(&mut self) -> Result<(), SnapshotError> {
        self.shared.log().roll_back()?;
        self.empty_buffer();
        Ok(())
    }

    /// Makes the last checkpoint durable now, whatever the policy.
    ///
    /// # Errors
    /// [`SnapshotError::Poisoned`] if that fails, or the writer cannot be used any more.
    pub fn sync(&mut self) -> Result<(), SnapshotError> {
        self.shared.sync()
    }

    /// Writes the log anew without what is superseded, and waits until that is done; also what was appended stays as it
    /// is, and counts with the next checkpoint. It needs room on the disk for what lives, beside the file as it is.
    ///
    /// A log that has grown is compacted without being asked, by a thread beside the work, as
    /// [`compaction_threshold`](SnapshotOptions::compaction_threshold) says.
    ///
    /// # Errors
    /// What went wrong. The log is as it was, and the writer goes on with it, unless it is [`SnapshotError::Poisoned`].
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

    /// Begins to compact the log in the background, unless that is being done already.
    ///
    /// # Errors
    /// [`SnapshotError::Poisoned`] once the writer cannot be used any more. Whether it succeeds,
    /// [`last_compaction_error`](Self::last_compaction_error) tells later.
    pub fn compact_in_background(&mut self) -> Result<(), SnapshotError> {
        self.take_compaction(false);
        self.shared.log().check()?;
        self.start_compaction();
        Ok(())
    }

    /// Whether the log is being compacted.
    pub fn is_compacting(&self) -> bool {
        self.compaction.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Why the last compaction failed; none if it did not. It is tried again when the log has grown by another half.
    pub fn last_compaction_error(&mut self) -> Option<&SnapshotError> {
        self.take_compaction(false);
        self.compaction_error.as_ref()
    }

    /// The length of the file in bytes, up to the last checkpoint.
    pub fn file_len(&self) -> u64 {
        self.shared.log().good
    }

    /// Closes the log: what was appended since the last checkpoint is forgotten, a compaction that is under way is
    /// stopped, and unless the policy is [`SyncPolicy::Never`] everything is on the disk when this returns.
    ///
    /// # Errors
    /// [`SnapshotError::Poisoned`] if the last sync failed, or something before. Returns
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

    /// Ends as a process that is killed does, without farewell; but no thread is left behind.
    #[cfg(test)]
    pub(super) fn kill(mut self) {
        self.take_compaction(true);
        self.shared.stop();
        if let Some(thread) = self.syncing.take() {
            let _ = thread.join();
        }
        self.closed = true;
    }

    /// Tells whether its threads were told to end.
    #[cfg(test)]
    pub(super) fn stopping(&self) -> impl Fn() -> bool + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.is_stopping()
    }

    fn empty_buffer(&mut self) {
        self.buffer.truncate(FRAME_HEADER);
        // What one large value needed is not kept for the small ones after it.
        self.buffer.shrink_to(2 * PART);
    }

    fn start_compaction(&mut self) {
        if self.compaction.is_some() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("snapshot-compact".to_owned());
        match thread.spawn(move || compact::run(&shared)) {
            Ok(thread) => self.compaction = Some(thread),
            Err(source) => {
                let error = SnapshotError::io(&self.shared.path, "start a thread for", source);
                self.compaction_failed(error);
            }
        }
    }

    /// Notes what came of a compaction that has ended, or, with `wait`, that will have.
    fn take_compaction(&mut self, wait: bool) {
        let Some(thread) = self.compaction.take_if(|thread| wait || thread.is_finished()) else {
            return;
        };
        match thread.join() {
            Ok(Ok(Outcome::Done(live))) => {
                self.compaction_error = None;
                self.compact_at = due(self.options.compaction_threshold, live);
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
        // Nor earlier than it would be otherwise.
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

/// Without a cursor where it is one of another scope.
fn of_scope(
    (writer, mut state): (SnapshotWriter, Snapshot),
    options: SnapshotOptions,
) -> (SnapshotWriter, Snapshot) {
    if state.scope_tag != options.scope_tag {
        state.cursor = None;
    }
    (writer, state)
}

/// The length at which a log is compacted in which this much lives.
fn due(threshold: u64, live: u64) -> u64 {
    threshold.max(live.saturating_mul(2))
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
        // Another writer may have compacted the log, or been closed, since it was opened here. In
        // this case this is the old file.
        if file.place(path) == Place::Kept {
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
    remove_leftover(disk, &Shared::beside(path, compact::EXTENSION))?;
    let header = match loaded.header {
        Some(header) => header,
        None => {
            let header = create(&*file, path)?;
            loaded = Loaded::empty(header);
            header
        }
    };
    // An earlier crash may have left a new or compacted file here of which the directory on the
    // disk does not know. With every policy, because a later call to `sync` syncs only the file.
    disk.sync_dir(path)
        .map_err(|source| SnapshotError::io(path, "sync the directory of", source))?;
    let log = Log::recover(Arc::clone(path), file, &loaded, header, durable)?;
    Ok((log, loaded))
}
