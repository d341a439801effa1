//! Inspection of the subscriptions for tests.

use super::{Interest, Subscriptions, UpstreamId};

impl Subscriptions {
    pub(in super::super) fn has(&self, upstream: UpstreamId) -> bool {
        self.upstreams.contains_key(&upstream)
    }

    /// Describes the upstreams: the numbers of their keys, and the properties that may prevent a
    /// replacement.
    pub(in super::super) fn summary(&self) -> String {
        let upstreams = self.upstreams.iter().map(|(id, upstream)| {
            format!(
                "\n{id}: {} keys, {} of scopes, {:?}, exact {}, stays {}, position {}",
                upstream.keys.len(),
                upstream.whole.len(),
                upstream.phase,
                upstream.is_exact(),
                upstream.stays,
                upstream.position()
            )
        });
        upstreams.collect()
    }

    /// Returns the number of turns, including those of interests that no longer wait.
    pub(in super::super) fn turns(&self) -> usize {
        self.turns.len()
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.upstreams.is_empty()
            && self.subscribers.is_empty()
            && self.waiting.is_empty()
            && self.opening.is_empty()
            && self.reading.is_empty()
            && self.replacement.is_none()
    }

    /// Panics if an unneeded item is kept, or if a reference is dangling.
    pub(in super::super) fn check(&self) {
        for id in self.waiting.values().flatten() {
            assert!(
                self.subscribers[id].upstream.is_none(),
                "subscriber {id} waits and has an upstream"
            );
        }
        for (id, upstream) in &self.upstreams {
            for subscriber in upstream.subscribers() {
                let subscriber = &self.subscribers[&subscriber];
                assert!(
                    subscriber.upstream == Some(*id) || subscriber.pending_upstream == Some(*id),
                    "{subscriber:?} does not know of feed {id}"
                );
            }
            assert!(
                upstream.keys.values().all(|subscribers| !subscribers.is_empty()),
                "keys without subscribers"
            );
        }
        for (id, subscriber) in &self.subscribers {
            let waits = || {
                let waiting = self.waiting.get(&subscriber.interest);
                waiting.is_some_and(|waiting| waiting.contains(id))
            };
            assert_eq!(
                [subscriber.upstream.is_some(), self.reading.contains_key(id), waits()]
                    .map(u8::from)
                    .iter()
                    .sum::<u8>(),
                1,
                "{subscriber:?} has an upstream, or is read, or waits"
            );
            for upstream in subscriber.upstream.into_iter().chain(subscriber.pending_upstream) {
                let upstream = &self.upstreams[&upstream];
                let is_fed = match &subscriber.interest {
                    Interest::Key(key) => upstream.keys[key].contains(id),
                    Interest::Scope(_) => upstream.whole.contains(id),
                };
                assert!(is_fed, "{subscriber:?} is not fed by {upstream:?}");
            }
            if let (true, Some(upstream)) = (subscriber.ready, subscriber.upstream) {
                assert_eq!(
                    *subscriber.mailbox.link().borrow(),
                    self.upstreams[&upstream].link,
                    "{subscriber:?}"
                );
            }
        }
        for interest in self.waiting.keys() {
            assert!(self.turns.contains(interest), "it is never the turn of {interest:?}");
        }
        assert!(
            self.opening.keys().all(|upstream| self.upstreams.contains_key(upstream)),
            "{:?}",
            self.opening
        );
        if self.opening.is_empty() {
            assert!(
                self.waiting.is_empty(),
                "nothing is opened for those who wait: {:?}",
                self.waiting
            );
        }
    }
}
