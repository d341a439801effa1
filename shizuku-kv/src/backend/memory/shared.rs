//! A store behind its handles: the lock, the end of the store, and the bell for its watches.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::mem;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::log::{Limits, Log};
use super::{share, yield_once};
use crate::store::{ConfigDifference, Deadline, Key, KvError, KvResult, StorageType, StoreConfig};

/// The largest value where none was configured: what a NATS server takes unless it is told otherwise, so that a
/// program does not learn of the limit only in production. There 160 bytes of each message are kept for headers.
const MAX_VALUE_SIZE: usize = 1024 * 1024 - 160;

/// A store, shared by its connection, its handles and its watches.
pub(super) struct Shared {
    pub(super) name: String,
    /// Tells this store from every other, and from every other of its name.
    pub(super) incarnation: [u8; 16],
    state: Mutex<State>,
    /// Rung after whatever a watch may wait for: a new entry, or the end of the store.
    pub(super) bell: Notify,
    /// What is known of the settings without the lock, because every write asks for the first, and still when the store is
    /// gone.
    max_value_size: AtomicUsize,
    key_ttl: AtomicBool,
    keeps_fences: AtomicBool,
    /// Whether the connection was shut down; a store that was deleted before has no other way to learn of it.
    closed: Arc<AtomicBool>,
}

enum State {
    Open(Box<Contents>),
    Deleted,
    Closed,
}

/// What an open store consists of.
pub(super) struct Contents {
    /// The configuration, with every field filled in that has a default.
    pub(super) config: StoreConfig,
    pub(super) log: Log,
    /// The moment of the work that is being done: everything that was due by then has been applied. None in a store in
    /// which nothing is to fall due, which does not pay for the clock.
    now: Option<Instant>,
}

impl Contents {
    /// The moment of the work that is being done.
    pub(super) fn now(&self) -> Instant {
        self.now.unwrap_or_else(Instant::now)
    }
}

/// What the work on a store is done for, as its errors say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) key: Option<&'a Key>,
    /// By when the work has to have begun; only that what has expired is applied first can keep it from beginning.
    pub(super) deadline: Option<Deadline>,
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: &'static str) -> Self {
        Self { operation, key: None, deadline: None }
    }

    pub(super) fn by(self, deadline: Deadline) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    pub(super) fn of(self, key: &'a Key) -> Self {
        Self { key: Some(key), ..self }
    }
}

/// How a store ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// It was deleted.
    Deleted,
    /// Its connection was shut down.
    Closed,
}

impl Shared {
    /// A new, empty store.
    pub(super) fn new(name: &str, config: StoreConfig, closed: Arc<AtomicBool>) -> Self {
        let config = config.over(&defaults());
        let log = Log::new(Limits::of(&config), Instant::now());
        let shared = Self {
            name: name.to_owned(),
            incarnation: incarnation(),
            bell: Notify::new(),
            max_value_size: AtomicUsize::new(0),
            key_ttl: AtomicBool::new(false),
            keeps_fences: AtomicBool::new(false),
            closed,
            state: Mutex::new(State::Deleted),
        };
        shared.publish(&config);
        *shared.lock() = State::Open(Box::new(Contents { config, log, now: None }));
        shared
    }

    /// Runs a short piece of work on the store as it is now, after what was due has expired.
    ///
    /// Where much has expired at once, other tasks run in between, and so they do after many calls in a row. That comes
    /// after the work: where nothing has expired, it is done when the future is polled for the first time.
    ///
    /// # Errors
    /// [`KvError::StoreNotFound`] or [`KvError::Closed`] where the store has ended; [`KvError::Timeout`] where the
    /// deadline passed before the work began; those of `work`.
    pub(super) async fn with<T>(
        &self,
        call: Call<'_>,
        mut work: impl FnOnce(&mut Contents) -> KvResult<T>,
    ) -> KvResult<T> {
        loop {
            match self.attempt(call.operation, work) {
                ControlFlow::Break(result) => {
                    share().await;
                    return result;
                }
                ControlFlow::Continue(not_yet) => work = not_yet,
            }
            yield_once().await;
            if let Some(deadline) = call.deadline
                && deadline.remaining().is_zero()
            {
                return Err(deadline.timeout(call.operation, call.key));
            }
        }
    }

