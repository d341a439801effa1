//! Read-write locks between processes, over any store with compare-and-swap and watches.
//!
//! Many readers or one writer hold a resource. Whoever waits is in line: a writer that waits keeps new readers out, and
//! nobody is overtaken. Who lets go hands over directly to the next, which learns of it from a watch. A holder proves
//! that it lives, and loses the lock when nothing has been heard of it for longer than its lease. Each grant has a
//! [`FencingToken`], with which [fenced writes](crate::Store::fenced) refuse what a holder writes that does not know yet
//! that it has lost the lock: without that no lock protects anything from a process that was paused.
//!
//! [`DistroRwLock`] gives guards; [`LockedResourceReadProcessor`] and [`LockedResourceWriteProcessor`] run work under a
//! lock; [`LeaderElection`] elects one process among many. `docs/locks.md` in the repository says what is promised under
//! which fault, and when another means is better: for one record a compare-and-swap
//! ([`modify`](crate::KeyValueWrite::modify)) is.
//!
//! Locks are not re-entrant: a task that asks for what it holds waits for itself, until its deadline. Within a processor
//! that is detected ([`DistroRwLockError::Reentrant`]).

mod claims;
mod coordinator;
mod course;
mod election;
mod error;
mod following;
mod guard;
mod held;
mod inspect;
mod locks;
#[cfg(test)]
mod model;
mod observer;
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
use self::locks::{Locks, Place};
pub use self::options::LockOptions;
pub use self::processor::{
    LockedResourceReadProcessor, LockedResourceWriteProcessor, Processor, ProcessorFn, processor_fn,
};
pub use self::record::LockMode;
use self::record::{Claim, ClaimId, Extra, LockRecord};
pub use self::reentry::current_fencing_token;
use self::transition::Outcome;
use crate::store::{FencingToken, Key, KvEntry, KvError, Store, backoff, in_runtime};

/// What stands before a resource in the key of its record.
const PREFIX: &str = "rw_lock.";

/// A read-write lock between processes. A handle: cheap to make and to clone, and it holds nothing itself.
///
/// The lock of a resource is the record under the key `rw_lock.RESOURCE` of the store, so that a lock may have the name
/// of the key that it protects. Everybody who locks a resource uses the same store and the same name.
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
/// // Alone here. What is written elsewhere shows the token.
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
    locks: Arc<Locks>,
    resource: Arc<str>,
    key: Key,
    options: LockOptions,
}

impl DistroRwLock {
    /// The lock of a resource, with the [options](LockOptions) that are the default. Nothing is sent.
    ///
    /// # Errors
    /// [`DistroRwLockError::InvalidResource`] where the name is no [`Key`], or longer than 1,016 bytes;
    /// [`DistroRwLockError::Unsupported`] where the store has no compare-and-swap, cannot be watched, or loses values by
    /// itself ([`StoreConfig::max_age`](crate::StoreConfig::max_age())).
    pub fn new(store: &Store, resource: impl AsRef<str>) -> Result<Self, DistroRwLockError> {
        Self::with_options(store, resource, LockOptions::new())
    }

