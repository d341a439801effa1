//! A replica step by step, as the driver ([`crate::replica::run`]) runs it, with every instant at
//! which it can be interrupted.

use super::bucket::{ALL, At, Bucket, KEYS, Keys, Values, Watch, Write, key, number_of};
use super::decisions::Decisions;
use crate::replica::phase::{Next, Phase};
use crate::replica::storage::ScopeId;
use crate::replica::{Checkpoint, MemoryStorage, ReplicaStorage};
use crate::store::{KvEntry, KvError, KvOperation, KvUpdate};

fn scope_id(scope: Keys) -> ScopeId {
    [scope.0; 8]
}

/// The state that outlives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Storage {
    pub(super) held: Values,
    pub(super) checkpoint: Option<ModelCheckpoint>,
}

/// A checkpoint, with the number of tombstones if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelCheckpoint {
    pub(super) at: At,
    pub(super) scope: Keys,
    pub(super) tombstones: Option<u64>,
}

impl ModelCheckpoint {
    fn to_real(self) -> Checkpoint {
        Checkpoint::of(self.at.cursor(), scope_id(self.scope), self.tombstones)
    }
}

impl Storage {
    fn checkpoint(&self) -> Option<Checkpoint> {
        self.checkpoint.map(ModelCheckpoint::to_real)
    }

    fn holds(&self) -> bool {
        self.held.iter().any(Option::is_some)
    }

    /// Commits as production's storage in memory does.
    fn commit(&mut self, changes: &[Change], checkpoint: Option<Checkpoint>) {
        let put = |key: usize, at: At| Change::Entry(Write { key, at, is_value: true }).update();
        let before = (0..KEYS).filter_map(|key| Some(put(key, self.held[key]?)));
        let mut storage = MemoryStorage::new();
        storage.commit(&before.collect::<Vec<_>>(), self.checkpoint().as_ref()).unwrap();
        let updates = changes.iter().map(|change| change.update()).collect::<Vec<_>>();
        storage.commit(&updates, checkpoint.as_ref()).unwrap();
        self.held = Values::default();
        storage
            .for_each_key(&mut |key, held| self.held[number_of(key)] = Some(At::of_held(held)))
            .unwrap();
        let checkpoint = storage.checkpoint().unwrap();
        self.checkpoint = checkpoint.map(|checkpoint| ModelCheckpoint {
            at: At::of_cursor(checkpoint.cursor()),
            scope: Keys(checkpoint.scope()[0]),
            tombstones: checkpoint.tombstones(),
        });
    }
}

/// One update of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Change {
    Entry(Write),
    /// A resync has found that the key is gone, and its held entry with it.
    Vanished(usize, At),
    CaughtUp,
}

impl Change {
    fn update(self) -> KvUpdate {
        match self {
            Self::Entry(write) => KvUpdate::from(write.entry()),
            Self::Vanished(number, at) => {
                let held = at.held();
                KvUpdate::from(KvEntry::tombstone(
                    key(number),
                    KvOperation::Vanished,
                    held.version,
                    held.created,
                ))
            }
            Self::CaughtUp => KvUpdate::CaughtUp,
        }
    }
}

/// The reason for the end of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    Expired,
    NotFound,
    Unavailable,
    /// The replica compares itself with the whole bucket, although it does not have to.
    Reconcile,
}

impl End {
    fn next(self, decisions: &Decisions) -> Next {
        let (store, reason) = (String::new(), String::new());
        let error = match self {
            Self::Expired => KvError::CursorExpired { store, reason: "" },
            Self::NotFound => KvError::StoreNotFound { store },
            Self::Unavailable => KvError::Unavailable { operation: "watch", reason, source: None },
            Self::Reconcile => return Next::Resync,
        };
        (decisions.after)(&error)
    }
}

/// Faults in the order of the updates that `apply` received. The other properties are about states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// An older version came after a newer one, or a value for the second time.
    pub(super) went_back: bool,
    /// A key's later value came before `apply` received the deletion of the vanished key.
    pub(super) deletion_too_late: bool,
    /// A rejected cursor was used again.
    pub(super) insisted: bool,
}

/// A batch after its first half: it is applied, and not committed yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    changes: Vec<Change>,
    checkpoint: Option<ModelCheckpoint>,
    is_complete: bool,
}

/// A running replica. The process loses all of this when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) phase: Phase,
    pub(super) scope: Keys,
    /// Cursor of the next watch.
    from: Option<At>,
    /// Cursor of the last commit.
    kept: Option<At>,
    pub(super) watch: Option<Watch>,
    pub(super) ended: Option<End>,
    pub(super) collected: Vec<Write>,
    /// Cursor of the last update.
    cursor: Option<At>,
    /// The seen keys.
    seen: Keys,
    pub(super) applying: Option<Batch>,
    /// True if the marker has come and has not been applied.
    pub(super) completing: bool,
    /// Vanished keys that have not been dropped, after they were looked up.
    pub(super) vanished: Option<Keys>,
    /// True if the cursor was rejected when it was last used.
    rejected: bool,
    /// The known tombstones: their number without keys, and those known by key.
    unnamed: Option<u64>,
    named: Keys,
    /// True if it was compared with the store after a value vanished.
    pub(super) compared: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) storage: Storage,
    /// The state that `apply` has built from the updates.
    pub(super) state: Values,
    /// The last version of each key that `apply` received, and the same at the last commit. Later
    /// updates may come again.
    told: Values,
    told_and_kept: Values,
    /// The vanished keys whose deletion `apply` has to receive.
    pub(super) pending: Keys,
    pub(super) faults: Faults,
    pub(super) run: Option<Run>,
}

