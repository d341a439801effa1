//! Options for the durability of commits, and for the memory of the database.

use std::time::Duration;

/// Time at which a commit of a [`RedbStorage`](super::RedbStorage) becomes durable.
///
/// With every setting, the file has the state of some commit after a crash, with that commit's
/// checkpoint. A replica resumes from there, and the store delivers later updates again. Dropping
/// or closing the storage makes everything durable.
///
/// Unlike a log, redb keeps commits that are not durable yet in the memory of this process. They do
/// not survive its end by `kill -9`, a panic that aborts, or the lack of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedbSync {
    /// Each commit is on the disk when it returns. No commit is lost, neither when the process is
    /// killed nor by a loss of power, provided that the disk honours syncs.
    #[default]
    EveryCheckpoint,
    /// A commit is made durable if this time has passed since the last durable one, together with
    /// all earlier commits. A killed process or a loss of power loses only later commits. No timer
    /// runs: after the last commit of a burst, commits that are not durable wait for the next
    /// commit.
    Interval(Duration),
    /// Commits become durable only when the storage is closed. A killed process or a loss of power
    /// loses everything since the storage was opened. For an initial fill that can be repeated.
    Never,
}

impl RedbSync {
    /// Returns true if the next commit must be durable, `since_last` after the last durable one.
    pub(super) fn is_due(self, since_last: Duration) -> bool {
        match self {
            Self::EveryCheckpoint => true,
            Self::Interval(interval) => since_last >= interval,
            Self::Never => false,
        }
    }
}

/// Settings of a [`RedbStorage`](super::RedbStorage).
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct RedbOptions {
    pub(super) sync: RedbSync,
    pub(super) cache_size: usize,
    pub(super) checks: bool,
}

impl RedbOptions {
    /// Returns the defaults: every commit durable, a cache of 64 MiB, no check.
    pub fn new() -> Self {
        Self { sync: RedbSync::default(), cache_size: 64 << 20, checks: false }
    }

    /// Sets the time at which commits become durable. The default is [`RedbSync::EveryCheckpoint`].
    pub fn sync(mut self, sync: RedbSync) -> Self {
        self.sync = sync;
        self
    }

    /// Maximum number of bytes of memory for the cache, for reading and writing together. The
    /// default is 64 MiB. Any number works, but a small cache reads more from the file. A larger
    /// commit is written in parts.
    pub fn cache_size(mut self, bytes: usize) -> Self {
        self.cache_size = bytes;
        self
    }

    /// Sets whether opening the file reads all of it and verifies its checksums. The default is not
    /// to. The check finds damage that no crash can cause, such as by a failing disk or another
    /// program. It takes as long as reading the file.
    pub fn check_when_opened(mut self, checks: bool) -> Self {
        self.checks = checks;
        self
    }
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self::new()
    }
}
