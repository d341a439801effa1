//! A store's configuration as a stream's, and back: the layout of ADR-8.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};
use futures_util::future::{Either, select};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::ApiError;
use super::link::Link;
use super::retry::first_patience;
use super::shape;
use super::wire::{HEADER_RESERVE, parse_time, stream_name, subject_prefix};
use crate::store::timer::sleep;
use crate::store::{
    ConnectionCapabilities, Deadline, KvError, KvResult, KvStream, StorageType, StoreConfig,
    backoff, check_store_name, ttl_fault,
};

/// How long a deletion that the server made (an expired value) is kept as a marker, in buckets
/// where values expire. Long enough for a watch or a replica to come back and see it.
const MARKER_TTL: Duration = Duration::from_secs(3600);

/// Minimum time to live that the server accepts for a message.
pub(super) const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// Maximum delay of an answer that a later one has overtaken.
const OVERTAKING: Duration = Duration::from_secs(1);

/// Metadata in which we note that times to live were requested, in buckets with a maximum age:
/// their markers need the same switches of the server. A bucket without such a request has no note,
/// so that other clients can create the same one (ADR-0073).
const KEY_TTL_NOTE: &str = "shizuku-kv.key-ttl";

/// Metadata in which we note the stream sequence before which no cursor can be honoured, because
/// tombstones lived shorter at that time than the settings show.
const CURSORS_NOTE: &str = "shizuku-kv.cursors-from";

/// What the server says of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    config: Value,
    created: String,
    state: StreamState,
    #[serde(default)]
    cluster: Option<Cluster>,
    /// The server's clock; absent before 2.10.
    #[serde(default)]
    ts: String,
}

/// Who leads a stream, or has a consumer.
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

    /// Number of messages in the stream.
    pub(super) fn messages(&self) -> u64 {
        self.state.messages
    }

    /// Number of subjects with a message.
    pub(super) fn subjects(&self) -> u64 {
        self.state.num_subjects
    }

    /// Whether the newest message of a key can be removed alone, so that an older one becomes the
    /// newest: because it has a time to live of its own, or because an operator may delete it.
    pub(super) fn reverts(&self) -> bool {
        self.number("max_msgs_per_subject") != 1
            && (self.flag("allow_msg_ttl") || !self.flag("deny_delete"))
    }

    /// Returns the setting because of which the stream takes no writes of store `name`, with the
    /// way out; `None` if it takes them.
    pub(super) fn takes_no_writes(&self, name: &str) -> Option<String> {
        shape::takes_no_writes(name, &self.config)
    }

    /// The name of the stream.
    fn name(&self) -> &str {
        self.config.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The server that answered, which leads the stream.
    pub(super) fn leader(&self) -> Option<&str> {
        self.cluster.as_ref()?.leader.as_deref()
    }

    /// How long the server that answered has led the stream, by its own clock; `None` if it does
    /// not tell.
    pub(super) fn led_for(&self) -> Option<Duration> {
        let since = parse_time(self.cluster.as_ref()?.leader_since.as_deref()?);
        self.now().duration_since(since).ok()
    }

    /// When the last message was taken, by the server's clock.
    pub(super) fn last_time(&self) -> SystemTime {
        parse_time(&self.state.last_ts)
    }

    /// The server's clock when it answered.
    pub(super) fn now(&self) -> SystemTime {
        parse_time(&self.ts)
    }

    /// What tells this stream from every other, and from an earlier one of the same name: when it
    /// was created, to the nanosecond, and its name.
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

    /// The settings that promises depend on, from this answer.
    pub(super) fn settings(&self) -> Settings {
        Settings::new(self)
    }

    /// Whether every message since the first one still exists.
    pub(super) fn is_gapless(&self) -> bool {
        self.state.messages == (self.state.last_seq + 1).saturating_sub(self.state.first_seq)
    }

    fn number(&self, field: &str) -> i64 {
        number(&self.config, field)
    }

    fn flag(&self, field: &str) -> bool {
        flag(&self.config, field)
    }

    fn duration(&self, field: &str) -> Option<Duration> {
        duration(&self.config, field)
    }

    /// Whether the newest message of a key may be removed without anybody having asked for it.
    fn loses_newest(&self) -> bool {
        let is_limited = |field| self.number(field) > 0;
        let evicts = self.config.get("discard").and_then(Value::as_str) != Some("new");
        is_limited("max_age") || (evicts && (is_limited("max_bytes") || is_limited("max_msgs")))
    }

    fn max_message_size(&self) -> Option<usize> {
        usize::try_from(self.number("max_msg_size")).ok().filter(|size| *size > 0)
    }

    /// The stream's configuration as a store's, every field that has a value filled in.
    fn store_config(&self) -> StoreConfig {
        let positive = |field| u64::try_from(self.number(field)).ok().filter(|n| *n > 0);
        let mut config = StoreConfig::new();
        config.description = Some(
            self.config.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
        );
        // Others may keep more versions than can be asked for here, or all of them.
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

fn duration(config: &Value, field: &str) -> Option<Duration> {
    u64::try_from(number(config, field)).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
}

fn note<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    config.get("metadata")?.get(name)?.as_str()
}

/// Lifetime of the markers that the server leaves.
fn marker_ttl(config: &Value) -> Option<Duration> {
    duration(config, "subject_delete_marker_ttl").filter(|_| flag(config, "allow_msg_ttl"))
}

/// Whether the stream was created for times to live. `None` if that is unknown: a maximum age needs
/// the same switches for its markers, and only a request for times to live is noted.
fn asks_for_ttl(config: &Value) -> Option<bool> {
    if marker_ttl(config).is_none() {
        return Some(false);
    }
    match note(config, KEY_TTL_NOTE) {
        _ if duration(config, "max_age").is_none() => Some(true),
        None => None,
        Some(asked) => Some(asked == "true"),
    }
}

/// Guaranteed lifetime of a tombstone; `None` if it stays for ever. The markers' time to live
/// limits markers and our own tombstones, the bucket's maximum age the others.
fn tombstone_life(config: &Value) -> Option<Duration> {
    [marker_ttl(config), duration(config, "max_age")].into_iter().flatten().min()
}

/// A bucket that exists: its names, which never change, and its newest known settings.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) stream: String,
    pub(super) prefix: String,
    settings: ArcSwap<Settings>,
    /// Whether this handle was opened with a request for times to live.
    asks_for_ttl: bool,
    /// Held while the settings are requested, so that concurrent writes send one request.
    pub(super) refreshing: tokio::sync::Mutex<()>,
}

