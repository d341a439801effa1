//! How far a consumer may be behind the leader of its stream (ADR 0012).
//!
//! In a cluster the server places a consumer on any replica, even on one that is behind. The
//! messages that wait for such a consumer are those of its replica. Receiving all of them therefore
//! proves nothing about messages that were acknowledged before.

use std::time::Duration;

use super::stream_info::StreamInfo;
use super::wire::DeliveryInfo;

/// Time for which a leader must have led before a creation. After it, the leader certainly has the
/// messages of the previous leader.
const TAKEN_OVER: Duration = Duration::from_secs(10);

/// The distance by which a consumer may be behind the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lag {
    /// The consumer began with all messages of the leader.
    None,
    /// The consumer may be behind.
    Unknown,
    /// The leader had a message with this sequence that the consumer had not delivered.
    Until(u64),
}

impl Lag {
    /// Returns the lag of a consumer that was created after the stream information was read, by the
    /// servers that answered.
    pub(super) fn of(consumer: Option<&str>, leader: Option<&str>) -> Self {
        // Without a cluster, all consumers are on one server.
        if consumer.is_none_or(|server| Some(server) == leader) {
            Self::None
        } else {
            Self::Unknown
        }
    }

    /// Returns the lag of a consumer whose creation was requested `since` before the stream
    /// information was read. The server of the consumer may have become the leader in between.
    pub(super) fn before(consumer: Option<&str>, info: &StreamInfo, since: Duration) -> Self {
        let has_led = || info.led_for().is_some_and(|led| led >= since + TAKEN_OVER);
        match Self::of(consumer, info.leader()) {
            Self::None if consumer.is_none() || has_led() => Self::None,
            _ => Self::Unknown,
        }
    }

    /// Returns whether the state may be complete with this message, so that the leader is asked.
    /// `floor` is the last sequence of the stream information, `waiting` the number of messages
    /// that waited for the consumer.
    pub(super) fn may_end_with(self, delivery: &DeliveryInfo, waiting: u64, floor: u64) -> bool {
        match self {
            Self::None => delivery.stream_sequence >= floor,
            Self::Unknown => {
                delivery.stream_sequence >= floor || delivery.consumer_sequence >= waiting
            }
            Self::Until(end) => delivery.stream_sequence >= end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumer_is_level_only_at_the_leader() {
        assert_eq!(Lag::of(Some("a"), Some("a")), Lag::None);
        assert_eq!(Lag::of(Some("b"), Some("a")), Lag::Unknown);
        assert_eq!(Lag::of(Some("b"), None), Lag::Unknown);
        // A server without a cluster names itself for streams only.
        assert_eq!(Lag::of(None, Some("a")), Lag::None);
        assert_eq!(Lag::of(None, None), Lag::None);
    }

    #[test]
    fn leader_is_asked_when_the_state_may_be_complete() {
        let delivery = |consumer_sequence, stream_sequence| DeliveryInfo {
            stream_sequence,
            consumer_sequence,
            nanos: 0,
        };
        // Three were waiting, the floor is at 10.
        assert!(!Lag::None.may_end_with(&delivery(3, 9), 3, 10));
        assert!(Lag::None.may_end_with(&delivery(1, 10), 3, 10));
        // The floor can be out of scope, and fewer messages can be waiting than the leader has.
        assert!(!Lag::Unknown.may_end_with(&delivery(2, 9), 3, 10));
        assert!(Lag::Unknown.may_end_with(&delivery(3, 9), 3, 10));
        assert!(Lag::Unknown.may_end_with(&delivery(1, 10), 3, 10));
        assert!(!Lag::Until(12).may_end_with(&delivery(5, 11), 3, 10));
        assert!(Lag::Until(12).may_end_with(&delivery(5, 12), 3, 10));
    }
}
