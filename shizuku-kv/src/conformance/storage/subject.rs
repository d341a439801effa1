//! The subject of a check: a storage, and beside it a map with its expected content.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use tokio::runtime::Handle;

use crate::conformance::{CheckFailure, CheckResult};
use crate::replica::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
use crate::store::{Key, KvEntry, KvOperation, KvUpdate, VersionToken, WatchCursor};

/// Opens the storage of a name.
pub(super) type Open<S> =
    Arc<dyn Fn(String) -> BoxFuture<'static, Result<S, StorageError>> + Send + Sync>;

/// Reads an entry.
pub(super) type ReadEntry<S> =
    Arc<dyn Fn(&S, &Key) -> Result<Option<KvEntry>, StorageError> + Send + Sync>;

/// A storage of any type.
pub(super) trait Opened: Send {
    fn storage(&self) -> &dyn ReplicaStorage;

    fn storage_mut(&mut self) -> &mut dyn ReplicaStorage;

    /// Returns the entry of a key. Returns `None` if the suite cannot read entries.
    fn entry(&self, key: &Key) -> Option<Result<Option<KvEntry>, StorageError>>;
}

/// The functions and properties that the suite was given.
#[derive(Clone)]
pub(super) struct SuiteSettings {
    pub(super) open: Open<Box<dyn Opened>>,
    pub(super) durable: bool,
    pub(super) reads: bool,
    pub(super) seed: u64,
    pub(super) histories: usize,
}

/// Opens storages for a check. [`StorageSuite`](super::StorageSuite) makes one for each check.
pub struct StorageFixture {
    settings: SuiteSettings,
    runtime: Handle,
    run: u64,
    names: AtomicUsize,
    step: Mutex<String>,
}

impl StorageFixture {
    /// Must be called in a runtime, which then opens the storages.
    pub(super) fn new(settings: SuiteSettings) -> Self {
        Self {
            settings,
            runtime: Handle::current(),
            run: fastrand::u64(..),
            names: AtomicUsize::new(0),
            step: Mutex::default(),
        }
    }

    pub(super) fn is_durable(&self) -> bool {
        self.settings.durable
    }

    /// Returns whether the suite can read values.
    pub(super) fn reads(&self) -> bool {
        self.settings.reads
    }

    pub(super) fn seed(&self) -> u64 {
        self.settings.seed
    }

    pub(super) fn histories(&self) -> usize {
        self.settings.histories
    }

    /// Records the current step of the check, for the report of a failure.
    pub(super) fn step(&self, step: impl Into<String>) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step.into();
    }

    pub(super) fn at_last_step(&self, failure: CheckFailure) -> CheckFailure {
        let step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        if step.is_empty() {
            return failure;
        }
        CheckFailure::new(format!("{failure}; the check stood at: {step}"))
    }

    /// Opens a new storage.
    pub(super) fn storage(&self) -> CheckResult<Subject<'_>> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let name = format!("conformance-{:016x}-{number}", self.run);
        let opened = self.open(&name)?;
        Ok(Subject {
            fixture: self,
            name,
            opened: Some(opened),
            entries: BTreeMap::new(),
            checkpoint: None,
        })
    }

    fn open(&self, name: &str) -> CheckResult<Box<dyn Opened>> {
        let opened = self.runtime.block_on((self.settings.open)(name.to_owned()));
        opened
            .map_err(|error| CheckFailure::new(format!("the storage could not be opened: {error}")))
    }
}

impl fmt::Debug for StorageFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageFixture")
            .field("durable", &self.settings.durable)
            .finish_non_exhaustive()
    }
}

/// A storage and its expected content.
pub(super) struct Subject<'a> {
    fixture: &'a StorageFixture,
    name: String,
    /// `None` only while it is reopened.
    opened: Option<Box<dyn Opened>>,
    entries: BTreeMap<Key, KvEntry>,
    checkpoint: Option<Checkpoint>,
}

