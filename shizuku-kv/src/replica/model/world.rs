//! A bucket and its replica under all possible events, each a limited number of times.

use stateright::{Model, Property};

use super::bucket::{ALL, Bucket, KEYS, Keys};
use super::decisions::Decisions;
use super::replica::{End, ModelCheckpoint, Replica};
use crate::replica::phase::Phase;

/// The other scope besides that of all keys: the first key.
const NARROW: Keys = Keys(0b01);

/// Maximum number of each kind of event outside the replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Puts, deletions and expiries.
    pub(super) writes: u8,
    /// A tombstone is forgotten.
    pub(super) forgets: u8,
    /// The newest entry of a key is removed without a message.
    pub(super) vanishes: u8,
    /// The bucket is deleted and recreated.
    pub(super) makes_again: u8,
    /// The process ends: uncommitted updates are lost, and the state of `apply` too.
    pub(super) crashes: u8,
    /// The run ends, and the state of `apply` stays: it was not committed, or is stored elsewhere.
    pub(super) stops: u8,
    /// A watch is lost, or cannot be opened, for a transient reason.
    pub(super) cuts: u8,
    /// The replica resyncs although it does not have to.
    pub(super) reconciles: u8,
    /// The replica is started with another scope than before.
    pub(super) scopes: u8,
}

/// The initial state of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// An empty bucket.
    Empty,
    /// Both keys have a value, which the replica has.
    Filled,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) beginning: Beginning,
    pub(super) budget: Budget,
    /// True if a watch may leave out the tombstones of the initial state.
    pub(super) skips: bool,
    pub(super) decisions: Decisions,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    bucket: Bucket,
    replica: Replica,
    scope: Keys,
    left: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    // Events outside the replica.
    Put(usize),
    Delete(usize),
    Forget(usize),
    Vanish(usize),
    MakeAgain,
    Crash,
    Stop,
    Cut,
    Reconcile,
    ChangeScope,
    // Steps of the replica.
    Start,
    Open,
    Receive,
    /// The watch leaves out a tombstone of the initial state.
    Skip,
    ReceiveMarker,
    Lose(End),
    /// The first half of a batch.
    Flush,
    /// The second half.
    FinishBatch,
    Complete,
    Compare,
    /// Only a broken driver does this on its own.
    DropOne,
    GoOn,
}

impl State {
    fn happens(&self, actions: &mut Vec<Action>) {
        let (left, bucket, replica) = (&self.left, &self.bucket, &self.replica);
        for key in 0..KEYS {
            let newest = bucket.newest(key);
            let lives = newest.is_some_and(|newest| newest.is_value);
            if left.writes > 0 {
                actions.push(Action::Put(key));
                actions.extend(lives.then_some(Action::Delete(key)));
            }
            if left.vanishes > 0 && newest.is_some() {
                actions.push(Action::Vanish(key));
            }
            if left.forgets > 0 && newest.is_some() && !lives {
                actions.push(Action::Forget(key));
            }
        }
        actions.extend((left.makes_again > 0).then_some(Action::MakeAgain));
        match &replica.run {
            None => actions.extend((left.scopes > 0).then_some(Action::ChangeScope)),
            Some(run) => {
                actions.extend((left.crashes > 0).then_some(Action::Crash));
                actions.extend((left.stops > 0).then_some(Action::Stop));
                if run.ended.is_none() && !run.completing {
                    actions.extend((left.cuts > 0).then_some(Action::Cut));
                    actions.extend(
                        (left.reconciles > 0 && run.watch.is_some()).then_some(Action::Reconcile),
                    );
                }
            }
        }
    }

    fn does(&self, world: &World, actions: &mut Vec<Action>) {
        let Some(run) = &self.replica.run else { return actions.push(Action::Start) };
        let bucket = &self.bucket;
        let is_idle = run.applying.is_none();
        actions.extend((!is_idle).then_some(Action::FinishBatch));
        if !world.decisions.driver.drops_first
            && is_idle
            && !run.completing
            && run.vanished.is_some_and(|keys| keys.0 > 0)
        {
            actions.push(Action::DropOne);
        }
        if run.completing {
            // The watch is not read until the marker is applied.
            let completes = is_idle && world.decisions.driver.applies_marker;
            return actions.extend(completes.then_some(Action::Complete));
        }
        if is_idle && !run.collected.is_empty() {
            actions.push(Action::Flush);
        }
        if run.ended.is_some() {
            return actions.extend(is_idle.then_some(Action::GoOn));
        }
        let Some(watch) = &run.watch else { return actions.push(Action::Open) };
        if watch.is_orphaned(bucket) {
            actions.push(Action::Lose(End::NotFound));
            actions.push(Action::Lose(if watch.is_fresh() {
                End::Unavailable
            } else {
                End::Expired
            }));
            return;
        }
        if watch.is_behind(bucket) {
            return actions.push(Action::Lose(End::Expired));
        }
        if let Some(next) = watch.next(bucket) {
            actions.push(Action::Receive);
            actions.extend((world.skips && watch.may_skip(next)).then_some(Action::Skip));
        }
        actions.extend(watch.may_catch_up(bucket).then_some(Action::ReceiveMarker));
        let is_at_end = watch.has_caught_up() && watch.next(bucket).is_none();
        let is_due = is_idle && run.collected.is_empty() && !run.compared;
        actions.extend((is_at_end && is_due).then_some(Action::Compare));
    }

