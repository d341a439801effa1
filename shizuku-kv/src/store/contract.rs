//! The contract that every backend fulfils, as object-safe traits.
//!
//! Users call [`Store`], whose methods take strings, check them, and keep the deadlines. A backend
//! implements these traits. It is correct if the module `conformance` (feature `conformance`)
//! reports no fault. The checks there are this contract, clause by clause:
//!
//! **Keys.** A backend receives only valid [`Key`]s. Scopes are literal string prefixes. A backend
//! may push filters down to its server; [`WatchScope::matches`] defines their meaning.
//!
//! **Values.** Any bytes up to [`KvStore::max_value_size`]. An empty value is a value, never a
//! tombstone.
//!
//! **Versions.** Every write to a key, deletions included, gives it a version that it never had
//! before.
//!
//! **Writes.** A write takes effect once or not at all, and its result shows which. If an
//! acknowledgement is lost, the backend resolves the outcome by itself. It returns
//! [`KvError::OutcomeUnknown`] only if that is impossible. It repeats nothing blindly. A lost
//! compare-and-swap is [`KvError::RevisionMismatch`], a create over a live value
//! [`KvError::AlreadyExists`] (ADR 0029).
//!
//! **Fenced writes.** An entry keeps the fencing token of the write behind it, a tombstone too. A
//! write with a token is [`KvError::Fenced`] if the key's newest entry has a larger one, whatever
//! other error it might cause. A write without a token is never rejected because of one, and leaves
//! an entry without a token. [`KvFenced::raise`] gives a token to an entry without a change of its
//! value. A store that may lose newest entries by themselves, because they age, has no fenced
//! writes. A tombstone with a token never expires. If a store is given a maximum age later, a key
//! without an entry is no longer a proof, on open handles too.
//!
//! **Reads.** A read sees every write that was acknowledged before it began, within the limits of
//! its [`ReadConsistency`]. Every key that lives throughout a scan appears in it exactly once.
//!
//! **Watches.** The initial state comes first: the newest entry of every live key in scope.
//! Tombstones that the store still holds may come too. [`KvUpdate::CaughtUp`] follows, also on an
//! empty scope, then live updates. Per key, versions never go back, and no update arrives twice.
//! The last one always arrives; superseded ones may be skipped. A watch recovers by itself. It ends
//! only if it is dropped, if the store is gone ([`KvError::StoreNotFound`]), or if it cannot resume
//! without a gap ([`KvError::CursorExpired`]). It also ends if its connection is shut down
//! ([`KvError::Closed`]) or has lost its runtime ([`KvError::NoRuntime`]). Memory is bounded: a
//! slow reader slows the source. Deletion, purge and expiry arrive. A deletion is never skipped
//! silently, even if the reader did not poll for longer than tombstones live. If entries of a
//! backend can leave without a message, its watches compare the figures of the store with those of
//! the last comparison.
//!
//! **Cursors.** A cursor that cannot resume without a gap is [`KvError::CursorExpired`], never a
//! silent skip. It has expired if it is of another store or of an earlier incarnation of this one.
//! It has expired if it precedes the oldest entry that the store still holds, or if it is beyond
//! the end of the store. It has also expired if it is at the end and its entry has left the store.
//! If the settings for the lifetime of tombstones have changed since, the shortest lifetime counts.
//! A cursor cannot account for tombstones that another client removes from a server by hand, or
//! writes with a time to live of its own.
//!
//! **Settings.** They may change under an open handle. Each promise relies on the newest ones; a
//! backend that does not have them requests them ([`KvStore::refresh`]). Every limit can be
//! removed. A time to live over the maximum age is [`KvError::InvalidConfig`], and so are times to
//! live together with a history above 1.
//!
//! **Tombstones.** They are held forever or, in a store whose values expire, for a limited time, no
//! longer than the maximum age. The end of a tombstone is not a change. It does not arrive at a
//! watch that delivered the tombstone, and brings no older value back, even if the backend's server
//! is killed. Tombstones of fenced deletions, and of keys that begin with `rw_lock`, never expire.
//! On NATS two kinds of tombstones can bring values back after an unclean stop of the server, and
//! no client of this library writes them. They are those of a purge with a time to live, and those
//! with a time to live in buckets without limit markers (nats-server #8505).
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
//! **Limits.** A write without room returns [`KvError::StoreFull`]. A rejection by another limit
//! returns [`KvError::LimitReached`]. Both name the limit and the way out. If a server rejects a
//! write because of its load, the write is sent again within its deadline. The exception is a write
//! that would overwrite a later write of its key.
//!
//! **Names.** An error of a handle contains the name of the handle's method as its `operation`. A
//! [`Connection`] uses the names of its own methods.
//!
//! **Secrets.** No error, log line or `Debug` output contains a value or a credential.
//!
//! [`Connection`]: crate::Connection
//! [`ReadConsistency`]: crate::ReadConsistency
//! [`Store`]: crate::Store
//! [`KvUpdate::CaughtUp`]: crate::KvUpdate::CaughtUp

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use futures_core::future::BoxFuture;

use super::{
    Atomicity, ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError, KvStream,
    StoreFigures, VersionToken, Watch, WatchCursor, WatchScope, Write, ttl_fault,
};

/// The result of every operation.
pub type KvResult<T> = Result<T, KvError>;

/// One store, from the view of its backend. Its methods return the optional abilities.
pub trait KvStore: KvReader + Debug {
    /// Returns the store's name.
    fn name(&self) -> &str;