impl Replica {
    /// Returns a stopped replica that holds these values, up to this checkpoint.
    pub(super) fn new(held: Values, checkpoint: Option<ModelCheckpoint>) -> Self {
        let storage = Storage { held, checkpoint };
        let (told, told_and_kept, state) = (held, held, held);
        let (pending, faults) = (Keys::default(), Faults::default());
        Self { storage, state, told, told_and_kept, pending, faults, run: None }
    }

    pub(super) fn start(&mut self, scope: Keys, decisions: &Decisions) {
        let (phase, from) =
            (decisions.begin)(self.storage.checkpoint(), scope_id(scope), self.storage.holds());
        let from = from.map(At::of_cursor);
        self.run = Some(Run {
            phase,
            scope,
            from,
            kept: from,
            watch: None,
            ended: None,
            collected: Vec::new(),
            cursor: None,
            seen: Keys::default(),
            applying: None,
            completing: false,
            vanished: None,
            rejected: false,
            unnamed: self.storage.checkpoint().and_then(|checkpoint| checkpoint.tombstones()),
            named: Keys::default(),
            compared: !decisions.driver.compares_at_start,
        });
    }

    /// Ends the run at any point.
    pub(super) fn stop(&mut self) {
        self.run = None;
        self.pending = Keys::default();
        self.told = self.told_and_kept;
    }

    /// Ends the process. `apply` rebuilds its state from the committed one.
    pub(super) fn crash(&mut self) {
        self.stop();
        self.state = self.storage.held;
    }

    pub(super) fn open(&mut self, bucket: &Bucket) {
        let Some(run) = &mut self.run else { return };
        run.watch = Watch::open(bucket, run.scope, run.from);
        if run.from.is_none() {
            (run.unnamed, run.named, run.compared) = (Some(0), Keys::default(), true);
        }
        run.cursor = run.from;
        if run.watch.is_none() {
            run.ended = Some(End::Expired);
            self.faults.insisted |= run.rejected;
        }
        run.rejected = run.watch.is_none();
    }

    /// Receives the next update from the watch.
    pub(super) fn receive(&mut self, bucket: &Bucket, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let Some(watch) = &mut run.watch else { return };
        let Some(write) = watch.next(bucket) else { return };
        run.cursor = Some(watch.deliver(write));
        let is_known = || {
            let held = self.storage.held[write.key].map(At::held);
            (decisions.compares)(run.phase) && !(decisions.is_news)(run.phase, &write.entry(), held)
        };
        if decisions.driver.counts_what_is_known || !is_known() {
            run.seen.insert(write.key);
        }
        run.collected.push(write);
    }

    /// Receives the caught-up marker.
    pub(super) fn receive_marker(&mut self, bucket: &Bucket) {
        let Some(run) = &mut self.run else { return };
        let Some(watch) = &mut run.watch else { return };
        run.cursor = Some(watch.catch_up(bucket));
        run.completing = true;
        run.vanished = None;
        if watch.is_from_state() {
            let came = watch.came();
            let gone = ALL.iter().filter(|&key| self.storage.held[key].is_some() && !came.has(key));
            gone.for_each(|key| self.pending.insert(key));
        }
    }

    /// Ends the watch, or fails to open it.
    pub(super) fn lose_watch(&mut self, end: End) {
        let Some(run) = &mut self.run else { return };
        run.watch = None;
        run.ended = Some(end);
        run.rejected &= end != End::Unavailable;
    }

    /// Does the first half of a batch of the collected updates.
    pub(super) fn flush(&mut self, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let changes = std::mem::take(&mut run.collected).into_iter().map(Change::Entry);
        self.hand_over(changes.collect(), false, decisions);
    }

    /// Does the next step after the marker.
    pub(super) fn complete(&mut self, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let mut last = Vec::new();
        if (decisions.drops_the_rest)(run.phase) {
            if !run.collected.is_empty() {
                return self.flush(decisions);
            }
            let held = ALL.iter().filter(|&key| self.storage.held[key].is_some());
            let gone = held.filter(|&key| (decisions.has_vanished)(run.seen.has(key)));
            let vanished = run.vanished.get_or_insert_with(|| {
                let mut keys = Keys::default();
                gone.for_each(|key| keys.insert(key));
                keys
            });
            if *vanished != Keys::default() && decisions.driver.drops_first {
                return self.drop_one(decisions);
            }
        } else {
            last.extend(std::mem::take(&mut run.collected).into_iter().map(Change::Entry));
        }
        last.push(Change::CaughtUp);
        self.hand_over(last, true, decisions);
    }

