//! The part of the handle that writes under a lock (ADR 0057).

use std::fmt;

use bytes::Bytes;

#[allow(unused_imports, reason = "named in the documentation")]
use super::KvError;
use super::{FencingToken, IntoKey, KvFenced, KvResult, Store, VersionToken, Write};

impl Store {
    /// Returns the handle for writing under a lock, which rejects writes of a superseded holder.
    /// Returns `None` if the store has no fenced writes. A store with a maximum age has none,
    /// because its tokens would expire too.
    pub fn fenced(&self) -> Option<StoreFenced<'_>> {
        self.backend().fenced().map(|fenced| StoreFenced { store: self, fenced })
    }
}

/// Writing under a lock, from [`Store::fenced`]. Each write carries a token, and is rejected once a
/// newer token has written to the key.
///
/// A lock with a lease cannot prevent that its holder is paused for longer than the lease. When
/// such a holder resumes, it does not know of the next holder, and writes. With its token that
/// write is rejected with [`KvError::Fenced`]. Equal tokens are accepted, so that one holder can
/// write repeatedly.
///
/// - The entry remembers the token of the write behind it
///   ([`KvEntry::fence`](crate::KvEntry::fence)), a deletion too. No other memory exists: a token
///   counts for its key only.
/// - **Every writer of such a key must use fenced writes.** A write without a token is never
///   rejected, and removes the token, also if it comes from another client of the same server.
///   Writes
///   of an earlier holder are then accepted.
/// - The first write of a new holder causes the rejection of the earlier ones. Until then, values
///   that the holder has read may be overwritten: [`update`](Self::update) compares with them.
///   [`raise`](Self::raise) makes a key reject the earlier ones at once, without a write of a new
///   holder: for example after a lock was [broken](crate::rw_lock::DistroRwLock::break_lock).
/// - The operation is as atomic as a compare-and-swap. On NATS it is one, after a read of the
///   newest entry. It is retried within the deadline if another client wrote in between.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), shizuku_kv::KvError> {
/// use shizuku_kv::FencingToken;
///
/// # let store = shizuku_kv::connect("memory:").await?.store("jobs").await?;
/// let fenced = store.fenced().unwrap();
/// let (earlier, later) = (FencingToken::from_u64(17), FencingToken::from_u64(18));
/// fenced.put("job.1", "started", earlier).await?;
/// fenced.put("job.1", "taken over", later).await?;
///
/// // The earlier holder wakes up.
/// let rejected = fenced.put("job.1", "done", earlier).await.unwrap_err();
/// assert!(rejected.is_fenced());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct StoreFenced<'a> {
    store: &'a Store,
    fenced: &'a dyn KvFenced,
}

impl StoreFenced<'_> {
    /// Stores a value like [`Store::put`], unless a newer token has written to the key.
    ///
    /// # Errors
    /// Returns [`KvError::Fenced`] if a newer token has written to the key. Returns
    /// [`KvError::Timeout`] also if others wrote to it without a pause. Otherwise as for
    /// [`Store::put`].
    pub async fn put(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        token: FencingToken,
    ) -> KvResult<VersionToken> {
        self.store.write(key, Write::put(value).with_fence(token)).await
    }

    /// Stores a value like [`Store::create`], unless a newer token has written to the key or
    /// deleted it.
    ///
    /// # Errors
    /// As for [`put`](Self::put). Returns [`KvError::AlreadyExists`] if the key has a live value
    /// that no newer token wrote.
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        token: FencingToken,
    ) -> KvResult<VersionToken> {
        self.store.write(key, Write::create(value).with_fence(token)).await
    }

    /// Stores a value like [`Store::update`], unless a newer token has written to the key.
    ///
    /// # Errors
    /// As for [`put`](Self::put). Returns [`KvError::RevisionMismatch`] if the newest entry has
    /// another version and no newer token wrote it.
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
        token: FencingToken,
    ) -> KvResult<VersionToken> {
        self.store.write(key, Write::update(value, expected).with_fence(token)).await
    }

    /// Deletes a key like [`Store::delete`], unless a newer token has written to the key. The
    /// tombstone has the token too, and stays forever, so that a write that is rejected now is
    /// rejected after the deletion. Every key with fenced writes therefore stays in the store, as a
    /// name and a few headers.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, key: impl IntoKey, token: FencingToken) -> KvResult<VersionToken> {
        self.store.write(key, Write::delete().with_fence(token)).await
    }

    /// Makes a key reject smaller tokens from now on, without changing its value. Returns the
    /// smallest token that the key accepts now: `token`, or a newer one that it had already.
    ///
    /// For operators: raise the keys that a lock protects to the token that
    /// [`break_lock`](crate::rw_lock::DistroRwLock::break_lock) returns. The broken holder cannot
    /// write them any more, even before the next holder has written.
    ///
    /// - If the key has this token or a newer one, no write happens.
    /// - Otherwise its value is written again, unchanged. This is a write like any other. The key
    ///   has a new version, and watches deliver the value again. A history has one more entry,
    ///   for which it may drop the oldest. A compare-and-swap with the version from before is
    ///   rejected. Headers that another client of the server has added to the message are not kept.
    /// - A key that is absent stays absent. It gets a tombstone with the token, which stays
    ///   forever, and which watches deliver as a deletion.
    /// - As after every fenced write, a write without a token removes the token.
    ///
    /// # Errors
    /// Returns [`KvError::Unsupported`] if the value has a time to live of its own, because the
    /// token would expire with it. Otherwise as for [`put`](Self::put), except [`KvError::Fenced`].
    /// A full store may reject it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), shizuku_kv::KvError> {
    /// use shizuku_kv::FencingToken;
    ///
    /// # let store = shizuku_kv::connect("memory:").await?.store("jobs").await?;
    /// let fenced = store.fenced().unwrap();
    /// let (broken, raised) = (FencingToken::from_u64(17), FencingToken::from_u64(18));
    /// fenced.put("job.1", "started", broken).await?;
    /// fenced.raise("job.1", raised).await?;
    /// assert!(fenced.put("job.1", "done", broken).await.unwrap_err().is_fenced());
    /// assert_eq!(store.get("job.1").await?.unwrap().value, "started");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn raise(&self, key: impl IntoKey, token: FencingToken) -> KvResult<FencingToken> {
        const OPERATION: &str = "raise";
        let key = key.into_key()?;
        let deadline = self.store.deadline_of(OPERATION, Some(&key))?;
        let raised = self.fenced.raise(&key, token, deadline);
        self.store.finish(OPERATION, &key, deadline, raised).await
    }
}

impl fmt::Debug for StoreFenced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFenced").field("store", &self.store).finish_non_exhaustive()
    }
}
