//! Who is fed by what. Plain data: no task, no clock; what has to be done is told to whoever holds the lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;

use super::mailbox::Mailbox;
use super::scopes::{EXACT_KEYS, covering};
use crate::store::{Deadline, Key, KvError, KvUpdate, WatchCursor, WatchLink, WatchScope};

pub(super) type FeedId = u64;
pub(super) type ReaderId = u64;

/// So many waiting readers of single keys are given prefixes at once.
const MANY_WAITING: usize = 256;

/// With fewer readers' keys than this a feed is small: two of them fit into one.
const SMALL: usize = EXACT_KEYS / 2;

/// More feeds than this become one: of small ones, and of those that are not.
const MOST_FEEDS: usize = 4;

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
    /// The latest of those who wait for it; none where nobody does.
    pub(super) deadline: Option<Deadline>,
    /// Told when nobody needs it any more.
    pub(super) stop: Arc<Notify>,
}

#[derive(Debug)]
struct Feed {
    scope: WatchScope,
    /// Whether its readers want single keys.
    of_keys: bool,
    phase: Phase,
    incarnation: Option<[u8; 16]>,
    /// Its readers have been told of everything up to here.
    position: u64,
    link: WatchLink,
    keys: HashMap<Key, Vec<ReaderId>>,
    whole: Vec<ReaderId>,
    stop: Arc<Notify>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The state comes: of these keys something has, as far as a reader wants to know.
    Syncing(HashSet<Key>),
    Current,
}

#[derive(Debug)]
struct Reader {
    interest: Interest,
    deadline: Deadline,
    mailbox: Arc<Mailbox>,
    /// The feed whose state it gets and whose link it shows; none while it waits for that to be opened.
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
}

/// The feeds and the readers of one hub.
#[derive(Debug, Default)]
pub(super) struct Book {
    feeds: HashMap<FeedId, Feed>,
    readers: HashMap<ReaderId, Reader>,
    ids: u64,
    waiting: HashMap<Class, VecDeque<ReaderId>>,
    /// The feed of each class that is being opened for those who waited.
    opening: HashMap<Class, FeedId>,
    /// The feed that is to replace others.
    replacement: Option<FeedId>,
    due: Vec<Opening>,
    wakers: Vec<Waker>,
}

/// Those who can be fed by the same feed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Class {
    Keys,
    Scope(WatchScope),
}

impl Interest {
    fn class(&self) -> Class {
        match self {
            Self::Key(_) => Class::Keys,
            Self::Scope(scope) => Class::Scope(scope.clone()),
        }
    }

    fn key(&self) -> Option<&Key> {
        match self {
            Self::Key(key) => Some(key),
            Self::Scope(_) => None,
        }
    }
}

impl Feed {
    fn is_current(&self) -> bool {
        self.phase == Phase::Current
    }

