//! Guards: the proof of a holder that it holds a lock, until it releases or loses it.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::watch;

use super::channels::CoordinatorHandle;
use super::command::{Command, Rejection};
use super::driver::Answer;
use super::error::{DistroRwLockError, LockLoss};
use super::name::LockName;
use super::record::{ClaimId, LockMode};
use super::session::SessionUse;
use super::transition::Outcome;
use crate::store::{FencingToken, KvError, in_runtime};

/// Maximum time by which a write may exceed its deadline.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// A claim that was made. Dropping it leaves the lock.
pub(super) struct ClaimHandle {
    /// The coordinator that has the claim, and runs for as long as it has one. If the coordinator
    /// has ended nevertheless, its runtime has ended too, and the lease ends the lock.
    coordinator: CoordinatorHandle,
    id: ClaimId,
    is_over: bool,
}

impl ClaimHandle {
    pub(super) fn new(coordinator: CoordinatorHandle, id: ClaimId) -> Self {
        Self { coordinator, id, is_over: false }
    }

    /// Records that the record of the lock has no such claim.
    pub(super) fn end(mut self) {
        self.is_over = true;
    }

    /// Removes the claim.
    pub(super) fn leave(&mut self) -> Answer<Result<Outcome, Rejection>> {
        self.is_over = true;
        let id = self.id;
        self.coordinator.request(|reply| Command::Leave { id, reply: Some(reply) })
    }

    fn downgrade(&self) -> Answer<Result<Outcome, Rejection>> {
        let id = self.id;
        self.coordinator.request(|reply| Command::Downgrade { id, reply })
    }
}

impl Drop for ClaimHandle {
    fn drop(&mut self) {
        if !self.is_over {
            self.coordinator.send(Command::Leave { id: self.id, reply: None });
        }
    }
}

/// A granted claim, the content of both guards.
pub(super) struct Hold {
    pub(super) claim: ClaimHandle,
    pub(super) session: SessionUse,
    pub(super) token: FencingToken,
    pub(super) revoked: watch::Receiver<Option<LockLoss>>,
    pub(super) name: LockName,
    pub(super) mode: LockMode,
    /// Timeout for a change of the record.
    pub(super) deadline: Duration,
}

impl Hold {
    /// Returns how the lock was lost, by the clocks of this machine at this moment. Returns `None`
    /// if it is held.
    pub(super) fn loss(&self) -> Option<LockLoss> {
        let revoked = *self.revoked.borrow();
        // The session ends with the connection, and does not know the cause.
        let closed = revoked.filter(|loss| *loss == LockLoss::StoreGone);
        closed.or_else(|| self.session.loss()).or(revoked).or_else(|| {
            // The next coordinator treats its claims as orphans.
            self.revoked.has_changed().is_err().then_some(LockLoss::TaskEnded)
        })
    }

    pub(super) async fn lost(&self) -> LockLoss {
        let mut revoked = self.revoked.clone();
        let is_revoked = async {
            let _ = revoked.wait_for(Option::is_some).await;
        };
        match select(pin!(is_revoked), pin!(self.session.lost())).await {
            Either::Left(_) => self.loss().unwrap_or(LockLoss::Broken),
            Either::Right((loss, _)) => loss,
        }
    }

    pub(super) async fn release(mut self) -> Result<(), DistroRwLockError> {
        // Read before the release.
        let loss = self.loss();
        let answer = self.claim.leave();
        if let Some(loss) = loss {
            return Err(self.name.lost_error(loss));
        }
        self.answer("release", answer).await
    }

    async fn downgrade(mut self) -> Result<Self, DistroRwLockError> {
        if let Some(loss) = self.loss() {
            return Err(self.name.lost_error(loss));
        }
        let answer = self.claim.downgrade();
        self.answer("downgrade", answer).await?;
        self.mode = LockMode::Read;
        Ok(self)
    }

