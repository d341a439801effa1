//! The settings of a bucket that promises depend on (ADR 0060).

use std::time::{Duration, Instant, SystemTime};

use super::stream_info::{
    CURSORS_NOTE, StreamInfo, asks_for_ttl, duration, marker_ttl, note, tombstone_life,
};
use super::wire::{HEADER_RESERVE, parse_time};
use crate::store::{KvError, KvResult, ttl_fault};

/// Minimum time to live that the server accepts for a message.
pub(super) const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// The settings that promises depend on, from one answer of the server.
///
/// Another client or an operator may change them while handles are open.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The server's time of the answer.
    pub(super) as_of: SystemTime,
    /// Time at which the answer arrived.
    learned: Instant,
    /// Creation time, which distinguishes the stream from an earlier one of the same name.
    pub(super) created: SystemTime,
    /// Incarnation of the stream, as in cursors.
    pub(super) incarnation: [u8; 16],
    /// The last sequence of the stream.
    pub(super) end: u64,
    /// Server's time of the message at the last sequence.
    pub(super) end_time: SystemTime,
    pub(super) history: u8,
    /// Whether the server counts a message that replaces a value in addition to that value. With a
    /// history the stream keeps both. From 2.12 on, replicas count first and replace afterwards.
    pub(super) counts_replaced: bool,
    pub(super) has_one_copy: bool,
    pub(super) allow_direct: bool,
    pub(super) max_message_size: Option<usize>,
    /// Whether values can have times to live. Only the settings of a
    /// [`Bucket`](super::bucket::Bucket) include the request of its handle.
    pub(super) key_ttl: bool,
    /// Whether values can have times to live if the handle requests them.
    offers_ttl: bool,
    pub(super) expiry_events: bool,
    pub(super) loses_newest: bool,
    pub(super) max_age: Option<Duration>,
    /// The time to live of a tombstone that this client writes. `None` if such a tombstone stays
    /// forever.
    ///
    /// The expiry of a tombstone must not restore an older value, with or without a crash. So a
    /// history of 1 and markers are required: without markers, a server that is killed afterwards
    /// restores the deleted value (nats-server #8505, ADR 0061).
    pub(super) tombstone_ttl: Option<Duration>,
    pub(super) tombstone_life: Option<Duration>,
    /// Whether other clients can write tombstones with a time to live whose end leaves no marker.
    pub(super) tombstones_vanish: bool,
    /// No cursor before this stream sequence can be honoured.
    pub(super) cursors_from: u64,
    /// Maximum time that the stream allows a consumer without a request. `None` without a limit.
    max_inactive: Option<Duration>,
}

impl StreamInfo {
    /// Returns the settings that promises depend on, from this answer.
    pub(super) fn settings(&self) -> Settings {
        Settings::new(self)
    }
}

/// Returns whether tombstones live longer than before.
pub(super) fn lives_longer(before: Option<Duration>, after: Option<Duration>) -> bool {
    before.is_some_and(|before| after.is_none_or(|after| after > before))
}

impl Settings {
    fn new(info: &StreamInfo) -> Self {
        let config = info.store_config();
        let history = config.history.unwrap_or(1);
        let marker_ttl = marker_ttl(&info.config);
        Self {
            as_of: info.now(),
            learned: Instant::now(),
            created: parse_time(&info.created),
            incarnation: info.incarnation(info.name()),
            end: info.last_sequence(),
            end_time: info.last_time(),
            history,
            counts_replaced: history != 1 || info.number("num_replicas") > 1,
            has_one_copy: info.number("num_replicas") == 1,
            allow_direct: info.flag("allow_direct"),
            max_message_size: info.max_message_size(),
            // With a longer history, the previous value would be restored when the newest expires
            // (ADR-48).
            key_ttl: asks_for_ttl(&info.config) == Some(true) && history == 1,
            offers_ttl: marker_ttl.is_some() && history == 1,
            // With a longer history, a value of another client with a time to live expires without
            // a marker. The previous value is then restored (ADR-48). Markers still report the
            // maximum age.
            expiry_events: marker_ttl.is_some()
                && (history == 1 || info.duration("max_age").is_some()),
            loses_newest: info.loses_newest(),
            max_age: info.duration("max_age"),
            tombstone_ttl: marker_ttl.filter(|_| history == 1),
            tombstone_life: tombstone_life(&info.config),
            tombstones_vanish: info.flag("allow_msg_ttl") && marker_ttl.is_none(),
            cursors_from: note(&info.config, CURSORS_NOTE)
                .and_then(|from| from.parse().ok())
                .unwrap_or(0),
            max_inactive: info
                .config
                .get("consumer_limits")
                .and_then(|limits| duration(limits, "inactive_threshold")),
        }
    }

