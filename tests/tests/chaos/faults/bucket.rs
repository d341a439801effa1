//! The content of a bucket, read without the library.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use shizuku_kv_tests::NatsCluster;

use crate::faults::check::Bucket;
use crate::faults::history::{History, Key};
use crate::faults::log::{Content, Sight};
use crate::faults::record::Cell;

/// Timeout for one request.
const ANSWER: Duration = Duration::from_secs(5);

/// Returns the newest entry of every key that was ever written, and the first sequence of the
/// stream.
pub(crate) async fn read(cluster: &NatsCluster, bucket: &str, history: &History) -> (Bucket, u64) {
    let mut context = jetstream::new(cluster.client().await);
    context.set_timeout(ANSWER);
    let stream = context.get_stream(format!("KV_{bucket}")).await.expect("the bucket is there");
    let mut found = Bucket::new();
    for write in &history.writes {
        let key = &write.key;
        if found.contains_key(key) {
            continue;
        }
        let message =
            match stream.get_last_raw_message_by_subject(&format!("$KV.{bucket}.{key}")).await {
                Ok(message) => message,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
                Err(error) => panic!("{key} cannot be read: {error}"),
            };
        let content = content(key, &message.headers, &message.payload);
        found.insert(
            Arc::clone(key),
            Sight { key: Arc::clone(key), version: message.sequence, content },
        );
    }
    (found, stream.cached_info().state.first_sequence)
}

fn content(key: &Key, headers: &HeaderMap, payload: &[u8]) -> Content {
    let header = |name: &str| headers.get(name).map(|value| value.as_str());
    match (header("KV-Operation"), header("Nats-Marker-Reason")) {
        (_, Some("MaxAge")) => Content::Expired,
        (Some("DEL"), _) => Content::Deleted,
        (Some("PURGE"), _) | (_, Some(_)) => Content::Purged,
        _ => Content::Value(Cell::found(key, payload).unwrap_or_else(|why| panic!("{why}")).write),
    }
}
