//! Read-write locks between processes, over any store with compare-and-swap and watches.
//!
//! Many readers or one writer hold a resource. Waiters queue in order of arrival: a waiting writer
//! keeps new readers out, and no waiter is overtaken. Releasing the lock grants it to the next
//! waiter, which is notified through its watch. A holder renews its session, and loses the lock if
//! it has not renewed for longer than its lease. Each grant has a [`FencingToken`]. With it,
//! [fenced writes](crate::Store::fenced) reject the writes of a holder that does not know yet that
//! it has lost the lock. Without fencing, no lock protects a resource from a process that was
//! paused.
//!
//! [`DistroRwLock`] returns guards. [`LockedResourceReadProcessor`] and
//! [`LockedResourceWriteProcessor`] run work under a lock. [`LeaderElection`] elects one process
//! among many. `docs/locks.md` in the repository lists the promises under each fault, and the cases
//! in which another means is better. For a single record, use a compare-and-swap
//! ([`modify`](crate::KeyValueWrite::modify)).
//!
//! Locks are not re-entrant: a task that acquires a lock that it already holds waits for itself,
//! until its deadline. Within a processor this is detected ([`DistroRwLockError::Reentrant`]).

mod claims;
mod coordinator;
mod election;
mod error;
mod failure_detector;
mod guard;
mod held;
mod inspect;
mod lease;
mod lock_manager;
#[cfg(test)]
mod model;
mod options;
mod processor;
mod record;
mod reentry;
mod session;
mod transition;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::claims::{Command, Granted, Hope};
pub use self::election::{Leader, LeaderElection, LeaderGuardProcessor, Leaders, Leadership};
pub use self::error::{DistroRwLockError, LockLoss, WithLockProcessError};
use self::guard::{GRACE, Hold, Ticket};
pub use self::guard::{ReadGuard, WriteGuard};
use self::inspect::Look;
pub use self::inspect::{LockClaim, LockGrant, LockState};
use self::lock_manager::{CoordinatorId, LockManager};
pub use self::options::LockOptions;
pub use self::processor::{
    LockedResourceReadProcessor, LockedResourceWriteProcessor, Processor, ProcessorFn, processor_fn,
};
pub use self::record::LockMode;
use self::record::{Claim, ClaimId, Extra, LockRecord};
pub use self::reentry::current_fencing_token;
use self::transition::Outcome;
use crate::store::{FencingToken, Key, KvEntry, KvError, Store, backoff, in_runtime};

/// Prefix of the keys of lock records, before the name of the resource.
const PREFIX: &str = "rw_lock.";

/// A read-write lock between processes. This is a handle: it is cheap to create and to clone, and
/// holds no lock itself.
///
/// The lock of a resource is the record under the key `rw_lock.RESOURCE` of the store. A lock may
/// therefore have the name of the key that it protects. All processes that lock a resource use the
/// same store and the same name.
///
#[cfg_attr(feature = "memory", doc = "```")]
#[cfg_attr(not(feature = "memory"), doc = "```text")]
/// use shizuku_kv::rw_lock::DistroRwLock;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = shizuku_kv::connect("memory:").await?.store("app").await?;
/// let lock = DistroRwLock::new(&store, "reports")?;
///
/// let guard = lock.write().await?;
/// // Exclusive access. Pass the token with each write to another system.
/// println!("fencing token {}", guard.fencing_token());
/// guard.release().await?;
///
/// let one = lock.read().await?;
/// let other = lock.read().await?;
/// assert!(lock.try_write().await.is_err());
/// # drop((one, other));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DistroRwLock {
    store: Store,
    locks: Arc<LockManager>,
    resource: Arc<str>,
    key: Key,
    options: LockOptions,
}

impl DistroRwLock {
    /// Creates the lock of a resource with the default [options](LockOptions). Sends nothing.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::InvalidResource`] if the name is not a [`Key`], or is longer
    /// than 1,016 bytes. Returns [`DistroRwLockError::Unsupported`] if the store has no
    /// compare-and-swap, cannot be watched, or can expire or evict values
    /// ([`StoreConfig::max_age`](crate::StoreConfig::max_age())).
    pub fn new(store: &Store, resource: impl AsRef<str>) -> Result<Self, DistroRwLockError> {
        Self::with_options(store, resource, LockOptions::new())
    }

