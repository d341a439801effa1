//! The table of upstreams and their subscribers. It is plain data without a task. The caller that
//! holds the mutex performs the due actions.

#[cfg(test)]
mod check;
mod tidy;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::mailbox::Mailbox;
use super::scopes::covering;
use crate::store::{Deadline, Key, KvEntry, KvError, KvUpdate, WatchCursor, WatchLink, WatchScope};

pub(super) type UpstreamId = u64;
pub(super) type SubscriberId = u64;

/// Maximum number of upstreams that are opened at a time. While openings fail, it is one.
const MOST_OPENINGS: usize = 16;

/// Maximum number of openings for the same interest. With a second one, an opening without an
/// answer does not delay all subscribers of the interest.
const MOST_ALIKE: usize = 2;

/// Maximum number of waiting keys. Beyond it, an additional upstream is opened for all of them.
const MANY_WAITING: usize = 1024;

/// Pause after a denied replacement before another one is requested.
const DENIED: Duration = Duration::from_secs(60);

/// Maximum number of keys that are read at a time for initial states. Beyond it, upstreams are
/// opened, which serve many subscribers at once.
const MOST_READS: usize = 64;

/// Pause before the next such read after one that the leader denied or did not answer.
const READ_PAUSE: Duration = Duration::from_secs(10);

/// Maximum size in bytes of a value that is copied, so that a small value does not keep the buffer
/// of the network alive.
const SMALL_VALUE: usize = 4096;

/// The keys that a subscriber follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Interest {
    /// One key. Upstreams of single keys are replaced by others as their number grows and shrinks.
    Key(Key),
    /// All keys in a scope, by an upstream of exactly that scope.
    Scope(WatchScope),
}

/// An upstream that is to be opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) upstream: UpstreamId,
    pub(super) scope: WatchScope,
    /// The cursor from which it resumes, if that is possible.
    pub(super) from: Option<WatchCursor>,
    /// The latest deadline of its waiting subscribers. `None` if no subscriber waits for it.
    pub(super) deadline: Option<Deadline>,
    /// Whether to open it after a pause, because the last opening failed.
    pub(super) later: bool,
    /// Notified when no subscriber needs the upstream any more.
    pub(super) stop: Arc<Notify>,
}

/// A key whose newest entry is to be read from the leader, for [`Subscriptions::begin_with`].
#[derive(Debug)]
pub(super) struct Read {
    pub(super) subscriber: SubscriberId,
    pub(super) key: Key,
}

/// Consequence of an upstream's end, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The upstream could not be opened, and the opening before had succeeded.
    OpeningFailed,
    /// The upstream could not be opened, like the one before, or had no subscribers.
    Nothing,
    /// This number of subscribers has to subscribe again.
    Subscribers(usize),
}

#[derive(Debug)]
struct Upstream {
    scope: WatchScope,
    /// Whether its subscribers follow single keys.
    of_keys: bool,
    phase: Phase,
    /// Position up to which its subscribers have received everything.
    cursor: Option<WatchCursor>,
    link: WatchLink,
    /// Whether some of its subscribers could not be moved to another upstream.
    stays: bool,
    keys: HashMap<Key, HashSet<SubscriberId>>,
    whole: HashSet<SubscriberId>,
    stop: Arc<Notify>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The initial state is arriving. The set has the keys of subscribers for which an entry has
    /// arrived. `None` if the upstream resumes from a cursor, and therefore has no initial state.
    Syncing(Option<HashSet<Key>>),
    Current,
}

#[derive(Debug)]
struct Subscriber {
    interest: Interest,
    deadline: Deadline,
    mailbox: Arc<Mailbox>,
    /// The upstream that delivers the initial state, and whose connection state the subscriber
    /// shows. `None` while the subscriber waits for its turn.
    upstream: Option<UpstreamId>,
    /// A second upstream, which is to replace the first.
    pending_upstream: Option<UpstreamId>,
    /// The newest update that the second upstream delivered before the first has delivered the
    /// initial state.
    held: Option<(KvUpdate, WatchCursor)>,
    /// Whether the initial state was delivered.
    ready: bool,
    incarnation: Option<[u8; 16]>,
    /// Highest position delivered to this subscriber; older updates are skipped.
    delivered_through: Option<u64>,
    /// Whether the last delivered update is a value. Used for single keys only.
    live: bool,
    /// The upstream whose opening began after this subscriber began to wait, while openings failed.
    probe: Option<UpstreamId>,
}

