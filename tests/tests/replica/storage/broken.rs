//! Storages that break the trait's guarantees, each in one way, to test the suite.
//!
//! [`Broken`] wraps any storage, and with [`Fault::None`] it behaves like the wrapped one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use shizuku_kv::replica::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
use shizuku_kv::{Key, KvEntry, KvUpdate, VersionToken};

/// A way to break the guarantees. From `ForgetsAll` to `OpensOnce` the fault shows when the
/// storage is reopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    None,

    BeginsWithSomething,
    NeverEmptyAgain,
    AlwaysEmpty,
    CountsDeleted,
    HeldSorted,
    HeldLeavesOut,
    /// Answers for 1,000 keys at most.
    HeldIsShort,
    /// Repeats the answer of the previous key for a key that is not held.
    HeldRepeats,
    VisitsTwice,
    VisitsTooFew,
    VisitsDeleted,
    /// Swaps the times of creation of neighbouring keys.
    VisitsMixedUp,

    KeepsGreaterVersions,
    /// Keeps an entry with the same version, whatever its time.
    KeepsSameVersions,
    KeepsTheFirst,
    IgnoresDeletions,
    /// Ignores deletions by purging and expiry.
    IgnoresExpiry,
    /// Ignores deletions with a version below that of the held entry.
    IgnoresOldDeletions,
    DeletesChildren,
    DeletionNeedsKey,
    DeletesForEver,
    FirstChangeCounts,
    DeletionsFirst,
    StopsAtMarker,
    ForgetsAtMarker,
    IgnoresEmptyCommits,
    /// Applies only 4,096 changes of a commit.
    ShortCommits,
    /// Holds at most 5,000 keys.
    FewKeys,

    EmptyIsDeleted,
    /// Rejects values over 1,000,000 bytes.
    SmallValues,
    CutsAtZero,
    /// Keeps the value of the first put.
    KeepsValues,
    WholeSeconds,
    TimesAfter1970,
    /// Keeps only times that fit into 64 bits of nanoseconds.
    TimesIn64Bits,
    NumericVersions,
    PaddedVersions,
    /// Truncates keys at 255 bytes.
    ShortKeys,
    IgnoresCase,

    KeepsCheckpoint,
    FirstCheckpoint,
    CheckpointsNeverGoBack,
    CheckpointsWithoutScope,
    NoCheckpoint,

    ForgetsAll,
    ForgetsCheckpoint,
    ForgetsLastCheckpoint,
    ForgetsDeletions,
    ForgetsLastCommit,
    /// A checkpoint is present when it is reopened, although the last commit was without one.
    FindsCheckpointAgain,
    LosesOneAtOpening,
    /// Reopening it twice in a row loses everything.
    OpensOnce,
    OneForAll,
}

/// The disk content of the tests' storages, by name.
pub(crate) type Disk = Arc<Mutex<HashMap<String, Content>>>;

/// The content of one storage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    entries: BTreeMap<Key, KvEntry>,
    deleted: BTreeMap<Key, KvEntry>,
    checkpoint: Option<Checkpoint>,
    last_checkpoint: Option<Checkpoint>,
    before: Option<Box<Content>>,
    has_committed: bool,
    openings_in_a_row: u32,
}

/// A durable storage in memory that breaks the guarantees.
#[derive(Debug)]
pub(crate) struct Broken {
    fault: Fault,
    name: String,
    disk: Disk,
    content: Content,
}

impl Broken {
    pub(crate) fn open(fault: Fault, name: String, disk: Disk) -> Self {
        let name = if fault == Fault::OneForAll { String::new() } else { name };
        let found = disk.lock().unwrap().get(&name).cloned();
        let is_again = found.is_some();
        let mut content = found.unwrap_or_default();
        if is_again {
            content.openings_in_a_row += 1;
            content = damaged_by_opening(fault, content);
        }
        if fault == Fault::BeginsWithSomething && !is_again {
            let entry = KvEntry::put(
                Key::new("a.key").unwrap(),
                "".into(),
                VersionToken::from_u64(1),
                SystemTime::UNIX_EPOCH,
            );
            content.entries.insert(entry.key.clone(), entry);
        }
        disk.lock().unwrap().insert(name.clone(), content.clone());
        Self { fault, name, disk, content }
    }

    /// Returns the entry that a reader finds.
    pub(crate) fn entry(&self, key: &Key) -> Option<KvEntry> {
        self.content.entries.get(&self.key(key)).cloned().map(|mut entry| {
            entry.key = key.clone();
            entry
        })
    }