    /// Returns true if everything has been done, and the replica only waits.
    fn is_at_rest(&self) -> bool {
        let Some(run) = &self.replica.run else { return false };
        let waits = run.watch.as_ref().is_some_and(|watch| {
            let goes_on = !watch.is_orphaned(&self.bucket) && !watch.is_behind(&self.bucket);
            goes_on && watch.has_caught_up() && watch.next(&self.bucket).is_none()
        });
        waits
            && run.compared
            && run.collected.is_empty()
            && run.applying.is_none()
            && !run.completing
    }

    /// Returns true if the checkpoint covers only values that the storage holds and `apply` has in
    /// its state. A checkpoint of another bucket covers nothing. Keys that were written after the
    /// checkpoint do not matter, because their updates are still to come.
    fn checkpoint_covers(&self) -> bool {
        let Some(checkpoint) = self.replica.storage.checkpoint else { return true };
        let (cursor, scope) = (checkpoint.at, checkpoint.scope);
        if cursor.incarnation != self.bucket.incarnation() {
            return true;
        }
        let Replica { storage, state, run, .. } = &self.replica;
        // After a resync for another scope has begun, the applied state is ahead of the checkpoint
        // by one batch.
        let is_ahead = run.as_ref().is_some_and(|run| run.scope != scope && run.applying.is_some());
        let has =
            |key: usize, value| storage.held[key] == value && (is_ahead || state[key] == value);
        (0..KEYS).all(|key| match scope.has(key) {
            true if self.bucket.last_write(key) > cursor.position => true,
            // The next comparison finds a value that vanished without a message.
            true if self.bucket.has_vanished(key) => true,
            true => has(key, self.bucket.value_at(key, cursor.position)),
            false => has(key, None),
        })
    }

    fn is_right_at_rest(&self) -> bool {
        let Replica { storage, state, .. } = &self.replica;
        let values = self.bucket.values(self.scope);
        let has_checkpoint = storage.checkpoint.is_some_and(|checkpoint| {
            checkpoint.at.incarnation == self.bucket.incarnation() && checkpoint.scope == self.scope
        });
        storage.held == values && *state == values && has_checkpoint
    }

    fn is_resyncing(&self) -> bool {
        self.replica.run.as_ref().is_some_and(|run| run.phase == Phase::Resyncing)
    }
}

// Guarantees that always hold.
pub(super) const COVERS: &str = "a checkpoint covers only applied and committed updates";
pub(super) const IN_ORDER: &str = "versions never go back, and no value is applied twice";
pub(super) const DELETION_FIRST: &str = "the deletion of a vanished key precedes its later value";
pub(super) const RIGHT: &str =
    "at rest, storage and state equal the bucket, and a checkpoint exists";
pub(super) const COMES_TO_REST: &str = "a replica without work is at rest";
pub(super) const GIVES_UP: &str = "a rejected cursor is not used again";

// Situations that have to be reached, because otherwise the guarantees say little.
pub(super) const VANISHED: &str = "a resync finds a vanished key";
pub(super) const VANISHED_AND_BACK: &str = "a resync finds a vanished key that has a later value";
pub(super) const CRASH_IN_RESYNC: &str = "a crash interrupts a resync";
pub(super) const EXPIRY_IN_FILLING: &str = "a value expires while the state is filled";
pub(super) const SAME_VERSION: &str =
    "a value of another bucket comes with the version that is held";
pub(super) const KNOWN: &str = "a resync comes upon what is held";
pub(super) const OUT_OF_SCOPE: &str = "something is held that is not in scope any more";
pub(super) const AT_REST: &str = "the replica comes to rest with everything used up";

pub(super) const PROMISES: [&str; 6] =
    [COVERS, IN_ORDER, DELETION_FIRST, RIGHT, COMES_TO_REST, GIVES_UP];
