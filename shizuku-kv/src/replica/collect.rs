//! Collects the updates of a watch into batches.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFuture;

use super::{BatchConfig, ReplicaProgress};
use crate::store::{KeySet, KvError, KvUpdate, WatchCursor};
use crate::watch::{Event, Follower, Recent, UnverifiedPosition};

/// Maximum number of updates that are collected before other tasks of the thread have their turn.
const GO: usize = 1024;

/// Timeout for reaching a position while no update comes: the change there may have left the store
/// before its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// The next action of the driver.
#[derive(Debug)]
pub(super) enum Action {
    /// Apply the collected updates.
    Apply,
    /// Complete the initial state, because its caught-up marker has arrived.
    Complete,
    /// Continue with another watch, because this one was lost.
    Reopen(KvError),
    /// Compare the replica with the store.
    Compare,
    /// Continue the comparison: all updates up to the target position have been collected, and none
    /// after it.
    Judge,
    /// End the run.
    Stop,
}

/// Updates that are applied together.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) updates: Vec<KvUpdate>,
    /// Arrival time of the first of them.
    pub(super) since: SystemTime,
}

pub(super) struct Collector<'a> {
    pub(super) follower: &'a mut Follower,
    /// Whether the open watch has delivered an update.
    pub(super) is_heard: bool,
    /// The position up to which all updates have been collected.
    pub(super) cursor: Option<WatchCursor>,
    /// An update after the target position.
    pub(super) held_back: Option<(KvUpdate, Option<WatchCursor>)>,
    pub(super) limits: BatchConfig,
    pub(super) updates: Vec<KvUpdate>,
    pub(super) bytes: usize,
    pub(super) since: SystemTime,
    /// A timer for the end of the window of the collected updates.
    pub(super) window: Pin<Box<Sleep>>,
    /// Whether the window has ended.
    pub(super) is_due: bool,
    /// During a resync, the keys that have been delivered.
    pub(super) seen: Option<KeySet>,
    pub(super) compare: Option<Pin<Box<Sleep>>>,
    /// The target position, and the timeout between two updates while it is awaited.
    pub(super) target: Option<(u64, Pin<Box<Sleep>>)>,
    /// The newest collected updates.
    pub(super) recent: Recent,
    /// The position of the watch when its connection was lost.
    pub(super) unverified: Option<UnverifiedPosition>,
    pub(super) stopped: Pin<Box<WaitForCancellationFuture<'a>>>,
    pub(super) progress: watch::Sender<ReplicaProgress>,
}

impl Collector<'_> {
    /// Returns the next action. `Apply` is returned only if `idle` is true, so that no batch is
    /// being applied.
    ///
    /// Cancel safe: the collected updates stay.
    pub(super) async fn next(&mut self, idle: bool) -> Action {
        poll_fn(|cx| self.poll(idle, cx)).await
    }

    /// Removes and returns the collected updates.
    pub(super) fn take(&mut self) -> Collected {
        self.recent.extend(&self.updates);
        let room = self.updates.len().min(self.limits.max_updates);
        let updates = std::mem::replace(&mut self.updates, Vec::with_capacity(room));
        (self.bytes, self.is_due) = (0, false);
        Collected { updates, since: self.since }
    }

    /// Records the position as unverified, because the next server may have an older copy of the
    /// store.
    pub(super) fn mark_unverified(&mut self) {
        if self.unverified.is_none()
            && let Some(cursor) = self.cursor
        {
            let mut recent = self.recent.clone();
            recent.extend(&self.updates);
            self.unverified = Some(UnverifiedPosition { cursor, recent });
        }
    }

    /// Waits for a position. Returns whether it has been reached.
    pub(super) fn wait_for(&mut self, position: u64) -> bool {
        let reached = self.cursor.is_some_and(|cursor| cursor.position() >= position);
        self.target = (!reached).then(|| (position, Box::pin(sleep(PATIENCE))));
        reached
    }

    fn publish_link(&self) {
        self.progress.send_if_modified(|progress| self.follower.update_link(&mut progress.link));
    }

    fn is_full(&self) -> bool {
        self.updates.len() >= self.limits.max_updates || self.bytes >= self.limits.max_bytes
    }

    fn poll(&mut self, idle: bool, cx: &mut Context<'_>) -> Poll<Action> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Action::Stop);
        }
        if let Some(compare) = &mut self.compare
            && compare.as_mut().poll(cx).is_ready()
        {
            self.compare = None;
            return Poll::Ready(Action::Compare);
        }
        let mut collected = 0;
        while !self.is_full() {
            if collected == GO {
                cx.waker().wake_by_ref();
                break;
            }
            collected += 1;
            let (update, cursor) = match self.held_back.take() {
                Some(held_back) => held_back,
                None => {
                    let Poll::Ready(event) = self.follower.poll_next(cx) else { break };
                    let update = match event {
                        Event::Update(update) => update,
                        Event::CaughtUp { .. } => KvUpdate::CaughtUp,
                        Event::LinkChanged => {
                            self.mark_unverified();
                            self.publish_link();
                            continue;
                        }
                        Event::Opened => continue,
                        Event::Lost(error) | Event::Closed(error) => {
                            // The batch before may take long to apply.
                            self.publish_link();
                            return Poll::Ready(Action::Reopen(error));
                        }
                    };
                    if !self.is_heard {
                        self.is_heard = true;
                        self.publish_link();
                    }
                    (update, self.follower.cursor())
                }
            };
            if let Some((target, patience)) = &mut self.target {
                if cursor.is_some_and(|cursor| cursor.position() > *target) {
                    self.held_back = Some((update, cursor));
                    self.target = None;
                    return Poll::Ready(Action::Judge);
                }
                patience.as_mut().reset(Instant::now() + PATIENCE);
            }
            self.cursor = cursor;
            match update {
                KvUpdate::CaughtUp => return Poll::Ready(Action::Complete),
                update => self.push(update),
            }
        }
        if let Some((target, patience)) = &mut self.target
            && (self.cursor.is_some_and(|cursor| cursor.position() >= *target)
                || patience.as_mut().poll(cx).is_ready())
        {
            self.target = None;
            return Poll::Ready(Action::Judge);
        }
        if self.updates.is_empty() {
            return Poll::Pending;
        }
        self.is_due |= self.limits.window.is_zero() || self.window.as_mut().poll(cx).is_ready();
        if idle && (self.is_due || self.is_full()) {
            Poll::Ready(Action::Apply)
        } else {
            Poll::Pending
        }
    }

    fn push(&mut self, update: KvUpdate) {
        if self.updates.is_empty() {
            self.since = SystemTime::now();
            self.window.as_mut().reset(Instant::now() + self.limits.window);
        }
        self.bytes = self.bytes.saturating_add(size(&update));
        if let (Some(seen), Some(entry)) = (&mut self.seen, update.entry()) {
            seen.insert(&entry.key);
        }
        self.updates.push(update);
    }
}

/// Returns the size of an update, for the limits of a batch.
pub(super) fn size(update: &KvUpdate) -> usize {
    update.entry().map_or(0, |entry| entry.key.len() + entry.value.len())
}
