//! Owner files: which processes have a folder open for writing, for the errors of others.
//!
//! The lock of the database decides, never an owner file. A process that was killed leaves its
//! file, which is recognized as stale.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::options::Mode;
use super::record::{nanos, system};

/// First and last part of the names of owner files.
const PREFIX: &str = "owner";
const SUFFIX: &str = ".json";

/// Maximum size of an owner file that is read.
const LARGEST: u64 = 4096;

/// A process that has a folder open for writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    process: u32,
    host: String,
    /// Start of the process, in the unit of the operating system. With the number of the process,
    /// it distinguishes the process from a later one.
    started: Option<u64>,
    /// Time at which the folder was opened, in nanoseconds since 1970.
    since: u64,
    label: String,
    mode: String,
}

/// The state of the process of an owner file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Stopped,
    Ended,
    /// The process is on another host, or the system does not tell.
    Unknown,
}

impl Owner {
    /// Returns this process.
    pub(super) fn this(mode: Mode, label: Option<&str>) -> Self {
        let program = || {
            let path = std::env::current_exe().ok()?;
            Some(path.file_name()?.to_string_lossy().into_owned())
        };
        let process = std::process::id();
        Self {
            process,
            host: host(),
            started: stat(process).map(|stat| stat.started),
            since: nanos(SystemTime::now()),
            label: label.map(str::to_owned).or_else(program).unwrap_or_default(),
            mode: mode.name().to_owned(),
        }
    }

    fn life(&self) -> Life {
        if self.host != host() {
            return Life::Unknown;
        }
        match (stat(self.process), self.started) {
            (Some(stat), started) if started.is_none_or(|started| started == stat.started) => {
                if stat.is_stopped {
                    Life::Stopped
                } else {
                    Life::Running
                }
            }
            _ if cfg!(any(target_os = "linux", target_os = "android")) => Life::Ended,
            _ => Life::Unknown,
        }
    }

    /// Returns the process in words.
    pub(super) fn describe(&self) -> String {
        let age = SystemTime::now().duration_since(system(self.since)).unwrap_or_default();
        format!(
            "process {} ({:?}) on host {:?}, which opened it {} s ago in mode {}",
            self.process,
            self.label,
            self.host,
            Duration::from_secs(age.as_secs()).as_secs(),
            self.mode
        )
    }

    pub(super) fn mode(&self) -> &str {
        &self.mode
    }

    pub(super) fn is_this_process(&self) -> bool {
        self.process == std::process::id() && self.host == host()
    }

    /// Returns whether the process is stopped, so that it can block others.
    pub(super) fn is_stopped(&self) -> bool {
        self.life() == Life::Stopped
    }
}

/// Returns whether a file of this name is an owner file.
pub(super) fn is_owner_file(name: &str) -> bool {
    name.starts_with(PREFIX) && (name.ends_with(SUFFIX) || name.ends_with(".new"))
}

/// Writes the owner file of this process. Returns its path.
pub(super) fn write(
    folder: &Path,
    owner: &Owner,
    mode: Mode,
    permissions: u32,
) -> io::Result<PathBuf> {
    let name = match mode {
        // Several processes of this mode have the folder open.
        Mode::Shared => format!("{PREFIX}-{}-{:08x}{SUFFIX}", owner.process, fastrand::u32(..)),
        _ => format!("{PREFIX}{SUFFIX}"),
    };
    let (path, new) = (folder.join(&name), folder.join(format!("{name}.new")));
    let mut file = fs::File::create(&new)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(permissions))?;
    #[cfg(not(unix))]
    let _ = permissions;
    file.write_all(&serde_json::to_vec(owner)?)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// Returns the processes that have a folder open, without those that are known to have ended.
pub(super) fn running(folder: &Path) -> Vec<Owner> {
    let all = all(folder);
    all.into_iter().map(|(_, owner)| owner).filter(|owner| owner.life() != Life::Ended).collect()
}

/// Removes the files of processes that have ended without removing theirs.
pub(super) fn remove_stale(folder: &Path) {
    for (path, owner) in all(folder) {
        if owner.life() == Life::Ended {
            let _ = fs::remove_file(path);
        }
    }
}

fn all(folder: &Path) -> Vec<(PathBuf, Owner)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let files = entries.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name();
        let is_named =
            name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        is_named && entry.metadata().is_ok_and(|found| found.is_file() && found.len() <= LARGEST)
    });
    let read = |path: PathBuf| {
        let owner = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        Some((path, owner))
    };
    files.filter_map(|entry| read(entry.path())).collect()
}

struct Stat {
    started: u64,
    is_stopped: bool,
}

/// Returns the start and the state of a process, as Linux shows them. Returns `None` if it has
/// ended, and elsewhere.
fn stat(process: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program is in parentheses, and may have any characters.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { started, is_stopped: matches!(state, "T" | "t") }).filter(|_| state != "Z")
}

#[cfg(unix)]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}
