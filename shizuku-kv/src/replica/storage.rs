//! The trait for the stored state of a replica.

use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use crate::store::{Key, KvError, KvUpdate, VersionToken, WatchCursor, WatchScope};

/// The storage of a replica's state: at least version and time of each key, and the checkpoint from
/// which the replica resumes.
///
/// [`LogStorage`](crate::replica::LogStorage) keeps a state in memory and in a log.
/// [`MemoryStorage`](crate::replica::MemoryStorage) keeps only keys and versions in memory.
/// `RedbStorage` (feature `local`) keeps states that are larger than memory. To keep the state in a
/// database of your own, implement this trait over it. State, versions and checkpoint then become
/// durable together, and `apply` has nothing to do. The module `conformance::storage` (feature
/// `conformance`) checks an implementation.
///
/// All methods may block. A replica calls them in a blocking thread, one at a time. One call of
/// [`held`](Self::held) never repeats a key. [`commit`](Self::commit) may receive several changes
/// of one key, of which the last one counts.
pub trait ReplicaStorage: Send + 'static {
    /// Returns the checkpoint of the last commit. Returns `None` if nothing was committed, or the
    /// last commit had no checkpoint.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError>;

    /// Returns true if no key is held.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn is_empty(&self) -> Result<bool, StorageError>;

    /// Returns the number of held keys. The default visits all of them. Implement it if the storage
    /// knows the number, because a replica requests it at each comparison with the store.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn len(&self) -> Result<u64, StorageError> {
        let mut keys = 0;
        self.for_each_key(&mut |_, _| keys += 1)?;
        Ok(keys)
    }

    /// Returns the held version and time of each of these keys, in their order.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError>;

    /// Calls `visit` once for each held key, in any order.
    ///
    /// # Errors
    /// Returns the error of the storage. Some keys may have been visited.
    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError>;

    /// Commits these changes in their order, together with the checkpoint: after a crash either
    /// both exist or neither. A [`KvUpdate::Put`] becomes the held entry, whatever was held before,
    /// even if its version is smaller. A [`KvUpdate::Delete`] removes the held entry, if any.
    /// [`KvUpdate::CaughtUp`] changes nothing.
    ///
    /// `None` means that the replica is in a resync. The held state is then not the state of the
    /// store at any one moment, and [`checkpoint`](Self::checkpoint) is `None` until the next
    /// commit with a checkpoint.
    ///
    /// # Errors
    /// Returns the error of the storage. Nothing was committed then, so that the same call can be
    /// repeated.
    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError>;

    /// Completes the work that dropping the storage would do later or in the background. The caller
    /// then drops the storage without another call. The default does nothing.
    ///
    /// # Errors
    /// Returns the error of the storage. Some commits may not be durable.
    fn close(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Implements the trait for a storage that is chosen at run time.
impl<S: ReplicaStorage + ?Sized> ReplicaStorage for Box<S> {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        (**self).checkpoint()
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        (**self).is_empty()
    }

    fn len(&self) -> Result<u64, StorageError> {
        (**self).len()
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        (**self).held(keys)
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        (**self).for_each_key(visit)
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        (**self).commit(changes, checkpoint)
    }

    fn close(&mut self) -> Result<(), StorageError> {
        (**self).close()
    }
}

/// The held data of a key, apart from its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredVersion {
    /// The version of the value.
    pub version: VersionToken,
    /// Time at which the store accepted the value, by the store's clock. Together with the version
    /// it distinguishes a value from all others of its key, even if the store was recreated and
    /// counts from the start.
    pub created: SystemTime,
}

impl StoredVersion {
    /// Returns a version and its time.
    pub fn new(version: VersionToken, created: SystemTime) -> Self {
        Self { version, created }
    }
}

/// The checkpoint from which a replica resumes: all updates of a scope up to a cursor have been
/// applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    cursor: WatchCursor,
    /// The scope, then the number of tombstones.
    tag: [u8; 16],
}

/// Distinguishes scopes.
pub(crate) type ScopeId = [u8; 8];

impl Checkpoint {
    /// Length of the byte form.
    pub const LEN: usize = WatchCursor::LEN + 16;

    /// Returns a checkpoint with its scope tag, as a storage persists both.
    pub(crate) fn new(cursor: WatchCursor, tag: [u8; 16]) -> Self {
        Self { cursor, tag }
    }

    /// Returns a checkpoint in a scope. `tombstones` is the number of the store's tombstones up to
    /// there, if it is known.
    pub(crate) fn of(cursor: WatchCursor, scope: ScopeId, tombstones: Option<u64>) -> Self {
        let mut tag = [0; 16];
        let (first, second) = tag.split_at_mut(8);
        first.copy_from_slice(&scope);
        second.copy_from_slice(&tombstones.unwrap_or(UNKNOWN).to_be_bytes());
        Self { cursor, tag }
    }

    /// Returns the cursor.
    pub fn cursor(&self) -> WatchCursor {
        self.cursor
    }

    pub(crate) fn scope(&self) -> ScopeId {
        let [scope @ .., _, _, _, _, _, _, _, _] = self.tag;
        scope
    }

