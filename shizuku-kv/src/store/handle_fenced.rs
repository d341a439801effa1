//! The part of the handle that writes under a lock.

use std::fmt;

use bytes::Bytes;

#[allow(unused_imports, reason = "named in the documentation")]
use super::KvError;
use super::{FencingToken, IntoKey, KvFenced, KvResult, Store, VersionToken};

/// Writing under a lock: each write shows a token, and is refused once a newer one has written to the key. From
/// [`Store::fenced`].
///
/// A lock with a lease cannot keep its holder from being paused for longer than that. When it wakes up it knows nothing
/// of the holder after it, and writes. With its token that write is refused as [`KvError::Fenced`]. Equal tokens are
/// accepted: one holder writes as often as it likes.
///
/// - The entry remembers the token of the write behind it ([`KvEntry::fence`](crate::KvEntry::fence)), a deletion too.
///   There is no other memory: a token counts for its key only.
/// - **Every writer of such a key must use fenced writes.** One without a token, from another handle or another client
///   of the same server, is never refused, and takes the token away: what an earlier holder writes then is accepted.
/// - The first write of a new holder causes the rejection of the earlier ones. What the holder has
///   read before that may be overwritten until then: [`update`](Self::update) compares with what
///   was read. [`raise`](Self::raise) makes a key reject the earlier ones at once, without a write
///   of a new holder: for example after a lock was
///   [broken](crate::rw_lock::DistroRwLock::break_lock).
/// - The operation is as atomic as a compare-and-swap. On NATS it is one, after a look at what is there, and is tried
///   again within the deadline where somebody wrote in between.
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
/// let refused = fenced.put("job.1", "done", earlier).await.unwrap_err();
/// assert!(refused.is_fenced());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct StoreFenced<'a> {
    store: &'a Store,
    fenced: &'a dyn KvFenced,
}

impl<'a> StoreFenced<'a> {
    pub(super) fn new(store: &'a Store, fenced: &'a dyn KvFenced) -> Self {
        Self { store, fenced }
    }

    /// As [`Store::put`]: stores a value, whatever was there, unless a newer token has written it.
    ///
    /// # Errors
    /// [`KvError::Fenced`] where a newer token has written to the key; [`KvError::Timeout`] also where others wrote to
    /// it without a pause; else as for [`Store::put`].
    pub async fn put(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        token: FencingToken,
    ) -> KvResult<VersionToken> {
        const OPERATION: &str = "fenced put";
        let (key, value) = self.store.key_and_value(key, value).await?;
        let deadline = self.store.deadline_of(OPERATION, Some(&key))?;
        let write = self.fenced.put(&key, value, token, deadline);
        self.store.finish(OPERATION, &key, deadline, write).await
    }

    /// As [`Store::create`], unless a newer token has written to the key; the deletion of it too.
    ///
    /// # Errors
    /// As for [`put`](Self::put), and [`KvError::AlreadyExists`] over a live value that no newer token wrote.
    pub async fn create(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        token: FencingToken,
    ) -> KvResult<VersionToken> {
        const OPERATION: &str = "fenced create";
        let (key, value) = self.store.key_and_value(key, value).await?;
        let deadline = self.store.deadline_of(OPERATION, Some(&key))?;
        let write = self.fenced.create(&key, value, token, deadline);
        self.store.finish(OPERATION, &key, deadline, write).await
    }

    /// As [`Store::update`], unless a newer token has written to the key.
    ///
    /// # Errors
    /// As for [`put`](Self::put), and [`KvError::RevisionMismatch`] where the newest entry has another version and no
    /// newer token wrote it.
    pub async fn update(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        expected: VersionToken,
        token: FencingToken,
    ) -> KvResult<VersionToken> {
        const OPERATION: &str = "fenced update";
        let (key, value) = self.store.key_and_value(key, value).await?;
        let deadline = self.store.deadline_of(OPERATION, Some(&key))?;
        let write = self.fenced.update(&key, value, expected, token, deadline);
        self.store.finish(OPERATION, &key, deadline, write).await
    }

    /// As [`Store::delete`], unless a newer token has written to the key. The tombstone has the token too, and stays for
    /// ever: who is refused now is refused after the deletion. So every key that was ever written so stays in the store,
    /// as a name and a few headers.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, key: impl IntoKey, token: FencingToken) -> KvResult<VersionToken> {
        const OPERATION: &str = "fenced delete";
        let key = key.into_key()?;
        let deadline = self.store.deadline_of(OPERATION, Some(&key))?;
        let write = self.fenced.delete(&key, token, deadline);
        self.store.finish(OPERATION, &key, deadline, write).await
    }

    /// Makes a key reject smaller tokens from now on, without changing its value. Returns the
    /// smallest token that the key accepts now: `token`, or a newer one that it had already.
    ///
    /// For operators: raise the keys that a lock protects to the token that
    /// [`break_lock`](crate::rw_lock::DistroRwLock::break_lock) returns. The broken holder cannot
    /// write them any more, even before the next holder has written.
    ///
    /// - If the key has this token or a newer one, no write happens.
    /// - Otherwise its value is written again, unchanged. That is a write like any other: the key
    ///   has a new version, watches deliver the value once more, and a history has one more entry,
    ///   for which it may drop the oldest. A compare-and-swap with the version from before is
    ///   rejected. Headers that another client of the server has added to the message are not kept.
    /// - A key that is absent stays absent: it gets a tombstone with the token, which stays for
    ///   ever, and which watches deliver as a deletion.
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
