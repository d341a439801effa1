//! The server's description of a stream, and the configuration in it.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::shape;
use super::wire::parse_time;
use crate::store::{StorageType, StoreConfig};

/// Name of the metadata that records a request for times to live, in buckets with a maximum age.
/// The markers of both need the same settings of the server. A bucket without such a request has no
/// such metadata, so that other clients can create an identical one (ADR 0073).
pub(super) const KEY_TTL_NOTE: &str = "shizuku-kv.key-ttl";

/// Name of the metadata that records the first stream sequence of valid cursors. Before it,
/// tombstones had a shorter lifetime than the settings show.
pub(super) const CURSORS_NOTE: &str = "shizuku-kv.cursors-from";

/// The server's description of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Value,
    pub(super) created: String,
    state: StreamState,
    #[serde(default)]
    cluster: Option<Cluster>,
    /// The server's time of the answer. Absent before 2.10.
    #[serde(default)]
    ts: String,
}

/// The server that leads a stream, or has a consumer.
#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    #[serde(default)]
    pub(super) leader: Option<String>,
    /// Absent before NATS 2.12.
    #[serde(default)]
    leader_since: Option<String>,
}

#[derive(Debug, Deserialize)]
struct StreamState {
    first_seq: u64,
    last_seq: u64,
    last_ts: String,
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    num_subjects: u64,
}

impl StreamInfo {
    pub(super) fn first_sequence(&self) -> u64 {
        self.state.first_seq
    }

    pub(super) fn last_sequence(&self) -> u64 {
        self.state.last_seq
    }

    /// Returns the number of messages in the stream.
    pub(super) fn messages(&self) -> u64 {
        self.state.messages
    }

    /// Returns the number of subjects with a message.
    pub(super) fn subjects(&self) -> u64 {
        self.state.num_subjects
    }

    /// Returns whether the newest message of a key can be removed alone, so that an older one
    /// becomes the newest. The cause is the message's own time to live, or a deletion by an
    /// operator.
    pub(super) fn reverts(&self) -> bool {
        self.number("max_msgs_per_subject") != 1
            && (self.flag("allow_msg_ttl") || !self.flag("deny_delete"))
    }

    /// Returns the setting that prevents writes to store `name`, with the remedy. Returns `None` if
    /// the stream accepts writes.
    pub(super) fn takes_no_writes(&self, name: &str) -> Option<String> {
        shape::takes_no_writes(name, &self.config)
    }

    /// Returns the name of the stream.
    pub(super) fn name(&self) -> &str {
        self.config.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the server that answered, which is the leader of the stream.
    pub(super) fn leader(&self) -> Option<&str> {
        self.cluster.as_ref()?.leader.as_deref()
    }

    /// Returns the time for which the answering server has led the stream, by its own clock.
    /// Returns `None` if the answer lacks it.
    pub(super) fn led_for(&self) -> Option<Duration> {
        let since = parse_time(self.cluster.as_ref()?.leader_since.as_deref()?);
        self.now().duration_since(since).ok()
    }

    /// Returns the time of the last message, by the server's clock.
    pub(super) fn last_time(&self) -> SystemTime {
        parse_time(&self.state.last_ts)
    }

    /// Returns whether nothing was written between the two answers about one stream.
    pub(super) fn has_end_of(&self, other: &Self) -> bool {
        (self.last_sequence(), self.last_time()) == (other.last_sequence(), other.last_time())
    }

    /// Returns the server's time of the answer.
    pub(super) fn now(&self) -> SystemTime {
        parse_time(&self.ts)
    }

    /// Returns the incarnation, which no other stream has, nor an earlier one of the same name. It
    /// is computed from the creation time, to the nanosecond, and the name.
    pub(super) fn incarnation(&self, stream: &str) -> [u8; 16] {
        let nanos = parse_time(&self.created)
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&nanos.to_be_bytes());
        incarnation[8..12].copy_from_slice(&crc32fast::hash(stream.as_bytes()).to_be_bytes());
        incarnation[12..].copy_from_slice(&crc32fast::hash(self.created.as_bytes()).to_be_bytes());
        incarnation
    }