pub(super) const TO_REACH: [&str; 8] = [
    VANISHED,
    VANISHED_AND_BACK,
    CRASH_IN_RESYNC,
    EXPIRY_IN_FILLING,
    SAME_VERSION,
    KNOWN,
    OUT_OF_SCOPE,
    AT_REST,
];

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut bucket = Bucket::new(1);
        let replica = match self.beginning {
            Beginning::Empty => Replica::new([None; KEYS], None),
            Beginning::Filled => {
                (0..KEYS).for_each(|key| bucket.write(key, true));
                let values = bucket.values(ALL);
                let checkpoint = |at| ModelCheckpoint { at, scope: ALL, tombstones: Some(0) };
                Replica::new(values, values[KEYS - 1].map(checkpoint))
            }
        };
        vec![State { bucket, replica, scope: ALL, left: self.budget }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.does(self, actions);
        state.happens(actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let State { bucket, replica, scope, left } = &mut next;
        let decisions = &self.decisions;
        match action {
            Action::Put(key) | Action::Delete(key) => {
                left.writes -= 1;
                bucket.write(key, action == Action::Put(key));
            }
            Action::Forget(key) => {
                left.forgets -= 1;
                bucket.forget(key);
            }
            Action::Vanish(key) => {
                left.vanishes -= 1;
                bucket.vanish(key);
                if let Some(run) = &mut replica.run {
                    run.compared = false;
                }
            }
            Action::MakeAgain => {
                left.makes_again -= 1;
                bucket.make_again();
            }
            Action::Crash => {
                left.crashes -= 1;
                replica.crash();
            }
            Action::Stop => {
                left.stops -= 1;
                replica.stop();
            }
            Action::Cut => {
                left.cuts -= 1;
                replica.lose_watch(End::Unavailable);
            }
            Action::Reconcile => {
                left.reconciles -= 1;
                replica.lose_watch(End::Reconcile);
            }
            Action::ChangeScope => {
                left.scopes -= 1;
                *scope = if *scope == ALL { NARROW } else { ALL };
            }
            Action::Start => replica.start(*scope, decisions),
            Action::Open => replica.open(bucket),
            Action::Receive => replica.receive(bucket, decisions),
            Action::Skip => {
                let watch = replica.run.as_mut()?.watch.as_mut()?;
                let write = watch.next(bucket)?;
                watch.skip(write);
            }
            Action::ReceiveMarker => replica.receive_marker(bucket),
            Action::Lose(end) => replica.lose_watch(end),
            Action::Flush => replica.flush(decisions),
            Action::FinishBatch => replica.finish_batch(decisions),
            Action::Complete => replica.complete(decisions),
            Action::Compare => replica.compare(bucket, decisions),
            Action::DropOne => replica.drop_one(decisions),
            Action::GoOn => replica.go_on(decisions),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(COVERS, |_, state: &State| state.checkpoint_covers()),
            Property::always(IN_ORDER, |_, state: &State| !state.replica.faults.went_back),
            Property::always(DELETION_FIRST, |_, state: &State| {
                !state.replica.faults.deletion_too_late
            }),
            Property::always(RIGHT, |_, state: &State| {
                !state.is_at_rest() || state.is_right_at_rest()
            }),
            Property::always(COMES_TO_REST, |world: &Self, state: &State| {
                let mut actions = Vec::new();
                state.does(world, &mut actions);
                !actions.is_empty() || state.is_at_rest()
            }),
            Property::always(GIVES_UP, |_, state: &State| !state.replica.faults.insisted),
            Property::sometimes(VANISHED, |_, state: &State| {
                state
                    .replica
                    .run
                    .as_ref()
                    .is_some_and(|run| run.vanished.is_some_and(|keys| keys.0 > 0))
            }),
            Property::sometimes(VANISHED_AND_BACK, |_, state: &State| {
                let lives = |key| state.bucket.value_at(key, state.bucket.last()).is_some();
                state.is_resyncing() && state.replica.pending.iter().any(lives)
            }),
            Property::sometimes(CRASH_IN_RESYNC, |_, state: &State| {
                let Replica { storage, run, .. } = &state.replica;
                run.is_none()
                    && storage.checkpoint.is_none()
                    && storage.held.iter().any(Option::is_some)
            }),
            Property::sometimes(EXPIRY_IN_FILLING, |_, state: &State| {
                let Some(run) = &state.replica.run else { return false };
                run.phase == Phase::Filling && run.collected.iter().any(|write| !write.is_value)
            }),
            Property::sometimes(SAME_VERSION, |_, state: &State| {
                let Some(run) = &state.replica.run else { return false };
                run.collected.iter().any(|write| {
                    state.replica.storage.held[write.key].is_some_and(|held| {
                        held.position == write.at.position
                            && held.incarnation != write.at.incarnation
                    })
                })
            }),
            Property::sometimes(KNOWN, |_, state: &State| {
                let Some(run) = &state.replica.run else { return false };
                state.is_resyncing()
                    && run
                        .collected
                        .iter()
                        .any(|write| state.replica.storage.held[write.key] == Some(write.at))
            }),
            Property::sometimes(OUT_OF_SCOPE, |_, state: &State| {
                let held = &state.replica.storage.held;
                (0..KEYS).any(|key| held[key].is_some() && !state.scope.has(key))
            }),
            Property::sometimes(AT_REST, |_, state: &State| {
                state.left == Budget::default() && state.is_at_rest()
            }),
        ]
    }
}
