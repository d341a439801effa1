//! Who is fed by what. Plain data: no task; what has to be done is told to whoever holds the lock.

#[cfg(test)]
mod check;
mod tidy;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;

use super::mailbox::Mailbox;
use super::scopes::covering;
use crate::store::{Deadline, Key, KvError, KvUpdate, WatchCursor, WatchLink, WatchScope};

pub(super) type FeedId = u64;
pub(super) type ReaderId = u64;

/// So many feeds are opened at a time. While they fail, one is.
const MOST_OPENINGS: usize = 16;

/// So many of them for the same interest, so that one that hangs does not hold up all who want that.
const MOST_ALIKE: usize = 2;

/// While more than so many keys wait for their turn, a feed of prefixes is opened for all of them besides.
const MANY_WAITING: usize = 1024;

/// Values up to this size are copied, so that a small one does not hold the buffer that it was read into.
const SMALL_VALUE: usize = 4096;

/// What a reader wants to know of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Interest {
    /// One key. Feeds of single keys are replaced by others as their number grows and shrinks.
    Key(Key),
    /// Everything in a scope, by a feed of exactly that.
    Scope(WatchScope),
}

/// A feed that is to be opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) feed: FeedId,
    pub(super) scope: WatchScope,
    /// Where it goes on, if that is possible.
    pub(super) from: Option<WatchCursor>,
    /// The latest of those who wait for it; none where nobody does.
    pub(super) deadline: Option<Deadline>,
    /// The last ones could not be opened: a moment later.
    pub(super) later: bool,
    /// Told when nobody needs it any more.
    pub(super) stop: Arc<Notify>,
}

/// What ended with a feed; for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It could not be opened, which is new.
    Trouble,
    /// The same as before, or nobody was there.
    Nothing,
    /// So many readers have to ask again.
    Readers(usize),
}

#[derive(Debug)]
struct Feed {
    scope: WatchScope,
    /// Whether its readers want single keys.
    of_keys: bool,
    phase: Phase,
    /// Its readers have been told of everything up to here.
    cursor: Option<WatchCursor>,
    link: WatchLink,
    /// Some of its readers could not be taken over by another.
    stays: bool,
    keys: HashMap<Key, HashSet<ReaderId>>,
    whole: HashSet<ReaderId>,
    stop: Arc<Notify>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The state comes: of these keys something has, as far as a reader wants to know. None where it goes on from a
    /// cursor, so that there is no state.
    Syncing(Option<HashSet<Key>>),
    Current,
}

#[derive(Debug)]
struct Reader {
    interest: Interest,
    deadline: Deadline,
    mailbox: Arc<Mailbox>,
    /// The feed whose state it gets and whose link it shows; none while it waits for its turn.
    home: Option<FeedId>,
    /// A second feed, which is to become its home.
    next: Option<FeedId>,
    /// What the second feed brought before the state had come from home: the newest.
    held: Option<(KvUpdate, WatchCursor)>,
    /// Whether it has its state.
    ready: bool,
    incarnation: Option<[u8; 16]>,
    /// What is not beyond this it has been told.
    floor: Option<u64>,
    /// Whether the last that it was told is a value. Of single keys only.
    live: bool,
    /// A feed that was opened after this one began to wait, while none could be.
    probe: Option<FeedId>,
}

/// The feeds and the readers of one hub.
#[derive(Debug, Default)]
pub(super) struct Book {
    feeds: HashMap<FeedId, Feed>,
    readers: HashMap<ReaderId, Reader>,
    ids: u64,
    /// Who waits, and whose turn it is.
    waiting: HashMap<Interest, HashSet<ReaderId>>,
    turns: VecDeque<Interest>,
    /// The feeds that are being opened for those who waited.
    opening: HashMap<FeedId, Interest>,
    /// Whether the last one could not be opened.
    failing: bool,
    /// The feed that is to take over the readers of others.
    replacement: Option<FeedId>,
    due: Vec<Opening>,
    wakers: Vec<Waker>,
    /// Why nothing is opened any more.
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

impl Feed {
    fn is_current(&self) -> bool {
        self.phase == Phase::Current
    }

