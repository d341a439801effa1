//! The lock of a resource: waiting for its grant.

mod operators;
mod without_guards;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::channels::Sent;
use super::command::{Command, Granted, Wait};
use super::driver::Answer;
use super::error::DistroRwLockError;
use super::guard::{ClaimHandle, GRACE, Hold, ReadGuard, WriteGuard};
use super::lock_manager::LockManager;
use super::name::LockName;
use super::options::LockOptions;
use super::record::{Claim, Extra, LockMode};
use super::{lease, reentry};
use crate::store::{Key, KvError, Store, backoff, in_runtime};

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
    pub(super) store: Store,
    manager: Arc<LockManager>,
    pub(super) name: LockName,
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

    pub(super) fn under(
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
                "its entries can expire or be evicted, and the record of a lock with them; use a \
                 store without max_age for locks, on NATS also with discard: new",
            );
        }
        // Checks the name by itself first, so that the error shows the position within it.
        let key = Key::new(resource).and_then(|_| Key::new(format!("{prefix}{resource}")));
        let key = key.map_err(|source| DistroRwLockError::InvalidResource {
            resource: resource.chars().take(80).collect(),
            source,
        })?;
        let manager = store.attached::<LockManager>();
        let name = LockName { handle: manager.handle, resource: resource.into(), key };
        Ok(Self { store: store.clone(), manager, name, options })
    }

    /// Returns the name of the resource.
    pub fn resource(&self) -> &str {
        &self.name.resource
    }

    /// Waits until the lock is granted for reading, together with other readers.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::Timeout`] if the lock was not granted within
    /// [`LockOptions::wait`], or the store did not answer. A call with a wait shorter than the
    /// store's deadline may take longer than the wait, by that deadline at most. Returns
    /// [`DistroRwLockError::Store`] if the store is gone, is full or rejects requests, or its
    /// connection was shut down. Returns [`DistroRwLockError::QueueFull`] if too many claims wait.
    /// Returns [`DistroRwLockError::ForeignRecord`] if the entry is not a lock record. Returns
    /// [`DistroRwLockError::Reentrant`] if the processor that runs this task holds the lock.
    pub async fn read(&self) -> Result<ReadGuard, DistroRwLockError> {
        self.wait("read", LockMode::Read).await.map(ReadGuard)
    }

    /// Waits until the lock is granted for writing, to this caller alone.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn write(&self) -> Result<WriteGuard, DistroRwLockError> {
        self.wait("write", LockMode::Write).await.map(WriteGuard)
    }

    /// Acquires the lock for reading, together with other readers, if no writer holds it and no
    /// claim waits.
    ///
    /// If all sessions ahead of it seem to be dead by the store's clock, the call waits until they
    /// are found dead or alive. This takes up to the longest of their leases, and an eighth.
    ///
    /// Cancel safe: dropping the future releases a lock that may have been granted.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::WouldBlock`] if the lock is not free, otherwise as for
    /// [`read`](Self::read).
    pub async fn try_read(&self) -> Result<ReadGuard, DistroRwLockError> {
        self.attempt("try_read", LockMode::Read).await.map(ReadGuard)
    }

    /// Acquires the lock for writing, if no process holds it and no claim waits.
    ///
    /// Cancel safe: dropping the future releases a lock that may have been granted.
    ///
    /// # Errors
    /// As for [`try_read`](Self::try_read).
    pub async fn try_write(&self) -> Result<WriteGuard, DistroRwLockError> {
        self.attempt("try_write", LockMode::Write).await.map(WriteGuard)
    }

    /// Waits until the lock is granted. `operation` is the name of the called method.
    pub(super) async fn wait(
        &self,
        operation: &'static str,
        mode: LockMode,
    ) -> Result<Hold, DistroRwLockError> {
        reentry::check(&self.name)?;
        let (began, waited) = (Instant::now(), self.options.wait);
        let was_queued = Arc::<AtomicBool>::default();
        let request = |waits| Request { operation, mode, waits, was_queued: &was_queued };
        if !waited.is_zero()
            && let Some(claimed) = self.claim(&request(true), waited).await
        {
            return claimed;
        }
        // A free lock is acquired even if the wait is too short for an answer.
        let left = self.store.deadline().saturating_sub(began.elapsed());
        if !was_queued.load(Ordering::Acquire) && !left.is_zero() {
            match self.claim(&request(false), left).await {
                None | Some(Err(DistroRwLockError::WouldBlock { .. })) => {}
                Some(Err(error)) if error.is_passing() => {}
                Some(claimed) => return claimed,
            }
        }
        let resource = self.name.resource.to_string();
        Err(DistroRwLockError::Timeout { resource, mode, waited })
    }

    /// Acquires the lock if it is free. `operation` is the name of the called method.
    pub(super) async fn attempt(
        &self,
        operation: &'static str,
        mode: LockMode,
    ) -> Result<Hold, DistroRwLockError> {
        // One deadline for the session, one for the swap.
        let limit = self.store.deadline().saturating_mul(2);
        let request = Request { operation, mode, waits: false, was_queued: &Arc::default() };
        self.claim(&request, limit).await.unwrap_or_else(|| {
            let key = Some(self.name.key.clone());
            Err(self.name.store_error(KvError::Timeout { operation, key, limit }))
        })
    }

    /// Returns `None` if the claim was neither granted nor rejected by the deadline.
    async fn claim(
        &self,
        request: &Request<'_>,
        limit: Duration,
    ) -> Option<Result<Hold, DistroRwLockError>> {
        if let Err(error) = in_runtime(request.operation) {
            return Some(Err(self.name.store_error(error)));
        }
        let is_hasty = !request.waits || limit < lease::patience(self.options.lease);
        let wait = Wait::new(is_hasty, request.was_queued);
        let made = Mutex::new(None);
        let claims = async {
            let mut pauses = backoff(Duration::from_millis(50), Duration::from_secs(2));
            loop {
                let error = match self.claim_once(request, &wait, &made).await {
                    // A waiting claim retries, because an unreachable store may soon be reachable
                    // again. A process that was cut off for longer than its lease joins the end of
                    // the queue.
                    Err(error) if request.waits && error.is_passing() => error,
                    claimed => return claimed,
                };
                tracing::debug!(resource = &*self.name.resource, %error, "retrying a lock claim");
                tokio::time::sleep(pauses.next().unwrap_or_default()).await;
            }
        };
        let gives_up = async {
            tokio::time::sleep(limit).await;
            wait.not_extended().await;
        };
        let claimed = tokio::select! {
            biased;
            claimed = claims => Some(claimed),
            () = gives_up => None,
        };
        if claimed.is_none()
            && let Some(mut handle) = made.into_inner().unwrap_or_else(PoisonError::into_inner)
        {
            // Waits for a short time until the abandoned claim is removed from the record.
            // Otherwise, if the process ends now, the claim blocks others as after a crash.
            let limit = GRACE.min(self.store.deadline());
            let _ = tokio::time::timeout(limit, handle.leave()).await;
        }
        claimed
    }

    /// Makes a claim. Its handle is in `made` until it is granted or rejected, so that dropping
    /// this future leaves the claim to the caller.
    async fn claim_once(
        &self,
        request: &Request<'_>,
        wait: &Wait,
        made: &Mutex<Option<ClaimHandle>>,
    ) -> Result<Hold, DistroRwLockError> {
        let (mode, waits) = (request.mode, request.waits);
        let command_queue = self.manager.command_queue(&self.name.key);
        let place = command_queue.lock().await;
        let sessions = &self.manager.sessions;
        let session = sessions.get(&self.store, self.options.lease, &self.name.key).await;
        let session = session.map_err(|error| self.name.store_error(error))?;
        let (reply, receiver) = oneshot::channel();
        let id = session.next_claim();
        let claim = Claim { id, mode, label: self.options.label.clone(), extra: Extra::new() };
        let (session_of_claim, wait) = (session.clone(), wait.clone());
        let command = Command::Claim { claim, waits, session: session_of_claim, wait, reply };
        let sent = self.manager.send(&self.store, &self.name.key, command);
        drop(place);
        let (handle, turn) = sent
            .map(|Sent { coordinator, turn, .. }| (ClaimHandle::new(coordinator, id), turn))
            .unzip();
        *made.lock().unwrap_or_else(PoisonError::into_inner) = handle;
        let answer = Answer::new(turn, receiver).await;
        let handle = made.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (answer, handle) {
            (Ok(Ok(Granted { token, revoked })), Some(handle)) => {
                let (name, deadline) = (self.name.clone(), self.store.deadline());
                let hold = Hold { claim: handle, session, token, revoked, name, mode, deadline };
                // The session may have ended directly after the grant.
                match hold.loss() {
                    None => Ok(hold),
                    Some(reason) => Err(self.name.lost_error(reason)),
                }
            }
            (Ok(Err(rejection)), handle) => {
                handle.into_iter().for_each(ClaimHandle::end);
                Err(self.name.rejected(rejection, mode))
            }
            (Ok(Ok(_)) | Err(_), _) => Err(self.name.runtime_ended()),
        }
    }
}

/// A call that acquires a lock.
struct Request<'a> {
    /// Name of the called method.
    operation: &'static str,
    mode: LockMode,
    /// Whether the claim joins the queue.
    waits: bool,
    /// Set once a claim is in the queue.
    was_queued: &'a Arc<AtomicBool>,
}

impl fmt::Debug for DistroRwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistroRwLock")
            .field("store", &self.store.name())
            .field("resource", &self.name.resource)
            .finish_non_exhaustive()
    }
}
