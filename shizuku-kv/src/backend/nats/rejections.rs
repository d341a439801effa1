//! The server's rejections in our words: the one table of its error codes (ADR 0065).
//!
//! The codes are those of the server's `server/errors.json`, read for 2.10 to 2.15.
//! `docs/errors.md` has the same table with a test for each limit; codes of requests that this
//! library never sends are left out of both.

use super::api::ApiError;
use crate::store::{KvError, KvLimit};

/// Codes for "no room": of the account (10002), of the server (10023), of its memory (10028) or its
/// disk (10047).
const NO_ROOM: [u64; 4] = [ACCOUNT_FULL, 10023, 10028, 10047];

/// The account has reached its limit. A message that fits into the rest is still taken.
const ACCOUNT_FULL: u64 = 10002;

/// The store of the stream did not take a message, for a reason that only the words tell.
const STORE_FAILED: u64 = 10077;

/// A rejected write, as far as the way out depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Put,
    Deletion,
    /// A deletion whose expected version is an additional header.
    DeletionOfVersion,
}

impl ApiError {
    fn said(&self) -> String {
        let Self { code, err_code, description } = self;
        format!("the server answered {code}: {description} ({err_code})")
    }

    /// The error in our words, for a request about a store.
    pub(super) fn into_error(self, operation: &'static str, store: &str) -> KvError {
        let said = self.said();
        let limit = |limit, way_out: &str| KvError::LimitReached {
            operation,
            limit,
            reason: format!("{said}; {way_out}"),
        };
        let invalid = |field, way_out: &str| KvError::InvalidConfig {
            field,
            reason: format!("{said}; {way_out}"),
        };
        let unsupported = |way_out: String| KvError::Unsupported {
            operation,
            reason: format!("{said}; {way_out}"),
        };
        match self.err_code {
            Self::STREAM_NOT_FOUND => KvError::StoreNotFound { store: store.to_owned() },
            code if NO_ROOM.contains(&code) => limit(
                KvLimit::Storage,
                "set a smaller max_bytes, delete another store, or raise the limits of the account (max_store, max_mem) \
                 and of the server (max_file_store, max_memory_store)",
            ),
            10026 => limit(
                KvLimit::Consumers,
                "drop other watches and listings, or raise max_consumers of the stream or the account",
            ),
            10027 => {
                limit(KvLimit::Stores, "remove one with delete_store(), or raise max_streams of the account")
            }
            10052 => invalid("settings", "change the setting that it names"),
            10113 => invalid("max_bytes", "the account requires it: set StoreConfig::max_bytes"),
            10122 => invalid("max_bytes", "set a smaller one, or raise the account's limit"),
            // Replicas beyond one without a cluster, more than it has servers, or a number that the
            // account has no limits for.
            10005 | 10074 => unsupported(format!(
                "there are not enough servers for this number of replicas of store {store:?}: ask for fewer"
            )),
            10120 => unsupported(
                "the account has no limits for this number of replicas: ask for another, or set them"
                    .to_owned(),
            ),
            10065 => unsupported(format!(
                "another stream of the account has subjects of store {store:?}: remove them there, or use another name"
            )),
            10109 => {
                unsupported(format!("store {store:?} is sealed, which is final: copy it to another store"))
            }
            10111 => unsupported(format!(
                "the stream of store {store:?} does not allow it: turn on allow_rollup_hdrs and off deny_purge there, \
                 or use delete()"
            )),
            10165 | 10166 => unsupported(format!(
                "turn on times to live for store {store:?}: StoreConfig::key_ttl with reconcile()"
            )),
            // "JetStream not enabled", for the server and for the account.
            10039 | 10076 => KvError::Unavailable {
                operation,
                reason: format!(
                    "JetStream is not enabled: {said}; start the server with `-js` or a `jetstream {{}}` block, and enable \
                     it for the account"
                ),
                source: None,
            },
            // Offline, or not assigned to a server yet.
            10007 | 10009 | 10118 | 10119 | 10194 | 10195 => {
                KvError::Unavailable { operation, reason: said, source: None }
            }
            _ => match self.code {
                401 | 403 => KvError::Unauthorized { operation, reason: said },
                429 => limit(
                    KvLimit::Requests,
                    "send less at once, or raise max_buffered_msgs and max_buffered_size of the server",
                ),
                408 | 503 => KvError::Unavailable { operation, reason: said, source: None },
                _ => KvError::Backend { operation, reason: said, source: None },
            },
        }
    }