    /// Returns the key as it is stored.
    fn key(&self, key: &Key) -> Key {
        match self.fault {
            Fault::ShortKeys => {
                Key::new(&key[..key.len().min(255)]).unwrap_or_else(|_| key.clone())
            }
            Fault::IgnoresCase => Key::new(key.to_ascii_lowercase()).unwrap(),
            _ => key.clone(),
        }
    }

    fn held_of(&self, key: &Key) -> Option<StoredVersion> {
        self.content
            .entries
            .get(&self.key(key))
            .map(|entry| StoredVersion::new(entry.version, entry.created))
    }

    fn put(&mut self, entry: &KvEntry) -> Result<(), StorageError> {
        let fault = self.fault;
        let mut entry = entry.clone();
        entry.key = self.key(&entry.key);
        let held = self.content.entries.get(&entry.key);
        let is_refused = match (fault, held) {
            (Fault::KeepsGreaterVersions, Some(held)) => {
                held.version.as_u64() > entry.version.as_u64()
            }
            (Fault::KeepsSameVersions, Some(held)) => held.version == entry.version,
            (Fault::KeepsTheFirst, Some(_)) => true,
            (Fault::DeletesForEver, _) => self.content.deleted.contains_key(&entry.key),
            (Fault::FewKeys, None) => self.content.entries.len() >= 5000,
            _ => false,
        };
        if is_refused {
            return Ok(());
        }
        match fault {
            Fault::EmptyIsDeleted if entry.value.is_empty() => {
                self.content.entries.remove(&entry.key);
                return Ok(());
            }
            Fault::SmallValues if entry.value.len() > 1_000_000 => {
                return Err(StorageError::fatal("the value is too large"));
            }
            Fault::CutsAtZero => {
                let end =
                    entry.value.iter().position(|byte| *byte == 0).unwrap_or(entry.value.len());
                entry.value.truncate(end);
            }
            Fault::KeepsValues => {
                if let Some(held) = held {
                    entry.value = held.value.clone();
                }
            }
            Fault::WholeSeconds | Fault::TimesAfter1970 | Fault::TimesIn64Bits => {
                entry.created = damaged_time(fault, entry.created);
            }
            Fault::NumericVersions => {
                let number = entry.version.as_u64().unwrap_or(0);
                entry.version = VersionToken::from_u64(number);
            }
            Fault::PaddedVersions if entry.version.as_u64().is_none() => {
                let mut bytes = entry.version.to_bytes().split_off(1);
                bytes.resize(VersionToken::MAX_LEN, 0);
                entry.version = VersionToken::opaque(&bytes).unwrap();
            }
            _ => {}
        }
        self.content.deleted.remove(&entry.key);
        self.content.entries.insert(entry.key.clone(), entry);
        Ok(())
    }

    fn delete(&mut self, entry: &KvEntry) -> Result<(), StorageError> {
        let key = self.key(&entry.key);
        let held = self.content.entries.get(&key);
        let is_ignored = match self.fault {
            Fault::IgnoresDeletions => true,
            Fault::IgnoresExpiry => entry.operation != shizuku_kv::KvOperation::Delete,
            Fault::IgnoresOldDeletions => {
                held.is_some_and(|held| held.version.as_u64() > entry.version.as_u64())
            }
            _ => false,
        };
        if is_ignored {
            return Ok(());
        }
        if self.fault == Fault::DeletionNeedsKey && held.is_none() {
            return Err(StorageError::fatal("the key is not held"));
        }
        if self.fault == Fault::DeletesChildren {
            self.content.entries.retain(|held, _| !held.starts_with(key.as_str()));
        }
        if let Some(held) = self.content.entries.remove(&key) {
            self.content.deleted.insert(key, held);
        }
        Ok(())
    }

    /// Returns the changes in the order in which they are applied.
    fn ordered(&self, changes: &[KvUpdate]) -> Vec<KvUpdate> {
        let mut changes = changes.to_vec();
        match self.fault {
            Fault::FirstChangeCounts => changes.reverse(),
            Fault::DeletionsFirst => {
                changes.sort_by_key(|change| matches!(change, KvUpdate::Put(_)))
            }
            Fault::ShortCommits => changes.truncate(4096),
            Fault::StopsAtMarker => {
                let marker = changes.iter().position(|change| matches!(change, KvUpdate::CaughtUp));
                changes.truncate(marker.unwrap_or(changes.len()));
            }
            _ => {}
        }
        changes
    }

