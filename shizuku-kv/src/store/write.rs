//! One write, as a backend receives it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{FencingToken, KvError, Metadata, VersionToken};

/// The effect of a write on its key.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteOperation {
    /// Stores a value.
    Put(Bytes),
    /// Leaves a tombstone. Deleting an absent key succeeds.
    Delete,
    /// Leaves a tombstone, and drops the key's history.
    Purge,
}

/// The state of a key's newest entry without which a write has no effect. The comparison and the
/// write are atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteCondition {
    /// Any state.
    Any,
    /// The key is absent: never written, deleted, purged or expired. Otherwise the write is
    /// [`KvError::AlreadyExists`].
    Absent,
    /// The entry has this version, which may be the version of a tombstone. Otherwise the write is
    /// [`KvError::RevisionMismatch`].
    Exactly(VersionToken),
}

/// Whether the writes of one call depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Atomicity {
    /// Each write succeeds or fails by itself.
    Each,
    /// Either all writes take effect or none. A capability:
    /// [`ConnectionCapabilities::atomic_writes`](crate::ConnectionCapabilities::atomic_writes).
    All,
}

impl Atomicity {
    /// Rejects atomic writes, for a backend without them.
    ///
    /// # Errors
    /// Returns [`KvError::Unsupported`] for [`Atomicity::All`].
    pub fn check_each(self) -> Result<(), KvError> {
        match self {
            Self::Each => Ok(()),
            Self::All => Err(KvError::unsupported(
                "write_many",
                "the store cannot make several writes atomically; make each by itself",
            )),
        }
    }
}

/// One write to one key: its effect, its condition, and the attributes of the new entry. For
/// authors of backends; users call the methods of [`Store`](crate::Store),
/// [`StoreTtl`](crate::StoreTtl) and [`StoreFenced`](crate::StoreFenced).
///
/// `Debug` shows the length of a value, never its content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Write {
    /// The effect.
    pub operation: WriteOperation,
    /// The condition.
    pub condition: WriteCondition,
    /// Time to live of the value: a multiple of [`KvTtl::granularity`](crate::KvTtl::granularity).
    pub ttl: Option<Duration>,
    /// Fencing token, which the new entry carries. If the newest entry has a larger token, the
    /// write is [`KvError::Fenced`], whatever the condition is.
    pub fence: Option<FencingToken>,
    /// Author and reason, which the new entry carries. A deletion that a full store rejects with
    /// them is made without them.
    pub metadata: Option<Arc<Metadata>>,
}

impl Write {
    fn new(operation: WriteOperation, condition: WriteCondition) -> Self {
        Self { operation, condition, ttl: None, fence: None, metadata: None }
    }

    /// Stores a value.
    pub fn put(value: impl Into<Bytes>) -> Self {
        Self::new(WriteOperation::Put(value.into()), WriteCondition::Any)
    }

    /// Stores a value if the key is absent.
    pub fn create(value: impl Into<Bytes>) -> Self {
        Self::new(WriteOperation::Put(value.into()), WriteCondition::Absent)
    }

    /// Stores a value if the key's newest entry has the version `expected`.
    pub fn update(value: impl Into<Bytes>, expected: VersionToken) -> Self {
        Self::new(WriteOperation::Put(value.into()), WriteCondition::Exactly(expected))
    }

    /// Deletes the key.
    pub fn delete() -> Self {
        Self::new(WriteOperation::Delete, WriteCondition::Any)
    }

    /// Deletes the key if its newest entry has the version `expected`.
    pub fn delete_with_version(expected: VersionToken) -> Self {
        Self::new(WriteOperation::Delete, WriteCondition::Exactly(expected))
    }

    /// Deletes the key and its history.
    pub fn purge() -> Self {
        Self::new(WriteOperation::Purge, WriteCondition::Any)
    }

    /// Adds a time to live.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// Adds a fencing token.
    #[must_use]
    pub fn with_fence(self, token: FencingToken) -> Self {
        Self { fence: Some(token), ..self }
    }

    /// Adds an author and a reason.
    #[must_use]
    pub fn with_metadata(self, metadata: Arc<Metadata>) -> Self {
        Self { metadata: Some(metadata), ..self }
    }

