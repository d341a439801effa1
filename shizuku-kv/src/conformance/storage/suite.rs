//! The runner of the storage checks.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::subject::{Open, Opened, ReadEntry, SuiteSettings};
use super::{StorageCheck, StorageFixture, checks};
use crate::conformance::{CheckFailure, CheckReport, CheckResult, Outcome, Report};
use crate::replica::{ReplicaStorage, StorageError};
use crate::store::{Key, KvEntry};

/// Runs checks against a storage.
#[must_use = "a suite does nothing unless it is run"]
pub struct StorageSuite<S> {
    open: Open<S>,
    read: Option<ReadEntry<S>>,
    durable: bool,
    deadline: Duration,
    seed: Option<u64>,
    histories: usize,
    selection: Vec<String>,
}

impl<S: ReplicaStorage> StorageSuite<S> {
    /// Returns a suite over the storages that `open` opens. Its argument is a name of at most 64
    /// lower-case letters, digits and hyphens. For a new name it creates an empty storage, and for
    /// a known one it opens the existing storage. The previous storage of that name was dropped
    /// before. Nothing is deleted afterwards: give the suite a temporary directory.
    pub fn new<F, C>(open: F) -> Self
    where
        F: Fn(String) -> C + Send + Sync + 'static,
        C: Future<Output = Result<S, StorageError>> + Send + 'static,
    {
        Self {
            open: Arc::new(move |name| open(name).boxed()),
            read: None,
            durable: true,
            deadline: Duration::from_secs(60),
            seed: None,
            histories: 4,
            selection: Vec::new(),
        }
    }

    /// Declares that the storage loses everything when it is dropped. Checks about reopening are
    /// then not applicable.
    pub fn not_durable(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Sets the function that reads the entry of a key, or `None` if the key is not held. With it
    /// the suite also checks that values come back unchanged. Without it, checks of values are not
    /// applicable.
    pub fn reading<F>(mut self, read: F) -> Self
    where
        F: Fn(&S, &Key) -> Result<Option<KvEntry>, StorageError> + Send + Sync + 'static,
    {
        self.read = Some(Arc::new(read));
        self
    }

    /// Timeout for each check, after which it is reported as hanging: 60 seconds by default. The
    /// thread of such a check is left behind.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the seed of the random histories. The default is the environment variable
    /// `SHIZUKU_SEED`, or otherwise a new seed for each run. The report of a failure names it.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Number of random histories: 4 by default.
    pub fn histories(mut self, histories: usize) -> Self {
        self.histories = histories;
        self
    }

    /// Runs only the check of this name. May be called more than once, to run each of them. An
    /// unknown name is reported as a failure.
    pub fn only(mut self, name: impl Into<String>) -> Self {
        self.selection.push(name.into());
        self
    }

    /// Runs the checks one after another, each in a thread of its own, because storages block.
    ///
    /// Must be called in a tokio runtime. If the future is dropped, the running check continues in
    /// its thread, and no other begins.
    pub async fn run(self) -> Report {
        let fixture = SuiteSettings {
            open: Arc::new({
                let (open, read) = (Arc::clone(&self.open), self.read.clone());
                move |name| {
                    let (opening, read) = (open(name), read.clone());
                    async move {
                        Ok(Box::new(WithReader { storage: opening.await?, read })
                            as Box<dyn Opened>)
                    }
                    .boxed()
                }
            }),
            durable: self.durable,
            reads: self.read.is_some(),
            seed: self.seed.or_else(given_seed).unwrap_or_else(|| fastrand::u64(..)),
            histories: self.histories,
        };
        let mut reports = Vec::new();
        for check in checks().filter(|check| self.is_selected(check.name)) {
            reports.push(run_one(check, StorageFixture::new(fixture.clone()), self.deadline).await);
        }
        for name in
            self.selection.iter().filter(|name| !checks().any(|check| check.name == name.as_str()))
        {
            reports.push(CheckReport {
                name: name.clone(),
                family: "unknown",
                clause: "Only checks that exist can be asked for.",
                outcome: Outcome::Failed(CheckFailure::new("no check has this name")),
                elapsed: Duration::ZERO,
            });
        }
        Report::new(reports)
    }

    fn is_selected(&self, name: &str) -> bool {
        self.selection.is_empty() || self.selection.iter().any(|selected| selected == name)
    }
}

impl<S> fmt::Debug for StorageSuite<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageSuite")
            .field("durable", &self.durable)
            .field("deadline", &self.deadline)
            .field("seed", &self.seed)
            .field("histories", &self.histories)
            .field("selection", &self.selection)
            .finish_non_exhaustive()
    }
}

/// A storage with the function that reads its values, so that checks need not know its type.
struct WithReader<S> {
    storage: S,
    read: Option<ReadEntry<S>>,
}

impl<S: ReplicaStorage> Opened for WithReader<S> {
    fn storage(&self) -> &dyn ReplicaStorage {
        &self.storage
    }

    fn storage_mut(&mut self) -> &mut dyn ReplicaStorage {
        &mut self.storage
    }