    /// Returns the settings for a handle, which may request times to live.
    pub(super) fn for_handle(mut self, asks_for_ttl: bool) -> Self {
        self.key_ttl |= asks_for_ttl && self.offers_ttl;
        self
    }

    /// Returns the reason why single keys cannot have times to live, and the remedy.
    pub(super) fn ttl_fault(&self) -> String {
        ttl_fault(Some(self.history))
    }

    /// Returns the time for which a consumer can be without a request: `wanted`, or the limit of
    /// the stream if that is less.
    pub(super) fn longest_inactive(&self, wanted: Duration) -> Duration {
        self.max_inactive.map_or(wanted, |most| most.min(wanted))
    }

    /// Returns the age of these settings: the time since the server reported them.
    pub(super) fn age(&self) -> Duration {
        self.learned.elapsed()
    }

    /// Returns whether fencing tokens are sure to stay, and have room beside an operation id.
    /// Without the id, a lost acknowledgement could not be distinguished from a lost lock.
    pub(super) fn keeps_fences(&self) -> bool {
        self.max_message_size.is_none_or(|size| size > HEADER_RESERVE) && !self.loses_newest
    }

    /// Rejects an operation that requires entries to stay, if the store can lose them.
    pub(super) fn ensure_newest_stay(&self, operation: &'static str, store: &str) -> KvResult<()> {
        if self.keeps_fences() {
            return Ok(());
        }
        Err(KvError::Unsupported {
            operation,
            reason: format!(
                "entries of store {store:?} can now expire or be evicted: fencing tokens and locks would be lost; use a \
                 store without max_age and with discard: new"
            ),
        })
    }

    /// Returns whether the newest message of a key may be removed without a request of a client.
    pub(super) fn forgets_newest(&self) -> bool {
        self.loses_newest || self.tombstone_life.is_some()
    }

    /// Returns the maximum size of a value, if a message may have `max_payload` bytes. No room for
    /// headers is subtracted from the store's own limit, because other clients set and use the same
    /// number.
    pub(super) fn max_value_size(&self, max_payload: usize) -> usize {
        let most = max_payload.saturating_sub(HEADER_RESERVE);
        self.max_message_size.map_or(most, |size| size.min(most))
    }

    /// Returns the maximum size of a message, headers included.
    pub(super) fn max_message_size(&self, max_payload: usize) -> usize {
        self.max_message_size.map_or(max_payload, |size| size.min(max_payload))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_stream_that_reports_one_replica_has_one_copy() {
        for (replicas, has_one) in [(json!(1), true), (json!(3), false), (json!(null), false)] {
            let info: StreamInfo = serde_json::from_value(json!({
                "config": { "name": "KV_x", "num_replicas": replicas },
                "created": "2026-12-01T00:00:00Z",
                "state": { "first_seq": 0, "last_seq": 0, "last_ts": "0001-01-01T00:00:00Z" },
            }))
            .unwrap();
            assert_eq!(info.settings().has_one_copy, has_one, "{replicas}");
        }
    }

    #[test]
    fn longer_life_is_recognized() {
        let [one, two] = [1, 2].map(|seconds| Some(Duration::from_secs(seconds)));
        assert!(lives_longer(one, two) && lives_longer(one, None));
        assert!(!lives_longer(two, one) && !lives_longer(None, one) && !lives_longer(one, one));
        assert!(!lives_longer(None, None));
    }
}