/// The settings that promises depend on, from one answer of the server.
///
/// Another client or an operator may change them while handles are open.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The server's clock when it answered.
    as_of: SystemTime,
    /// When the answer arrived.
    learned: Instant,
    /// Distinguishes the stream from an earlier one of the same name.
    pub(super) created: SystemTime,
    /// The same, as in cursors.
    pub(super) incarnation: [u8; 16],
    /// The last sequence of the stream.
    pub(super) end: u64,
    /// Server's time of the message there.
    pub(super) end_time: SystemTime,
    pub(super) history: u8,
    /// Whether the server counts a message that replaces a value together with that value: with a
    /// history it keeps both, and from 2.12 on replicas count first and replace afterwards.
    pub(super) counts_replaced: bool,
    pub(super) allow_direct: bool,
    pub(super) max_message_size: Option<usize>,
    /// Whether values can have times to live. Settings that are not those of a [`Bucket`] do not
    /// know of its handle's request.
    pub(super) key_ttl: bool,
    /// Whether they can have them if the handle asks.
    offers_ttl: bool,
    pub(super) expiry_events: bool,
    pub(super) loses_newest: bool,
    pub(super) max_age: Option<Duration>,
    /// The time to live of a tombstone that we write; `None` if it stays for ever.
    ///
    /// Its end must not bring back an older value, with or without a crash. So it needs a history
    /// of 1, and markers: without them a server that is killed afterwards brings back the deleted
    /// value (nats-server #8505, ADR 0061).
    pub(super) tombstone_ttl: Option<Duration>,
    pub(super) tombstone_life: Option<Duration>,
    /// Whether other clients can write tombstones with a time to live whose end leaves no marker.
    pub(super) tombstones_vanish: bool,
    /// No cursor before this stream sequence can be honoured.
    pub(super) cursors_from: u64,
    /// Longest time that the stream allows a consumer without a request; `None` if it sets no
    /// limit.
    max_inactive: Option<Duration>,
}

