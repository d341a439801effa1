//! Subjects, headers and messages, as pure functions: the layout of ADR-8 and what the server adds to it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::datetime::parse_rfc3339;
use async_nats::{HeaderMap, HeaderName, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::store::{FencingToken, Key, KvEntry, KvOperation, VersionToken};

/// Our operation id: by it a write whose acknowledgement was lost is found again. Other clients ignore it.
pub(super) const OPERATION_ID: &str = "Shizuku-Op";
/// The fencing token of a write that has one, as a decimal number. Other clients ignore it.
pub(super) const FENCE: &str = "Shizuku-Fence";
pub(super) const KV_OPERATION: &str = "KV-Operation";
pub(super) const ROLLUP: &str = "Nats-Rollup";
pub(super) const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
pub(super) const TTL: &str = "Nats-TTL";
const MARKER_REASON: &str = "Nats-Marker-Reason";
const SUBJECT: &str = "Nats-Subject";
const SEQUENCE: &str = "Nats-Sequence";
const TIME_STAMP: &str = "Nats-Time-Stamp";

/// What our headers add to a value at most: the server counts them when it limits sizes, so this much is reserved below
/// every limit.
pub(super) const HEADER_RESERVE: usize = 160;

/// The same without an operation id, for buckets of other clients whose messages have no room for one.
pub(super) const SMALL_HEADER_RESERVE: usize = 96;

/// The stream of a bucket.
pub(super) fn stream_name(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// What stands before the key in the subjects of a bucket.
pub(super) fn subject_prefix(bucket: &str) -> String {
    format!("$KV.{bucket}.")
}

/// One message of a stream, however it was fetched.
#[derive(Debug)]
pub(super) struct StreamMessage {
    pub(super) key: Key,
    pub(super) sequence: u64,
    pub(super) time: SystemTime,
    pub(super) operation: KvOperation,
    /// Read only from the leader, where writes are looked for.
    pub(super) operation_id: Option<String>,
    pub(super) fence: Option<FencingToken>,
    /// Whether the value has a time to live of its own. Read only from the leader.
    pub(super) expires: bool,
    pub(super) value: Bytes,
}

impl StreamMessage {
    pub(super) fn into_entry(self) -> KvEntry {
        let version = VersionToken::from_u64(self.sequence);
        let entry = if self.operation.is_deletion() {
            KvEntry::tombstone(self.key, self.operation, version, self.time)
        } else {
            KvEntry::put(self.key, self.value, version, self.time)
        };
        entry.with_fence(self.fence)
    }
}

/// What a message did, by its headers: `KV-Operation` where a client wrote it, the marker's reason where the server
/// did (which leaves `KV-Operation` out).
pub(super) fn operation_of<T: AsRef<str>>(get: impl Fn(&'static str) -> Option<T>) -> KvOperation {
    match get(KV_OPERATION).as_ref().map(AsRef::as_ref) {
        Some("DEL") => return KvOperation::Delete,
        Some("PURGE") => return KvOperation::Purge,
        _ => {}
    }
    match get(MARKER_REASON).as_ref().map(AsRef::as_ref) {
        Some("MaxAge") => KvOperation::Expire,
        Some("Purge") => KvOperation::Purge,
        Some(_) => KvOperation::Delete,
        None => KvOperation::Put,
    }
}

fn operation_of_headers(headers: Option<&HeaderMap>) -> KvOperation {
    match headers {
        None => KvOperation::Put,
        Some(headers) => operation_of(|name| header(headers, name)),
    }
}

/// Every message that is read comes by here: a name that is no string of its own costs no allocation.
fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(HeaderName::from_static(name)).map(|value| value.as_str())
}

/// The token in a message's headers; none where there is no number, which no client of ours writes.
fn fence_of(text: &str) -> Option<FencingToken> {
    text.parse().ok().map(FencingToken::from_u64)
}

fn fence_of_headers(headers: Option<&HeaderMap>) -> Option<FencingToken> {
    header(headers?, FENCE).and_then(fence_of)
}

/// A time in the server's notation; the epoch where it is none.
pub(super) fn parse_time(text: &str) -> SystemTime {
    parse_rfc3339(text).map_or(UNIX_EPOCH, SystemTime::from)
}

/// Why an answer could not be read; says nothing about its content.
pub(super) type Malformed = &'static str;

/// The answer to a direct get: the message with its place in headers. Others may have stored headers of the same
/// names, the server's own come last.
pub(super) fn parse_direct(message: Message, prefix: &str) -> Result<StreamMessage, Malformed> {
    let headers = message.headers.as_ref().ok_or("an answer without headers")?;
    let last = |name| headers.get_last(name).map(|value| value.as_str());
    let subject = last(SUBJECT).ok_or("an answer without a subject")?;
    let sequence =
        last(SEQUENCE).and_then(|n| n.parse().ok()).ok_or("an answer without a sequence")?;
    let time = last(TIME_STAMP).map_or(UNIX_EPOCH, parse_time);
    let key = key_of(subject, prefix).ok_or("an answer for another subject")?;
    Ok(StreamMessage {
        key,
        sequence,
        time,
        operation: operation_of_headers(Some(headers)),
        operation_id: None,
        fence: fence_of_headers(Some(headers)),
        expires: false,
        value: message.payload,
    })
}

/// The key of a subject; none for what is no key of the bucket (ADR-8 reserves `_kv`).
pub(super) fn key_of(subject: &str, prefix: &str) -> Option<Key> {
    subject.strip_prefix(prefix).and_then(|key| Key::new(key).ok())
}

/// The answer of the leader (`STREAM.MSG.GET`), with headers and value in base64.
#[derive(Deserialize)]
pub(super) struct RawMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl RawMessage {
    pub(super) fn sequence(&self) -> u64 {
        self.seq
    }

    pub(super) fn time(&self) -> SystemTime {
        parse_time(&self.time)
    }

    pub(super) fn parse(self, prefix: &str) -> Result<StreamMessage, Malformed> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| "an answer that is no base64");
        let headers = decode(&self.hdrs)?;
        let headers = String::from_utf8_lossy(&headers);
        let get = |name: &str| {
            headers.split("\r\n").find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        Ok(StreamMessage {
            key: key_of(&self.subject, prefix).ok_or("an answer for another subject")?,
            sequence: self.seq,
            time: parse_time(&self.time),
            operation: operation_of(get),
            operation_id: get(OPERATION_ID),
            fence: get(FENCE).and_then(|text| fence_of(&text)),
            expires: get(TTL).is_some_and(|ttl| ttl != "never"),
            value: decode(&self.data)?.into(),
        })
    }
}

/// Where a message delivered by a consumer stands, from its reply subject (ADR-15):
/// `$JS.ACK.STREAM.CONSUMER.DELIVERED.SSEQ.CSEQ.TIME.PENDING`, in the newer form with domain and account before the
/// stream and a random token at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stream_sequence: u64,
    pub(super) consumer_sequence: u64,
    pub(super) nanos: u64,
    pub(super) pending: u64,
}

