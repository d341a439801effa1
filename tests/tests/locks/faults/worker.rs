//! One task of a process that acquires locks repeatedly, and logs what it sees.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockMode, LockOptions};
use shizuku_kv::{FencingToken, KvError, Store};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::faults::child::Diary;
use crate::guard::{Guard, claim, is_explained, is_of_faults, word};
use crate::logs::line::now;

pub(crate) const RESOURCES: [&str; 2] = ["a", "b"];

pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// Wait of a worker that intends to acquire the lock.
const WAIT: Duration = Duration::from_secs(15);

/// Returns the key that is written under the lock of a resource.
pub(crate) fn guarded(resource: &str) -> String {
    format!("guarded.{resource}")
}

pub(crate) struct Worker {
    process: u64,
    number: u64,
    store: Store,
    diary: Diary,
    is_quiet: watch::Receiver<bool>,
    random: Random,
    writes: u64,
}

impl Worker {
    pub(crate) fn new(
        process: u64,
        number: u64,
        store: &Store,
        diary: &Diary,
        is_quiet: &watch::Receiver<bool>,
        random: Random,
    ) -> Self {
        let (store, diary, is_quiet) = (store.clone(), diary.clone(), is_quiet.clone());
        Self { process, number, store, diary, is_quiet, random, writes: 0 }
    }

    pub(crate) async fn run(mut self) {
        while !*self.is_quiet.borrow() {
            self.section().await;
            let pause = self.random.below(10);
            sleep(Duration::from_millis(pause)).await;
        }
        self.note("quiet");
        for resource in RESOURCES {
            let mode = self.mode();
            let lock = self.lock(resource, WAIT);
            // The test bounds this loop.
            loop {
                self.note(format!("asks {resource} {}", word(mode)));
                match claim(&lock, mode, true).await {
                    Ok(guard) => break self.hold(resource, mode, guard).await,
                    Err(error) => self.tell(&error),
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        self.note("done");
    }

    fn note(&self, event: impl Into<String>) {
        self.note_at(now(), event.into());
    }

    fn note_at(&self, at: u64, event: String) {
        self.diary.note(at, self.number, event);
    }

    fn mode(&mut self) -> LockMode {
        if self.random.once_in(2) { LockMode::Read } else { LockMode::Write }
    }

    fn lock(&self, resource: &str, wait: Duration) -> DistroRwLock {
        let label = format!("process {}, worker {}", self.process, self.number);
        let options = LockOptions::new().lease(LEASE).wait(wait).label(label);
        DistroRwLock::with_options(&self.store, resource, options).expect("a lock")
    }

    async fn section(&mut self) {
        let resource = RESOURCES[usize::from(self.random.once_in(3))];
        let mode = self.mode();
        let wait = if self.random.once_in(4) {
            Duration::from_millis(self.random.below(500))
        } else {
            WAIT
        };
        let lock = self.lock(resource, wait);
        let waits = !self.random.once_in(8);
        let patience = if self.random.once_in(8) { self.random.below(300) } else { 60_000 };
        self.note(format!("asks {resource} {}", word(mode)));
        match timeout(Duration::from_millis(patience), claim(&lock, mode, waits)).await {
            Ok(Ok(guard)) => self.hold(resource, mode, guard).await,
            Ok(Err(error)) => self.tell(&error),
            Err(_) => self.note("not-granted the future was dropped"),
        }
    }

    async fn hold(&mut self, resource: &str, mode: LockMode, guard: Guard) {
        let at = now();
        let (held, token) = (guard.is_held(), guard.token());
        // Some writers stay long enough to be met within their section. Readers that stay as long
        // would only block others.
        let is_long =
            mode == LockMode::Write && self.random.once_in(25) && !*self.is_quiet.borrow();
        let length = if is_long { 300 + self.random.below(700) } else { self.random.below(6) };
        self.note_at(
            at,
            format!("entered {resource} {} {} {held} {length}", word(mode), token.as_u64()),
        );
        let is_writer = mode == LockMode::Write;
        if is_writer && self.random.once_in(2) {
            self.write_fenced(resource, token).await;
        }
        self.stay(&guard, length).await;
        if is_writer {
            // Does not check the hold first, because a process that is paused in between would not
            // know either.
            self.write_fenced(resource, token).await;
        }
        let guard = match guard {
            Guard::Write(writer) if self.random.once_in(8) => {
                self.look("held", || writer.is_held());
                match writer.downgrade().await {
                    Ok(reader) => {
                        let reader = Guard::Read(reader);
                        self.look("downgraded", || reader.is_held());
                        self.stay(&reader, length / 2).await;
                        reader
                    }
                    Err(error) => return self.tell_of_release(Err(error)),
                }
            }
            guard => guard,
        };
        self.look("leaving", || guard.is_held());
        match self.random.below(5) {
            0 => {
                drop(guard);
                self.note("let-go dropped");
            }
            1 => {
                let patience = Duration::from_millis(self.random.below(20));
                match timeout(patience, guard.release()).await {
                    Ok(result) => self.tell_of_release(result),
                    Err(_) => self.note("let-go the future was dropped"),
                }
            }
            _ => {
                let result = guard.release().await;
                self.tell_of_release(result);
            }
        }
    }

    /// Reads the time first, so that the claim is true at that time.
    fn look(&self, event: &str, is_held: impl FnOnce() -> bool) {
        let at = now();
        self.note_at(at, format!("{event} {}", is_held()));
    }

    async fn stay(&mut self, guard: &Guard, length: u64) {
        let mut left = length;
        while left > 0 {
            let step = left.min(1 + self.random.below(40));
            sleep(Duration::from_millis(step)).await;
            left -= step;
            self.look("held", || guard.is_held());
        }
    }

    async fn write_fenced(&mut self, resource: &str, token: FencingToken) {
        self.writes += 1;
        let number = self.writes;
        let value = format!("{} {} {} {number}", token.as_u64(), self.process, self.number);
        self.note(format!("writes {number}"));
        let fenced = self.store.fenced().expect("the store has fenced writes");
        let event = match fenced.put(guarded(resource), value, token).await {
            Ok(version) => format!("accepted {}", version.as_u64().expect("a number")),
            Err(KvError::Fenced { newest, .. }) => format!("rejected {}", newest.as_u64()),
            Err(error @ KvError::OutcomeUnknown { .. }) => format!("unknown {error}"),
            Err(error) if error.is_retryable() => format!("not-written {error}"),
            Err(error) => format!("unexplained {error:?}"),
        };
        self.note(event);
    }

    fn tell_of_release(&self, result: Result<(), DistroRwLockError>) {
        match result {
            Ok(()) => self.note("released"),
            Err(DistroRwLockError::LeaseLost { reason, .. }) => self.note(format!("lost {reason}")),
            Err(DistroRwLockError::Store { source, .. }) if is_of_faults(&source) => {
                self.note(format!("let-go {source}"));
            }
            Err(error) => self.note(format!("unexplained {error:?}")),
        }
    }

    fn tell(&self, error: &DistroRwLockError) {
        if is_explained(error) {
            self.note(format!("not-granted {error}"));
        } else {
            self.note(format!("unexplained {error:?}"));
        }
    }
}
