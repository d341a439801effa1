//! Watches: a place in the log that moves on as it is polled.
//!
//! There is no queue between the writers and a watch. The reader pulls from the log, so that a slow
//! one skips what was superseded and costs nothing meanwhile; it waits only for the bell, and for
//! the next end of life, which nobody else may be there to notice.

use std::mem;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream;
use tokio::time::Instant;

use super::log::{Next, Owed};
use super::selector::Selector;
use super::shared::{Call, StoreState};
use super::yield_once;
use crate::store::timer::timeout_at;
use crate::store::{Deadline, KvError, KvResult, KvUpdate, Watch, WatchCursor, WatchScope};

/// Opens a watch.
///
/// # Errors
/// [`KvError::CursorExpired`] where the cursor cannot be honoured; [`KvError::StoreNotFound`],
/// [`KvError::Closed`].
pub(super) async fn watch(
    shared: Arc<StoreState>,
    scope: WatchScope,
    from: Option<WatchCursor>,
    deadline: Deadline,
) -> KvResult<Watch> {
    let place = WatchPosition::new(&shared, scope, from, deadline).await?;
    Ok(Watch::new(stream::try_unfold((shared, place), |(shared, mut place)| async move {
        let item = place.next(&shared).await?;
        Ok(Some((item, (shared, place))))
    })))
}

/// Position of a watch.
struct WatchPosition {
    selector: Selector,
    /// Everything in scope up to this sequence number was delivered, or superseded before it could
    /// be.
    position: u64,
    /// Up to this sequence number the watch delivers state, only what is the newest of its key;
    /// beyond it, everything that is held. From a cursor on there is no state.
    state: u64,
    /// What the caught-up marker waits for; none once it was delivered.
    target: Option<Target>,
}

/// What has to be delivered before the watch has caught up.
struct Target {
    /// The last entry of the store at the moment when the watch began.
    sequence: u64,
    written: SystemTime,
    /// Asked for once the watch has come to that entry: the keys that were written again before the
    /// watch came to them. Without waiting for what they have now, the state would lack keys that
    /// were there all the time. Only keys are held, and no more than the store has.
    owed: Option<Owed>,
}

impl Target {
    /// Whether the watch, which has come to the entry, still has to find out which keys are owed.
    fn is_asking(&self) -> bool {
        matches!(self.owed, Some(Owed::UpTo(..)))
    }

    fn owes_nothing(&self) -> bool {
        matches!(&self.owed, Some(Owed::Known(owed)) if owed.is_empty())
    }
}

/// What a look at the log gave.
enum Pulled {
    Item(KvUpdate, WatchCursor),
    /// There is more to look at.
    More,
    /// Nothing, until the bell rings or this moment comes.
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
                let reason = "the cursor belongs to another store, or to one that was deleted and made again";
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
            // Listening begins before looking: what is written in between rings this bell.
            let bell = shared.bell.notified();
            match self.pull(shared).await? {
                Pulled::Item(update, cursor) => return Ok((update, cursor)),
                Pulled::More => yield_once().await,
                Pulled::Wait(None) => bell.await,
                Pulled::Wait(Some(due)) => {
                    // Both ways it is time to look again.
                    let _ = timeout_at(due, bell).await;
                }
            }
        }
    }

    async fn pull(&mut self, shared: &StoreState) -> KvResult<Pulled> {
        let mut reached_target = None;
        let look = shared.with(Call::new("watch"), |contents| {
            let log = &contents.log;
            // A reader that was away for so long that a deletion was forgotten would show the value
            // for ever. One that has seen nothing yet misses nothing.
            if self.position > 0 {
                log.remembers(self.position).map_err(|reason| expired(shared, reason))?;
            }
            let selector = &self.selector;
            if let Some(target) = self.target.as_mut().filter(|target| target.is_asking()) {
                // The watch stands still meanwhile.
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
                if target.is_asking() {
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
        let pulled = look.await;
        // Not under the lock: it may have many keys.
        drop(reached_target);
        pulled
    }
}

fn expired(shared: &StoreState, reason: &'static str) -> KvError {
    KvError::CursorExpired { store: shared.name.clone(), reason }
}
