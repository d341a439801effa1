//! The contract that every backend fulfils, as object-safe traits.
//!
//! Users meet it through [`Store`], whose methods take strings, check them, and hold the deadlines; these
//! traits are what a backend implements. A backend is right when
//! the module `conformance` (feature `conformance`) says so, whose checks are this contract clause by clause:
//!
//! **Keys.** A backend gets only valid [`Key`]s. Scopes are literal string prefixes; a backend may push down what it
//! can, the meaning is [`WatchScope::matches`].
//!
//! **Values.** Any bytes up to [`KvStore::max_value_size`]. An empty value is a value, never a tombstone.
//!
//! **Versions.** Every write to a key, deletions included, gives it a version that it never had before.
//!
//! **Writes.** A write took effect once or not at all, and the caller is told which. Where an acknowledgement is lost
//! the backend finds out by itself; only where that is impossible it returns [`KvError::OutcomeUnknown`]. Nothing is
//! repeated blindly. A lost compare-and-swap is [`KvError::RevisionMismatch`], a create over a live value
//! [`KvError::AlreadyExists`].
//!
//! **Fenced writes.** An entry keeps the fencing token of the write behind it, a tombstone too. A
//! write with a token is [`KvError::Fenced`] if the key's newest entry has a larger one, whatever
//! other error it might cause. A write without a token is never rejected because of one, and leaves
//! an entry without a token. [`KvFenced::raise`] gives a token to an entry without a change of its
//! value. A store that may lose newest entries by themselves, because they age, has no fenced
//! writes. A tombstone with a token never expires. If a store is given a maximum age later, a key
//! without an entry is no longer a proof, on open handles too.
//!
//! **Reads.** A read sees every write that was acknowledged before it began, as far as [`ReadConsistency`] says.
//! Every key that lives throughout a scan appears in it exactly once.
//!
//! **Watches.** State first: the newest entry of every live key in scope (tombstones that are still
//! held may come too), then [`KvUpdate::CaughtUp`], also on an empty scope, then live updates. Per
//! key, versions never go back, nothing arrives twice, the last one always arrives; superseded ones
//! may be skipped. A watch recovers by itself. It ends only if it is dropped, if the store is gone
//! ([`KvError::StoreNotFound`]), if it cannot resume without a gap ([`KvError::CursorExpired`]), or
//! if its connection is shut down ([`KvError::Closed`]) or has lost its runtime
//! ([`KvError::NoRuntime`]). Memory is bounded: a slow reader slows the source. Deletion, purge and
//! expiry arrive.
//!
//! **Cursors.** A cursor is [`KvError::CursorExpired`], never a silent skip, if it is of another
//! store or of an earlier incarnation of this one, if it precedes the oldest entry that the store
//! still holds, or if it is beyond its end. If the settings for the lifetime of tombstones have
//! changed since, the shortest lifetime counts. A cursor cannot account for tombstones that another
//! client removes from a server by hand, or writes with a time to live of its own.
//!
//! **Settings.** They may change under an open handle. Each promise relies on the newest ones; a
//! backend that does not have them requests them ([`KvStore::refresh`]). Every limit can be
//! removed. A time to live over the maximum age is [`KvError::InvalidConfig`], and so are times to
//! live together with a history above 1.
//!
//! **Tombstones.** They are held for ever or, in a store whose values expire, for a limited time,
//! no longer than the maximum age. The end of a tombstone is not a change: it does not arrive at a
//! watch that delivered the tombstone, and brings no older value back, even if the backend's server
//! is killed. Tombstones of fenced deletions, and of keys that begin with `rw_lock`, are never
//! given an end. On NATS two kinds of tombstones can bring values back after an unclean stop of the
//! server, and no client of this library writes them: those of a purge with a time to live, and
//! those with a time to live in buckets without limit markers (nats-server #8505).
//!
//! **Figures.** Entries may leave a store without a message: evicted, purged by an operator, lost
//! by a server that came back older. [`KvReader::figures`] returns the number of keys with an
//! entry, so that a follower notices it.
//!
//! **Deadlines.** Every operation ends by its [`Deadline`]. No single request uses more than a part
//! of it: a repeatable request is sent again, and a write without an acknowledgement is searched
//! for.
//!
//! **Runtimes.** Every operation is awaited in a tokio runtime with its timer, and returns
//! [`KvError::NoRuntime`] outside of one. A connection whose tasks ended with the runtime that
//! opened it returns the same error permanently.
//!
//! **Secrets.** No error, log line or `Debug` output contains a value or a credential.
//!
//! [`ReadConsistency`]: crate::ReadConsistency
//! [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_core::future::BoxFuture;

