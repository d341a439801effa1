//! Watches and listings that are read slowly, and the invariants of their items.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shizuku_kv::{
    Key, KvEntry, KvError, KvStream, KvUpdate, Store, VersionToken, Watch, WatchCursor, WatchScope,
};
use tokio::time::{Instant, timeout};

use crate::differential::ledger::{Ledger, Side, Write};

/// Timeout for every item to arrive, once all writes have ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(45);

/// The newest version of each key that was delivered, and whether it was live.
type Delivered = BTreeMap<Key, (VersionToken, bool)>;

/// A resumable position together with the updates delivered before it.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) scope: WatchScope,
    cursor: WatchCursor,
    delivered: Delivered,
    /// True if all earlier writes had been delivered, so that both sides must treat the cursor
    /// alike.
    pub(crate) is_settled: bool,
}

/// One watch on one side.
pub(crate) struct Watching {
    side: Side,
    pub(crate) scope: WatchScope,
    watch: Watch,
    opened: u64,
    delivered: Delivered,
    /// Entries that are not compared with the ledger yet, because a burst records its writes later.
    unchecked: Vec<KvEntry>,
    /// The tick of the caught-up marker, and the updates delivered before it.
    caught_up: Option<(u64, Delivered)>,
    is_caught_up_checked: bool,
    trace: Vec<String>,
}

impl Watching {
    pub(crate) async fn open(
        store: &Store,
        side: Side,
        ledger: &Ledger,
        scope: &WatchScope,
    ) -> Result<Self, KvError> {
        let opened = ledger.tick();
        let watch = store.watch(scope.clone()).await?;
        Ok(Self::new(side, scope, watch, opened, Delivered::new()))
    }

    pub(crate) async fn resume(
        store: &Store,
        side: Side,
        ledger: &Ledger,
        saved: &Saved,
    ) -> Result<Self, KvError> {
        let opened = ledger.tick();
        let cursor = WatchCursor::from_bytes(&saved.cursor.to_bytes())?;
        let watch = store.watch_from(saved.scope.clone(), cursor).await?;
        Ok(Self::new(side, &saved.scope, watch, opened, saved.delivered.clone()))
    }

    fn new(
        side: Side,
        scope: &WatchScope,
        watch: Watch,
        opened: u64,
        delivered: Delivered,
    ) -> Self {
        Self {
            side,
            scope: scope.clone(),
            watch,
            opened,
            delivered,
            unchecked: Vec::new(),
            caught_up: None,
            is_caught_up_checked: false,
            trace: Vec::new(),
        }
    }

    pub(crate) fn saved(&self, is_settled: bool) -> Option<Saved> {
        Some(Saved {
            scope: self.scope.clone(),
            cursor: self.watch.cursor()?,
            delivered: self.delivered.clone(),
            is_settled,
        })
    }

    /// Reads up to `items` items, as far as they arrive within `patience` each.
    pub(crate) async fn read(
        &mut self,
        ledger: &Ledger,
        items: usize,
        patience: Duration,
    ) -> Result<usize, String> {
        for read in 0..items {
            match timeout(patience, self.watch.next()).await {
                Err(_) => return Ok(read),
                Ok(Some(Ok(update))) => self.take(ledger, update)?,
                Ok(other) => return Err(self.wrong(format!("it ended: {other:?}"))),
            }
        }
        Ok(items)
    }

    fn take(&mut self, ledger: &Ledger, update: KvUpdate) -> Result<(), String> {
        self.trace.push(match update.entry() {
            Some(entry) => format!("{}@{} {:?}", entry.key, entry.version, entry.operation),
            None => "CaughtUp".to_owned(),
        });
        let Some(entry) = update.into_entry() else {
            if self.caught_up.is_some() {
                return Err(self.wrong("it caught up twice".into()));
            }
            self.caught_up = Some((ledger.tick(), self.delivered.clone()));
            return Ok(());
        };
        if !self.scope.matches(&entry.key) {
            return Err(self.wrong(format!("{} is out of scope", entry.key)));
        }
        let before =
            self.delivered.insert(entry.key.clone(), (entry.version, !entry.is_tombstone()));
        if let Some((version, _)) = before
            && version.as_u64() >= entry.version.as_u64()
        {
            return Err(
                self.wrong(format!("{}@{} came after @{version}", entry.key, entry.version))
            );
        }
        self.unchecked.push(entry);
        Ok(())
    }

    /// Compares everything read so far with the ledger, which must be complete.
    pub(crate) fn check(&mut self, ledger: &Ledger) -> Result<(), String> {
        let side = self.side.index();
        let writes = ledger.writes();
        for entry in std::mem::take(&mut self.unchecked) {
            let all = writes.get(&entry.key).map_or(&[][..], Vec::as_slice);
            let write = all.iter().find(|write| write.versions[side] == entry.version);
            if let Some(why) = Ledger::differs(Some(&entry), write, self.side) {
                return Err(self.wrong(why));
            }
        }
        if let Some((tick, delivered)) = &self.caught_up
            && !self.is_caught_up_checked
        {
            for (key, all) in writes.iter().filter(|(key, _)| self.scope.matches(key)) {
                let Some(at) = all.iter().rposition(|write| write.acknowledged[side] < self.opened)
                else {
                    continue;
                };
                let lives = all[at].is_live()
                    && all[at + 1..]
                        .iter()
                        .all(|write| write.is_live() || write.sent[side] > *tick);
                let known = delivered.get(key).and_then(|(version, _)| version.as_u64());
                if lives && known < all[at].versions[side].as_u64() {
                    return Err(self.wrong(format!(
                        "it caught up without {key}@{}, known at @{known:?}",
                        all[at].versions[side]
                    )));
                }
            }
            self.is_caught_up_checked = true;
        }
        Ok(())
    }

