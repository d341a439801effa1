//! Misuses that the derives reject, one per file, each with the message that the user sees.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

#[test]
fn misuses_are_refused_with_one_error_that_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}

/// The first error of each is at the user's mistake: not at the derive, and not at the whole type.
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
        let location =
            errors.lines().find_map(|line| line.trim_start().strip_prefix("--> ")).unwrap();
        let location = location.strip_prefix(&format!("ui/{name}:")).expect(location);
        let (line, column) = location.split_once(':').unwrap();
        // Other errors are the compiler's own.
        let count = errors.lines().filter(|line| line.starts_with("error")).count();
        let is_ours = errors.starts_with("error: ");
        assert!(!is_ours || count == 1, "{name}: {count} errors");
        let line = source.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap();
        let marked = line.chars().skip(column.parse::<usize>().unwrap() - 1).collect::<String>();
        assert!(!line.contains("#[derive("), "{name}: at the derive: {marked}");
        for item in ["struct ", "enum ", "union ", "pub "] {
            assert!(!marked.starts_with(item), "{name}: at the whole type: {marked}");
        }
    }
    assert!(cases >= 40, "{cases}");
}

/// The prelude has the traits of every method of a record. None may make a name of the snippets of
/// the reference documentation ambiguous.
#[test]
fn reference_snippets_compile_under_the_prelude() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let source = fs::read_to_string(tests.join("records/seed_docs.rs")).unwrap();
    let mut under_prelude = String::new();
    for line in source.lines().filter(|line| !line.starts_with("#[tokio::test]")) {
        let begins_module = line.trim_start().starts_with("mod ") && line.ends_with('{');
        if line.starts_with("use shizuku_kv::") {
            under_prelude.push_str("use shizuku_kv::prelude::*;\n");
        }
        under_prelude.extend([line, "\n"]);
        if begins_module {
            under_prelude.push_str("use shizuku_kv::prelude::*;\n");
        }
    }
    assert!(under_prelude.matches("use shizuku_kv::prelude::*;").count() >= 5);
    under_prelude.push_str("fn main() {}\n");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reference_under_prelude.rs");
    fs::write(&path, under_prelude).unwrap();
    trybuild::TestCases::new().pass(&path);
}
