//! The frame of tests that prove that a conformance suite finds faults.

use std::collections::BTreeSet;
use std::fmt::Debug;

use shizuku_kv::conformance::Report;

/// Returns a line for each check that should have found a fault and did not, and for each check
/// that found none. Each run has its fault, the checks that must fail on it, and the report.
/// `unbreakable` are the checks that none of these faults can fail.
pub fn missed<F: Debug>(
    runs: &[(F, &[&str], Report)],
    checks: impl Iterator<Item = &'static str>,
    unbreakable: &[&str],
) -> String {
    let mut missed = String::new();
    let mut found = BTreeSet::new();
    for (fault, expected, report) in runs {
        let failed = report.failures().map(|check| check.name.as_str()).collect::<BTreeSet<_>>();
        for name in expected.iter().filter(|name| !failed.contains(**name)) {
            let outcome = report.outcome(name);
            missed += &format!(
                "{fault:?} is not found by {name}: {outcome:?}; it is found by {failed:?}\n"
            );
        }
        found.extend(failed);
    }
    for check in checks.filter(|check| !found.contains(check) && !unbreakable.contains(check)) {
        missed += &format!("no fault is found by {check}\n");
    }
    missed
}
