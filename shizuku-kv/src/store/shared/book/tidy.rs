//! Fewer feeds: what nobody listens to ends, what is alike becomes one, and many of single keys are replaced.

use std::collections::HashSet;

use super::super::scopes::{EXACT_KEYS, covering};
use super::{Book, Feed, FeedId, MANY_WAITING, ReaderId};
use crate::store::WatchCursor;

/// With fewer readers' keys than this a feed is small: two of them fit into one.
const SMALL: usize = EXACT_KEYS / 2;

/// More feeds than this become one: of small ones, and of those that are not.
const MOST_FEEDS: usize = 4;

impl Book {
    /// What a feed that has come, or has come back, makes superfluous.
    pub(super) fn tidy(&mut self, feed: FeedId) {
        while self.unite(feed) {}
        self.sweep();
        self.open_waiting();
        self.replace();
    }

    /// Two feeds of the same prefixes become one. Whoever has been told more goes to the one that is behind, and does
    /// not hear from it what it knows already: so nothing is missing, whatever is on its way.
    fn unite(&mut self, feed: FeedId) -> bool {
        let Some(new) = self.feeds.get(&feed).filter(|new| !new.of_keys && new.is_sound()) else {
            return false;
        };
        if new.whole.is_empty() {
            return false;
        }
        let same = |(id, other): &(&FeedId, &Feed)| {
            **id != feed
                && !other.of_keys
                && !other.whole.is_empty()
                && other.is_sound()
                && other.scope == new.scope
                && other.incarnation() == new.incarnation()
        };
        let Some((other, found)) = self.feeds.iter().find(same).map(|(id, found)| (*id, found))
        else {
            return false;
        };
        let (behind, ahead) =
            if found.position() <= new.position() { (other, feed) } else { (feed, other) };
        let Some(ahead) = self.feeds.get_mut(&ahead) else { return false };
        let (moving, position) = (std::mem::take(&mut ahead.whole), ahead.position());
        for id in &moving {
            let Some(reader) = self.readers.get_mut(id) else { continue };
            reader.home = Some(behind);
            reader.floor = reader.floor.max(Some(position));
        }
        if let Some(behind) = self.feeds.get_mut(&behind) {
            behind.whole.extend(moving);
        }
        true
    }

    /// Ends what nobody listens to.
    pub(super) fn sweep(&mut self) {
        let deserted = self.feeds.iter().filter(|(_, feed)| feed.is_deserted());
        for id in deserted.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(feed) = self.feeds.remove(&id) {
                feed.stop.notify_one();
            }
            self.replacement.take_if(|replacement| *replacement == id);
            self.opening.remove(&id);
        }
    }

    /// Where there are more feeds of single keys than there have to be, opens one in the place of some. It goes on where
    /// the first of them is, so that it need not bring their state again.
    pub(super) fn replace(&mut self) {
        // Who waits comes first.
        if self.replacement.is_some() || self.waiting.len() > MANY_WAITING {
            return;
        }
        let chosen = self.superfluous();
        let feeds = || chosen.iter().filter_map(|id| self.feeds.get(id));
        let from = feeds().filter_map(|feed| feed.cursor).min_by_key(WatchCursor::position);
        // Those who listen to a second feed already go on as they are.
        let moves = |id: &ReaderId| {
            let reader = self.readers.get(id);
            reader.is_some_and(|reader| reader.ready && reader.next.is_none())
        };
        let readers: Vec<_> =
            feeds().flat_map(|feed| feed.keys.values().flatten()).copied().filter(moves).collect();
        let keys = readers.iter().filter_map(|id| self.readers.get(id)?.interest.key().cloned());
        let keys: HashSet<_> = keys.collect();
        if keys.is_empty() {
            return;
        }
        let feed = self.register(covering(keys.into_iter().collect()), true, from, None);
        self.replacement = Some(feed);
        for id in readers {
            self.listen(id, feed);
        }
    }

    /// Feeds of single keys, of one store, that one could replace.
    fn superfluous(&self) -> Vec<FeedId> {
        let sound =
            || self.feeds.iter().filter(|(_, feed)| feed.of_keys && feed.is_sound() && !feed.stays);
        let Some((_, newest)) = sound().max_by_key(|(id, _)| **id) else { return Vec::new() };
        let mut small = Vec::new();
        let mut full = Vec::new();
        let mut wide = Vec::new();
        for (id, feed) in sound().filter(|(_, feed)| feed.incarnation() == newest.incarnation()) {
            let place = match feed.keys.len() {
                _ if !feed.is_exact() => &mut wide,
                keys if keys <= SMALL => &mut small,
                _ => &mut full,
            };
            place.push((feed.keys.len(), *id));
        }
        small.sort_unstable();
        let ids = |feeds: &[(usize, FeedId)]| feeds.iter().map(|(_, id)| *id).collect::<Vec<_>>();
        if full.len() > MOST_FEEDS || wide.len() > 1 {
            return [ids(&small), ids(&full), ids(&wide)].concat();
        }
        // Prefixes for a few keys bring more than is wanted.
        if let [(keys, id)] = wide[..]
            && keys <= SMALL
        {
            let rest = small.first().filter(|(more, _)| keys + more <= EXACT_KEYS);
            return rest.map(|(_, id)| *id).into_iter().chain([id]).collect();
        }
        if small.len() <= MOST_FEEDS {
            return Vec::new();
        }
        let mut sum = 0;
        let fits = |(keys, _): &&(usize, FeedId)| {
            sum += keys;
            sum <= EXACT_KEYS
        };
        small.iter().take_while(fits).map(|(_, id)| *id).collect()
    }
}
