//! Watches: a position in the change log that advances in slices.
//!
//! No queue exists between the writers and a watch. The reader pulls a slice when it has delivered
//! the last one. A slow reader therefore skips superseded entries, and holds one slice in memory.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;

use super::engine::Call;
use super::failure::Failure;
use super::notice::Changes;
use super::record::{Head, nanos, system};
use super::state::StoreState;
use super::tables::Position;
use super::view::{Budget, Entries, Stop};
use crate::backend::embedded::Selector;
use crate::store::timer::sleep;
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvResult, KvUpdate, Watch, WatchCursor, WatchScope,
};

/// Name of the operation in errors.
const OPERATION: &str = "watch";

/// Maximum number of entries of a slice.
const ITEMS: usize = 256;

/// Maximum number of positions that a slice visits.
const WALK: usize = 4096;

/// Pause after a failed read.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens a watch.
///
/// # Errors
/// Returns [`KvError::CursorExpired`] if the watch cannot resume at the cursor. Returns
/// [`KvError::StoreNotFound`] or [`KvError::Closed`] if the store has ended.
pub(super) async fn watch(
    state: Arc<StoreState>,
    scope: WatchScope,
    from: Option<WatchCursor>,
    deadline: Deadline,
) -> KvResult<Watch> {
    // Created before the first read, so that it notices every later commit.
    let changes = state.engine.changes_of(state.id);
    let selector = Arc::new(Selector::new(&scope));
    let is_foreign = from.is_some_and(|cursor| cursor.incarnation() != &state.incarnation);
    let cursor = from.map(|cursor| (cursor.position(), nanos(cursor.as_of())));
    let shared = Arc::clone(&state);
    // An ended store or connection is reported before a fault of the cursor.
    let begin = state.read(Call::new(OPERATION, deadline), move |entries, end| {
        if is_foreign {
            let reason =
                "the cursor belongs to another store, or to one that was deleted and recreated";
            return Err(Gap::Expired(reason).of(&shared));
        }
        if let Some((position, as_of)) = cursor {
            resume(entries, end, position, as_of).map_err(|fault| fault.of(&shared))?;
        }
        Ok(end)
    });
    let end = begin.await?;
    let updates = Updates {
        state,
        changes,
        selector,
        position: cursor.map_or(0, |(position, _)| position),
        as_of: cursor.map_or(end.written, |(_, as_of)| as_of),
        snapshot: if cursor.is_some() { 0 } else { end.sequence },
        target: Some(Target { sequence: end.sequence, pending: None }),
        ready: VecDeque::new(),
    };
    Ok(Watch::new(stream::unfold(Some(updates), |updates| async {
        let mut updates = updates?;
        match updates.next().await {
            Ok(item) => Some((Ok(item), Some(updates))),
            Err(error) => Some((Err(error), None)),
        }
    })))
}

