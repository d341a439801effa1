//! Fenced writes that are broken.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use shizuku_kv::{Deadline, FencingToken, Key, KvEntry, KvError, KvFenced, KvResult, VersionToken};

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

    /// What refuses a write before the wrapped store is asked.
    async fn refuse(&self, key: &Key, token: FencingToken, deadline: Deadline) -> KvResult<()> {
        let refused = |newest| Err(KvError::Fenced { key: key.clone(), token, newest });
        match self.fault {
            Fault::FenceRefusesEqual => {
                match self.newest(key, deadline).await?.and_then(|entry| entry.fence) {
                    Some(newest) if newest == token => refused(newest),
                    _ => Ok(()),
                }
            }
            Fault::FenceOfStore => {
                let mut memory = self.memory.lock().unwrap();
                let newest = memory.newest_token.max(Some(token)).unwrap_or(token);
                memory.newest_token = Some(newest);
                if newest > token { refused(newest) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// The answer to a write, or a write without the token in the place of one that was refused for it.
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
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        let (fenced, writer) = (self.fencing()?, self.writing()?);
        match self.fault {
            Fault::FenceRaces => {
                let before = self.newest(key, deadline).await?.and_then(|entry| entry.fence);
                if let Some(newest) = before.filter(|newest| *newest > token) {
                    return Err(KvError::Fenced { key: key.clone(), token, newest });
                }
                step().await;
                match fenced.put(key, value.clone(), token, deadline).await {
                    Err(error) if error.is_fenced() => writer.put(key, value, deadline).await,
                    answer => answer,
                }
            }
            Fault::FencedTriesOnce => {
                let before = self.newest(key, deadline).await?;
                step().await;
                match before {
                    Some(entry) => fenced.update(key, value, entry.version, token, deadline).await,
                    None => fenced.create(key, value, token, deadline).await,
                }
            }
            _ => fenced.put(key, value, token, deadline).await,
        }
    }
}

impl KvFenced for BrokenStore {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let (key, value) = (self.key(key)?, self.value(value));
            self.refuse(&key, token, deadline).await?;
            let answer = self.put_fenced(&key, value.clone(), token, deadline).await;
            self.forced(answer, self.writing()?.put(&key, value, deadline)).await
        })
    }

    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let (key, value) = (self.key(key)?, self.value(value));
            self.refuse(&key, token, deadline).await?;
            let (fenced, writer) = (self.fencing()?, self.writing()?);
            let before = self.newest(&key, deadline).await?;
            let is_live = before.as_ref().is_some_and(|entry| !entry.is_tombstone());
            let answer = match self.fault {
                Fault::FencedSwapsIgnoreVersions => {
                    fenced.put(&key, value.clone(), token, deadline).await
                }
                Fault::FencedCreateForgets if !is_live => {
                    writer.create(&key, value.clone(), deadline).await
                }
                Fault::FenceComparedLast if is_live => {
                    Err(KvError::AlreadyExists { key: key.clone(), found: None })
                }
                _ => fenced.create(&key, value.clone(), token, deadline).await,
            };
            self.forced(answer, writer.create(&key, value, deadline)).await
        })
    }

    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let (key, value, expected) =
                (self.key(key)?, self.value(value), self.expected(expected));
            self.refuse(&key, token, deadline).await?;
            let (fenced, writer) = (self.fencing()?, self.writing()?);
            let found = self.newest(&key, deadline).await?.map(|entry| entry.version);
            let answer = match self.fault {
                Fault::FencedSwapsIgnoreVersions => {
                    fenced.put(&key, value.clone(), token, deadline).await
                }
                Fault::FenceComparedLast if found != Some(expected) => {
                    Err(KvError::RevisionMismatch { key: key.clone(), expected, found })
                }
                _ => fenced.update(&key, value.clone(), expected, token, deadline).await,
            };
            self.forced(answer, writer.update(&key, value, expected, deadline)).await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(async move {
            let key = self.key(key)?;
            self.refuse(&key, token, deadline).await?;
            let (fenced, writer) = (self.fencing()?, self.writing()?);
            let answer = match self.fault {
                Fault::FencedDeleteForgets => writer.delete(&key, deadline).await,
                Fault::FencedDeleteNeedsValue => match self.newest(&key, deadline).await? {
                    Some(entry) if !entry.is_tombstone() => {
                        fenced.delete(&key, token, deadline).await
                    }
                    _ => {
                        let reason = "absent".to_owned();
                        Err(KvError::Backend { operation: "fenced delete", reason, source: None })
                    }
                },
                _ => fenced.delete(&key, token, deadline).await,
            };
            self.forced(answer, writer.delete(&key, deadline)).await
        })
    }

    fn raise<'a>(
        &'a self,
        key: &'a Key,
        token: FencingToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<FencingToken>> {
        Box::pin(async move {
            let key = self.key(key)?;
            let fenced = self.fencing()?;
            let before = self.newest(&key, deadline).await?;
            let newest = before.as_ref().and_then(|entry| entry.fence);
            let value = before.filter(|entry| !entry.is_tombstone()).map(|entry| entry.value);
            match self.fault {
                Fault::RaiseDoesNothing => return Ok(token),
                Fault::RaiseEmpties if newest < Some(token) => {
                    fenced.put(&key, Bytes::new(), token, deadline).await?;
                }
                Fault::RaiseAlwaysWrites => {
                    let token = newest.max(Some(token)).unwrap_or(token);
                    match value {
                        Some(value) => fenced.put(&key, value, token, deadline).await?,
                        None => fenced.delete(&key, token, deadline).await?,
                    };
                    return Ok(token);
                }
                Fault::RaiseRaces if newest < Some(token) => {
                    step().await;
                    match value {
                        Some(value) => fenced.put(&key, value, token, deadline).await?,
                        None => fenced.delete(&key, token, deadline).await?,
                    };
                }
                Fault::RaiseForgetsLife => {
                    if let Some(value) = value.filter(|_| newest < Some(token)) {
                        fenced.put(&key, value, token, deadline).await?;
                    }
                }
                _ => {}
            }
            fenced.raise(&key, token, deadline).await
        })
    }
}
