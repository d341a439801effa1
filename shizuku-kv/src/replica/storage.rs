//! What a replica keeps, and where: the trait for it.

use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use crate::store::{Key, KvError, KvUpdate, VersionToken, WatchCursor, WatchScope};

/// Where a replica keeps what it holds of a bucket: for each key at least its version and time, for the whole the
/// place from which it goes on.
///
/// [`LogStorage`](crate::replica::LogStorage) keeps a state in memory and in a log,
/// [`MemoryStorage`](crate::replica::MemoryStorage) only keys and versions in memory, `RedbStorage` (feature `local`)
/// states that are larger than memory. Who keeps the state in a database of their own implements this over it: then
/// state, versions and place become durable together there, and `apply` has nothing to do. The module
/// `conformance::storage` (feature `conformance`) checks an implementation.
///
/// All methods may block; a replica calls them where that is allowed, one at a time. None of them is called with keys
/// twice in one call of [`held`](Self::held), but [`commit`](Self::commit) may get several changes of one key, of which
/// the last one counts.
pub trait ReplicaStorage: Send + 'static {
    /// The place of the last commit; `None` where there was none, or where it was without a place.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn place(&self) -> Result<Option<ReplicaPlace>, StorageError>;

    /// Whether no key is held.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn is_empty(&self) -> Result<bool, StorageError>;

    /// Number of held keys. The default visits all of them. Implement it if the storage knows the
    /// number, because a replica requests it at each comparison with the store.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn len(&self) -> Result<u64, StorageError> {
        let mut keys = 0;
        self.for_each_key(&mut |_, _| keys += 1)?;
        Ok(keys)
    }

    /// What is held of each of these keys, in their order.
    ///
    /// # Errors
    /// Returns the error of the storage.
    fn held(&self, keys: &[Key]) -> Result<Vec<Option<Held>>, StorageError>;

    /// Calls `visit` once for each key that is held, in any order.
    ///
    /// # Errors
    /// What is in the way; some keys may have been visited.
    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, Held)) -> Result<(), StorageError>;

    /// Takes these changes, in their order, and the place with them: after a crash both are there or neither is. A
    /// [`KvUpdate::Put`] is held from then on, whatever was held before, also where its version is smaller; a
    /// [`KvUpdate::Delete`] ends what was held, if anything was; [`KvUpdate::CaughtUp`] changes nothing.
    ///
    /// Without a place the replica is in the middle of a repair: what is held is not what the bucket had at any one
    /// moment, and [`place`](Self::place) is `None` until the next commit that has one.
    ///
    /// # Errors
    /// Returns the error of the storage. Nothing has been taken then, so that the same call can be
    /// made again.
    fn commit(
        &mut self,
        changes: &[KvUpdate],
        place: Option<&ReplicaPlace>,
    ) -> Result<(), StorageError>;

    /// Ends what dropping the storage would do later or in the background; it is dropped next, and nothing else is called.
    /// Does nothing unless it is implemented.
    ///
    /// # Errors
    /// What was in the way: something that was committed may not be durable.
    fn close(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// For a storage that is chosen at run time.
impl<S: ReplicaStorage + ?Sized> ReplicaStorage for Box<S> {
    fn place(&self) -> Result<Option<ReplicaPlace>, StorageError> {
        (**self).place()
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        (**self).is_empty()
    }

    fn len(&self) -> Result<u64, StorageError> {
        (**self).len()
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<Held>>, StorageError> {
        (**self).held(keys)
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, Held)) -> Result<(), StorageError> {
        (**self).for_each_key(visit)
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        place: Option<&ReplicaPlace>,
    ) -> Result<(), StorageError> {
        (**self).commit(changes, place)
    }

    fn close(&mut self) -> Result<(), StorageError> {
        (**self).close()
    }
}

/// What is held of a key, apart from its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The version of the value.
    pub version: VersionToken,
    /// When the store took it, by the store's clock. Together with the version it tells a value from all others of its
    /// key, also where the bucket was made again and counts from the start.
    pub created: SystemTime,
}

impl Held {
    /// A version and its time.
    pub fn new(version: VersionToken, created: SystemTime) -> Self {
        Self { version, created }
    }
}

/// From where a replica goes on: everything up to a cursor has been applied, of everything in a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPlace {
    cursor: WatchCursor,
    /// The scope, then the number of tombstones.
    tag: [u8; 16],
}

