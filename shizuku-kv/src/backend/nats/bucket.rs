//! A store's configuration as a stream's, and back: the layout of ADR-8.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use futures_util::future::{Either, select};
use serde::Deserialize;
use serde_json::{Value, json};

use super::link::{ApiError, Link, first_patience};
use super::wire::{HEADER_RESERVE, SMALL_HEADER_RESERVE, parse_time, stream_name, subject_prefix};
use crate::store::{ConnectionCapabilities, Deadline, KvError, KvResult, KvStream, StorageType, StoreConfig};

/// How long a deletion that the server made (an expired value) is kept as a marker, in buckets where values expire.
/// Long enough for a watch or a replica to come back and see it.
const MARKER_TTL: Duration = Duration::from_secs(3600);

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
    /// Absent before 2.12.
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

    /// Number of subjects that have a message.
    pub(super) fn subjects(&self) -> u64 {
        self.state.num_subjects
    }

    /// Whether the newest message of a key can go alone, so that an older one is the newest then: because it has a time
    /// to live of its own, or because an operator may delete it.
    pub(super) fn reverts(&self) -> bool {
        self.number("max_msgs_per_subject") != 1 && (self.flag("allow_msg_ttl") || !self.flag("deny_delete"))
    }

    /// The server that answered, which leads the stream.
    pub(super) fn leader(&self) -> Option<&str> {
        self.cluster.as_ref()?.leader.as_deref()
    }

    /// How long the server that answered has led the stream, by its own clock; none where it does
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

    /// What tells this stream from every other, and from an earlier one of the same name: when it was created, to the
    /// nanosecond, and its name.
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

    fn number(&self, field: &str) -> i64 {
        self.config.get(field).and_then(Value::as_i64).unwrap_or(0)
    }

    fn flag(&self, field: &str) -> bool {
        self.config.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    fn duration(&self, field: &str) -> Option<Duration> {
        u64::try_from(self.number(field)).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }

    /// How long a tombstone is sure to stay, where not for ever: markers by their own time to live, the others by the
    /// bucket's maximum age.
    fn tombstone_life(&self) -> Option<Duration> {
        match (self.duration("subject_delete_marker_ttl"), self.duration("max_age")) {
            (Some(marker), Some(age)) => Some(marker.min(age)),
            (one, other) => one.or(other),
        }
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
        config.description =
            Some(self.config.get("description").and_then(Value::as_str).unwrap_or_default().to_owned());
        // Others may keep more versions than can be asked for here, or all of them.
        let history = positive("max_msgs_per_subject").unwrap_or(u64::MAX);
        config.history = Some(u8::try_from(history).unwrap_or(u8::MAX));
        config.max_value_size = self.max_message_size().map(|size| size.saturating_sub(reserve(size)));
        config.max_bytes = positive("max_bytes");
        config.max_age = self.duration("max_age");
        config.key_ttl =
            Some(self.flag("allow_msg_ttl") && self.duration("subject_delete_marker_ttl").is_some());
        config.storage = Some(match self.config.get("storage").and_then(Value::as_str) {
            Some("memory") => StorageType::Memory,
            _ => StorageType::File,
        });
        config.replicas = positive("num_replicas").and_then(|n| usize::try_from(n).ok());
        config
    }
}

/// A bucket that exists: its names, which never change, and its newest known settings.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) stream: String,
    pub(super) prefix: String,
    settings: ArcSwap<Settings>,
}

/// The settings that promises depend on, as one answer of the server told them.
///
/// Another client or an operator may change them while handles are open.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The server's clock when it answered.
    as_of: SystemTime,
    /// Tells the stream from an earlier one of the same name.
    pub(super) created: SystemTime,
    /// The last sequence of the stream.
    pub(super) end: u64,
    pub(super) history: u8,
    pub(super) allow_direct: bool,
    pub(super) max_message_size: Option<usize>,
    pub(super) key_ttl: bool,
    pub(super) expiry_events: bool,
    pub(super) loses_newest: bool,
    pub(super) tombstone_life: Option<Duration>,
}

impl Bucket {
    fn new(name: &str, info: &StreamInfo) -> Self {
        Self {
            name: name.to_owned(),
            stream: stream_name(name),
            prefix: subject_prefix(name),
            settings: ArcSwap::from_pointee(Settings::new(info)),
        }
    }

    /// The newest known settings.
    pub(super) fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Takes over the settings in an answer of the server, unless a later answer came before.
    pub(super) fn learn(&self, info: &StreamInfo) {
        let newest = Arc::new(Settings::new(info));
        self.settings.rcu(|known| Arc::clone(if newest.as_of >= known.as_of { &newest } else { known }));
    }
}

impl Settings {
    fn new(info: &StreamInfo) -> Self {
        let config = info.store_config();
        let history = config.history.unwrap_or(1);
        let markers = info.duration("subject_delete_marker_ttl").is_some();
        Self {
            as_of: info.now(),
            created: parse_time(&info.created),
            end: info.last_sequence(),
            history,
            allow_direct: info.flag("allow_direct"),
            max_message_size: info.max_message_size(),
            // With a longer history the value before would come back when the newest expires (ADR-48).
            key_ttl: config.key_ttl == Some(true) && history == 1,
            expiry_events: markers,
            loses_newest: info.loses_newest(),
            tombstone_life: info.tombstone_life(),
        }
    }