    /// Returns whether every message since the first one still exists.
    pub(super) fn is_gapless(&self) -> bool {
        self.state.messages == (self.state.last_seq + 1).saturating_sub(self.state.first_seq)
    }

    pub(super) fn number(&self, field: &str) -> i64 {
        number(&self.config, field)
    }

    pub(super) fn flag(&self, field: &str) -> bool {
        flag(&self.config, field)
    }

    pub(super) fn duration(&self, field: &str) -> Option<Duration> {
        duration(&self.config, field)
    }

    /// Returns whether the newest message of a key may be removed without a request of a client.
    pub(super) fn loses_newest(&self) -> bool {
        let is_limited = |field| self.number(field) > 0;
        let evicts = self.config.get("discard").and_then(Value::as_str) != Some("new");
        is_limited("max_age") || (evicts && (is_limited("max_bytes") || is_limited("max_msgs")))
    }

    pub(super) fn max_message_size(&self) -> Option<usize> {
        usize::try_from(self.number("max_msg_size")).ok().filter(|size| *size > 0)
    }

    /// Returns the stream's configuration as a store's, with each field that has a value.
    pub(super) fn store_config(&self) -> StoreConfig {
        let positive = |field| u64::try_from(self.number(field)).ok().filter(|n| *n > 0);
        let mut config = StoreConfig::new();
        config.description = Some(
            self.config.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
        );
        // Other clients may keep more versions than can be requested here, or all of them.
        let history = positive("max_msgs_per_subject").unwrap_or(u64::MAX);
        config.history = Some(u8::try_from(history).unwrap_or(u8::MAX));
        config.max_value_size = Some(self.max_message_size());
        config.max_bytes = Some(positive("max_bytes"));
        config.max_age = Some(self.duration("max_age"));
        config.key_ttl = Some(asks_for_ttl(&self.config) != Some(false));
        config.storage = Some(match self.config.get("storage").and_then(Value::as_str) {
            Some("memory") => StorageType::Memory,
            _ => StorageType::File,
        });
        config.replicas = positive("num_replicas").and_then(|n| usize::try_from(n).ok());
        config
    }
}

fn number(config: &Value, field: &str) -> i64 {
    config.get(field).and_then(Value::as_i64).unwrap_or(0)
}

fn flag(config: &Value, field: &str) -> bool {
    config.get(field).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn duration(config: &Value, field: &str) -> Option<Duration> {
    u64::try_from(number(config, field)).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
}

pub(super) fn note<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    config.get("metadata")?.get(name)?.as_str()
}

/// Returns the lifetime of the markers that the server writes.
pub(super) fn marker_ttl(config: &Value) -> Option<Duration> {
    duration(config, "subject_delete_marker_ttl").filter(|_| flag(config, "allow_msg_ttl"))
}

/// Returns whether the stream was created for times to live. Returns `None` if that is unknown. A
/// maximum age needs the same settings for its markers, and only a request for times to live is
/// recorded.
pub(super) fn asks_for_ttl(config: &Value) -> Option<bool> {
    if marker_ttl(config).is_none() {
        return Some(false);
    }
    match note(config, KEY_TTL_NOTE) {
        _ if duration(config, "max_age").is_none() => Some(true),
        None => None,
        Some(asked) => Some(asked == "true"),
    }
}

/// Returns the guaranteed lifetime of a tombstone. Returns `None` if it stays forever. The markers'
/// time to live limits markers and our own tombstones, the bucket's maximum age the others.
pub(super) fn tombstone_life(config: &Value) -> Option<Duration> {
    [marker_ttl(config), duration(config, "max_age")].into_iter().flatten().min()
}
