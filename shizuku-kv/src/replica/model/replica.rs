//! A replica step by step, as the driver ([`crate::replica::run`]) takes them, with every instant in between at which it can
//! be interrupted.

use super::bucket::{ALL, At, Bucket, KEYS, Keys, Values, Watch, Write, key, number_of};
use super::decisions::Decisions;
use crate::replica::course::{Next, Phase};
use crate::replica::storage::ScopeId;
use crate::replica::{MemoryStorage, ReplicaPlace, ReplicaStorage};
use crate::store::{KvEntry, KvError, KvOperation, KvUpdate};

fn scope_id(scope: Keys) -> ScopeId {
    [scope.0; 8]
}

/// What outlives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Storage {
    pub(super) held: Values,
    pub(super) place: Option<Place>,
}

/// A place, with the number of tombstones if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) at: At,
    pub(super) scope: Keys,
    pub(super) tombstones: Option<u64>,
}

impl Place {
    fn to_real(self) -> ReplicaPlace {
        ReplicaPlace::of(self.at.cursor(), scope_id(self.scope), self.tombstones)
    }
}

impl Storage {
    fn place(&self) -> Option<ReplicaPlace> {
        self.place.map(Place::to_real)
    }

    fn holds(&self) -> bool {
        self.held.iter().any(Option::is_some)
    }

    /// Commits as production's storage in memory does.
    fn commit(&mut self, changes: &[Change], place: Option<ReplicaPlace>) {
        let put = |key: usize, at: At| Change::Entry(Write { key, at, is_value: true }).update();
        let before = (0..KEYS).filter_map(|key| Some(put(key, self.held[key]?)));
        let mut storage = MemoryStorage::new();
        storage.commit(&before.collect::<Vec<_>>(), self.place().as_ref()).unwrap();
        let updates = changes.iter().map(|change| change.update()).collect::<Vec<_>>();
        storage.commit(&updates, place.as_ref()).unwrap();
        self.held = Values::default();
        storage
            .for_each_key(&mut |key, held| self.held[number_of(key)] = Some(At::of_held(held)))
            .unwrap();
        let place = storage.place().unwrap();
        self.place = place.map(|place| Place {
            at: At::of_cursor(place.cursor()),
            scope: Keys(place.scope()[0]),
            tombstones: place.tombstones(),
        });
    }
}

/// One update of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Change {
    Entry(Write),
    /// The key is gone, as the repair has found, and with it what was held of it.
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

/// Why a watch is followed no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    Expired,
    NotFound,
    Unavailable,
    /// The replica compares itself with the whole bucket, without a need.
    Reconcile,
}

impl End {
    fn next(self, decisions: &Decisions) -> Next {
        let (store, reason) = (String::new(), String::new());
        let error = match self {
            Self::Expired => KvError::CursorExpired { store, reason: "" },
            Self::NotFound => KvError::StoreNotFound { store },
            Self::Unavailable => KvError::Unavailable { operation: "watch", reason, source: None },
            Self::Reconcile => return Next::Afresh,
        };
        (decisions.after)(&error)
    }
}

/// What went wrong with the order of what `apply` was told; the other properties are about states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// An older version came after a newer one, or a value for the second time.
    pub(super) went_back: bool,
    /// A key's later value came before it was told that the key had vanished.
    pub(super) deletion_too_late: bool,
    /// A cursor was used again that had been refused.
    pub(super) insisted: bool,
}

/// A batch of which the first half has been done: it is applied, and not kept yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    changes: Vec<Change>,
    place: Option<Place>,
    is_complete: bool,
}

/// A replica that runs: all of this is lost with the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) phase: Phase,
    pub(super) scope: Keys,
    /// With which cursor it watches next.
    from: Option<At>,
    /// The cursor of the last commit.
    kept: Option<At>,
    pub(super) watch: Option<Watch>,
    pub(super) ended: Option<End>,
    pub(super) collected: Vec<Write>,
    /// The cursor of what came last.
    cursor: Option<At>,
    /// Which keys have come.
    seen: Keys,
    pub(super) applying: Option<Batch>,
    /// The marker has come and is still to be applied.
    pub(super) completing: bool,
    /// What is still to be dropped, once that was looked for.
    pub(super) vanished: Option<Keys>,
    /// The cursor was refused when it was used last.
    refused: bool,
    /// The known tombstones: their number without keys, and those known by key.
    unnamed: Option<u64>,
    named: Keys,
    /// It was compared with the store after a value vanished.
    pub(super) compared: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) storage: Storage,
    /// What `apply` has made of what it was told.
    pub(super) state: Values,
    /// The last version of each key that `apply` was told of, and that as it was when a batch was last kept: what came
    /// since may come again.
    told: Values,
    told_and_kept: Values,
    /// The keys of which `apply` has to learn that they vanished.
    pub(super) owed: Keys,
    pub(super) faults: Faults,
    pub(super) run: Option<Run>,
}

