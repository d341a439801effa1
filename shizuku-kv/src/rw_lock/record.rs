//! The stored form of a lock: one record for each resource, as readable JSON (ADR 0041).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use crate::store::{FencingToken, VersionToken};

/// The format of written records. A record of another format is left unchanged.
///
/// A later version may add fields to a record, a grant or a claim; this version preserves them when
/// it rewrites the record. A field that changes who may acquire the lock needs another format,
/// which this version neither acquires nor rewrites.
pub(super) const FORMAT: u32 = 1;

/// Fields that this version does not know.
pub(super) type Extra = Map<String, Value>;

/// Maximum size in bytes of the headers with which a swap reduces the largest value on NATS.
pub(super) const SWAP_ROOM: usize = 72;

/// Maximum number of bytes that granting a claim adds to a record.
pub(super) const GRANT_ROOM: usize =
    r#","token":18446744073709551615,"since":18446744073709551615"#.len();

/// Maximum number of decimal digits in a number.
const DIGITS: usize = 20;

/// Largest number that every JSON reader represents exactly.
const MOST_FENCE: u64 = 1 << 53;

/// Mode of a claim on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Shared with other readers.
    Read,
    /// Exclusive.
    Write,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reading",
            Self::Write => "writing",
        })
    }
}

/// The identity of a session. It is never used again, although the session's key is.
///
/// The key of an ended session serves the next one, so that the store holds no more keys than
/// sessions were alive at once. The identity therefore names the key, the version of the session's
/// first entry there, and a random number. Earlier entries of the key are older than the session. A
/// store that was deleted and created again does not reuse the keys of its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SessionId {
    /// Random number. It is stored under the key, and distinguishes the entries of this session
    /// from those of the next one.
    nonce: u128,
    /// `None` for a session whose key is named by the nonce, and is not reused.
    slot_use: Option<SlotUse>,
}

/// A reusable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot {
    /// Distinguishes the keys of a store from those of a deleted store of the same name. `None` if
    /// the backend does not know the store's incarnation, and for keys of earlier formats.
    pub(super) salt: Option<u32>,
    pub(super) number: u32,
}

/// Formats the name of the key without the common prefix.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(salt) = self.salt {
            write!(f, "{salt:08x}.")?;
        }
        write!(f, "{}", self.number)
    }
}

impl Slot {
    fn parse(text: &str) -> Option<Self> {
        let (salt, number) = match text.split_once('.') {
            Some((salt, number)) => (Some(u32::try_from(hex(salt, 8)?).ok()?), number),
            None => (None, text),
        };
        Some(Self { salt, number: u32::try_from(decimal(number)?).ok()? })
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn decimal(text: &str) -> Option<u64> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_decimal.then(|| text.parse().ok()).flatten()
}

/// A reusable key, and the version from which on it serves a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SlotUse {
    pub(super) slot: Slot,
    /// The version of the session's first entry.
    pub(super) first: u64,
}

impl SessionId {
    /// Returns a new session under a key of its own. The keys of hash maps come from the operating
    /// system's source of randomness.
    pub(super) fn random() -> Self {
        let half = |half: u8| u128::from(RandomState::new().hash_one(half));
        Self::alone(half(0) << 64 | half(1))
    }

    /// Returns a random number for a new session under a reusable key.
    pub(super) fn nonce() -> u64 {
        RandomState::new().hash_one(0_u8)
    }

    /// Returns the session under a reusable key.
    pub(super) fn at(slot_use: SlotUse, nonce: u64) -> Self {
        Self { nonce: nonce.into(), slot_use: Some(slot_use) }
    }

    /// Returns the session under the key that this number names.
    pub(super) const fn alone(nonce: u128) -> Self {
        Self { nonce, slot_use: None }
    }

    pub(super) fn slot_use(&self) -> Option<SlotUse> {
        self.slot_use
    }

    pub(super) fn number(&self) -> u128 {
        self.nonce
    }
}

/// Formats the name of the session's key without the common prefix.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot_use {
            Some(SlotUse { slot, .. }) => slot.fmt(f),
            None => write!(f, "{:032x}", self.nonce),
        }
    }
}

/// Formats the whole identity, as in a record.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot_use {
            Some(SlotUse { slot, first }) => write!(f, "{slot}-{first}-{:016x}", self.nonce),
            None => write!(f, "{:032x}", self.nonce),
        }
    }
}

