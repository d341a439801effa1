//! The options of a URL: the folder, and how processes share it.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::store::{KvError, KvResult};

/// The options of a URL, for error messages.
const KNOWN: &str =
    "read_only=true, shared=true, exclusive=true, mode=0660, label=NAME, sync=always";

/// How processes share a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// This process writes, and others may read.
    #[default]
    Single,
    /// Only this process has the folder open.
    Exclusive,
    /// Any number of processes write.
    Shared,
    /// This process reads, beside a `Single` writer, `Shared` writers, or none.
    ReadOnly,
}

impl Mode {
    pub(super) fn is_read_only(self) -> bool {
        self == Self::ReadOnly
    }

    /// Returns whether other processes can commit while this one has the folder open.
    pub(super) fn notices_others(self) -> bool {
        matches!(self, Self::Shared | Self::ReadOnly)
    }

    /// Returns the name of the mode in owner files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::ReadOnly => "read_only",
        }
    }
}

/// The parts of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) folder: PathBuf,
    pub(super) mode: Mode,
    /// Permissions of files. Folders get the right to search in addition.
    pub(super) permissions: u32,
    /// A name for this process in the errors of others.
    pub(super) label: Option<String>,
    /// Whether events of the file are used, besides the interval.
    pub(super) has_events: bool,
}

impl Options {
    /// Parses the part of a URL after `file:`.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidUrl`] or [`KvError::Unsupported`].
    pub(super) fn parse(rest: &str) -> KvResult<Self> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, query),
            None => (rest, ""),
        };
        let path = match path.strip_prefix("//") {
            // A URL with an authority. A file is on this machine, so that the host is empty or
            // localhost.
            Some(rest) if rest.starts_with('/') => rest,
            Some(rest) => match rest.strip_prefix("localhost/") {
                Some(_) => &rest["localhost".len()..],
                None => {
                    return Err(invalid(
                        "a file URL has no host; write file:PATH, or file:///PATH from /",
                    ));
                }
            },
            None => path,
        };
        let path: Vec<u8> = percent_decode_str(path).collect();
        if path.is_empty() {
            return Err(invalid("the folder is missing; write file:./data"));
        }
        if path.contains(&0) {
            return Err(invalid("the path has a zero byte; remove it"));
        }
        let mut options = Self {
            folder: path_of(path)?,
            mode: Mode::default(),
            permissions: 0o600,
            label: None,
            has_events: true,
        };
        let mut modes = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let mode = match name {
                "read_only" => Some(Mode::ReadOnly),
                "shared" => Some(Mode::Shared),
                "exclusive" => Some(Mode::Exclusive),
                _ => None,
            };
            match (name, value) {
                (_, "true") if mode.is_some() => modes.extend(mode),
                (_, "false") if mode.is_some() => {}
                ("mode", octal) => options.permissions = permissions(octal)?,
                ("label", text) => {
                    let text = percent_decode_str(text).decode_utf8_lossy();
                    options.label =
                        Some(text.chars().filter(|c| !c.is_control()).take(64).collect());
                }
                ("sync", "always") => {}
                ("sync", "interval") => {
                    return Err(KvError::unsupported(
                        "connect",
                        "every acknowledged write is on disk; leave sync=interval out",
                    ));
                }
                _ => {
                    return Err(invalid(&format!(
                        "option {name:?} is unknown or has an invalid value; known are {KNOWN}"
                    )));
                }
            }
        }
        match modes.as_slice() {
            [] => {}
            [mode] => options.mode = *mode,
            _ => {
                return Err(invalid(
                    "only one of read_only, shared and exclusive can be set; remove the others",
                ));
            }
        }
        Ok(options)
    }
}

/// Returns the path of these bytes. On Unix, any bytes are valid.
#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> KvResult<PathBuf> {
    Ok(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> KvResult<PathBuf> {
    let text = String::from_utf8(bytes);
    text.map(PathBuf::from).map_err(|_| invalid("the path is not UTF-8 text; rename the folder"))
}

fn permissions(octal: &str) -> KvResult<u32> {
    match u32::from_str_radix(octal, 8) {
        Ok(bits) if bits <= 0o777 && bits & 0o600 == 0o600 && bits & 0o111 == 0 => Ok(bits),
        _ => Err(invalid("mode is not octal with 6 for the owner and no x right; write mode=0660")),
    }
}

fn invalid(reason: &str) -> KvError {
    KvError::InvalidUrl { reason: reason.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn url_is_parsed_into_folder_and_mode() {
        for (rest, folder, mode) in [
            ("./data", "./data", Mode::Single),
            ("/var/lib/app?shared=true", "/var/lib/app", Mode::Shared),
            ("///var/lib?exclusive=true&label=a", "/var/lib", Mode::Exclusive),
            ("//localhost/var?shared=false", "/var", Mode::Single),
            ("a%20b?read_only=true&sync=always", "a b", Mode::ReadOnly),
        ] {
            let options = Options::parse(rest).unwrap();
            assert_eq!((options.folder, options.mode), (PathBuf::from(folder), mode), "{rest}");
        }
        assert_eq!(Options::parse("d?mode=0660").unwrap().permissions, 0o660);
    }

    #[cfg(unix)]
    #[test]
    fn path_with_bytes_that_are_not_text_is_kept() {
        use std::os::unix::ffi::OsStrExt;

        let options = Options::parse("a%ff/b?shared=true").unwrap();
        assert_eq!(options.folder.as_os_str().as_bytes(), b"a\xff/b");
    }

    #[test]
    fn faulty_url_is_rejected_with_a_way_out() {
        for rest in [
            "",
            "//host/data",
            "?shared=true",
            "d?shared=yes",
            "d?mode=0444",
            "d?mode=0770",
            "d?x",
            "d?shared=true&exclusive=true",
            "d?sync=interval",
            "d?log=5",
            "%00",
        ] {
            let error = Options::parse(rest).unwrap_err();
            assert!(error.to_string().contains(['.', ';', ':']), "{rest}: {error}");
        }
    }
}
