//! Broken writes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use shizuku_kv::{
    Atomicity, Deadline, Key, KvError, KvResult, KvTtl, KvWriter, VersionToken, WatchScope, Write,
    WriteCondition, WriteOperation,
};

use super::reader::BrokenStore;
use super::{Fault, unsupported};

impl BrokenStore {
    pub(super) fn writing(&self) -> KvResult<&dyn KvWriter> {
        self.inner.writer().ok_or_else(|| unsupported("write"))
    }

    /// The value as it is stored.
    pub(super) fn value(&self, value: Bytes) -> Bytes {
        if self.fault == Fault::ShowsValues {
            self.memory.lock().unwrap().last_value =
                Some(String::from_utf8_lossy(&value).into_owned());
        }
        match self.fault {
            Fault::LimitLies => {
                value.slice(..value.len().min(1000).min(self.inner.max_value_size()))
            }
            _ => value,
        }
    }

    /// Returns the version as the caller receives it.
    pub(super) fn version(&self, version: KvResult<VersionToken>) -> KvResult<VersionToken> {
        if self.fault == Fault::OneVersion {
            version.map(|_| VersionToken::from_u64(1))
        } else {
            version
        }
    }

    /// Returns the expected version for the wrapped store.
    pub(super) fn expected(&self, version: VersionToken) -> VersionToken {
        match version.as_u64() {
            Some(number) if self.fault == Fault::ShiftedVersions && number > 1_000_000 => {
                VersionToken::from_u64(number - 1_000_000)
            }
            _ => version,
        }
    }

    async fn put_broken(
        &self,
        key: &Key,
        value: Bytes,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let (key, value, writer) = (self.key(key)?, self.value(value), self.writing()?);
        let before = async || Ok::<_, KvError>(self.inner.entry(&key, deadline).await?);
        match self.fault {
            Fault::Panics if value == "first" => panic!("a bug in the backend"),
            Fault::WritesHang if deadline.limit() < Duration::from_millis(100) => {
                std::future::pending().await
            }
            Fault::TimedOutWriteLands if deadline.limit() < Duration::from_millis(10) => {
                writer
                    .write(&key, Write::put(value), Deadline::after(Duration::from_secs(5)))
                    .await?;
                Err(deadline.timeout("put", Some(&key)))
            }
            Fault::PutTwice => {
                writer.write(&key, Write::put(value.clone()), deadline).await?;
                writer.write(&key, Write::put(value), deadline).await
            }
            Fault::PutKeepsOld => match before().await? {
                Some(entry) if !entry.is_tombstone() => Ok(entry.version),
                _ => writer.write(&key, Write::put(value), deadline).await,
            },
            Fault::OldVersionOfPut => {
                let old = before().await?;
                let new = writer.write(&key, Write::put(value), deadline).await?;
                Ok(old.map_or(new, |old| old.version))
            }
            Fault::FenceStays => {
                let mut write = Write::put(value);
                write.fence = before().await?.and_then(|entry| entry.fence);
                writer.write(&key, write, deadline).await
            }
            Fault::EverythingExpires if self.inner.ttl().is_some() => {
                let ttl = self.step();
                writer.write(&key, Write::put(value).with_ttl(ttl), deadline).await
            }
            _ => writer.write(&key, Write::put(value), deadline).await,
        }
    }

    async fn create_broken(
        &self,
        key: &Key,
        value: Bytes,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let (key, value, writer) = (self.key(key)?, self.value(value), self.writing()?);
        let exists = || KvError::already_exists(key.clone(), None);
        match self.fault {
            Fault::Modest => Err(unsupported("create")),
            Fault::CreateOverwrites => writer.write(&key, Write::put(value), deadline).await,
            Fault::CreateRejectsTombstones => match self.inner.entry(&key, deadline).await? {
                Some(_) => Err(exists()),
                None => writer.write(&key, Write::create(value), deadline).await,
            },
            Fault::CreateRaces => match self.inner.entry(&key, deadline).await? {
                Some(entry) if !entry.is_tombstone() => Err(exists()),
                _ => {
                    step().await;
                    writer.write(&key, Write::put(value), deadline).await
                }
            },
            Fault::CreateTriesOnce => match self.inner.entry(&key, deadline).await? {
                Some(entry) if entry.is_tombstone() => {
                    step().await;
                    writer
                        .write(&key, Write::update(value, entry.version), deadline)
                        .await
                        .map_err(|_| exists())
                }
                _ => writer.write(&key, Write::create(value), deadline).await,
            },
            Fault::CreateOverEmpty => match self.inner.entry(&key, deadline).await? {
                Some(entry) if entry.value.is_empty() => {
                    writer.write(&key, Write::put(value), deadline).await
                }
                _ => writer.write(&key, Write::create(value), deadline).await,
            },
            _ => writer.write(&key, Write::create(value), deadline).await,
        }
    }