    fn position(&self) -> u64 {
        self.cursor.map_or(0, |cursor| cursor.position())
    }

    fn incarnation(&self) -> Option<[u8; 16]> {
        self.cursor.map(|cursor| *cursor.incarnation())
    }

    /// Whether others can be moved to it: it has caught up, and hears from the store.
    fn is_sound(&self) -> bool {
        self.is_current() && self.link.is_up()
    }

    /// Its readers of an interest.
    fn audience(&mut self, interest: &Interest) -> &mut HashSet<ReaderId> {
        match interest {
            Interest::Key(key) => self.keys.entry(key.clone()).or_default(),
            Interest::Scope(_) => &mut self.whole,
        }
    }

    fn everybody(&self) -> Vec<ReaderId> {
        self.keys.values().flatten().chain(&self.whole).copied().collect()
    }

    fn is_deserted(&self) -> bool {
        self.keys.is_empty() && self.whole.is_empty()
    }

    fn is_exact(&self) -> bool {
        matches!(self.scope, WatchScope::Key(_) | WatchScope::Keys(_))
    }
}

impl Book {
    /// What is to be done now that the lock is given back.
    pub(super) fn take_due(&mut self) -> (Vec<Waker>, Vec<Opening>) {
        (std::mem::take(&mut self.wakers), std::mem::take(&mut self.due))
    }

    pub(super) fn join(
        &mut self,
        interest: Interest,
        deadline: Deadline,
        mailbox: Arc<Mailbox>,
    ) -> ReaderId {
        let id = self.new_id();
        if let Some(error) = &self.closed {
            self.wakers.extend(mailbox.end(error));
            return id;
        }
        // A feed that has this key already: it will be the home, so that the one which brings the state can end. It is
        // listened to from now on, since that one begins later.
        let next = interest.key().and_then(|key| {
            let covers = |feed: &Feed| feed.of_keys && feed.is_sound() && feed.scope.matches(key);
            self.feeds.iter().find(|(_, feed)| covers(feed)).map(|(id, _)| *id)
        });
        let reader = Reader {
            interest: interest.clone(),
            deadline,
            mailbox,
            home: None,
            next: None,
            held: None,
            ready: false,
            incarnation: None,
            floor: None,
            live: false,
            probe: None,
        };
        self.readers.insert(id, reader);
        if let Some(next) = next {
            self.listen(id, next);
        }
        self.wait(id, interest);
        self.open_waiting();
        id
    }

    /// The opening begins: who waits by now will have been heard by the store.
    pub(super) fn begin(&mut self, feed: FeedId) {
        if self.failing && self.opening.contains_key(&feed) {
            for id in self.waiting.values().flatten() {
                if let Some(reader) = self.readers.get_mut(id) {
                    reader.probe = Some(feed);
                }
            }
        }
    }

    /// The feed is there, from where it was to go on or from the state.
    pub(super) fn opened(&mut self, feed: FeedId, link: WatchLink, resumed: bool) {
        let Some(opened) = self.feeds.get_mut(&feed) else { return };
        opened.phase = Phase::Syncing((!resumed).then(HashSet::new));
        opened.link = link;
        for id in opened.everybody() {
            let Some(reader) = self.readers.get(&id).filter(|reader| reader.home == Some(feed))
            else {
                continue;
            };
            reader.mailbox.relink(&opened.link);
            self.wakers.extend(reader.mailbox.open());
        }
        self.failing = false;
        self.opening.remove(&feed);
        self.open_waiting();
    }

