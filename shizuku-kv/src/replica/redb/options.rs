//! When commits become durable, and how much memory the database takes.

use std::time::Duration;

/// When a commit of a [`RedbStorage`](super::RedbStorage) becomes durable.
///
/// Whatever is set, what is there after a crash is what some commit left, with that commit's place: a replica goes on
/// from there, and gets again what came since. Dropping or closing the storage makes everything durable.
///
/// Other than with a log, commits that are not durable yet are in the memory of this process: they do not survive its end
/// by `kill -9`, a panic that aborts, or the lack of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedbSync {
    /// Each commit is on the disk when it returns. Nothing is lost that was committed, neither when the process is killed
    /// nor by a loss of power, as far as the disk keeps its word.
    #[default]
    EveryCheckpoint,
    /// A commit is made durable when so much time has passed since the last one that was, and with it all before it. When
    /// the process is killed or the power is lost, at least what was committed before that is there. Nothing happens by
    /// itself: after the last commit of a burst, what is not durable waits for the next one.
    Interval(Duration),
    /// Commits become durable when the storage is closed, and not before. When the process is killed or the power is
    /// lost, everything since it was opened is gone: for a first filling that can be begun anew.
    Never,
}

impl RedbSync {
    /// Whether the commit that comes now is to be durable, `since_last` after the last one that was.
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
    /// Every commit durable, a cache of 64 MiB, no check.
    pub fn new() -> Self {
        Self { sync: RedbSync::default(), cache_size: 64 << 20, checks: false }
    }

    /// When commits become durable: [`RedbSync::EveryCheckpoint`] unless set.
    pub fn sync(mut self, sync: RedbSync) -> Self {
        self.sync = sync;
        self
    }

    /// How many bytes of memory the cache may take, for reading and writing together: 64 MiB unless set. Any number
    /// works; with a small one more is read from the file. A commit that is larger is written in parts.
    pub fn cache_size(mut self, bytes: usize) -> Self {
        self.cache_size = bytes;
        self
    }

    /// Whether opening the file reads all of it and verifies its checksums: not unless set. It finds damage that no crash
    /// can have done, as by a failing disk or another program, and takes as long as reading the file does.
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