    /// Returns the abilities of this store, at most those of its connection.
    fn capabilities(&self) -> ConnectionCapabilities;

    /// Returns the maximum size of a value that can be written now, in bytes.
    fn max_value_size(&self) -> usize;

    /// Refreshes the store's settings, which other clients may have changed. The methods of this
    /// trait use the newest ones from then on. A backend that always has them does nothing.
    fn refresh(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        let _ = deadline;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Returns the store's incarnation as in its cursors, from the newest known settings. The
    /// incarnation distinguishes the store from a deleted one of the same name, whose versions may
    /// be the same. Returns `None` if the backend does not know it, which is the default.
    fn incarnation(&self) -> Option<[u8; 16]> {
        None
    }

    /// Returns the ability to write. Returns `None` if the store is read-only.
    fn writer(&self) -> Option<&dyn KvWriter> {
        None
    }

    /// Returns the ability to watch. Returns `None` if the store cannot be watched.
    fn watcher(&self) -> Option<&dyn KvWatcher> {
        None
    }

    /// Returns the ability to give single keys a time to live. Returns `None` if the store does not
    /// have it.
    fn ttl(&self) -> Option<&dyn KvTtl> {
        None
    }

    /// Returns the reason that the store has no times to live and the way out, for errors: a phrase
    /// whose subject is the store.
    fn ttl_fault(&self) -> String {
        ttl_fault(None)
    }

    /// Returns the ability to write with a fencing token. Returns `None` if the store does not have
    /// it.
    fn fenced(&self) -> Option<&dyn KvFenced> {
        None
    }
}

/// Reading, which every store supports.
///
/// Cancel safe: dropping any of the futures leaves nothing behind.
pub trait KvReader: Send + Sync {
    /// Returns the newest entry of a key, tombstones included. Returns `None` if no entry exists.
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>>;

    /// Returns the same from the one replica that decides writes, whatever consistency the store
    /// was opened with. On a healthy cluster, no acknowledged write is missing. With a single
    /// replica it is [`entry`](Self::entry).
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
    /// # Errors
    /// Returns [`KvError::Unsupported`] if the backend has no figures, which is the default. Its
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

    /// Returns the newest entry of each key, in the order of `keys`, tombstones included. A key
    /// that appears twice is answered twice. Entries of different keys may be of different moments.
    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>>;

    /// Returns the stored entries of a key, the oldest first, tombstones included.
    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry>;

    /// Returns the live entries in scope. `deadline` is the longest time for any one item. If the
    /// stream measures progress itself ([`KvStream::with_progress`]), it is the longest time
    /// without progress.
    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry>;

    /// Returns the live keys in scope, with the same deadline.
    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key>;
}

/// Writing.
///
/// Cancel safe: dropping a future leaves nothing behind, except for the write, which may have
/// happened.
pub trait KvWriter: Send + Sync {
    /// Writes to a key, and returns the key's new version.
    ///
    /// # Errors
    /// Returns [`KvError::Unsupported`] for a write that [`Write::check`] rejects. Returns it also
    /// for a time to live if [`KvStore::ttl`] is `None`, and for a fencing token if
    /// [`KvStore::fenced`] is `None`. Returns [`KvError::InvalidConfig`] if the backend cannot keep
    /// the time to live.
    fn write<'a>(
        &'a self,
        key: &'a Key,
        write: Write,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>>;

    /// Makes many writes, each as [`write`](Self::write) would, with a bounded number in flight.
    /// Returns the answers in their order. Writes of one key take effect in the order given.
    /// `deadline` is that of each write, from the moment that it is sent.
    ///
    /// With [`Atomicity::All`] the answers are all versions, or all errors without any effect. A
    /// backend without this ability answers [`KvError::Unsupported`] for each.
    fn write_many<'a>(
        &'a self,
        writes: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>>;
}

/// Watching.
pub trait KvWatcher: Send + Sync {
    /// Watches a scope, from its current state or from a cursor.
    ///
    /// From a cursor, the watch delivers the changes after it, then the caught-up marker, then live
    /// updates.
    ///
    /// # Errors
    /// Returns an error of the opening if it is known by then. Otherwise the first item is the
    /// error.
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>>;
}

/// Times to live of single keys: the ability to make writes with [`Write::ttl`].
///
/// A value expires when its time to live has passed since its write, unless it was written again
/// before. Expiry is a deletion that arrives at watches.
pub trait KvTtl: Send + Sync {
    /// Returns the shortest time to live, which is also the step of longer ones.
    fn granularity(&self) -> Duration;
}

/// Fenced writes: the ability to make writes with [`Write::fence`].
///
/// The comparison of the token comes first. A holder that has lost its lock therefore gets that
/// error, and not that another process was faster. The comparison and the write are atomic. The
/// tombstone of a deletion carries the token too, and never expires.
pub trait KvFenced: Send + Sync {
    /// Gives the key's newest entry a token without a change of the value. A value is written again
    /// unchanged; an absent key gets a tombstone. If the entry has this token or a newer one, no
    /// write happens. Returns the token that the key has then.
    ///
    /// The read and the write are atomic.
    ///
    /// Cancel safe: dropping the future leaves nothing behind, except for the write, which may have
    /// happened.
    ///
    /// # Errors
    /// Returns [`KvError::Unsupported`] if the value has a time to live of its own.
    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>>;
}