/// The upstreams and the subscribers of one hub.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    upstreams: HashMap<UpstreamId, Upstream>,
    subscribers: HashMap<SubscriberId, Subscriber>,
    ids: u64,
    /// The waiting subscribers, and the interests in the order of their turns.
    waiting: HashMap<Interest, HashSet<SubscriberId>>,
    turns: VecDeque<Interest>,
    /// The upstreams that are being opened for waiting subscribers.
    opening: HashMap<UpstreamId, Interest>,
    /// Whether the last opening failed.
    failing: bool,
    /// The upstream to which the subscribers of others will be moved.
    replacement: Option<UpstreamId>,
    /// The subscribers whose keys are being read, each with the cursor that its pending upstream
    /// had when the subscriber joined.
    reading: HashMap<SubscriberId, WatchCursor>,
    /// Time until which no key is read, because a read has failed.
    no_reads_until: Option<Instant>,
    /// Time until which no replacement is opened, because this user may not watch several keys at
    /// once. The permission can change while the connection is open.
    no_replacement_until: Option<Instant>,
    due: Vec<Opening>,
    due_reads: Vec<Read>,
    wakers: Vec<Waker>,
    /// Reason for opening no upstream any more.
    closed: Option<KvError>,
}

impl Interest {
    fn key(&self) -> Option<&Key> {
        match self {
            Self::Key(key) => Some(key),
            Self::Scope(_) => None,
        }
    }

    fn scope(&self) -> WatchScope {
        match self {
            Self::Key(key) => WatchScope::Key(key.clone()),
            Self::Scope(scope) => scope.clone(),
        }
    }
}

impl Upstream {
    fn is_current(&self) -> bool {
        self.phase == Phase::Current
    }

    fn position(&self) -> u64 {
        self.cursor.map_or(0, |cursor| cursor.position())
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        self.cursor.map(|cursor| *cursor.incarnation())
    }

    /// Returns whether the subscribers of other upstreams can be moved to this one: it has caught
    /// up, and its connection is up.
    fn is_sound(&self) -> bool {
        self.is_current() && self.link.is_up()
    }

    /// Returns its subscribers of an interest.
    fn audience(&mut self, interest: &Interest) -> &mut HashSet<SubscriberId> {
        match interest {
            Interest::Key(key) => self.keys.entry(key.clone()).or_default(),
            Interest::Scope(_) => &mut self.whole,
        }
    }

    fn subscribers(&self) -> Vec<SubscriberId> {
        self.keys.values().flatten().chain(&self.whole).copied().collect()
    }

    fn is_deserted(&self) -> bool {
        self.keys.is_empty() && self.whole.is_empty()
    }

    fn is_exact(&self) -> bool {
        matches!(self.scope, WatchScope::Key(_) | WatchScope::Keys(_))
    }
}

impl Subscriptions {
    /// Returns the due actions, to be performed without the mutex.
    pub(super) fn take_due(&mut self) -> (Vec<Waker>, Vec<Opening>, Vec<Read>) {
        let wakers = std::mem::take(&mut self.wakers);
        (wakers, std::mem::take(&mut self.due), std::mem::take(&mut self.due_reads))
    }

