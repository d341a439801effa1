//! The rules of style that a machine can check, over all tracked files, and the order of layers.
//!
//! Exceptions are in `recorded.rs`, and can only become fewer: a test also fails if an exception is
//! no longer needed, and prints the line to change. Each check has a case that it must find.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking: a failed unwrap fails the test"
)]

mod commits;
mod errors;
mod files;
mod floors;
mod lex;
mod modules;
mod names;
mod openers;
mod paths;
mod prose;
mod ratchet;
mod recorded;
mod tree;
mod width;

use ratchet::Finding;
use tree::Source;

/// The last commit whose subject is not checked.
const LAST_UNCHECKED_COMMIT: &str = "7c494a9";

/// Checks the findings of all tracked files against the recorded numbers.
fn check(
    rule: &str,
    findings: fn(&Source) -> Vec<Finding>,
    table: &str,
    recorded: &[(&str, usize)],
) {
    let Some(sources) = tree::sources(rule) else { return };
    let found: Vec<Finding> = sources.iter().flat_map(findings).collect();
    let changed = tree::git(&["diff", "--name-only", "HEAD^"]).unwrap_or_default();
    let changed: Vec<&str> = changed.lines().collect();
    if let Err(report) = ratchet::compare(table, recorded, &found, &changed) {
        panic!("{rule}:\n{report}");
    }
}

#[test]
fn lines_fit_the_width() {
    check("lines have at most 100 columns", width::findings, "WIDTH", &[]);
}

#[test]
fn text_opens_with_a_verb_or_the_thing() {
    let rule = "text starts with a verb or the thing, not with What, Who, Where, That or Of";
    check(rule, openers::findings, "OPENERS", recorded::OPENERS);
}

#[test]
fn test_names_fit_the_limit() {
    check("test names have at most 60 characters", names::findings, "NAMES", recorded::NAMES);
}

#[test]
fn error_variants_can_get_more_fields() {
    let rule = "error variants with named fields are #[non_exhaustive]";
    check(rule, errors::findings, "ERRORS", &[]);
}

#[test]
fn files_fit_the_length() {
    let Some(sources) = tree::sources("length of files") else { return };
    let mistakes = files::lengths(&sources, recorded::LONG_FILES);
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn paths_in_the_map_exist() {
    let Some(sources) = tree::sources("paths in documents") else { return };
    let missing = paths::missing(&sources);
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn no_stray_file_is_tracked() {
    let Some(sources) = tree::sources("stray files") else { return };
    let stray: Vec<_> = sources.iter().filter(|source| files::is_stray(&source.path)).collect();
    let paths: Vec<_> = stray.iter().map(|source| source.path.as_str()).collect();
    assert!(paths.is_empty(), "remove {}", paths.join(", "));
}

#[test]
fn commit_subjects_name_area_and_change() {
    let base = LAST_UNCHECKED_COMMIT;
    let range = format!("{base}..HEAD");
    let has_base = tree::git(&["merge-base", "--is-ancestor", base, "HEAD"]).is_some();
    let log = tree::git(&["log", "--no-merges", "--format=%h %s", &range]).filter(|_| has_base);
    let Some(log) = log else {
        return tree::not_checked("subjects of commits", "git or the history is not available");
    };
    let commits = log.lines().filter_map(|line| line.split_once(' '));
    let mistakes = commits.filter_map(|(id, subject)| {
        Some(format!("{id} {subject}: {}", commits::mistake(subject)?))
    });
    let mistakes: Vec<String> = mistakes.collect();
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn layers_import_only_lower_ones_and_no_cycle() {
    if let Err(report) = floors::check(&floors::library(None), recorded::UPWARD, recorded::CYCLES) {
        panic!("{report}");
    }
}