    /// Returns the number of tombstones that the store has in scope, up to the cursor. Returns
    /// `None` if it is unknown. Checkpoints of earlier versions have an arbitrary number here, with
    /// which no figures of a store agree.
    pub(crate) fn tombstones(&self) -> Option<u64> {
        let [_, _, _, _, _, _, _, _, number @ ..] = self.tag;
        Some(u64::from_be_bytes(number)).filter(|number| *number != UNKNOWN)
    }

    /// Returns the form in which a log stores the scope and the number.
    pub(crate) fn tag(&self) -> [u8; 16] {
        self.tag
    }

    /// Returns the byte form, to be stored with the state.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (cursor, scope) = bytes.split_at_mut(WatchCursor::LEN);
        cursor.copy_from_slice(&self.cursor.to_bytes());
        scope.copy_from_slice(&self.tag);
        bytes
    }

    /// Reads the output of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// Returns [`KvError::InvalidCursor`] for any other bytes, as far as the cursor reveals it: the
    /// rest has no checksum of its own.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KvError> {
        let Some((cursor, scope)) = bytes.split_first_chunk::<{ WatchCursor::LEN }>() else {
            return Err(KvError::InvalidCursor { reason: "too short" });
        };
        let tag =
            scope.try_into().map_err(|_| KvError::InvalidCursor { reason: "wrong length" })?;
        Ok(Self { cursor: WatchCursor::from_bytes(cursor)?, tag })
    }
}

/// Marker of an unknown number of tombstones.
const UNKNOWN: u64 = u64::MAX;

/// Returns the identifier of a scope in a checkpoint. Different scopes have different identifiers,
/// and the same scope has the same one in every run.
pub(crate) fn scope_id(scope: &WatchScope) -> ScopeId {
    let (kind, mut parts) = match scope {
        WatchScope::All => (0, Vec::new()),
        WatchScope::Key(key) => (1, vec![key.as_str()]),
        WatchScope::Keys(keys) => (1, keys.iter().map(Key::as_str).collect()),
        WatchScope::Prefix(prefix) => (2, vec![prefix.as_str()]),
        WatchScope::Prefixes(prefixes) => (2, prefixes.iter().map(String::as_str).collect()),
    };
    parts.sort_unstable();
    parts.dedup();
    let lengths = parts.iter().map(|part| part.len() as u64);
    let lengths = lengths.flat_map(u64::to_be_bytes).collect::<Vec<_>>();
    let bytes = [kind].into_iter().chain(lengths).chain(parts.iter().flat_map(|part| part.bytes()));
    let [scope @ .., _, _, _, _, _, _, _, _] = fnv(bytes).to_be_bytes();
    scope
}

/// FNV-1a with 128 bits (Fowler, Noll, Vo; RFC 9923).
fn fnv(bytes: impl Iterator<Item = u8>) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// The error of a storage. Describes the failure, and never shows a value.
#[derive(Debug)]
pub struct StorageError {
    retryable: bool,
    source: Box<dyn Error + Send + Sync>,
}

impl StorageError {
    /// Returns an error after which a retry can help: a full disk, a lock that is held.
    pub fn retryable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { retryable: true, source: source.into() }
    }

    /// Returns an error after which a retry cannot help.
    pub fn fatal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { retryable: false, source: source.into() }
    }

    /// Returns true if a retry can help.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for StorageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The text of `source` is already the text of this error.
        self.source.source()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn scope_ids_differ_and_are_stable() {
        let scopes = [
            WatchScope::All,
            WatchScope::prefix(""),
            WatchScope::prefix("a."),
            WatchScope::prefix("ab"),
            WatchScope::prefixes(["a", "b"]),
            WatchScope::prefixes(["a.", "b"]),
            WatchScope::key("ab").unwrap(),
            WatchScope::key("a").unwrap(),
        ];
        for (number, one) in scopes.iter().enumerate() {
            for other in &scopes[..number] {
                assert_ne!(scope_id(one), scope_id(other), "{one:?} and {other:?}");
            }
        }
        assert_eq!(
            scope_id(&WatchScope::prefixes(["b", "a", "b"])),
            scope_id(&WatchScope::prefixes(["a", "b"]))
        );
        // Checkpoints on disk depend on it. The value is that of the RFC.
        assert_eq!(fnv(b"a".iter().copied()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn checkpoint_round_trips_and_damage_is_rejected() {
        let cursor = WatchCursor::new([7; 16], 42, SystemTime::UNIX_EPOCH);
        let scope = scope_id(&WatchScope::prefix("a."));
        for tombstones in [None, Some(0), Some(7), Some(u64::MAX - 1)] {
            let checkpoint = Checkpoint::of(cursor, scope, tombstones);
            assert_eq!((checkpoint.scope(), checkpoint.tombstones()), (scope, tombstones));
        }
        let checkpoint = Checkpoint::of(cursor, scope, Some(7));
        let bytes = checkpoint.to_bytes();
        assert_eq!(Checkpoint::from_bytes(&bytes).unwrap(), checkpoint);
        for length in 0..bytes.len() {
            assert!(Checkpoint::from_bytes(&bytes[..length]).is_err());
        }
        for bit in 0..WatchCursor::LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::from_bytes(&damaged).is_err(), "bit {bit}");
        }
    }
}
