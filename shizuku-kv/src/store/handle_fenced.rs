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
/// - It is the first write of a new holder that refuses the earlier ones. What the holder has read before that may be
///   overwritten until then: [`update`](Self::update) compares with what was read.
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
}

impl fmt::Debug for StoreFenced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFenced").field("store", &self.store).finish_non_exhaustive()
    }
}
