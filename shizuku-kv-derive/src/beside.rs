//! Finds the other derives of a type in its source (ADR 0023), because a macro does not see them.
//!
//! Only the stand-in of a rejected derive depends on this. A stand-in makes the derive's error the
//! only one. If the type has the other derive of a key too, the stand-in must be missing, because
//! two impls conflict. Otherwise it must exist, because each use of the type as a record would be
//! one more error. A derive does not see its siblings, and its output cannot depend on them. So the
//! source is read, after an error only. If it cannot be read, rustc reports one more error.
//!
//! Reading the source is safe for builds. A successful build never reads it, so that no artifact
//! and no cache depends on it, and the file is an input of the failed build anyway.
//! `Span::local_file` returns the path on disk even if paths are remapped. It returns `None` for
//! code without a file, and in editors that do not provide it. Rejected: memory that the derives
//! share within a process. The order of expansion would matter, and an editor's server, which
//! expands again after each edit, would remember errors that are gone.

use std::fs;

/// Returns `true` if the type has this derive too.
pub(crate) fn is_derived_too(name: &str) -> bool {
    if !proc_macro::is_available() {
        return false;
    }
    let here = proc_macro::Span::call_site();
    let source = here.local_file().and_then(|file| fs::read_to_string(file).ok());
    source.is_some_and(|source| is_in_attributes(&source, here.line(), name))
}

/// Returns `true` if a derive on the type whose attribute is at this line has this name.
fn is_in_attributes(source: &str, line: usize, name: &str) -> bool {
    let lines = source.lines().collect::<Vec<_>>();
    let at = line.saturating_sub(1).min(lines.len());
    let (before, after) = lines.split_at(at);
    // Each earlier line ends an item, or is an attribute.
    let before = before.iter().rev().take_while(|line| !line.trim_end().ends_with(['}', ';']));
    let is_item =
        |line: &str| ["struct ", "enum ", "union "].iter().any(|item| line.contains(item));
    let after = after.iter().take_while(|line| !is_item(line));
    let mut attributes = before.collect::<Vec<_>>();
    attributes.reverse();
    let attributes = attributes.into_iter().chain(after).copied().collect::<Vec<_>>().join("\n");
    let derives = attributes.split("derive(").skip(1).filter_map(|derive| derive.split(')').next());
    derives
        .flat_map(|derive| derive.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_are_found_around_a_line() {
        let source = "\
#[derive(A, B)]
struct One;

#[derive(C)]
#[kv(key = \"a\")]
#[derive(
    x::D,
    E,
)]
/// F
struct Two { #[kv] a: u8 }
#[derive(G)] struct Three;
";
        for (line, found) in [(1, "AB"), (4, "CDE"), (7, "CDE"), (8, "CDE"), (12, "")] {
            for name in ["A", "B", "C", "D", "E", "F", "G"] {
                assert_eq!(
                    is_in_attributes(source, line, name),
                    found.contains(name),
                    "{line}: {name}"
                );
            }
        }
        assert!(!is_in_attributes("", 7, "A"));
    }
}
