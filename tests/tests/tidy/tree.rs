//! The files of the repository and its rooms.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The output of the derives, which is not written by hand.
const GENERATED: &str = "shizuku-kv-derive/snapshots/";

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the output of git in the repository, or `None` if git fails or there is no repository.
pub(crate) fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the paths of all tracked files that exist, relative to the root.
pub(crate) fn tracked() -> Option<Vec<String>> {
    let listed = git(&["ls-files", "-z"])?;
    let paths = listed.split_terminator('\0').map(str::to_owned);
    Some(paths.filter(|path| root().join(path).symlink_metadata().is_ok()).collect())
}

/// A tracked file with text, which is not a link to another one.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Returns whether the name ends with `.extension`.
    pub(crate) fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// Returns whether comments begin with `#`: settings and programs of a shell or of Python.
    pub(crate) fn has_hash_comments(&self) -> bool {
        self.is("toml") || self.is("sh") || self.text.starts_with("#!/usr/bin/env ")
    }
}

/// Returns the tracked text files, or `None`, reported as not checked, without git.
pub(crate) fn sources(check: &str) -> Option<Vec<Source>> {
    let Some(paths) = tracked() else {
        not_checked(check, "git or the repository is not available");
        return None;
    };
    let read = paths.into_iter().filter_map(|path| {
        let file = root().join(&path);
        let is_file = file.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        let text = (is_file && !path.starts_with(GENERATED))
            .then(|| std::fs::read_to_string(file).ok())
            .flatten()?;
        Some(Source { path, text })
    });
    Some(read.collect())
}

/// Reports a check that could not run. Not captured by the test harness, so that a pass shows it.
pub(crate) fn not_checked(check: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "NOT CHECKED: {check}: {reason}");
}

/// Returns the room of a file: its top-level folder, within the library the folder below `src`.
pub(crate) fn room(path: &str) -> &str {
    let library = "shizuku-kv/src/";
    let start = if path.starts_with(library) { library.len() } else { 0 };
    match path[start..].find('/') {
        Some(end) => &path[..start + end],
        None if start > 0 => library.trim_end_matches('/'),
        None => ".",
    }
}

#[test]
fn room_is_the_top_level_folder() {
    assert_eq!(room("README.md"), ".");
    assert_eq!(room("docs/adr/0001.md"), "docs");
    assert_eq!(room("shizuku-kv/src/watch/shared/mod.rs"), "shizuku-kv/src/watch");
    assert_eq!(room("shizuku-kv/src/lib.rs"), "shizuku-kv/src");
    assert_eq!(room("shizuku-kv/benches/live.rs"), "shizuku-kv");
}
