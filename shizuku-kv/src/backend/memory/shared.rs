//! The shared state of a store: the lock, the end of the store, and the notification of its
//! watches.

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lock::Lock;
use super::log::Log;
use super::log::follow::WALK;
use crate::backend::embedded::{Limits, MAX_VALUE_SIZE, defaults, incarnation, share, yield_once};
use crate::store::{ConfigDifference, Deadline, Key, KvError, KvResult, StoreConfig};

/// A store, shared by its connection, its handles and its watches.
pub(super) struct StoreState {
    pub(super) name: String,
    /// Distinguishes this store from every other, and from every other of its name.
    pub(super) incarnation: [u8; 16],
    state: Lock<State>,
    /// Notified after each event for which a watch may wait: a new entry, or the end of the store.
    pub(super) changed: Notify,
    /// Settings that are read without the lock, because every write reads the first, even after the
    /// end of the store.
    max_value_size: AtomicUsize,
    key_ttl: AtomicBool,
    keeps_fences: AtomicBool,
    /// Whether the connection was shut down. A store that was deleted before has no other way to
    /// notice it.
    closed: Arc<AtomicBool>,
}

enum State {
    Open(Box<Contents>),
    Deleted,
    Closed,
}

/// The contents of a store that has ended.
pub(super) struct Ended(State);

impl Ended {
    /// Frees the contents. While much is freed, no other task of this thread would run.
    pub(super) async fn free(self) {
        let is_large = matches!(&self.0, State::Open(contents) if contents.log.effort() > WALK);
        if is_large && let Ok(runtime) = Handle::try_current() {
            // An error shows that the runtime is ending. The entries are freed nevertheless.
            let _ = runtime.spawn_blocking(|| drop(self)).await;
        }
    }
}

/// The contents of an open store.
pub(super) struct Contents {
    /// The configuration, with every field filled in that has a default.
    pub(super) config: StoreConfig,
    pub(super) log: Log,
    /// The moment of the present work: everything that was due by then has been applied. `None` if
    /// nothing can fall due in the store, which saves reading the clock.
    now: Option<Instant>,
}

impl Contents {
    /// Returns the moment of the present work.
    pub(super) fn now(&self) -> Instant {
        self.now.unwrap_or_else(Instant::now)
    }
}

/// The call for which work on a store is done, for its errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) key: Option<&'a Key>,
    /// Deadline for the start of the work. Only the expiries that are applied first can delay the
    /// start.
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

/// The end of a store.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// It was deleted.
    Deleted,
    /// Its connection was shut down.
    Closed,
}

impl StoreState {
    /// Creates a new, empty store.
    pub(super) fn new(name: &str, config: StoreConfig, closed: Arc<AtomicBool>) -> Self {
        let config = config.over(&defaults());
        let log = Log::new(Limits::of(&config), Instant::now());
        let shared = Self {
            name: name.to_owned(),
            incarnation: incarnation(),
            changed: Notify::new(),
            max_value_size: AtomicUsize::new(0),
            key_ttl: AtomicBool::new(false),
            keeps_fences: AtomicBool::new(false),
            closed,
            state: Lock::new(State::Deleted),
        };
        shared.publish(&config);
        *shared.state.acquire() = State::Open(Box::new(Contents { config, log, now: None }));
        shared
    }

    /// Runs a short piece of work on the store as it is now, after the due entries have expired.
    ///
    /// If many entries have expired at once, other tasks run in between. Other tasks also run after
    /// many calls in a row, but only after the work. If nothing has expired, the work is done when
    /// the future is polled for the first time.
    ///
    /// # Errors
    /// Returns [`KvError::StoreNotFound`] or [`KvError::Closed`] if the store has ended. Returns
    /// [`KvError::Timeout`] if the deadline passed before the work began. Otherwise returns the
    /// error of `work`.
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
            self.yield_now().await;
            if let Some(deadline) = call.deadline
                && deadline.remaining().is_zero()
            {
                return Err(deadline.timeout(call.operation, call.key));
            }
        }
    }

    /// Lets other work on the store run first: tasks of this thread, and a thread that waits for
    /// the lock. Called between two pieces of work on many entries.
    pub(super) async fn yield_now(&self) {
        yield_once().await;
        self.yield_to_waiter();
    }

    /// Lets a thread that waits for the lock run first, after a piece of work.
    pub(super) fn yield_to_waiter(&self) {
        self.state.yield_to_waiter();
    }

    /// Does the work, or a part of the expiries that precede it, for a caller that then
    /// [yields](Self::yield_now).
    pub(super) fn attempt<T, W: FnOnce(&mut Contents) -> KvResult<T>>(
        &self,
        operation: &'static str,
        work: W,
    ) -> ControlFlow<KvResult<T>, W> {
        let mut state = self.state.acquire();
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
        contents.now = contents.log.has_due().then(Instant::now);
        let expired = contents.now.is_none_or(|now| contents.log.expire_some(now));
        let flow =
            if expired { ControlFlow::Break(work(contents)) } else { ControlFlow::Continue(work) };
        let written = contents.log.sequence() != before;
        drop(state);
        if written {
            self.changed.notify_waiters();
        }
        flow
    }

    /// Compares the requested settings with those of the store, and changes the store if that was
    /// requested.
    ///
    /// # Errors
    /// Returns [`KvError::ConfigMismatch`] if they differ. Returns [`KvError::InvalidConfig`] if
    /// they conflict with those of the store.
    pub(super) async fn open_with(
        &self,
        operation: &'static str,
        config: &StoreConfig,
    ) -> KvResult<()> {
        let call = Call::new(operation).by(Deadline::after(config.operation_deadline()));
        let reconcile = self.with(call, |contents| {
            let differences: Vec<ConfigDifference> = config.differences(&contents.config);
            if differences.is_empty() {
                return Ok(false);
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
            Ok(true)
        });
        if reconcile.await? {
            // A watch that waits for the next expiry may have to wait for an earlier one now.
            self.changed.notify_waiters();
            // The settings have been made. The next operation would otherwise have to apply them to
            // all entries.
            self.with(call, |_| Ok(())).await?;
        }
        Ok(())
    }

    /// Ends the store: its watches end, and every operation is rejected. Returns the contents, to
    /// be freed.
    pub(super) fn end(&self, end: End) -> Ended {
        let ended = match end {
            End::Deleted => State::Deleted,
            End::Closed => State::Closed,
        };
        let state = mem::replace(&mut *self.state.acquire(), ended);
        self.changed.notify_waiters();
        Ended(state)
    }

    pub(super) fn max_value_size(&self) -> usize {
        self.max_value_size.load(Ordering::Relaxed)
    }

    pub(super) fn key_ttl(&self) -> bool {
        self.key_ttl.load(Ordering::Relaxed)
    }

    /// Returns whether newest entries never end by themselves, so that their tokens stay.
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
}
