//! Options for writing a snapshot.

use std::time::Duration;

/// Time at which a written checkpoint reaches the disk.
///
/// With every policy, the system has a checkpoint when
/// [`checkpoint`](super::SnapshotWriter::checkpoint) returns: a process that crashes or is killed
/// loses none. The policies differ in the data that a machine loses when it crashes or loses power.
/// The state afterwards is always the state of one checkpoint, with its cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// Each checkpoint is on the disk when the call returns. No acknowledged checkpoint is lost.
    #[default]
    EveryCheckpoint,
    /// A thread of the writer syncs a checkpoint this long after it was written, or a little later,
    /// even if no other checkpoint follows. A crash of the machine can lose the writes of this
    /// time. If a sync fails, the next call returns the error.
    Interval(Duration),
    /// The system writes at a time of its choice, usually about 30 seconds later. A crash of the
    /// machine can lose everything since the log was opened or compacted.
    Never,
}

/// Options of a [`SnapshotWriter`](super::SnapshotWriter).
///
/// ```
/// use std::time::Duration;
/// use shizuku_kv::snapshot::{SnapshotOptions, SyncPolicy};
///
/// let options = SnapshotOptions::new()
///     .sync(SyncPolicy::Interval(Duration::from_secs(1)))
///     .compaction_threshold(64 * 1024 * 1024);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Set by [`sync`](Self::sync()).
    pub sync: SyncPolicy,
    /// Set by [`compaction_threshold`](Self::compaction_threshold()).
    pub compaction_threshold: u64,
    /// Set by [`scope_tag`](Self::scope_tag()).
    pub scope_tag: [u8; 16],
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            sync: SyncPolicy::default(),
            compaction_threshold: 16 * 1024 * 1024,
            scope_tag: [0; 16],
        }
    }
}

impl SnapshotOptions {
    /// Returns the defaults: each checkpoint is synced, logs below 16 MiB are not compacted, and
    /// the scope tag is zeros.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time at which written data reaches the disk. The default is
    /// [`SyncPolicy::EveryCheckpoint`].
    pub fn sync(mut self, policy: SyncPolicy) -> Self {
        self.sync = policy;
        self
    }

    /// Minimum length in bytes at which a log is compacted in the background, if it is also longer
    /// than one and a half times its live size. Meanwhile
    /// [`checkpoint`](super::SnapshotWriter::checkpoint) waits if the log grows faster than it is
    /// compacted: the log has at most twice its live size, plus this threshold, plus one
    /// checkpoint. The live size is measured when the log is opened, and by each compaction. While
    /// compactions fail, for instance because the disk is full, no call waits for them and the log
    /// grows.
    ///
    /// The default is 16 MiB. With `u64::MAX` only [`compact`](super::SnapshotWriter::compact)
    /// compacts the log, and its length is not limited.
    pub fn compaction_threshold(mut self, bytes: u64) -> Self {
        self.compaction_threshold = bytes;
        self
    }

    /// Identifies the source of the copy, for instance with a hash of bucket and scope. The writer
    /// stores the tag with each checkpoint. A writer that finds another tag in the file returns the
    /// entries, but no cursor, because a position in one scope means nothing in another. The
    /// default is zeros.
    pub fn scope_tag(mut self, tag: [u8; 16]) -> Self {
        self.scope_tag = tag;
        self
    }
}