impl Place {
    pub(super) fn parse(reply: &str) -> Option<Self> {
        let mut tokens = reply.split('.');
        if (tokens.next(), tokens.next()) != (Some("$JS"), Some("ACK")) {
            return None;
        }
        let rest: [&str; 10] = {
            let mut rest = [""; 10];
            let mut count = 0;
            for token in tokens {
                if let Some(place) = rest.get_mut(count) {
                    *place = token;
                }
                count += 1;
            }
            match count {
                7 => {}
                9.. => rest.rotate_left(2),
                _ => return None,
            }
            rest
        };
        Some(Self {
            stream_sequence: rest[3].parse().ok()?,
            consumer_sequence: rest[4].parse().ok()?,
            nanos: rest[5].parse().ok()?,
            pending: rest[6].parse().ok()?,
        })
    }

    pub(super) fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.nanos)
    }
}

/// A message delivered by a consumer; none for a subject that is no key of the bucket.
pub(super) fn delivered(message: Message, place: &Place, prefix: &str) -> Option<StreamMessage> {
    Some(StreamMessage {
        key: key_of(&message.subject, prefix)?,
        sequence: place.stream_sequence,
        time: place.time(),
        operation: operation_of_headers(message.headers.as_ref()),
        operation_id: None,
        fence: fence_of_headers(message.headers.as_ref()),
        expires: false,
        value: message.payload,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn places_of_both_forms() {
        let place = Place { stream_sequence: 7, consumer_sequence: 5, nanos: 1000, pending: 3 };
        assert_eq!(Place::parse("$JS.ACK.KV_b.c.1.7.5.1000.3"), Some(place));
        assert_eq!(Place::parse("$JS.ACK.hub.ACC.KV_b.c.1.7.5.1000.3"), Some(place));
        assert_eq!(Place::parse("$JS.ACK._.ACC.KV_b.c.1.7.5.1000.3.rnd"), Some(place));
        for bad in ["", "$JS.ACK", "$JS.ACK.s.c.1.7.5.1000", "_INBOX.x", "$JS.ACK.s.c.1.x.5.1000.3"]
        {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn headers_fit_into_their_reserve() {
        let base = "NATS/1.0\r\n\r\n".len()
            + format!("{EXPECTED_SEQUENCE}: {}\r\n", u64::MAX).len()
            + format!("{TTL}: {}s\r\n", u32::MAX).len();
        assert!(base <= SMALL_HEADER_RESERVE, "{base}");
        let id = format!("{OPERATION_ID}: {:016x}{:x}\r\n", u64::MAX, u64::MAX).len();
        assert!(base + id <= HEADER_RESERVE, "{}", base + id);
        let deletion = format!("NATS/1.0\r\n\r\n{KV_OPERATION}: PURGE\r\n{ROLLUP}: sub\r\n").len()
            + format!("{EXPECTED_SEQUENCE}: {}\r\n", u64::MAX).len();
        assert!(deletion + id <= HEADER_RESERVE, "{}", deletion + id);
    }

    #[test]
    fn a_token_fits_beside_the_others() {
        let fence = format!("{FENCE}: {}\r\n", u64::MAX).len();
        let id = format!("{OPERATION_ID}: {:016x}{:x}\r\n", u64::MAX, u64::MAX).len();
        let expected = format!("{EXPECTED_SEQUENCE}: {}\r\n", u64::MAX).len();
        // What has a token has no time to live.
        let put = "NATS/1.0\r\n\r\n".len() + expected + id + fence;
        assert!(put <= HEADER_RESERVE, "{put}");
        // A deletion has no value, whose room it may use. Where that is a single byte, it fits all the same, up to a
        // million billion messages in the bucket and four billion writes of one connection.
        let id = format!("{OPERATION_ID}: {:016x}{:x}\r\n", u64::MAX, u32::MAX).len();
        let expected = format!("{EXPECTED_SEQUENCE}: {}\r\n", 10_u64.pow(15) - 1).len();
        let deletion =
            format!("NATS/1.0\r\n\r\n{KV_OPERATION}: DEL\r\n").len() + expected + id + fence;
        assert!(deletion <= HEADER_RESERVE, "{deletion}");
    }

    #[test]
    fn a_token_is_a_number() {
        let headers = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(FENCE, text);
            fence_of_headers(Some(&headers))
        };
        for number in [0, 17, u64::MAX] {
            assert_eq!(headers(&number.to_string()), Some(FencingToken::from_u64(number)));
        }
        for text in ["", "x", "-1", "1.5", "18446744073709551616"] {
            assert_eq!(headers(text), None, "{text}");
        }
        assert_eq!(fence_of_headers(Some(&HeaderMap::new())), None);
        assert_eq!(fence_of_headers(None), None);
    }

    #[test]
    fn what_a_marker_means() {
        let with = |pairs: &'static [(&str, &str)]| {
            operation_of(|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(with(&[]), KvOperation::Put);
        assert_eq!(with(&[(KV_OPERATION, "PUT")]), KvOperation::Put);
        assert_eq!(with(&[(KV_OPERATION, "DEL")]), KvOperation::Delete);
        assert_eq!(with(&[(KV_OPERATION, "PURGE")]), KvOperation::Purge);
        assert_eq!(with(&[(MARKER_REASON, "MaxAge")]), KvOperation::Expire);
        assert_eq!(with(&[(MARKER_REASON, "Purge")]), KvOperation::Purge);
        assert_eq!(with(&[(MARKER_REASON, "Remove")]), KvOperation::Delete);
    }

    #[test]
    fn leader_answers() {
        let raw = RawMessage {
            subject: "$KV.b.a.b".into(),
            seq: 9,
            hdrs: STANDARD.encode(
                "NATS/1.0\r\nShizuku-Op: x1\r\nShizuku-Fence: 17\r\nKV-Operation: DEL\r\n\r\n",
            ),
            data: String::new(),
            time: "2026-01-01T00:00:01Z".into(),
        };
        let message = raw.parse("$KV.b.").unwrap();
        assert_eq!(message.key, "a.b");
        assert_eq!(message.operation, KvOperation::Delete);
        assert_eq!(message.operation_id.as_deref(), Some("x1"));
        assert_eq!(message.fence, Some(FencingToken::from_u64(17)));
        assert_eq!(message.time, UNIX_EPOCH + Duration::from_secs(1_767_225_601));
    }
}