/// Tells scopes apart.
pub(crate) type ScopeId = [u8; 8];

impl ReplicaPlace {
    /// The length of the byte form.
    pub const LEN: usize = WatchCursor::LEN + 16;

    /// A place with its scope tag, as a storage persists both.
    pub(crate) fn new(cursor: WatchCursor, tag: [u8; 16]) -> Self {
        Self { cursor, tag }
    }

    /// A place in a scope, with the number of the store's tombstones up to there, if it is known.
    pub(crate) fn of(cursor: WatchCursor, scope: ScopeId, tombstones: Option<u64>) -> Self {
        let mut tag = [0; 16];
        let (first, second) = tag.split_at_mut(8);
        first.copy_from_slice(&scope);
        second.copy_from_slice(&tombstones.unwrap_or(UNKNOWN).to_be_bytes());
        Self { cursor, tag }
    }

    /// The position in the bucket's changes.
    pub fn cursor(&self) -> WatchCursor {
        self.cursor
    }

    pub(crate) fn scope(&self) -> ScopeId {
        let [scope @ .., _, _, _, _, _, _, _, _] = self.tag;
        scope
    }

    /// Number of tombstones that the store has in scope, up to the cursor; `None` if unknown.
    /// Places of earlier versions have an arbitrary number here, with which no figures of a store
    /// agree.
    pub(crate) fn tombstones(&self) -> Option<u64> {
        let [_, _, _, _, _, _, _, _, number @ ..] = self.tag;
        Some(u64::from_be_bytes(number)).filter(|number| *number != UNKNOWN)
    }

    /// The form in which a log stores the scope and the number.
    pub(crate) fn tag(&self) -> [u8; 16] {
        self.tag
    }

    /// The byte form, to be stored with the state.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (cursor, scope) = bytes.split_at_mut(WatchCursor::LEN);
        cursor.copy_from_slice(&self.cursor.to_bytes());
        scope.copy_from_slice(&self.tag);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`KvError::InvalidCursor`] for anything else, as far as the cursor tells: the rest has no checksum of its own.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KvError> {
        let Some((cursor, scope)) = bytes.split_first_chunk::<{ WatchCursor::LEN }>() else {
            return Err(KvError::InvalidCursor { reason: "too short" });
        };
        let tag =
            scope.try_into().map_err(|_| KvError::InvalidCursor { reason: "wrong length" })?;
        Ok(Self { cursor: WatchCursor::from_bytes(cursor)?, tag })
    }
}

/// Stands for an unknown number of tombstones.
const UNKNOWN: u64 = u64::MAX;

/// What stands for a scope in a place: another scope has another one, and the same one the same in every run.
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

/// Why a storage could not do what it was asked to. Says what failed, never a value.
#[derive(Debug)]
pub struct StorageError {
    retryable: bool,
    source: Box<dyn Error + Send + Sync>,
}

impl StorageError {
    /// An error after which trying the same again can help: a full disk, a lock that is held.
    pub fn retryable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { retryable: true, source: source.into() }
    }

    /// An error that trying again cannot mend.
    pub fn fatal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { retryable: false, source: source.into() }
    }

    /// Whether trying the same again can help.
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
        // Its text is this one's already.
        self.source.source()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_told_apart_and_stay_the_same() {
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
        // Places on disk depend on it; the value is that of the RFC.
        assert_eq!(fnv(b"a".iter().copied()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_place_goes_through_bytes_and_nothing_else_is_read() {
        let cursor = WatchCursor::new([7; 16], 42, SystemTime::UNIX_EPOCH);
        let scope = scope_id(&WatchScope::prefix("a."));
        for tombstones in [None, Some(0), Some(7), Some(u64::MAX - 1)] {
            let place = ReplicaPlace::of(cursor, scope, tombstones);
            assert_eq!((place.scope(), place.tombstones()), (scope, tombstones));
        }
        let place = ReplicaPlace::of(cursor, scope, Some(7));
        let bytes = place.to_bytes();
        assert_eq!(ReplicaPlace::from_bytes(&bytes).unwrap(), place);
        for length in 0..bytes.len() {
            assert!(ReplicaPlace::from_bytes(&bytes[..length]).is_err());
        }
        for bit in 0..WatchCursor::LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(ReplicaPlace::from_bytes(&damaged).is_err(), "bit {bit}");
        }
    }
}
