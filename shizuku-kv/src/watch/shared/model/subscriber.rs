//! A subscriber that compares what it reads with the writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::super::mailbox::Mailbox;
use super::super::subscriptions::{Interest, SubscriberId};
use super::Log;
use crate::store::Key;

pub(super) struct SimulatedSubscriber {
    pub(super) id: SubscriberId,
    pub(super) interest: Interest,
    pub(super) mailbox: Arc<Mailbox>,
    /// The newest sequences when it joined.
    pub(super) expected: BTreeMap<Key, u64>,
    pub(super) joined: u8,
    pub(super) seen: HashMap<Key, u64>,
    pub(super) incarnation: Option<u8>,
    pub(super) caught_up: bool,
    pub(super) ended: bool,
}

impl SimulatedSubscriber {
    pub(super) fn wants(&self, key: &Key) -> bool {
        match &self.interest {
            Interest::Key(one) => one == key,
            Interest::Scope(scope) => scope.matches(key),
        }
    }

    /// Returns the newest sequence of each key that it wants.
    fn wanted<'l>(&self, log: &'l Log) -> Vec<(&'l Key, &'l u64)> {
        match &self.interest {
            Interest::Key(key) => log.newest.get_key_value(key).into_iter().collect(),
            Interest::Scope(scope) => {
                log.newest.iter().filter(|(key, _)| scope.matches(key)).collect()
            }
        }
    }

    /// Reads one update. Returns whether there was one.
    pub(super) fn read(&mut self, log: &Log) -> bool {
        let Poll::Ready(next) = self.mailbox.poll_next(&Context::from_waker(Waker::noop())) else {
            return false;
        };
        let Some(Ok((update, cursor))) = next else {
            self.ended = true;
            return false;
        };
        assert!(self.mailbox.is_open(), "the upstream is open");
        let incarnation = cursor.incarnation()[0];
        assert_eq!(
            *self.incarnation.get_or_insert(incarnation),
            incarnation,
            "two stores in one watch"
        );
        match update.into_entry() {
            None => {
                assert!(!std::mem::replace(&mut self.caught_up, true), "two markers");
                if incarnation == self.joined {
                    for (key, sequence) in &self.expected {
                        let seen = self.seen.get(key).copied().unwrap_or_default();
                        assert!(
                            seen >= *sequence,
                            "caught up at {seen} of {key}, which was at {sequence} before"
                        );
                    }
                }
            }
            Some(entry) => {
                assert!(self.wants(&entry.key), "{} is not for {:?}", entry.key, self.interest);
                let sequence = entry.version.as_u64().unwrap();
                let before = self.seen.insert(entry.key.clone(), sequence).unwrap_or_default();
                assert!(sequence > before, "{} went from {before} to {sequence}", entry.key);
            }
        }
        if incarnation == log.incarnation && self.caught_up {
            // A watch that resumes from this cursor misses nothing: earlier updates were read.
            for (key, &newest) in self.wanted(log) {
                let seen = self.seen.get(key).copied().unwrap_or_default();
                assert!(
                    newest > cursor.position() || seen == newest,
                    "the cursor {} is beyond {key} at {newest}, of which {seen} was read",
                    cursor.position()
                );
            }
        }
        true
    }
}