    pub(super) fn relink(&mut self, feed: FeedId, link: &WatchLink) {
        let Some(changed) = self.feeds.get_mut(&feed) else { return };
        changed.link.clone_from(link);
        for id in changed.everybody() {
            if let Some(reader) = self.readers.get(&id).filter(|reader| reader.home == Some(feed)) {
                reader.mailbox.relink(link);
            }
        }
        if link.is_up() {
            self.tidy(feed);
        }
    }

    pub(super) fn receive(&mut self, feed: FeedId, mut update: KvUpdate, cursor: WatchCursor) {
        let Some(from) = self.feeds.get_mut(&feed) else { return };
        if from.cursor.is_none_or(|known| known.position() <= cursor.position()) {
            from.cursor = Some(cursor);
        }
        let (KvUpdate::Put(entry) | KvUpdate::Delete(entry)) = &mut update else {
            self.caught_up(feed, cursor);
            return;
        };
        let to_key = from.keys.get(&entry.key);
        if let (Phase::Syncing(Some(mentioned)), Some(_)) = (&mut from.phase, to_key) {
            mentioned.insert(entry.key.clone());
        }
        let readers: Vec<_> = to_key.into_iter().flatten().chain(&from.whole).copied().collect();
        if !readers.is_empty() && entry.value.len() <= SMALL_VALUE {
            entry.value = bytes::Bytes::copy_from_slice(&entry.value);
        }
        for reader in readers {
            self.tell(reader, feed, &update, cursor);
        }
    }

    /// The feed has ended, or could not be opened. Those whose home it was are told why, but for those who have the time
    /// to wait for another.
    pub(super) fn end(&mut self, feed: FeedId, error: &KvError) -> Ended {
        let Some(ended) = self.feeds.remove(&feed) else { return Ended::Nothing };
        self.replacement.take_if(|replacement| *replacement == feed);
        let was_opening = self.opening.remove(&feed).is_some();
        let is_new = was_opening && !self.failing;
        self.failing |= was_opening;
        let mut told = 0;
        for id in ended.everybody() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.home != Some(feed) {
                (reader.next, reader.held) = (None, None);
            } else if was_opening && error.is_retryable() && !reader.deadline.remaining().is_zero()
            {
                reader.home = None;
                let interest = reader.interest.clone();
                self.wait(id, interest);
            } else {
                self.end_reader(id, error);
                told += 1;
            }
        }
        if was_opening && !error.is_retryable() {
            let probed = |id: &ReaderId| {
                self.readers.get(id).is_some_and(|reader| reader.probe == Some(feed))
            };
            let probed: Vec<_> = self.waiting.values().flatten().copied().filter(probed).collect();
            for id in probed {
                self.end_reader(id, error);
            }
        }
        self.sweep();
        self.open_waiting();
        match told {
            _ if is_new => Ended::Trouble,
            _ if was_opening => Ended::Nothing,
            0 => Ended::Nothing,
            told => Ended::Readers(told),
        }
    }

    /// Nothing is driven any more: everybody is told why, and so is whoever comes.
    pub(super) fn close(&mut self, error: KvError) {
        for reader in std::mem::take(&mut self.readers).into_values() {
            self.wakers.extend(reader.mailbox.end(&error));
        }
        for feed in self.feeds.values() {
            feed.stop.notify_one();
        }
        let wakers = std::mem::take(&mut self.wakers);
        *self = Self { ids: self.ids, wakers, closed: Some(error), ..Self::default() };
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(super) fn leave(&mut self, reader: ReaderId) {
        self.forget(reader);
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
    ) -> FeedId {
        let id = self.new_id();
        let stop = Arc::new(Notify::new());
        let feed = Feed {
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
        self.feeds.insert(id, feed);
        self.due.push(Opening { feed: id, scope, from, deadline, later: self.failing, stop });
        id
    }

    fn wait(&mut self, id: ReaderId, interest: Interest) {
        let waiting = self.waiting.entry(interest.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(interest);
        }
        waiting.insert(id);
    }

    /// Opens feeds for those who wait, each for all of one interest. Who comes while it is opened is for the next, since
    /// it may have begun already.
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
            let Some(readers) = self.waiting.remove(&interest) else { continue };
            let deadlines = readers.iter().filter_map(|id| Some(self.readers.get(id)?.deadline));
            let deadline = deadlines.max_by_key(Deadline::instant);
            let feed = self.register(interest.scope(), interest.key().is_some(), None, deadline);
            for id in &readers {
                if let Some(reader) = self.readers.get_mut(id) {
                    (reader.home, reader.probe) = (Some(feed), None);
                }
            }
            if let Some(feed) = self.feeds.get_mut(&feed) {
                feed.audience(&interest).extend(readers);
            }
            self.opening.insert(feed, interest);
        }
        self.open_for_many();
    }

