//! The deliveries of a watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::{WatchCursor, WatchScope};

use crate::faults::history::Key;

/// The observed content of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Content {
    /// The value of this write.
    Value(usize),
    Deleted,
    Purged,
    Expired,
}

impl Content {
    pub(crate) fn is_value(self) -> bool {
        matches!(self, Self::Value(_))
    }
}

/// An observation of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) key: Key,
    pub(crate) version: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Sight(Sight),
    /// A live value is none, without a version.
    Gone(Key),
    CaughtUp,
    /// It was dropped, and another one resumes from its cursor.
    Resumed,
    /// It was dropped, and another one starts from the beginning.
    Afresh,
}

/// The kind of a watch, as far as the checks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Delivers entries, deletions too, and a caught-up marker.
    Watch,
    /// Has the newest value, or none.
    Live,
}

/// One watch.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) name: String,
    pub(crate) form: Form,
    pub(crate) scope: WatchScope,
    /// Time before it was opened. `None` until then.
    pub(crate) began: Option<Duration>,
    pub(crate) events: Vec<(Duration, Event)>,
    /// Its cursors, each with the number of earlier events.
    pub(crate) cursors: Vec<(usize, WatchCursor)>,
    /// Reason why it has ended, or another forbidden behaviour.
    pub(crate) trouble: Option<String>,
    /// True if it is read slowly or not at all on purpose, until there is quiet.
    pub(crate) lags: bool,
    /// The version of each key that was seen before the first event here.
    pub(crate) inherited: BTreeMap<Key, u64>,
    /// True if the whole state has arrived, since it last began.
    pub(crate) is_caught_up: bool,
    /// The last observation of each key.
    last: BTreeMap<Key, Option<Sight>>,
    /// The keys that a restarted watch has delivered, until it is caught up.
    brought: Option<BTreeSet<Key>>,
}

impl Log {
    pub(crate) fn new(name: impl Into<String>, form: Form, scope: WatchScope) -> Self {
        Self {
            name: name.into(),
            form,
            scope,
            began: None,
            events: Vec::new(),
            cursors: Vec::new(),
            trouble: None,
            lags: false,
            inherited: BTreeMap::new(),
            is_caught_up: false,
            last: BTreeMap::new(),
            brought: None,
        }
    }

    pub(crate) fn push(&mut self, at: Duration, event: Event) {
        self.note(&event);
        self.events.push((at, event));
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Sight(sight) => {
                if let Some(brought) = &mut self.brought {
                    brought.insert(Arc::clone(&sight.key));
                }
                self.last.insert(Arc::clone(&sight.key), Some(sight.clone()));
            }
            Event::Gone(key) => {
                self.last.insert(Arc::clone(key), None);
            }
            Event::Resumed => self.is_caught_up = false,
            Event::Afresh => {
                self.is_caught_up = false;
                self.brought = Some(BTreeSet::new());
            }
            Event::CaughtUp => {
                self.is_caught_up = true;
                if let Some(brought) = self.brought.take() {
                    self.last.retain(|key, _| brought.contains(key));
                }
            }
        }
    }

    /// Returns the last observation of a key, or `Some(None)` if a live value has become none.
    pub(crate) fn last(&self, key: &str) -> Option<Option<&Sight>> {
        self.last.get(key).map(Option::as_ref)
    }

    /// Returns the observed keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.last.keys()
    }

    /// Returns a log that resumes after this number of events of this watch.
    pub(crate) fn resumed_after(&self, events: usize) -> Self {
        let mut resumed = Self::new(
            format!("{}, resumed after {events} events", self.name),
            self.form,
            self.scope.clone(),
        );
        for (_, event) in &self.events[..events] {
            resumed.note(event);
        }
        // A watch that had started again and was not caught up does not inherit the observations of
        // earlier ones.
        if let Some(brought) = resumed.brought.take() {
            resumed.last.retain(|key, _| brought.contains(key));
        }
        let versions = resumed
            .last
            .iter()
            .filter_map(|(key, sight)| Some((Arc::clone(key), sight.as_ref()?.version)));
        resumed.inherited = versions.collect();
        resumed.is_caught_up = false;
        resumed.began = self.began;
        resumed
    }

    /// Returns the number of delivered entries.
    pub(crate) fn entries(&self) -> u64 {
        let is_entry = |event: &Event| matches!(event, Event::Sight(_) | Event::Gone(_));
        self.events.iter().filter(|(_, event)| is_entry(event)).count() as u64
    }
}