    /// The lock of a resource. Nothing is sent.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and [`DistroRwLockError::InvalidLease`].
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
            return unsupported("it cannot compare and swap");
        }
        if !capabilities.watch {
            return unsupported("it cannot be watched");
        }
        // Where values expire so would the record of a lock that is held; fences have the same needs.
        if capabilities.max_age && store.fenced().is_none() {
            return unsupported(
                "what it holds can expire or be pushed out, and the record of a lock with it",
            );
        }
        // The name by itself, so that the error shows where it is wrong.
        let key = Key::new(resource).and_then(|_| Key::new(format!("{prefix}{resource}")));
        let key = key.map_err(|source| DistroRwLockError::InvalidResource {
            resource: resource.chars().take(80).collect(),
            source,
        })?;
        let (store, locks) = (store.clone(), store.attached());
        Ok(Self { store, locks, resource: resource.into(), key, options })
    }

    /// The resource.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Waits for its turn, then reads together with others.
    ///
    /// Dropping the future leaves the line.
    ///
    /// # Errors
    /// [`DistroRwLockError::Timeout`] where it was not its turn within [`LockOptions::wait`], also because the store did
    /// not answer (a wait that is shorter than the store's deadline may end with that);
    /// [`DistroRwLockError::Store`] if the store is gone, is full or rejects requests, or its
    /// connection was shut down; [`DistroRwLockError::QueueFull`];
    /// [`DistroRwLockError::ForeignRecord`] where the record is none; [`DistroRwLockError::Reentrant`].
    pub async fn read(&self) -> Result<ReadGuard, DistroRwLockError> {
        self.wait(LockMode::Read).await.map(ReadGuard)
    }

    /// Waits for its turn, then has the resource alone.
    ///
    /// Dropping the future leaves the line.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn write(&self) -> Result<WriteGuard, DistroRwLockError> {
        self.wait(LockMode::Write).await.map(WriteGuard)
    }

    /// Reads together with others, if nobody writes and nobody waits.
    ///
    /// If all sessions in its way seem to be dead by the store's clock, it waits until they are
    /// found dead or alive. This takes up to the lease of the holder and an eighth.
    ///
    /// Dropping the future is safe: what it may have been granted is let go.
    ///
    /// # Errors
    /// [`DistroRwLockError::WouldBlock`]; else as for [`read`](Self::read).
    pub async fn try_read(&self) -> Result<ReadGuard, DistroRwLockError> {
        self.attempt(LockMode::Read).await.map(ReadGuard)
    }

    /// Has the resource alone, if nobody holds it and nobody waits.
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
        // If the wait was too short for an answer, a free lock is acquired all the same.
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
        // The session, and the swap.
        let limit = self.store.deadline().saturating_mul(2);
        self.claim(mode, false, limit, &Arc::default()).await.unwrap_or_else(|| {
            let source =
                KvError::Timeout { operation: "try to lock", key: Some(self.key.clone()), limit };
            Err(self.store_error(source))
        })
    }

    /// None where it took too long.
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
            Hope { is_there, is_hasty: !waits || limit < course::patience(self.options.lease) };
        let asked = Mutex::new(None);
        let claims = async {
            let mut pauses = backoff_between_watches();
            loop {
                let error = match self.claim_once(mode, waits, in_line, &hope, &asked).await {
                    // Who waits goes on waiting: a store that is not there may be in a moment, and who was cut off for longer
                    // than its lease joins the end of the line.
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
    async fn leave(&self, asked: Option<(Place, ClaimId)>) {
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
        asked: &Mutex<Option<(Place, ClaimId)>>,
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
        // From here on whoever drops this leaves.
        let mut ticket = Ticket { locks: Arc::clone(&self.locks), place, id, is_over: false };
        match answer.await {
            Ok(Ok(Granted { token, broken })) => {
                let resource = Arc::clone(&self.resource);
                let deadline = self.store.deadline();
                let hold = Hold { ticket, session, token, broken, resource, mode, deadline };
                // It may have come in the last moment of the session.
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

/// Locks that belong to this process and not to a value: what is acquired by one part of it may be released by another.
/// They belong to the handle of the store and its clones. They are held until they are released,
/// the connection is shut down or the process ends, even if all handles are dropped. Guards are
/// safer, because they release the lock by themselves.
///
/// The library does not know which part of the process a lock is for. Acquiring a lock whose last
/// grant was lost drops the lost one, so that the next release applies to the live one. A part that
/// has lost its lock without noticing must therefore not share a resource with another part of the
/// process that acquires it anew. Use guards in that case.
impl DistroRwLock {
    /// Locks a resource for reading, with the options that are the default, until it is released. A process may hold
    /// several.
    ///
    /// Dropping the future leaves the line.
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
    /// Dropping the future is safe: once it was polled the lock is let go of.
    ///
    /// # Errors
    /// [`DistroRwLockError::NotHeld`] if no such lock is held; [`DistroRwLockError::LeaseLost`] if
    /// all that was acquired since is lost; otherwise as for [`ReadGuard::release`].
    pub async fn release_read(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<(), DistroRwLockError> {
        Self::release(store, resource.as_ref(), LockMode::Read).await
    }

    /// Locks a resource for writing, with the options that are the default, until it is released.
    ///
    /// Dropping the future leaves the line.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`write`](Self::write).
    pub async fn acquire_write(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<FencingToken, DistroRwLockError> {
        Self::acquire(store, resource.as_ref(), LockMode::Write).await
    }

    /// Releases what [`acquire_write`](Self::acquire_write) has locked.
    ///
    /// Dropping the future is safe: once it was polled the lock is let go of.
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

/// For operators.
impl DistroRwLock {
    /// Returns the holders of the resource and its waiters as they are in the store now, and which
    /// of them are presumed dead. [`LockClaim::presumed_dead`] describes the comparison.
    ///
    /// A lock that is held costs three requests: the record, the sessions in it, and the store's
    /// clock. Each session that seems to have ended costs one more.
    ///
    /// Dropping the future is safe.
    ///
    /// # Errors
    /// [`DistroRwLockError::Store`], [`DistroRwLockError::ForeignRecord`].
    pub async fn inspect(&self) -> Result<LockState, DistroRwLockError> {
        let entry = self.store.get(&self.key).await.map_err(|error| self.store_error(error))?;
        let record = self.record_of(entry.as_ref())?;
        let look = Look::at(&self.store, &record).await.map_err(|error| self.store_error(error))?;
        Ok(LockState::of(record, &look))
    }

    /// Returns the record in an entry; without an entry, the record of a lock that was never held.
    fn record_of(&self, entry: Option<&KvEntry>) -> Result<LockRecord, DistroRwLockError> {
        entry
            .map_or(Ok(LockRecord::default()), |entry| LockRecord::from_bytes(&entry.value))
            .map_err(|reason| DistroRwLockError::ForeignRecord { key: self.key.clone(), reason })
    }

    /// Revokes the resource from all its holders, and hands it over to the next in line, as if they
    /// had released it. They are notified ([`WriteGuard::lost`]) as soon as they look.
    ///
    /// Returns a token that is newer than those of the broken holders, and older than those of all
    /// later holders.
    ///
    /// **Writes of broken holders with their tokens are still accepted**, key by key. Each key
    /// accepts them until a later holder has written there, or until the key was told of the break.
    /// To tell it, call [`StoreFenced::raise`](crate::StoreFenced::raise) with the returned token,
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
    // Without a sender there is no hope either.
    let _ = hoped.wait_for(|is_there| !*is_there).await;
}

/// The pauses before a watch that has ended is opened again.
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