    /// Each key by itself would take too long: a feed that brings the state of all.
    fn open_for_many(&mut self) {
        if self.waiting.len() <= MANY_WAITING || self.failing || self.replacement.is_some() {
            return;
        }
        let keys: Vec<_> =
            self.waiting.keys().filter_map(|interest| interest.key().cloned()).collect();
        let waiting = self.waiting.iter().filter(|(interest, _)| interest.key().is_some());
        let readers: Vec<_> = waiting.flat_map(|(_, readers)| readers).copied().collect();
        let feed = self.register(covering(keys), true, None, None);
        self.replacement = Some(feed);
        for id in readers {
            // What they listened to is not needed: this has what that will bring, and the state.
            if let Some(reader) = self.readers.get_mut(&id) {
                reader.held = None;
                let interest = reader.interest.clone();
                if let Some(next) = reader.next.take() {
                    self.detach(id, &interest, next);
                }
            }
            self.listen(id, feed);
        }
    }

    /// Lets a reader listen to a second feed.
    fn listen(&mut self, id: ReaderId, feed: FeedId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let Some(to) = self.feeds.get_mut(&feed) else { return };
        reader.next = Some(feed);
        to.audience(&reader.interest).insert(id);
    }

    fn tell(&mut self, id: ReaderId, feed: FeedId, update: &KvUpdate, cursor: WatchCursor) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        if reader.home == Some(feed) {
            reader.incarnation.get_or_insert(*cursor.incarnation());
        } else if !reader.ready {
            reader.held = Some((update.clone(), cursor));
            return;
        }
        let is_new = reader.floor.is_none_or(|floor| cursor.position() > floor);
        if !is_new || reader.incarnation != Some(*cursor.incarnation()) {
            return;
        }
        if reader.interest.key().is_some() {
            reader.floor = Some(cursor.position());
            reader.live = matches!(update, KvUpdate::Put(_));
        }
        self.wakers.extend(reader.mailbox.push(update.clone(), cursor));
    }

    fn caught_up(&mut self, feed: FeedId, cursor: WatchCursor) {
        let Some(current) = self.feeds.get_mut(&feed) else { return };
        let Phase::Syncing(mentioned) = std::mem::replace(&mut current.phase, Phase::Current)
        else {
            return;
        };
        let position = current.position();
        for id in current.everybody() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.home == Some(feed) {
                self.make_ready(id, position, cursor);
                let Some(reader) = self.readers.get_mut(&id) else { continue };
                let held = reader.held.take();
                let Some(next) = reader.next else { continue };
                // One that is not there yet will take the reader when it is.
                if self.feeds.get(&next).is_some_and(Feed::is_current) {
                    reader.next = None;
                    self.move_or_stay(id, next);
                }
                if let Some((update, cursor)) = held {
                    self.tell(id, next, &update, cursor);
                }
            } else if !reader.ready {
                // It has been listening since before this was opened, so that this has its state as well.
                let held = reader.held.take();
                self.settle_in(id, feed);
                if let Some((update, cursor)) = held {
                    self.tell(id, feed, &update, cursor);
                }
                self.make_ready(id, position, cursor);
            } else {
                reader.next = None;
                // What a state has not is gone, and home has not said so yet. It will know what to do.
                let unclear = mentioned.as_ref().is_some_and(|mentioned| {
                    reader.live
                        && reader.floor.is_some_and(|floor| floor <= position)
                        && reader.interest.key().is_some_and(|key| !mentioned.contains(key))
                });
                if unclear {
                    self.stay(id, feed);
                } else {
                    self.move_or_stay(id, feed);
                }
            }
        }
        self.replacement.take_if(|replacement| *replacement == feed);
        self.tidy(feed);
    }

    /// The reader has the state: the marker.
    fn make_ready(&mut self, id: ReaderId, position: u64, cursor: WatchCursor) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        if std::mem::replace(&mut reader.ready, true) {
            return;
        }
        reader.incarnation.get_or_insert(*cursor.incarnation());
        if reader.interest.key().is_some() {
            reader.floor = reader.floor.max(Some(position));
        }
        self.wakers.extend(reader.mailbox.push(KvUpdate::CaughtUp, cursor));
    }

    /// Makes a feed that a reader listens to its home, whatever that was.
    fn settle_in(&mut self, id: ReaderId, feed: FeedId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let interest = reader.interest.clone();
        let home = reader.home.replace(feed);
        reader.next = None;
        // The old one may still have to be opened.
        self.wakers.extend(reader.mailbox.open());
        if let Some(to) = self.feeds.get(&feed) {
            reader.mailbox.relink(&to.link);
        }
        let position = home.and_then(|home| self.feeds.get(&home)).map(Feed::position);
        match home {
            Some(home) => {
                // All up to there it has been told by the old one, if that had told it anything.
                if reader.ready && interest.key().is_some() {
                    reader.floor = reader.floor.max(position);
                }
                self.detach(id, &interest, home);
            }
            None => self.stop_waiting(id, &interest),
        }
    }

    /// Makes `next` the home of a reader that has been listening to it, if it is sound and of the same store.
    fn move_or_stay(&mut self, id: ReaderId, next: FeedId) {
        let incarnation = self.readers.get(&id).and_then(|reader| reader.incarnation);
        match self.feeds.get(&next) {
            Some(feed) if feed.is_sound() && feed.incarnation() == incarnation => {
                self.settle_in(id, next)
            }
            _ => self.stay(id, next),
        }
    }

    /// Lets a reader stay where it is, and its feed with it.
    fn stay(&mut self, id: ReaderId, next: FeedId) {
        let Some(reader) = self.readers.get(&id) else { return };
        let (interest, home) = (reader.interest.clone(), reader.home);
        self.detach(id, &interest, next);
        if self.replacement == Some(next)
            && let Some(home) = home.and_then(|home| self.feeds.get_mut(&home))
        {
            home.stays = true;
        }
    }

    fn detach(&mut self, id: ReaderId, interest: &Interest, feed: FeedId) {
        let Some(feed) = self.feeds.get_mut(&feed) else { return };
        let audience = feed.audience(interest);
        audience.remove(&id);
        if audience.is_empty()
            && let Interest::Key(key) = interest
        {
            feed.keys.remove(key);
        }
    }

    fn stop_waiting(&mut self, id: ReaderId, interest: &Interest) {
        if let Some(waiting) = self.waiting.get_mut(interest) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.waiting.remove(interest);
            }
        }
    }

    fn forget(&mut self, id: ReaderId) -> Option<Reader> {
        let reader = self.readers.remove(&id)?;
        for feed in reader.home.into_iter().chain(reader.next) {
            self.detach(id, &reader.interest, feed);
        }
        if reader.home.is_none() {
            self.stop_waiting(id, &reader.interest);
        }
        Some(reader)
    }

    /// Tells a reader that nothing will come any more.
    fn end_reader(&mut self, id: ReaderId, error: &KvError) {
        let reader = self.forget(id);
        self.wakers.extend(reader.and_then(|reader| reader.mailbox.end(error)));
    }
}
