//! The runner of the checks.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

use super::fixture::Connect;
use super::{Check, CheckFailure, CheckReport, CheckResult, Fixture, Outcome, Report, checks};
use crate::store::{Connection, KvResult, StoreConfig};

/// Runs checks against a backend.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use shizuku_kv::conformance::Suite;
///
/// let report = Suite::connecting(|| shizuku_kv::connect("memory:")).only("lifecycle").run().await;
/// assert!(report.is_ok(), "{report}");
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
#[must_use = "a suite does nothing unless it is run"]
pub struct Suite {
    source: Source,
    base: StoreConfig,
    deadline: Duration,
    concurrency: usize,
    selection: Vec<String>,
}

enum Source {
    Connection(Arc<dyn Connection>),
    Connect(Connect),
}

impl Suite {
    /// Returns a suite over a connection, which stays open. The suite skips checks that need
    /// connections of their own.
    pub fn new(connection: Arc<dyn Connection>) -> Self {
        Self::over(Source::Connection(connection))
    }

    /// Returns a suite that opens its connections itself. It opens one for most checks, and shuts
    /// it down before the checks that end connections, which run one at a time. A backend therefore
    /// needs only one connection at a time, unless it claims to be
    /// [shared](crate::ConnectionCapabilities::shared).
    ///
    /// If the backend is persistent or shared, all connections must lead to the same server or
    /// file.
    pub fn connecting<F, C>(connect: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = KvResult<Arc<dyn Connection>>> + Send + 'static,
    {
        Self::over(Source::Connect(Arc::new(move || connect().boxed())))
    }

    fn over(source: Source) -> Self {
        Self {
            source,
            base: StoreConfig::new(),
            deadline: Duration::from_secs(60),
            concurrency: 8,
            selection: Vec::new(),
        }
    }

    /// Sets the settings of every store that a check opens, to which the check adds its own. Use it
    /// for read consistency, storage, replicas and deadline.
    pub fn base_config(mut self, base: StoreConfig) -> Self {
        self.base = base;
        self
    }

    /// Timeout for each check, after which it is reported as hanging: 60 seconds by default.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Maximum number of checks that run at a time: 8 by default.
    pub fn concurrency(mut self, checks: usize) -> Self {
        self.concurrency = checks.max(1);
        self
    }

    /// Runs only the check, or the family of checks, of this name. May be called more than once, to
    /// run each of them. An unknown name is reported as a failure.
    pub fn only(mut self, name: impl Into<String>) -> Self {
        self.selection.push(name.into());
        self
    }

    /// Runs the checks.
    pub async fn run(self) -> Report {
        let (alone, together): (Vec<_>, Vec<_>) =
            self.selected().enumerate().partition(|(_, check)| check.own_connection);
        let mut reports = Vec::new();
        match &self.source {
            Source::Connection(connection) => {
                reports.extend(self.run_together(connection, together).await);
                reports.extend(alone.into_iter().map(|(index, check)| {
                    let why =
                        "the suite was given no way to open a connection of its own".to_owned();
                    (index, report(check, Outcome::NotApplicable(why), Duration::ZERO))
                }));
            }
            Source::Connect(connect) => {
                if !together.is_empty() {
                    match connect().await {
                        Ok(connection) => {
                            reports.extend(self.run_together(&connection, together).await);
                            // A check covers the result of a shutdown. This one only makes room.
                            let _ = connection.shutdown().await;
                        }
                        Err(error) => reports.extend(together.into_iter().map(|(index, check)| {
                            let failure = CheckFailure::new(format!("cannot connect: {error}"));
                            (index, report(check, Outcome::Failed(failure), Duration::ZERO))
                        })),
                    }
                }
                for (index, check) in alone {
                    reports.push((index, self.run_alone(connect, check).await));
                }
            }
        }
        reports.sort_by_key(|(index, _)| *index);
        let unknown =
            self.selection.iter().filter(|name| !checks().any(|check| is_named(check, name)));
        let unknown = unknown.map(|name| CheckReport {
            name: name.clone(),
            family: "unknown",
            clause: "Only checks that exist can be asked for.",
            outcome: Outcome::Failed(CheckFailure::new("no check and no family has this name")),
            elapsed: Duration::ZERO,
        });
        Report::new(reports.into_iter().map(|(_, report)| report).chain(unknown).collect())
    }

    fn selected(&self) -> impl Iterator<Item = &'static Check> {
        checks().filter(|check| {
            self.selection.is_empty() || self.selection.iter().any(|name| is_named(check, name))
        })
    }

