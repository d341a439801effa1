//! Watches: a position in the log that advances as the watch is polled.
//!
//! No queue exists between the writers and a watch. The reader pulls from the log. A slow reader
//! therefore skips superseded entries, and uses no memory for them. A watch waits only for a
//! change, and for the next expiry, because perhaps no other operation applies that expiry.

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::log::follow::{Next, PendingKeys};
use super::shared::{Call, Contents, StoreState};
use crate::backend::embedded::{Selector, poll_share};
use crate::backend::source::{Source, items};
use crate::store::timer::timeout_at;
use crate::store::{Deadline, KvError, KvResult, KvUpdate, Watch, WatchCursor, WatchScope};

/// Name of the operation in errors.
const OPERATION: &str = "watch";

/// Number of entries whose visit takes longer than a waiting thread spins. After fewer entries, the
/// lock is free often enough for that thread.
const LONG_WALK: u64 = 16;

/// Opens a watch.
///
/// # Errors
/// Returns [`KvError::CursorExpired`] if the watch cannot resume at the cursor. Returns
/// [`KvError::StoreNotFound`] or [`KvError::Closed`] if the store has ended.
pub(super) async fn watch(
    shared: Arc<StoreState>,
    scope: WatchScope,
    from: Option<WatchCursor>,
    deadline: Deadline,
) -> KvResult<Watch> {
    let position = WatchPosition::new(&shared, scope, from, deadline).await?;
    Ok(Watch::new(items(Updates { shared, position }, poll_share)))
}

/// The updates of a watch.
struct Updates {
    shared: Arc<StoreState>,
    position: WatchPosition,
}

impl Source for Updates {
    type Item = (KvUpdate, WatchCursor);

    fn next_at_once(&mut self) -> KvResult<Option<Self::Item>> {
        let Self { shared, position } = self;
        let (before, mut done) = (position.position, None);
        match shared.attempt(OPERATION, |contents| position.pull(shared, contents, &mut done)) {
            ControlFlow::Break(Ok(Pulled::Item(update, cursor))) => {
                // With few entries in scope among many others, each item is a piece of work.
                if position.position.saturating_sub(before) > LONG_WALK {
                    shared.yield_to_waiter();
                }
                Ok(Some((update, cursor)))
            }
            ControlFlow::Break(Err(error)) => Err(error),
            ControlFlow::Break(Ok(Pulled::Wait(_))) => Ok(None),
            ControlFlow::Break(Ok(Pulled::More)) | ControlFlow::Continue(_) => {
                shared.yield_to_waiter();
                Ok(None)
            }
        }
    }

    async fn next(&mut self) -> KvResult<Option<Self::Item>> {
        let Self { shared, position } = self;
        loop {
            // The future is created before the pull, so that a write in between notifies it.
            let change = shared.changed.notified();
            let mut done = None;
            let pull = |contents: &mut Contents| position.pull(shared, contents, &mut done);
            match shared.with(Call::new(OPERATION), pull).await? {
                Pulled::Item(update, cursor) => return Ok(Some((update, cursor))),
                Pulled::More => shared.yield_now().await,
                Pulled::Wait(None) => change.await,
                Pulled::Wait(Some(due)) => {
                    // After either event, the next pull finds the reason.
                    let _ = timeout_at(due, change).await;
                }
            }
        }
    }
}

/// Position of a watch.
struct WatchPosition {
    selector: Selector,
    /// Highest sequence number up to which everything in scope was delivered, or was superseded
    /// before its delivery.
    position: u64,
    /// Sequence number up to which the watch delivers the initial state: only the newest entry of
    /// each key. Beyond this number, the watch delivers all stored entries. 0 for a watch that
    /// resumes at a cursor, which has no initial state.
    state: u64,
    /// Sequence number up to which the keys of the initial state have been read in advance.
    looked_ahead: u64,
    /// Condition for the caught-up marker. `None` after its delivery.
    target: Option<Target>,
}

/// Entries that have to be delivered before the watch has caught up.
struct Target {
    /// Sequence number of the last entry of the store when the watch began.
    sequence: u64,
    /// Time of that entry.
    written: SystemTime,
    /// The keys that were written again before the watch reached them. `None` until the watch has
    /// reached `sequence`. The marker waits for their newest entries. The initial state would
    /// otherwise lack keys that were live all the time. The set contains only keys, at most as many
    /// as the store.
    pending: Option<PendingKeys>,
}

