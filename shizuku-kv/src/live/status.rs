//! How current a live value is.

use std::sync::Arc;

use crate::store::{KvError, KvOperation, VersionToken, WatchLink};
use crate::typed::KvReadError;

/// How current a [`Live`](crate::Live) value is, and what the store has in its place.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveStatus {
    /// Whether the store is heard from; if not, since when and why.
    pub link: WatchLink,
    /// How the value in force stands to what the store has, as far as is known.
    pub standing: LiveStanding,
}

impl LiveStatus {
    /// Returns `true` if the store is heard from and the value in force is the store's, except for
    /// updates on their way. Returns `false` if the store has no value, also for a
    /// `Live<Option<T>>` whose value is `None`: [`standing`](Self::standing) is
    /// [`LiveStanding::Absent`] then.
    ///
    /// If an entry leaves the store without a message, because an operator purged it for example,
    /// the status tells of it after the next comparison with the store, up to 60 s later:
    /// [`Store::with_comparison`](crate::Store::with_comparison).
    pub fn is_current(&self) -> bool {
        self.link.is_up() && matches!(self.standing, LiveStanding::Current)
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.standing, LiveStanding::Ended { .. })
    }

    /// The same for a value that nothing follows any more.
    pub(super) fn ended(mut self) -> Self {
        if !self.is_ended() {
            self.standing = LiveStanding::Ended { error: KvError::Closed { operation: "live" } };
        }
        self
    }
}

/// How a live value stands to what the store has.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LiveStanding {
    /// The value in force is the store's.
    Current,
    /// Nothing is known of the store yet: it could not be reached, and a default is in force.
    Unknown,
    /// The store has none: it was never written, was deleted, or left the store without a message.
    /// The last value, the default or `None` is in force.
    #[non_exhaustive]
    Absent {
        /// How it went and the version of the tombstone, where one was seen.
        tombstone: Option<(KvOperation, VersionToken)>,
    },
    /// What the store has is refused: it does not decode, belongs under another key, or breaks the rule of its type.
    /// The last good value is in force, or the default.
    #[non_exhaustive]
    Rejected {
        /// The version of what is refused.
        version: VersionToken,
        /// Why.
        error: Arc<KvReadError>,
    },
    /// Nothing follows any more: the connection was shut down, or the runtime was. The last value stays in force.
    #[non_exhaustive]
    Ended {
        /// Why.
        error: KvError,
    },
}

/// What the task tells the handles.
#[derive(Clone, Debug)]
pub(super) struct State<S = LiveStatus> {
    /// One more for each value that came into force.
    pub(super) generation: u64,
    pub(super) status: S,
}
