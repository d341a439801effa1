//! Owner files: which processes have a folder open, for the errors of others.
//!
//! The lock of the database decides, never an owner file. A process that was killed leaves its
//! file, which is recognized as stale.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::options::Mode;
use super::record::{nanos, system};

/// First and last part of the names of owner files.
const PREFIX: &str = "owner";
const SUFFIX: &str = ".json";

/// Last part of the names of owner files that are being written.
const NEW: &str = ".new";

/// Maximum size of an owner file that is read.
const LARGEST: u64 = 4096;

/// A process that has a folder open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    process: u32,
    host: String,
    /// Start of the process, in the unit of the operating system. Distinguishes the process from a
    /// later one with the same id.
    started: Option<u64>,
    /// Boot id and PID namespace, as Linux identifies them. Process ids are comparable only if both
    /// are equal. Two containers can have the same host name.
    #[serde(default)]
    boot: Option<String>,
    #[serde(default)]
    space: Option<u64>,
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
            started: stat(process).ok().map(|stat| stat.started),
            boot: boot(),
            space: space(),
            since: nanos(SystemTime::now()),
            label: label.map(str::to_owned).or_else(program).unwrap_or_default(),
            mode: mode.name().to_owned(),
        }
    }

    fn life(&self) -> Life {
        if self.boot.is_none() || self.space.is_none() {
            return Life::Unknown;
        }
        if self.boot != boot() {
            // The machine has been started again, or it is another one.
            return if self.host == host() { Life::Ended } else { Life::Unknown };
        }
        if self.space != space() {
            return Life::Unknown;
        }
        match stat(self.process) {
            Ok(stat) if self.started.is_some_and(|started| started != stat.started) => Life::Ended,
            Ok(stat) if stat.is_stopped => Life::Stopped,
            Ok(_) => Life::Running,
            // Only if the system shows processes at all.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && stat(std::process::id()).is_ok() =>
            {
                Life::Ended
            }
            Err(_) => Life::Unknown,
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
        self.process == std::process::id() && self.host == host() && self.space == space()
    }

    fn is_reader(&self) -> bool {
        self.mode == Mode::ReadOnly.name()
    }
}

/// Returns whether a file of this name is an owner file.
pub(super) fn is_owner_file(name: &str) -> bool {
    name.starts_with(PREFIX) && (name.ends_with(SUFFIX) || name.ends_with(NEW))
}

/// Writes the owner file of this process. Returns its path.
pub(super) fn write(
    folder: &Path,
    owner: &Owner,
    mode: Mode,
    permissions: u32,
) -> io::Result<PathBuf> {
    let number = fastrand::u64(..);
    let name = match mode {
        Mode::Single | Mode::Exclusive => format!("{PREFIX}{SUFFIX}"),
        // Several processes of these modes have the folder open.
        Mode::Shared | Mode::ReadOnly => {
            format!("{PREFIX}-{}-{number:016x}{SUFFIX}", owner.process)
        }
    };
    // A new file, because another user of the folder may have put a link at a known name.
    let (path, new) = (folder.join(&name), folder.join(format!("{PREFIX}-{number:016x}{NEW}")));
    let mut create = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut create, permissions);
    let mut file = create.write(true).create_new(true).open(&new)?;
    let mut written = || {
        // The file mode creation mask may have removed rights.
        #[cfg(unix)]
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(permissions))?;
        #[cfg(not(unix))]
        let _ = permissions;
        file.write_all(&serde_json::to_vec(owner)?)?;
        fs::rename(&new, &path)
    };
    if let Err(error) = written() {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    Ok(path)
}

/// Returns the processes that have a folder open, without those that are known to have ended. Those
/// that are known to run come first.
fn running(folder: &Path) -> Vec<(Owner, Life)> {
    let all = all(folder).into_iter().map(|(_, owner)| {
        let life = owner.life();
        (owner, life)
    });
    let mut running: Vec<_> = all.filter(|(_, life)| *life != Life::Ended).collect();
    running.sort_by_key(|(_, life)| *life == Life::Unknown);
    running
}

/// Returns the process that has a folder open for writing, or else one that reads it.
pub(super) fn holder(folder: &Path) -> Option<Owner> {
    let mut running: Vec<_> = running(folder).into_iter().map(|(owner, _)| owner).collect();
    running.sort_by_key(Owner::is_reader);
    running.into_iter().next()
}

/// Returns the stopped process that may hold a lock of a folder, and the way out, in words that
/// follow the path.
pub(super) fn stopped(folder: &Path) -> Option<String> {
    let stopped = running(folder).into_iter().find(|(_, life)| *life == Life::Stopped)?.0;
    let process = stopped.describe();
    Some(format!("is held by a stopped process: {process}; continue or end that process"))
}

/// Returns the process in the way of opening a folder like [`stopped`], or else any that has it
/// open.
pub(super) fn in_the_way(folder: &Path) -> Option<String> {
    stopped(folder).or_else(|| {
        let process = holder(folder)?.describe();
        Some(format!("is open in {process}; wait, or close it there"))
    })
}

/// Removes the files of processes that have ended without removing theirs.
pub(super) fn remove_stale(folder: &Path, mode: Mode) {
    // Except in shared mode, no other process can have the folder open for writing.
    let is_only_writer = mode != Mode::Shared;
    for (path, owner) in all(folder) {
        let is_stale = match owner.life() {
            Life::Ended => true,
            Life::Unknown => is_only_writer && !owner.is_reader(),
            Life::Running | Life::Stopped => false,
        };
        if is_stale {
            let _ = fs::remove_file(path);
        }
    }
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let is_part = name.to_str().is_some_and(|name| is_owner_file(name) && name.ends_with(NEW));
        if is_part {
            // The process that wrote it was killed, or continues without an owner file.
            let _ = fs::remove_file(entry.path());
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

/// Returns the start and the state of a process, as Linux shows them.
///
/// # Errors
/// Returns [`NotFound`](io::ErrorKind::NotFound) if the process has ended, and where the system
/// shows no processes.
fn stat(process: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let stat = || {
        // The name of the program is in parentheses, and may have any characters.
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some((state != "Z", Stat { started, is_stopped: matches!(state, "T" | "t") }))
    };
    match stat() {
        Some((true, stat)) => Ok(stat),
        Some((false, _)) => Err(io::ErrorKind::NotFound.into()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Returns the boot id of this machine.
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Returns the inode of the PID namespace of this process.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn space() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;

    Some(fs::metadata("/proc/self/ns/pid").ok()?.ino())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn space() -> Option<u64> {
    None
}

#[cfg(unix)]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn life_is_known_only_within_the_pid_namespace() {
        let this = Owner::this(Mode::Single, None);
        assert_eq!(this.life(), Life::Running);
        let of = |change: fn(&mut Owner)| {
            let mut owner = this.clone();
            change(&mut owner);
            owner.life()
        };
        // A number that was given to another process, and one that no process can have.
        assert_eq!(of(|owner| owner.started = Some(1)), Life::Ended);
        assert_eq!(of(|owner| owner.process = u32::MAX), Life::Ended);
        // Another container, an earlier start of this machine, and another machine.
        assert_eq!(of(|owner| owner.space = Some(1)), Life::Unknown);
        assert_eq!(of(|owner| owner.boot = Some("earlier".to_owned())), Life::Ended);
        let elsewhere = |owner: &mut Owner| {
            owner.boot = Some("other".to_owned());
            owner.host = "elsewhere".to_owned();
        };
        assert_eq!(of(elsewhere), Life::Unknown);
    }
}