    /// Whether messages have room for an operation id.
    pub(super) fn has_operation_ids(&self) -> bool {
        self.max_message_size.is_none_or(|size| reserve(size) == HEADER_RESERVE)
    }

    /// Whether fencing tokens are sure to stay and have room, beside an operation id: without that a lost acknowledgement
    /// could not be told from a lost lock.
    pub(super) fn keeps_fences(&self) -> bool {
        self.has_operation_ids() && !self.loses_newest
    }

    /// Whether the newest message of a key may be removed without a client having asked for it.
    pub(super) fn forgets_newest(&self) -> bool {
        self.loses_newest || self.tombstone_life.is_some()
    }

    /// The largest value that fits, where a message may have `max_payload` bytes.
    pub(super) fn max_value_size(&self, max_payload: usize) -> usize {
        let size = self.max_message_size.map_or(max_payload, |size| size.min(max_payload));
        size.saturating_sub(reserve(size))
    }
}

/// What is reserved for headers in messages of a size.
fn reserve(size: usize) -> usize {
    if size > HEADER_RESERVE { HEADER_RESERVE } else { SMALL_HEADER_RESERVE }
}

/// What the server of this connection can do.
pub(super) fn capabilities(link: &Link) -> ConnectionCapabilities {
    let markers = link.server_is_at_least(2, 11);
    ConnectionCapabilities {
        write: true,
        compare_and_swap: true,
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
    let subject = format!("STREAM.INFO.{}", stream_name(name));
    let answer = link.api(operation, &subject, &json!({}), deadline).await?;
    answer.map_err(|error: ApiError| error.into_error(operation, name))
}

/// Opens a bucket, creates it where there is none, changes it where that was asked for.
pub(super) async fn open(
    link: &Link,
    name: &str,
    config: &StoreConfig,
    deadline: Deadline,
) -> KvResult<Bucket> {
    const OPERATION: &str = "open store";
    if config.key_ttl == Some(true) && !link.server_is_at_least(2, 11) {
        return Err(KvError::Unsupported {
            operation: "a time to live for single keys",
            reason: format!("it needs nats-server 2.11, this is {}", link.client().server_info().version),
        });
    }
    loop {
        let found = match info(link, OPERATION, name, deadline).await {
            Ok(found) => found,
            Err(KvError::StoreNotFound { .. }) if !config.must_exist => {
                match create(link, name, config, deadline).await? {
                    Some(created) => return Ok(Bucket::new(name, &created)),
                    // Another client was faster: look at what it made.
                    None => continue,
                }
            }
            Err(error) => return Err(error),
        };
        if found.config.get("mirror").is_some_and(|mirror| !mirror.is_null()) {
            return Err(KvError::Unsupported {
                operation: OPERATION,
                reason: format!("store {name:?} is a mirror of another; open the original"),
            });
        }
        let differences = differences(config, &found);
        if differences.is_empty() {
            return Ok(Bucket::new(name, &found));
        }
        if !config.reconcile {
            return Err(KvError::ConfigMismatch { store: name.to_owned(), differences });
        }
        let changed = update(link, name, config, found, deadline).await?;
        let differences = self::differences(config, &changed);
        if !differences.is_empty() {
            return Err(KvError::ConfigMismatch { store: name.to_owned(), differences });
        }
        return Ok(Bucket::new(name, &changed));
    }
}

fn differences(wanted: &StoreConfig, found: &StreamInfo) -> Vec<crate::store::ConfigDifference> {
    let mut found = found.store_config();
    if wanted.key_ttl == Some(false) {
        // The markers of a maximum age need the server's switch for times to live as well, so that it can be on
        // without anybody having asked for it.
        found.key_ttl = Some(false);
    }
    wanted.differences(&found)
}

async fn create(
    link: &Link,
    name: &str,
    config: &StoreConfig,
    deadline: Deadline,
) -> KvResult<Option<StreamInfo>> {
    const OPERATION: &str = "create store";
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
    match link.api::<StreamInfo>(OPERATION, &subject, &stream, deadline).await? {
        Ok(created) => Ok(Some(created)),
        Err(error) if error.err_code == ApiError::STREAM_NAME_IN_USE => Ok(None),
        Err(error) => Err(config_error(error, OPERATION, name)),
    }
}

async fn update(
    link: &Link,
    name: &str,
    config: &StoreConfig,
    found: StreamInfo,
    deadline: Deadline,
) -> KvResult<StreamInfo> {
    const OPERATION: &str = "reconcile store";
    if config.key_ttl == Some(true) {
        // With the history that is there.
        let mut merged = config.clone();
        merged.history = merged.history.or(found.store_config().history);
        merged.validate()?;
    }
    let mut stream = found.config.clone();
    // Only what was asked for is changed, so that what other clients set stays as it is.
    apply(link, &mut stream, config);
    let subject = format!("STREAM.UPDATE.{}", stream_name(name));
    let request = link.api_once(OPERATION, &subject, &stream, deadline);
    let has_happened = |found: KvResult<StreamInfo>| match found {
        Ok(changed) => differences(config, &changed).is_empty().then_some(Ok(changed)),
        Err(error) => (!error.is_retryable()).then_some(Err(error)),
    };
    match ordered(link, OPERATION, name, request, has_happened, deadline).await? {
        Ok(changed) => Ok(changed),
        Err(error) if error.err_code == ApiError::STREAM_UPDATE_REFUSED => {
            let differences = differences(config, &found);
            tracing::debug!(reason = %error.description, "the server refused to change the stream");
            Err(KvError::ConfigMismatch { store: name.to_owned(), differences })
        }
        Err(error) => Err(config_error(error, OPERATION, name)),
    }
}

/// The error for a configuration that the server does not take.
fn config_error(error: ApiError, operation: &'static str, name: &str) -> KvError {
    // Replicas beyond one without a cluster, or more than it has servers.
    if matches!(error.err_code, 10074 | 10005) {
        let reason = format!("there are not enough servers: {}", error.description);
        return KvError::Unsupported { operation: "this number of replicas", reason };
    }
    error.into_error(operation, name)
}

/// Writes the settings that were made into a stream's configuration.
fn apply(link: &Link, stream: &mut Value, config: &StoreConfig) {
    let mut set = |field: &str, value: Value| stream[field] = value;
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if let Some(description) = &config.description {
        set("description", json!(description));
    }
    if let Some(history) = config.history {
        set("max_msgs_per_subject", json!(history));
    }
    if let Some(bytes) = config.max_value_size {
        set("max_msg_size", json!(bytes + HEADER_RESERVE));
    }
    if let Some(bytes) = config.max_bytes {
        set("max_bytes", json!(bytes));
    }
    if let Some(age) = config.max_age {
        set("max_age", json!(nanos(age)));
    }
    if let Some(storage) = config.storage {
        set("storage", json!(if storage == StorageType::Memory { "memory" } else { "file" }));
    }
    if let Some(replicas) = config.replicas {
        set("num_replicas", json!(replicas));
    }
    if let Some(age) = config.max_age {
        // The server refuses a window for duplicates beyond the maximum age.
        let window = stream.get("duplicate_window").and_then(Value::as_u64).unwrap_or(120_000_000_000);
        stream["duplicate_window"] = json!(window.min(nanos(age)));
    }
    // Where values expire, the server is asked to leave markers, so that expiry can be seen.
    let expires = config.key_ttl == Some(true) || config.max_age.is_some();
    if expires && link.server_is_at_least(2, 11) {
        stream["allow_msg_ttl"] = json!(true);
        // How long others keep theirs is their choice.
        if stream.get("subject_delete_marker_ttl").and_then(Value::as_u64).is_none_or(|ttl| ttl == 0) {
            stream["subject_delete_marker_ttl"] = json!(nanos(MARKER_TTL));
        }
    } else if config.key_ttl == Some(false) && stream.get("subject_delete_marker_ttl").is_some() {
        stream["subject_delete_marker_ttl"] = json!(0);
    }
}

/// Deletes a bucket.
pub(super) async fn delete(link: &Link, name: &str, deadline: Deadline) -> KvResult<()> {
    const OPERATION: &str = "delete store";
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

/// The answer to an order about a stream that is sent once, because a copy that came late could
/// undo what others did meanwhile. If the answer fails to come, the stream shows whether the order
/// was carried out.
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
pub(super) async fn probe(link: &Link, operation: &'static str, deadline: Deadline) -> KvResult<()> {
    match link.api::<Value>(operation, "INFO", &json!({}), deadline).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_error(operation, "")),
    }
}

