//! File systems of a network, on which locks do not work between hosts as redb needs them.

use std::path::Path;

#[cfg(any(target_os = "linux", target_os = "android"))]
/// Returns the kind of a network file system. Returns `None` for a local one.
pub(super) fn kind(path: &Path) -> Option<&'static str> {
    let found = rustix::fs::statfs(path).ok()?;
    // The numbers are those of linux/magic.h and of the file systems' own headers.
    match u32::try_from(found.f_type).ok()? {
        0x6969 => Some("NFS"),
        0x517B | 0xFE53_4D42 | 0xFF53_4D42 => Some("SMB"),
        0x5346_414F => Some("AFS"),
        0x0102_1997 => Some("9P"),
        0x00C3_6400 => Some("Ceph"),
        0x0BD0_0BD0 => Some("Lustre"),
        0x6573_5546 => Some("FUSE"),
        _ => None,
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
/// Returns `None`, because the system does not tell.
pub(super) fn kind(_: &Path) -> Option<&'static str> {
    None
}