    fn next_checkpoint(&self, checkpoint: Option<&Checkpoint>) -> Option<Checkpoint> {
        let before = self.content.checkpoint;
        let checkpoint = checkpoint.copied();
        match self.fault {
            Fault::KeepsCheckpoint => checkpoint.or(before),
            Fault::FirstCheckpoint => before.or(checkpoint),
            Fault::CheckpointsNeverGoBack => match (before, checkpoint) {
                (Some(before), Some(checkpoint))
                    if checkpoint.cursor().position() < before.cursor().position() =>
                {
                    Some(before)
                }
                _ => checkpoint,
            },
            Fault::CheckpointsWithoutScope => checkpoint.map(|checkpoint| {
                let mut bytes = checkpoint.to_bytes();
                bytes[Checkpoint::LEN - 16..].fill(0);
                Checkpoint::from_bytes(&bytes).unwrap()
            }),
            Fault::NoCheckpoint => None,
            _ => checkpoint,
        }
    }
}

fn damaged_time(fault: Fault, time: SystemTime) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH;
    match (fault, time.duration_since(epoch)) {
        (Fault::WholeSeconds, Ok(since)) => epoch + Duration::from_secs(since.as_secs()),
        (Fault::TimesAfter1970, Err(_)) => epoch,
        (Fault::TimesIn64Bits, Ok(since)) => epoch + Duration::from_nanos(since.as_nanos() as u64),
        _ => time,
    }
}

fn damaged_by_opening(fault: Fault, mut content: Content) -> Content {
    match fault {
        Fault::ForgetsAll => content = Content::default(),
        Fault::OpensOnce if content.openings_in_a_row > 1 => content = Content::default(),
        Fault::ForgetsCheckpoint => content.checkpoint = None,
        Fault::ForgetsLastCheckpoint => {
            content.checkpoint = content.before.as_ref().and_then(|before| before.checkpoint)
        }
        Fault::ForgetsDeletions => content.entries.append(&mut content.deleted),
        Fault::ForgetsLastCommit => {
            if let Some(before) = content.before.take() {
                let checkpoint = content.checkpoint;
                content = *before;
                content.checkpoint = checkpoint;
            }
        }
        Fault::FindsCheckpointAgain => {
            content.checkpoint = content.checkpoint.or(content.last_checkpoint);
        }
        Fault::LosesOneAtOpening => drop(content.entries.pop_last()),
        _ => {}
    }
    content
}

impl ReplicaStorage for Broken {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        Ok(self.content.checkpoint)
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(match self.fault {
            Fault::NeverEmptyAgain => !self.content.has_committed,
            Fault::AlwaysEmpty => true,
            _ => self.content.entries.is_empty(),
        })
    }

    fn len(&self) -> Result<u64, StorageError> {
        let deleted =
            if self.fault == Fault::CountsDeleted { self.content.deleted.len() } else { 0 };
        Ok((self.content.entries.len() + deleted) as u64)
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        let mut keys = keys.to_vec();
        match self.fault {
            Fault::HeldSorted => keys.sort(),
            Fault::HeldIsShort => keys.truncate(1000),
            _ => {}
        }
        let mut answers = keys.iter().map(|key| self.held_of(key)).collect::<Vec<_>>();
        match self.fault {
            Fault::HeldLeavesOut => answers.retain(Option::is_some),
            Fault::HeldRepeats => {
                for index in 1..answers.len() {
                    answers[index] = answers[index].or(answers[index - 1]);
                }
            }
            _ => {}
        }
        Ok(answers)
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        let mut all = self.content.entries.values().cloned().collect::<Vec<_>>();
        match self.fault {
            Fault::VisitsTwice => all.extend(all.first().cloned()),
            Fault::VisitsTooFew => drop(all.pop()),
            Fault::VisitsDeleted => all.extend(self.content.deleted.values().cloned()),
            Fault::VisitsMixedUp => {
                for index in (1..all.len()).rev() {
                    all[index].created = all[index - 1].created;
                }
            }
            _ => {}
        }
        all.iter()
            .for_each(|entry| visit(&entry.key, StoredVersion::new(entry.version, entry.created)));
        Ok(())
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        if self.fault == Fault::IgnoresEmptyCommits && changes.is_empty() {
            return Ok(());
        }
        let before = Content { before: None, ..self.content.clone() };
        for change in self.ordered(changes) {
            match change {
                KvUpdate::Put(entry) => self.put(&entry)?,
                KvUpdate::Delete(entry) => self.delete(&entry)?,
                KvUpdate::CaughtUp if self.fault == Fault::ForgetsAtMarker => {
                    self.content.entries.clear()
                }
                _ => {}
            }
        }
        self.content.checkpoint = self.next_checkpoint(checkpoint);
        self.content.last_checkpoint = self.content.checkpoint.or(self.content.last_checkpoint);
        self.content.before = Some(Box::new(before));
        self.content.has_committed = true;
        self.content.openings_in_a_row = 0;
        self.disk.lock().unwrap().insert(self.name.clone(), self.content.clone());
        Ok(())
    }
}
