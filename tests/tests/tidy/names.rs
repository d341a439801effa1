//! The names of tests: at most 60 characters.

use crate::lex::{Kind, without};
use crate::ratchet::Finding;
use crate::tree::Source;

const MAX_NAME: usize = 60;

/// Returns the line and name of each test function in Rust source.
pub(crate) fn tests_of(source: &str) -> Vec<(usize, String)> {
    let code = without(source, &[Kind::Comment, Kind::Literal]);
    let mut found = Vec::new();
    let mut is_test = false;
    for (line, text) in code.lines().enumerate() {
        let text = text.trim();
        let ahead = ["#[test]", "#[tokio::test"].iter().any(|attribute| text.contains(attribute));
        is_test |= ahead;
        if let Some((_, name)) = text.split_once("fn ").filter(|_| is_test) {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            found.push((line + 1, name[..end].to_owned()));
            is_test = false;
        }
    }
    found
}

/// Returns the names that are too long.
pub(crate) fn findings(source: &Source) -> Vec<Finding> {
    let tests = if source.is("rs") { tests_of(&source.text) } else { Vec::new() };
    let long = tests.into_iter().filter(|(_, name)| name.chars().count() > MAX_NAME);
    long.map(|(line, name)| Finding::new(&source.path, line, &name)).collect()
}

#[test]
fn name_above_the_limit_is_found() {
    let (fits, long) = ("a".repeat(60), "a".repeat(61));
    let text = format!(
        "#[test]\nfn {fits}() {{}}\n#[tokio::test(flavor = \"x\")]\nasync fn {long}() {{}}\nfn {long}b() {{}}\n"
    );
    let found = findings(&Source { path: "a.rs".to_owned(), text });
    assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [4]);
}