    /// Adds a subscriber. `may_read` is whether a read of its key may be its initial state: an
    /// entry that the leader returns is then at least as new as every update that was delivered
    /// before, and its version is its position among the updates.
    pub(super) fn join(
        &mut self,
        interest: Interest,
        may_read: bool,
        deadline: Deadline,
        mailbox: Arc<Mailbox>,
    ) -> SubscriberId {
        let id = self.new_id();
        if let Some(error) = &self.closed {
            self.wakers.extend(mailbox.end(error));
            return id;
        }
        // An upstream that covers this key already becomes the pending upstream, so that the read
        // or the upstream that delivers the initial state can end. The subscriber listens to the
        // pending upstream from now on, because the initial state is of a later moment.
        let next = interest.key().and_then(|key| {
            let covers = |upstream: &Upstream| {
                upstream.of_keys && upstream.is_sound() && upstream.scope.matches(key)
            };
            // Takes the newest, because an older one may follow a store that was deleted since.
            let covering = self.upstreams.iter().filter(|(_, upstream)| covers(upstream));
            covering.map(|(id, _)| *id).max()
        });
        let subscriber = Subscriber {
            interest: interest.clone(),
            deadline,
            mailbox,
            upstream: None,
            pending_upstream: None,
            held: None,
            ready: false,
            incarnation: None,
            delivered_through: None,
            live: false,
            probe: None,
        };
        self.subscribers.insert(id, subscriber);
        let cursor = next.and_then(|next| self.upstreams.get(&next)?.cursor);
        if let Some(next) = next {
            self.listen(id, next);
        }
        if let Some(cursor) = cursor.filter(|_| may_read && self.has_turn_to_read())
            && let Some(key) = interest.key().cloned()
        {
            self.reading.insert(id, cursor);
            self.due_reads.push(Read { subscriber: id, key });
            return id;
        }
        self.wait(id, interest);
        self.open_waiting();
        id
    }

