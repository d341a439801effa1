//! Watches: a position in the log that advances as the watch is polled.
//!
//! There is no queue between the writers and a watch. The reader pulls from the log. A slow reader
//! therefore skips superseded entries, and costs nothing meanwhile. It waits only for the bell, and
//! for the next expiry, because no other operation may notice that one.

use std::mem;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream;
use tokio::time::Instant;

use super::log::follow::{Next, Owed};
use super::selector::Selector;
use super::shared::{Call, StoreState};
use crate::store::timer::timeout_at;
use crate::store::{Deadline, KvError, KvResult, KvUpdate, Watch, WatchCursor, WatchScope};

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
    Ok(Watch::new(stream::try_unfold((shared, position), |(shared, mut position)| async move {
        let item = position.next(&shared).await?;
        Ok(Some((item, (shared, position))))
    })))
}

/// Position of a watch.
struct WatchPosition {
    selector: Selector,
    /// Highest sequence number up to which everything in scope was delivered, or was superseded
    /// before its delivery.
    position: u64,
    /// Sequence number up to which the watch delivers the initial state: only the newest entry of
    /// each key. Beyond it, the watch delivers all held entries. 0 for a watch that resumes at a
    /// cursor, which has no initial state.
    state: u64,
    /// Condition for the caught-up marker; `None` after its delivery.
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
    /// otherwise lack keys that were live all the time. The set holds only keys, at most as many as
    /// the store.
    owed: Option<Owed>,
}

impl Target {
    /// Returns whether the watch has reached `sequence`, but does not know all owed keys yet.
    fn is_searching(&self) -> bool {
        matches!(self.owed, Some(Owed::UpTo(..)))
    }

    fn owes_nothing(&self) -> bool {
        matches!(&self.owed, Some(Owed::Known(owed)) if owed.is_empty())
    }
}

/// The result of a pull from the log.
enum Pulled {
    Item(KvUpdate, WatchCursor),
    /// The pull has visited as many entries as one may, and found none to deliver.
    More,
    /// The log has no entry to deliver until the bell rings, or until this moment.
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
        let begin = shared.with(Call::new("watch").by(deadline), |contents| {
            let log = &contents.log;
            let target = Target { sequence: log.sequence(), written: log.written(), owed: None };
            let Some(cursor) = from else {
                let state = target.sequence;
                return Ok(Self { selector, position: 0, state, target: Some(target) });
            };
            if cursor.incarnation() != &shared.incarnation {
                let reason =
                    "the cursor belongs to another store, or to one that was deleted and recreated";
                return Err(expired(shared, reason));
            }
            let position = cursor.position();
            log.resume(position).map_err(|reason| expired(shared, reason))?;
            Ok(Self { selector, position, state: 0, target: Some(target) })
        });
        begin.await
    }

    async fn next(&mut self, shared: &StoreState) -> KvResult<(KvUpdate, WatchCursor)> {
        loop {
            // Created before the pull, so that a write in between rings this bell.
            let bell = shared.bell.notified();
            match self.pull(shared).await? {
                Pulled::Item(update, cursor) => return Ok((update, cursor)),
                Pulled::More => shared.give_way().await,
                Pulled::Wait(None) => bell.await,
                Pulled::Wait(Some(due)) => {
                    // After either of the two, the next pull finds the reason.
                    let _ = timeout_at(due, bell).await;
                }
            }
        }
    }

    async fn pull(&mut self, shared: &StoreState) -> KvResult<Pulled> {
        let mut reached_target = None;
        let pull = shared.with(Call::new("watch"), |contents| {
            let log = &contents.log;
            // A reader that has missed a forgotten deletion would show the deleted value forever. A
            // reader that has received nothing yet misses nothing.
            if self.position > 0 {
                log.remembers(self.position).map_err(|reason| expired(shared, reason))?;
            }
            let selector = &self.selector;
            if let Some(target) = self.target.as_mut().filter(|target| target.is_searching()) {
                // The position stays the same during the search.
                if let Some(Owed::UpTo(after, owed)) = mem::take(&mut target.owed) {
                    let start = target.sequence;
                    let owed =
                        log.superseded_more(start, self.position, selector, after.as_ref(), owed);
                    target.owed = Some(owed);
                }
                return Ok(Pulled::More);
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
                target.owed.get_or_insert_with(|| log.superseded(start, position, selector));
                if target.is_searching() {
                    return Ok(Pulled::More);
                }
            }
            if let Some(target) = self.target.take_if(|target| is_at_end || target.owes_nothing()) {
                let cursor = WatchCursor::new(shared.incarnation, self.position, target.written);
                reached_target = Some(target);
                return Ok(Pulled::Item(KvUpdate::CaughtUp, cursor));
            }
            Ok(match next {
                Next::Entry(sequence, entry) => {
                    self.position = sequence;
                    if let Some(Owed::Known(owed)) =
                        self.target.as_mut().and_then(|target| target.owed.as_mut())
                    {
                        owed.remove(&entry.key);
                    }
                    let cursor = WatchCursor::new(shared.incarnation, sequence, entry.created);
                    Pulled::Item(KvUpdate::from(entry), cursor)
                }
                Next::More(_) => Pulled::More,
                Next::End => Pulled::Wait(log.next_due()),
            })
        });
        let pulled = pull.await;
        // Dropped without the lock, because it may have many keys.
        drop(reached_target);
        pulled
    }
}

fn expired(shared: &StoreState, reason: &'static str) -> KvError {
    KvError::CursorExpired { store: shared.name.clone(), reason }
}