    async fn run_together(
        &self,
        connection: &Arc<dyn Connection>,
        checks: Vec<(usize, &'static Check)>,
    ) -> Vec<(usize, CheckReport)> {
        // Boxed, because the compiler does not see otherwise that all of it is `Send`.
        let runs =
            checks.into_iter().map(|(index, check)| -> BoxFuture<'_, (usize, CheckReport)> {
                let fixture = Fixture::with(Arc::clone(connection), None, self.base.clone());
                Box::pin(async move { (index, self.run_one(check, &fixture).await) })
            });
        stream::iter(runs.collect::<Vec<_>>()).buffer_unordered(self.concurrency).collect().await
    }

    async fn run_alone(&self, connect: &Connect, check: &'static Check) -> CheckReport {
        match connect().await {
            Ok(connection) => {
                let fixture =
                    Fixture::with(connection, Some(Arc::clone(connect)), self.base.clone());
                self.run_one(check, &fixture).await
            }
            Err(error) => {
                let failure = CheckFailure::new(format!("cannot connect: {error}"));
                report(check, Outcome::Failed(failure), Duration::ZERO)
            }
        }
    }

    async fn run_one(&self, check: &'static Check, fixture: &Fixture) -> CheckReport {
        let started = Instant::now();
        let capabilities = fixture.capabilities();
        let missing =
            check.needs.iter().find(|capability| !capability.is_claimed_by(&capabilities));
        let outcome = match missing {
            None => match self.bounded(fixture, (check.run)(fixture)).await {
                Ok(()) => Outcome::Passed,
                Err(failure) => Outcome::Failed(failure),
            },
            Some(missing) => match self.bounded(fixture, missing.ensure_rejected(fixture)).await {
                Ok(()) => Outcome::NotApplicable(format!("{missing:?} is not claimed")),
                Err(failure) => Outcome::Failed(failure),
            },
        };
        fixture.step("deleting the check's stores");
        let cleaned = self.bounded(fixture, fixture.clean_up()).await;
        let outcome = match (outcome, cleaned) {
            (Outcome::Passed, Err(failure)) => Outcome::Failed(failure),
            (outcome, _) => outcome,
        };
        report(check, outcome, started.elapsed())
    }

    /// Runs a check. A check that hangs or panics has failed, and no other check is affected.
    async fn bounded(
        &self,
        fixture: &Fixture,
        check: impl Future<Output = CheckResult>,
    ) -> CheckResult {
        match tokio::time::timeout(self.deadline, AssertUnwindSafe(check).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_owned());
                Err(CheckFailure::new(format!("the backend panicked: {message}")))
            }
            Err(_) => {
                let step = fixture.last_step();
                let step =
                    if step.is_empty() { String::new() } else { format!("; it stood at: {step}") };
                Err(CheckFailure::new(format!("it did not end within {:?}{step}", self.deadline)))
            }
        }
    }
}

/// Runs every check against a connection that stays open. Checks that need connections of their own
/// are reported as not applicable (see [`Suite::connecting`]).
pub async fn run(connection: Arc<dyn Connection>) -> Report {
    Suite::new(connection).run().await
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("base", &self.base)
            .field("deadline", &self.deadline)
            .field("concurrency", &self.concurrency)
            .field("selection", &self.selection)
            .finish_non_exhaustive()
    }
}

fn is_named(check: &Check, name: &str) -> bool {
    check.name == name || check.family == name
}

fn report(check: &Check, outcome: Outcome, elapsed: Duration) -> CheckReport {
    CheckReport {
        name: check.name.to_owned(),
        family: check.family,
        clause: check.clause,
        outcome,
        elapsed,
    }
}
