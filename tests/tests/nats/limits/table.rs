//! `docs/errors.md` and the tests beside this file name the same rows.

use std::collections::BTreeSet;

const SOURCES: [&str; 10] = [
    include_str!("account.rs"),
    include_str!("connecting.rs"),
    include_str!("crowds.rs"),
    include_str!("disk.rs"),
    include_str!("full.rs"),
    include_str!("payload.rs"),
    include_str!("server.rs"),
    include_str!("slow.rs"),
    include_str!("stream.rs"),
    include_str!("subscriptions.rs"),
];

const TABLE: &str = include_str!("../../../../docs/errors.md");

#[test]
fn errors_table_names_every_test() {
    let lines = SOURCES.iter().flat_map(|source| source.lines());
    let tests: BTreeSet<&str> = lines
        .filter_map(|line| line.strip_prefix("async fn ")?.split_once("() {").map(|(name, _)| name))
        .collect();
    let rows = TABLE.lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> = rows
        .filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next())
        .flat_map(|cell| cell.split('`'))
        .filter(|part| {
            part.len() > 3
                && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
        })
        .collect();
    let missing: Vec<_> = tests.difference(&named).collect();
    assert!(missing.is_empty(), "docs/errors.md has no row for {missing:?}");
    let unknown: Vec<_> = named.difference(&tests).collect();
    assert!(unknown.is_empty(), "docs/errors.md names tests that do not exist: {unknown:?}");
}