#[derive(Deserialize)]
struct Names {
    total: usize,
    #[serde(default)]
    streams: Option<Vec<String>>,
}

/// The names of the buckets, page by page.
pub(super) fn list(link: Arc<Link>, deadline: Duration) -> KvStream<String> {
    const OPERATION: &str = "list stores";
    let pages = futures_util::stream::try_unfold(Some(0), move |offset| {
        let link = Arc::clone(&link);
        async move {
            let Some(offset) = offset else { return Ok(None) };
            let query = json!({ "offset": offset, "subject": "$KV.*.>" });
            let deadline = Deadline::after(deadline);
            let page = link.api::<Names>(OPERATION, "STREAM.NAMES", &query, deadline).await?;
            let Names { total, streams } = page.map_err(|e| e.into_error(OPERATION, ""))?;
            let streams = streams.unwrap_or_default();
            let next = offset + streams.len();
            let more = !streams.is_empty() && next < total;
            let names =
                streams.into_iter().filter_map(|stream| stream.strip_prefix("KV_").map(str::to_owned));
            let names: Vec<KvResult<String>> = names.map(Ok).collect();
            Ok(Some((futures_util::stream::iter(names), more.then_some(next))))
        }
    });
    KvStream::new(futures_util::TryStreamExt::try_flatten(pages))
}