impl FromStr for SessionId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let id = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(alone), None, _, _) => hex(alone, 32).map(Self::alone),
            (Some(slot), Some(first), Some(nonce), None) => {
                let slot_use = Slot::parse(slot).zip(decimal(first));
                let slot_use = slot_use.map(|(slot, first)| SlotUse { slot, first });
                slot_use
                    .zip(hex(nonce, 16))
                    .map(|(slot_use, nonce)| Self { nonce, slot_use: Some(slot_use) })
            }
            _ => None,
        };
        id.ok_or("not the identity of a session")
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Identity of a claim: its session, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ClaimId {
    pub(super) session: SessionId,
    pub(super) number: u64,
}

/// A holder of the resource, or a waiter for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Claim {
    #[serde(flatten)]
    pub(super) id: ClaimId,
    pub(super) mode: LockMode,
    /// Label that the claimant has set: a candidate's name, or the contact for an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<String>,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

impl Claim {
    /// Drops the fields of a grant. They have no meaning in a claim, and would be duplicated once
    /// it is granted.
    pub(super) fn drop_grant_fields(&mut self) {
        self.extra.retain(|name, _| name != "token" && name != "since");
    }
}

/// A claim that has been granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Grant {
    #[serde(flatten)]
    pub(super) claim: Claim,
    pub(super) token: FencingToken,
    /// When it was granted, in milliseconds since 1970, by the clock of the process that wrote it;
    /// informational only. Absent in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<u64>,
}

/// The holders of a resource, and its waiters. The record stays when it has neither, because it
/// contains the number of the last grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LockRecord {
    /// The number of the newest grant.
    pub(super) fence: u64,
    /// One writer, or any number of readers.
    pub(super) holders: Vec<Grant>,
    /// The waiters in the order of their arrival.
    pub(super) queue: Vec<Claim>,
    pub(super) extra: Extra,
}

/// The stored form of a record.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    shizuku_lock: u32,
    fence: u64,
    holders: std::borrow::Cow<'a, [Grant]>,
    queue: std::borrow::Cow<'a, [Claim]>,
    #[serde(flatten)]
    extra: std::borrow::Cow<'a, Extra>,
}

impl LockRecord {
    /// Returns the encoded record, to be written over the entry with the version `expected`.
    ///
    /// A later record without a new claim (renewals have a key of their own) is never longer, so
    /// that a full store still accepts it. It has room for the tokens of waiting readers, many of
    /// which can be granted after one release, and for growing numbers. Granting a writer needs
    /// less room than the released holders free.
    pub(super) fn to_bytes(&self, expected: Option<VersionToken>) -> Vec<u8> {
        let stored = Stored {
            shizuku_lock: FORMAT,
            fence: self.fence,
            holders: self.holders.as_slice().into(),
            queue: self.queue.as_slice().into(),
            extra: std::borrow::Cow::Borrowed(&self.extra),
        };
        // Serializing strings, numbers and lists does not fail.
        let bytes = serde_json::to_vec(&stored).unwrap_or_default();
        let readers = self.queue.iter().filter(|claim| claim.mode == LockMode::Read).count();
        let length = bytes.len() + readers * GRANT_ROOM + (DIGITS - digits(self.fence));
        padded(bytes, length, expected)
    }

    /// Records when the grants after the token `fence` were made.
    pub(super) fn stamp(&mut self, fence: u64, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let since = u64::try_from(since).ok();
        for grant in self.holders.iter_mut().filter(|grant| grant.token.as_u64() > fence) {
            grant.since = grant.since.or(since);
        }
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// Returns the reason in words of this library. Content that another program wrote is not
    /// quoted.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            shizuku_lock: u32,
        }
        let wrong = |reason: &str| Err(reason.to_owned());
        let Ok(format) = serde_json::from_slice::<Format>(bytes) else {
            return wrong("it is not a lock record");
        };
        if format.shizuku_lock != FORMAT {
            return Err(format!(
                "it is a lock record of format {}, and this version knows format {FORMAT}",
                format.shizuku_lock
            ));
        }
        let Ok(stored) = serde_json::from_slice::<Stored<'_>>(bytes) else {
            return wrong("it is a damaged lock record");
        };
        if stored.fence > MOST_FENCE {
            return wrong("its fencing token exceeds the maximum of 2^53");
        }
        let mut record = Self {
            fence: stored.fence,
            holders: stored.holders.into_owned(),
            queue: stored.queue.into_owned(),
            extra: stored.extra.into_owned(),
        };
        if !record.is_sound() {
            return wrong("it violates the invariants of a lock record");
        }
        record.queue.iter_mut().for_each(Claim::drop_grant_fields);
        Ok(record)
    }

    /// Returns whether the record keeps the rules of every record. A writer is alone, no token is
    /// beyond the newest, and no claim is there twice.
    pub(super) fn is_sound(&self) -> bool {
        let writers =
            self.holders.iter().filter(|grant| grant.claim.mode == LockMode::Write).count();
        let mut ids: Vec<_> = self.claims().map(|claim| claim.id).collect();
        let claims = ids.len();
        ids.sort_unstable();
        ids.dedup();
        let tokens_are_known = self.holders.iter().all(|grant| grant.token.as_u64() <= self.fence);
        (writers == 0 || self.holders.len() == 1) && ids.len() == claims && tokens_are_known
    }

    /// Returns the claims of all holders and waiters.
    pub(super) fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.holders.iter().map(|grant| &grant.claim).chain(&self.queue)
    }

    pub(super) fn grant(&self, id: ClaimId) -> Option<&Grant> {
        self.holders.iter().find(|grant| grant.claim.id == id)
    }
}

