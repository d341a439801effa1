//! A store behind its handles: the lock, the end of the store, and the bell for its watches.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::log::{Limits, Log};
use crate::store::{ConfigDifference, KvError, KvResult, StorageType, StoreConfig};

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
    /// Two settings that are known without the lock, because every write asks for the first, and that are still known
    /// when the store is gone.
    max_value_size: AtomicUsize,
    key_ttl: AtomicBool,
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
    pub(super) fn new(name: &str, config: StoreConfig) -> Self {
        let config = config.over(&defaults());
        let log = Log::new(Limits::of(&config), Instant::now());
        let shared = Self {
            name: name.to_owned(),
            incarnation: incarnation(),
            bell: Notify::new(),
            max_value_size: AtomicUsize::new(0),
            key_ttl: AtomicBool::new(false),
            state: Mutex::new(State::Deleted),
        };
        shared.publish(&config);
        *shared.lock() = State::Open(Box::new(Contents { config, log }));
        shared
    }

    /// Runs a short piece of work on the store as it is now, after what was due has expired.
    ///
    /// # Errors
    /// [`KvError::StoreNotFound`] or [`KvError::Closed`] where the store has ended; those of `work`.
    pub(super) fn with<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Contents) -> KvResult<T>,
    ) -> KvResult<T> {
        let mut state = self.lock();
        let contents = match &mut *state {
            State::Open(contents) => contents,
            State::Deleted => return Err(self.not_found()),
            State::Closed => return Err(KvError::Closed { operation }),
        };
        let before = contents.log.sequence();
        // Most stores have nothing that expires; they do not pay for the clock.
        if contents.log.next_due().is_some() {
            contents.log.expire(Instant::now());
        }
        let result = work(contents);
        let written = contents.log.sequence() != before;
        drop(state);
        if written {
            self.bell.notify_waiters();
        }
        result
    }

    /// Compares the settings that were made with those of the store, and changes the store where that was asked for.
    ///
    /// # Errors
    /// [`KvError::ConfigMismatch`], or [`KvError::InvalidConfig`] for settings that do not go together with those the
    /// store has.
    pub(super) fn open_with(&self, config: &StoreConfig) -> KvResult<()> {
        self.with("store", |contents| {
            let differences: Vec<ConfigDifference> = config.differences(&contents.config);
            if differences.is_empty() {
                return Ok(());
            }
            if !config.reconcile {
                return Err(KvError::ConfigMismatch { store: self.name.clone(), differences });
            }
            let merged = config.clone().over(&contents.config);
            merged.validate()?;
            contents.log.set_limits(Limits::of(&merged));
            self.publish(&merged);
            contents.config = merged;
            Ok(())
        })
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

    pub(super) fn not_found(&self) -> KvError {
        KvError::StoreNotFound { store: self.name.clone() }
    }

    fn publish(&self, config: &StoreConfig) {
        self.max_value_size.store(config.max_value_size.unwrap_or(MAX_VALUE_SIZE), Ordering::Relaxed);
        self.key_ttl.store(config.key_ttl == Some(true), Ordering::Relaxed);
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
        .max_value_size(MAX_VALUE_SIZE)
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
