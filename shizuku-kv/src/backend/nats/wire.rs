//! Subjects, headers and messages, as pure functions: the layout of ADR-8 and what the server adds
//! to it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::datetime::parse_rfc3339;
use async_nats::{HeaderMap, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::store::{FencingToken, Key, KvEntry, KvOperation, Metadata, VersionToken};

/// Our operation id: by it a write whose acknowledgement was lost is found again. Other clients
/// ignore it.
pub(super) const OPERATION_ID: &str = "Shizuku-Op";
/// The fencing token of a write that has one, as a decimal number. Other clients ignore it.
pub(super) const FENCE: &str = "Shizuku-Fence";
/// The author of a write that has one. Other clients ignore it.
pub(super) const AUTHOR: &str = "Shizuku-Author";
/// The reason of a write that has one. Other clients ignore it.
pub(super) const REASON: &str = "Shizuku-Reason";
pub(super) const KV_OPERATION: &str = "KV-Operation";
pub(super) const ROLLUP: &str = "Nats-Rollup";
/// The stream that a message is for; another one rejects it.
pub(super) const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
pub(super) const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
pub(super) const TTL: &str = "Nats-TTL";
const MARKER_REASON: &str = "Nats-Marker-Reason";
const SUBJECT: &str = "Nats-Subject";
const SEQUENCE: &str = "Nats-Sequence";
const TIME_STAMP: &str = "Nats-Time-Stamp";

/// Maximum size in bytes of our headers beside a value. The server counts them when it limits
/// sizes, so this much is reserved below its maximum payload (ADR 0009, restricted by ADR 0068).
pub(super) const HEADER_RESERVE: usize = 160;

/// The stream of a bucket.
pub(super) fn stream_name(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Returns the part before the key in the subjects of a bucket.
pub(super) fn subject_prefix(bucket: &str) -> String {
    format!("$KV.{bucket}.")
}

/// Returns the size in bytes of a message's headers, as the server counts them: 0 without headers.
pub(super) fn size_of(headers: &HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let lines = headers.iter().map(|(name, values)| {
        let name: &str = name.as_ref();
        values
            .iter()
            .map(|value| name.len() + ": ".len() + value.as_str().len() + "\r\n".len())
            .sum::<usize>()
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
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
    pub(super) metadata: Option<Arc<Metadata>>,
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
        entry.with_fence(self.fence).with_metadata(self.metadata)
    }
}

/// The headers of a message that a reader needs.
#[derive(Debug, Default)]
struct Marks<'a> {
    kv_operation: Option<&'a str>,
    marker_reason: Option<&'a str>,
    operation_id: Option<&'a str>,
    fence: Option<&'a str>,
    ttl: Option<&'a str>,
    author: Option<&'a str>,
    reason: Option<&'a str>,
}

impl<'a> Marks<'a> {
    /// Reads names and values in one pass, because comparing the one or two headers of a message
    /// costs a fifth of hashing the names. Of several values of a name the first one counts.
    fn read(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut marks = Self::default();
        for (name, value) in headers {
            for (known, mark) in [
                (OPERATION_ID, &mut marks.operation_id),
                (KV_OPERATION, &mut marks.kv_operation),
                (FENCE, &mut marks.fence),
                (TTL, &mut marks.ttl),
                (MARKER_REASON, &mut marks.marker_reason),
                (AUTHOR, &mut marks.author),
                (REASON, &mut marks.reason),
            ] {
                if name.eq_ignore_ascii_case(known) {
                    mark.get_or_insert(value);
                    break;
                }
            }
        }
        marks
    }

    fn of_map(headers: Option<&'a HeaderMap>) -> Self {
        let headers = headers.into_iter().flat_map(HeaderMap::iter);
        Self::read(headers.filter_map(|(name, values)| {
            values.first().map(|value| (name.as_ref(), value.as_str()))
        }))
    }

    /// The effect of the write: a client tells it by `KV-Operation`, and the server, which leaves
    /// that out, by the reason of its marker.
    fn operation(&self) -> KvOperation {
        match (self.kv_operation, self.marker_reason) {
            (Some("DEL"), _) => KvOperation::Delete,
            (Some("PURGE"), _) | (_, Some("Purge")) => KvOperation::Purge,
            (_, Some("MaxAge")) => KvOperation::Expire,
            (_, Some(_)) => KvOperation::Delete,
            (_, None) => KvOperation::Put,
        }
    }

    /// The token; `None` for a text that is not a number, which no client of ours writes.
    fn fence(&self) -> Option<FencingToken> {
        self.fence?.parse().ok().map(FencingToken::from_u64)
    }

    /// Whether the value has a time to live of its own.
    fn expires(&self) -> bool {
        self.ttl.is_some_and(|ttl| ttl != "never")
    }

    fn metadata(&self) -> Option<Arc<Metadata>> {
        let has_any = self.author.is_some() || self.reason.is_some();
        has_any.then(|| Arc::new(Metadata::found(self.author, self.reason)))
    }
}

/// Parses a time in the server's notation. Returns the epoch if the text is not a time.
pub(super) fn parse_time(text: &str) -> SystemTime {
    parse_rfc3339(text).map_or(UNIX_EPOCH, SystemTime::from)
}

/// Reason why an answer could not be read, without its content.
pub(super) type Malformed = &'static str;

/// The answer to a direct get: the message with its position in headers. Others may have stored
/// headers of the same names, the server's own come last.
pub(super) fn parse_direct(message: Message, prefix: &str) -> Result<StreamMessage, Malformed> {
    let headers = message.headers.as_ref().ok_or("an answer without headers")?;
    let last = |name| headers.get_last(name).map(|value| value.as_str());
    let subject = last(SUBJECT).ok_or("an answer without a subject")?;
    let sequence =
        last(SEQUENCE).and_then(|n| n.parse().ok()).ok_or("an answer without a sequence")?;
    let time = last(TIME_STAMP).map_or(UNIX_EPOCH, parse_time);
    let key = key_of(subject, prefix).ok_or("an answer for another subject")?;
    let marks = Marks::of_map(Some(headers));
    Ok(StreamMessage {
        key,
        sequence,
        time,
        operation: marks.operation(),
        operation_id: None,
        fence: marks.fence(),
        metadata: marks.metadata(),
        expires: false,
        value: message.payload,
    })
}

/// Returns the key of a subject, or `None` if it is not a key of the bucket (ADR-8 reserves `_kv`).
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
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| "an answer that is not base64");
        let headers = decode(&self.hdrs)?;
        let headers = String::from_utf8_lossy(&headers);
        let lines = headers.split("\r\n").filter_map(|line| line.split_once(':'));
        let marks = Marks::read(lines.map(|(name, value)| (name, value.trim())));
        Ok(StreamMessage {
            key: key_of(&self.subject, prefix).ok_or("an answer for another subject")?,
            sequence: self.seq,
            time: parse_time(&self.time),
            operation: marks.operation(),
            operation_id: marks.operation_id.map(str::to_owned),
            fence: marks.fence(),
            metadata: marks.metadata(),
            expires: marks.expires(),
            value: decode(&self.data)?.into(),
        })
    }
}