/// Pads JSON with spaces. The length is smaller for a longer expected version, because the server
/// counts that as well.
pub(super) fn padded(mut json: Vec<u8>, length: usize, expected: Option<VersionToken>) -> Vec<u8> {
    let version = expected.map_or(Some(0), |version| version.as_u64()).map_or(DIGITS, digits);
    json.resize(json.len().max(length + DIGITS - version), b' ');
    json
}

/// Returns the number of decimal digits.
fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |power| power as usize + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn claim(number: u64, mode: LockMode) -> Claim {
        Claim {
            id: ClaimId { session: SessionId::alone(7), number },
            mode,
            label: None,
            extra: Extra::new(),
        }
    }

    #[test]
    fn record_is_decoded_as_encoded() {
        let mut record = LockRecord { fence: 3, ..LockRecord::default() };
        let token = FencingToken::from_u64(3);
        record.holders.push(Grant { claim: claim(1, LockMode::Write), token, since: None });
        record.queue.push(Claim { label: Some("who".to_owned()), ..claim(2, LockMode::Read) });
        let bytes = record.to_bytes(None);
        assert_eq!(
            String::from_utf8_lossy(&bytes).trim_end(),
            r#"{"shizuku_lock":1,"fence":3,"holders":[{"session":"00000000000000000000000000000007","number":1,"mode":"write","token":3}],"queue":[{"session":"00000000000000000000000000000007","number":2,"mode":"read","label":"who"}]}"#
        );
        assert_eq!(LockRecord::from_bytes(&bytes), Ok(record.clone()));
        record.stamp(2, UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123));
        assert_eq!(record.holders[0].since, Some(1_700_000_000_123));
        let bytes = record.to_bytes(None);
        assert!(String::from_utf8_lossy(&bytes).contains(r#""token":3,"since":1700000000123}"#));
        assert_eq!(LockRecord::from_bytes(&bytes), Ok(record.clone()));
        // An earlier grant keeps its time, even if it has no time.
        record.stamp(0, UNIX_EPOCH);
        assert_eq!(record.holders[0].since, Some(1_700_000_000_123));
    }

    #[test]
    fn unknown_fields_of_a_record_survive() {
        let id = r#""session":"00000000000000000000000000000007""#;
        let text = format!(
            r#"{{"shizuku_lock":1,"fence":3,"holders":[{{{id},"number":1,"mode":"read","token":3,"zone":[1]}}],"queue":[{{{id},"number":2,"mode":"write","zone":{{"a":null}},"since":1,"token":9}}],"more":-0.5}}"#
        );
        let mut record = LockRecord::from_bytes(text.as_bytes()).unwrap();
        let read_again = |record: &LockRecord| {
            let again = LockRecord::from_bytes(&record.to_bytes(None)).unwrap();
            assert_eq!(again, *record);
            again
        };
        let again = read_again(&record);
        assert_eq!(again.extra["more"], -0.5);
        assert_eq!(again.holders[0].claim.extra["zone"], serde_json::json!([1]));
        let first = again.holders[0].claim.id;
        record.apply(&super::super::transition::Change::Leave(first));
        let again = read_again(&record);
        assert_eq!(again.holders[0].claim.extra["zone"], serde_json::json!({"a": null}));
        assert_eq!((again.holders[0].token.as_u64(), again.holders[0].since), (4, None));
    }

    /// Covers every transition without a new claim: a holder leaves and readers are granted, the
    /// numbers become longer.
    #[test]
    fn record_without_new_claim_never_grows() {
        use super::super::transition::Change;
        let now = UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
        for fence in [0, 8, 98, 9_999_998] {
            for modes in ["WRRRRW", "RWRRRRRRRRWRRRRRR", "WWWW", "RWRWRWRRRR"] {
                let mut record = LockRecord { fence, ..LockRecord::default() };
                for (number, mode) in (0..).zip(modes.chars()) {
                    let mode = if mode == 'W' { LockMode::Write } else { LockMode::Read };
                    record.apply(&Change::Claim { claim: claim(number, mode), waits: true });
                    record.stamp(fence, now);
                }
                let mut version = 9;
                let mut length =
                    record.to_bytes(Some(VersionToken::from_u64(version))).len() + digits(version);
                for number in 0..u64::try_from(modes.len()).unwrap_or_default() {
                    let before = record.fence;
                    let change = match number % 3 {
                        2 => Change::Break { newest: FencingToken::from_u64(before) },
                        _ => Change::Leave(claim(number, LockMode::Read).id),
                    };
                    record.apply(&change);
                    record.stamp(before, now);
                    version = version * 10 + 9;
                    let bytes = record.to_bytes(Some(VersionToken::from_u64(version)));
                    let next = bytes.len() + digits(version);
                    assert!(next <= length, "{modes}: {change:?}: {length} bytes become {next}");
                    length = next;
                }
            }
        }
    }

    #[test]
    fn digits_of_a_number_are_counted() {
        for (number, expected) in [(0, 1), (9, 1), (10, 2), (99, 2), (100, 3), (u64::MAX, DIGITS)] {
            assert_eq!(digits(number), expected, "{number}");
        }
    }

    #[test]
    fn foreign_value_is_rejected() {
        let rejected = |text: &str| LockRecord::from_bytes(text.as_bytes()).unwrap_err();
        for other in ["", "x", "{}", "[]", r#"{"fence":1}"#, "\u{0}"] {
            assert!(rejected(other).contains("not a lock record"), "{other}");
        }
        assert!(
            rejected(r#"{"shizuku_lock":2,"new":1}"#)
                .contains("format 2, and this version knows format 1")
        );
        assert!(rejected(r#"{"shizuku_lock":1,"fence":1}"#).contains("damaged"));
        assert!(
            rejected(r#"{"shizuku_lock":1,"fence":18446744073709551615,"holders":[],"queue":[]}"#)
                .contains("exceeds")
        );
        let one =
            r#"{"session":"00000000000000000000000000000007","number":1,"mode":"write","token":1}"#;
        let twice = format!(r#"{{"shizuku_lock":1,"fence":1,"holders":[{one},{one}],"queue":[]}}"#);
        assert!(rejected(&twice).contains("invariants"));
    }

    #[test]
    fn session_ids_are_unique_and_parsed() {
        let drawn: std::collections::HashSet<_> =
            (0..10_000).map(|_| SessionId::random()).collect();
        assert_eq!(drawn.len(), 10_000);
        let one = SessionId::random();
        assert_eq!(one.to_string().parse(), Ok(one));
        assert!("xyz".parse::<SessionId>().is_err());
        assert_ne!(SessionId::nonce(), SessionId::nonce());
        // The second form is an earlier format.
        for (salt, key) in [(Some(0x9f86), "00009f86.7"), (None, "7")] {
            let placed = SessionId::at(SlotUse { slot: Slot { salt, number: 7 }, first: 1042 }, 5);
            let all = format!("{key}-1042-0000000000000005");
            assert_eq!((placed.to_string(), format!("{placed:?}")), (key.to_owned(), all.clone()));
            assert_eq!(all.parse(), Ok(placed));
        }
        for wrong in [
            "+0000000000000000000000000000007",
            "7",
            "7-1",
            "7-1-1",
            "-7-1-0000000000000000",
            "4294967296-1-0000000000000000",
            "7-1-0000000000000000-",
            "9f86.7-1-0000000000000000",
            ".7-1-0000000000000000",
            "00009f86.-1-0000000000000000",
            "00009f86.1.7-1-0000000000000000",
        ] {
            assert!(wrong.parse::<SessionId>().is_err(), "{wrong}");
        }
    }
}
