//! One task of a process that acquires locks repeatedly.

use std::time::Duration;

use shizuku_kv::Store;
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockMode, LockOptions};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::guard::{Guard, claim, is_explained};
use crate::schedules::event_log::{EventLog, Who};

pub(crate) const RESOURCES: [&str; 2] = ["a", "b"];

/// Timeout for a live worker to acquire a lock when nothing is in its way any more. The longest
/// wait is for a session that was never seen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// The shared state of all workers of a process.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) who: Who,
    pub(crate) store: Store,
    pub(crate) lease: Duration,
    pub(crate) event_log: EventLog,
    /// True after the end of faults.
    pub(crate) is_quiet: watch::Receiver<bool>,
    pub(crate) random: Random,
}

/// The events that a worker has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) granted: u64,
    pub(crate) lost: u64,
    pub(crate) rejected: u64,
    pub(crate) left: u64,
}

impl Worker {
    pub(crate) async fn run(mut self) -> Seen {
        let mut seen = Seen::default();
        while !*self.is_quiet.borrow() {
            self.section(&mut seen).await;
            let pause = self.random.below(80);
            sleep(Duration::from_millis(pause)).await;
        }
        for resource in RESOURCES {
            let mode = if self.random.once_in(2) { LockMode::Read } else { LockMode::Write };
            self.get_in(resource, mode, &mut seen).await;
        }
        seen
    }

    fn lock(&self, resource: &str, wait: Duration) -> DistroRwLock {
        let options = LockOptions::new().lease(self.lease).wait(wait).label(self.who.to_string());
        DistroRwLock::with_options(&self.store, resource, options).expect("a lock")
    }

    async fn section(&mut self, seen: &mut Seen) {
        let resource = RESOURCES[usize::from(self.random.once_in(3))];
        let mode = if self.random.once_in(2) { LockMode::Read } else { LockMode::Write };
        let wait = Duration::from_millis(self.random.below(8000));
        let lock = self.lock(resource, wait);
        let claim = claim(&lock, mode, !self.random.once_in(8));
        let claimed = if self.random.once_in(6) {
            // The future is dropped, perhaps at the moment of the grant.
            let patience = Duration::from_millis(self.random.below(400));
            match timeout(patience, claim).await {
                Ok(claimed) => claimed,
                Err(_) => {
                    self.event_log
                        .note(format!("{} does not wait for {resource} any more", self.who));
                    seen.left += 1;
                    return;
                }
            }
        } else {
            claim.await
        };
        match claimed {
            Ok(guard) => self.hold(resource, guard, seen).await,
            Err(error) => {
                self.judge(resource, &error);
                seen.rejected += 1;
            }
        }
    }

    async fn hold(&mut self, resource: &'static str, guard: Guard, seen: &mut Seen) {
        seen.granted += 1;
        self.event_log.enter(self.who, resource, guard);
        self.stay().await;
        let mut guard = self.event_log.leave(self.who);
        if self.random.once_in(6)
            && let Guard::Write(writer) = guard
        {
            let held = match writer.downgrade().await {
                Ok(held) => held,
                Err(error) => {
                    self.judge(resource, &error);
                    seen.lost += 1;
                    return;
                }
            };
            self.event_log.enter_again(self.who, Guard::Read(held));
            self.stay().await;
            guard = self.event_log.leave(self.who);
        }
        seen.lost += u64::from(!guard.is_held());
        match self.random.below(4) {
            0 => drop(guard),
            1 => {
                let patience = Duration::from_millis(self.random.below(30));
                let _ = timeout(patience, guard.release()).await;
            }
            _ => match guard.release().await {
                Ok(()) => self.event_log.released(self.who),
                Err(error) => self.judge(resource, &error),
            },
        }
    }

    /// Stays for a moment, and sometimes for longer than a lease.
    async fn stay(&mut self) {
        let is_long = self.random.once_in(4) && !*self.is_quiet.borrow();
        let longest = if is_long { 3 * self.lease.as_millis() as u64 } else { 60 };
        let stay = self.random.below(longest);
        sleep(Duration::from_millis(stay)).await;
    }

    /// Acquires the lock after the end of faults, which must succeed.
    async fn get_in(&mut self, resource: &'static str, mode: LockMode, seen: &mut Seen) {
        let lock = self.lock(resource, PATIENCE);
        let get_in = async {
            loop {
                match claim(&lock, mode, true).await {
                    Ok(guard) => break guard,
                    // A loss during the faults may be reported now.
                    Err(error) => self.judge(resource, &error),
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        match timeout(PATIENCE, get_in).await {
            Ok(guard) => self.hold(resource, guard, seen).await,
            Err(_) => {
                let state = lock.inspect().await;
                self.event_log
                    .wrong(format!("{} is not granted {resource} to {mode}: {state:?}", self.who));
            }
        }
    }

    /// Accepts errors that faults explain, and reports all others.
    fn judge(&self, resource: &str, error: &DistroRwLockError) {
        self.event_log.note(format!("{} on {resource}: {error}", self.who));
        if !is_explained(error) {
            self.event_log.wrong(format!("{} meets {error:?}", self.who));
        }
    }
}