    fn has_turn_to_read(&self) -> bool {
        self.reading.len() < MOST_READS
            && self.no_reads_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Begins a subscription with the entry of its key that the leader had after the subscriber
    /// joined. The pending upstream then delivers the updates. Without an entry, or if the upstream
    /// may be of another store, an upstream of its own delivers the initial state.
    pub(super) fn begin_with(&mut self, id: SubscriberId, entry: Result<Option<KvEntry>, KvError>) {
        let Some(since) = self.reading.remove(&id) else { return };
        if let Err(
            KvError::Timeout { .. } | KvError::Unavailable { .. } | KvError::Unauthorized { .. },
        ) = &entry
        {
            self.no_reads_until = Some(Instant::now() + READ_PAUSE);
        }
        let begun = entry.ok().flatten().and_then(|entry| self.begin_at(id, entry, since));
        if begun.is_some() {
            self.replace();
        } else if let Some(subscriber) = self.subscribers.get(&id) {
            let interest = subscriber.interest.clone();
            self.wait(id, interest);
            self.open_waiting();
        }
    }

    fn begin_at(&mut self, id: SubscriberId, entry: KvEntry, since: WatchCursor) -> Option<()> {
        let position = entry.version.as_u64()?;
        let subscriber = self.subscribers.get_mut(&id)?;
        let next = subscriber.pending_upstream?;
        let upstream = self.upstreams.get(&next).filter(|upstream| upstream.is_sound())?;
        // In a recreated store, positions start again, and the upstream may not know of it yet.
        let is_recreated = position <= since.position() && entry.created > since.as_of();
        if is_recreated || upstream.incarnation() != Some(*since.incarnation()) {
            return None;
        }
        let cursor = match position > since.position() {
            true => WatchCursor::new(*since.incarnation(), position, entry.created),
            false => since,
        };
        let held = subscriber.held.take();
        self.attach(id, next);
        let mut update = KvUpdate::from(entry);
        copy_small_value(&mut update);
        self.deliver(id, next, &update, cursor);
        self.make_ready(id, cursor.position(), cursor);
        if let Some((update, cursor)) = held {
            self.deliver(id, next, &update, cursor);
        }
        Some(())
    }

    /// Records that the opening begins. Its outcome also applies to the subscribers that are
    /// waiting at this time.
    pub(super) fn begin(&mut self, upstream: UpstreamId) {
        if self.failing && self.opening.contains_key(&upstream) {
            for id in self.waiting.values().flatten() {
                if let Some(subscriber) = self.subscribers.get_mut(id) {
                    subscriber.probe = Some(upstream);
                }
            }
        }
    }

    /// Records that the upstream is open, from its cursor or with the initial state.
    pub(super) fn opened(&mut self, upstream: UpstreamId, link: WatchLink, resumed: bool) {
        let Some(opened) = self.upstreams.get_mut(&upstream) else { return };
        opened.phase = Phase::Syncing((!resumed).then(HashSet::new));
        opened.link = link;
        for id in opened.subscribers() {
            let Some(subscriber) = self
                .subscribers
                .get(&id)
                .filter(|subscriber| subscriber.upstream == Some(upstream))
            else {
                continue;
            };
            subscriber.mailbox.relink(&opened.link);
            self.wakers.extend(subscriber.mailbox.open());
        }
        self.failing = false;
        self.opening.remove(&upstream);
        self.open_waiting();
    }

    pub(super) fn relink(&mut self, upstream: UpstreamId, link: &WatchLink) {
        let Some(changed) = self.upstreams.get_mut(&upstream) else { return };
        changed.link.clone_from(link);
        for id in changed.subscribers() {
            if let Some(subscriber) =
                self.subscribers.get(&id).filter(|subscriber| subscriber.upstream == Some(upstream))
            {
                subscriber.mailbox.relink(link);
            }
        }
        if link.is_up() {
            self.tidy(upstream);
        }
    }

    pub(super) fn receive(
        &mut self,
        upstream: UpstreamId,
        mut update: KvUpdate,
        cursor: WatchCursor,
    ) {
        let Some(from) = self.upstreams.get_mut(&upstream) else { return };
        if from.cursor.is_none_or(|known| known.position() <= cursor.position()) {
            from.cursor = Some(cursor);
        }
        let (KvUpdate::Put(entry) | KvUpdate::Delete(entry)) = &mut update else {
            self.caught_up(upstream, cursor);
            return;
        };
        let to_key = from.keys.get(&entry.key);
        if let (Phase::Syncing(Some(mentioned)), Some(_)) = (&mut from.phase, to_key) {
            mentioned.insert(entry.key.clone());
        }
        let subscribers: Vec<_> =
            to_key.into_iter().flatten().chain(&from.whole).copied().collect();
        if !subscribers.is_empty() {
            copy_small_value(&mut update);
        }
        for subscriber in subscribers {
            self.deliver(subscriber, upstream, &update, cursor);
        }
    }

    /// Ends an upstream, or an opening that failed. The subscribers receive the error, unless they
    /// have the time to wait for another opening.
    pub(super) fn end(&mut self, upstream: UpstreamId, error: &KvError) -> Ended {
        let Some(ended) = self.upstreams.remove(&upstream) else { return Ended::Nothing };
        if self.replacement.take_if(|replacement| *replacement == upstream).is_some()
            && matches!(error, KvError::Unauthorized { .. })
        {
            self.no_replacement_until = Some(Instant::now() + DENIED);
        }
        let was_opening = self.opening.remove(&upstream).is_some();
        let is_new = was_opening && !self.failing;
        self.failing |= was_opening;
        let mut count = 0;
        for id in ended.subscribers() {
            let Some(subscriber) = self.subscribers.get_mut(&id) else { continue };
            if subscriber.upstream != Some(upstream) {
                (subscriber.pending_upstream, subscriber.held) = (None, None);
            } else if was_opening
                && error.is_retryable()
                && !subscriber.deadline.remaining().is_zero()
            {
                subscriber.upstream = None;
                let interest = subscriber.interest.clone();
                self.wait(id, interest);
            } else {
                self.end_subscriber(id, error);
                count += 1;
            }
        }
        if was_opening && !error.is_retryable() {
            let probed = |id: &SubscriberId| {
                self.subscribers
                    .get(id)
                    .is_some_and(|subscriber| subscriber.probe == Some(upstream))
            };
            let probed: Vec<_> = self.waiting.values().flatten().copied().filter(probed).collect();
            for id in probed {
                self.end_subscriber(id, error);
            }
        }
        self.sweep();
        self.open_waiting();
        match count {
            _ if is_new => Ended::OpeningFailed,
            _ if was_opening => Ended::Nothing,
            0 => Ended::Nothing,
            count => Ended::Subscribers(count),
        }
    }

    /// Ends all subscribers with the error, because no task drives the upstreams any more. Later
    /// subscribers receive it too.
    pub(super) fn close(&mut self, error: KvError) {
        for subscriber in std::mem::take(&mut self.subscribers).into_values() {
            self.wakers.extend(subscriber.mailbox.end(&error));
        }
        for upstream in self.upstreams.values() {
            upstream.stop.notify_one();
        }
        let wakers = std::mem::take(&mut self.wakers);
        *self = Self { ids: self.ids, wakers, closed: Some(error), ..Self::default() };
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(super) fn leave(&mut self, subscriber: SubscriberId) {
        self.forget(subscriber);
        self.sweep();
        self.replace();
        self.open_waiting();
    }

    fn new_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn register(
        &mut self,
        scope: WatchScope,
        of_keys: bool,
        from: Option<WatchCursor>,
        deadline: Option<Deadline>,
    ) -> UpstreamId {
        let id = self.new_id();
        let stop = Arc::new(Notify::new());
        let upstream = Upstream {
            scope: scope.clone(),
            of_keys,
            phase: Phase::Opening,
            cursor: None,
            link: WatchLink::Up,
            stays: false,
            keys: HashMap::new(),
            whole: HashSet::new(),
            stop: Arc::clone(&stop),
        };
        self.upstreams.insert(id, upstream);
        self.due.push(Opening { upstream: id, scope, from, deadline, later: self.failing, stop });
        id
    }

    fn wait(&mut self, id: SubscriberId, interest: Interest) {
        let waiting = self.waiting.entry(interest.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(interest);
        }
        waiting.insert(id);
    }

    /// Opens upstreams for waiting subscribers, each for all of one interest. A subscriber that
    /// joins during an opening waits for the next, because the opening may have begun already.
    fn open_waiting(&mut self) {
        let most = if self.failing { 1 } else { MOST_OPENINGS };
        for _ in 0..self.turns.len() {
            if self.opening.len() >= most {
                break;
            }
            let Some(interest) = self.turns.pop_front() else { break };
            if self.opening.values().filter(|opening| **opening == interest).count() >= MOST_ALIKE {
                self.turns.push_back(interest);
                continue;
            }
            let Some(subscribers) = self.waiting.remove(&interest) else { continue };
            let deadlines =
                subscribers.iter().filter_map(|id| Some(self.subscribers.get(id)?.deadline));
            let deadline = deadlines.max_by_key(Deadline::instant);
            let upstream =
                self.register(interest.scope(), interest.key().is_some(), None, deadline);
            for id in &subscribers {
                if let Some(subscriber) = self.subscribers.get_mut(id) {
                    (subscriber.upstream, subscriber.probe) = (Some(upstream), None);
                }
            }
            if let Some(upstream) = self.upstreams.get_mut(&upstream) {
                upstream.audience(&interest).extend(subscribers);
            }
            self.opening.insert(upstream, interest);
        }
        self.open_for_many();
    }

    /// Returns whether an upstream may be opened that replaces others.
    fn may_replace(&self) -> bool {
        self.replacement.is_none()
            && self.no_replacement_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Opens one upstream that delivers the initial state of all waiting keys, because separate
    /// openings would take too long.
    fn open_for_many(&mut self) {
        if self.waiting.len() <= MANY_WAITING || self.failing || !self.may_replace() {
            return;
        }
        let keys: Vec<_> =
            self.waiting.keys().filter_map(|interest| interest.key().cloned()).collect();
        let waiting = self.waiting.iter().filter(|(interest, _)| interest.key().is_some());
        let subscribers: Vec<_> =
            waiting.flat_map(|(_, subscribers)| subscribers).copied().collect();
        let upstream = self.register(covering(keys), true, None, None);
        self.replacement = Some(upstream);
        for id in subscribers {
            // The pending upstream is not needed: the new one delivers the same updates, and the
            // initial state.
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                subscriber.held = None;
                let interest = subscriber.interest.clone();
                if let Some(next) = subscriber.pending_upstream.take() {
                    self.detach(id, &interest, next);
                }
            }
            self.listen(id, upstream);
        }
    }

    /// Lets a subscriber listen to a second upstream.
    fn listen(&mut self, id: SubscriberId, upstream: UpstreamId) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let Some(to) = self.upstreams.get_mut(&upstream) else { return };
        subscriber.pending_upstream = Some(upstream);
        to.audience(&subscriber.interest).insert(id);
    }

    fn deliver(
        &mut self,
        id: SubscriberId,
        upstream: UpstreamId,
        update: &KvUpdate,
        cursor: WatchCursor,
    ) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        if subscriber.upstream == Some(upstream) {
            subscriber.incarnation.get_or_insert(*cursor.incarnation());
        } else if !subscriber.ready {
            subscriber.held = Some((update.clone(), cursor));
            return;
        }
        let is_new = subscriber.delivered_through.is_none_or(|through| cursor.position() > through);
        if !is_new || subscriber.incarnation != Some(*cursor.incarnation()) {
            return;
        }
        if subscriber.interest.key().is_some() {
            subscriber.delivered_through = Some(cursor.position());
            subscriber.live = matches!(update, KvUpdate::Put(_));
        }
        self.wakers.extend(subscriber.mailbox.push(update.clone(), cursor));
    }