    /// Does the work, or some of what has to expire before it.
    fn attempt<T, W: FnOnce(&mut Contents) -> KvResult<T>>(
        &self,
        operation: &'static str,
        work: W,
    ) -> ControlFlow<KvResult<T>, W> {
        let mut state = self.lock();
        let contents = match &mut *state {
            State::Open(contents) => contents,
            State::Deleted if !self.closed.load(Ordering::Acquire) => {
                return ControlFlow::Break(Err(self.not_found()));
            }
            State::Deleted | State::Closed => {
                return ControlFlow::Break(Err(KvError::Closed { operation }));
            }
        };
        let before = contents.log.sequence();
        contents.now = contents.log.next_due().map(|_| Instant::now());
        let expired = contents.now.is_none_or(|now| contents.log.expire_some(now));
        let flow =
            if expired { ControlFlow::Break(work(contents)) } else { ControlFlow::Continue(work) };
        let written = contents.log.sequence() != before;
        drop(state);
        if written {
            self.bell.notify_waiters();
        }
        flow
    }

    /// Compares the settings that were made with those of the store, and changes the store where that was asked for.
    ///
    /// # Errors
    /// [`KvError::ConfigMismatch`], or [`KvError::InvalidConfig`] for settings that do not go together with those the
    /// store has.
    pub(super) async fn open_with(&self, config: &StoreConfig) -> KvResult<()> {
        let call = Call::new("store").by(Deadline::after(config.operation_deadline()));
        self.with(call, |contents| {
            let differences: Vec<ConfigDifference> = config.differences(&contents.config);
            if differences.is_empty() {
                return Ok(());
            }
            if !config.reconcile {
                return Err(KvError::ConfigMismatch { store: self.name.clone(), differences });
            }
            let merged = config.clone().over(&contents.config);
            merged.validate()?;
            let now = contents.now();
            contents.log.set_limits(Limits::of(&merged), now);
            self.publish(&merged);
            contents.config = merged;
            // A watch that waits for the next end of life may have to wait for an earlier one now.
            self.bell.notify_waiters();
            Ok(())
        })
        .await
    }

    /// Ends the store: everything in it is dropped, its watches end, and every operation is refused.
    pub(super) fn end(&self, end: End) {
        let ended = match end {
            End::Deleted => State::Deleted,
            End::Closed => State::Closed,
        };
        let contents = mem::replace(&mut *self.lock(), ended);
        self.bell.notify_waiters();
        // Not under the lock: it may be a lot.
        drop(contents);
    }

    pub(super) fn max_value_size(&self) -> usize {
        self.max_value_size.load(Ordering::Relaxed)
    }

    pub(super) fn key_ttl(&self) -> bool {
        self.key_ttl.load(Ordering::Relaxed)
    }

    /// Whether newest entries never end by themselves, so that their tokens stay.
    pub(super) fn keeps_fences(&self) -> bool {
        self.keeps_fences.load(Ordering::Relaxed)
    }

    pub(super) fn not_found(&self) -> KvError {
        KvError::StoreNotFound { store: self.name.clone() }
    }

    fn publish(&self, config: &StoreConfig) {
        self.max_value_size
            .store(config.max_value_size.flatten().unwrap_or(MAX_VALUE_SIZE), Ordering::Relaxed);
        self.key_ttl.store(config.key_ttl == Some(true), Ordering::Relaxed);
        self.keeps_fences.store(config.max_age.flatten().is_none(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The work under this lock does not panic; were it to, refusing everything from then on would help nobody.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a store has where nothing was set.
fn defaults() -> StoreConfig {
    StoreConfig::new()
        .description("")
        .history(1)
        .max_value_size(None)
        .max_bytes(None)
        .max_age(None)
        .key_ttl(false)
        .storage(StorageType::default())
        .replicas(1)
}

/// Bytes that no other store has, of this process or of any other.
///
/// The hasher of the standard library is keyed by the operating system's randomness; the count makes the bytes of one
/// process different however that key is made.
fn incarnation() -> [u8; 16] {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new();
    let (high, low) = (random.hash_one((made, 0_u8)), random.hash_one((made, 1_u8)));
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}