impl Bucket {
    fn new(name: &str, info: &StreamInfo, config: &StoreConfig) -> Self {
        let asks_for_ttl = config.key_ttl == Some(true);
        Self {
            name: name.to_owned(),
            stream: stream_name(name),
            prefix: subject_prefix(name),
            settings: ArcSwap::from_pointee(info.settings().for_handle(asks_for_ttl)),
            asks_for_ttl,
            refreshing: tokio::sync::Mutex::default(),
        }
    }

    /// The newest known settings.
    pub(super) fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// The newest known settings, shared, to be held for longer than a moment.
    pub(super) fn settings_arc(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Adopts the settings of an answer, unless a later answer arrived a moment before. The limit
    /// is a moment, because the clock of a new leader may be behind that of the last.
    pub(super) fn learn(&self, info: &StreamInfo) {
        let newest = info.settings().for_handle(self.asks_for_ttl);
        self.settings.rcu(|known| {
            if newest.as_of < known.as_of && known.age() < OVERTAKING {
                return Arc::clone(known);
            }
            let mut newest = newest.clone();
            if newest.created != known.created {
                // The known values belong to an earlier store of the same name.
                return Arc::new(newest);
            }
            newest.cursors_from = newest.cursors_from.max(known.cursors_from);
            if lives_longer(known.tombstone_life, newest.tombstone_life) {
                // Another client has changed the settings, and left no note.
                newest.cursors_from = newest.cursors_from.max(info.last_sequence());
            }
            Arc::new(newest)
        });
    }
}

/// Whether tombstones live longer than before.
fn lives_longer(before: Option<Duration>, after: Option<Duration>) -> bool {
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
            allow_direct: info.flag("allow_direct"),
            max_message_size: info.max_message_size(),
            // With a longer history the value before would come back when the newest expires
            // (ADR-48).
            key_ttl: asks_for_ttl(&info.config) == Some(true) && history == 1,
            offers_ttl: marker_ttl.is_some() && history == 1,
            // With a longer history, a value of another client that has a time to live ends without
            // a marker: the value before comes back (ADR-48). Markers still tell of the maximum
            // age.
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

    /// These settings for a handle that asks for times to live, or does not.
    fn for_handle(mut self, asks_for_ttl: bool) -> Self {
        self.key_ttl |= asks_for_ttl && self.offers_ttl;
        self
    }

    /// The reason that single keys cannot have times to live, and the way out.
    pub(super) fn ttl_fault(&self) -> String {
        ttl_fault(Some(self.history))
    }

    /// How long a consumer can be without a request: `wanted`, or as long as the stream allows.
    pub(super) fn longest_inactive(&self, wanted: Duration) -> Duration {
        self.max_inactive.map_or(wanted, |most| most.min(wanted))
    }

    /// Age of these settings: the time since the server reported them.
    pub(super) fn age(&self) -> Duration {
        self.learned.elapsed()
    }

    /// Whether fencing tokens are sure to stay and have room, beside an operation id: without that
    /// a lost acknowledgement could not be told from a lost lock.
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

    /// Whether the newest message of a key may be removed without a request of a client.
    pub(super) fn forgets_newest(&self) -> bool {
        self.loses_newest || self.tombstone_life.is_some()
    }

    /// The largest value that fits, where a message may have `max_payload` bytes. The store's own
    /// limit leaves no room for headers: other clients set, and fill, the same number.
    pub(super) fn max_value_size(&self, max_payload: usize) -> usize {
        let most = max_payload.saturating_sub(HEADER_RESERVE);
        self.max_message_size.map_or(most, |size| size.min(most))
    }

    /// The largest message, headers included.
    pub(super) fn max_message_size(&self, max_payload: usize) -> usize {
        self.max_message_size.map_or(max_payload, |size| size.min(max_payload))
    }
}

/// What the server of this connection can do.
pub(super) fn capabilities(link: &Link) -> ConnectionCapabilities {
    let markers = link.server_is_at_least(2, 11);
    ConnectionCapabilities {
        write: true,
        compare_and_swap: true,
        atomic_writes: false,
        watch: true,
        watch_resume: true,
        max_history: 64,
        max_age: true,
        key_ttl: markers,
        fenced_writes: true,
        expiry_events: markers,
        leader_reads: true,
        persistent: true,
        shared: true,
    }
}

/// What the server says of the bucket's stream.
pub(super) async fn info(
    link: &Link,
    operation: &'static str,
    name: &str,
    deadline: Deadline,
) -> KvResult<StreamInfo> {
    let described = described(link, operation, name, deadline).await?;
    described.map_err(|error| error.into_error(operation, name))
}

/// The same, with the server's own error.
pub(super) async fn described(
    link: &Link,
    operation: &'static str,
    name: &str,
    deadline: Deadline,
) -> KvResult<Result<StreamInfo, ApiError>> {
    let subject = format!("STREAM.INFO.{}", stream_name(name));
    link.api(operation, &subject, &json!({}), deadline).await
}

/// Opens a bucket, creates it where there is none, changes it where that was asked for.
pub(super) async fn open(
    link: &Link,
    operation: &'static str,
    name: &str,
    config: &StoreConfig,
    deadline: Deadline,
) -> KvResult<Bucket> {
    if config.key_ttl == Some(true) && !link.server_is_at_least(2, 11) {
        return Err(KvError::Unsupported {
            operation,
            reason: format!(
                "times to live of single keys need nats-server 2.11, this is {}; upgrade it",
                link.client().server_info().version
            ),
        });
    }
    let mut pauses = backoff(Duration::from_millis(20), Duration::from_millis(500));
    loop {
        let found = match info(link, operation, name, deadline).await {
            Ok(found) => found,
            Err(KvError::StoreNotFound { .. }) if !config.must_exist => {
                match create(link, operation, name, config, deadline).await? {
                    Some(created) => return Ok(Bucket::new(name, &created, config)),
                    // Another client was faster: look at what it made. The stream can be gone
                    // again, or be known to one server of a cluster only.
                    None => {
                        pause(&mut pauses, operation, name, deadline).await?;
                        continue;
                    }
                }
            }
            Err(error) => return Err(error),
        };
        if let Some(reason) = shape::fault(name, &found.config) {
            return Err(KvError::Unsupported { operation, reason });
        }
        let differences = differences(config, &found);
        if differences.is_empty() {
            return Ok(Bucket::new(name, &found, config));
        }
        if !config.reconcile {
            return Err(KvError::ConfigMismatch { store: name.to_owned(), differences });
        }
        let changed = update(link, operation, name, config, found, deadline).await?;
        let differences = self::differences(config, &changed);
        if !differences.is_empty() {
            return Err(KvError::ConfigMismatch { store: name.to_owned(), differences });
        }
        return Ok(Bucket::new(name, &changed, config));
    }
}

fn differences(wanted: &StoreConfig, found: &StreamInfo) -> Vec<crate::store::ConfigDifference> {
    let mut config = found.store_config();
    if asks_for_ttl(&found.config).is_none() {
        // An unknown setting is not a difference, unless `reconcile` is to make it known.
        let is_lacking = wanted.reconcile || config.history != Some(1);
        config.key_ttl = wanted.key_ttl.map(|asked| asked && !is_lacking);
    }
    wanted.differences(&config)
}

async fn create(
    link: &Link,
    operation: &'static str,
    name: &str,
    config: &StoreConfig,
    deadline: Deadline,
) -> KvResult<Option<StreamInfo>> {
    let mut stream = json!({
        "name": stream_name(name),
        "subjects": [format!("{}>", subject_prefix(name))],
        "retention": "limits",
        "discard": "new",
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
        "max_msgs": -1,
        "max_consumers": -1,
    });
    let defaults = StoreConfig::new().history(1).replicas(1).storage(StorageType::File);
    apply(link, &mut stream, &config.clone().over(&defaults));
    let subject = format!("STREAM.CREATE.{}", stream_name(name));
    match link.api::<StreamInfo>(operation, &subject, &stream, deadline).await? {
        Ok(created) => Ok(Some(created)),
        Err(error) if error.err_code == ApiError::STREAM_NAME_IN_USE => Ok(None),
        Err(error) => Err(error.into_error(operation, name)),
    }
}

async fn update(
    link: &Link,
    operation: &'static str,
    name: &str,
    config: &StoreConfig,
    found: StreamInfo,
    deadline: Deadline,
) -> KvResult<StreamInfo> {
    if config.key_ttl == Some(true) || config.history.is_some() {
        // Checked together with the existing settings. A longer history of another client is not a
        // reason to reject another change.
        let mut merged = config.clone();
        merged.history = merged.history.or(found.store_config().history);
        let asks = asks_for_ttl(&found.config).filter(|_| found.store_config().history == Some(1));
        merged.key_ttl = merged.key_ttl.or(asks);
        merged.validate()?;
    }
    let mut stream = found.config.clone();
    // Only what was asked for is changed, so that what other clients set stays as it is.
    apply(link, &mut stream, config);
    // If tombstones live longer from now on, the settings no longer show which ones expired before.
    if lives_longer(tombstone_life(&found.config), tombstone_life(&stream)) {
        stream["metadata"][CURSORS_NOTE] = json!(found.last_sequence().to_string());
    }
    let subject = format!("STREAM.UPDATE.{}", stream_name(name));
    let request = link.api_once(operation, &subject, &stream, deadline);
    let has_happened = |found: KvResult<StreamInfo>| match found {
        Ok(changed) => differences(config, &changed).is_empty().then_some(Ok(changed)),
        Err(error) => (!error.is_retryable()).then_some(Err(error)),
    };
    match ordered(link, operation, name, request, has_happened, deadline).await? {
        Ok(changed) => Ok(changed),
        Err(error) if error.err_code == ApiError::STREAM_UPDATE_REJECTED => {
            let differences = differences(config, &found);
            tracing::debug!(reason = %error.description, "server rejected a change of the stream");
            Err(KvError::ConfigMismatch { store: name.to_owned(), differences })
        }
        Err(error) => Err(error.into_error(operation, name)),
    }
}

/// Writes the settings that were made into a stream's configuration.
fn apply(link: &Link, stream: &mut Value, config: &StoreConfig) {
    let asked_before = asks_for_ttl(stream);
    let mut set = |field: &str, value: Value| stream[field] = value;
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if let Some(description) = &config.description {
        set("description", json!(description));
    }
    if let Some(history) = config.history {
        set("max_msgs_per_subject", json!(history));
    }
    if let Some(bytes) = config.max_value_size {
        set("max_msg_size", bytes.map_or(json!(-1), |bytes| json!(bytes)));
    }
    if let Some(bytes) = config.max_bytes {
        set("max_bytes", bytes.map_or(json!(-1), |bytes| json!(bytes)));
    }
    if let Some(age) = config.max_age {
        set("max_age", json!(age.map_or(0, nanos)));
    }
    if let Some(storage) = config.storage {
        set("storage", json!(if storage == StorageType::Memory { "memory" } else { "file" }));
    }
    if let Some(replicas) = config.replicas {
        set("num_replicas", json!(replicas));
    }
    if let Some(age) = config.max_age.flatten()
        && let Some(window) = stream.get("duplicate_window").and_then(Value::as_u64)
    {
        // The server rejects a window for duplicates beyond the maximum age. Of a new stream it
        // chooses the window, so that it is the same as for other clients.
        stream["duplicate_window"] = json!(window.min(nanos(age)));
    }
    if (config.key_ttl.is_some() || config.max_age.is_some()) && link.server_is_at_least(2, 11) {
        apply_expiry(stream, config.key_ttl.or(asked_before));
    }
}

/// Makes the server leave markers if values expire, so that expiry can be seen. `key_ttl` is
/// whether times to live are requested, or `None` if that is unknown.
fn apply_expiry(stream: &mut Value, key_ttl: Option<bool>) {
    let ages = duration(stream, "max_age").is_some();
    if ages || key_ttl != Some(false) {
        stream["allow_msg_ttl"] = json!(true);
        // How long others keep theirs is their choice.
        if duration(stream, "subject_delete_marker_ttl").is_none() {
            stream["subject_delete_marker_ttl"] =
                json!(u64::try_from(MARKER_TTL.as_nanos()).unwrap_or(u64::MAX));
        }
    } else if stream.get("subject_delete_marker_ttl").is_some() {
        // The server does not let `allow_msg_ttl` be turned off.
        stream["subject_delete_marker_ttl"] = json!(0);
    }
    if ages && key_ttl == Some(true) {
        stream["metadata"][KEY_TTL_NOTE] = json!("true");
    } else if let Some(notes) = stream.get_mut("metadata").and_then(Value::as_object_mut) {
        notes.remove(KEY_TTL_NOTE);
    }
}

/// Deletes a bucket.
pub(super) async fn delete(link: &Link, name: &str, deadline: Deadline) -> KvResult<()> {
    const OPERATION: &str = "delete_store";
    let subject = format!("STREAM.DELETE.{}", stream_name(name));
    let nothing = json!({});
    let request = link.api_once::<Value>(OPERATION, &subject, &nothing, deadline);
    let has_happened = |found| match found {
        Err(KvError::StoreNotFound { .. }) => Some(Ok(Value::Null)),
        Err(error) if !error.is_retryable() => Some(Err(error)),
        Ok(_) | Err(_) => None,
    };
    match ordered(link, OPERATION, name, request, has_happened, deadline).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_error(OPERATION, name)),
    }
}