/// The reason why a watch cannot resume without a gap.
enum Gap {
    Expired(&'static str),
    Stopped(Stop),
}

impl Gap {
    fn of(self, state: &StoreState) -> Stop {
        match self {
            Self::Expired(reason) => Stop::Error(expired(state, reason)),
            Self::Stopped(stop) => stop,
        }
    }
}

/// Checks that the entries after `position` are known without a gap, and that the entry at it is
/// from `as_of`. An entry of another time shows that the cursor is from another copy of the folder.
fn resume(entries: &Entries, end: Position, position: u64, as_of: u64) -> Result<(), Gap> {
    if position > end.sequence {
        return Err(Gap::Expired("the cursor is ahead of everything that the store has seen"));
    }
    // Some of the missing entries before the first one were only superseded. The store cannot
    // distinguish them, and neither can a server.
    let first = entries.first_version().map_err(|failure| Gap::Stopped(failure.into()))?;
    if position + 1 < first.unwrap_or(end.sequence + 1) {
        return Err(Gap::Expired("the store no longer holds everything that followed the cursor"));
    }
    let written = match position == end.sequence {
        true => Some(end.written),
        false => entries.written_at(position).map_err(|failure| Gap::Stopped(failure.into()))?,
    };
    if written.is_some_and(|written| written != as_of) {
        return Err(Gap::Expired("the cursor belongs to another copy of the folder"));
    }
    remembers(end, position)
}

/// Checks that every tombstone after `position` is still stored or was superseded.
fn remembers(end: Position, position: u64) -> Result<(), Gap> {
    if position < end.forgotten {
        return Err(Gap::Expired("a deletion that followed the cursor has been forgotten"));
    }
    Ok(())
}

/// The updates of a watch.
struct Updates {
    state: Arc<StoreState>,
    changes: Changes,
    selector: Arc<Selector>,
    /// Highest version up to which everything in scope was delivered, or was superseded before its
    /// delivery.
    position: u64,
    /// Time of the write with that version, in nanoseconds since 1970.
    as_of: u64,
    /// Version up to which the watch delivers the initial state: only the newest entry of each key.
    /// Beyond it, the watch delivers all held entries. 0 for a watch that resumes at a cursor.
    snapshot: u64,
    /// Condition for the caught-up marker. `None` after its delivery.
    target: Option<Target>,
    /// The rest of the last slice.
    ready: VecDeque<(KvUpdate, WatchCursor)>,
}

/// Entries that have to be delivered before the watch has caught up.
struct Target {
    /// Version of the last entry of the store when the watch began.
    sequence: u64,
    /// The keys that were written again before the watch reached them. `None` until the watch has
    /// reached `sequence`. The marker waits for their newest entries. The initial state would
    /// otherwise lack keys that were live all the time.
    pending: Option<BTreeSet<Key>>,
}

/// A part of the log.
struct Slice {
    items: Vec<Visited>,
    /// The version up to which everything was visited, and the time of its write.
    position: u64,
    as_of: u64,
    end: SliceEnd,
}

/// A visited entry in scope.
struct Visited {
    version: u64,
    /// Time of the write, in nanoseconds since 1970.
    created: u64,
    key: Key,
    /// `None` if it has expired and is hidden.
    entry: Option<KvEntry>,
}

impl Visited {
    /// Visits an older or the newest entry of a key.
    ///
    /// The newest entry beyond the initial state is visited even if it has expired. Otherwise a
    /// watch that resumes before its tombstone is written would be caught up, while its reader
    /// still has an older value. A process that only reads hides it, because a tombstone may never
    /// follow.
    fn new(
        entries: &Entries,
        key: &Key,
        head: &Head,
        version: u64,
        snapshot: u64,
    ) -> Result<Self, Failure> {
        let is_newest = head.version == version;
        let entry = match is_newest && (version <= snapshot || entries.hides_expired()) {
            true => entries.live(key, version)?,
            false => entries.version(key, version)?,
        };
        let created = match &entry {
            Some(entry) => nanos(entry.created),
            None => entries.written_at(version)?.unwrap_or(head.created),
        };
        Ok(Self { version, created, key: key.clone(), entry })
    }

