//! A store with broken reads. Its writer and watcher are in the sibling modules.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use shizuku_kv::{
    ConnectionCapabilities, Deadline, Key, KvEntry, KvError, KvFenced, KvOperation, KvReader,
    KvResult, KvStore, KvStream, KvTtl, KvWatcher, KvWriter, StoreFigures, VersionToken,
    WatchScope,
};

use super::{Fault, Memory, modest};

#[derive(Clone)]
pub(super) struct BrokenStore {
    pub(super) inner: Arc<dyn KvStore>,
    pub(super) fault: Fault,
    pub(super) memory: Arc<Mutex<Memory>>,
    /// Maximum size of a value when the store was opened.
    pub(super) limit: usize,
}

impl BrokenStore {
    /// Returns the key for the wrapped store.
    pub(super) fn key(&self, key: &Key) -> KvResult<Key> {
        match self.fault {
            Fault::IgnoresCase => Key::new(key.to_lowercase()),
            Fault::ShortKeys if key.len() > 255 => Err(refused("it is too long")),
            Fault::NarrowKeys if key.contains(['=', '/']) => Err(refused("its characters")),
            _ => Ok(key.clone()),
        }
    }

    /// Returns an entry as this store shows it.
    pub(super) fn shown(&self, mut entry: KvEntry) -> Option<KvEntry> {
        match self.fault {
            Fault::ForgetsTombstones if entry.is_tombstone() => return None,
            Fault::EmptyIsDeleted if entry.value.is_empty() && !entry.is_tombstone() => {
                entry.operation = KvOperation::Delete;
            }
            Fault::CutsAtZero => {
                let end =
                    entry.value.iter().position(|byte| *byte == 0).unwrap_or(entry.value.len());
                entry.value = entry.value.slice(..end);
            }
            Fault::LimitLies => entry.value = entry.value.slice(..entry.value.len().min(1000)),
            Fault::OneVersion => entry.version = VersionToken::from_u64(1),
            Fault::ShiftedVersions => {
                entry.version =
                    VersionToken::from_u64(entry.version.as_u64().unwrap_or(0) + 1_000_000);
            }
            Fault::FenceHidden => entry.fence = None,
            Fault::MetadataDropped => entry.metadata = None,
            Fault::ExpiryForgotten if entry.operation == KvOperation::Expire => return None,
            _ => {}
        }
        Some(entry)
    }