    /// Creates the lock of a resource. Sends nothing.
    ///
    /// # Errors
    /// As for [`new`](Self::new). Returns [`DistroRwLockError::InvalidLease`] if the lease of the
    /// options is out of range.
    pub fn with_options(
        store: &Store,
        resource: impl AsRef<str>,
        options: LockOptions,
    ) -> Result<Self, DistroRwLockError> {
        Self::under(PREFIX, store, resource.as_ref(), options)
    }

    fn under(
        prefix: &str,
        store: &Store,
        resource: &str,
        options: LockOptions,
    ) -> Result<Self, DistroRwLockError> {
        options.check()?;
        let capabilities = store.capabilities();
        let unsupported =
            |reason| Err(DistroRwLockError::Unsupported { store: store.name().to_owned(), reason });
        if !capabilities.write || !capabilities.compare_and_swap {
            return unsupported("it cannot compare and swap; use a store of another backend");
        }
        if !capabilities.watch {
            return unsupported("it cannot be watched; use a store of another backend");
        }
        // If values can expire, the record of a held lock can expire too. Fences have the same
        // requirement.
        if capabilities.max_age && store.fenced().is_none() {
            return unsupported(
                "its entries can expire or be evicted, and the record of a lock with them; use a store without max_age \
                 for locks, on NATS also with discard: new",
            );
        }
        // Checks the name by itself first, so that the error shows the position within it.
        let key = Key::new(resource).and_then(|_| Key::new(format!("{prefix}{resource}")));
        let key = key.map_err(|source| DistroRwLockError::InvalidResource {
            resource: resource.chars().take(80).collect(),
            source,
        })?;
        let (store, locks) = (store.clone(), store.attached());
        Ok(Self { store, locks, resource: resource.into(), key, options })
    }

    /// Returns the name of the resource.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Waits until the lock is granted for reading, together with other readers.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::Timeout`] if the lock was not granted within
    /// [`LockOptions::wait`], also because the store did not answer. A wait that is shorter than
    /// the store's deadline may exceed it by that deadline. Returns [`DistroRwLockError::Store`] if
    /// the store is gone, is full or rejects requests, or its connection was shut down. Returns
    /// [`DistroRwLockError::QueueFull`] if too many claims wait. Returns
    /// [`DistroRwLockError::ForeignRecord`] if the entry is not a lock record. Returns
    /// [`DistroRwLockError::Reentrant`] if the processor that runs this task holds the lock.
    pub async fn read(&self) -> Result<ReadGuard, DistroRwLockError> {
        self.wait(LockMode::Read).await.map(ReadGuard)
    }