    /// Its readers of an interest.
    fn audience(&mut self, interest: &Interest) -> &mut Vec<ReaderId> {
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

    pub(super) fn join(&mut self, interest: Interest, deadline: Deadline, mailbox: Arc<Mailbox>) -> ReaderId {
        let id = self.new_id();
        // A feed that has this key already: it will be the home, so that the one which brings the state can end. It is
        // listened to from now on, since that one begins later.
        let next = interest.key().and_then(|key| {
            let covers = |feed: &Feed| feed.of_keys && feed.is_current() && feed.scope.matches(key);
            self.feeds.iter().find(|(_, feed)| covers(feed)).map(|(id, _)| *id)
        });
        if let Some(feed) = next.and_then(|next| self.feeds.get_mut(&next)) {
            feed.audience(&interest).push(id);
        }
        let class = interest.class();
        let reader = Reader {
            interest,
            deadline,
            mailbox,
            home: None,
            next,
            held: None,
            ready: false,
            incarnation: None,
            floor: None,
            live: false,
        };
        self.readers.insert(id, reader);
        self.waiting.entry(class.clone()).or_default().push_back(id);
        self.open_for(&class);
        id
    }

    /// The feed is there: those who have come meanwhile get theirs.
    pub(super) fn opened(&mut self, feed: FeedId, link: WatchLink) {
        let Some(opened) = self.feeds.get_mut(&feed) else { return };
        opened.phase = Phase::Syncing(HashSet::new());
        opened.link = link;
        for reader in opened.everybody() {
            let Some(reader) = self.readers.get_mut(&reader).filter(|reader| reader.home == Some(feed))
            else {
                continue;
            };
            if let Some(feed) = self.feeds.get(&feed) {
                reader.mailbox.relink(&feed.link);
            }
            self.wakers.extend(reader.mailbox.open());
        }
        self.opening_ended(feed);
    }

    pub(super) fn relink(&mut self, feed: FeedId, link: &WatchLink) {
        let Some(changed) = self.feeds.get_mut(&feed) else { return };
        changed.link.clone_from(link);
        for reader in changed.everybody() {
            if let Some(reader) = self.readers.get(&reader).filter(|reader| reader.home == Some(feed)) {
                reader.mailbox.relink(link);
            }
        }
    }

    pub(super) fn receive(&mut self, feed: FeedId, mut update: KvUpdate, cursor: WatchCursor) {
        let Some(from) = self.feeds.get_mut(&feed) else { return };
        from.incarnation = Some(*cursor.incarnation());
        from.position = from.position.max(cursor.position());
        let (KvUpdate::Put(entry) | KvUpdate::Delete(entry)) = &mut update else {
            self.caught_up(feed, cursor);
            return;
        };
        let to_key = from.keys.get(&entry.key);
        if let (Phase::Syncing(mentioned), Some(_)) = (&mut from.phase, to_key) {
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

    /// The feed has ended: those whose home it was are told why.
    pub(super) fn end(&mut self, feed: FeedId, error: &KvError) {
        let Some(ended) = self.feeds.remove(&feed) else { return };
        for id in ended.everybody() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.home == Some(feed) {
                self.end_reader(id, error);
            } else {
                reader.next = None;
                reader.held = None;
            }
        }
        self.sweep();
        self.replacement.take_if(|replacement| *replacement == feed);
        self.opening_ended(feed);
    }

    pub(super) fn leave(&mut self, reader: ReaderId) {
        let Some(left) = self.readers.remove(&reader) else { return };
        for feed in left.home.into_iter().chain(left.next) {
            self.detach(reader, &left.interest, feed);
        }
        if left.home.is_none()
            && let Some(waiting) = self.waiting.get_mut(&left.interest.class())
        {
            waiting.retain(|waiting| *waiting != reader);
        }
        self.sweep();
        self.replace();
    }

    #[cfg(test)]
    pub(super) fn has(&self, feed: FeedId) -> bool {
        self.feeds.contains_key(&feed)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.feeds.is_empty()
            && self.readers.is_empty()
            && self.waiting.is_empty()
            && self.opening.is_empty()
            && self.replacement.is_none()
    }

    /// Panics where something is kept that nobody needs, or points to what is not there.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for id in self.waiting.values().flatten() {
            assert!(self.readers.contains_key(id), "reader {id} waits and is gone");
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
        for reader in self.readers.values() {
            assert!(
                reader.home.into_iter().chain(reader.next).all(|feed| self.feeds.contains_key(&feed)),
                "{reader:?}"
            );
        }
        assert!(self.opening.values().all(|feed| self.feeds.contains_key(feed)), "{:?}", self.opening);
    }

    fn new_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn register(&mut self, scope: WatchScope, of_keys: bool, deadline: Option<Deadline>) -> FeedId {
        let id = self.new_id();
        let stop = Arc::new(Notify::new());
        let feed = Feed {
            scope: scope.clone(),
            of_keys,
            phase: Phase::Opening,
            incarnation: None,
            position: 0,
            link: WatchLink::Up,
            keys: HashMap::new(),
            whole: Vec::new(),
            stop: Arc::clone(&stop),
        };
        self.feeds.insert(id, feed);
        self.due.push(Opening { feed: id, scope, deadline, stop });
        id
    }

    /// Opens a feed for those of a class who wait, unless one is being opened: then they are its next.
    fn open_for(&mut self, class: &Class) {
        if self.opening.contains_key(class) {
            return;
        }
        let Some(waiting) = self.waiting.get_mut(class) else { return };
        let taken: Vec<_> = match class {
            Class::Keys if waiting.len() <= MANY_WAITING => {
                waiting.drain(..waiting.len().min(EXACT_KEYS)).collect()
            }
            _ => waiting.drain(..).collect(),
        };
        if waiting.is_empty() {
            self.waiting.remove(class);
        }
        if taken.is_empty() {
            return;
        }
        let readers = || taken.iter().filter_map(|id| self.readers.get(id));
        let deadline = readers().map(|reader| reader.deadline).max_by_key(Deadline::instant);
        let scope = match class {
            Class::Scope(scope) => scope.clone(),
            Class::Keys => {
                let keys: HashSet<_> =
                    readers().filter_map(|reader| reader.interest.key().cloned()).collect();
                covering(keys.into_iter().collect())
            }
        };
        let feed = self.register(scope, *class == Class::Keys, deadline);
        self.opening.insert(class.clone(), feed);
        for id in taken {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            reader.home = Some(feed);
            if let Some(feed) = self.feeds.get_mut(&feed) {
                feed.audience(&reader.interest).push(id);
            }
        }
    }

    fn opening_ended(&mut self, feed: FeedId) {
        let class =
            self.opening.iter().find(|(_, opening)| **opening == feed).map(|(class, _)| class.clone());
        if let Some(class) = class {
            self.opening.remove(&class);
            self.open_for(&class);
        }
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
        let Phase::Syncing(mentioned) = std::mem::replace(&mut current.phase, Phase::Current) else { return };
        let position = current.position;
        for id in current.everybody() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.home == Some(feed) && !reader.ready {
                reader.ready = true;
                reader.incarnation.get_or_insert(*cursor.incarnation());
                self.wakers.extend(reader.mailbox.push(KvUpdate::CaughtUp, cursor));
                let held = reader.held.take();
                if let Some(next) = reader.next.take() {
                    self.move_or_stay(id, next);
                    if let Some((update, cursor)) = held {
                        self.tell(id, next, &update, cursor);
                    }
                }
            } else if reader.next == Some(feed) {
                reader.next = None;
                let vanished = reader.live
                    && reader.incarnation == Some(*cursor.incarnation())
                    && reader.floor.is_some_and(|floor| floor <= position)
                    && reader.interest.key().is_some_and(|key| !mentioned.contains(key));
                if vanished {
                    self.end_reader(id, &vanished_error());
                } else {
                    self.move_or_stay(id, feed);
                }
            }
        }
        self.replacement.take_if(|replacement| *replacement == feed);
        self.unite(feed);
        self.sweep();
        self.replace();
    }