use super::{
    ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError, KvStream, Store,
    StoreConfig, StoreFigures, VersionToken, Watch, WatchCursor, WatchScope,
};

/// The result of every operation.
pub type KvResult<T> = Result<T, KvError>;

/// A connection to a backend: its lifecycle, and the stores in it.
///
/// [`connect`](crate::connect) opens one from a URL.
pub trait Connection: Debug + Send + Sync {
    /// What the stores of this connection can do.
    fn capabilities(&self) -> ConnectionCapabilities;

    /// Opens the store `name`, and creates it where there is none; with the backend's defaults.
    ///
    /// # Errors
    /// As for [`store_with_config`](Self::store_with_config).
    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        self.store_with_config(name, StoreConfig::new())
    }

    /// Opens the store `name`, and creates it where there is none.
    ///
    /// # Errors
    /// [`KvError::InvalidStoreName`] and [`KvError::InvalidConfig`] before anything is sent;
    /// [`KvError::ConfigMismatch`] where the store exists and differs in a setting that was made;
    /// [`KvError::StoreNotFound`] where it had to exist; [`KvError::Unsupported`] where the backend cannot do what was
    /// asked for.
    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>>;

    /// The names of the stores, in no particular order.
    fn list_stores(&self) -> KvStream<String>;

    /// Deletes a store with everything in it. Handles that are open then answer [`KvError::StoreNotFound`].
    ///
    /// Where a store of that name is made again, a backend whose stores are known by name goes on with it in the handles
    /// that are there (NATS does); one that holds the store itself does not (in memory): open it again.
    ///
    /// # Errors
    /// [`KvError::StoreNotFound`] where there is none.
    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>>;

    /// Whether the backend answers: one round trip.
    ///
    /// # Errors
    /// What is in the way, within the connection's deadline.
    fn health(&self) -> BoxFuture<'_, KvResult<()>>;

    /// Ends the connection: releases the [locks](crate::rw_lock) that are held through its stores,
    /// and flushes all writes. From then on every operation returns [`KvError::Closed`]. A second
    /// call is not an error.
    ///
    /// Await it at the end of `main`: a guard that is dropped there releases its lock in a task
    /// that the end of the runtime can cut off, so that others wait for a whole lease and an eighth
    /// more. Holders are notified before their locks are released. A backend implements this with
    /// [`OpenStores`](crate::OpenStores).
    ///
    /// # Errors
    /// Returns an error if locks could not be released or the flush failed within the connection's
    /// deadline. The connection is closed nevertheless, unless this was called outside of a tokio
    /// runtime ([`KvError::NoRuntime`]).
    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>>;
}

/// What [`connect`](crate::connect) returns is a connection itself, wherever a `&dyn Connection` is wanted.
impl<C: Connection + ?Sized> Connection for Arc<C> {
    fn capabilities(&self) -> ConnectionCapabilities {
        (**self).capabilities()
    }

    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        (**self).store(name)
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        (**self).store_with_config(name, config)
    }

    fn list_stores(&self) -> KvStream<String> {
        (**self).list_stores()
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        (**self).delete_store(name)
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        (**self).health()
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        (**self).shutdown()
    }
}

/// One store, as its backend sees it. What is optional is asked of it.
pub trait KvStore: KvReader + Debug {
    /// The store's name.
    fn name(&self) -> &str;

    /// What this store can do; at most what its connection can.
    fn capabilities(&self) -> ConnectionCapabilities;

    /// The largest value that can be written now, in bytes.
    fn max_value_size(&self) -> usize;

    /// Refreshes the store's settings, which other clients may have changed. The methods of this
    /// trait use the newest ones from then on. A backend that always has them does nothing.
    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        let _ = deadline;
        Box::pin(std::future::ready(Ok(())))
    }

    /// The ability to write, where there is one.
    fn writer(&self) -> Option<&dyn KvWriter> {
        None
    }

    /// The ability to watch, where there is one.
    fn watcher(&self) -> Option<&dyn KvWatcher> {
        None
    }

    /// The ability to give single keys a time to live, where there is one.
    fn ttl(&self) -> Option<&dyn KvTtl> {
        None
    }

    /// The ability to write with a fencing token, where there is one.
    fn fenced(&self) -> Option<&dyn KvFenced> {
        None
    }
}

/// Reading: what every store can do.
///
/// Dropping any of the futures is safe and leaves nothing behind.
pub trait KvReader: Send + Sync {
    /// The newest entry of a key, tombstones included; `None` where there is none.
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>>;

