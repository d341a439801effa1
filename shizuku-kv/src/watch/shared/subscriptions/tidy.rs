//! Reduces the number of upstreams: ends those without subscribers, unites equal ones, and replaces
//! many of single keys.

use std::collections::HashSet;

use super::super::scopes::{EXACT_KEYS, covering};
use super::{MANY_WAITING, SubscriberId, Subscriptions, Upstream, UpstreamId};
use crate::store::WatchCursor;

/// Maximum number of keys of a small upstream: two of them fit into one.
const SMALL: usize = EXACT_KEYS / 2;

/// Maximum number of small upstreams, and of other exact ones. Beyond it, one upstream replaces
/// several.
const MOST_FEEDS: usize = 4;

impl Subscriptions {
    /// Removes the upstreams that are superfluous now that this one is open, or up again.
    pub(super) fn tidy(&mut self, upstream: UpstreamId) {
        while self.unite(upstream) {}
        self.sweep();
        self.open_waiting();
        self.replace();
    }

    /// Unites two upstreams of the same prefixes. The subscribers of the upstream that is ahead
    /// move to the one that is behind, and skip updates that were already delivered. So no update
    /// is lost, even if some are in flight.
    fn unite(&mut self, upstream: UpstreamId) -> bool {
        let Some(new) = self.upstreams.get(&upstream).filter(|new| !new.of_keys && new.is_sound())
        else {
            return false;
        };
        if new.whole.is_empty() {
            return false;
        }
        let same = |(id, other): &(&UpstreamId, &Upstream)| {
            **id != upstream
                && !other.of_keys
                && !other.whole.is_empty()
                && other.is_sound()
                && other.scope == new.scope
                && other.incarnation() == new.incarnation()
        };
        let Some((other, found)) = self.upstreams.iter().find(same).map(|(id, found)| (*id, found))
        else {
            return false;
        };
        let (behind, ahead) =
            if found.position() <= new.position() { (other, upstream) } else { (upstream, other) };
        let Some(ahead) = self.upstreams.get_mut(&ahead) else { return false };
        let (moving, position) = (std::mem::take(&mut ahead.whole), ahead.position());
        for id in &moving {
            let Some(subscriber) = self.subscribers.get_mut(id) else { continue };
            subscriber.upstream = Some(behind);
            subscriber.delivered_through = subscriber.delivered_through.max(Some(position));
        }
        if let Some(behind) = self.upstreams.get_mut(&behind) {
            behind.whole.extend(moving);
        }
        true
    }

    /// Ends the upstreams without subscribers.
    pub(super) fn sweep(&mut self) {
        let deserted = self.upstreams.iter().filter(|(_, upstream)| upstream.is_deserted());
        for id in deserted.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(upstream) = self.upstreams.remove(&id) {
                upstream.stop.notify_one();
            }
            self.replacement.take_if(|replacement| *replacement == id);
            self.opening.remove(&id);
        }
    }

    /// Opens one upstream that replaces several, if more upstreams of single keys exist than
    /// needed. It resumes at the earliest of their positions, so that the initial state need not be
    /// delivered again.
    pub(super) fn replace(&mut self) {
        // Waiting subscribers have priority.
        if !self.may_replace() || self.waiting.len() > MANY_WAITING {
            return;
        }
        let chosen = self.superfluous();
        let upstreams = || chosen.iter().filter_map(|id| self.upstreams.get(id));
        let from =
            upstreams().filter_map(|upstream| upstream.cursor).min_by_key(WatchCursor::position);
        // Subscribers that already listen to a second upstream continue unchanged.
        let moves = |id: &SubscriberId| {
            let subscriber = self.subscribers.get(id);
            subscriber
                .is_some_and(|subscriber| subscriber.ready && subscriber.pending_upstream.is_none())
        };
        let subscribers: Vec<_> = upstreams()
            .flat_map(|upstream| upstream.keys.values().flatten())
            .copied()
            .filter(moves)
            .collect();
        let keys =
            subscribers.iter().filter_map(|id| self.subscribers.get(id)?.interest.key().cloned());
        let keys: HashSet<_> = keys.collect();
        if keys.is_empty() {
            return;
        }
        let upstream = self.register(covering(keys.into_iter().collect()), true, from, None);
        self.replacement = Some(upstream);
        for id in subscribers {
            self.listen(id, upstream);
        }
    }

    /// Returns upstreams of single keys, of one store, that one upstream could replace.
    fn superfluous(&self) -> Vec<UpstreamId> {
        let sound = || {
            self.upstreams
                .iter()
                .filter(|(_, upstream)| upstream.of_keys && upstream.is_sound() && !upstream.stays)
        };
        let Some((_, newest)) = sound().max_by_key(|(id, _)| **id) else { return Vec::new() };
        let mut small = Vec::new();
        let mut full = Vec::new();
        let mut wide = Vec::new();
        for (id, upstream) in
            sound().filter(|(_, upstream)| upstream.incarnation() == newest.incarnation())
        {
            let list = match upstream.keys.len() {
                _ if !upstream.is_exact() => &mut wide,
                keys if keys <= SMALL => &mut small,
                _ => &mut full,
            };
            list.push((upstream.keys.len(), *id));
        }
        small.sort_unstable();
        let ids = |upstreams: &[(usize, UpstreamId)]| {
            upstreams.iter().map(|(_, id)| *id).collect::<Vec<_>>()
        };
        if full.len() > MOST_FEEDS || wide.len() > 1 {
            return [ids(&small), ids(&full), ids(&wide)].concat();
        }
        // Prefixes for a few keys also deliver updates that no subscriber follows.
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
        let fits = |(keys, _): &&(usize, UpstreamId)| {
            sum += keys;
            sum <= EXACT_KEYS
        };
        small.iter().take_while(fits).map(|(_, id)| *id).collect()
    }
}
