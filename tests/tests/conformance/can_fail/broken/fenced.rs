//! Broken fenced writes.

use bytes::Bytes;
use shizuku_kv::{
    Deadline, FencingToken, Key, KvEntry, KvError, KvFenced, KvResult, VersionToken, Write,
    WriteCondition, WriteOperation,
};

use super::reader::BrokenStore;
use super::writer::step;
use super::{Fault, unsupported};

impl BrokenStore {
    fn fencing(&self) -> KvResult<&dyn KvFenced> {
        self.inner.fenced().ok_or_else(|| unsupported("fenced write"))
    }

    async fn newest(&self, key: &Key, deadline: Deadline) -> KvResult<Option<KvEntry>> {
        self.inner.entry(key, deadline).await
    }

    /// Rejects a write before the wrapped store receives it.
    async fn reject(&self, key: &Key, token: FencingToken, deadline: Deadline) -> KvResult<()> {
        let rejected = |newest| Err(KvError::fenced(key.clone(), token, newest));
        match self.fault {
            Fault::FenceRejectsEqual => {
                match self.newest(key, deadline).await?.and_then(|entry| entry.fence) {
                    Some(newest) if newest == token => rejected(newest),
                    _ => Ok(()),
                }
            }
            Fault::FenceOfStore => {
                let mut memory = self.memory.lock().unwrap();
                let newest = memory.newest_token.max(Some(token)).unwrap_or(token);
                memory.newest_token = Some(newest);
                if newest > token { rejected(newest) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Returns the result of a write, or repeats a rejected one without its token.
    async fn forced(
        &self,
        answer: KvResult<VersionToken>,
        plain: impl Future<Output = KvResult<VersionToken>>,
    ) -> KvResult<VersionToken> {
        match answer {
            Err(error) if error.is_fenced() && self.fault == Fault::FenceIgnored => plain.await,
            Err(KvError::Unsupported { .. }) if self.fault == Fault::FenceLost => plain.await,
            answer => self.version(answer),
        }
    }

    async fn put_fenced(
        &self,
        key: &Key,
        write: Write,
        token: FencingToken,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let writer = self.writing()?;
        let mut plain = write.clone();
        plain.fence = None;
        match self.fault {
            Fault::FenceRaces => {
                let before = self.newest(key, deadline).await?.and_then(|entry| entry.fence);
                if let Some(newest) = before.filter(|newest| *newest > token) {
                    return Err(KvError::fenced(key.clone(), token, newest));
                }
                step().await;
                match writer.write(key, write, deadline).await {
                    Err(error) if error.is_fenced() => writer.write(key, plain, deadline).await,
                    answer => answer,
                }
            }
            Fault::FencedTriesOnce => {
                let before = self.newest(key, deadline).await?;
                step().await;
                let mut once = write;
                once.condition = before
                    .map_or(WriteCondition::Absent, |entry| WriteCondition::Exactly(entry.version));
                writer.write(key, once, deadline).await
            }
            _ => writer.write(key, write, deadline).await,
        }
    }
}

impl BrokenStore {
    pub(super) async fn write_fenced(
        &self,
        key: &Key,
        mut write: Write,
        token: FencingToken,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let (key, writer) = (self.key(key)?, self.writing()?);
        self.reject(&key, token, deadline).await?;
        if let WriteOperation::Put(value) = write.operation {
            write.operation = WriteOperation::Put(self.value(value));
        }
        if let WriteCondition::Exactly(expected) = write.condition {
            write.condition = WriteCondition::Exactly(self.expected(expected));
        }
        let mut plain = write.clone();
        plain.fence = None;
        let before = self.newest(&key, deadline).await?;
        let is_live = before.as_ref().is_some_and(|entry| !entry.is_tombstone());
        let found = before.map(|entry| entry.version);
        let answer = match (self.fault, write.condition) {
            (Fault::FencedDeleteForgets, _) if write.is_deletion() => {
                writer.write(&key, plain.clone(), deadline).await
            }
            (Fault::FencedDeleteNeedsValue, _) if write.is_deletion() && !is_live => {
                Err(KvError::backend("delete", "absent"))
            }
            (Fault::FencedSwapsIgnoreVersions, _) => {
                write.condition = WriteCondition::Any;
                writer.write(&key, write, deadline).await
            }
            (Fault::FencedCreateForgets, WriteCondition::Absent) if !is_live => {
                writer.write(&key, plain.clone(), deadline).await
            }
            (Fault::FenceComparedLast, WriteCondition::Absent) if is_live => {
                Err(KvError::already_exists(key.clone(), None))
            }
            (Fault::FenceComparedLast, WriteCondition::Exactly(expected))
                if found != Some(expected) =>
            {
                Err(KvError::revision_mismatch(key.clone(), expected, found))
            }
            (_, WriteCondition::Any) if !write.is_deletion() => {
                self.put_fenced(&key, write, token, deadline).await
            }
            _ => writer.write(&key, write, deadline).await,
        };
        self.forced(answer, writer.write(&key, plain, deadline)).await
    }

    pub(super) async fn raise(
        &self,
        key: &Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> KvResult<FencingToken> {
        let key = self.key(key)?;
        let (fenced, writer) = (self.fencing()?, self.writing()?);
        let before = self.newest(&key, deadline).await?;
        let newest = before.as_ref().and_then(|entry| entry.fence);
        let value = before.filter(|entry| !entry.is_tombstone()).map(|entry| entry.value);
        let is_live = value.is_some();
        let is_raised = newest < Some(token);
        let token = newest.max(Some(token)).unwrap_or(token);
        let again = value.map_or_else(Write::delete, Write::put).with_fence(token);
        match self.fault {
            Fault::RaiseDoesNothing => return Ok(token),
            Fault::RaiseEmpties if is_raised => {
                let empty = Write::put(Bytes::new()).with_fence(token);
                writer.write(&key, empty, deadline).await?;
            }
            Fault::RaiseAlwaysWrites => {
                writer.write(&key, again, deadline).await?;
                return Ok(token);
            }
            Fault::RaiseRaces if is_raised => {
                step().await;
                writer.write(&key, again, deadline).await?;
            }
            Fault::RaiseForgetsLife if is_raised && is_live => {
                writer.write(&key, again, deadline).await?;
            }
            _ => {}
        }
        fenced.raise(&key, token, deadline).await
    }
}
