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
            && self.readers.is_empty()
            && self.waiting.is_empty()
            && self.opening.is_empty()
            && self.replacement.is_none()
    }

    /// Panics if an unneeded item is kept, or if a reference is dangling.
    pub(in super::super) fn check(&self) {
        for id in self.waiting.values().flatten() {
            assert!(self.readers[id].upstream.is_none(), "reader {id} waits and has an upstream");
        }
        for (id, upstream) in &self.upstreams {
            for reader in upstream.readers() {
                let reader = &self.readers[&reader];
                assert!(
                    reader.upstream == Some(*id) || reader.pending_upstream == Some(*id),
                    "{reader:?} does not know of feed {id}"
                );
            }
            assert!(
                upstream.keys.values().all(|readers| !readers.is_empty()),
                "keys without readers"
            );
        }
        for (id, reader) in &self.readers {
            assert!(
                reader.upstream.is_some() || self.waiting[&reader.interest].contains(id),
                "{reader:?} does not wait"
            );
            for upstream in reader.upstream.into_iter().chain(reader.pending_upstream) {
                let upstream = &self.upstreams[&upstream];
                let is_fed = match &reader.interest {
                    Interest::Key(key) => upstream.keys[key].contains(id),
                    Interest::Scope(_) => upstream.whole.contains(id),
                };
                assert!(is_fed, "{reader:?} is not fed by {upstream:?}");
            }
            if let (true, Some(upstream)) = (reader.ready, reader.upstream) {
                assert_eq!(
                    *reader.mailbox.link().borrow(),
                    self.upstreams[&upstream].link,
                    "{reader:?}"
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