    /// Returns true if this store considers the key in scope.
    pub(super) fn selects(&self, scope: &WatchScope, key: &Key) -> bool {
        let token = |prefix: &str| {
            let prefix = prefix.trim_end_matches('.');
            let end = key.strip_prefix(prefix);
            prefix.is_empty() || end.is_some_and(|end| end.is_empty() || end.starts_with('.'))
        };
        let any = |prefixes: &[String]| match self.fault {
            Fault::TokenPrefixes => prefixes.iter().any(|prefix| token(prefix)),
            _ => prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())),
        };
        match scope {
            WatchScope::Key(one) if self.fault == Fault::KeyHasChildren => {
                key.starts_with(one.as_str())
            }
            WatchScope::Prefix(prefix) => any(std::slice::from_ref(prefix)),
            WatchScope::Prefixes(prefixes) => any(prefixes),
            scope => scope.matches(key),
        }
    }

    pub(super) fn breaks_scopes(&self) -> bool {
        matches!(self.fault, Fault::TokenPrefixes | Fault::KeyHasChildren)
    }

    fn gone<T>(&self, answer: KvResult<T>, empty: T) -> KvResult<T> {
        match answer {
            Err(KvError::StoreNotFound { .. }) if self.fault == Fault::GoneIsEmpty => Ok(empty),
            answer => answer,
        }
    }

    async fn read(&self, key: &Key, deadline: Deadline) -> KvResult<Option<KvEntry>> {
        let asked = self.key(key)?;
        if self.fault == Fault::StaleReads
            && let Some(known) = self.memory.lock().unwrap().reads.get(&asked)
        {
            return Ok(known.clone());
        }
        let found = self.gone(self.inner.entry(&asked, deadline).await, None)?;
        let found = found.and_then(|entry| self.shown(entry));
        self.memory.lock().unwrap().reads.insert(asked, found.clone());
        if self.fault == Fault::FindsEverything && found.is_none() {
            let version = VersionToken::from_u64(1);
            return Ok(Some(KvEntry::put(key.clone(), Bytes::new(), version, SystemTime::now())));
        }
        Ok(found)
    }

    async fn overwritten(&self, entry: &KvEntry) -> bool {
        let now = self.inner.entry(&entry.key, Deadline::after(Duration::from_secs(5))).await;
        !matches!(now, Ok(Some(now)) if now.version == entry.version)
    }

    fn scan_broken(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        let this = self.clone();
        let all = self.inner.scan(scope.clone(), deadline);
        match self.fault {
            _ if self.breaks_scopes() => {
                let all = self.inner.scan(WatchScope::All, deadline);
                let selected =
                    move |entry: &KvEntry| std::future::ready(this.selects(&scope, &entry.key));
                KvStream::new(all.try_filter(selected))
            }
            Fault::OverlapsTwice => match scope {
                WatchScope::Prefixes(prefixes) => {
                    let scan = move |prefix| this.inner.scan(WatchScope::Prefix(prefix), deadline);
                    KvStream::new(stream::iter(prefixes).flat_map(scan))
                }
                _ => all,
            },
            Fault::ScanRepeats => KvStream::new(all.enumerate().flat_map(|(number, item)| {
                let twice = (number == 0).then(|| item.clone());
                stream::iter([Some(item), twice].into_iter().flatten())
            })),
            Fault::ScanIsShort => KvStream::new(all.take(100)),
            Fault::ScanSkipsOverwritten | Fault::ScanRepeatsOverwritten => {
                let begun = flatten(all.try_collect());
                let repeats = self.fault == Fault::ScanRepeatsOverwritten;
                KvStream::new(
                    begun
                        .then(move |item| {
                            let this = this.clone();
                            async move {
                                match item {
                                    Ok(entry) if this.overwritten(&entry).await => {
                                        let times = if repeats { 2 } else { 0 };
                                        stream::iter(vec![Ok(entry); times])
                                    }
                                    item => stream::iter(vec![item]),
                                }
                            }
                        })
                        .flatten(),
                )
            }
            Fault::ScanEndsAtRemoved => {
                let is_held = move |item: &KvResult<KvEntry>| {
                    let (this, entry) = (this.clone(), item.as_ref().ok().cloned());
                    async move {
                        let Some(entry) = entry else { return true };
                        let deadline = Deadline::after(Duration::from_secs(5));
                        let held = this.inner.history(entry.key, deadline).try_collect().await;
                        held.is_ok_and(|held| held.iter().any(|held| held.version == entry.version))
                    }
                };
                KvStream::new(flatten(all.try_collect()).take_while(is_held))
            }
            Fault::ScanHasHistory => KvStream::new(all.flat_map(move |item| match item {
                Ok(entry) => this.inner.history(entry.key, Deadline::after(deadline)),
                Err(error) => KvStream::error(error),
            })),
            Fault::ScanHangs => KvStream::new(stream::pending()),
            Fault::ScanEndsEarly if deadline < Duration::from_millis(10) => {
                KvStream::new(all.take(3))
            }
            Fault::GoneIsEmpty => KvStream::new(all.filter(|item| {
                std::future::ready(!matches!(item, Err(KvError::StoreNotFound { .. })))
            })),
            _ => all,
        }
    }
}

