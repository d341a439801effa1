//! What a watch has delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{WatchCursor, WatchScope};

use crate::history::Key;

/// What was seen of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A key as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) key: Key,
    pub(crate) version: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Sight(Sight),
    /// A live value is none, and no version says since when.
    Gone(Key),
    CaughtUp,
    /// It was dropped, and another one goes on from its cursor.
    Resumed,
    /// It was dropped, and another one begins from the start.
    Afresh,
}

/// What kind of watch it is, as far as the checks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It delivers entries, deletions too, and a caught-up marker.
    Watch,
    /// It has the newest value, or none.
    Live,
}

/// One watch.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) name: String,
    pub(crate) form: Form,
    pub(crate) scope: WatchScope,
    /// Before it was opened; none as long as it is not.
    pub(crate) began: Option<Duration>,
    pub(crate) events: Vec<(Duration, Event)>,
    /// Where it stood, each after so many events.
    pub(crate) cursors: Vec<(usize, WatchCursor)>,
    /// Why it has ended, or what else it did that it must not.
    pub(crate) trouble: Option<String>,
    /// It is read slowly or not at all on purpose, until there is quiet.
    pub(crate) lags: bool,
    /// What had been seen of each key before the first event here.
    pub(crate) inherited: BTreeMap<Key, u64>,
    /// Whether all of the state has come, since it last began.
    pub(crate) is_caught_up: bool,
    /// The last that was seen of each key.
    last: BTreeMap<Key, Option<Sight>>,
    /// What the one that began afresh has brought, until it is caught up.
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

    /// The last that was seen of a key; `Some(None)` where a live value has become none.
    pub(crate) fn last(&self, key: &str) -> Option<Option<&Sight>> {
        self.last.get(key).map(Option::as_ref)
    }

    /// The keys of which something was seen.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.last.keys()
    }

    /// One that goes on where this watch stood after so many events.
    pub(crate) fn resumed_after(&self, events: usize) -> Self {
        let mut resumed = Self::new(
            format!("{}, resumed after {events} events", self.name),
            self.form,
            self.scope.clone(),
        );
        for (_, event) in &self.events[..events] {
            resumed.note(event);
        }
        // What an earlier one had seen is no matter of one that had begun afresh and was not caught up.
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

    /// How many entries it has delivered.
    pub(crate) fn entries(&self) -> u64 {
        let is_entry = |event: &Event| matches!(event, Event::Sight(_) | Event::Gone(_));
        self.events.iter().filter(|(_, event)| is_entry(event)).count() as u64
    }
}