    /// Returns the first key whose newest write has not arrived.
    fn missing(&self, ledger: &Ledger) -> Option<String> {
        if self.caught_up.is_none() {
            return Some("the caught-up marker".into());
        }
        let writes = ledger.writes();
        let mut newest = writes.iter().filter_map(|(key, all)| Some((key, all.last()?)));
        newest.find_map(|(key, write)| {
            if !self.scope.matches(key) {
                return None;
            }
            let version = write.versions[self.side.index()];
            let is_due = match self.delivered.get(key) {
                Some((known, _)) if *known == version => false,
                Some((_, was_live)) => write.is_live() || *was_live,
                None => write.is_live(),
            };
            is_due.then(|| format!("{key}@{version}"))
        })
    }

    /// Reads until all writes have arrived.
    pub(crate) async fn settle(&mut self, ledger: &Ledger) -> Result<(), String> {
        let end = Instant::now() + SETTLED_WITHIN;
        loop {
            self.check(ledger)?;
            let Some(missing) = self.missing(ledger) else { return Ok(()) };
            if Instant::now() >= end {
                return Err(
                    self.wrong(format!("{missing} did not arrive within {SETTLED_WITHIN:?}"))
                );
            }
            self.read(ledger, 1, Duration::from_secs(1)).await?;
        }
    }

    fn wrong(&self, why: String) -> String {
        let tail = self.trace.len().saturating_sub(40);
        format!(
            "a watch of {:?} on {:?}, opened at tick {}: {why}\n  it delivered {}",
            self.scope,
            self.side,
            self.opened,
            self.trace[tail..].join(", ")
        )
    }
}

/// The two kinds of listings.
enum Items {
    Entries(KvStream<KvEntry>),
    Keys(KvStream<Key>),
}

/// One listing on one side.
pub(crate) struct Listing {
    side: Side,
    scope: WatchScope,
    items: Items,
    started: u64,
    /// Each item with the tick at which it arrived.
    seen: Vec<(Key, Option<VersionToken>, u64)>,
    ended: Option<u64>,
}

impl Listing {
    pub(crate) fn open(
        store: &Store,
        side: Side,
        ledger: &Ledger,
        scope: &WatchScope,
        keys_only: bool,
    ) -> Self {
        let started = ledger.tick();
        let items = if keys_only {
            Items::Keys(store.keys(scope.clone()))
        } else {
            Items::Entries(store.scan(scope.clone()))
        };
        Self { side, scope: scope.clone(), items, started, seen: Vec::new(), ended: None }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    pub(crate) async fn read(&mut self, ledger: &Ledger, items: usize) -> Result<(), String> {
        for _ in 0..items {
            let next = match &mut self.items {
                Items::Entries(entries) => entries
                    .next()
                    .await
                    .map(|item| item.map(|entry| (entry.key, Some(entry.version)))),
                Items::Keys(keys) => keys.next().await.map(|item| item.map(|key| (key, None))),
            };
            match next {
                Some(Ok((key, version))) => self.seen.push((key, version, ledger.tick())),
                Some(Err(error)) => return Err(self.wrong(format!("{error}"))),
                None => {
                    self.ended = Some(ledger.tick());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads to the end and compares the whole with the ledger, which must be complete.
    pub(crate) async fn finish(mut self, ledger: &Ledger) -> Result<(), String> {
        while !self.is_over() {
            self.read(ledger, 1000).await?;
        }
        self.check(ledger)
    }

    fn check(&self, ledger: &Ledger) -> Result<(), String> {
        let (side, ended) = (self.side.index(), self.ended.unwrap_or(u64::MAX));
        let writes = ledger.writes();
        let mut keys = BTreeSet::new();
        for (key, version, tick) in &self.seen {
            if !self.scope.matches(key) || !keys.insert(key) {
                return Err(self.wrong(format!("{key} is out of scope or came twice")));
            }
            let all = writes.get(key).map_or(&[][..], Vec::as_slice);
            // Checks whether this write can have been the newest at some moment of the listing.
            let was_newest = |at: usize, write: &Write| {
                write.is_live()
                    && version.is_none_or(|version| write.versions[side] == version)
                    && write.sent[side] < *tick
                    && all.get(at + 1).is_none_or(|next| next.acknowledged[side] > self.started)
            };
            if !all.iter().enumerate().any(|(at, write)| was_newest(at, write)) {
                return Err(self.wrong(format!("{key}@{version:?} was not the newest meanwhile")));
            }
        }
        for (key, all) in writes.iter().filter(|(key, _)| self.scope.matches(key)) {
            let Some(at) = all.iter().rposition(|write| write.acknowledged[side] < self.started)
            else {
                continue;
            };
            let lives = all[at].is_live()
                && all[at + 1..].iter().all(|w| w.is_live() || w.sent[side] > ended);
            if lives && !keys.contains(key) {
                return Err(self.wrong(format!(
                    "{key} lived throughout and is missing; {} keys came",
                    keys.len()
                )));
            }
        }
        Ok(())
    }

    fn wrong(&self, why: String) -> String {
        let kind = if matches!(self.items, Items::Keys(_)) { "keys" } else { "scan" };
        format!(
            "{kind} of {:?} on {:?}, started at tick {}: {why}",
            self.scope, self.side, self.started
        )
    }
}