    /// The error in our words, for a rejected write. `counts_replaced` is the store's setting.
    pub(super) fn into_write_error(
        self,
        operation: &'static str,
        store: &str,
        write: Rejected,
        counts_replaced: bool,
    ) -> KvError {
        let Some(setting) = self.full_because_of() else {
            return self.into_error(operation, store);
        };
        let is_deletion = write != Rejected::Put;
        let way_out = match setting {
            "discard_new_per_subject" => {
                "the stream keeps the first versions of a key and rejects later ones: turn off discard_new_per_subject"
                    .to_owned()
            }
            "max_bytes" if is_deletion && counts_replaced => {
                "with a history or several replicas a tombstone needs room beside the value: raise max_bytes, then \
                 purge()"
                    .to_owned()
            }
            "max_bytes" if write == Rejected::DeletionOfVersion => {
                "the tombstone needs more room than the value; use delete() without a version, or raise \
                 max_bytes"
                    .to_owned()
            }
            "max_bytes" if is_deletion => {
                "the tombstone needs more room than the value: raise max_bytes, then purge()".to_owned()
            }
            _ if is_deletion => format!("a tombstone needs room too: raise {setting}"),
            "max_bytes" if counts_replaced => {
                "purge keys while a tombstone has room, or raise max_bytes".to_owned()
            }
            "max_bytes" => "delete keys, or raise max_bytes".to_owned(),
            "max_msgs" => "tombstones count too: raise max_msgs".to_owned(),
            // The earlier versions of a key outlive its deletion, but not its purge.
            _ if self.err_code == ACCOUNT_FULL => format!(
                "delete keys, or purge them if the store has a history; delete another store, or \
                 raise {setting}"
            ),
            // A full server takes no tombstone either.
            _ => format!("delete another store, or raise {setting}"),
        };
        KvError::StoreFull { store: store.to_owned(), limit: format!("{}; {way_out}", self.said()) }
    }

    /// The setting that leaves no room for a message; `None` if there is room, as far as the server
    /// says.
    fn full_because_of(&self) -> Option<&'static str> {
        let says = |words: &str| self.description.to_ascii_lowercase().contains(words);
        match self.err_code {
            ACCOUNT_FULL => Some("the limits of the account (max_store, max_mem)"),
            code if NO_ROOM.contains(&code) => {
                Some("the limits of the server (max_file_store, max_memory_store), or its disk")
            }
            STORE_FAILED if says("maximum bytes") => Some("max_bytes"),
            STORE_FAILED if says("maximum messages per subject") => Some("discard_new_per_subject"),
            STORE_FAILED if says("maximum messages") => Some("max_msgs"),
            STORE_FAILED if says("no space") || says("limit") || says("exceeded") => {
                Some("the limit that it names, or the size of the server's disk")
            }
            _ => None,
        }
    }

    /// Whether a message was rejected because of its size, in a store or an account that is full: a
    /// smaller one of the same key may have room.
    pub(super) fn is_full_of_bytes(&self) -> bool {
        self.err_code == ACCOUNT_FULL || self.full_because_of() == Some("max_bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u16, err_code: u64, description: &str) -> ApiError {
        ApiError { code, err_code, description: description.to_owned() }
    }

    /// Limits that no configuration file of a server can set, or that take hours to reach.
    #[test]
    fn codes_without_a_server_test_are_mapped() {
        let kinds: [(ApiError, &str); 9] = [
            (
                error(400, 10120, "no JetStream default or applicable tiered limit present"),
                "Unsupported",
            ),
            (
                error(503, 10163, "expected last sequence per subject temporarily unavailable"),
                "Unavailable",
            ),
            (error(503, 10008, "JetStream system temporarily unavailable"), "Unavailable"),
            (error(500, 10118, "stream is offline"), "Unavailable"),
            (error(503, 10076, "JetStream not enabled"), "Unavailable"),
            (error(400, 10166, "per-message TTL is disabled"), "Unsupported"),
            (error(403, 0, "forbidden"), "Unauthorized"),
            (error(429, 10210, "atomic publish too many inflight"), "LimitReached"),
            (error(400, 10003, "bad request"), "Backend"),
        ];
        for (rejection, kind) in kinds {
            let text = format!("{:?}", rejection.clone().into_error("put", "s"));
            assert!(text.starts_with(kind), "{rejection:?}: {text}");
        }
    }

    /// One code has several meanings, which only its words tell apart.
    #[test]
    fn failed_store_is_full_only_by_its_words() {
        let write = |description| {
            error(503, STORE_FAILED, description).into_write_error("put", "s", Rejected::Put, false)
        };
        for full in [
            "maximum bytes exceeded",
            "maximum messages exceeded",
            "maximum messages per subject exceeded",
            "write /data/1.blk: no space left on device",
            "resource limits exceeded for account",
        ] {
            let error = write(full);
            assert!(
                matches!(&error, KvError::StoreFull { limit, .. } if limit.contains(full)),
                "{error}"
            );
        }
        let closed = write("store is closed");
        assert!(
            closed.is_retryable()
                && matches!(&closed, KvError::Unavailable { reason, .. } if reason.contains("closed")),
            "{closed}"
        );
    }
}
