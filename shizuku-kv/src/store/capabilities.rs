//! Capabilities of a backend.

/// Capabilities of a connection's stores: facts, which the conformance suite verifies.
///
/// For an ability that it does not claim, a backend returns
/// [`KvError::Unsupported`](crate::KvError::Unsupported). More fields may come; start from
/// `ConnectionCapabilities::default()`, which claims nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionCapabilities {
    /// Values can be written. Otherwise stores are read-only.
    pub write: bool,
    /// `create`, `update` and `delete_with_version` compare and swap atomically.
    pub compare_and_swap: bool,
    /// Several writes can take effect all or none
    /// ([`Atomicity::All`](crate::Atomicity::All)).
    pub atomic_writes: bool,
    /// Stores can be watched.
    pub watch: bool,
    /// A watch can be resumed from a cursor.
    pub watch_resume: bool,
    /// A version is a number ([`VersionToken::as_u64`](crate::VersionToken::as_u64)), and the
    /// position of its write in the cursors of watches
    /// ([`WatchCursor::position`](crate::WatchCursor::position)). Versions are therefore ordered
    /// across keys.
    pub ordered_versions: bool,
    /// Maximum number of versions of a key that a store can keep; 1 is the newest only.
    pub max_history: u8,
    /// Stores can have a maximum age, after which values expire.
    pub max_age: bool,
    /// Single keys can be given a time to live ([`Store::ttl`](crate::Store::ttl)).
    pub key_ttl: bool,
    /// Writes can carry a fencing token, by which the writes of a holder that has lost its lock are
    /// rejected ([`Store::fenced`](crate::Store::fenced)). Stores with a maximum age do not have
    /// it.
    pub fenced_writes: bool,
    /// A value that expires arrives at watches and leaves a tombstone. On NATS, with a history
    /// above 1, a value to which another client gave a time to live is an exception. It ends
    /// without a marker, and the previous value is back (ADR-48).
    pub expiry_events: bool,
    /// [`ReadConsistency::Leader`](crate::ReadConsistency::Leader) is honoured: a store opened with
    /// it reads its own writes.
    pub leader_reads: bool,
    /// A read from the replica that decides writes never misses a write that was acknowledged or
    /// delivered to a watch. A NATS bucket with several replicas does not have it, because a
    /// replaced leader may still answer for a moment: a connection claims it if one of its stores
    /// can have it. The suite cannot verify it.
    pub linearizable_reads: bool,
    /// Values survive the end of the process that wrote them.
    pub persistent: bool,
    /// Other processes may write to the same stores meanwhile; with a server, also those of other
    /// machines. A folder claims it with `shared=true` only.
    pub shared: bool,
}
