//! Writes that are broken.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use shizuku_kv::{Deadline, Key, KvError, KvResult, KvTtl, KvWriter, VersionToken, WatchScope};

use super::reader::BrokenStore;
use super::{Fault, unsupported};

impl BrokenStore {
    pub(super) fn writing(&self) -> KvResult<&dyn KvWriter> {
        self.inner.writer().ok_or_else(|| unsupported("write"))
    }

    fn expiring(&self) -> KvResult<&dyn KvTtl> {
        self.inner.ttl().ok_or_else(|| unsupported("time to live"))
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

    /// The version as it is returned.
    pub(super) fn version(&self, version: KvResult<VersionToken>) -> KvResult<VersionToken> {
        if self.fault == Fault::OneVersion {
            version.map(|_| VersionToken::from_u64(1))
        } else {
            version
        }
    }

    /// The version that is expected of the wrapped store.
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
                writer.put(&key, value, Deadline::after(Duration::from_secs(5))).await?;
                Err(deadline.timeout("put", Some(&key)))
            }
            Fault::PutTwice => {
                writer.put(&key, value.clone(), deadline).await?;
                writer.put(&key, value, deadline).await
            }
            Fault::PutKeepsOld => match before().await? {
                Some(entry) if !entry.is_tombstone() => Ok(entry.version),
                _ => writer.put(&key, value, deadline).await,
            },
            Fault::OldVersionOfPut => {
                let old = before().await?;
                let new = writer.put(&key, value, deadline).await?;
                Ok(old.map_or(new, |old| old.version))
            }
            Fault::FenceStays => {
                match (before().await?.and_then(|entry| entry.fence), self.inner.fenced()) {
                    (Some(token), Some(fenced)) => fenced.put(&key, value, token, deadline).await,
                    _ => writer.put(&key, value, deadline).await,
                }
            }
            Fault::EverythingExpires if self.inner.ttl().is_some() => {
                let ttl = self.expiring()?;
                ttl.put_with_ttl(&key, value, ttl.granularity(), deadline).await
            }
            _ => writer.put(&key, value, deadline).await,
        }
    }

    async fn create_broken(
        &self,
        key: &Key,
        value: Bytes,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let (key, value, writer) = (self.key(key)?, self.value(value), self.writing()?);
        let exists = || KvError::AlreadyExists { key: key.clone(), found: None };
        match self.fault {
            Fault::Modest => Err(unsupported("create")),
            Fault::CreateOverwrites => writer.put(&key, value, deadline).await,
            Fault::CreateRefusesTombstones => match self.inner.entry(&key, deadline).await? {
                Some(_) => Err(exists()),
                None => writer.create(&key, value, deadline).await,
            },
            Fault::CreateRaces => match self.inner.entry(&key, deadline).await? {
                Some(entry) if !entry.is_tombstone() => Err(exists()),
                _ => {
                    step().await;
                    writer.put(&key, value, deadline).await
                }
            },
            Fault::CreateTriesOnce => match self.inner.entry(&key, deadline).await? {
                Some(entry) if entry.is_tombstone() => {
                    step().await;
                    writer.update(&key, value, entry.version, deadline).await.map_err(|_| exists())
                }
                _ => writer.create(&key, value, deadline).await,
            },
            Fault::CreateOverEmpty => match self.inner.entry(&key, deadline).await? {
                Some(entry) if entry.value.is_empty() => writer.put(&key, value, deadline).await,
                _ => writer.create(&key, value, deadline).await,
            },
            _ => writer.create(&key, value, deadline).await,
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
        let swap = writer.update(&key, value.clone(), expected, deadline);
        match self.fault {
            Fault::Modest => Err(unsupported("update")),
            Fault::LostUpdate => writer.put(&key, value, deadline).await,
            Fault::UpdateCreates => match self.inner.entry(&key, deadline).await? {
                Some(entry) if !entry.is_tombstone() => swap.await,
                _ => writer.put(&key, value, deadline).await,
            },
            Fault::UpdateRefusesTombstones => match self.inner.entry(&key, deadline).await? {
                Some(entry) if entry.is_tombstone() => Err(KvError::RevisionMismatch {
                    key: key.clone(),
                    expected,
                    found: Some(entry.version),
                }),
                _ => swap.await,
            },
            Fault::UpdateWritesAnyway => {
                let answer = swap.await;
                if answer.is_err() {
                    writer.put(&key, value, deadline).await?;
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
                let new = writer.delete(&key, deadline).await?;
                Ok(old.map_or(new, |old| old.version))
            }
            Fault::DeleteNeedsValue => match self.inner.entry(&key, deadline).await? {
                Some(entry) if !entry.is_tombstone() => writer.delete(&key, deadline).await,
                _ => Err(KvError::Backend {
                    operation: "delete",
                    reason: "absent".to_owned(),
                    source: None,
                }),
            },
            Fault::DeleteDoesNothing => match self.inner.entry(&key, deadline).await? {
                Some(entry) => Ok(entry.version),
                None => writer.delete(&key, deadline).await,
            },
            Fault::WritesHang if deadline.limit() < Duration::from_millis(100) => {
                std::future::pending().await
            }
            _ => writer.delete(&key, deadline).await,
        }
    }

    async fn purge_broken(&self, key: &Key, deadline: Deadline) -> KvResult<VersionToken> {
        let (key, writer) = (self.key(key)?, self.writing()?);
        match self.fault {
            Fault::PurgeIsDelete => writer.delete(&key, deadline).await,
            Fault::PurgeTakesChildren => {
                let children =
                    self.inner.keys(WatchScope::prefix(format!("{key}.")), deadline.limit());
                for child in children.try_collect().await? {
                    writer.purge(&child, deadline).await?;
                }
                writer.purge(&key, deadline).await
            }
            _ => writer.purge(&key, deadline).await,
        }
    }
}

/// Lets others write in between.
pub(super) async fn step() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

impl KvWriter for BrokenStore {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move { self.version(self.put_broken(key, value, deadline).await) })
    }

    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move { self.version(self.create_broken(key, value, deadline).await) })
    }

    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(
            async move { self.version(self.update_broken(key, value, expected, deadline).await) },
        )
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move { self.version(self.delete_broken(key, deadline).await) })
    }

    fn delete_with_version<'a>(
        &'a self,
        key: &'a Key,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let (key, writer) = (self.key(key)?, self.writing()?);
            self.version(match self.fault {
                Fault::Modest => Err(unsupported("delete_with_version")),
                Fault::DeleteIgnoresVersion => writer.delete(&key, deadline).await,
                Fault::DeleteNeverMatches => {
                    Err(KvError::RevisionMismatch { key, expected, found: None })
                }
                _ => writer.delete_with_version(&key, self.expected(expected), deadline).await,
            })
        })
    }

    fn purge<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move { self.version(self.purge_broken(key, deadline).await) })
    }

    fn put_many<'a>(
        &'a self,
        mut items: Vec<(Key, Bytes)>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        Box::pin(async move {
            match self.fault {
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
        })
    }
}

