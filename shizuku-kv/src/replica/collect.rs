//! Collects what a watch brings, up to a batch.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFuture;

use super::{BatchConfig, ReplicaProgress};
use crate::store::{Doubt, KeySet, KvError, KvUpdate, Recent, Watch, WatchCursor, WatchLink};

/// So many updates are collected in one go, before others on the thread have their turn.
const GO: usize = 1024;

/// Timeout for reaching a position while no update comes: the change there may have left the store
/// before its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens while a watch is followed.
#[derive(Debug)]
pub(super) enum Event {
    /// What has been collected is to be applied.
    Due,
    /// The state is complete.
    CaughtUp,
    /// The watch has.
    Ended(KvError),
    /// It is time to compare with the store.
    Compare,
    /// Everything up to the target position has been collected, and no update behind it.
    Reached,
    /// The replica was.
    Stopped,
}

/// What has come and is to be applied together.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) updates: Vec<KvUpdate>,
    /// When the first of them came.
    pub(super) since: SystemTime,
}

pub(super) struct Collector<'a> {
    pub(super) watch: Watch,
    /// Everything up to here has been collected.
    pub(super) cursor: Option<WatchCursor>,
    /// An update from behind the target position.
    pub(super) held_back: Option<(KvUpdate, Option<WatchCursor>)>,
    pub(super) links: Option<watch::Receiver<WatchLink>>,
    pub(super) limits: BatchConfig,
    pub(super) updates: Vec<KvUpdate>,
    pub(super) bytes: usize,
    pub(super) since: SystemTime,
    /// Ends with the window of what has been collected.
    pub(super) window: Pin<Box<Sleep>>,
    /// The window has ended.
    pub(super) is_due: bool,
    /// Which keys have come, while that matters.
    pub(super) seen: Option<KeySet>,
    pub(super) compare: Option<Pin<Box<Sleep>>>,
    /// The target position, and the timeout between two updates while it is awaited.
    pub(super) target: Option<(u64, Pin<Box<Sleep>>)>,
    /// The newest collected updates.
    pub(super) recent: Recent,
    /// The position of the watch when it lost touch with the store.
    pub(super) doubt: Option<Doubt>,
    pub(super) stopped: Pin<Box<WaitForCancellationFuture<'a>>>,
    pub(super) progress: watch::Sender<ReplicaProgress>,
}

impl Collector<'_> {
    /// What happens next. A batch is due only where `idle` says that none is being applied.
    /// Dropping the future is safe: what has been collected stays.
    pub(super) async fn next(&mut self, idle: bool) -> Event {
        // A receiver of its own: the one that is kept has seen what was told.
        while let Some(mut links) = self.links.clone() {
            let changed = match select(
                pin!(poll_fn(|cx| self.poll(idle, cx))),
                pin!(links.changed()),
            )
            .await
            {
                Either::Left((event, _)) => return event,
                Either::Right((changed, _)) => changed,
            };
            self.links = changed.is_ok().then_some(links);
            self.lose_touch();
            self.tell_link();
        }
        poll_fn(|cx| self.poll(idle, cx)).await
    }

    /// What has been collected so far.
    pub(super) fn take(&mut self) -> Collected {
        self.recent.extend(&self.updates);
        let room = self.updates.len().min(self.limits.max_updates);
        let updates = std::mem::replace(&mut self.updates, Vec::with_capacity(room));
        (self.bytes, self.is_due) = (0, false);
        Collected { updates, since: self.since }
    }

    /// Notes the position, because the next server may have an older copy of the store.
    pub(super) fn lose_touch(&mut self) {
        if self.doubt.is_none()
            && let Some(cursor) = self.cursor
        {
            let mut recent = self.recent.clone();
            recent.extend(&self.updates);
            self.doubt = Some(Doubt { cursor, recent });
        }
    }

    /// Waits for a position. Returns whether it has been reached.
    pub(super) fn wait_for(&mut self, position: u64) -> bool {
        let reached = self.cursor.is_some_and(|cursor| cursor.position() >= position);
        self.target = (!reached).then(|| (position, Box::pin(sleep(PATIENCE))));
        reached
    }

    /// Tells whether the store is heard from.
    pub(super) fn tell_link(&self) {
        let link = self.watch.link();
        self.progress.send_if_modified(|progress| {
            let is_new = progress.link != link;
            progress.link = link;
            is_new
        });
    }

    fn is_full(&self) -> bool {
        self.updates.len() >= self.limits.max_updates || self.bytes >= self.limits.max_bytes
    }

    fn poll(&mut self, idle: bool, cx: &mut Context<'_>) -> Poll<Event> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Event::Stopped);
        }
        if let Some(compare) = &mut self.compare
            && compare.as_mut().poll(cx).is_ready()
        {
            self.compare = None;
            return Poll::Ready(Event::Compare);
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
                None => match self.watch.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(update))) => (update, self.watch.cursor()),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Ended(error)),
                    Poll::Ready(None) => {
                        return Poll::Ready(Event::Ended(KvError::Closed { operation: "watch" }));
                    }
                    Poll::Pending => break,
                },
            };
            // A watch may have lost touch and resumed delivery in one poll: the loss came before
            // this update.
            if let Some(links) = &mut self.links
                && links.has_changed().unwrap_or(false)
            {
                links.mark_unchanged();
                self.lose_touch();
                self.tell_link();
            }
            if let Some((target, patience)) = &mut self.target {
                if cursor.is_some_and(|cursor| cursor.position() > *target) {
                    self.held_back = Some((update, cursor));
                    self.target = None;
                    return Poll::Ready(Event::Reached);
                }
                patience.as_mut().reset(Instant::now() + PATIENCE);
            }
            self.cursor = cursor;
            match update {
                KvUpdate::CaughtUp => return Poll::Ready(Event::CaughtUp),
                update => self.push(update),
            }
        }
        if let Some((target, patience)) = &mut self.target
            && (self.cursor.is_some_and(|cursor| cursor.position() >= *target)
                || patience.as_mut().poll(cx).is_ready())
        {
            self.target = None;
            return Poll::Ready(Event::Reached);
        }
        if self.updates.is_empty() {
            return Poll::Pending;
        }
        self.is_due |= self.limits.window.is_zero() || self.window.as_mut().poll(cx).is_ready();
        if idle && (self.is_due || self.is_full()) {
            Poll::Ready(Event::Due)
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

/// What an update counts for in a batch.
pub(super) fn size(update: &KvUpdate) -> usize {
    update.entry().map_or(0, |entry| entry.key.len() + entry.value.len())
}
