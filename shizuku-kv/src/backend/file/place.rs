//! Names and permissions of the files of a folder.

use std::fs;
use std::io;
use std::path::Path;

use super::owner;
use crate::local_file;
use crate::store::{KvError, KvResult};

/// Name of the database file in its folder.
pub(super) const FILE: &str = "shizuku.redb";

/// Size in bytes of the cache of the database, which has pages of the file.
pub(super) const CACHE: usize = 48 * 1024 * 1024;

/// Size in bytes of the cache of entries beside it.
pub(super) const ENTRY_CACHE: usize = 16 * 1024 * 1024;

/// Creates a folder, unless it exists, and makes it durable.
pub(super) fn make_folder(path: &Path, permissions: u32) -> KvResult<()> {
    let mut builder = fs::DirBuilder::new();
    // Everyone with the right to read the file may also search its folder.
    let bits = permissions | ((permissions & 0o444) >> 2);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, bits);
    match builder.create(path) {
        // Another process may have created it.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let reason = format!(
                "the folder {} cannot be created: {error}; create its parent, or name another folder",
                path.display()
            );
            Err(KvError::unavailable("connect", reason).with_source(error))
        }
        _ => {
            set_permissions(path, bits)?;
            // Otherwise a loss of power can remove the folder with everything in it.
            local_file::sync_directory(path).map_err(|error| unavailable(path, &error))
        }
    }
}

/// Sets permissions that the file mode creation mask has removed.
fn set_permissions(path: &Path, bits: u32) -> KvResult<()> {
    #[cfg(unix)]
    {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(bits);
        fs::set_permissions(path, permissions).map_err(|error| unavailable(path, &error))?;
    }
    #[cfg(not(unix))]
    let _ = (path, bits);
    Ok(())
}

/// Returns the name of a file in a folder that is not of this library.
pub(super) fn foreign_file(path: &Path) -> KvResult<Option<String>> {
    let entries = fs::read_dir(path).map_err(|error| unavailable(path, &error))?;
    let names = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.into_iter().find(|name| !owner::is_owner_file(name) && !name.starts_with(FILE)))
}

/// Returns the error for a path that cannot be used.
pub(super) fn unavailable(path: &Path, error: &io::Error) -> KvError {
    let reason = format!("{}: {error}; check the path and its permissions", path.display());
    KvError::unavailable("connect", reason)
        .with_source(io::Error::new(error.kind(), error.to_string()))
}