/// Position of a message that a consumer has delivered, from its reply subject (ADR-15):
/// `$JS.ACK.STREAM.CONSUMER.DELIVERED.SSEQ.CSEQ.TIME.PENDING`, in the newer form with domain and
/// account before the stream and a random token at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeliveryInfo {
    pub(super) stream_sequence: u64,
    pub(super) consumer_sequence: u64,
    pub(super) nanos: u64,
}

impl DeliveryInfo {
    /// Reads bytes from the end, because the parts at the front are long and not needed.
    pub(super) fn parse(reply: &str) -> Option<Self> {
        let rest = reply.as_bytes().strip_prefix(b"$JS.ACK.")?;
        let after_pending = match rest.iter().filter(|byte| **byte == b'.').count() {
            6 => 0,
            dots @ 8.. => dots - 8,
            _ => return None,
        };
        let mut tokens = rest.rsplit(|byte| *byte == b'.').skip(after_pending + 1);
        let (nanos, consumer_sequence) = (number(tokens.next()?)?, number(tokens.next()?)?);
        Some(Self { stream_sequence: number(tokens.next()?)?, consumer_sequence, nanos })
    }

    pub(super) fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.nanos)
    }
}

/// The number that at most 19 digits represent, which cannot overflow. Sequences have fewer, and so
/// have times until the year 2286.
fn number(digits: &[u8]) -> Option<u64> {
    let (mut number, mut is_number) = (0_u64, (1..=19).contains(&digits.len()));
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        is_number &= digit < 10;
        number = number.wrapping_mul(10).wrapping_add(digit.into());
    }
    is_number.then_some(number)
}

/// A message delivered by a consumer, which loses its payload; `None` for a subject that is not a
/// key of the bucket.
///
/// Takes a reference so that the subject can be read afterwards: the first copy of a subject
/// allocates.
pub(super) fn delivered(
    message: &mut Message,
    delivery: &DeliveryInfo,
    prefix: &str,
) -> Option<StreamMessage> {
    let key = key_of(&message.subject, prefix)?;
    let marks = Marks::of_map(message.headers.as_ref());
    Some(StreamMessage {
        key,
        sequence: delivery.stream_sequence,
        time: delivery.time(),
        operation: marks.operation(),
        operation_id: None,
        fence: marks.fence(),
        metadata: marks.metadata(),
        expires: false,
        value: std::mem::take(&mut message.payload),
    })
}

