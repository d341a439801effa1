//! Paths in the map of the code exist, so that it leads a reader to the right file.

use std::path::Path;

use crate::tree::{self, Source};

/// The documents whose paths are checked.
const MAPS: [&str; 2] = ["ARCHITECTURE.md", "docs/glossary.md"];

/// Returns the paths in backticks: those of Rust files and of folders.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|path| {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        path.chars().all(is_path)
            && path.contains('/')
            && (path.ends_with(".rs") || path.ends_with('/'))
    })
}

/// Returns the paths that exist neither at the root nor in a folder of the library or the derives.
pub(crate) fn missing(sources: &[Source]) -> Vec<String> {
    let library = tree::root().join("shizuku-kv/src");
    let folders = sources.iter().filter_map(|source| Path::new(&source.path).parent());
    let mut folders: Vec<_> = folders.map(|folder| tree::root().join(folder)).collect();
    folders.retain(|folder| folder.starts_with(&library));
    folders.extend([tree::root(), library, tree::root().join("shizuku-kv-derive/src")]);
    folders.sort();
    folders.dedup();
    let maps = sources.iter().filter(|source| MAPS.contains(&source.path.as_str()));
    let found = maps.flat_map(|map| paths(&map.text).map(|path| (map.path.as_str(), path)));
    let is_missing = |path: &str| !folders.iter().any(|folder| folder.join(path).exists());
    let missing = found.filter(|(_, path)| is_missing(path));
    missing.map(|(map, path)| format!("{map}: `{path}` does not exist")).collect()
}

#[test]
fn missing_path_is_found() {
    let text = "`rw_lock/coordinator.rs`, `locks/rw_lock/coordinator.rs`, `docs/adr/`, `a / b`";
    let map = Source { path: MAPS[0].to_owned(), text: text.to_owned() };
    let expected = format!("{}: `locks/rw_lock/coordinator.rs` does not exist", MAPS[0]);
    assert_eq!(missing(&[map]), [expected]);
}
