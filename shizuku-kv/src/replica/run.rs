//! The driver of a replica: watches, collects, and has each batch applied and kept while it
//! collects the next one (ADR 0036).

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
use super::stage::{Done, Tools, Work, blocking, stage};
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
    let tools = Tools {
        retry: replica.retry,
        stop: replica.stop.clone(),
        progress: replica.progress.clone(),
        uncommitted: replica.uncommitted.clone(),
    };
    tools.uncommitted.begin();
    let _running = Running::begin(replica.progress.clone());
    let mut driver = Run {
        store: &replica.store,
        scope: &replica.scope,
        scope_id: scope_id(&replica.scope),
        storage: &replica.storage,
        limits: replica.batch,
        comparison: Comparison::new(replica.compare_every),
        is_unproven: false,
        tools,
        phase: Phase::Filling,
        kept: None,
        got_somewhere: false,
        compare_at: None,
    };
    let result = driver.run(apply).await;
    if let Err(error) = &result {
        let error = Arc::new(error.clone());
        // With the end, so that it is not taken for one after which something is tried again.
        replica.progress.send_modify(|progress| {
            progress.last_error = Some(error);
            progress.end();
        });
    }
    result.map(|()| driver.kept)
}

/// Says that a replica runs, until it is dropped.
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
    /// The changes while the replica was away are not known yet.
    is_unproven: bool,
    pub(super) tools: Tools,
    phase: Phase,
    /// The cursor of the last commit.
    kept: Option<WatchCursor>,
    /// Whether something was kept since the pauses between watches were reset.
    got_somewhere: bool,
    /// When it is time to compare with the store.
    compare_at: Option<Instant>,
}

