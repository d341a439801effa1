//! The versions of a lock's record to which the request of another process may be applied
//! (ADR 0116).

use crate::store::VersionToken;

/// Maximum number of versions. Requests that name older ones are made again.
const LONGEST: usize = 64;

/// The newest known version of a record, and earlier ones. This process has itself written every
/// version since the first of them, and these writes removed no claim.
///
/// A request names the newest version that its process knew. If that version is in the run, no
/// version since then had a claim that has left again. Applying the request to the newest version
/// therefore brings back no claim that has left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Run {
    versions: Vec<VersionToken>,
    is_own: bool,
}

impl Run {
    /// Records the newest version, from a read or from the watch.
    pub(super) fn observed(&mut self, version: Option<VersionToken>) {
        if self.versions.last().copied() != version {
            *self = Self { versions: Vec::from_iter(version), is_own: false };
        }
    }

    /// Records a write of this process over the newest known version.
    pub(super) fn wrote(&mut self, version: VersionToken, has_removed: bool) {
        if has_removed {
            self.versions.clear();
        } else if self.versions.len() >= LONGEST {
            self.versions.remove(0);
        }
        self.versions.push(version);
        self.is_own = true;
    }

    /// Returns whether a request that names this version may be applied to the newest known one.
    pub(super) fn admits(&self, base: VersionToken) -> bool {
        self.versions.contains(&base)
    }

    /// Returns whether this process has written the newest known version.
    pub(super) fn is_own(&self) -> bool {
        self.is_own
    }
}