impl Subject<'_> {
    fn opened(&self) -> CheckResult<&dyn Opened> {
        match &self.opened {
            Some(opened) => Ok(opened.as_ref()),
            None => Err(CheckFailure::new("the storage is not open")),
        }
    }

    /// Returns the storage itself.
    pub(super) fn storage(&self) -> CheckResult<&dyn ReplicaStorage> {
        Ok(self.opened()?.storage())
    }

    /// Commits these changes to the storage and to the map.
    pub(super) fn commit(
        &mut self,
        changes: impl AsRef<[KvUpdate]>,
        checkpoint: Option<Checkpoint>,
    ) -> CheckResult {
        let changes = changes.as_ref();
        let Some(opened) = &mut self.opened else {
            return Err(CheckFailure::new("the storage is not open"));
        };
        let committed = opened.storage_mut().commit(changes, checkpoint.as_ref());
        committed.map_err(|error| CheckFailure::new(format!("a commit failed: {error}")))?;
        for change in changes {
            match change {
                KvUpdate::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry.clone())),
                KvUpdate::Delete(entry) => drop(self.entries.remove(&entry.key)),
                KvUpdate::CaughtUp => {}
            }
        }
        self.checkpoint = checkpoint;
        Ok(())
    }

    /// Commits, and checks that the content is as expected. `what` names the changes.
    pub(super) fn takes(
        &mut self,
        changes: impl AsRef<[KvUpdate]>,
        checkpoint: Option<Checkpoint>,
        what: &str,
    ) -> CheckResult {
        self.commit(changes, checkpoint)?;
        self.verify(&format!("after {what}"))
    }

    /// Drops and reopens the storage, and checks that the content is unchanged.
    pub(super) fn reopen(&mut self) -> CheckResult {
        self.opened = None;
        self.opened = Some(self.fixture.open(&self.name)?);
        self.verify("opened again")
    }

    /// Compares everything that the storage can return with the map.
    pub(super) fn verify(&self, when: &str) -> CheckResult {
        let opened = self.opened()?;
        let storage = opened.storage();
        ensure_eq!(storage.checkpoint()?, self.checkpoint, "{when}: the checkpoint");
        ensure_eq!(storage.is_empty()?, self.entries.is_empty(), "{when}: whether it is empty");
        ensure_eq!(storage.len()?, self.entries.len() as u64, "{when}: how many keys are held");
        self.verify_visits(storage, when)?;
        self.verify_held(storage, when)?;
        if self.fixture.settings.reads {
            // Compares only some of very many entries, because each is read separately.
            for (key, expected) in self.entries.iter().step_by(1 + self.entries.len() / 1000) {
                let found = read(opened, key)?;
                let is_same = found.as_ref() == Some(expected);
                ensure!(
                    is_same,
                    "{when}: the entry of {key}: expected {expected:?}, found {found:?}"
                );
            }
        }
        Ok(())
    }

    fn verify_visits(&self, storage: &dyn ReplicaStorage, when: &str) -> CheckResult {
        let mut visited = BTreeMap::new();
        let mut twice = None;
        storage.for_each_key(&mut |key, held| {
            if visited.insert(key.clone(), held).is_some() {
                twice.get_or_insert_with(|| key.clone());
            }
        })?;
        ensure!(twice.is_none(), "{when}: for_each_key visits {twice:?} twice");
        for (key, entry) in &self.entries {
            let expected = held(entry);
            let found = visited.remove(key);
            ensure_eq!(found, Some(expected), "{when}: what for_each_key says of {key}");
        }
        let too_many = visited.first_key_value();
        ensure!(
            too_many.is_none(),
            "{when}: for_each_key visits a key that is not held: {too_many:?}"
        );
        Ok(())
    }

    /// Requests the keys backwards, in one call, with keys between them that are not held.
    fn verify_held(&self, storage: &dyn ReplicaStorage, when: &str) -> CheckResult {
        let mut asked = vec![key_of("not.held")?];
        for (number, key) in self.entries.keys().rev().enumerate() {
            asked.push(key.clone());
            if number % 3 == 0 {
                asked.push(key_of(&format!("not.held.{number}"))?);
            }
        }
        asked.retain(|key| !key.starts_with("not.held") || !self.entries.contains_key(key));
        let answers = storage.held(&asked)?;
        ensure_eq!(answers.len(), asked.len(), "{when}: how many answers held gives");
        for (key, found) in asked.iter().zip(answers) {
            let expected = self.entries.get(key).map(held);
            ensure_eq!(found, expected, "{when}: what held says of {key}");
        }
        Ok(())
    }

    pub(super) fn is_durable(&self) -> bool {
        self.fixture.is_durable()
    }

    /// Returns the entry of a key, if the suite can read it.
    pub(super) fn entry(&self, key: &Key) -> CheckResult<Option<KvEntry>> {
        read(self.opened()?, key)
    }

    /// Iterates over the keys that must be held, in their order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }
}

fn read(opened: &dyn Opened, key: &Key) -> CheckResult<Option<KvEntry>> {
    match opened.entry(key) {
        Some(entry) => Ok(entry?),
        None => Err(CheckFailure::new("the suite was given no way to read values")),
    }
}

/// Returns the expected `StoredVersion` of an entry.
pub(super) fn held(entry: &KvEntry) -> StoredVersion {
    StoredVersion::new(entry.version, entry.created)
}

pub(super) fn key_of(key: &str) -> CheckResult<Key> {
    Ok(Key::new(key)?)
}

/// Returns a moment with all the digits that a clock has.
pub(super) fn time(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000 + number, 123_456_700)
}

/// Returns a put of a small value, with a version and a time from this number.
pub(super) fn put(key: &str, number: u64) -> CheckResult<KvUpdate> {
    let value = Bytes::from(format!("value {number}"));
    Ok(KvUpdate::Put(KvEntry::put(
        key_of(key)?,
        value,
        VersionToken::from_u64(number),
        time(number),
    )))
}

/// Returns a deletion, with a version and a time from this number.
pub(super) fn delete(key: &str, number: u64) -> CheckResult<KvUpdate> {
    let version = VersionToken::from_u64(number);
    Ok(KvUpdate::Delete(KvEntry::tombstone(
        key_of(key)?,
        KvOperation::Delete,
        version,
        time(number),
    )))
}

/// Returns a checkpoint at a position, in one of several scopes.
pub(super) fn checkpoint(position: u64, scope: u8) -> Checkpoint {
    Checkpoint::new(WatchCursor::new([7; 16], position, time(position % 1_000_000)), [scope; 16])
}
