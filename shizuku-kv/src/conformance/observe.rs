//! Shared parts of the checks: a watch that is checked while it is read, and a log of the writes.

use std::collections::{BTreeMap, HashSet};
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join;
use tokio::time::sleep;

use super::{CheckFailure, CheckResult, Fixture};
use crate::store::{
    Key, KvEntry, KvResult, KvUpdate, Store, VersionToken, Watch, WatchCursor, WatchScope,
};

/// Lets all other pending futures make a step. Without it, the futures of a backend that never has
/// to wait would run one after the other instead of interleaved.
pub(super) async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Number of keys that [`fill`] writes.
pub(super) const STABLE: usize = 300;

/// Writes `stable.00000` and so on, with the same value. These keys exist from the first call on,
/// whatever else is written.
pub(super) async fn fill(
    store: &Store,
    keys: usize,
    value: &str,
) -> CheckResult<BTreeMap<String, String>> {
    let items = (0..keys).map(|number| (format!("stable.{number:05}"), value.to_owned()));
    let items = items.collect::<BTreeMap<_, _>>();
    for answer in store.put_many(items.clone()).await {
        answer?;
    }
    Ok(items)
}

/// Overwrites the [`STABLE`] keys a few times while `work` runs. It stops before `work` ends. A
/// reader that is slower than all writers together never gets to the end, and the contract does not
/// promise that it does.
pub(super) async fn under_writes<T>(
    store: &Store,
    work: impl Future<Output = CheckResult<T>>,
) -> CheckResult<T> {
    let writes = async {
        for round in 0..3 {
            fill(store, STABLE, &format!("round {round}")).await?;
            store.put("other.put", "value").await?;
            store.delete("other.deleted").await?;
            store.purge("other.purged").await?;
            sleep(Duration::from_millis(round)).await;
        }
        CheckResult::Ok(())
    };
    let (done, written) = join(work, writes).await;
    written.and(done)
}

/// Checks that all [`STABLE`] keys are present, and no key twice.
pub(super) fn ensure_stable_once<'a>(keys: impl IntoIterator<Item = &'a Key>) -> CheckResult {
    let mut found = keys.into_iter().map(Key::as_str).collect::<Vec<_>>();
    found.sort_unstable();
    let twice = found.windows(2).find(|pair| pair[0] == pair[1]);
    ensure!(twice.is_none(), "{twice:?} appeared twice");
    let stable = found.iter().filter(|key| key.starts_with("stable.")).count();
    ensure_eq!(stable, STABLE, "keys that lived throughout and appeared");
    Ok(())
}

/// The version of each write to each key, in the order in which they took effect.
#[derive(Debug, Default)]
pub(super) struct WriteLog {
    keys: BTreeMap<String, Vec<VersionToken>>,
}

impl WriteLog {
    /// Records a write and returns its version.
    pub(super) fn note(
        &mut self,
        key: &str,
        write: KvResult<VersionToken>,
    ) -> CheckResult<VersionToken> {
        let version = write?;
        self.keys.entry(key.to_owned()).or_default().push(version);
        Ok(version)
    }

    /// Appends the writes of another log, which are to other keys or later than those of this one.
    pub(super) fn append(&mut self, other: Self) {
        for (key, versions) in other.keys {
            self.keys.entry(key).or_default().extend(versions);
        }
    }

    /// Returns the version of the last write to each key.
    pub(super) fn newest(&self) -> BTreeMap<String, VersionToken> {
        let last = |(key, versions): (&String, &Vec<_>)| {
            versions.last().map(|version| (key.clone(), *version))
        };
        self.keys.iter().filter_map(last).collect()
    }

    /// Returns the index of the write to the key that gave it this version, counted from 0.
    pub(super) fn position(&self, key: &str, version: VersionToken) -> Option<usize> {
        self.keys.get(key)?.iter().position(|written| *written == version)
    }
}

/// A watch whose every update is checked against the guarantees for all updates. Nothing arrives
/// twice, the marker arrives once, and updates agree with the operations in them.
pub(super) struct Observer<'a> {
    fixture: &'a Fixture,
    watch: Watch,
    seen: HashSet<(Key, VersionToken)>,
    entries: Vec<KvEntry>,
    caught_up: bool,
}

impl<'a> Observer<'a> {
    /// Opens a watch from the initial state.
    pub(super) async fn open(
        fixture: &'a Fixture,
        store: &Store,
        scope: impl Into<WatchScope>,
    ) -> CheckResult<Self> {
        Ok(Self::over(fixture, store.watch(scope).await?))
    }

    /// Opens a watch from a cursor.
    pub(super) async fn resume(
        fixture: &'a Fixture,
        store: &Store,
        scope: impl Into<WatchScope>,
        cursor: WatchCursor,
    ) -> CheckResult<Self> {
        Ok(Self::over(fixture, store.watch_from(scope, cursor).await?))
    }

    /// Opens a watch from a cursor that may have expired.
    pub(super) async fn try_resume(
        fixture: &'a Fixture,
        store: &Store,
        scope: impl Into<WatchScope>,
        cursor: WatchCursor,
    ) -> KvResult<Self> {
        Ok(Self::over(fixture, store.watch_from(scope, cursor).await?))
    }

