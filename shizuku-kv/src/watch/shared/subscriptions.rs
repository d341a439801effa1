//! The table of upstreams and their readers. It is plain data without a task. The caller that holds
//! the mutex performs the due actions.

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
use crate::store::{Deadline, Key, KvError, KvUpdate, WatchCursor, WatchLink, WatchScope};

pub(super) type UpstreamId = u64;
pub(super) type ReaderId = u64;

/// Maximum number of upstreams that are opened at a time. While openings fail, it is one.
const MOST_OPENINGS: usize = 16;

/// Maximum number of openings for the same interest, so that one that hangs does not hold up all
/// its readers.
const MOST_ALIKE: usize = 2;

/// Number of waiting keys beyond which an additional upstream of prefixes is opened for all of
/// them.
const MANY_WAITING: usize = 1024;

/// Time after a denied replacement in which no other one is requested.
const DENIED: Duration = Duration::from_secs(60);

/// Values up to this size are copied, so that a small one does not hold the buffer that it was read
/// into.
const SMALL_VALUE: usize = 4096;

/// The keys that a reader follows.
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
    /// The latest deadline of its waiting readers. `None` if no reader waits for it.
    pub(super) deadline: Option<Deadline>,
    /// Whether to open it a moment later, because the last openings failed.
    pub(super) later: bool,
    /// Notified when no reader needs it any more.
    pub(super) stop: Arc<Notify>,
}

/// Consequence of an upstream's end; for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It could not be opened, for the first time.
    Trouble,
    /// It could not be opened again, or it had no readers.
    Nothing,
    /// This number of readers has to subscribe again.
    Readers(usize),
}

#[derive(Debug)]
struct Upstream {
    scope: WatchScope,
    /// Whether its readers follow single keys.
    of_keys: bool,
    phase: Phase,
    /// Position up to which its readers have received everything.
    cursor: Option<WatchCursor>,
    link: WatchLink,
    /// Whether some of its readers could not be moved to another upstream.
    stays: bool,
    keys: HashMap<Key, HashSet<ReaderId>>,
    whole: HashSet<ReaderId>,
    stop: Arc<Notify>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The initial state is arriving. The set has the keys of readers for which an entry has come.
    /// `None` if the upstream resumes from a cursor, so that no initial state comes.
    Syncing(Option<HashSet<Key>>),
    Current,
}

#[derive(Debug)]
struct Reader {
    interest: Interest,
    deadline: Deadline,
    mailbox: Arc<Mailbox>,
    /// The upstream that delivers its initial state and whose link it shows. `None` while it waits
    /// for its turn.
    upstream: Option<UpstreamId>,
    /// A second upstream, which is to replace the first.
    pending_upstream: Option<UpstreamId>,
    /// The newest update that the second upstream delivered before the first has delivered the
    /// initial state.
    held: Option<(KvUpdate, WatchCursor)>,
    /// Whether it has its initial state.
    ready: bool,
    incarnation: Option<[u8; 16]>,
    /// Highest position delivered to this reader; older updates are skipped.
    delivered_through: Option<u64>,
    /// Whether the last delivered update is a value. Used for single keys only.
    live: bool,
    /// The upstream whose opening began after this reader began to wait, while openings failed.
    probe: Option<UpstreamId>,
}