    fn caught_up(&mut self, upstream: UpstreamId, cursor: WatchCursor) {
        let Some(current) = self.upstreams.get_mut(&upstream) else { return };
        let Phase::Syncing(mentioned) = std::mem::replace(&mut current.phase, Phase::Current)
        else {
            return;
        };
        let position = current.position();
        for id in current.subscribers() {
            let Some(subscriber) = self.subscribers.get_mut(&id) else { continue };
            if subscriber.upstream == Some(upstream) {
                self.make_ready(id, position, cursor);
                let Some(subscriber) = self.subscribers.get_mut(&id) else { continue };
                let held = subscriber.held.take();
                let Some(next) = subscriber.pending_upstream else { continue };
                // If the pending upstream is not current yet, the subscriber is moved once it is.
                if self.upstreams.get(&next).is_some_and(Upstream::is_current) {
                    subscriber.pending_upstream = None;
                    self.move_or_stay(id, next);
                }
                if let Some((update, cursor)) = held {
                    self.deliver(id, next, &update, cursor);
                }
            } else if !subscriber.ready {
                // The subscriber has been listening since before this upstream was opened, so its
                // initial state includes the subscriber's.
                let held = subscriber.held.take();
                self.attach(id, upstream);
                if let Some((update, cursor)) = held {
                    self.deliver(id, upstream, &update, cursor);
                }
                self.make_ready(id, position, cursor);
            } else {
                subscriber.pending_upstream = None;
                // A key that is missing in an initial state is gone, and the first upstream has not
                // delivered that yet. The subscriber stays there, to receive the deletion.
                let unclear = mentioned.as_ref().is_some_and(|mentioned| {
                    subscriber.live
                        && subscriber.delivered_through.is_some_and(|through| through <= position)
                        && subscriber.interest.key().is_some_and(|key| !mentioned.contains(key))
                });
                if unclear {
                    self.stay(id, upstream);
                } else {
                    self.move_or_stay(id, upstream);
                }
            }
        }
        self.replacement.take_if(|replacement| *replacement == upstream);
        self.tidy(upstream);
    }

