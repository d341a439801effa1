//! A write in flight.

use std::time::SystemTime;

use tokio::time::Instant;

use super::super::link::Mark;
use super::super::pending::PendingAnswer;
use super::super::wire::size_of;
use super::message::WriteMessage;

/// A write in flight.
pub(in super::super) struct Sent {
    pub(super) write: WriteMessage,
    pub(super) id: String,
    /// Whether every copy carries the id in a header.
    pub(super) has_id: bool,
    pub(super) since: Instant,
    /// Time at which the last copy was sent.
    pub(super) last: Instant,
    /// Time at which the write was last searched for, or sent.
    pub(super) searched: Instant,
    /// The last sequence of the stream before the write, and the creation time of that stream.
    pub(super) known: u64,
    pub(super) created: SystemTime,
    /// Whether the write was sent more than once, so that a rejection may concern one copy of
    /// several.
    pub(super) repeated: bool,
    pub(super) mark: Mark,
    pub(super) subject: String,
    /// The pending acknowledgement, which may still arrive during a search for the write.
    pub(super) acknowledgement: PendingAnswer,
}

impl Sent {
    /// Returns the size in bytes of the last copy.
    pub(super) fn message_size(&self) -> usize {
        let id = self.has_id.then_some(self.id.as_str());
        size_of(&self.write.headers(id)) + self.write.value.len()
    }
}