/// Streams collected entries, item by item.
fn flatten(
    all: impl Future<Output = KvResult<Vec<KvEntry>>> + Send + 'static,
) -> KvStream<KvEntry> {
    KvStream::new(stream::once(all).flat_map(|all| match all {
        Ok(all) => stream::iter(all.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    }))
}

fn refused(reason: &str) -> KvError {
    KvError::backend("key", reason)
}

impl KvStore for BrokenStore {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        let all = self.inner.capabilities();
        match self.fault {
            Fault::Modest | Fault::FalselyModest => modest(all),
            Fault::HistoryIsCut => {
                let mut cut = all;
                cut.max_history = 4;
                cut
            }
            Fault::FencesAnywhere => {
                let mut more = all;
                more.fenced_writes = true;
                more
            }
            _ => all,
        }
    }

    fn max_value_size(&self) -> usize {
        match self.fault {
            Fault::LimitLies => self.inner.max_value_size().saturating_mul(2),
            Fault::LimitOfOpening => self.limit,
            _ => self.inner.max_value_size(),
        }
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        if self.fault == Fault::IncarnationOfAll { Some([7; 16]) } else { self.inner.incarnation() }
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        Some(self)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        (self.fault != Fault::Modest).then_some(self)
    }

    fn ttl(&self) -> Option<&dyn KvTtl> {
        self.inner.ttl().map(|_| self as &dyn KvTtl)
    }

    fn fenced(&self) -> Option<&dyn KvFenced> {
        match self.fault {
            Fault::Modest | Fault::FencesMissing => None,
            Fault::FencesAnywhere => Some(self),
            _ => self.inner.fenced().map(|_| self as &dyn KvFenced),
        }
    }
}

impl KvReader for BrokenStore {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(self.read(key, deadline))
    }

    fn time(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<Option<SystemTime>>> {
        Box::pin(async move {
            let time = self.inner.time(deadline).await?;
            let late = if self.fault == Fault::SlowClock {
                Duration::from_secs(3600)
            } else {
                Duration::ZERO
            };
            Ok(time.and_then(|time| time.checked_sub(late)))
        })
    }

    fn figures<'a>(
        &'a self,
        scope: &'a WatchScope,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<StoreFigures>> {
        Box::pin(async move {
            let mut figures = self.inner.figures(scope, deadline).await?;
            if self.fault == Fault::FiguresWithoutTombstones {
                let live = self.inner.keys(scope.clone(), deadline.limit()).try_collect().await?;
                figures.keys = Some(live.len() as u64);
            }
            Ok(figures)
        })
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        Box::pin(async move {
            let mut keys = keys.to_vec();
            if self.fault == Fault::GetManySorted {
                keys.sort();
            }
            if self.fault == Fault::GetManyShort {
                keys.truncate(1000);
            }
            let mut entries = Vec::new();
            for key in &keys {
                entries.push(self.read(key, deadline).await?);
            }
            Ok(entries)
        })
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        let key = match self.key(&key) {
            Ok(key) => key,
            Err(error) => return KvStream::error(error),
        };
        let this = self.clone();
        flatten(async move {
            let mut entries = this.inner.history(key.clone(), deadline).try_collect().await;
            entries = this.gone(entries, Vec::new());
            let mut entries: Vec<_> =
                entries?.into_iter().filter_map(|entry| this.shown(entry)).collect();
            match this.fault {
                Fault::HistoryBackwards => entries.reverse(),
                Fault::HistoryIsOne => entries = entries.pop().into_iter().collect(),
                Fault::HistoryOfChildren => {
                    let children =
                        this.inner.keys(WatchScope::prefix(format!("{key}.")), deadline.limit());
                    for child in children.try_collect().await? {
                        entries.extend(this.inner.history(child, deadline).try_collect().await?);
                    }
                }
                _ => {}
            }
            Ok(entries)
        })
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        let this = self.clone();
        let shown = move |entry| {
            let entry = this.shown(entry).filter(|entry| !entry.is_tombstone());
            std::future::ready(Ok(entry))
        };
        KvStream::new(self.scan_broken(scope, deadline).try_filter_map(shown))
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        KvStream::new(self.scan(scope, deadline).map_ok(|entry| entry.key))
    }
}

impl fmt::Debug for BrokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("BrokenStore");
        if self.fault == Fault::ShowsValues {
            debug.field("value", &self.memory.lock().unwrap().last_value);
        }
        debug.field("inner", &self.inner).finish()
    }
}