    async fn update_broken(
        &self,
        key: &Key,
        value: Bytes,
        expected: VersionToken,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let (key, value, writer) = (self.key(key)?, self.value(value), self.writing()?);
        let expected = self.expected(expected);
        let swap = writer.write(&key, Write::update(value.clone(), expected), deadline);
        match self.fault {
            Fault::Modest => Err(unsupported("update")),
            Fault::LostUpdate => writer.write(&key, Write::put(value), deadline).await,
            Fault::UpdateCreates => match self.inner.entry(&key, deadline).await? {
                Some(entry) if !entry.is_tombstone() => swap.await,
                _ => writer.write(&key, Write::put(value), deadline).await,
            },
            Fault::UpdateRejectsTombstones => match self.inner.entry(&key, deadline).await? {
                Some(entry) if entry.is_tombstone() => {
                    Err(KvError::revision_mismatch(key.clone(), expected, Some(entry.version)))
                }
                _ => swap.await,
            },
            Fault::UpdateWritesAnyway => {
                let answer = swap.await;
                if answer.is_err() {
                    writer.write(&key, Write::put(value), deadline).await?;
                }
                answer
            }
            _ => swap.await,
        }
    }

    async fn delete_broken(&self, key: &Key, deadline: Deadline) -> KvResult<VersionToken> {
        let (key, writer) = (self.key(key)?, self.writing()?);
        match self.fault {
            Fault::OldVersionOfDeletion => {
                let old = self.inner.entry(&key, deadline).await?;
                let new = writer.write(&key, Write::delete(), deadline).await?;
                Ok(old.map_or(new, |old| old.version))
            }
            Fault::DeleteNeedsValue => match self.inner.entry(&key, deadline).await? {
                Some(entry) if !entry.is_tombstone() => {
                    writer.write(&key, Write::delete(), deadline).await
                }
                _ => Err(KvError::backend("delete", "absent")),
            },
            Fault::DeleteDoesNothing => match self.inner.entry(&key, deadline).await? {
                Some(entry) => Ok(entry.version),
                None => writer.write(&key, Write::delete(), deadline).await,
            },
            Fault::WritesHang if deadline.limit() < Duration::from_millis(100) => {
                std::future::pending().await
            }
            _ => writer.write(&key, Write::delete(), deadline).await,
        }
    }

    async fn purge_broken(&self, key: &Key, deadline: Deadline) -> KvResult<VersionToken> {
        let (key, writer) = (self.key(key)?, self.writing()?);
        match self.fault {
            Fault::PurgeIsDelete => writer.write(&key, Write::delete(), deadline).await,
            Fault::PurgeTakesChildren => {
                let children =
                    self.inner.keys(WatchScope::prefix(format!("{key}.")), deadline.limit());
                for child in children.try_collect().await? {
                    writer.write(&child, Write::purge(), deadline).await?;
                }
                writer.write(&key, Write::purge(), deadline).await
            }
            _ => writer.write(&key, Write::purge(), deadline).await,
        }
    }
}

/// Lets other writers write in between.
pub(super) async fn step() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

impl BrokenStore {
    pub(super) async fn write(
        &self,
        key: &Key,
        mut write: Write,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        match self.fault {
            Fault::CombinationsSimplified if write.is_deletion() => write.ttl = None,
            _ => write.check()?,
        }
        if write.metadata.is_some() {
            return self.version(self.writing()?.write(&self.key(key)?, write, deadline).await);
        }
        match (write.fence, write.ttl) {
            (Some(token), _) => self.write_fenced(key, write, token, deadline).await,
            (None, Some(ttl)) => self.write_expiring(key, write, ttl, deadline).await,
            (None, None) => self.write_plain(key, write, deadline).await,
        }
    }