    /// Makes `next` the home of a reader that has been listening to it, if they are of the same store.
    fn move_or_stay(&mut self, id: ReaderId, next: FeedId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let home = reader.home;
        let interest = reader.interest.clone();
        match self.feeds.get(&next) {
            Some(feed) if feed.incarnation == reader.incarnation => {
                reader.home = Some(next);
                reader.mailbox.relink(&feed.link);
                if let Some(home) = home {
                    self.detach(id, &interest, home);
                }
            }
            _ => self.detach(id, &interest, next),
        }
    }

    fn detach(&mut self, id: ReaderId, interest: &Interest, feed: FeedId) {
        let Some(feed) = self.feeds.get_mut(&feed) else { return };
        let audience = feed.audience(interest);
        audience.retain(|reader| *reader != id);
        if audience.is_empty()
            && let Interest::Key(key) = interest
        {
            feed.keys.remove(key);
        }
    }

    /// Tells a reader that nothing will come any more.
    fn end_reader(&mut self, id: ReaderId, error: &KvError) {
        let Some(reader) = self.readers.remove(&id) else { return };
        self.wakers.extend(reader.mailbox.end(error));
        for feed in reader.home.into_iter().chain(reader.next) {
            self.detach(id, &reader.interest, feed);
        }
    }

    /// Two feeds of the same prefixes become one. Whoever has been told more goes to the one that is behind, and does
    /// not hear from it what it knows already: so nothing is missing, whatever is on its way.
    fn unite(&mut self, feed: FeedId) {
        let Some(new) = self.feeds.get(&feed).filter(|new| !new.of_keys && new.link.is_up()) else { return };
        let same = |(id, other): &(&FeedId, &Feed)| {
            **id != feed
                && !other.of_keys
                && other.is_current()
                && other.link.is_up()
                && other.scope == new.scope
                && other.incarnation == new.incarnation
        };
        let Some((other, found)) = self.feeds.iter().find(same).map(|(id, found)| (*id, found)) else {
            return;
        };
        let (behind, ahead) = if found.position <= new.position { (other, feed) } else { (feed, other) };
        let Some(ahead) = self.feeds.get_mut(&ahead) else { return };
        let (moving, position) = (std::mem::take(&mut ahead.whole), ahead.position);
        for id in &moving {
            let Some(reader) = self.readers.get_mut(id) else { continue };
            reader.home = Some(behind);
            reader.floor = reader.floor.max(Some(position));
        }
        if let Some(behind) = self.feeds.get_mut(&behind) {
            behind.whole.extend(moving);
        }
    }