    fn size(&self) -> usize {
        self.entry.as_ref().map_or(0, |entry| entry.value.len())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SliceEnd {
    /// The slice reaches the end of the log.
    Log,
    /// The slice ends before the first entry beyond the target.
    Target,
    /// More entries follow.
    Budget,
}

impl Updates {
    async fn next(&mut self) -> KvResult<(KvUpdate, WatchCursor)> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            self.changes.see();
            let is_at_end = match self.pull().await {
                Ok(is_at_end) => is_at_end,
                Err(error) if error.is_retryable() => {
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is_at_end && self.ready.is_empty() {
                self.changes.next().await;
            }
        }
    }

    /// Pulls the next slice. Returns whether it has reached the end of the log.
    async fn pull(&mut self) -> KvResult<bool> {
        let stop_at = self.target.as_ref().filter(|target| target.pending.is_none());
        let (position, snapshot) = (self.position, self.snapshot);
        let stop_at = stop_at.map(|target| target.sequence);
        let (selector, state) = (Arc::clone(&self.selector), Arc::clone(&self.state));
        let read = self.state.read(forever(), move |entries, end| {
            // A reader that has missed a forgotten deletion would show the deleted value forever. A
            // reader that has received no entry misses none.
            if position > 0 {
                remembers(end, position).map_err(|gap| gap.of(&state))?;
            }
            match selector.only_key() {
                Some(key) => of_key(entries, end, key, position, snapshot),
                None => of_scope(entries, end, &selector, position, snapshot, stop_at),
            }
        });
        let slice = read.await?;
        for Visited { version, created, key, entry } in slice.items {
            (self.position, self.as_of) = (version, created);
            if let Some(entry) = entry {
                let cursor = self.cursor();
                self.ready.push_back((KvUpdate::from(entry), cursor));
            }
            let pending = self.target.as_mut().and_then(|target| target.pending.as_mut());
            if pending.is_some_and(|pending| pending.remove(&key) && pending.is_empty()) {
                self.catch_up();
            }
        }
        if slice.position > self.position {
            (self.position, self.as_of) = (slice.position, slice.as_of);
        }
        match slice.end {
            SliceEnd::Log => self.catch_up(),
            SliceEnd::Target => self.find_pending().await?,
            SliceEnd::Budget => {}
        }
        Ok(slice.end == SliceEnd::Log)
    }

    /// Adds the caught-up marker, unless it was delivered before.
    fn catch_up(&mut self) {
        if self.target.take().is_some() {
            let cursor = self.cursor();
            self.ready.push_back((KvUpdate::CaughtUp, cursor));
        }
    }

    fn cursor(&self) -> WatchCursor {
        WatchCursor::new(self.state.incarnation, self.position, system(self.as_of))
    }

    /// Finds the keys whose newest entry comes after the target.
    async fn find_pending(&mut self) -> KvResult<()> {
        let Some(start) = self.target.as_ref().map(|target| target.sequence) else {
            return Ok(());
        };
        let (mut found, mut after) = (BTreeSet::new(), self.position);
        loop {
            let selector = Arc::clone(&self.selector);
            let search = self.state.read(forever(), move |entries, end| {
                pending_after(entries, end, &selector, start, after)
            });
            let (keys, position, is_at_end) = search.await?;
            found.extend(keys);
            after = position;
            if is_at_end {
                break;
            }
        }
        if found.is_empty() {
            self.catch_up();
        } else if let Some(target) = &mut self.target {
            target.pending = Some(found);
        }
        Ok(())
    }
}

/// Reads of a watch wait for as long as a stopped process blocks them.
fn forever() -> Call<'static> {
    Call::new(OPERATION, Deadline::after(Duration::MAX)).slice()
}

/// Returns the entries of one key. Most stores have many others, which are not visited.
fn of_key(
    entries: &Entries,
    end: Position,
    key: &Key,
    position: u64,
    snapshot: u64,
) -> Result<Slice, Stop> {
    let (mut items, mut budget) = (Vec::new(), Budget::new(ITEMS));
    let mut reached = position;
    if let Some(head) = entries.head(key)? {
        let older = head.older.iter().copied().filter(|version| *version > snapshot);
        for version in older.chain([head.version]).filter(|version| *version > position) {
            if budget.is_used_up() && !items.is_empty() {
                return slice(entries, items, reached, SliceEnd::Budget);
            }
            let visited = Visited::new(entries, key, &head, version, snapshot)?;
            budget.take(visited.size());
            items.push(visited);
            reached = version;
        }
    }
    Ok(Slice { items, position: end.sequence, as_of: end.written, end: SliceEnd::Log })
}

/// Returns a slice that ends before the end of the log.
fn slice(
    entries: &Entries,
    items: Vec<Visited>,
    position: u64,
    end: SliceEnd,
) -> Result<Slice, Stop> {
    let as_of = entries.written_at(position)?.unwrap_or_default();
    Ok(Slice { items, position, as_of, end })
}

fn of_scope(
    entries: &Entries,
    end: Position,
    selector: &Selector,
    position: u64,
    snapshot: u64,
    stop_at: Option<u64>,
) -> Result<Slice, Stop> {
    let (mut items, mut reached, mut budget) = (Vec::new(), position, Budget::new(ITEMS));
    for (walked, at) in entries.log_after(position)?.enumerate() {
        let (version, key) = at?;
        if stop_at.is_some_and(|stop_at| version > stop_at) {
            return slice(entries, items, reached, SliceEnd::Target);
        }
        if walked == WALK || budget.is_used_up() {
            return slice(entries, items, reached, SliceEnd::Budget);
        }
        reached = version;
        if !selector.contains(&key) {
            continue;
        }
        let Some(head) = entries.head(&key)? else { continue };
        if head.version != version && version <= snapshot {
            continue;
        }
        let visited = Visited::new(entries, &key, &head, version, snapshot)?;
        budget.take(visited.size());
        items.push(visited);
    }
    Ok(Slice { items, position: end.sequence, as_of: end.written, end: SliceEnd::Log })
}

/// Returns selected keys that had an entry at the version `start`, and whose newest entry comes
/// after a position; the position up to which they were found; and whether it is the end.
fn pending_after(
    entries: &Entries,
    end: Position,
    selector: &Selector,
    start: u64,
    after: u64,
) -> Result<(BTreeSet<Key>, u64, bool), Stop> {
    let (mut found, mut reached, budget) = (BTreeSet::new(), after, Budget::new(1));
    for (walked, at) in entries.log_after(after)?.enumerate() {
        if walked == WALK || budget.is_used_up() {
            return Ok((found, reached, false));
        }
        let (version, key) = at?;
        reached = version;
        if selector.contains(&key)
            && let Some(head) = entries.head(&key)?
            && head.since <= start
        {
            found.insert(key);
        }
    }
    Ok((found, end.sequence, true))
}

fn expired(state: &StoreState, reason: &'static str) -> KvError {
    KvError::CursorExpired { store: state.name.clone(), reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]
mod tests {
    use std::time::{Duration, Instant};

    use ::redb::{Builder, ConcurrencyMode};

    use crate::store::{Connection, KvOperation, StoreConfig, WatchScope};
    use crate::{FileConnection, Watch};

    async fn next(watch: &Watch) -> Option<KvOperation> {
        let next = tokio::time::timeout(Duration::from_secs(45), watch.next()).await.unwrap();
        next.unwrap().unwrap().into_entry().map(|entry| entry.operation)
    }

    /// Another process holds the lock of the writers, so that the tombstone cannot be written.
    #[tokio::test]
    async fn resumed_watch_skips_no_expired_entry_before_marker() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let url = format!("file:{}?shared=true", path.display());
        let connection = FileConnection::open(&url).await.unwrap();
        let config = StoreConfig::new().key_ttl(true);
        let store = connection.store_with_config("config", config).await.unwrap();
        store.put("key", "old").await.unwrap();
        let watch = store.watch(WatchScope::All).await.unwrap();
        assert_eq!(next(&watch).await, Some(KvOperation::Put));
        let cursor = watch.cursor().unwrap();
        drop(watch);
        store.ttl().unwrap().put("key", "short", Duration::from_secs(1)).await.unwrap();
        let mut builder = Builder::new();
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
        let other = builder.open(path.join("shizuku.redb")).unwrap();
        let lock = other.begin_write().unwrap();
        let (hurried, start) = (store.with_deadline(Duration::from_millis(200)), Instant::now());
        while hurried.get("key").await.unwrap().is_some() {
            assert!(start.elapsed() < Duration::from_secs(45), "the value does not expire");
        }
        let mut resumed = Vec::new();
        for scope in [WatchScope::All, WatchScope::key("key").unwrap()] {
            let watch = store.watch_from(scope, cursor).await.unwrap();
            assert_eq!(next(&watch).await, Some(KvOperation::Put));
            assert_eq!(next(&watch).await, None, "the marker does not wait for the lock");
            resumed.push(watch);
        }
        // The initial state does not contain it.
        let fresh = store.watch(WatchScope::All).await.unwrap();
        assert_eq!(next(&fresh).await, None);
        drop(lock);
        for watch in &resumed {
            assert_eq!(next(watch).await, Some(KvOperation::Expire));
        }
    }
}