/// Like [`delivered`], with the headers that writes need.
pub(super) fn examined(
    message: &mut Message,
    delivery: &DeliveryInfo,
    prefix: &str,
) -> Option<StreamMessage> {
    let delivered = delivered(message, delivery, prefix)?;
    let marks = Marks::of_map(message.headers.as_ref());
    let (operation_id, expires) = (marks.operation_id.map(str::to_owned), marks.expires());
    Some(StreamMessage { operation_id, expires, ..delivered })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn delivery_info_of_both_forms() {
        let delivery = DeliveryInfo { stream_sequence: 7, consumer_sequence: 5, nanos: 1000 };
        assert_eq!(DeliveryInfo::parse("$JS.ACK.KV_b.c.1.7.5.1000.3"), Some(delivery));
        assert_eq!(DeliveryInfo::parse("$JS.ACK.hub.ACC.KV_b.c.1.7.5.1000.3"), Some(delivery));
        assert_eq!(DeliveryInfo::parse("$JS.ACK._.ACC.KV_b.c.1.7.5.1000.3.rnd"), Some(delivery));
        for bad in [
            "",
            "$JS.ACK",
            "$JS.ACK.s.c.1.7.5.1000",
            "_INBOX.x",
            "$JS.ACK.s.c.1.x.5.1000.3",
            "$JS.ACK.s.c.1.7..1000.3",
            "$JS.ACK.s.c.1.7.5.18446744073709551616.3",
            "$JS.ACK.hub.s.c.1.7.5.1000.3",
        ] {
            assert_eq!(DeliveryInfo::parse(bad), None, "{bad}");
        }
        let largest = DeliveryInfo { nanos: 10_u64.pow(19) - 1, ..delivery };
        let text = format!("$JS.ACK.KV_b.c.1.7.5.{}.3", largest.nanos);
        assert_eq!(DeliveryInfo::parse(&text), Some(largest));
    }

    #[test]
    fn headers_fit_into_their_reserve() {
        let base = "NATS/1.0\r\n\r\n".len()
            + format!("{EXPECTED_SEQUENCE}: {}\r\n", u64::MAX).len()
            + format!("{TTL}: {}s\r\n", u32::MAX).len();
        let id = format!("{OPERATION_ID}: {:016x}{:x}\r\n", u64::MAX, u64::MAX).len();
        assert!(base + id <= HEADER_RESERVE, "{}", base + id);
        let deletion = format!("NATS/1.0\r\n\r\n{KV_OPERATION}: PURGE\r\n{ROLLUP}: sub\r\n").len()
            + format!("{EXPECTED_SEQUENCE}: {}\r\n", u64::MAX).len();
        assert!(deletion + id <= HEADER_RESERVE, "{}", deletion + id);
    }

    #[test]
    fn size_of_headers_equals_their_encoded_length() {
        let mut headers = HeaderMap::new();
        assert_eq!(size_of(&headers), 0);
        headers.insert(OPERATION_ID, "x");
        assert_eq!(size_of(&headers), "NATS/1.0\r\nShizuku-Op: x\r\n\r\n".len());
        headers.insert(KV_OPERATION, "DEL");
        assert_eq!(
            size_of(&headers),
            "NATS/1.0\r\nShizuku-Op: x\r\nKV-Operation: DEL\r\n\r\n".len()
        );
    }

    #[test]
    fn a_token_fits_beside_the_others() {
        let fence = format!("{FENCE}: {}\r\n", u64::MAX).len();
        let id = format!("{OPERATION_ID}: {:016x}{:x}\r\n", u64::MAX, u64::MAX).len();
        let expected = format!("{EXPECTED_SEQUENCE}: {}\r\n", u64::MAX).len();
        // A write with a token has no time to live.
        let put = "NATS/1.0\r\n\r\n".len() + expected + id + fence;
        assert!(put <= HEADER_RESERVE, "{put}");
        // A deletion has no value, whose room it may use. Where that is a single byte, it fits all
        // the same, up to a million billion messages in the bucket and four billion writes of one
        // connection.
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
            Marks::of_map(Some(&headers)).fence()
        };
        for number in [0, 17, u64::MAX] {
            assert_eq!(headers(&number.to_string()), Some(FencingToken::from_u64(number)));
        }
        for text in ["", "x", "-1", "1.5", "18446744073709551616"] {
            assert_eq!(headers(text), None, "{text}");
        }
        assert_eq!(Marks::of_map(Some(&HeaderMap::new())).fence(), None);
        assert_eq!(Marks::of_map(None).fence(), None);
    }

    #[test]
    fn marker_reason_tells_the_operation() {
        let with =
            |pairs: &[(&'static str, &'static str)]| Marks::read(pairs.iter().copied()).operation();
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
                "NATS/1.0\r\nShizuku-Op: x1\r\nShizuku-Fence: 17\r\nKV-Operation: DEL\r\n\
                 Shizuku-Reason: a: b\r\n\r\n",
            ),
            data: String::new(),
            time: "2026-01-01T00:00:01Z".into(),
        };
        let message = raw.parse("$KV.b.").unwrap();
        assert_eq!(message.key, "a.b");
        assert_eq!(message.operation, KvOperation::Delete);
        assert_eq!(message.operation_id.as_deref(), Some("x1"));
        assert_eq!(message.fence, Some(FencingToken::from_u64(17)));
        let reason = message.metadata.as_ref().and_then(|metadata| metadata.reason());
        assert_eq!(reason, Some("a: b"));
        assert_eq!(message.time, UNIX_EPOCH + Duration::from_secs(1_767_225_601));
    }
}
