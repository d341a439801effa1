//! Local copies of a store: each change is applied to a state of the caller's own, and a stored
//! checkpoint says exactly which changes were applied.
//!
//! A [`Replica`] watches a scope, collects updates into batches ([`BatchConfig`]), and passes each
//! batch to the caller's `apply`. Only after `apply` has returned, the replica commits the cursor
//! to its [storage](ReplicaStorage), together with the applied updates. After a crash at any
//! moment:
//!
//! - Everything up to the stored checkpoint was applied. Later updates are delivered again, so that
//!   `apply` may see an update twice. Applying it again must do no harm, as setting a key does
//!   none.
//! - The store delivers only the missed updates, and not its whole content.
//!
//! The replica resyncs if the store no longer has the updates after the checkpoint
//! ([`KvError::CursorExpired`]). It also resyncs if the store was deleted and recreated, or if the
//! scope has changed. It reads the initial state again and skips known entries. At the end it drops
//! the keys that the store no longer has, as deletions with the operation
//! [`KvOperation::Vanished`]. Until then the storage has no checkpoint. During a resync the replica
//! remembers some 40 bytes for each key.
//!
//! # Choosing a storage
//!
//! | the state that `apply` changes | its storage |
//! |---|---|
//! | in memory, rebuilt at each start | [`MemoryStorage`]: every start reads the whole state from the store |
//! | in memory, and there again after a restart | [`LogStorage`]: state and checkpoint in an append-only log |
//! | larger than memory | `RedbStorage`, feature `local` |
//! | in a database of your own | implement [`ReplicaStorage`] over it |
//!
//! The last line is a matter of correctness. A state that outlives the process in one place, and
//! the replica's storage in another, can diverge. The storage does not know the updates that were
//! applied but not committed before a crash. A resync therefore cannot find that one of them has
//! vanished. A state in memory ends with the crash and is rebuilt from the storage.
//!
//! # Exclusive use
//!
//! A storage belongs to one replica. The storages in this module reject a second opening.
//!
//! [`KvError::CursorExpired`]: crate::KvError::CursorExpired
//! [`KvOperation::Vanished`]: crate::KvOperation::Vanished

mod batch;
mod builder;
mod collect;
mod compare;
mod comparison;
mod error;
mod log;
mod memory;
#[cfg(test)]
mod model;
mod phase;
mod progress;
#[cfg(feature = "local")]
mod redb;
mod retry;
mod run;
mod stage;
mod start;
mod storage;
mod tally;
mod uncommitted;

/// Stops a replica. This is the type of `tokio_util`.
pub use tokio_util::sync::CancellationToken;

pub use batch::{Batch, BatchConfig, TypedBatch};
pub use builder::Replica;
pub use error::ReplicaError;
pub use log::{LogReader, LogStorage};
pub use memory::MemoryStorage;
pub use progress::{ReplicaMonitor, ReplicaProgress};
#[cfg(feature = "local")]
pub use redb::{RedbOptions, RedbReader, RedbScan, RedbStorage, RedbSync};
pub use retry::RetryPolicy;
pub use start::watch_applied;
pub use storage::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
