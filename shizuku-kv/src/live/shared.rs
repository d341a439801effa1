//! Live values of the same record and type share one task.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::snapshot::LiveSnapshot;
use super::status::State;
use super::stream::TaskHandle;
use super::value::Live;
use crate::watch::Upkeep;

/// The parts of a live value, without keeping its task alive.
pub(super) struct SharedLive<V> {
    value: Weak<ArcSwap<LiveSnapshot<V>>>,
    states: watch::Receiver<State>,
    task: Weak<TaskHandle>,
}

impl<V> SharedLive<V> {
    pub(super) fn of(live: &Live<V>) -> Self {
        Self {
            value: Arc::downgrade(&live.value),
            states: live.states.clone(),
            task: Arc::downgrade(&live.task),
        }
    }

    /// Returns another handle of the live value, if its task runs and it holds the entry that was
    /// just read. Returns `None` if the task is behind or disconnected, so that the new handle
    /// begins with a value in which no acknowledged write is missing.
    pub(super) fn handle(&self, read: &LiveSnapshot<V>, upkeep: &Arc<Upkeep>) -> Option<Live<V>> {
        let (value, task) = (self.value.upgrade()?, self.task.upgrade()?);
        let (states, upkeep) = (self.states.clone(), Arc::clone(upkeep));
        let held = value.load();
        let is_same = (held.version, held.created) == (read.version, read.created);
        let seen = held.generation;
        drop(held);
        let live = Live { value, states, seen, task, upkeep };
        (is_same && live.status().is_current()).then_some(live)
    }
}

/// Clones are other views of the same live value.
impl<V> Clone for SharedLive<V> {
    fn clone(&self) -> Self {
        Self {
            value: Weak::clone(&self.value),
            states: self.states.clone(),
            task: Weak::clone(&self.task),
        }
    }
}