    /// Waits until the lock is granted for writing, to this caller alone.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn write(&self) -> Result<WriteGuard, DistroRwLockError> {
        self.wait(LockMode::Write).await.map(WriteGuard)
    }

    /// Acquires the lock for reading, together with other readers, if no writer holds it and no
    /// claim waits.
    ///
    /// If all sessions in its way seem to be dead by the store's clock, it waits until they are
    /// found dead or alive. This takes up to the lease of the holder and an eighth.
    ///
    /// Cancel safe: dropping the future releases a lock that may have been granted.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::WouldBlock`] if the lock is not free, otherwise as for
    /// [`read`](Self::read).
    pub async fn try_read(&self) -> Result<ReadGuard, DistroRwLockError> {
        self.attempt(LockMode::Read).await.map(ReadGuard)
    }

    /// Acquires the lock for writing, if no process holds it and no claim waits.
    ///
    /// Cancel safe: dropping the future releases a lock that may have been granted.
    ///
    /// # Errors
    /// As for [`try_read`](Self::try_read).
    pub async fn try_write(&self) -> Result<WriteGuard, DistroRwLockError> {
        self.attempt(LockMode::Write).await.map(WriteGuard)
    }

    async fn wait(&self, mode: LockMode) -> Result<Hold, DistroRwLockError> {
        reentry::check(self)?;
        let (began, waited) = (Instant::now(), self.options.wait);
        let in_line = Arc::<AtomicBool>::default();
        if !waited.is_zero()
            && let Some(claimed) = self.claim(mode, true, waited, &in_line).await
        {
            return claimed;
        }
        // If the wait was too short for an answer, a free lock is acquired nevertheless.
        let left = self.store.deadline().saturating_sub(began.elapsed());
        if !in_line.load(Ordering::Acquire) && !left.is_zero() {
            match self.claim(mode, false, left, &in_line).await {
                None | Some(Err(DistroRwLockError::WouldBlock { .. })) => {}
                Some(Err(error)) if error.is_passing() => {}
                Some(claimed) => return claimed,
            }
        }
        Err(DistroRwLockError::Timeout { resource: self.resource.to_string(), mode, waited })
    }

    async fn attempt(&self, mode: LockMode) -> Result<Hold, DistroRwLockError> {
        // One deadline for the session, one for the swap.
        let limit = self.store.deadline().saturating_mul(2);
        self.claim(mode, false, limit, &Arc::default()).await.unwrap_or_else(|| {
            let source =
                KvError::Timeout { operation: "try to lock", key: Some(self.key.clone()), limit };
            Err(self.store_error(source))
        })
    }

    /// Returns `None` if the claim took too long.
    async fn claim(
        &self,
        mode: LockMode,
        waits: bool,
        limit: Duration,
        in_line: &Arc<AtomicBool>,
    ) -> Option<Result<Hold, DistroRwLockError>> {
        if let Err(error) = in_runtime("lock") {
            return Some(Err(self.store_error(error)));
        }
        let (is_there, hoped) = watch::channel(false);
        let hope =
            Hope { is_there, is_hasty: !waits || limit < lease::patience(self.options.lease) };
        let asked = Mutex::new(None);
        let claims = async {
            let mut pauses = backoff_between_watches();
            loop {
                let error = match self.claim_once(mode, waits, in_line, &hope, &asked).await {
                    // A waiting claim retries: an unreachable store may be back in a moment. A
                    // process that was cut off for longer than its lease joins the end of the
                    // queue.
                    Err(error) if waits && error.is_passing() => error,
                    claimed => return claimed,
                };
                tracing::debug!(resource = &*self.resource, %error, "a lock is claimed again");
                tokio::time::sleep(pauses.next().unwrap_or_default()).await;
            }
        };
        let claimed = tokio::select! {
            biased;
            claimed = claims => Some(claimed),
            () = gives_up(limit, hoped) => None,
        };
        if claimed.is_none() {
            self.leave(asked.into_inner().unwrap_or_else(PoisonError::into_inner)).await;
        }
        claimed
    }

    /// Waits for a moment until an abandoned claim is out of the record. The process may end now,
    /// and the claim would then block others as after a crash.
    async fn leave(&self, asked: Option<(CoordinatorId, ClaimId)>) {
        let Some((place, id)) = asked else { return };
        let (reply, answer) = oneshot::channel();
        self.locks.tell(&place, Command::Leave { id, reply: Some(reply) });
        let _ = tokio::time::timeout(GRACE.min(self.store.deadline()), answer).await;
    }

    async fn claim_once(
        &self,
        mode: LockMode,
        waits: bool,
        in_line: &Arc<AtomicBool>,
        hope: &Hope,
        asked: &Mutex<Option<(CoordinatorId, ClaimId)>>,
    ) -> Result<Hold, DistroRwLockError> {
        let entrance = self.locks.entrance(&self.key);
        let turn = entrance.lock().await;
        let session = self.locks.sessions.get(&self.store, self.options.lease, &self.key).await;
        let session = session.map_err(|error| self.store_error(error))?;
        let (reply, answer) = oneshot::channel();
        let id = session.next_claim();
        let claim = Claim { id, mode, label: self.options.label.clone(), extra: Extra::new() };
        let (in_line, hope) = (Arc::clone(in_line), hope.clone());
        let command =
            Command::Claim { claim, waits, session: session.clone(), in_line, hope, reply };
        let place = self.locks.ask(&self.store, &self.key, command);
        drop(turn);
        *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((place.clone(), id));
        // From here on, dropping this future drops the ticket, which leaves the queue.
        let mut ticket = Ticket { locks: Arc::clone(&self.locks), place, id, is_over: false };
        match answer.await {
            Ok(Ok(Granted { token, broken })) => {
                let resource = Arc::clone(&self.resource);
                let deadline = self.store.deadline();
                let hold = Hold { ticket, session, token, broken, resource, mode, deadline };
                // The session may have ended just after the grant.
                match hold.loss() {
                    None => Ok(hold),
                    Some(reason) => Err(hold.lost_error(reason)),
                }
            }
            Ok(Err(refusal)) => {
                ticket.is_over = true;
                Err(refusal.into_error(&self.resource, mode, &self.key))
            }
            Err(_) => Err(DistroRwLockError::RuntimeEnded { resource: self.resource.to_string() }),
        }
    }

    fn store_error(&self, source: KvError) -> DistroRwLockError {
        DistroRwLockError::Store { resource: self.resource.to_string(), source }
    }
}