    async fn answer(
        &self,
        operation: &'static str,
        answer: Answer<Result<Outcome, Rejection>>,
    ) -> Result<(), DistroRwLockError> {
        in_runtime(operation).map_err(|source| self.name.store_error(source))?;
        let answer = tokio::time::timeout(self.deadline.saturating_add(GRACE), answer).await;
        match answer {
            Ok(Ok(Ok(Outcome::NotThere))) => {
                Err(self.name.lost_error(self.loss().unwrap_or(LockLoss::Broken)))
            }
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(rejection))) => Err(self.name.rejected(rejection, self.mode)),
            Ok(Err(_)) => Err(self.name.runtime_ended()),
            Err(_) => {
                let source = KvError::Timeout { operation, key: None, limit: self.deadline };
                Err(self.name.store_error(source))
            }
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("resource", &self.name.resource)
            .field("mode", &self.mode)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

macro_rules! guard {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Dropping it releases the lock in the background: the next waiter has the resource a
        /// round trip later. If the store cannot be reached, or the runtime has ended, the lease
        /// ends the lock. A guard dropped at the end of `main` is certain to be released only if
        /// [`Connection::shutdown`](crate::Connection::shutdown) is awaited there.
        /// [`release`](Self::release) returns whether it was held up to the end.
        #[derive(Debug)]
        #[must_use = "the lock is released as soon as its guard is dropped"]
        pub struct $name(pub(super) Hold);

        impl $name {
            /// Returns the number of this grant, larger than those of all earlier grants of the
            /// resource. Pass it with each write under the lock, to a store or service that rejects
            /// older tokens.
            pub fn fencing_token(&self) -> FencingToken {
                self.0.token
            }

            /// Returns whether the lock is held at this moment, by the clocks of this machine.
            /// Sends no request.
            ///
            /// It turns false before another process can be granted the resource. If an operator
            /// breaks the lock, this process notices a moment later.
            pub fn is_held(&self) -> bool {
                self.0.loss().is_none()
            }

            /// Waits until the lock is lost, and returns how. Never ends for a lock that is held
            /// until it is released.
            ///
            /// The end of a lease is noticed in time. A break by an operator is noticed at the
            /// earliest about 20 ms after the lock was acquired.
            ///
            /// Cancel safe: dropping the future changes nothing.
            pub async fn lost(&self) -> LockLoss {
                self.0.lost().await
            }

            /// Returns the name of the resource.
            pub fn resource(&self) -> &str {
                &self.0.name.resource
            }

            /// Releases the lock, and waits until the store has recorded it.
            ///
            /// Cancel safe: the lock is released nevertheless, as when the guard is dropped.
            ///
            /// # Errors
            /// Returns [`DistroRwLockError::LeaseLost`] if the lock was lost before. Returns
            /// [`DistroRwLockError::Store`] if the store did not answer within its deadline. The
            /// release is then retried in the background, until the lease ends the lock.
            ///
            /// If an operator breaks the lock during the release, the release may succeed
            /// nevertheless. It cannot always distinguish the break from its own write without an
            /// answer, or from the write of another process that has released for it.
            pub async fn release(self) -> Result<(), DistroRwLockError> {
                self.0.release().await
            }
        }
    };
}

guard! {
    /// The right to read a resource, together with other readers, from
    /// [`DistroRwLock::read`](super::DistroRwLock::read).
    ReadGuard
}

guard! {
    /// The exclusive right to a resource, from [`DistroRwLock::write`](super::DistroRwLock::write).
    WriteGuard
}

impl WriteGuard {
    /// Continues as a reader, under the same fencing token, and grants the lock to readers that are
    /// next in the queue. The lock is held without interruption. An upgrade does not exist, because
    /// two readers that both waited to become the writer would wait for each other.
    ///
    /// Cancel safe: dropping the future releases the lock.
    ///
    /// # Errors
    /// As for [`release`](Self::release). The lock is released in that case.
    pub async fn downgrade(self) -> Result<ReadGuard, DistroRwLockError> {
        self.0.downgrade().await.map(ReadGuard)
    }
}