impl BrokenStore {
    async fn put_all(
        &self,
        items: Vec<(Key, Bytes)>,
        deadline: Duration,
    ) -> Vec<KvResult<VersionToken>> {
        match self.fault {
            // These hold for all writes alike.
            Fault::None
            | Fault::PutManyShuffled
            | Fault::PutManyStops
            | Fault::PutManyBackwards => match self.writing() {
                Ok(writer) => writer.put_many(items, deadline).await,
                Err(error) => vec![Err(error); items.len()],
            },
            _ => {
                let puts = items.into_iter().map(|(key, value)| async move {
                    self.version(self.put_broken(&key, value, Deadline::after(deadline)).await)
                });
                join_all(puts).await
            }
        }
    }
}

impl KvTtl for BrokenStore {
    fn granularity(&self) -> Duration {
        match self.fault {
            Fault::TtlAnyLength => Duration::ZERO,
            _ => self.inner.ttl().map_or(Duration::from_secs(1), KvTtl::granularity),
        }
    }

    fn put_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            match self.fault {
                Fault::NeverExpires => self.put(key, value, deadline).await,
                _ => self.expiring()?.put_with_ttl(key, value, self.span(ttl), deadline).await,
            }
        })
    }

    fn create_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            match self.fault {
                Fault::NeverExpires => self.create(key, value, deadline).await,
                Fault::TtlIgnoresVersions => {
                    self.expiring()?.put_with_ttl(key, value, ttl, deadline).await
                }
                Fault::CreateRefusesTombstones
                    if self.inner.entry(key, deadline).await?.is_some() =>
                {
                    Err(KvError::AlreadyExists { key: key.clone(), found: None })
                }
                _ => self.expiring()?.create_with_ttl(key, value, self.span(ttl), deadline).await,
            }
        })
    }

    fn update_with_ttl<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        ttl: Duration,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            match self.fault {
                Fault::NeverExpires | Fault::RenewalForgetsTtl => {
                    self.update(key, value, expected, deadline).await
                }
                Fault::RenewalIgnored => Ok(expected),
                Fault::TtlIgnoresVersions => {
                    self.expiring()?.put_with_ttl(key, value, ttl, deadline).await
                }
                _ => {
                    let (ttl, expected) = (self.span(ttl), self.expected(expected));
                    self.expiring()?.update_with_ttl(key, value, expected, ttl, deadline).await
                }
            }
        })
    }
}

impl BrokenStore {
    fn span(&self, ttl: Duration) -> Duration {
        let step = self.inner.ttl().map_or(Duration::from_secs(1), KvTtl::granularity);
        match self.fault {
            Fault::TtlAnyLength => ttl.max(step),
            // No store keeps less than its granularity: longer spans are cut.
            Fault::TtlOverAge => ttl.min(Duration::from_secs(60)),
            Fault::ExpiresEarly => (ttl / 2).max(step),
            _ => ttl,
        }
    }
}
