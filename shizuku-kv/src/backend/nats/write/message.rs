//! One write, as a message for the server.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;

use super::super::outcome::Expect;
use super::super::rejections::Rejected;
use super::super::wire::{
    AUTHOR, EXPECTED_SEQUENCE, FENCE, KV_OPERATION, OPERATION_ID, REASON, ROLLUP, TTL,
};
use crate::store::{
    ErrorSource, FencingToken, Key, KvError, KvOperation, KvResult, Metadata, VersionToken,
};

/// One write, as a message for the server.
#[derive(Clone, Debug)]
pub(in super::super) struct WriteMessage {
    pub(super) operation: &'static str,
    pub(super) key: Key,
    pub(super) value: Bytes,
    pub(super) kind: KvOperation,
    pub(super) expect: Expect,
    pub(super) ttl: Option<Duration>,
    pub(super) fence: Option<FencingToken>,
    pub(super) metadata: Option<Arc<Metadata>>,
    /// Whether later writes of the same key may have been sent. Sending this write again could then
    /// overwrite them.
    pub(super) pipelined: bool,
    /// Whether no later write of the same key was sent with this one. Sending it again after a
    /// rejection then overwrites no later write.
    pub(super) is_last: bool,
    /// Whether the message has no operation id, to make the message smaller.
    pub(super) is_bare: bool,
}

impl WriteMessage {
    pub(in super::super) fn put(operation: &'static str, key: &Key, value: Bytes) -> Self {
        Self {
            operation,
            key: key.clone(),
            value,
            kind: KvOperation::Put,
            expect: Expect::Anything,
            ttl: None,
            fence: None,
            metadata: None,
            pipelined: false,
            is_last: true,
            is_bare: false,
        }
    }

    pub(in super::super) fn deletion(
        operation: &'static str,
        key: &Key,
        kind: KvOperation,
    ) -> Self {
        Self { kind, ..Self::put(operation, key, Bytes::new()) }
    }

    /// Returns the write with a time to live, in whole seconds.
    pub(in super::super) fn expiring(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// Returns a deletion that does not remove the history of the key.
    pub(in super::super) fn without_rollup(self) -> Self {
        Self { kind: KvOperation::Delete, ..self }
    }

    /// Marks a write that is sent without waiting for the previous one. `is_last` is whether no
    /// later write has the same key.
    pub(in super::super) fn pipelined(self, is_last: bool) -> Self {
        Self { pipelined: true, is_last, ..self }
    }

    pub(in super::super) fn is_deletion(&self) -> bool {
        self.kind != KvOperation::Put
    }

    pub(super) fn rejected(&self) -> Rejected {
        match self.expect {
            _ if !self.is_deletion() => Rejected::Put,
            Expect::Exactly(_) if self.fence.is_none() => Rejected::DeletionOfVersion,
            _ => Rejected::Deletion,
        }
    }

    pub(super) fn can_be_smaller(&self) -> bool {
        self.is_deletion() && !self.is_bare
    }

    /// Removes the optional headers of a deletion. With a history of 1 a purge becomes a deletion,
    /// whose headers are shorter.
    pub(super) fn make_smaller(&mut self, history: u8) {
        self.is_bare = true;
        self.metadata = None;
        if history == 1 {
            self.kind = KvOperation::Delete;
        }
    }

    /// Returns the write with an author and a reason in the headers of the message.
    pub(in super::super) fn by(self, metadata: Option<Arc<Metadata>>) -> Self {
        Self { metadata, ..self }
    }

    /// Returns the write with a fencing token in the headers of the message.
    pub(in super::super) fn under(self, token: FencingToken) -> Self {
        Self { fence: Some(token), ..self }
    }

    /// Returns the write with the expected sequence of the key's newest message. Zero if no message
    /// is expected.
    pub(in super::super) fn over(self, sequence: u64) -> Self {
        Self { expect: Expect::Exactly(sequence), ..self }
    }

    pub(in super::super) fn operation(&self) -> &'static str {
        self.operation
    }

    pub(in super::super) fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the write with an expected version. A version that this backend cannot have returned
    /// never matches.
    pub(in super::super) fn expecting(mut self, expected: VersionToken) -> KvResult<Self> {
        match expected.as_u64() {
            Some(sequence) if sequence > 0 => {
                self.expect = Expect::Exactly(sequence);
                Ok(self)
            }
            _ => Err(KvError::RevisionMismatch { key: self.key, expected, found: None }),
        }
    }

    pub(super) fn headers(&self, id: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(OPERATION_ID, id);
        }
        match self.kind {
            KvOperation::Delete => headers.insert(KV_OPERATION, "DEL"),
            KvOperation::Purge => {
                headers.insert(KV_OPERATION, "PURGE");
                headers.insert(ROLLUP, "sub");
            }
            _ => {}
        }
        if let Expect::Exactly(sequence) = self.expect {
            headers.insert(EXPECTED_SEQUENCE, sequence.to_string());
        }
        if let Some(token) = self.fence {
            headers.insert(FENCE, token.to_string());
        }
        if let Some(metadata) = &self.metadata {
            for (name, text) in [(AUTHOR, metadata.author()), (REASON, metadata.reason())] {
                if let Some(text) = text {
                    headers.insert(name, text);
                }
            }
        }
        if let Some(ttl) = self.ttl {
            headers.insert(TTL, format!("{}s", ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)));
        }
        headers
    }

    pub(super) fn not_accepted(&self) -> KvError {
        KvError::Unavailable {
            operation: self.operation,
            reason: "the store had no leader that accepted the write".to_owned(),
            source: None,
        }
    }

    pub(super) fn unknown(&self, source: Option<ErrorSource>) -> KvError {
        KvError::OutcomeUnknown { operation: self.operation, key: self.key.clone(), source }
    }

    pub(super) fn mismatch(&self, found: Option<u64>) -> KvError {
        let found = found.filter(|sequence| *sequence > 0).map(VersionToken::from_u64);
        match self.expect {
            Expect::Exactly(expected) if expected > 0 => KvError::RevisionMismatch {
                key: self.key.clone(),
                expected: VersionToken::from_u64(expected),
                found,
            },
            _ => KvError::AlreadyExists { key: self.key.clone(), found },
        }
    }
}