    pub(super) async fn write_many(
        &self,
        mut items: Vec<(Key, Write)>,
        atomicity: Atomicity,
        deadline: Duration,
    ) -> Vec<KvResult<VersionToken>> {
        if self.fault != Fault::AllIsEach
            && let Err(error) = atomicity.check_each()
        {
            return vec![Err(error); items.len()];
        }
        match self.fault {
            Fault::WriteManyIgnoresConditions => {
                for (_, write) in &mut items {
                    write.condition = WriteCondition::Any;
                }
                self.put_all(items, deadline).await
            }
            Fault::PutManyShuffled => {
                let mut answers = self.put_all(items, deadline).await;
                answers.reverse();
                answers
            }
            Fault::PutManyStops => {
                items.truncate(2);
                self.put_all(items, deadline).await
            }
            Fault::PutManyBackwards => {
                items.reverse();
                let mut answers = self.put_all(items, deadline).await;
                answers.reverse();
                answers
            }
            _ => self.put_all(items, deadline).await,
        }
    }

    async fn write_plain(
        &self,
        key: &Key,
        write: Write,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        self.version(match (write.operation, write.condition) {
            (WriteOperation::Put(value), WriteCondition::Any) => {
                self.put_broken(key, value, deadline).await
            }
            (WriteOperation::Put(value), WriteCondition::Absent) => {
                self.create_broken(key, value, deadline).await
            }
            (WriteOperation::Put(value), WriteCondition::Exactly(expected)) => {
                self.update_broken(key, value, expected, deadline).await
            }
            (WriteOperation::Delete, WriteCondition::Exactly(expected)) => {
                let (key, writer) = (self.key(key)?, self.writing()?);
                let expected = self.expected(expected);
                match self.fault {
                    Fault::Modest => Err(unsupported("delete_with_version")),
                    Fault::DeleteIgnoresVersion => {
                        writer.write(&key, Write::delete(), deadline).await
                    }
                    Fault::DeleteNeverMatches => {
                        Err(KvError::revision_mismatch(key, expected, None))
                    }
                    _ => writer.write(&key, Write::delete_with_version(expected), deadline).await,
                }
            }
            (WriteOperation::Delete, _) => self.delete_broken(key, deadline).await,
            (WriteOperation::Purge, _) => self.purge_broken(key, deadline).await,
            (_, condition) => panic!("a write with an unknown condition {condition:?}"),
        })
    }

    async fn write_expiring(
        &self,
        key: &Key,
        mut write: Write,
        ttl: Duration,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        match (self.fault, write.condition) {
            (Fault::NeverExpires, _) | (Fault::RenewalForgetsTtl, WriteCondition::Exactly(_)) => {
                write.ttl = None;
                return self.write_plain(key, write, deadline).await;
            }
            (Fault::TtlIgnoresVersions, _) => write.condition = WriteCondition::Any,
            (Fault::CreateRejectsTombstones, WriteCondition::Absent)
                if self.inner.entry(key, deadline).await?.is_some() =>
            {
                return Err(KvError::already_exists(key.clone(), None));
            }
            (Fault::RenewalIgnored, WriteCondition::Exactly(expected)) => return Ok(expected),
            (_, WriteCondition::Exactly(expected)) => {
                write.condition = WriteCondition::Exactly(self.expected(expected));
            }
            _ => {}
        }
        write.ttl = Some(self.span(ttl));
        self.writing()?.write(key, write, deadline).await
    }

    async fn put_all(
        &self,
        items: Vec<(Key, Write)>,
        deadline: Duration,
    ) -> Vec<KvResult<VersionToken>> {
        match self.fault {
            // These apply to all writes alike.
            Fault::None
            | Fault::PutManyShuffled
            | Fault::PutManyStops
            | Fault::PutManyBackwards => match self.writing() {
                Ok(writer) => writer.write_many(items, Atomicity::Each, deadline).await,
                Err(error) => vec![Err(error); items.len()],
            },
            _ => {
                let writes = items.into_iter().map(|(key, write)| async move {
                    self.write(&key, write, Deadline::after(deadline)).await
                });
                join_all(writes).await
            }
        }
    }

    fn step(&self) -> Duration {
        self.inner.ttl().map_or(Duration::from_secs(1), KvTtl::granularity)
    }

    fn span(&self, ttl: Duration) -> Duration {
        let step = self.step();
        match self.fault {
            Fault::TtlAnyLength => ttl.max(step),
            // No store keeps less than its granularity, so longer spans are cut.
            Fault::TtlOverAge => ttl.min(Duration::from_secs(60)),
            Fault::ExpiresEarly => (ttl / 2).max(step),
            _ => ttl,
        }
    }
}
