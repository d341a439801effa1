//! Files: their length, and remains of merges and patches.

use crate::tree::Source;

const MAX_LINES: usize = 500;

/// Returns the mistakes in the lengths of Rust files. `recorded` has those that may be longer.
pub(crate) fn lengths(sources: &[Source], recorded: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for Source { path, text } in sources.iter().filter(|source| source.is("rs")) {
        let lines = text.lines().count();
        if lines > MAX_LINES && !recorded.iter().any(|(known, _)| known == path) {
            found.push(format!(
                "{path} has {lines} lines, at most {MAX_LINES} are allowed: split it"
            ));
        }
    }
    for (path, _) in recorded {
        let file = sources.iter().find(|source| source.path == *path);
        if file.is_none_or(|file| file.text.lines().count() <= MAX_LINES) {
            found.push(format!("{path} is gone or short enough: remove it from `LONG_FILES`"));
        }
    }
    found
}

/// Returns whether a file is a remain of a merge or a patch.
pub(crate) fn is_stray(path: &str) -> bool {
    [".orig", ".rej"].iter().any(|end| path.ends_with(end))
}

#[test]
fn long_file_and_outdated_exception_are_found() {
    let of = |path: &str, lines| Source { path: path.to_owned(), text: "x\n".repeat(lines) };
    let sources = [of("a.rs", 500), of("b.rs", 501), of("c.md", 501)];
    assert_eq!(lengths(&sources, &[("b.rs", "reason")]), [] as [String; 0]);
    assert_eq!(lengths(&sources, &[]), ["b.rs has 501 lines, at most 500 are allowed: split it"]);
    let outdated = lengths(&sources, &[("a.rs", ""), ("b.rs", ""), ("d.rs", "")]);
    let expected = ["a.rs", "d.rs"];
    assert!(outdated.iter().zip(expected).all(|(mistake, path)| mistake.starts_with(path)));
    assert_eq!(outdated.len(), expected.len());
}

#[test]
fn remains_of_merges_are_stray() {
    assert!(is_stray("a/mod.rs.orig") && is_stray("b.rej"));
    assert!(!is_stray("orig.rs") && !is_stray("a.original"));
}