/// Why a watch is followed no longer.
enum Left {
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
            .ask("looking up its place", |storage| {
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
        self.tools.progress.send_modify(|progress| progress.applied = applied);
        let mut follower = Follower::own(self.store, self.scope.clone(), from);
        loop {
            if self.phase == Phase::Repairing {
                self.without_checkpoint();
            }
            if self.phase != Phase::Following {
                self.comparison.afresh();
                // Reading the whole state proves that no update was missed.
                self.is_unproven = false;
            }
            let left = match self.until_stopped(opened(&mut follower)).await {
                None => return Ok(()),
                Some(Err(error)) => Left::Ended(error),
                Some(Ok(())) => {
                    if self.phase == Phase::Repairing {
                        self.repairing();
                    }
                    let left;
                    (apply, left) = self.follow(&mut follower, apply).await?;
                    left
                }
            };
            let next = match left {
                Left::Stopped => return Ok(()),
                Left::Differs => Next::Afresh,
                Left::Ended(error) => {
                    let next = phase::after(&error);
                    if next == Next::End {
                        return Err(ReplicaError::Store(error));
                    }
                    let progress = &self.tools.progress;
                    progress.send_if_modified(|progress| follower.update_link(&mut progress.link));
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

    /// Whether `apply` may have what the storage has not.
    fn is_unsure(&self) -> bool {
        !self.tools.uncommitted.left().is_empty()
    }

    /// Asks the storage, however often that has to be tried; none when the replica is stopped.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        doing: &'static str,
        question: impl Fn(&S) -> Result<R, StorageError> + Clone + Send + 'static,
    ) -> Result<Option<R>, ReplicaError> {
        let mut tries = self.tools.retry.tries();
        loop {
            let question = question.clone();
            match blocking(self.storage, move |storage| question(storage)).await {
                Ok(answer) => {
                    if tries.made > 0 {
                        self.tools.worked();
                    }
                    return Ok(Some(answer));
                }
                Err(error) => {
                    if !self.tools.again(doing, error, &mut tries).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// A repair is due: until it is through there is no place that says how far the replica is.
    fn without_checkpoint(&mut self) {
        self.kept = None;
        self.tools.progress.send_if_modified(|progress| {
            let was_told = !progress.caught_up && progress.applied.is_none();
            (progress.caught_up, progress.applied) = (false, None);
            !was_told
        });
    }

    /// The watch of a repair is open.
    fn repairing(&self) {
        tracing::info!(store = self.store.name(), "a replica takes the state anew");
        self.tools.progress.send_modify(|progress| progress.repairs += 1);
    }

    /// Ends when the next comparison is due.
    fn compare_timer(&self) -> Option<Pin<Box<Sleep>>> {
        self.compare_at.map(|at| Box::pin(sleep_until(at)))
    }

    /// Records a comparison, and when the next one is due.
    fn compared(&mut self, compared: Compared, collector: &mut Collector<'_>) {
        if compared == Compared::Waits {
            return;
        }
        self.compare_at = self.next_look(compared);
        collector.compare = self.compare_timer();
        if compared != Compared::Failed {
            self.comparison.failures = 0;
        }
        if compared == Compared::Same {
            let is_first = std::mem::take(&mut self.is_unproven);
            self.tools.progress.send_if_modified(|progress| {
                progress.caught_up |= is_first;
                progress.comparison_error.take().is_some() || is_first
            });
        }
    }

    /// Applies what a watch brings, until it ends or is not wanted any more. What had come by then
    /// has been applied.
    async fn follow<A, F, E>(
        &mut self,
        follower: &mut Follower,
        mut apply: A,
    ) -> Result<(A, Left), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let stop = self.tools.stop.clone();
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
            // Not while the state is taken: one that takes longer than the interval would never be
            // complete.
            compare: self.compare_timer().filter(|_| self.phase == Phase::Following),
            target: None,
            recent: std::mem::take(&mut self.comparison.recent),
            doubt: None,
            stopped: Box::pin(stop.cancelled()),
            progress: self.tools.progress.clone(),
        };
        loop {
            if std::mem::take(&mut self.got_somewhere) {
                collector.follower.reset_pauses();
            }
            let mut action = collector.next(true).await;
            // While one batch is applied the next is collected.
            while let Action::Apply = action {
                let (collected, cursor) = (collector.take(), collector.cursor);
                let (work, kept) = self.work(collected, cursor, false);
                let running =
                    Box::pin(stage(apply, Arc::clone(self.storage), work, self.tools.clone()));
                let ((lent, result), next) =
                    match select(running, pin!(collector.next(false))).await {
                        Either::Left((done, _)) => (done, None),
                        // Whatever it is, it comes after what is being applied.
                        Either::Right((action, running)) => (running.await, Some(action)),
                    };
                apply = lent;
                if !self.staged(result?, kept) {
                    return Ok((apply, Left::Stopped));
                }
                action = match next {
                    Some(action) => action,
                    None => collector.next(true).await,
                };
            }
            let left = match action {
                Action::Complete => {
                    let goes_on;
                    (apply, goes_on) = self.complete(&mut collector, apply).await?;
                    if goes_on {
                        continue;
                    }
                    return Ok((apply, Left::Stopped));
                }
                Action::Apply | Action::Stop => Left::Stopped,
                Action::Reopen(error) => Left::Ended(error),
                action @ (Action::Compare | Action::Judge) => {
                    let goes_on;
                    (apply, goes_on) = self.flush(&mut collector, apply).await?;
                    if !goes_on {
                        return Ok((apply, Left::Stopped));
                    }
                    self.lost_touch(&mut collector);
                    let compared = match action {
                        Action::Compare => self.compare(&mut collector).await?,
                        _ => self.reached(&mut collector).await?,
                    };
                    match compared {
                        Compared::Stopped => Left::Stopped,
                        Compared::Differs => Left::Differs,
                        compared => {
                            self.compared(compared, &mut collector);
                            continue;
                        }
                    }
                }
            };
            let goes_on;
            (apply, goes_on) = self.flush(&mut collector, apply).await?;
            if matches!(left, Left::Ended(_)) {
                collector.lose_touch();
            }
            self.lost_touch(&mut collector);
            self.comparison.recent = collector.recent;
            return Ok((apply, if goes_on { left } else { Left::Stopped }));
        }
    }

    /// The state is complete: what is not in it is dropped where that has to be looked for, and
    /// then the marker is applied. Whether to go on.
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
            let uncommitted = self.tools.uncommitted.left();
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
                // As many as make a batch full.
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
                (apply, goes_on) = self.apply(some, cursor, false, apply).await?;
                if !goes_on {
                    return Ok((apply, false));
                }
            }
        }
        let mut last = collector.take();
        last.updates.push(KvUpdate::CaughtUp);
        let goes_on;
        (apply, goes_on) = self.apply(last, cursor, true, apply).await?;
        if goes_on {
            // A replica that resumes after an outage is compared at its usual time. After reading
            // the state it is compared at once, because the store may count entries that no watch
            // delivers.
            if self.phase != Phase::Following || self.is_unproven {
                self.compare_at = Some(Instant::now());
                collector.compare = self.compare_timer();
            }
            self.phase = self.phase.completed();
            self.tools.uncommitted.settled();
            if !self.is_unproven {
                self.tools.progress.send_modify(|progress| progress.caught_up = true);
            }
        }
        Ok((apply, goes_on))
    }

    /// Applies what has been collected. Whether to go on.
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
        self.apply(collected, collector.cursor, false, apply).await
    }

    /// Applies and keeps. Whether to go on.
    async fn apply<A, F, E>(
        &mut self,
        collected: Collected,
        cursor: Option<WatchCursor>,
        is_complete: bool,
        apply: A,
    ) -> Result<(A, bool), ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let (work, kept) = self.work(collected, cursor, is_complete);
        let (apply, result) =
            stage(apply, Arc::clone(self.storage), work, self.tools.clone()).await;
        Ok((apply, self.staged(result?, kept)))
    }

    /// What is to be done with a batch that was collected up to a cursor, and the cursor that is
    /// kept then.
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

    /// Records a doubt whether the store is the same; an earlier one stays.
    fn lost_touch(&mut self, collector: &mut Collector<'_>) {
        let doubt = collector.doubt.take();
        if self.comparison.doubt.is_none() {
            self.comparison.doubt = doubt;
        }
    }

    /// Takes note of what became of a batch. Whether to go on.
    fn staged(&mut self, done: Done, kept: Option<WatchCursor>) -> bool {
        match done {
            Done::Kept => {
                self.got_somewhere |= kept.is_some();
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
