//! Noticing the commits of other processes: events of the operating system for the database file,
//! and a comparison at an interval, because an event can be missing.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::store::lock;

/// The wait of the thread that notices commits.
pub(super) struct Wake {
    /// The file whose events are used. `None` leaves only the interval.
    file: Option<PathBuf>,
    interval: Duration,
    is_closed: Mutex<bool>,
    changed: Condvar,
    events: Mutex<Option<Events>>,
}

impl Wake {
    pub(super) fn new(file: Option<PathBuf>, interval: Duration) -> Self {
        let (is_closed, changed) = (Mutex::new(false), Condvar::new());
        Self { file, interval, is_closed, changed, events: Mutex::new(None) }
    }

    /// Wakes the thread for a new watch.
    pub(super) fn begin(&self) {
        // The lock orders this after the thread's check of the number of watches.
        drop(lock(&self.is_closed));
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        *lock(&self.is_closed) = true;
        self.changed.notify_all();
    }

    /// Waits for an event of the file or for the interval, while there is a watch. Without a watch,
    /// waits for the first one. Returns `false` after [`close`](Self::close).
    pub(super) fn wait(&self, is_watched: impl Fn() -> bool) -> bool {
        {
            let mut is_closed = lock(&self.is_closed);
            while !*is_closed && !is_watched() {
                // Without a watch, nothing runs.
                lock(&self.events).take();
                is_closed = self.changed.wait(is_closed).unwrap_or_else(PoisonError::into_inner);
            }
            if *is_closed {
                return false;
            }
        }
        let mut events = lock(&self.events);
        match &mut *events {
            Some(events) => events.wait(self.interval),
            // The first look follows at once, because a commit may precede the events.
            none => *none = Some(Events::of(self.file.as_deref())),
        }
        true
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
use linux::Events;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

    /// The events of a file.
    pub(super) struct Events(Option<OwnedFd>);

    impl Events {
        /// Without events, for example because their number is limited, the interval remains.
        pub(super) fn of(file: Option<&Path>) -> Self {
            let watch = |file| {
                let queue = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
                add_watch(&queue, file, WatchFlags::MODIFY).ok()?;
                Some(queue)
            };
            Self(file.and_then(watch))
        }

        /// Waits for an event, at most for `interval`.
        pub(super) fn wait(&mut self, interval: Duration) {
            let Some(queue) = &self.0 else { return thread::sleep(interval) };
            let interval = Timespec {
                tv_sec: interval.as_secs().try_into().unwrap_or(1),
                tv_nsec: interval.subsec_nanos().into(),
            };
            let _ = poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&interval));
            // The position of the file decides, so that the content of the events does not matter.
            let mut buffer = [0; 1024];
            while rustix::io::read(queue, &mut buffer).is_ok_and(|read| read > 0) {}
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
struct Events;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Events {
    fn of(_: Option<&std::path::Path>) -> Self {
        Self
    }

    /// Waits for the interval.
    fn wait(&mut self, interval: Duration) {
        std::thread::sleep(interval);
    }
}
