//! Whether a write takes effect, as pure decisions, and the error if it does not.

use std::time::Duration;

use crate::store::{
    FencingToken, Key, KvError, KvResult, StoreConfig, VersionToken, Write, WriteCondition,
    check_ttl, ttl_fault,
};

/// Minimum time to live, as on NATS, so that a program that works here works there too.
pub(in crate::backend) const TTL_GRANULARITY: Duration = Duration::from_secs(1);

/// The reason why a write did not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum Rejection {
    /// The newest entry was written with a newer token than that of the write.
    Fenced { token: FencingToken, newest: FencingToken },
    /// The key had to be absent, and has a value of this version.
    Exists(VersionToken),
    /// The newest entry has another version, or no entry exists.
    Mismatch(Option<VersionToken>),
    /// The store would exceed this number of bytes.
    Full(u64),
    /// The value has a time to live, and its token would expire with it.
    Expires,
}

/// The attributes of a key's newest entry with which a write is compared.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) struct Newest {
    pub(in crate::backend) version: VersionToken,
    pub(in crate::backend) is_tombstone: bool,
    pub(in crate::backend) fence: Option<FencingToken>,
}

/// Compares a write with the key's newest entry. The token is compared before the condition.
///
/// # Errors
/// Returns the reason if the write must not take effect.
pub(in crate::backend) fn admit(
    fence: Option<FencingToken>,
    condition: WriteCondition,
    newest: Option<Newest>,
) -> Result<(), Rejection> {
    if let Some(token) = fence
        && let Some(newest) = token.rejected_by(newest.and_then(|entry| entry.fence))
    {
        return Err(Rejection::Fenced { token, newest });
    }
    match (condition, newest) {
        (WriteCondition::Any, _) | (WriteCondition::Absent, None) => Ok(()),
        (WriteCondition::Absent, Some(entry)) if entry.is_tombstone => Ok(()),
        (WriteCondition::Absent, Some(entry)) => Err(Rejection::Exists(entry.version)),
        (WriteCondition::Exactly(expected), entry) => {
            let found = entry.map(|entry| entry.version);
            if found == Some(expected) { Ok(()) } else { Err(Rejection::Mismatch(found)) }
        }
    }
}

impl Rejection {
    /// Returns the error of a write to a key of this store.
    pub(in crate::backend) fn into_error(
        self,
        store: &str,
        operation: &'static str,
        key: &Key,
        condition: WriteCondition,
    ) -> KvError {
        match self {
            Self::Fenced { token, newest } => KvError::Fenced { key: key.clone(), token, newest },
            Self::Exists(found) => KvError::AlreadyExists { key: key.clone(), found: Some(found) },
            Self::Mismatch(found) => match condition {
                WriteCondition::Exactly(expected) => {
                    KvError::RevisionMismatch { key: key.clone(), expected, found }
                }
                WriteCondition::Any | WriteCondition::Absent => {
                    KvError::AlreadyExists { key: key.clone(), found }
                }
            },
            Self::Full(limit) => KvError::StoreFull {
                store: store.to_owned(),
                limit: format!(
                    "it may hold {limit} bytes of keys and values; delete keys, or raise max_bytes"
                ),
            },
            Self::Expires => KvError::Unsupported {
                operation,
                reason: format!(
                    "key {key} has a time to live, and its token would expire with it; write it without one first"
                ),
            },
        }
    }
}

/// Checks that a store with these settings can keep the promises of a write.
///
/// # Errors
/// Returns [`KvError::Unsupported`] or [`KvError::InvalidConfig`] if it cannot.
pub(in crate::backend) fn check_settings(
    store: &str,
    config: &StoreConfig,
    key: &Key,
    write: &Write,
) -> KvResult<()> {
    let operation = write.name();
    // A missing lock record may have been lost together with a lock that is held.
    let is_of_locks = write.condition == WriteCondition::Absent && key.is_of_locks();
    if write.fence.is_some() || is_of_locks {
        check_fences(store, operation, config)?;
    }
    let Some(ttl) = write.ttl else { return Ok(()) };
    if config.key_ttl != Some(true) {
        let reason = format!("store {store:?} {}", ttl_fault(config.history));
        return Err(KvError::unsupported(operation, reason));
    }
    if ttl < TTL_GRANULARITY {
        let reason = format!(
            "{ttl:?} is below the shortest that the store keeps, {TTL_GRANULARITY:?}; use that or longer"
        );
        return Err(KvError::invalid_config("time to live", reason));
    }
    check_ttl(ttl, config.max_age.flatten())
}

/// Checks that tokens and locks are not lost because values age.
///
/// # Errors
/// Returns [`KvError::Unsupported`] if the store has a maximum age.
pub(in crate::backend) fn check_fences(
    store: &str,
    operation: &'static str,
    config: &StoreConfig,
) -> KvResult<()> {
    if config.max_age.flatten().is_none() {
        return Ok(());
    }
    Err(KvError::Unsupported {
        operation,
        reason: format!(
            "entries of store {store:?} can now expire: fencing tokens and locks would be lost; use a store without max_age"
        ),
    })
}