    /// Delivers the caught-up marker, because the subscriber has the initial state.
    fn make_ready(&mut self, id: SubscriberId, position: u64, cursor: WatchCursor) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        if std::mem::replace(&mut subscriber.ready, true) {
            return;
        }
        subscriber.incarnation.get_or_insert(*cursor.incarnation());
        if subscriber.interest.key().is_some() {
            subscriber.delivered_through = subscriber.delivered_through.max(Some(position));
        }
        self.wakers.extend(subscriber.mailbox.push(KvUpdate::CaughtUp, cursor));
    }

    /// Makes an upstream that a subscriber listens to its only one.
    fn attach(&mut self, id: SubscriberId, upstream: UpstreamId) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let interest = subscriber.interest.clone();
        let previous = subscriber.upstream.replace(upstream);
        subscriber.pending_upstream = None;
        // The old upstream may not be open yet.
        self.wakers.extend(subscriber.mailbox.open());
        if let Some(to) = self.upstreams.get(&upstream) {
            subscriber.mailbox.relink(&to.link);
        }
        let position = previous.and_then(|id| self.upstreams.get(&id)).map(Upstream::position);
        match previous {
            Some(previous) => {
                // The old upstream, if any of its updates has arrived, has delivered all updates up
                // to its position.
                if subscriber.ready && interest.key().is_some() {
                    subscriber.delivered_through = subscriber.delivered_through.max(position);
                }
                self.detach(id, &interest, previous);
            }
            None => self.stop_waiting(id, &interest),
        }
    }

    /// Makes `next`, to which the subscriber has been listening, its only upstream. Leaves the
    /// subscriber at the old one if `next` is not sound or belongs to another store.
    fn move_or_stay(&mut self, id: SubscriberId, next: UpstreamId) {
        let incarnation = self.subscribers.get(&id).and_then(|subscriber| subscriber.incarnation);
        match self.upstreams.get(&next) {
            Some(upstream) if upstream.is_sound() && upstream.incarnation() == incarnation => {
                self.attach(id, next)
            }
            _ => self.stay(id, next),
        }
    }

    /// Leaves a subscriber at its upstream, which then stays too.
    fn stay(&mut self, id: SubscriberId, next: UpstreamId) {
        let Some(subscriber) = self.subscribers.get(&id) else { return };
        let (interest, upstream) = (subscriber.interest.clone(), subscriber.upstream);
        self.detach(id, &interest, next);
        if self.replacement == Some(next)
            && let Some(upstream) = upstream.and_then(|id| self.upstreams.get_mut(&id))
        {
            upstream.stays = true;
        }
    }

    fn detach(&mut self, id: SubscriberId, interest: &Interest, upstream: UpstreamId) {
        let Some(upstream) = self.upstreams.get_mut(&upstream) else { return };
        let audience = upstream.audience(interest);
        audience.remove(&id);
        if audience.is_empty()
            && let Interest::Key(key) = interest
        {
            upstream.keys.remove(key);
        }
    }

    fn stop_waiting(&mut self, id: SubscriberId, interest: &Interest) {
        if let Some(waiting) = self.waiting.get_mut(interest) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.waiting.remove(interest);
                self.drop_stale_turns();
            }
        }
    }

    /// Bounds the number of turns by the number of waiting interests. While openings get no answer,
    /// no turn is used, and each retry of a subscriber would add one.
    fn drop_stale_turns(&mut self) {
        if self.turns.len() > 2 * self.waiting.len() + MOST_OPENINGS {
            let mut kept = HashSet::with_capacity(self.waiting.len());
            self.turns.retain(|turn| self.waiting.contains_key(turn) && kept.insert(turn.clone()));
        }
    }

    fn forget(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let subscriber = self.subscribers.remove(&id)?;
        for upstream in subscriber.upstream.into_iter().chain(subscriber.pending_upstream) {
            self.detach(id, &subscriber.interest, upstream);
        }
        if self.reading.remove(&id).is_none() && subscriber.upstream.is_none() {
            self.stop_waiting(id, &subscriber.interest);
        }
        Some(subscriber)
    }

    /// Ends a subscriber with an error.
    fn end_subscriber(&mut self, id: SubscriberId, error: &KvError) {
        let subscriber = self.forget(id);
        self.wakers.extend(subscriber.and_then(|subscriber| subscriber.mailbox.end(error)));
    }
}

/// Detaches a small value from the buffer of the network.
fn copy_small_value(update: &mut KvUpdate) {
    if let KvUpdate::Put(entry) | KvUpdate::Delete(entry) = update
        && entry.value.len() <= SMALL_VALUE
    {
        entry.value = bytes::Bytes::copy_from_slice(&entry.value);
    }
}
