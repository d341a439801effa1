//! What the derives refuse, one misuse a file, each with the message that the user sees.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

#[test]
fn misuses_are_refused_with_one_error_that_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}

/// The first error of each is at what the user wrote: not at the derive, and not at the whole type.
#[test]
fn the_first_error_is_where_the_mistake_is() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui");
    let mut cases = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let case = file.unwrap().path();
        if case.extension() != Some(OsStr::new("rs")) {
            continue;
        }
        cases += 1;
        let name = case.file_name().unwrap().to_str().unwrap();
        let source = fs::read_to_string(&case).unwrap();
        let errors = fs::read_to_string(case.with_extension("stderr")).unwrap();
        let place = errors.lines().find_map(|line| line.trim_start().strip_prefix("--> ")).unwrap();
        let place = place.strip_prefix(&format!("ui/{name}:")).expect(place);
        let (line, column) = place.split_once(':').unwrap();
        // What our macros say is all that is said. A derive cannot see the other one.
        let count = errors.lines().filter(|line| line.starts_with("error")).count();
        let is_ours = errors.starts_with("error: ");
        assert!(
            !is_ours || count == 1 || name.starts_with("both_derives_"),
            "{name}: {count} errors"
        );
        let line = source.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap();
        let marked = line.chars().skip(column.parse::<usize>().unwrap() - 1).collect::<String>();
        assert!(!line.contains("#[derive("), "{name}: at the derive: {marked}");
        for item in ["struct ", "enum ", "union ", "pub "] {
            assert!(!marked.starts_with(item), "{name}: at the whole type: {marked}");
        }
    }
    assert!(cases >= 40, "{cases}");
}
