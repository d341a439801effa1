//! Finds the name under which a crate depends on the library, in its `Cargo.toml`.
//!
//! The name is only the default of `#[kv(crate = …)]`, so that a renamed dependency works without
//! that option. A dependency that takes its settings from the workspace is looked up there. A
//! manifest of an unusual form may need the option.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs};

const PACKAGE: &str = "shizuku-kv";

/// Returns the other name of the library in the crate that is being compiled, if it has one.
pub(crate) fn renamed() -> Option<&'static str> {
    static RENAMED: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).ok()?;
        renamed_in(&manifest, || workspace(&folder))
    };
    RENAMED.get_or_init(read).as_deref()
}

/// Returns the manifest of the workspace of a crate: the nearest one, upwards, with that table.
fn workspace(folder: &Path) -> Option<String> {
    let manifests = folder.ancestors().map(|folder| fs::read_to_string(folder.join("Cargo.toml")));
    manifests.flatten().find(|text| text.lines().any(|line| line.trim().starts_with("[workspace")))
}

/// Returns the name of the dependency whose package is the library. Returns `None` if a dependency
/// has the package's own name.
fn renamed_in(manifest: &str, workspace: impl FnOnce() -> Option<String>) -> Option<String> {
    let mut dependencies = dependencies(manifest);
    if dependencies.iter().any(|dependency| dependency.is_inherited) {
        let shared = self::dependencies(&workspace().unwrap_or_default());
        for dependency in dependencies.iter_mut().filter(|dependency| dependency.is_inherited) {
            let same = shared.iter().find(|shared| shared.name == dependency.name);
            dependency.package = same.and_then(|shared| shared.package.clone());
        }
    }
    let is_own = |dependency: &Dependency| dependency.name.replace('_', "-") == PACKAGE;
    if dependencies.iter().any(is_own) {
        return None;
    }
    let renamed = dependencies.iter().find(|entry| entry.package.as_deref() == Some(PACKAGE))?;
    Some(renamed.name.replace('-', "_"))
}

#[derive(Default)]
struct Dependency {
    name: String,
    /// Name of the package, if the manifest states it.
    package: Option<String>,
    /// Whether the workspace has the other settings.
    is_inherited: bool,
}

/// Returns the dependencies of all kinds and targets that a manifest lists, those of
/// `[workspace.dependencies]` included.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let (mut section, mut found) = (String::new(), Vec::<Dependency>::new());
    for line in manifest.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[').and_then(|header| header.split(']').next()) {
            section = header.trim().to_owned();
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, setting) = match key.trim().split_once('.') {
            Some((key, setting)) => (key, Some(setting.trim())),
            None => (key.trim(), None),
        };
        // Matches `[dependencies.NAME]`, `[dependencies]` and `[target.….dev-dependencies]`.
        let (name, setting) = match section.rsplit_once("dependencies.") {
            Some((_, name)) => (name, Some(key)),
            None if section.ends_with("dependencies") => (key, setting),
            None => continue,
        };
        let name = name.trim_matches('"');
        if found.last().is_none_or(|last| last.name != name) {
            found.push(Dependency { name: name.to_owned(), ..Dependency::default() });
        }
        let Some(dependency) = found.last_mut() else { continue };
        let (package, is_inherited) = match setting {
            Some("package") => (Some(value), false),
            Some("workspace") => (None, value.contains("true")),
            Some(_) => (None, false),
            None => (in_table(value, "package"), in_table(value, "workspace").is_some()),
        };
        if let Some(package) = package {
            dependency.package = package.split('"').nth(1).map(str::to_owned);
        }
        dependency.is_inherited |= is_inherited;
    }
    found
}

/// Returns the text behind `key =` in an inline table.
fn in_table<'a>(table: &'a str, key: &str) -> Option<&'a str> {
    let fields = table.trim().strip_prefix('{')?;
    fields.split(',').find_map(|field| {
        let (name, value) = field.split_once('=')?;
        (name.trim() == key).then_some(value)
    })
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
            assert_eq!(renamed_in(manifest, || None).as_deref(), name, "{manifest}");
        }
    }

    #[test]
    fn dependency_renamed_by_workspace_is_found() {
        let root = "[workspace]\n[workspace.dependencies]\n\
            kv = { package = \"shizuku-kv\", version = \"1\" }\nserde = \"1\"";
        for (manifest, name) in [
            ("[dependencies]\nkv = { workspace = true, features = [\"nats\"] }", Some("kv")),
            ("[dependencies]\nserde.workspace = true\nkv.workspace = true", Some("kv")),
            ("[dev-dependencies.kv]\nworkspace = true", Some("kv")),
            ("[dependencies]\nserde = { workspace = true }", None),
            ("[dependencies]\nkv = \"1\"", None),
        ] {
            let found = renamed_in(manifest, || Some(root.to_owned()));
            assert_eq!(found.as_deref(), name, "{manifest}");
        }
    }

    #[test]
    fn workspace_is_the_nearest_manifest_with_that_table() {
        let text = workspace(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(text.is_some_and(|text| text.contains("[workspace.dependencies]")));
    }
}
