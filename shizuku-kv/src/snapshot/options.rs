//! How a snapshot is written.

use std::time::Duration;

/// When what a checkpoint has written is made to reach the disk.
///
/// Whatever the policy, a checkpoint is in the hands of the system when
/// [`checkpoint`](super::SnapshotWriter::checkpoint) returns: a process that crashes or is killed loses none. The
/// policies differ in what a machine loses that crashes or is without power. What is there afterwards is always the
/// state of one checkpoint, with its cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// Each checkpoint is on the disk when the call returns. Nothing that was acknowledged is lost.
    #[default]
    EveryCheckpoint,
    /// A checkpoint is on the disk this long after it was written, or a little later, also when no other follows: a
    /// thread of the writer sees to it. Lost can be what was written within this time. Should a sync fail, the next
    /// call says so.
    Interval(Duration),
    /// The system writes when it likes, some 30 seconds later as a rule. Lost can be everything since the log was
    /// opened or compacted.
    Never,
}

/// How a [`SnapshotWriter`](super::SnapshotWriter) writes.
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
    /// Each checkpoint is synced; logs below 16 MiB are not compacted; the scope tag is zeros.
    pub fn new() -> Self {
        Self::default()
    }

    /// When what was written is made to reach the disk. The default is [`SyncPolicy::EveryCheckpoint`].
    pub fn sync(mut self, policy: SyncPolicy) -> Self {
        self.sync = policy;
        self
    }

    /// A log that is longer than this, in bytes, and more than twice as long as what lives in it, is compacted in the
    /// background. The default is 16 MiB; with `u64::MAX` only
    /// [`compact`](super::SnapshotWriter::compact) does it.
    pub fn compaction_threshold(mut self, bytes: u64) -> Self {
        self.compaction_threshold = bytes;
        self
    }

    /// Marks what the log is a copy of, for instance with a hash of bucket and scope; stored with each checkpoint. A
    /// writer that finds another mark in the file gives the entries, but no cursor: a place in one scope means nothing
    /// in another. The default is zeros.
    pub fn scope_tag(mut self, tag: [u8; 16]) -> Self {
        self.scope_tag = tag;
        self
    }
}
