//! Finds the name under which a crate depends on the library, in its `Cargo.toml`.
//!
//! The name is only the default of `#[kv(crate = …)]`, so that a renamed dependency works without
//! that option. A name that this does not find, such as one that a workspace gives, needs the
//! option.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::{env, fs};

const PACKAGE: &str = "shizuku-kv";

/// Returns the other name of the library in the crate that is being compiled, if it has one.
pub(crate) fn renamed() -> Option<&'static str> {
    static RENAMED: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
        renamed_in(&fs::read_to_string(manifest).ok()?)
    };
    RENAMED.get_or_init(read).as_deref()
}

/// Returns the name of the dependency whose package is the library. Returns `None` if a dependency
/// has the package's own name.
fn renamed_in(manifest: &str) -> Option<String> {
    let (mut section, mut found) = (String::new(), None);
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|header| header.split(']').next()) {
            section = header.trim().to_owned();
        }
        // Matches `[dependencies]`, `[target.….dev-dependencies]`, and `[dependencies.NAME]`.
        let (table, own) = match section.rsplit_once("dependencies.") {
            Some((_, name)) => (true, Some(name.trim_matches('"'))),
            None => (section.ends_with("dependencies"), None),
        };
        if !table {
            continue;
        }
        let (key, value) =
            line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value));
        let name = own.unwrap_or(key.split('.').next().unwrap_or(key)).trim_matches('"');
        if name.replace('_', "-") == PACKAGE {
            return None;
        }
        let package = match (own, key.ends_with(".package")) {
            (Some(_), _) if key == "package" => value,
            (None, true) => value,
            (None, false) => value.split_once("package").map_or("", |(_, value)| value),
            _ => "",
        };
        let package = package
            .trim_start_matches([' ', '='])
            .strip_prefix('"')
            .and_then(|rest| rest.split('"').next());
        if package == Some(PACKAGE) {
            found = Some(name.replace('-', "_"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamed_dependencies_are_found() {
        for (manifest, name) in [
            ("[dependencies]\nkv = { version = \"1\", package = \"shizuku-kv\" }", Some("kv")),
            (
                "[dev-dependencies]\nmy-kv = { package=\"shizuku-kv\", version = \"1\" }",
                Some("my_kv"),
            ),
            ("[dependencies.kv]\nversion = \"1\"\npackage = \"shizuku-kv\"", Some("kv")),
            ("[target.'cfg(unix)'.dependencies]\nkv.package = \"shizuku-kv\"", Some("kv")),
            ("[dependencies]\nshizuku-kv = \"1\"", None),
            ("[dependencies]\nshizuku-kv = \"1\"\nkv = { package = \"shizuku-kv\" }", None),
            (
                "[dependencies]\nkv = { package = \"shizuku-kv\" }\n[dev-dependencies.shizuku-kv]\nversion = \"1\"",
                None,
            ),
            ("[dependencies]\nother = { package = \"shizuku-kv-derive\" }", None),
            ("[package]\nname = \"x\"\nkv = { package = \"shizuku-kv\" }", None),
            ("", None),
        ] {
            assert_eq!(renamed_in(manifest).as_deref(), name, "{manifest}");
        }
    }
}