/// The upstreams and the readers of one hub.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    upstreams: HashMap<UpstreamId, Upstream>,
    readers: HashMap<ReaderId, Reader>,
    ids: u64,
    /// The waiting readers, and the interests in the order of their turns.
    waiting: HashMap<Interest, HashSet<ReaderId>>,
    turns: VecDeque<Interest>,
    /// The upstreams that are being opened for waiting readers.
    opening: HashMap<UpstreamId, Interest>,
    /// Whether the last opening failed.
    failing: bool,
    /// The upstream that is to take over the readers of others.
    replacement: Option<UpstreamId>,
    /// Time until which none is opened, because this user may not watch several keys at once. The
    /// permission can change under an open connection.
    no_replacement_until: Option<Instant>,
    due: Vec<Opening>,
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

    /// Returns whether others can be moved to it: it has caught up, and its link is up.
    fn is_sound(&self) -> bool {
        self.is_current() && self.link.is_up()
    }

    /// Returns its readers of an interest.
    fn audience(&mut self, interest: &Interest) -> &mut HashSet<ReaderId> {
        match interest {
            Interest::Key(key) => self.keys.entry(key.clone()).or_default(),
            Interest::Scope(_) => &mut self.whole,
        }
    }

    fn readers(&self) -> Vec<ReaderId> {
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
        // An upstream that covers this key already becomes the pending upstream, so that the one
        // that brings the initial state can end. The reader listens to it from now on, because the
        // other one begins later.
        let next = interest.key().and_then(|key| {
            let covers = |upstream: &Upstream| {
                upstream.of_keys && upstream.is_sound() && upstream.scope.matches(key)
            };
            self.upstreams.iter().find(|(_, upstream)| covers(upstream)).map(|(id, _)| *id)
        });
        let reader = Reader {
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
        self.readers.insert(id, reader);
        if let Some(next) = next {
            self.listen(id, next);
        }
        self.wait(id, interest);
        self.open_waiting();
        id
    }

    /// Notes that the opening begins. It also answers for the readers that wait by now.
    pub(super) fn begin(&mut self, upstream: UpstreamId) {
        if self.failing && self.opening.contains_key(&upstream) {
            for id in self.waiting.values().flatten() {
                if let Some(reader) = self.readers.get_mut(id) {
                    reader.probe = Some(upstream);
                }
            }
        }
    }

    /// Notes that the upstream is open, from its cursor or with the initial state.
    pub(super) fn opened(&mut self, upstream: UpstreamId, link: WatchLink, resumed: bool) {
        let Some(opened) = self.upstreams.get_mut(&upstream) else { return };
        opened.phase = Phase::Syncing((!resumed).then(HashSet::new));
        opened.link = link;
        for id in opened.readers() {
            let Some(reader) =
                self.readers.get(&id).filter(|reader| reader.upstream == Some(upstream))
            else {
                continue;
            };
            reader.mailbox.relink(&opened.link);
            self.wakers.extend(reader.mailbox.open());
        }
        self.failing = false;
        self.opening.remove(&upstream);
        self.open_waiting();
    }

    pub(super) fn relink(&mut self, upstream: UpstreamId, link: &WatchLink) {
        let Some(changed) = self.upstreams.get_mut(&upstream) else { return };
        changed.link.clone_from(link);
        for id in changed.readers() {
            if let Some(reader) =
                self.readers.get(&id).filter(|reader| reader.upstream == Some(upstream))
            {
                reader.mailbox.relink(link);
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
        let readers: Vec<_> = to_key.into_iter().flatten().chain(&from.whole).copied().collect();
        if !readers.is_empty() && entry.value.len() <= SMALL_VALUE {
            entry.value = bytes::Bytes::copy_from_slice(&entry.value);
        }
        for reader in readers {
            self.deliver(reader, upstream, &update, cursor);
        }
    }

    /// Ends an upstream, or an opening that failed. Its readers get the error, except for those
    /// that have the time to wait for another.
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
        for id in ended.readers() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.upstream != Some(upstream) {
                (reader.pending_upstream, reader.held) = (None, None);
            } else if was_opening && error.is_retryable() && !reader.deadline.remaining().is_zero()
            {
                reader.upstream = None;
                let interest = reader.interest.clone();
                self.wait(id, interest);
            } else {
                self.end_reader(id, error);
                count += 1;
            }
        }
        if was_opening && !error.is_retryable() {
            let probed = |id: &ReaderId| {
                self.readers.get(id).is_some_and(|reader| reader.probe == Some(upstream))
            };
            let probed: Vec<_> = self.waiting.values().flatten().copied().filter(probed).collect();
            for id in probed {
                self.end_reader(id, error);
            }
        }
        self.sweep();
        self.open_waiting();
        match count {
            _ if is_new => Ended::Trouble,
            _ if was_opening => Ended::Nothing,
            0 => Ended::Nothing,
            count => Ended::Readers(count),
        }
    }

    /// Ends all readers with the error, because no task drives the upstreams any more. Later
    /// readers get it too.
    pub(super) fn close(&mut self, error: KvError) {
        for reader in std::mem::take(&mut self.readers).into_values() {
            self.wakers.extend(reader.mailbox.end(&error));
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

    fn wait(&mut self, id: ReaderId, interest: Interest) {
        let waiting = self.waiting.entry(interest.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(interest);
        }
        waiting.insert(id);
    }

    /// Opens upstreams for waiting readers, each for all of one interest. A reader that comes
    /// during an opening waits for the next, because the opening may have begun already.
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
            let upstream =
                self.register(interest.scope(), interest.key().is_some(), None, deadline);
            for id in &readers {
                if let Some(reader) = self.readers.get_mut(id) {
                    (reader.upstream, reader.probe) = (Some(upstream), None);
                }
            }
            if let Some(upstream) = self.upstreams.get_mut(&upstream) {
                upstream.audience(&interest).extend(readers);
            }
            self.opening.insert(upstream, interest);
        }
        self.open_for_many();
    }

    /// Returns whether an upstream may be opened that takes over the readers of others.
    fn may_replace(&self) -> bool {
        self.replacement.is_none()
            && self.no_replacement_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Opens one upstream that brings the initial state of all waiting keys, because opening each
    /// by itself would take too long.
    fn open_for_many(&mut self) {
        if self.waiting.len() <= MANY_WAITING || self.failing || !self.may_replace() {
            return;
        }
        let keys: Vec<_> =
            self.waiting.keys().filter_map(|interest| interest.key().cloned()).collect();
        let waiting = self.waiting.iter().filter(|(interest, _)| interest.key().is_some());
        let readers: Vec<_> = waiting.flat_map(|(_, readers)| readers).copied().collect();
        let upstream = self.register(covering(keys), true, None, None);
        self.replacement = Some(upstream);
        for id in readers {
            // The pending upstream is not needed: the new one delivers the same updates, and the
            // initial state.
            if let Some(reader) = self.readers.get_mut(&id) {
                reader.held = None;
                let interest = reader.interest.clone();
                if let Some(next) = reader.pending_upstream.take() {
                    self.detach(id, &interest, next);
                }
            }
            self.listen(id, upstream);
        }
    }

    /// Lets a reader listen to a second upstream.
    fn listen(&mut self, id: ReaderId, upstream: UpstreamId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let Some(to) = self.upstreams.get_mut(&upstream) else { return };
        reader.pending_upstream = Some(upstream);
        to.audience(&reader.interest).insert(id);
    }

    fn deliver(
        &mut self,
        id: ReaderId,
        upstream: UpstreamId,
        update: &KvUpdate,
        cursor: WatchCursor,
    ) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        if reader.upstream == Some(upstream) {
            reader.incarnation.get_or_insert(*cursor.incarnation());
        } else if !reader.ready {
            reader.held = Some((update.clone(), cursor));
            return;
        }
        let is_new = reader.delivered_through.is_none_or(|through| cursor.position() > through);
        if !is_new || reader.incarnation != Some(*cursor.incarnation()) {
            return;
        }
        if reader.interest.key().is_some() {
            reader.delivered_through = Some(cursor.position());
            reader.live = matches!(update, KvUpdate::Put(_));
        }
        self.wakers.extend(reader.mailbox.push(update.clone(), cursor));
    }

    fn caught_up(&mut self, upstream: UpstreamId, cursor: WatchCursor) {
        let Some(current) = self.upstreams.get_mut(&upstream) else { return };
        let Phase::Syncing(mentioned) = std::mem::replace(&mut current.phase, Phase::Current)
        else {
            return;
        };
        let position = current.position();
        for id in current.readers() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.upstream == Some(upstream) {
                self.make_ready(id, position, cursor);
                let Some(reader) = self.readers.get_mut(&id) else { continue };
                let held = reader.held.take();
                let Some(next) = reader.pending_upstream else { continue };
                // An upstream that is not current yet will take the reader when it is.
                if self.upstreams.get(&next).is_some_and(Upstream::is_current) {
                    reader.pending_upstream = None;
                    self.move_or_stay(id, next);
                }
                if let Some((update, cursor)) = held {
                    self.deliver(id, next, &update, cursor);
                }
            } else if !reader.ready {
                // The reader has been listening since before this upstream was opened, so its
                // initial state includes the reader's.
                let held = reader.held.take();
                self.attach(id, upstream);
                if let Some((update, cursor)) = held {
                    self.deliver(id, upstream, &update, cursor);
                }
                self.make_ready(id, position, cursor);
            } else {
                reader.pending_upstream = None;
                // A key that is missing in an initial state is gone, and the first upstream has not
                // delivered that yet. It will handle it.
                let unclear = mentioned.as_ref().is_some_and(|mentioned| {
                    reader.live
                        && reader.delivered_through.is_some_and(|through| through <= position)
                        && reader.interest.key().is_some_and(|key| !mentioned.contains(key))
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

    /// Delivers the caught-up marker, because the reader has the initial state.
    fn make_ready(&mut self, id: ReaderId, position: u64, cursor: WatchCursor) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        if std::mem::replace(&mut reader.ready, true) {
            return;
        }
        reader.incarnation.get_or_insert(*cursor.incarnation());
        if reader.interest.key().is_some() {
            reader.delivered_through = reader.delivered_through.max(Some(position));
        }
        self.wakers.extend(reader.mailbox.push(KvUpdate::CaughtUp, cursor));
    }

    /// Makes an upstream that a reader listens to its only one.
    fn attach(&mut self, id: ReaderId, upstream: UpstreamId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let interest = reader.interest.clone();
        let previous = reader.upstream.replace(upstream);
        reader.pending_upstream = None;
        // The old upstream may still have to be opened.
        self.wakers.extend(reader.mailbox.open());
        if let Some(to) = self.upstreams.get(&upstream) {
            reader.mailbox.relink(&to.link);
        }
        let position = previous.and_then(|id| self.upstreams.get(&id)).map(Upstream::position);
        match previous {
            Some(previous) => {
                // The old upstream has delivered everything up to its position, if it had delivered
                // anything.
                if reader.ready && interest.key().is_some() {
                    reader.delivered_through = reader.delivered_through.max(position);
                }
                self.detach(id, &interest, previous);
            }
            None => self.stop_waiting(id, &interest),
        }
    }

    /// Makes `next` the upstream of a reader that has been listening to it, if it is sound and of
    /// the same store.
    fn move_or_stay(&mut self, id: ReaderId, next: UpstreamId) {
        let incarnation = self.readers.get(&id).and_then(|reader| reader.incarnation);
        match self.upstreams.get(&next) {
            Some(upstream) if upstream.is_sound() && upstream.incarnation() == incarnation => {
                self.attach(id, next)
            }
            _ => self.stay(id, next),
        }
    }

    /// Leaves a reader at its upstream, which then stays too.
    fn stay(&mut self, id: ReaderId, next: UpstreamId) {
        let Some(reader) = self.readers.get(&id) else { return };
        let (interest, upstream) = (reader.interest.clone(), reader.upstream);
        self.detach(id, &interest, next);
        if self.replacement == Some(next)
            && let Some(upstream) = upstream.and_then(|id| self.upstreams.get_mut(&id))
        {
            upstream.stays = true;
        }
    }

    fn detach(&mut self, id: ReaderId, interest: &Interest, upstream: UpstreamId) {
        let Some(upstream) = self.upstreams.get_mut(&upstream) else { return };
        let audience = upstream.audience(interest);
        audience.remove(&id);
        if audience.is_empty()
            && let Interest::Key(key) = interest
        {
            upstream.keys.remove(key);
        }
    }

    fn stop_waiting(&mut self, id: ReaderId, interest: &Interest) {
        if let Some(waiting) = self.waiting.get_mut(interest) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.waiting.remove(interest);
                self.drop_stale_turns();
            }
        }
    }

    /// Bounds the number of turns by the number of waiting interests. While openings hang, no turn
    /// is used, and each retry of a reader would add one.
    fn drop_stale_turns(&mut self) {
        if self.turns.len() > 2 * self.waiting.len() + MOST_OPENINGS {
            let mut kept = HashSet::with_capacity(self.waiting.len());
            self.turns.retain(|turn| self.waiting.contains_key(turn) && kept.insert(turn.clone()));
        }
    }

    fn forget(&mut self, id: ReaderId) -> Option<Reader> {
        let reader = self.readers.remove(&id)?;
        for upstream in reader.upstream.into_iter().chain(reader.pending_upstream) {
            self.detach(id, &reader.interest, upstream);
        }
        if reader.upstream.is_none() {
            self.stop_waiting(id, &reader.interest);
        }
        Some(reader)
    }

    /// Ends a reader with an error.
    fn end_reader(&mut self, id: ReaderId, error: &KvError) {
        let reader = self.forget(id);
        self.wakers.extend(reader.and_then(|reader| reader.mailbox.end(error)));
    }
}
