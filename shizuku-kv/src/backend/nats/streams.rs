//! The streams of buckets: opens, creates, changes, deletes and lists them, in the layout of ADR-8.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::ApiError;
use super::bucket::Bucket;
use super::link::Link;
use super::retry::first_patience;
use super::settings::lives_longer;
use super::shape;
use super::stream_info::{
    CURSORS_NOTE, KEY_TTL_NOTE, StreamInfo, asks_for_ttl, duration, tombstone_life,
};
use super::wire::{stream_name, subject_prefix};
use crate::store::timer::sleep;
use crate::store::{
    ConfigDifference, Deadline, KvError, KvResult, KvStream, StorageType, StoreConfig, backoff,
    check_store_name,
};

/// Lifetime of the marker that the server writes for an expired value. It is long enough for a
/// watch or a replica to reconnect and receive the marker.
const MARKER_TTL: Duration = Duration::from_secs(3600);

/// Requests the server's description of the bucket's stream.
pub(super) async fn info(
    link: &Link,
    operation: &'static str,
    name: &str,
    deadline: Deadline,
) -> KvResult<StreamInfo> {
    let described = described(link, operation, name, deadline).await?;
    described.map_err(|error| error.into_error(operation, name))
}

/// Like [`info`], with the server's own error.
pub(super) async fn described(
    link: &Link,
    operation: &'static str,
    name: &str,
    deadline: Deadline,
) -> KvResult<Result<StreamInfo, ApiError>> {
    let subject = format!("STREAM.INFO.{}", stream_name(name));
    link.api(operation, &subject, &json!({}), deadline).await
}

/// Opens a bucket. Creates a missing one, and changes an existing one if that was requested.
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
                    // Another client was faster, so that its stream is read. The stream may already
                    // be deleted again, or be known to one server of a cluster only.
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

fn differences(wanted: &StoreConfig, found: &StreamInfo) -> Vec<ConfigDifference> {
    let mut config = found.store_config();
    if asks_for_ttl(&found.config).is_none() {
        // An unknown setting is not a difference, unless `reconcile` was requested.
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
        // The change is checked together with the existing settings. A longer history of another
        // client is not a reason to reject another change.
        let mut merged = config.clone();
        merged.history = merged.history.or(found.store_config().history);
        let asks = asks_for_ttl(&found.config).filter(|_| found.store_config().history == Some(1));
        merged.key_ttl = merged.key_ttl.or(asks);
        merged.validate()?;
    }
    let mut stream = found.config.clone();
    // Only requested settings are changed, so that those of other clients stay.
    apply(link, &mut stream, config);
    // If the lifetime of tombstones becomes longer, the settings no longer show which tombstones
    // expired before.
    if lives_longer(tombstone_life(&found.config), tombstone_life(&stream)) {
        stream["metadata"][CURSORS_NOTE] = json!(found.last_sequence().to_string());
    }
    let subject = format!("STREAM.UPDATE.{}", stream_name(name));
    let request = link.api_once(operation, &subject, &stream, deadline);
    let has_happened = |found: KvResult<StreamInfo>| match found {
        Ok(changed) => differences(config, &changed).is_empty().then_some(Ok(changed)),
        Err(error) => (!error.is_retryable()).then_some(Err(error)),
    };
    match execute_once(link, operation, name, request, has_happened, deadline).await? {
        Ok(changed) => Ok(changed),
        Err(error) if error.err_code == ApiError::STREAM_UPDATE_REJECTED => {
            let differences = differences(config, &found);
            tracing::debug!(reason = %error.description, "cannot change the stream as requested");
            Err(KvError::ConfigMismatch { store: name.to_owned(), differences })
        }
        Err(error) => Err(error.into_error(operation, name)),
    }
}

/// Writes the given settings into a stream's configuration.
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
        // The server rejects a window for duplicates beyond the maximum age. For a new stream the
        // server chooses the window, so that the stream is the same as those of other clients.
        stream["duplicate_window"] = json!(window.min(nanos(age)));
    }
    if (config.key_ttl.is_some() || config.max_age.is_some()) && link.server_is_at_least(2, 11) {
        apply_expiry(stream, config.key_ttl.or(asked_before));
    }
}

/// Makes the server write markers if values expire, so that watches receive the expiry. `key_ttl`
/// is whether times to live are requested, or `None` if that is unknown.
fn apply_expiry(stream: &mut Value, key_ttl: Option<bool>) {
    let ages = duration(stream, "max_age").is_some();
    if ages || key_ttl != Some(false) {
        stream["allow_msg_ttl"] = json!(true);
        // The lifetime that another client has set is not changed.
        if duration(stream, "subject_delete_marker_ttl").is_none() {
            stream["subject_delete_marker_ttl"] =
                json!(u64::try_from(MARKER_TTL.as_nanos()).unwrap_or(u64::MAX));
        }
    } else if stream.get("subject_delete_marker_ttl").is_some() {
        // The server rejects turning `allow_msg_ttl` off.
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
    match execute_once(link, OPERATION, name, request, has_happened, deadline).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_error(OPERATION, name)),
    }
}

/// Returns the answer to a command for a stream. The command is sent once, because a late copy
/// could undo changes that others made meanwhile. If no answer arrives, the stream shows whether
/// the command was executed.
async fn execute_once<T>(
    link: &Link,
    operation: &'static str,
    name: &str,
    request: impl Future<Output = KvResult<Result<T, ApiError>>>,
    has_happened: impl Fn(KvResult<StreamInfo>) -> Option<KvResult<T>>,
    deadline: Deadline,
) -> KvResult<Result<T, ApiError>> {
    let reads = async {
        loop {
            tokio::time::sleep(first_patience(deadline)).await;
            if let Some(outcome) = has_happened(info(link, operation, name, deadline).await) {
                return outcome;
            }
        }
    };
    match select(pin!(request), pin!(reads)).await {
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

/// Makes a round trip to JetStream.
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

/// Waits for a short time before another read of a stream that another client has just created.
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
    /// Returns the name of the store, if `store` can open it.
    fn store(&self) -> Option<String> {
        let name = self.config.get("name")?.as_str()?.strip_prefix("KV_")?;
        (check_store_name(name).is_ok() && shape::fault(name, &self.config).is_none())
            .then(|| name.to_owned())
    }
}

/// Returns the names of the buckets that can be opened, page by page.
pub(super) fn list(link: Arc<Link>, deadline: Duration) -> KvStream<String> {
    const OPERATION: &str = "list_stores";
    let pages = futures_util::stream::try_unfold(Some(0), move |offset| {
        let link = Arc::clone(&link);
        async move {
            let Some(offset) = offset else { return Ok(None) };
            let query = json!({ "offset": offset, "subject": "$KV.*.>" });
            let deadline = Deadline::after(deadline);
            // The configurations are requested, because not every stream with such a name can be
            // opened.
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
    use super::super::stream_info::marker_ttl;
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
        // For another client's bucket, the request is unknown.
        assert_eq!(with(HOUR, HOUR, Value::Null), None);
        assert_eq!(with(HOUR, HOUR, json!({ KEY_TTL_NOTE: "true" })), Some(true));
        assert_eq!(with(HOUR, HOUR, json!({ KEY_TTL_NOTE: "false" })), Some(false));
        // Without a maximum age the metadata has no effect.
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
        // The maximum age is removed, and times to live stay.
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
}
