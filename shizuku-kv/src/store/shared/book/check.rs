//! What tests ask of the book.

use super::{Book, FeedId, Interest};

impl Book {
    pub(in super::super) fn has(&self, feed: FeedId) -> bool {
        self.feeds.contains_key(&feed)
    }

    /// The feeds: how many keys of how many, and what may be in the way of their being replaced.
    pub(in super::super) fn summary(&self) -> String {
        let feeds = self.feeds.iter().map(|(id, feed)| {
            format!(
                "\n{id}: {} keys, {} of scopes, {:?}, exact {}, stays {}, position {}",
                feed.keys.len(),
                feed.whole.len(),
                feed.phase,
                feed.is_exact(),
                feed.stays,
                feed.position()
            )
        });
        feeds.collect()
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.feeds.is_empty()
            && self.readers.is_empty()
            && self.waiting.is_empty()
            && self.opening.is_empty()
            && self.replacement.is_none()
    }

    /// Panics where something is kept that nobody needs, or points to what is not there.
    pub(in super::super) fn check(&self) {
        for id in self.waiting.values().flatten() {
            assert!(self.readers[id].home.is_none(), "reader {id} waits and has a home");
        }
        for (id, feed) in &self.feeds {
            for reader in feed.everybody() {
                let reader = &self.readers[&reader];
                assert!(
                    reader.home == Some(*id) || reader.next == Some(*id),
                    "{reader:?} does not know of feed {id}"
                );
            }
            assert!(feed.keys.values().all(|readers| !readers.is_empty()), "keys without readers");
        }
        for (id, reader) in &self.readers {
            assert!(
                reader.home.is_some() || self.waiting[&reader.interest].contains(id),
                "{reader:?} does not wait"
            );
            for feed in reader.home.into_iter().chain(reader.next) {
                let feed = &self.feeds[&feed];
                let told = match &reader.interest {
                    Interest::Key(key) => feed.keys[key].contains(id),
                    Interest::Scope(_) => feed.whole.contains(id),
                };
                assert!(told, "{reader:?} is not told by {feed:?}");
            }
            if let (true, Some(home)) = (reader.ready, reader.home) {
                assert_eq!(*reader.mailbox.link().borrow(), self.feeds[&home].link, "{reader:?}");
            }
        }
        for interest in self.waiting.keys() {
            assert!(self.turns.contains(interest), "it is never the turn of {interest:?}");
        }
        assert!(
            self.opening.keys().all(|feed| self.feeds.contains_key(feed)),
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
