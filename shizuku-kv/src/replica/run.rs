//! The driver of a replica: watches, collects, and applies and commits each batch while it collects
//! the next one (ADR 0036).

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::{Either, select};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, Sleep, sleep_until};

use super::collect::{Action, Collected, Collector, size};
use super::comparison::{Compared, Comparison};
use super::phase::{self, Next, Phase};
use super::stage::{Done, StageContext, Work, blocking, stage};
use super::storage::{Checkpoint, ScopeId, scope_id};
use super::{
    Batch, BatchConfig, Replica, ReplicaError, ReplicaProgress, ReplicaStorage, StorageError,
};
use crate::store::{
    KeySet, KvEntry, KvError, KvOperation, KvUpdate, Store, WatchCursor, WatchLink, WatchScope,
};
use crate::watch::{Event, Follower};

pub(super) async fn run<S, A, F, E>(
    replica: &mut Replica<S>,
    apply: A,
) -> Result<Option<WatchCursor>, ReplicaError>
where
    S: ReplicaStorage,
    A: FnMut(Batch) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let context = StageContext {
        retry: replica.retry,
        stop: replica.stop.clone(),
        progress: replica.progress.clone(),
        uncommitted: replica.uncommitted.clone(),
    };
    context.uncommitted.begin();
    let _running = Running::begin(replica.progress.clone());
    let mut driver = Run {
        store: &replica.store,
        scope: &replica.scope,
        scope_id: scope_id(&replica.scope),
        storage: &replica.storage,
        limits: replica.batch,
        comparison: Comparison::new(replica.compare_every),
        is_unproven: false,
        context,
        phase: Phase::Filling,
        kept: None,
        compare_at: None,
    };
    let result = driver.run(apply).await;
    if let Err(error) = &result {
        let error = Arc::new(error.clone());
        // The error is set together with the end, so that it does not appear as an error that is
        // retried.
        replica.progress.send_modify(|progress| {
            progress.last_error = Some(error);
            progress.end();
        });
    }
    result.map(|()| driver.kept)
}

/// Reports a replica as running until this value is dropped.
struct Running(watch::Sender<ReplicaProgress>);

impl Running {
    fn begin(progress: watch::Sender<ReplicaProgress>) -> Self {
        let link = WatchLink::down(SystemTime::now(), "the store has not answered yet");
        progress.send_modify(|progress| {
            progress.running = true;
            progress.caught_up = false;
            progress.link = link;
            progress.last_error = None;
            progress.comparison_error = None;
        });
        Self(progress)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_if_modified(ReplicaProgress::end);
    }
}

pub(super) struct Run<'a, S> {
    pub(super) store: &'a Store,
    pub(super) scope: &'a WatchScope,
    scope_id: ScopeId,
    storage: &'a Arc<Mutex<S>>,
    limits: BatchConfig,
    pub(super) comparison: Comparison,
    /// Whether it is still unproven that the replica missed no change before this run.
    is_unproven: bool,
    pub(super) context: StageContext,
    phase: Phase,
    /// The cursor of the last commit.
    kept: Option<WatchCursor>,
    /// Time of the next comparison with the store.
    compare_at: Option<Instant>,
}

/// The reason why a watch is no longer followed.
enum FollowEnd {
    /// The replica was stopped.
    Stopped,
    /// The watch has ended.
    Ended(KvError),
    /// The replica has to resync.
    Differs,
}