/// The answer to a command for a stream. It is sent once, because a late copy could undo changes
/// that others made meanwhile. If no answer arrives, the stream shows whether the command was
/// executed.
async fn ordered<T>(
    link: &Link,
    operation: &'static str,
    name: &str,
    request: impl Future<Output = KvResult<Result<T, ApiError>>>,
    has_happened: impl Fn(KvResult<StreamInfo>) -> Option<KvResult<T>>,
    deadline: Deadline,
) -> KvResult<Result<T, ApiError>> {
    let looks = async {
        loop {
            tokio::time::sleep(first_patience(deadline)).await;
            if let Some(outcome) = has_happened(info(link, operation, name, deadline).await) {
                return outcome;
            }
        }
    };
    match select(pin!(request), pin!(looks)).await {
        Either::Left((Err(error @ KvError::Unavailable { .. }), _)) => {
            match has_happened(info(link, operation, name, deadline).await) {
                Some(outcome) => outcome.map(Ok),
                None => Err(error),
            }
        }
        Either::Left((answer, _)) => answer,
        Either::Right((outcome, _)) => outcome.map(Ok),
    }
}

/// A round trip to JetStream.
pub(super) async fn probe(
    link: &Link,
    operation: &'static str,
    deadline: Deadline,
) -> KvResult<()> {
    match link.api::<Value>(operation, "INFO", &json!({}), deadline).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_error(operation, "")),
    }
}