    /// Does the first half of dropping one of the vanished keys.
    pub(super) fn drop_one(&mut self, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let Some(vanished) = &mut run.vanished else { return };
        let Some(key) = vanished.iter().next() else { return };
        vanished.remove(key);
        let Some(at) = self.storage.held[key] else { return };
        self.hand_over(vec![Change::Vanished(key, at)], false, decisions);
    }

    fn hand_over(&mut self, mut changes: Vec<Change>, is_complete: bool, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        for change in &changes {
            match *change {
                Change::Entry(Write { key, is_value: false, .. }) => run.named.insert(key),
                Change::Entry(Write { key, .. }) | Change::Vanished(key, _) => {
                    run.named.remove(key)
                }
                Change::CaughtUp => {}
            }
        }
        let known = run.unnamed.map(|unnamed| unnamed + run.named.iter().count() as u64);
        let tombstones = if decisions.driver.keeps_tombstones { known } else { Some(0) };
        let kept = run.cursor.filter(|_| (decisions.keeps_cursor)(run.phase, is_complete));
        if (decisions.compares)(run.phase) {
            let held = self.storage.held;
            changes.retain(|change| match change {
                Change::Entry(write) => {
                    (decisions.is_news)(run.phase, &write.entry(), held[write.key].map(At::held))
                }
                Change::Vanished(..) | Change::CaughtUp => true,
            });
        }
        if changes.is_empty() && kept.is_none() {
            run.kept = None;
            return;
        }
        let batch = Batch {
            changes,
            checkpoint: kept.map(|at| ModelCheckpoint { at, scope: run.scope, tombstones }),
            is_complete,
        };
        if decisions.driver.applies_first {
            self.apply(&batch);
        } else {
            self.keep(&batch);
        }
        if let Some(run) = &mut self.run {
            run.applying = Some(batch);
        }
    }

    /// Does the second half of a batch.
    pub(super) fn finish_batch(&mut self, decisions: &Decisions) {
        let Some(batch) = self.run.as_mut().and_then(|run| run.applying.take()) else { return };
        if decisions.driver.applies_first {
            self.keep(&batch);
        } else {
            self.apply(&batch);
        }
        self.told_and_kept = self.told;
        let Some(run) = &mut self.run else { return };
        run.kept = batch.checkpoint.map(|checkpoint| checkpoint.at);
        if batch.is_complete {
            run.phase = (decisions.completed)(run.phase);
            run.completing = false;
            if decisions.driver.drops_first {
                run.vanished = None;
            }
        }
    }

    fn keep(&mut self, batch: &Batch) {
        let checkpoint = batch.checkpoint.map(ModelCheckpoint::to_real);
        self.storage.commit(&batch.changes, checkpoint);
    }

    fn apply(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match *change {
                Change::Entry(Write { key, at, is_value }) => {
                    let told = self.told[key];
                    self.faults.went_back |= told > Some(at) || is_value && told == Some(at);
                    self.faults.deletion_too_late |= is_value && self.pending.has(key);
                    self.told[key] = Some(at);
                    self.state[key] = is_value.then_some(at);
                    self.pending.remove(key);
                }
                Change::Vanished(key, _) => {
                    // A key that is dropped because it is out of scope can come again in another
                    // scope.
                    self.told[key] = None;
                    self.state[key] = None;
                    self.pending.remove(key);
                }
                Change::CaughtUp => {}
            }
        }
    }

    /// Compares the replica with the store, which has no more updates to deliver.
    pub(super) fn compare(&mut self, bucket: &Bucket, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let held = self.storage.held.iter().flatten().count() as u64;
        let tombstones = run.unnamed.map(|unnamed| unnamed + run.named.iter().count() as u64);
        let keys = bucket.keys(run.scope);
        run.compared = true;
        if (decisions.agrees)(held, tombstones, keys) {
            return;
        }
        // Lists the keys.
        let values = bucket.values(run.scope);
        if (0..KEYS).any(|key| values[key].is_some() != self.storage.held[key].is_some()) {
            return self.lose_watch(End::Reconcile);
        }
        (run.unnamed, run.named) = (keys.checked_sub(held), Keys::default());
    }

    /// Continues after the end of a watch. Collected updates that were not applied are lost.
    pub(super) fn go_on(&mut self, decisions: &Decisions) {
        let holds = self.storage.holds();
        self.pending = Keys::default();
        let Some(run) = &mut self.run else { return };
        let Some(end) = run.ended.take() else { return };
        let next = end.next(decisions);
        if next == Next::End {
            return self.stop();
        }
        let kept = run.kept.map(At::cursor);
        let (phase, from) = (decisions.go_on)(next, run.phase, kept, holds);
        (run.phase, run.from) = (phase, from.map(At::of_cursor));
        run.vanished = None;
        if decisions.driver.forgets_what_came {
            run.seen = Keys::default();
        }
        if decisions.driver.ends_batch_with_watch {
            run.collected.clear();
        }
    }
}
