//! Functions of a lock for operators.

use tokio::sync::oneshot;

use super::DistroRwLock;
use crate::rw_lock::command::Command;
use crate::rw_lock::driver::Answer;
use crate::rw_lock::error::DistroRwLockError;
use crate::rw_lock::inspect::{LockState, SessionStates};
use crate::rw_lock::record::{LockMode, LockRecord};
use crate::rw_lock::transition::Outcome;
use crate::store::{FencingToken, KvEntry, KvError, in_runtime};

/// Functions for operators.
impl DistroRwLock {
    /// Returns the holders and waiters of the resource as they are in the store now, and whether
    /// each is presumed dead. [`LockClaim::presumed_dead`] describes the comparison.
    ///
    /// The inspection of a held lock costs three requests: the record, the sessions in it, and the
    /// store's clock. Each session that seems to have ended costs one more.
    ///
    /// Cancel safe: the call changes nothing.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::Store`] if a request fails. Returns
    /// [`DistroRwLockError::ForeignRecord`] if the entry is not a lock record.
    ///
    /// [`LockClaim::presumed_dead`]: crate::rw_lock::LockClaim::presumed_dead
    pub async fn inspect(&self) -> Result<LockState, DistroRwLockError> {
        let entry =
            self.store.get(&self.name.key).await.map_err(|error| self.name.store_error(error))?;
        let record = self.record_of(entry.as_ref())?;
        let sessions = SessionStates::read(&self.store, &record)
            .await
            .map_err(|error| self.name.store_error(error))?;
        Ok(LockState::of(record, &sessions))
    }

    /// Returns the record in an entry, or the record of a lock that was never held if no entry
    /// exists.
    pub(in crate::rw_lock) fn record_of(
        &self,
        entry: Option<&KvEntry>,
    ) -> Result<LockRecord, DistroRwLockError> {
        entry
            .map_or(Ok(LockRecord::default()), |entry| LockRecord::from_bytes(&entry.value))
            .map_err(|reason| self.name.foreign_error(reason))
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
    /// know which keys are written under it. Actions of broken holders that do not check tokens
    /// continue: make sure that these holders no longer run.
    ///
    ///
    /// [`WriteGuard::lost`]: crate::rw_lock::WriteGuard::lost
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
    /// Cancel safe: after the future was dropped, the break may still happen.
    ///
    /// # Errors
    /// As for [`inspect`](Self::inspect).
    pub async fn break_lock(&self) -> Result<FencingToken, DistroRwLockError> {
        in_runtime("break_lock").map_err(|error| self.name.store_error(error))?;
        let limit = self.store.deadline().saturating_mul(2);
        let (reply, receiver) = oneshot::channel();
        let sent = self.manager.send(&self.store, &self.name.key, Command::Break { reply });
        let answer = Answer::new(sent.map(|sent| sent.turn), receiver);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Ok(Outcome::Broken(token)))) => Ok(token),
            Ok(Ok(Err(rejection))) => Err(self.name.rejected(rejection, LockMode::Write)),
            // A break has no other outcome.
            Ok(Ok(Ok(_)) | Err(_)) => Err(self.name.runtime_ended()),
            Err(_) => {
                let key = Some(self.name.key.clone());
                let source = KvError::Timeout { operation: "break_lock", key, limit };
                Err(self.name.store_error(source))
            }
        }
    }
}
