//! The results of a suite.

use std::fmt;
use std::time::Duration;

use super::CheckFailure;

/// The outcome of a check.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The guarantee holds.
    Passed,
    /// The guarantee does not hold.
    Failed(CheckFailure),
    /// The guarantee does not apply. The backend does not claim a needed capability, and rejects it
    /// correctly, or the suite lacks something that the check needs.
    NotApplicable(String),
}

/// One check's line of a [`Report`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// Name of the check.
    pub name: String,
    /// Family of the check.
    pub family: &'static str,
    /// The guarantee that it checks.
    pub clause: &'static str,
    /// The outcome.
    pub outcome: Outcome,
    /// Duration of the check.
    pub elapsed: Duration,
}

impl CheckReport {
    /// Returns true if the check failed.
    pub fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// The outcomes of all checks. `Display` has one line for each, and a last one that counts them.
#[derive(Clone, Debug, Default)]
#[must_use = "a report that nobody looks at has checked nothing"]
pub struct Report {
    checks: Vec<CheckReport>,
}

impl Report {
    pub(super) fn new(checks: Vec<CheckReport>) -> Self {
        Self { checks }
    }

    /// Returns true if no check failed.
    pub fn is_ok(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Returns each check, in the order of [`checks`](super::checks).
    pub fn checks(&self) -> &[CheckReport] {
        &self.checks
    }

    /// Iterates over the failed checks.
    pub fn failures(&self) -> impl Iterator<Item = &CheckReport> {
        self.checks.iter().filter(|check| check.is_failure())
    }

    /// Returns the outcome of a check. Returns `None` if it was not run.
    pub fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.checks.iter().find(|check| check.name == name).map(|check| &check.outcome)
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.checks.iter().filter(|check| is(&check.outcome)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let (family, name, millis) = (check.family, &check.name, check.elapsed.as_millis());
            match &check.outcome {
                Outcome::Passed => writeln!(f, "passed          {family}::{name} ({millis} ms)")?,
                Outcome::NotApplicable(why) => {
                    writeln!(f, "not applicable  {family}::{name}: {why}")?
                }
                Outcome::Failed(failure) => {
                    writeln!(f, "FAILED          {family}::{name} ({millis} ms): {failure}")?;
                    writeln!(f, "                the promise: {}", check.clause)?;
                }
            }
        }
        let passed = self.count(|outcome| matches!(outcome, Outcome::Passed));
        let failed = self.count(|outcome| matches!(outcome, Outcome::Failed(_)));
        write!(f, "{passed} passed, {failed} failed")?;
        match self.checks.len() - passed - failed {
            0 => Ok(()),
            others => write!(f, ", {others} not applicable"),
        }
    }
}