/// Locks that belong to this process and not to a value: one part of the process may release a lock
/// that another part has acquired. They belong to the handle of the store and its clones. They are
/// held until they are released, the connection is shut down or the process ends, even if all
/// handles are dropped. Guards are safer, because they release the lock by themselves.
///
/// The library does not know which part of the process a lock is for. Acquiring a lock whose last
/// grant was lost drops the lost one, so that the next release applies to the live one. A part that
/// has lost its lock without noticing must therefore not share a resource with another part of the
/// process that acquires it again. Use guards in that case.
impl DistroRwLock {
    /// Locks a resource for reading, with the default options, until it is released. A process may
    /// hold several of these locks.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`read`](Self::read).
    pub async fn acquire_read(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<FencingToken, DistroRwLockError> {
        Self::acquire(store, resource.as_ref(), LockMode::Read).await
    }

    /// Releases a lock that [`acquire_read`](Self::acquire_read) has acquired: of several, the
    /// oldest that is still held, otherwise the oldest that was lost.
    ///
    /// Cancel safe: once the future was polled, dropping it still releases the lock.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::NotHeld`] if no such lock is held. Returns
    /// [`DistroRwLockError::LeaseLost`] if all locks acquired since are lost. Otherwise as for
    /// [`ReadGuard::release`].
    pub async fn release_read(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<(), DistroRwLockError> {
        Self::release(store, resource.as_ref(), LockMode::Read).await
    }

    /// Locks a resource for writing, with the default options, until it is released.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`write`](Self::write).
    pub async fn acquire_write(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<FencingToken, DistroRwLockError> {
        Self::acquire(store, resource.as_ref(), LockMode::Write).await
    }

    /// Releases a lock that [`acquire_write`](Self::acquire_write) has acquired.
    ///
    /// Cancel safe: once the future was polled, dropping it still releases the lock.
    ///
    /// # Errors
    /// As for [`release_read`](Self::release_read).
    pub async fn release_write(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<(), DistroRwLockError> {
        Self::release(store, resource.as_ref(), LockMode::Write).await
    }

    async fn acquire(
        store: &Store,
        resource: &str,
        mode: LockMode,
    ) -> Result<FencingToken, DistroRwLockError> {
        let lock = Self::new(store, resource)?;
        let hold = lock.wait(mode).await?;
        let token = hold.token;
        lock.locks.held.put(&lock.key, mode, hold);
        Ok(token)
    }

    async fn release(
        store: &Store,
        resource: &str,
        mode: LockMode,
    ) -> Result<(), DistroRwLockError> {
        let lock = Self::new(store, resource)?;
        match lock.locks.held.take(&lock.key, mode) {
            Some(hold) => hold.release().await,
            None => Err(DistroRwLockError::NotHeld { resource: resource.to_owned(), mode }),
        }
    }
}

/// Functions for operators.
impl DistroRwLock {
    /// Returns the holders of the resource and its waiters as they are in the store now, and which
    /// of them are presumed dead. [`LockClaim::presumed_dead`] describes the comparison.
    ///
    /// A lock that is held costs three requests: the record, the sessions in it, and the store's
    /// clock. Each session that seems to have ended costs one more.
    ///
    /// Cancel safe: the call changes nothing.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::Store`] if a request fails. Returns
    /// [`DistroRwLockError::ForeignRecord`] if the entry is not a lock record.
    pub async fn inspect(&self) -> Result<LockState, DistroRwLockError> {
        let entry = self.store.get(&self.key).await.map_err(|error| self.store_error(error))?;
        let record = self.record_of(entry.as_ref())?;
        let look = Look::at(&self.store, &record).await.map_err(|error| self.store_error(error))?;
        Ok(LockState::of(record, &look))
    }

    /// Returns the record in an entry. Without an entry, returns the record of a lock that was
    /// never held.
    fn record_of(&self, entry: Option<&KvEntry>) -> Result<LockRecord, DistroRwLockError> {
        entry
            .map_or(Ok(LockRecord::default()), |entry| LockRecord::from_bytes(&entry.value))
            .map_err(|reason| DistroRwLockError::ForeignRecord { key: self.key.clone(), reason })
    }

    /// Revokes the resource from all its holders, and grants it to the next waiters, as if the
    /// holders had released it. The holders are notified ([`WriteGuard::lost`]) as soon as they see
    /// the change.
    ///
    /// Returns a token that is newer than those of the broken holders, and older than those of all
    /// later holders.
    ///
    /// **Writes of broken holders with their tokens are still accepted**, key by key. Each key
    /// accepts them until a later holder has written there, or until the key's fence was raised. To
    /// raise it, call [`StoreFenced::raise`](crate::StoreFenced::raise) with the returned token,
    /// for each key that the lock protects. This function cannot do that, because a lock does not
    /// know which keys are written under it. Any action of broken holders that does not check
    /// tokens continues: make sure that they no longer run.
    ///
    #[cfg_attr(feature = "memory", doc = "```")]
    #[cfg_attr(not(feature = "memory"), doc = "```text")]
    /// # use shizuku_kv::rw_lock::DistroRwLock;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = shizuku_kv::connect("memory:").await?.store("app").await?;
    /// # let lock = DistroRwLock::new(&store, "reports")?;
    /// let held = lock.write().await?;
    /// let fenced = store.fenced().unwrap();
    /// fenced.put("reports.daily", "begun", held.fencing_token()).await?;
    ///
    /// let token = lock.break_lock().await?;
    /// fenced.raise("reports.daily", token).await?;
    /// assert!(fenced.put("reports.daily", "late", held.fencing_token()).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Dropping the future is safe: it may happen or not.
    ///
    /// # Errors
    /// As for [`inspect`](Self::inspect).
    pub async fn break_lock(&self) -> Result<FencingToken, DistroRwLockError> {
        in_runtime("break_lock").map_err(|error| self.store_error(error))?;
        let limit = self.store.deadline().saturating_mul(2);
        let (reply, answer) = oneshot::channel();
        self.locks.ask(&self.store, &self.key, Command::Break { reply });
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Ok(Outcome::Broken(token)))) => Ok(token),
            Ok(Ok(Err(refusal))) => {
                Err(refusal.into_error(&self.resource, LockMode::Write, &self.key))
            }
            // A break has no other outcome.
            Ok(Ok(Ok(_)) | Err(_)) => {
                Err(DistroRwLockError::RuntimeEnded { resource: self.resource.to_string() })
            }
            Err(_) => {
                let source = KvError::Timeout {
                    operation: "break_lock",
                    key: Some(self.key.clone()),
                    limit,
                };
                Err(self.store_error(source))
            }
        }
    }
}

/// Waits until the claimant's limit, and longer while all sessions in its way may be dead.
async fn gives_up(limit: Duration, mut hoped: watch::Receiver<bool>) {
    tokio::time::sleep(limit).await;
    // Without a sender, no hope is left either.
    let _ = hoped.wait_for(|is_there| !*is_there).await;
}

/// Returns the pauses before a watch that has ended is reopened.
fn backoff_between_watches() -> ExponentialBackoff {
    backoff(Duration::from_millis(50), Duration::from_secs(2))
}

impl fmt::Debug for DistroRwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistroRwLock")
            .field("store", &self.store.name())
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}
