//! A write in flight.

use std::time::SystemTime;

use tokio::time::Instant;

use super::super::link::Mark;
use super::super::pending::PendingAnswer;
use super::super::wire::size_of;
use super::message::WriteMessage;

/// A write on its way.
pub(in super::super) struct Sent {
    pub(super) write: WriteMessage,
    pub(super) id: String,
    /// Whether every copy carries the id in a header.
    pub(super) has_id: bool,
    pub(super) since: Instant,
    /// When the last copy was sent.
    pub(super) last: Instant,
    /// When the write was last searched for, or sent.
    pub(super) searched: Instant,
    /// The last sequence of the stream before the write, and when that stream was created.
    pub(super) known: u64,
    pub(super) created: SystemTime,
    /// Whether it was sent more than once, so that a rejection may concern one copy of several.
    pub(super) repeated: bool,
    pub(super) mark: Mark,
    pub(super) subject: String,
    /// It is listened to again while the write is searched for.
    pub(super) acknowledgement: PendingAnswer,
}

impl Sent {
    /// Size in bytes of the last copy.
    pub(super) fn message_size(&self) -> usize {
        let id = self.has_id.then_some(self.id.as_str());
        size_of(&self.write.headers(id)) + self.write.value.len()
    }
}