    /// Returns the value. Returns `None` for a deletion.
    pub fn value(&self) -> Option<&Bytes> {
        match &self.operation {
            WriteOperation::Put(value) => Some(value),
            WriteOperation::Delete | WriteOperation::Purge => None,
        }
    }

    /// Returns whether the write leaves a tombstone.
    pub fn is_deletion(&self) -> bool {
        self.value().is_none()
    }

    /// Returns the name that the write has in errors: that of the method of
    /// [`Store`](crate::Store).
    pub fn name(&self) -> &'static str {
        match (&self.operation, self.condition, self.ttl) {
            (WriteOperation::Put(_), WriteCondition::Any, None) => "put",
            (WriteOperation::Put(_), WriteCondition::Any, Some(_)) => "put_with_ttl",
            (WriteOperation::Put(_), WriteCondition::Absent, None) => "create",
            (WriteOperation::Put(_), WriteCondition::Absent, Some(_)) => "create_with_ttl",
            (WriteOperation::Put(_), WriteCondition::Exactly(_), None) => "update",
            (WriteOperation::Put(_), WriteCondition::Exactly(_), Some(_)) => "update_with_ttl",
            (WriteOperation::Delete, WriteCondition::Exactly(_), _) => "delete_with_version",
            (WriteOperation::Delete, _, _) => "delete",
            (WriteOperation::Purge, _, _) => "purge",
        }
    }

    /// Rejects the combinations that no backend has to support. Backends call it first.
    ///
    /// # Errors
    /// Returns [`KvError::Unsupported`] for a time to live together with a fencing token or with a
    /// deletion. Returns it also for a deletion of an absent key, and for a purge with a version or
    /// a fencing token.
    pub fn check(&self) -> Result<(), KvError> {
        let is_purge = self.operation == WriteOperation::Purge;
        let reason = if self.ttl.is_some() && self.fence.is_some() {
            "a fencing token would expire with the time to live of its value; use only one of them"
        } else if self.ttl.is_some() && self.is_deletion() {
            "a deletion has no time to live; leave it out"
        } else if self.is_deletion() && self.condition == WriteCondition::Absent {
            "a deletion cannot require an absent key; use no condition or a version"
        } else if is_purge && (self.condition != WriteCondition::Any || self.fence.is_some()) {
            "a purge has neither an expected version nor a fencing token; use a deletion"
        } else {
            return Ok(());
        };
        Err(KvError::unsupported(self.name(), reason))
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write")
            .field("operation", &self.operation)
            .field("condition", &self.condition)
            .field("ttl", &self.ttl)
            .field("fence", &self.fence)
            .field("metadata", &self.metadata)
            .finish()
    }
}

impl fmt::Debug for WriteOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(value) => write!(f, "Put(<{} bytes>)", value.len()),
            Self::Delete => f.write_str("Delete"),
            Self::Purge => f.write_str("Purge"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_accepted_or_rejected() {
        let version = VersionToken::from_u64(1);
        let put = WriteOperation::Put(Bytes::from_static(b"secret"));
        for operation in [put, WriteOperation::Delete, WriteOperation::Purge] {
            for condition in
                [WriteCondition::Any, WriteCondition::Absent, WriteCondition::Exactly(version)]
            {
                for ttl in [None, Some(Duration::from_secs(1))] {
                    for fence in [None, Some(FencingToken::from_u64(1))] {
                        let operation = operation.clone();
                        let write = Write { ttl, fence, ..Write::new(operation, condition) };
                        let is_accepted = match (&write.operation, condition) {
                            (WriteOperation::Put(_), _) => ttl.is_none() || fence.is_none(),
                            (WriteOperation::Delete, _) => {
                                condition != WriteCondition::Absent && ttl.is_none()
                            }
                            (WriteOperation::Purge, _) => {
                                condition == WriteCondition::Any && ttl.is_none() && fence.is_none()
                            }
                        };
                        assert_eq!(write.check().is_ok(), is_accepted, "{write:?}");
                        assert!(!format!("{write:?}").contains("secret"));
                    }
                }
            }
        }
    }
}
