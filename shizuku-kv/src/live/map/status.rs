//! How current a live map is, and what it refused.

use std::sync::Arc;
use std::time::SystemTime;

use crate::store::{Key, KvError, VersionToken, WatchLink};
use crate::typed::KvReadError;

/// How current a [`LiveMap`](crate::LiveMap) is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveMapStatus {
    /// Whether the store is heard from; if not, since when and why.
    pub link: WatchLink,
    /// How the map stands to what the store has, as far as is known.
    pub standing: LiveMapStanding,
    /// How many entries of the store are refused: see [`LiveMap::rejections`](crate::LiveMap::rejections).
    pub rejected: usize,
}

impl LiveMapStatus {
    /// Whether the map follows the store, so that it is what the store has but for what is on its way. Entries that
    /// are refused do not count here: they are in [`rejected`](Self::rejected).
    pub fn is_current(&self) -> bool {
        self.link.is_up() && matches!(self.standing, LiveMapStanding::Current)
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.standing, LiveMapStanding::Ended { .. })
    }

    /// The same for a map that nothing follows any more.
    pub(super) fn ended(mut self) -> Self {
        if !self.is_ended() {
            self.standing =
                LiveMapStanding::Ended { error: KvError::Closed { operation: "live_map" } };
        }
        self
    }
}

/// How a live map stands to what the store has.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LiveMapStanding {
    /// The map is what was last heard of the store.
    Current,
    /// The store has to be read again from the start, because what was heard of it has a gap. The map stays as it was
    /// until all is read, and may be outdated.
    Rereading,
    /// Nothing follows any more: the connection was shut down, or the runtime was. The map stays as it was.
    #[non_exhaustive]
    Ended {
        /// Why.
        error: KvError,
    },
}

/// An entry of the store that was refused: it does not decode, breaks the rule of its type, or belongs under another
/// key. From [`LiveMap::rejection`](crate::LiveMap::rejection).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveRejection {
    /// The store's key, which need not be one of the type.
    pub key: Key,
    /// The version of what is refused.
    pub version: VersionToken,
    /// Why.
    pub error: Arc<KvReadError>,
    pub(super) created: SystemTime,
}

impl LiveRejection {
    /// Whether both are about the same entry. In a store that was made again versions begin anew: the time tells one of
    /// them from its namesake.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.version, self.created) == (other.version, other.created)
    }
}