    fn entry(&self, key: &Key) -> Option<Result<Option<KvEntry>, StorageError>> {
        self.read.as_ref().map(|read| read(&self.storage, key))
    }
}

fn given_seed() -> Option<u64> {
    std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok())
}

async fn run_one(
    check: &'static StorageCheck,
    fixture: StorageFixture,
    deadline: Duration,
) -> CheckReport {
    let started = Instant::now();
    let outcome = match check.needs.iter().find_map(|need| need.missing(&fixture)) {
        Some(why) => Outcome::NotApplicable(why.to_owned()),
        None => match bounded(check, &Arc::new(fixture), deadline).await {
            Ok(()) => Outcome::Passed,
            Err(failure) => Outcome::Failed(failure),
        },
    };
    let elapsed = started.elapsed();
    CheckReport {
        name: check.name.to_owned(),
        family: "storage",
        clause: check.clause,
        outcome,
        elapsed,
    }
}

/// Runs a check. A check that hangs or panics has failed, and no other check is affected. It has a
/// thread of its own, because the runtime would wait for a thread of its pool that never ends.
async fn bounded(
    check: &'static StorageCheck,
    fixture: &Arc<StorageFixture>,
    deadline: Duration,
) -> CheckResult {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("storage-check".to_owned()).spawn({
        let fixture = Arc::clone(fixture);
        move || {
            let result = catch_unwind(AssertUnwindSafe(|| (check.run)(&fixture)));
            // The receiver is gone if the deadline has passed.
            let _ = sender.send(result.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
        }
    });
    if let Err(error) = thread {
        return Err(CheckFailure::new(format!("no thread could be made for the check: {error}")));
    }
    let result = match tokio::time::timeout(deadline, receiver).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(CheckFailure::new("the check's thread ended without an answer")),
        Err(_) => Err(CheckFailure::new(format!("it did not end within {deadline:?}"))),
    };
    result.map_err(|failure| fixture.at_last_step(failure))
}

fn panicked(panic: &(dyn Any + Send)) -> CheckFailure {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    CheckFailure::new(format!("the storage panicked: {}", message.unwrap_or("no message")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests report by panicking")]
mod tests {
    use super::*;
    use crate::replica::{Checkpoint, MemoryStorage, StoredVersion};
    use crate::store::KvUpdate;

    fn memory() -> StorageSuite<MemoryStorage> {
        StorageSuite::new(|_name| async { Ok(MemoryStorage::new()) })
    }

    #[tokio::test]
    async fn unclaimed_property_is_not_applicable() {
        let report = memory().not_durable().run().await;
        assert!(report.is_ok(), "{report}");
        let mut left_out = 0;
        for check in checks() {
            let is_left_out = matches!(report.outcome(check.name), Some(Outcome::NotApplicable(_)));
            assert_eq!(is_left_out, !check.needs.is_empty(), "{}", check.name);
            left_out += usize::from(is_left_out);
        }
        assert!(left_out > 2);
    }

    #[tokio::test]
    async fn one_check_runs_alone_and_an_unknown_one_is_a_failure() {
        let report = memory().only("a_put_is_held").only("no_such_check").run().await;
        assert_eq!(report.checks().len(), 2);
        assert!(matches!(report.outcome("a_put_is_held"), Some(Outcome::Passed)), "{report}");
        assert!(matches!(report.outcome("no_such_check"), Some(Outcome::Failed(_))), "{report}");
    }

    /// A storage that panics, or waits for ever.
    struct Stuck(bool);

    impl ReplicaStorage for Stuck {
        fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
            assert!(!self.0, "on purpose");
            loop {
                std::thread::park();
            }
        }

        fn is_empty(&self) -> Result<bool, StorageError> {
            Ok(true)
        }

        fn held(&self, _: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
            Err(StorageError::fatal("no storage"))
        }

        fn for_each_key(&self, _: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
            Err(StorageError::fatal("no storage"))
        }

        fn commit(&mut self, _: &[KvUpdate], _: Option<&Checkpoint>) -> Result<(), StorageError> {
            Err(StorageError::fatal("no storage"))
        }
    }

    async fn failure(panics: bool, deadline: Duration) -> String {
        let suite = StorageSuite::new(move |_name| async move { Ok(Stuck(panics)) });
        suite.only("an_empty_storage_holds_nothing").deadline(deadline).run().await.to_string()
    }

    #[tokio::test]
    async fn a_storage_that_panics_or_hangs_has_failed() {
        let report = failure(true, Duration::from_secs(60)).await;
        assert!(report.contains("the storage panicked: on purpose"), "{report}");
        let report = failure(false, Duration::from_millis(20)).await;
        assert!(report.contains("it did not end within 20ms"), "{report}");
    }

    #[tokio::test]
    async fn a_storage_that_cannot_be_opened_has_failed() {
        let suite = StorageSuite::<MemoryStorage>::new(|_name| async {
            Err(StorageError::fatal("not today"))
        });
        let report = suite.only("a_put_is_held").run().await.to_string();
        assert!(report.contains("could not be opened: not today"), "{report}");
    }
}
