//! A storage that outlives its replica, as a file does, keeps a journal, and fails or blocks on
//! request.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shizuku_kv::replica::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
use shizuku_kv::{Key, KvUpdate, WatchCursor};

use crate::support::word;

/// Timeout for a method that the test blocks.
const PATIENCE: Duration = Duration::from_secs(20);

/// A commit that has succeeded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Commit {
    pub(crate) words: Vec<String>,
    pub(crate) checkpoint: Option<Checkpoint>,
}

#[derive(Default)]
struct Contents {
    held: BTreeMap<Key, (StoredVersion, Bytes)>,
    checkpoint: Option<Checkpoint>,
    commits: Vec<Commit>,
    calls: Vec<&'static str>,
}

/// Called before each method, with its name.
type Hook = Box<dyn FnMut(&'static str) -> Result<(), StorageError> + Send>;

/// Clones have the same contents.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    contents: Arc<Mutex<Contents>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("held", &self.words()).finish_non_exhaustive()
    }
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    /// Installs a hook that is called before each method.
    pub(crate) fn hook(
        &self,
        hook: impl FnMut(&'static str) -> Result<(), StorageError> + Send + 'static,
    ) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Blocks each call of a method until the test sends, or drops the sender.
    pub(crate) fn gate(&self, method: &'static str) -> Sender<()> {
        let (open, gate) = std::sync::mpsc::channel();
        self.hook(move |called| {
            let waits = called == method;
            let is_late = waits && gate.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
            assert!(!is_late, "the test does not let {method} go on");
            Ok(())
        });
        open
    }

    /// Makes a method fail this many times.
    pub(crate) fn fail(
        &self,
        method: &'static str,
        mut times: usize,
        error: fn(&'static str) -> StorageError,
    ) {
        self.hook(move |called| {
            if called == method && times > 0 {
                times -= 1;
                return Err(error("the disk is full"));
            }
            Ok(())
        });
    }

    /// Returns the held entries: `key=value`.
    pub(crate) fn words(&self) -> Vec<String> {
        let word = |(key, (_, value)): (&Key, &(StoredVersion, Bytes))| {
            format!("{key}={}", String::from_utf8_lossy(value))
        };
        self.contents().held.iter().map(word).collect()
    }

    pub(crate) fn kept(&self) -> Option<Checkpoint> {
        self.contents().checkpoint
    }

    /// Returns the cursor of the committed checkpoint.
    pub(crate) fn cursor(&self) -> Option<WatchCursor> {
        self.kept().map(|checkpoint| checkpoint.cursor())
    }

    /// Returns the number of clones, with this one.
    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.contents)
    }

    pub(crate) fn commits(&self) -> Vec<Commit> {
        self.contents().commits.clone()
    }

    /// Returns the number of calls of a method.
    pub(crate) fn calls(&self, method: &str) -> usize {
        self.contents().calls.iter().filter(|called| **called == method).count()
    }

    /// Removes the checkpoint, as a crash during a resync does.
    pub(crate) fn lose_checkpoint(&self) {
        self.contents().checkpoint = None;
    }

    fn called(&self, method: &'static str) -> Result<(), StorageError> {
        self.contents().calls.push(method);
        // A hook may panic if the test wants that.
        let mut hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        hook.as_mut().map_or(Ok(()), |hook| hook(method))
    }
}

impl ReplicaStorage for Disk {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        self.called("checkpoint")?;
        Ok(self.contents().checkpoint)
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        self.called("is_empty")?;
        Ok(self.contents().held.is_empty())
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        self.called("held")?;
        let contents = self.contents();
        Ok(keys.iter().map(|key| contents.held.get(key).map(|(held, _)| *held)).collect())
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        self.called("for_each_key")?;
        self.contents().held.iter().for_each(|(key, (held, _))| visit(key, *held));
        Ok(())
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        self.called("commit")?;
        let mut contents = self.contents();
        for change in changes {
            match change {
                KvUpdate::Put(entry) => {
                    let held = StoredVersion::new(entry.version, entry.created);
                    contents.held.insert(entry.key.clone(), (held, entry.value.clone()));
                }
                KvUpdate::Delete(entry) => drop(contents.held.remove(&entry.key)),
                _ => {}
            }
        }
        contents.checkpoint = checkpoint.copied();
        contents.commits.push(Commit {
            words: changes.iter().map(word).collect(),
            checkpoint: checkpoint.copied(),
        });
        Ok(())
    }
}