    fn over(fixture: &'a Fixture, watch: Watch) -> Self {
        Self { fixture, watch, seen: HashSet::new(), entries: Vec::new(), caught_up: false }
    }

    /// Returns the watch itself. Pass every item that is read from it directly to
    /// [`check`](Self::check).
    pub(super) fn watch(&mut self) -> &mut Watch {
        &mut self.watch
    }

    /// Returns the cursor after the last update.
    pub(super) fn cursor(&self) -> CheckResult<WatchCursor> {
        self.watch
            .cursor()
            .ok_or_else(|| CheckFailure::new("a watch that delivered something has no cursor"))
    }

    /// Returns the entries that arrived, in order.
    pub(super) fn entries(&self) -> &[KvEntry] {
        &self.entries
    }

    /// Returns true if the marker arrived.
    pub(super) fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Returns the next update.
    pub(super) async fn next(&mut self, waiting_for: &str) -> CheckResult<KvUpdate> {
        self.fixture.step(format!("waiting for {waiting_for} at a watch"));
        let item = self.watch.next().await;
        self.check(item, waiting_for)
    }

    /// Checks and records an item of the watch.
    pub(super) fn check(
        &mut self,
        item: Option<KvResult<KvUpdate>>,
        waiting_for: &str,
    ) -> CheckResult<KvUpdate> {
        let update = match item {
            Some(Ok(update)) => update,
            Some(Err(error)) => {
                let message = format!("waiting for {waiting_for}: the watch failed: {error}");
                return Err(CheckFailure::new(message));
            }
            None => {
                return Err(CheckFailure::new(format!(
                    "waiting for {waiting_for}: the watch ended"
                )));
            }
        };
        ensure!(self.watch.cursor().is_some(), "an update came without a cursor to go on from");
        match &update {
            KvUpdate::CaughtUp => {
                ensure!(!self.caught_up, "the caught-up marker came a second time");
                self.caught_up = true;
            }
            KvUpdate::Put(entry) | KvUpdate::Delete(entry) => {
                let expected = matches!(update, KvUpdate::Delete(_));
                ensure_eq!(
                    entry.is_tombstone(),
                    expected,
                    "whether the entry of key {} is a tombstone",
                    entry.key
                );
                ensure!(
                    self.seen.insert((entry.key.clone(), entry.version)),
                    "version {} of key {} arrived twice",
                    entry.version,
                    entry.key
                );
                self.entries.push(entry.clone());
            }
        }
        Ok(update)
    }

    /// Returns everything up to the marker.
    pub(super) async fn state(&mut self) -> CheckResult<Vec<KvEntry>> {
        let mut state = Vec::new();
        loop {
            match self.next("the caught-up marker").await? {
                KvUpdate::CaughtUp => return Ok(state),
                update => state.extend(update.into_entry()),
            }
        }
    }

    /// Returns the next entry, skipping the marker.
    pub(super) async fn entry(&mut self, waiting_for: &str) -> CheckResult<KvEntry> {
        loop {
            if let Some(entry) = self.next(waiting_for).await?.into_entry() {
                return Ok(entry);
            }
        }
    }

    /// Returns the entry of the key with this version, skipping others.
    pub(super) async fn reach(&mut self, key: &str, version: VersionToken) -> CheckResult<KvEntry> {
        let waiting_for = format!("version {version} of key {key}");
        loop {
            let entry = self.entry(&waiting_for).await?;
            if entry.key == key && entry.version == version {
                return Ok(entry);
            }
        }
    }

    /// Reads until the last write of each key has arrived.
    pub(super) async fn reach_all(
        &mut self,
        newest: &BTreeMap<String, VersionToken>,
    ) -> CheckResult {
        let mut missing = newest.clone();
        let arrived = |missing: &mut BTreeMap<String, VersionToken>, entry: &KvEntry| {
            if missing.get(entry.key.as_str()) == Some(&entry.version) {
                missing.remove(entry.key.as_str());
            }
        };
        self.entries.iter().for_each(|entry| arrived(&mut missing, entry));
        while let Some((key, version)) = missing.first_key_value() {
            let waiting_for = format!(
                "version {version} of key {key} and {} more last writes",
                missing.len() - 1
            );
            let entry = self.entry(&waiting_for).await?;
            arrived(&mut missing, &entry);
        }
        Ok(())
    }

    /// Checks that all arrived entries were written, in the order of the writes of each key.
    pub(super) fn ensure_in_order(&self, log: &WriteLog) -> CheckResult {
        ensure_in_order(&self.entries, log)
    }
}

/// Checks that these entries were written, in the order of the writes of each key.
pub(super) fn ensure_in_order(entries: &[KvEntry], log: &WriteLog) -> CheckResult {
    let mut latest = BTreeMap::new();
    for KvEntry { key, version, .. } in entries {
        let Some(position) = log.position(key, *version) else {
            return Err(CheckFailure::new(format!(
                "version {version} of key {key} was never written"
            )));
        };
        if let Some(before) = latest.insert(key.as_str(), position) {
            ensure!(
                before < position,
                "key {key} went back: write {position} arrived after write {before} of it"
            );
        }
    }
    Ok(())
}

/// Returns the keys of entries, sorted, each as often as it occurs.
pub(super) fn sorted_keys(entries: &[KvEntry]) -> Vec<&str> {
    let mut keys = entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>();
    keys.sort_unstable();
    keys
}