impl<S: ReplicaStorage> Run<'_, S> {
    async fn run<A, F, E>(&mut self, mut apply: A) -> Result<(), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let Some((checkpoint, holds)) = self
            .ask("reading its checkpoint", |storage| {
                Ok((storage.checkpoint()?, !storage.is_empty()?))
            })
            .await?
        else {
            return Ok(());
        };
        let mut from;
        (self.phase, from) = phase::begin(checkpoint, self.scope_id, holds || self.is_unsure());
        self.kept = from;
        if let Some(cursor) = from {
            self.comparison
                .resume(cursor, checkpoint.and_then(|checkpoint| checkpoint.tombstones()));
            self.is_unproven = true;
        }
        let applied = self.kept;
        self.context.progress.send_modify(|progress| progress.applied = applied);
        let mut follower = Follower::own(self.store, self.scope.clone(), from);
        self.publish_link(&follower);
        loop {
            if self.phase == Phase::Resyncing {
                self.without_checkpoint();
            }
            if self.phase != Phase::Following {
                self.comparison.start_over();
                // Reading the whole state proves that no update was missed.
                self.is_unproven = false;
            }
            let end = match self.until_stopped(opened(&mut follower)).await {
                None => return Ok(()),
                Some(Err(error)) => FollowEnd::Ended(error),
                Some(Ok(())) => {
                    if self.phase == Phase::Resyncing {
                        self.report_resync();
                    }
                    let end;
                    (apply, end) = self.follow(&mut follower, apply).await?;
                    end
                }
            };
            let next = match end {
                FollowEnd::Stopped => return Ok(()),
                FollowEnd::Differs => Next::Resync,
                FollowEnd::Ended(error) => {
                    let next = phase::after(&error);
                    if next == Next::End {
                        return Err(ReplicaError::Store(error));
                    }
                    self.publish_link(&follower);
                    next
                }
            };
            let Some(holds) =
                self.ask("looking up stored entries", |storage| Ok(!storage.is_empty()?)).await?
            else {
                return Ok(());
            };
            (self.phase, from) =
                phase::go_on(next, self.phase, self.kept, holds || self.is_unsure());
            self.kept = from;
            follower.reopen_from(from);
        }
    }

    fn publish_link(&self, follower: &Follower) {
        let progress = &self.context.progress;
        progress.send_if_modified(|progress| follower.update_link(&mut progress.link));
    }

    /// Returns whether `apply` may have received updates that the storage does not have.
    fn is_unsure(&self) -> bool {
        !self.context.uncommitted.left().is_empty()
    }

    /// Calls the storage, and retries by the policy. Returns `None` if the replica was stopped.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        doing: &'static str,
        question: impl Fn(&S) -> Result<R, StorageError> + Clone + Send + 'static,
    ) -> Result<Option<R>, ReplicaError> {
        let mut tries = self.context.retry.tries();
        loop {
            let question = question.clone();
            match blocking(self.storage, move |storage| question(storage)).await {
                Ok(answer) => {
                    if tries.made > 0 {
                        self.context.worked();
                    }
                    return Ok(Some(answer));
                }
                Err(error) => {
                    if !self.context.again(doing, error, &mut tries).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Begins a resync. The replica has no checkpoint until the resync is complete.
    fn without_checkpoint(&mut self) {
        self.kept = None;
        self.context.progress.send_if_modified(|progress| {
            let is_known = !progress.caught_up && progress.applied.is_none();
            (progress.caught_up, progress.applied) = (false, None);
            !is_known
        });
    }

    /// Reports a resync whose watch is open.
    fn report_resync(&self) {
        tracing::info!(store = self.store.name(), "resyncing a replica");
        self.context.progress.send_modify(|progress| progress.resyncs += 1);
    }

    /// Returns a timer for the next comparison.
    fn compare_timer(&self) -> Option<Pin<Box<Sleep>>> {
        self.compare_at.map(|at| Box::pin(sleep_until(at)))
    }

    /// Records the result of a comparison, and schedules the next one.
    fn compared(&mut self, compared: Compared, collector: &mut Collector<'_>) {
        if compared == Compared::Waits {
            return;
        }
        self.compare_at = self.next_attempt(compared);
        collector.compare = self.compare_timer();
        if compared != Compared::Failed {
            self.comparison.failures = 0;
        }
        if compared == Compared::Same {
            let is_first = std::mem::take(&mut self.is_unproven);
            self.context.progress.send_if_modified(|progress| {
                progress.caught_up |= is_first;
                progress.comparison_error.take().is_some() || is_first
            });
        }
    }

    /// Applies the updates of a watch, until the watch ends, the replica differs from the store, or
    /// the replica is stopped. Updates that were collected before are applied first.
    async fn follow<A, F, E>(
        &mut self,
        follower: &mut Follower,
        mut apply: A,
    ) -> Result<(A, FollowEnd), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let stop = self.context.stop.clone();
        let mut collector = Collector {
            follower,
            is_heard: false,
            cursor: self.kept,
            held_back: None,
            limits: self.limits,
            updates: Vec::new(),
            bytes: 0,
            since: SystemTime::now(),
            window: Box::pin(sleep_until(Instant::now())),
            is_due: false,
            seen: self.phase.compares().then(KeySet::default),
            // No comparison is made during the initial state. Otherwise a state that takes longer
            // than the interval would never be complete.
            compare: self.compare_timer().filter(|_| self.phase == Phase::Following),
            target: None,
            recent: std::mem::take(&mut self.comparison.recent),
            unverified: None,
            stopped: Box::pin(stop.cancelled()),
            progress: self.context.progress.clone(),
        };
        loop {
            let mut action = collector.next(true).await;
            // While one batch is applied, the next one is collected.
            while let Action::Apply = action {
                let (collected, cursor) = (collector.take(), collector.cursor);
                let (work, kept) = self.work(collected, cursor, false);
                let running =
                    Box::pin(stage(apply, Arc::clone(self.storage), work, self.context.clone()));
                let ((lent, result), next) =
                    match select(running, pin!(collector.next(false))).await {
                        Either::Left((done, _)) => (done, None),
                        // Any action follows the batch that is being applied.
                        Either::Right((action, running)) => (running.await, Some(action)),
                    };
                apply = lent;
                if !self.staged(&mut collector, result?, kept) {
                    return Ok((apply, FollowEnd::Stopped));
                }
                action = match next {
                    Some(action) => action,
                    None => collector.next(true).await,
                };
            }
            let end = match action {
                Action::Complete => {
                    let goes_on;
                    (apply, goes_on) = self.complete(&mut collector, apply).await?;
                    if goes_on {
                        continue;
                    }
                    return Ok((apply, FollowEnd::Stopped));
                }
                Action::Apply | Action::Stop => FollowEnd::Stopped,
                Action::Reopen(error) => FollowEnd::Ended(error),
                action @ (Action::Compare | Action::Judge) => {
                    let goes_on;
                    (apply, goes_on) = self.flush(&mut collector, apply).await?;
                    if !goes_on {
                        return Ok((apply, FollowEnd::Stopped));
                    }
                    self.take_unverified(&mut collector);
                    let compared = match action {
                        Action::Compare => self.compare(&mut collector).await?,
                        _ => self.reached(&mut collector).await?,
                    };
                    match compared {
                        Compared::Stopped => FollowEnd::Stopped,
                        Compared::Differs => FollowEnd::Differs,
                        compared => {
                            self.compared(compared, &mut collector);
                            continue;
                        }
                    }
                }
            };
            let goes_on;
            (apply, goes_on) = self.flush(&mut collector, apply).await?;
            if matches!(end, FollowEnd::Ended(_)) {
                collector.mark_unverified();
            }
            self.take_unverified(&mut collector);
            self.comparison.recent = collector.recent;
            return Ok((apply, if goes_on { end } else { FollowEnd::Stopped }));
        }
    }

    /// Completes the initial state. A resync first applies deletions of the keys that were not
    /// delivered. Then the caught-up marker is applied. Returns whether to continue.
    async fn complete<A, F, E>(
        &mut self,
        collector: &mut Collector<'_>,
        mut apply: A,
    ) -> Result<(A, bool), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let cursor = collector.cursor;
        if let Some(seen) = collector.seen.take().filter(|_| self.phase.drops_the_rest()) {
            let goes_on;
            (apply, goes_on) = self.flush(collector, apply).await?;
            if !goes_on {
                return Ok((apply, false));
            }
            let seen = Arc::new(seen);
            let uncommitted = self.context.uncommitted.left();
            let vanished = self.ask("looking for what has vanished", move |storage| {
                let mut vanished = uncommitted.clone();
                vanished.retain(|key, _| phase::has_vanished(seen.contains(key)));
                storage.for_each_key(&mut |key, held| {
                    if phase::has_vanished(seen.contains(key)) {
                        vanished.insert(key.clone(), held.version);
                    }
                })?;
                Ok(vanished)
            });
            let Some(vanished) = vanished.await? else { return Ok((apply, false)) };
            let created = cursor.map_or(SystemTime::UNIX_EPOCH, |cursor| cursor.as_of());
            let mut vanished = vanished.into_iter().map(|(key, version)| {
                KvUpdate::Delete(KvEntry::tombstone(key, KvOperation::Vanished, version, created))
            });
            loop {
                // One full batch.
                let mut bytes: usize = 0;
                let mut updates = Vec::new();
                while updates.len() < self.limits.max_updates
                    && bytes < self.limits.max_bytes
                    && let Some(update) = vanished.next()
                {
                    bytes = bytes.saturating_add(size(&update));
                    updates.push(update);
                }
                if updates.is_empty() {
                    break;
                }
                let some = Collected { updates, since: SystemTime::now() };
                let goes_on;
                (apply, goes_on) = self.apply(collector, some, false, apply).await?;
                if !goes_on {
                    return Ok((apply, false));
                }
            }
        }
        let mut last = collector.take();
        last.updates.push(KvUpdate::CaughtUp);
        let goes_on;
        (apply, goes_on) = self.apply(collector, last, true, apply).await?;
        if goes_on {
            // A replica that resumes after an outage is compared at its usual time. After reading
            // the state it is compared at once, because the store may count entries that no watch
            // delivers.
            if self.phase != Phase::Following || self.is_unproven {
                self.compare_at = Some(Instant::now());
                collector.compare = self.compare_timer();
            }
            self.phase = self.phase.completed();
            self.context.uncommitted.settled();
            if !self.is_unproven {
                self.context.progress.send_modify(|progress| progress.caught_up = true);
            }
        }
        Ok((apply, goes_on))
    }

    /// Applies the collected updates. Returns whether to continue.
    async fn flush<A, F, E>(
        &mut self,
        collector: &mut Collector<'_>,
        apply: A,
    ) -> Result<(A, bool), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let collected = collector.take();
        if collected.updates.is_empty() {
            return Ok((apply, true));
        }
        self.apply(collector, collected, false, apply).await
    }

    /// Applies and commits a batch. Returns whether to continue.
    async fn apply<A, F, E>(
        &mut self,
        collector: &mut Collector<'_>,
        collected: Collected,
        is_complete: bool,
        apply: A,
    ) -> Result<(A, bool), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let (work, kept) = self.work(collected, collector.cursor, is_complete);
        let (apply, result) =
            stage(apply, Arc::clone(self.storage), work, self.context.clone()).await;
        Ok((apply, self.staged(collector, result?, kept)))
    }

    /// Returns the work on a batch that was collected up to a cursor, and the cursor that is
    /// committed with it.
    fn work(
        &mut self,
        collected: Collected,
        cursor: Option<WatchCursor>,
        is_complete: bool,
    ) -> (Work, Option<WatchCursor>) {
        let Collected { updates, since } = collected;
        self.comparison.tally.take(&updates);
        let tombstones = self.comparison.tally.tombstones();
        let kept = cursor.filter(|_| self.phase.keeps_cursor(is_complete));
        let checkpoint = kept.map(|cursor| Checkpoint::of(cursor, self.scope_id, tombstones));
        (Work { updates, checkpoint, phase: self.phase, since }, kept)
    }

    /// Records the unverified position of the watch, unless an earlier one is recorded.
    fn take_unverified(&mut self, collector: &mut Collector<'_>) {
        let unverified = collector.unverified.take();
        if self.comparison.unverified.is_none() {
            self.comparison.unverified = unverified;
        }
    }

    /// Records the outcome of a batch. Returns whether to continue.
    fn staged(
        &mut self,
        collector: &mut Collector<'_>,
        done: Done,
        kept: Option<WatchCursor>,
    ) -> bool {
        match done {
            Done::Kept => {
                if kept.is_some() {
                    collector.follower.reset_pauses();
                }
                self.kept = kept;
                true
            }
            Done::GivenUp => false,
        }
    }
}

/// Waits until a watch is open. Returns the error if it cannot be opened.
async fn opened(follower: &mut Follower) -> Result<(), KvError> {
    loop {
        match follower.next().await {
            Event::Opened => return Ok(()),
            Event::Lost(error) | Event::Closed(error) => return Err(error),
            Event::Update(_) | Event::CaughtUp { .. } | Event::LinkChanged => {}
        }
    }
}