    /// Ends what nobody listens to.
    fn sweep(&mut self) {
        let deserted: Vec<_> =
            self.feeds.iter().filter(|(_, feed)| feed.is_deserted()).map(|(id, _)| *id).collect();
        for id in deserted {
            if let Some(feed) = self.feeds.remove(&id) {
                feed.stop.notify_one();
            }
            self.replacement.take_if(|replacement| *replacement == id);
            self.opening_ended(id);
        }
    }

    /// Where there are more feeds of single keys than there have to be, opens one in the place of some.
    fn replace(&mut self) {
        if self.replacement.is_some() {
            return;
        }
        let chosen = self.superfluous();
        if chosen.is_empty() {
            return;
        }
        let mut readers = Vec::new();
        for feed in chosen.iter().filter_map(|id| self.feeds.get(id)) {
            readers.extend(feed.keys.values().flatten().copied());
        }
        // Those who listen to a feed that is not their home yet go on as they are.
        let moves =
            |reader: &Reader| reader.next.is_none() && reader.home.is_some_and(|home| chosen.contains(&home));
        readers.retain(|id| self.readers.get(id).is_some_and(moves));
        let keys: HashSet<_> =
            readers.iter().filter_map(|id| self.readers.get(id)?.interest.key().cloned()).collect();
        if keys.is_empty() {
            return;
        }
        let feed = self.register(covering(keys.into_iter().collect()), true, None);
        self.replacement = Some(feed);
        for id in readers {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            reader.next = Some(feed);
            if let Some(feed) = self.feeds.get_mut(&feed) {
                feed.audience(&reader.interest).push(id);
            }
        }
    }

    /// Feeds of single keys that one could replace.
    fn superfluous(&self) -> Vec<FeedId> {
        let current = self.feeds.iter().filter(|(_, feed)| feed.of_keys && feed.is_current());
        let mut small = Vec::new();
        let mut full = Vec::new();
        let mut wide = Vec::new();
        for (id, feed) in current {
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

/// Values up to this size are copied, so that a small one does not hold the buffer that it was read into.
const SMALL_VALUE: usize = 4096;

fn vanished_error() -> KvError {
    KvError::Unavailable {
        operation: super::OPERATION,
        reason: "the key is no longer there, and nothing told how it went".to_owned(),
        source: None,
    }
}