impl Replica {
    /// One that holds this, up to this place, and does not run.
    pub(super) fn new(held: Values, place: Option<Place>) -> Self {
        let storage = Storage { held, place };
        let (told, told_and_kept, state) = (held, held, held);
        let (owed, faults) = (Keys::default(), Faults::default());
        Self { storage, state, told, told_and_kept, owed, faults, run: None }
    }

    pub(super) fn start(&mut self, scope: Keys, decisions: &Decisions) {
        let (phase, from) =
            (decisions.begin)(self.storage.place(), scope_id(scope), self.storage.holds());
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
            refused: false,
            unnamed: self.storage.place().and_then(|place| place.tombstones()),
            named: Keys::default(),
            compared: !decisions.driver.compares_at_start,
        });
    }

    /// The run ends, at whatever it was.
    pub(super) fn stop(&mut self) {
        self.run = None;
        self.owed = Keys::default();
        self.told = self.told_and_kept;
    }

    /// The process ends, and `apply` makes its state anew from what was kept.
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
            self.faults.insisted |= run.refused;
        }
        run.refused = run.watch.is_none();
    }

    /// Takes what comes next from the watch.
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

    /// Takes the caught-up marker.
    pub(super) fn receive_marker(&mut self, bucket: &Bucket) {
        let Some(run) = &mut self.run else { return };
        let Some(watch) = &mut run.watch else { return };
        run.cursor = Some(watch.catch_up(bucket));
        run.completing = true;
        run.vanished = None;
        if watch.is_from_state() {
            let came = watch.came();
            let gone = ALL.iter().filter(|&key| self.storage.held[key].is_some() && !came.has(key));
            gone.for_each(|key| self.owed.insert(key));
        }
    }

    /// The watch has ended, or could not be opened.
    pub(super) fn lose_watch(&mut self, end: End) {
        let Some(run) = &mut self.run else { return };
        run.watch = None;
        run.ended = Some(end);
        run.refused &= end != End::Unavailable;
    }

    /// Does the first half of a batch of what was collected.
    pub(super) fn flush(&mut self, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let changes = std::mem::take(&mut run.collected).into_iter().map(Change::Entry);
        self.hand_over(changes.collect(), false, decisions);
    }

    /// Does the next thing after the marker.
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

    /// Does the first half of dropping one of the keys that have vanished.
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
            place: kept.map(|at| Place { at, scope: run.scope, tombstones }),
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
        run.kept = batch.place.map(|place| place.at);
        if batch.is_complete {
            run.phase = (decisions.completed)(run.phase);
            run.completing = false;
            if decisions.driver.drops_first {
                run.vanished = None;
            }
        }
    }

    fn keep(&mut self, batch: &Batch) {
        let place = batch.place.map(Place::to_real);
        self.storage.commit(&batch.changes, place);
    }

    fn apply(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match *change {
                Change::Entry(Write { key, at, is_value }) => {
                    let told = self.told[key];
                    self.faults.went_back |= told > Some(at) || is_value && told == Some(at);
                    self.faults.deletion_too_late |= is_value && self.owed.has(key);
                    self.told[key] = Some(at);
                    self.state[key] = is_value.then_some(at);
                    self.owed.remove(key);
                }
                Change::Vanished(key, _) => {
                    // What is dropped because it is out of scope can come again in another.
                    self.told[key] = None;
                    self.state[key] = None;
                    self.owed.remove(key);
                }
                Change::CaughtUp => {}
            }
        }
    }

    /// Compares itself with the store, which has no more updates to deliver.
    pub(super) fn compare(&mut self, bucket: &Bucket, decisions: &Decisions) {
        let Some(run) = &mut self.run else { return };
        let held = self.storage.held.iter().flatten().count() as u64;
        let tombstones = run.unnamed.map(|unnamed| unnamed + run.named.iter().count() as u64);
        let keys = bucket.keys(run.scope);
        run.compared = true;
        if (decisions.agrees)(held, tombstones, keys) {
            return;
        }
        // The keys are listed.
        let values = bucket.values(run.scope);
        if (0..KEYS).any(|key| values[key].is_some() != self.storage.held[key].is_some()) {
            return self.lose_watch(End::Reconcile);
        }
        (run.unnamed, run.named) = (keys.checked_sub(held), Keys::default());
    }

    /// Goes on after the end of a watch. What was collected and not applied is gone.
    pub(super) fn go_on(&mut self, decisions: &Decisions) {
        let holds = self.storage.holds();
        self.owed = Keys::default();
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