/// Waits a little before another look at a stream that another client has just created.
async fn pause(
    pauses: &mut impl Iterator<Item = Duration>,
    operation: &'static str,
    name: &str,
    deadline: Deadline,
) -> KvResult<()> {
    let pause = pauses.next().unwrap_or(Duration::from_millis(500));
    if deadline.remaining() <= pause {
        return Err(KvError::Unavailable {
            operation,
            reason: format!(
                "other clients create and delete store {name:?} at the same time: the server has it when it is created, \
                 and not when it is read"
            ),
            source: None,
        });
    }
    sleep(pause).await;
    Ok(())
}

#[derive(Deserialize)]
struct Page {
    total: usize,
    #[serde(default)]
    streams: Option<Vec<Listed>>,
}

#[derive(Deserialize)]
struct Listed {
    config: Value,
}

impl Listed {
    /// The name of the store, if `store` opens it.
    fn store(&self) -> Option<String> {
        let name = self.config.get("name")?.as_str()?.strip_prefix("KV_")?;
        (check_store_name(name).is_ok() && shape::fault(name, &self.config).is_none())
            .then(|| name.to_owned())
    }
}

/// The names of the buckets that can be opened, page by page.
pub(super) fn list(link: Arc<Link>, deadline: Duration) -> KvStream<String> {
    const OPERATION: &str = "list_stores";
    let pages = futures_util::stream::try_unfold(Some(0), move |offset| {
        let link = Arc::clone(&link);
        async move {
            let Some(offset) = offset else { return Ok(None) };
            let query = json!({ "offset": offset, "subject": "$KV.*.>" });
            let deadline = Deadline::after(deadline);
            // The configurations, because not every stream with such a name can be opened.
            let page = link.api::<Page>(OPERATION, "STREAM.LIST", &query, deadline).await?;
            let Page { total, streams } = page.map_err(|e| e.into_error(OPERATION, ""))?;
            let streams = streams.unwrap_or_default();
            let next = offset + streams.len();
            let more = !streams.is_empty() && next < total;
            let names: Vec<KvResult<String>> =
                streams.iter().filter_map(Listed::store).map(Ok).collect();
            Ok(Some((futures_util::stream::iter(names), more.then_some(next))))
        }
    });
    KvStream::new(futures_util::TryStreamExt::try_flatten(pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn times_to_live_differ_from_markers_of_a_maximum_age() {
        let with = |markers: u64, age: u64, note: Value| {
            asks_for_ttl(&json!({
                "allow_msg_ttl": true,
                "subject_delete_marker_ttl": markers,
                "max_age": age,
                "metadata": note,
            }))
        };
        assert_eq!(with(HOUR, 0, Value::Null), Some(true));
        assert_eq!(with(0, 0, Value::Null), Some(false));
        assert_eq!(with(0, HOUR, Value::Null), Some(false));
        // Unknown for another client's bucket.
        assert_eq!(with(HOUR, HOUR, Value::Null), None);
        assert_eq!(with(HOUR, HOUR, json!({ KEY_TTL_NOTE: "true" })), Some(true));
        assert_eq!(with(HOUR, HOUR, json!({ KEY_TTL_NOTE: "false" })), Some(false));
        // Without an age the note means nothing.
        assert_eq!(with(HOUR, 0, json!({ KEY_TTL_NOTE: "false" })), Some(true));
        assert_eq!(asks_for_ttl(&json!({ "subject_delete_marker_ttl": HOUR })), Some(false));
    }

    #[test]
    fn markers_come_and_go_with_what_needs_them() {
        let mut stream = json!({ "max_age": HOUR });
        apply_expiry(&mut stream, Some(false));
        assert_eq!((asks_for_ttl(&stream), stream.get("metadata")), (None, None));
        assert_eq!(tombstone_life(&stream), Some(MARKER_TTL));
        apply_expiry(&mut stream, Some(true));
        assert_eq!(asks_for_ttl(&stream), Some(true));
        // The age is removed, and times to live stay.
        stream["max_age"] = json!(0);
        let asked = asks_for_ttl(&stream);
        apply_expiry(&mut stream, asked);
        assert_eq!((asks_for_ttl(&stream), marker_ttl(&stream)), (Some(true), Some(MARKER_TTL)));
        assert_eq!(stream["metadata"], json!({}));
        apply_expiry(&mut stream, Some(false));
        assert_eq!((asks_for_ttl(&stream), tombstone_life(&stream)), (Some(false), None));
        // Markers of another client stay if their purpose is unknown.
        let mut stream =
            json!({ "max_age": 0, "allow_msg_ttl": true, "subject_delete_marker_ttl": HOUR });
        apply_expiry(&mut stream, None);
        assert_eq!(marker_ttl(&stream), Some(MARKER_TTL));
    }

    #[test]
    fn tombstones_live_as_long_as_the_shorter_of_both() {
        let life = |markers: u64, age: u64| {
            let stream = json!({ "allow_msg_ttl": true, "subject_delete_marker_ttl": markers, "max_age": age });
            tombstone_life(&stream).map(|life| life.as_nanos())
        };
        assert_eq!(life(0, 0), None);
        assert_eq!(life(2, 0), Some(2));
        assert_eq!(life(0, 3), Some(3));
        assert_eq!((life(2, 3), life(3, 2)), (Some(2), Some(2)));
    }

    #[test]
    fn longer_is_what_forgets_less() {
        let [one, two] = [1, 2].map(|seconds| Some(Duration::from_secs(seconds)));
        assert!(lives_longer(one, two) && lives_longer(one, None));
        assert!(!lives_longer(two, one) && !lives_longer(None, one) && !lives_longer(one, one));
        assert!(!lives_longer(None, None));
    }
}
