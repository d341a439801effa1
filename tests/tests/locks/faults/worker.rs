//! One task of a process that acquires locks repeatedly, and logs what it sees.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions, ReadGuard, WriteGuard};
use shizuku_kv::{FencingToken, KvError, Store};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::faults::child::Diary;
use crate::faults::line::{Event, Mode, now};

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

enum Guard {
    Read(ReadGuard),
    Write(WriteGuard),
}

impl Guard {
    fn token(&self) -> FencingToken {
        match self {
            Self::Read(guard) => guard.fencing_token(),
            Self::Write(guard) => guard.fencing_token(),
        }
    }

    fn is_held(&self) -> bool {
        match self {
            Self::Read(guard) => guard.is_held(),
            Self::Write(guard) => guard.is_held(),
        }
    }

    async fn release(self) -> Result<(), DistroRwLockError> {
        match self {
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
        }
    }
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
        self.note(Event::Quiet);
        for resource in RESOURCES {
            let mode = self.mode();
            let lock = self.lock(resource, WAIT);
            // The test bounds this loop.
            loop {
                self.note(Event::Asks { resource: resource.to_owned(), mode });
                match claim(&lock, mode, true).await {
                    Ok(guard) => break self.hold(resource, mode, guard).await,
                    Err(error) => self.tell(&error),
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        self.note(Event::Done);
    }

    fn note(&self, event: Event) {
        self.note_at(now(), event);
    }

    fn note_at(&self, at: u64, event: Event) {
        self.diary.note(at, self.number, event);
    }

    fn mode(&mut self) -> Mode {
        if self.random.once_in(2) { Mode::Read } else { Mode::Write }
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
        self.note(Event::Asks { resource: resource.to_owned(), mode });
        match timeout(Duration::from_millis(patience), claim(&lock, mode, waits)).await {
            Ok(Ok(guard)) => self.hold(resource, mode, guard).await,
            Ok(Err(error)) => self.tell(&error),
            Err(_) => self.note(Event::NotGranted("the future was dropped".to_owned())),
        }
    }

    async fn hold(&mut self, resource: &str, mode: Mode, guard: Guard) {
        let at = now();
        let (held, token) = (guard.is_held(), guard.token());
        // Some writers stay long enough to be met within their section. Readers that stay as long
        // would only block others.
        let is_long = mode == Mode::Write && self.random.once_in(25) && !*self.is_quiet.borrow();
        let length = if is_long { 300 + self.random.below(700) } else { self.random.below(6) };
        let resource = resource.to_owned();
        self.note_at(
            at,
            Event::Entered {
                resource: resource.clone(),
                mode,
                token: token.as_u64(),
                held,
                length,
            },
        );
        let is_writer = mode == Mode::Write;
        if is_writer && self.random.once_in(2) {
            self.write_fenced(&resource, token).await;
        }
        self.stay(&guard, length).await;
        if is_writer {
            // Does not check the hold first, because a process that is paused in between would not
            // know either.
            self.write_fenced(&resource, token).await;
        }
        let guard = match guard {
            Guard::Write(writer) if self.random.once_in(8) => {
                self.look(Event::Held, || writer.is_held());
                match writer.downgrade().await {
                    Ok(reader) => {
                        let reader = Guard::Read(reader);
                        self.look(|held| Event::Downgraded { held }, || reader.is_held());
                        self.stay(&reader, length / 2).await;
                        reader
                    }
                    Err(error) => return self.tell_of_release(Err(error)),
                }
            }
            guard => guard,
        };
        self.look(Event::Leaving, || guard.is_held());
        match self.random.below(5) {
            0 => {
                drop(guard);
                self.note(Event::LetGo("dropped".to_owned()));
            }
            1 => {
                let patience = Duration::from_millis(self.random.below(20));
                match timeout(patience, guard.release()).await {
                    Ok(result) => self.tell_of_release(result),
                    Err(_) => self.note(Event::LetGo("the future was dropped".to_owned())),
                }
            }
            _ => {
                let result = guard.release().await;
                self.tell_of_release(result);
            }
        }
    }

    /// Reads the time first, so that the claim is true at that time.
    fn look(&self, event: impl FnOnce(bool) -> Event, is_held: impl FnOnce() -> bool) {
        let at = now();
        let held = is_held();
        self.note_at(at, event(held));
    }

    async fn stay(&mut self, guard: &Guard, length: u64) {
        let mut left = length;
        while left > 0 {
            let step = left.min(1 + self.random.below(40));
            sleep(Duration::from_millis(step)).await;
            left -= step;
            self.look(Event::Held, || guard.is_held());
        }
    }

    async fn write_fenced(&mut self, resource: &str, token: FencingToken) {
        self.writes += 1;
        let number = self.writes;
        let value = format!("{} {} {} {number}", token.as_u64(), self.process, self.number);
        self.note(Event::Writes { number });
        let fenced = self.store.fenced().expect("the store has fenced writes");
        let event = match fenced.put(guarded(resource), value, token).await {
            Ok(version) => Event::Accepted { version: version.as_u64().expect("a number") },
            Err(KvError::Fenced { newest, .. }) => Event::Rejected { newest: newest.as_u64() },
            Err(error @ KvError::OutcomeUnknown { .. }) => Event::Unknown(error.to_string()),
            Err(error) if error.is_retryable() => Event::NotWritten(error.to_string()),
            Err(error) => Event::Unexplained(format!("{error:?}")),
        };
        self.note(event);
    }

    fn tell_of_release(&self, result: Result<(), DistroRwLockError>) {
        match result {
            Ok(()) => self.note(Event::Released),
            Err(DistroRwLockError::LeaseLost { reason, .. }) => {
                self.note(Event::Lost(reason.to_string()))
            }
            Err(DistroRwLockError::Store { source, .. }) if is_of_faults(&source) => {
                self.note(Event::LetGo(source.to_string()));
            }
            Err(error) => self.note(Event::Unexplained(format!("{error:?}"))),
        }
    }

    fn tell(&self, error: &DistroRwLockError) {
        let is_explained = match error {
            DistroRwLockError::Store { source, .. } => is_of_faults(source),
            DistroRwLockError::WouldBlock { .. }
            | DistroRwLockError::Timeout { .. }
            | DistroRwLockError::LeaseLost { .. } => true,
            _ => false,
        };
        if is_explained {
            self.note(Event::NotGranted(error.to_string()));
        } else {
            self.note(Event::Unexplained(format!("{error:?}")));
        }
    }
}

/// Returns true for errors that failing servers and networks can cause.
fn is_of_faults(error: &KvError) -> bool {
    error.is_retryable() || matches!(error, KvError::OutcomeUnknown { .. })
}

async fn claim(lock: &DistroRwLock, mode: Mode, waits: bool) -> Result<Guard, DistroRwLockError> {
    match (mode, waits) {
        (Mode::Read, true) => lock.read().await.map(Guard::Read),
        (Mode::Read, false) => lock.try_read().await.map(Guard::Read),
        (Mode::Write, true) => lock.write().await.map(Guard::Write),
        (Mode::Write, false) => lock.try_write().await.map(Guard::Write),
    }
}
