//! A store with broken reads. Its writes and watches are in the sibling modules.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use shizuku_kv::{
    Deadline, Key, KvEntry, KvError, KvOperation, KvResult, KvStore, KvStream, StoreFigures,
    VersionToken, WatchScope,
};
use shizuku_kv_tests::faulty::{Abilities, Answer, Call, Hook, Next, Operation};

use super::{Fault, Memory, modest};

pub(super) struct BrokenStore {
    pub(super) inner: Arc<dyn KvStore>,
    pub(super) fault: Fault,
    pub(super) memory: Mutex<Memory>,
    /// Maximum size of a value when the store was opened.
    pub(super) limit: usize,
}

impl BrokenStore {
    /// Returns the key for the wrapped store.
    pub(super) fn key(&self, key: &Key) -> KvResult<Key> {
        match self.fault {
            Fault::IgnoresCase => Key::new(key.to_lowercase()),
            Fault::ShortKeys if key.len() > 255 => Err(rejected("it is too long")),
            Fault::NarrowKeys if key.contains(['=', '/']) => Err(rejected("its characters")),
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

    fn scan_broken(self: &Arc<Self>, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        let this = Arc::clone(self);
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
                            let this = Arc::clone(&this);
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
                    let (this, entry) = (Arc::clone(&this), item.as_ref().ok().cloned());
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

fn rejected(reason: &str) -> KvError {
    KvError::backend("key", reason)
}

impl Hook for BrokenStore {
    async fn call(self: &Arc<Self>, call: Call, next: &Next) -> KvResult<Answer> {
        let deadline = call.deadline;
        match call.operation {
            Operation::Entry(key) => self.read(&key, deadline).await.map(Answer::from),
            Operation::LeaderEntry(key) => self.read(&key, deadline).await.map(Answer::from),
            Operation::Entries(keys) => self.read_all(keys, deadline).await.map(Answer::from),
            Operation::History(key) => self.read_history(key, deadline).await.map(Answer::from),
            Operation::Scan(scope) => Ok(self.scan(scope, deadline.limit()).into()),
            Operation::Keys(scope) => {
                let keys = self.scan(scope, deadline.limit()).map_ok(|entry| entry.key);
                Ok(KvStream::new(keys).into())
            }
            Operation::Figures(ref scope) => {
                let scope = scope.clone();
                let mut figures = StoreFigures::try_from(next.call(call).await?)?;
                if self.fault == Fault::FiguresWithoutTombstones {
                    let live = self.inner.keys(scope, deadline.limit()).try_collect().await?;
                    figures.keys = Some(live.len() as u64);
                }
                Ok(figures.into())
            }
            Operation::Time if self.fault == Fault::SlowClock => {
                let time = Option::<SystemTime>::try_from(next.call(call).await?)?;
                Ok(time.and_then(|time| time.checked_sub(Duration::from_secs(3600))).into())
            }
            Operation::Write(key, write) => {
                self.write(&key, write, deadline).await.map(Answer::from)
            }
            Operation::WriteMany(writes, atomicity) => {
                Ok(self.write_many(writes, atomicity, deadline.limit()).await.into())
            }
            Operation::Raise(key, token) => {
                self.raise(&key, token, deadline).await.map(Answer::from)
            }
            Operation::Watch(scope, from) => {
                self.watch(scope, from, deadline).await.map(Answer::from)
            }
            _ => next.call(call).await,
        }
    }

    fn abilities(&self, mut abilities: Abilities) -> Abilities {
        match self.fault {
            Fault::Modest | Fault::FalselyModest => {
                abilities.capabilities = modest(abilities.capabilities);
            }
            Fault::HistoryIsCut => abilities.capabilities.max_history = 4,
            Fault::FencesAnywhere => {
                abilities.capabilities.fenced_writes = true;
                abilities.fences = true;
            }
            Fault::FencesMissing => abilities.fences = false,
            Fault::LimitLies => {
                abilities.max_value_size = abilities.max_value_size.saturating_mul(2);
            }
            Fault::LimitOfOpening => abilities.max_value_size = self.limit,
            Fault::IncarnationOfAll => abilities.incarnation = Some([7; 16]),
            Fault::TtlAnyLength => {
                abilities.granularity = abilities.granularity.map(|_| Duration::ZERO);
            }
            _ => {}
        }
        if self.fault == Fault::Modest {
            (abilities.watches, abilities.fences) = (false, false);
        }
        abilities
    }
}

impl BrokenStore {
    async fn read_all(
        &self,
        mut keys: Vec<Key>,
        deadline: Deadline,
    ) -> KvResult<Vec<Option<KvEntry>>> {
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
    }

    async fn read_history(&self, key: Key, deadline: Deadline) -> KvResult<KvStream<KvEntry>> {
        let key = self.key(&key)?;
        let entries = self.inner.history(key.clone(), deadline).try_collect().await;
        let entries = self.gone(entries, Vec::new())?.into_iter();
        let mut entries = entries.filter_map(|entry| self.shown(entry)).collect::<Vec<_>>();
        match self.fault {
            Fault::HistoryBackwards => entries.reverse(),
            Fault::HistoryIsOne => entries = entries.pop().into_iter().collect(),
            Fault::HistoryOfChildren => {
                let children =
                    self.inner.keys(WatchScope::prefix(format!("{key}.")), deadline.limit());
                for child in children.try_collect().await? {
                    entries.extend(self.inner.history(child, deadline).try_collect().await?);
                }
            }
            _ => {}
        }
        Ok(KvStream::new(stream::iter(entries.into_iter().map(Ok))))
    }

    fn scan(self: &Arc<Self>, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        let this = Arc::clone(self);
        let shown = move |entry| {
            let entry = this.shown(entry).filter(|entry| !entry.is_tombstone());
            std::future::ready(Ok(entry))
        };
        KvStream::new(self.scan_broken(scope, deadline).try_filter_map(shown))
    }
}

/// Shows only what the fault says: `Debug` of a store shows its hook.
impl fmt::Debug for BrokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("BrokenStore");
        if self.fault == Fault::ShowsValues {
            debug.field("value", &self.memory.lock().unwrap().last_value);
        }
        debug.finish_non_exhaustive()
    }
}
