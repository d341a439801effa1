//! Limits that may only be lowered.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::tree::room;

/// A violation of a rule.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Finding {
    pub(crate) fn new(path: &str, line: usize, text: &str) -> Self {
        Self { path: path.to_owned(), line, text: text.chars().take(70).collect() }
    }
}

/// Compares the number of findings in each room with the recorded one, which must be equal. A room
/// that is not recorded has none. The error is a text for the person who made the change: it shows
/// the findings in files that were `changed` of late, or all if there are none.
pub(crate) fn compare(
    table: &str,
    recorded: &[(&str, usize)],
    findings: &[Finding],
    changed: &[&str],
) -> Result<(), String> {
    let mut rooms: BTreeMap<&str, (usize, Vec<&Finding>)> = BTreeMap::new();
    for &(room, count) in recorded {
        rooms.entry(room).or_default().0 = count;
    }
    for finding in findings {
        rooms.entry(room(&finding.path)).or_default().1.push(finding);
    }
    let mut report = String::new();
    for (room, (allowed, found)) in rooms {
        let count = found.len();
        if count > allowed {
            let is_new = |finding: &&Finding| changed.contains(&finding.path.as_str());
            let show_all = !found.iter().any(is_new);
            for Finding { path, line, text } in found.into_iter().filter(|f| show_all || is_new(f))
            {
                let _ = writeln!(report, "{path}:{line}: {text}");
            }
            let shown = if show_all { "all" } else { "those in files changed of late" };
            let _ = writeln!(
                report,
                "{room}: {count} findings (shown: {shown}), at most {allowed} are allowed: rewrite \
                 the new ones"
            );
        } else if count == 0 && allowed > 0 {
            let _ = writeln!(report, "{room} is clean now: remove its line from `{table}`");
        } else if count < allowed {
            let _ = writeln!(
                report,
                "{room} has fewer findings now: record (\"{room}\", {count}) in `{table}`"
            );
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

#[test]
fn count_must_equal_the_recorded_one() {
    let findings = [Finding::new("docs/a.md", 3, "What"), Finding::new("docs/b.md", 1, "Who")];
    assert_eq!(compare("T", &[("docs", 2)], &findings, &[]), Ok(()));
    let more = compare("T", &[("docs", 1)], &findings, &[]).unwrap_err();
    assert!(more.starts_with("docs/a.md:3: What\ndocs/b.md:1: Who\ndocs: 2 findings"), "{more}");
    let more = compare("T", &[], &findings, &["docs/b.md"]).unwrap_err();
    assert!(more.starts_with("docs/b.md:1: Who\ndocs: 2 findings"), "{more}");
    let fewer = compare("T", &[("docs", 3)], &findings, &[]).unwrap_err();
    assert!(fewer.contains("record (\"docs\", 2) in `T`"), "{fewer}");
    let clean = compare("T", &[("docs", 2), ("tests", 1)], &findings, &[]).unwrap_err();
    assert!(clean.contains("remove its line from `T`"), "{clean}");
}