    /// The same from the one replica that decides writes, whatever consistency the store was opened with: on a healthy
    /// cluster nothing that was acknowledged is missing. Where there is one replica it is [`entry`](Self::entry).
    fn leader_entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        self.entry(key, deadline)
    }

    /// Returns figures of a scope, by which a follower notices that entries have left the store
    /// without a message. They come from the one replica that decides writes, in a request whose
    /// cost does not depend on the values in scope.
    ///
    /// A backend that counts its keys must deliver every counted tombstone in the initial state of
    /// a watch.
    ///
    /// A backend without figures returns [`KvError::Unsupported`], which is the default; its
    /// followers list the keys.
    fn figures<'a>(
        &'a self,
        scope: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        let _ = (scope, deadline);
        let reason = "the backend does not count its keys".to_owned();
        Box::pin(std::future::ready(Err(KvError::Unsupported { operation: "figures", reason })))
    }

    /// Returns the present time of the store's clock, from the replica that decides writes: the
    /// clock by which entries are [`created`](KvEntry::created). Returns `None` if the backend does
    /// not know it.
    fn time(&self, _deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The newest entry of each key, in the order of `keys`, tombstones included. A key that appears twice is answered
    /// twice. Entries of different keys may be of different moments.
    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>>;

    /// What the store holds of a key, the oldest first, tombstones included.
    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry>;

    /// The live entries in scope. `deadline` is the longest that any one item may take.
    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry>;

    /// The live keys in scope. `deadline` is the longest that any one item may take.
    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key>;
}

/// Writing.
///
/// A future that is dropped leaves nothing behind but, perhaps, the write: it may have happened.
pub trait KvWriter: Send + Sync {
    /// Stores a value, whatever was there.
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Stores a value where the key is absent: never written, deleted, purged or expired.
    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Stores a value where the key's newest entry has the version `expected`.
    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Deletes the key: leaves a tombstone, whose version is returned. Deleting an absent key succeeds.
    fn delete<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Deletes the key where its newest entry has the version `expected`.
    fn delete_with_version<'a>(
        &'a self,
        key: &'a Key,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Deletes the key and what the store holds of its history: leaves a tombstone, whose version is returned.
    fn purge<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Stores many values, each as [`put`](Self::put) would, with a bounded number on their way at a time, and answers
    /// in their order. Writes of one key take effect in the order given. `deadline` is that of each item, from the
    /// moment that it is sent.
    fn put_many<'a>(
        &'a self,
        items: Vec<(Key, Bytes)>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>>;
}

/// Watching.
pub trait KvWatcher: Send + Sync {
    /// Watches a scope, from its current state, or from a cursor on.
    ///
    /// From a cursor, what came after it is delivered, then the caught-up marker, then live updates. Errors of the
    /// beginning are returned here where they can be, else as the first item.
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>>;
}

/// Times to live of single keys.
///
/// The value expires `ttl` after it was written, unless it was written again before; expiry is a deletion that arrives
/// at watches. A backend refuses a `ttl` that it cannot keep with [`KvError::InvalidConfig`].
pub trait KvTtl: Send + Sync {
    /// The shortest time to live, and the step in which they are counted.
    fn granularity(&self) -> Duration;

    /// As [`KvWriter::put`], with a time to live.
    fn put_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// As [`KvWriter::create`], with a time to live.
    fn create_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// As [`KvWriter::update`], with a time to live: how a lease is renewed.
    fn update_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;
}

/// Writing with a fencing token, which the key's newest entry then has.
///
/// A token that is older than that of the newest entry is refused with [`KvError::Fenced`], before anything else is
/// compared: a holder that has lost its lock is told so, and not that somebody was faster. The comparison and the write
/// are one step: nobody can write in between. The tombstone of a deletion has the token too, and is kept for ever.
///
/// A future that is dropped leaves nothing behind but, perhaps, the write: it may have happened.
pub trait KvFenced: Send + Sync {
    /// As [`KvWriter::put`], with a token.
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// As [`KvWriter::create`], with a token.
    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// As [`KvWriter::update`], with a token.
    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// As [`KvWriter::delete`], with a token.
    fn delete<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Gives the key's newest entry a token without a change of the value. A value is written again
    /// unchanged; an absent key gets a tombstone. If the entry has this token or a newer one, no
    /// write happens. Returns the token that the key has then.
    ///
    /// The read and the write are atomic. A value with a time to live of its own is
    /// [`KvError::Unsupported`].
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>>;
}