impl Target {
    /// Returns whether the watch has reached `sequence`, but does not know all pending keys yet.
    fn is_searching(&self) -> bool {
        matches!(self.pending, Some(PendingKeys::UpTo(..)))
    }

    fn has_no_pending_keys(&self) -> bool {
        matches!(&self.pending, Some(PendingKeys::All(pending)) if pending.is_empty())
    }
}

/// The result of a pull from the log.
enum Pulled {
    Item(KvUpdate, WatchCursor),
    /// The pull has visited the maximum number of entries, and found none to deliver.
    More,
    /// The log has no entry to deliver until the next notification, or until this time.
    Wait(Option<Instant>),
}

impl WatchPosition {
    async fn new(
        shared: &StoreState,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> KvResult<Self> {
        let selector = Selector::new(&scope);
        let begin = shared.with(Call::new(OPERATION).by(deadline), |contents| {
            let log = &contents.log;
            let target = Target { sequence: log.sequence(), written: log.written(), pending: None };
            let Some(cursor) = from else {
                return Ok(Self {
                    selector,
                    position: 0,
                    state: target.sequence,
                    looked_ahead: 0,
                    target: Some(target),
                });
            };
            if cursor.incarnation() != &shared.incarnation {
                let reason =
                    "the cursor belongs to another store, or to one that was deleted and recreated";
                return Err(expired(shared, reason));
            }
            let position = cursor.position();
            log.resume(position).map_err(|reason| expired(shared, reason))?;
            Ok(Self { selector, position, state: 0, looked_ahead: 0, target: Some(target) })
        });
        begin.await
    }

    /// Pulls the next update from the log. Moves a target that was reached to `done`, to be dropped
    /// without the lock, because it may have many keys.
    fn pull(
        &mut self,
        shared: &StoreState,
        contents: &Contents,
        done: &mut Option<Target>,
    ) -> KvResult<Pulled> {
        let log = &contents.log;
        // A reader that has missed a forgotten deletion would show the deleted value forever. A
        // reader that has received no entry misses none.
        if self.position > 0 {
            log.remembers(self.position).map_err(|reason| expired(shared, reason))?;
        }
        let selector = &self.selector;
        if let Some(target) = self.target.as_mut().filter(|target| target.is_searching()) {
            // The position stays the same during the search.
            if let Some(PendingKeys::UpTo(after, pending)) = mem::take(&mut target.pending) {
                let start = target.sequence;
                let pending =
                    log.superseded_more(start, self.position, selector, after.as_ref(), pending);
                target.pending = Some(pending);
            }
            return Ok(Pulled::More);
        }
        let is_catching_up = self.target.is_some() && selector.only_key().is_none();
        if is_catching_up && self.position >= self.looked_ahead {
            self.looked_ahead = log.look_ahead(self.position, selector);
        }
        let next = log.next_after(self.position, self.state, selector);
        let reached = match &next {
            Next::Entry(sequence, _) => sequence.saturating_sub(1),
            Next::More(sequence) => *sequence,
            Next::End => log.sequence(),
        };
        self.position = self.position.max(reached);
        let is_at_end = matches!(next, Next::End);
        if let Some(target) =
            self.target.as_mut().filter(|target| !is_at_end && target.sequence <= reached)
        {
            let (start, position) = (target.sequence, self.position);
            target.pending.get_or_insert_with(|| log.superseded(start, position, selector));
            if target.is_searching() {
                return Ok(Pulled::More);
            }
        }
        if let Some(target) =
            self.target.take_if(|target| is_at_end || target.has_no_pending_keys())
        {
            let cursor = WatchCursor::new(shared.incarnation, self.position, target.written);
            *done = Some(target);
            return Ok(Pulled::Item(KvUpdate::CaughtUp, cursor));
        }
        Ok(match next {
            Next::Entry(sequence, entry) => {
                self.position = sequence;
                if let Some(PendingKeys::All(pending)) =
                    self.target.as_mut().and_then(|target| target.pending.as_mut())
                {
                    pending.remove(&entry.key);
                }
                let cursor = WatchCursor::new(shared.incarnation, sequence, entry.created);
                Pulled::Item(KvUpdate::from(entry), cursor)
            }
            Next::More(_) => Pulled::More,
            Next::End => Pulled::Wait(log.next_due()),
        })
    }
}

fn expired(shared: &StoreState, reason: &'static str) -> KvError {
    KvError::CursorExpired { store: shared.name.clone(), reason }
}
