//! Tests the subscriptions with random subscribers, writers and upstreams of different speeds, and
//! compares with the writes.

mod subscriber;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use self::subscriber::SimulatedSubscriber;
use super::mailbox::Mailbox;
use super::subscriptions::{Interest, Opening, Read, Subscriptions, UpstreamId};
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvOperation, KvUpdate, VersionToken, WatchCursor, WatchLink,
    WatchScope,
};

/// A store with all of its writes.
#[derive(Clone, Default)]
struct Log {
    incarnation: u8,
    /// The writes, from sequence 1 on, each with whether it is a value.
    writes: Vec<(Key, bool)>,
    newest: BTreeMap<Key, u64>,
    /// Number of writes of earlier incarnations, by which time has advanced.
    earlier: u64,
}

impl Log {
    fn write(&mut self, key: Key, is_value: bool) {
        self.writes.push((key.clone(), is_value));
        self.newest.insert(key, self.writes.len() as u64);
    }

    fn newest(&self, key: &Key) -> Option<u64> {
        self.newest.get(key).copied()
    }

    fn cursor(&self, position: u64) -> WatchCursor {
        WatchCursor::new([self.incarnation; 16], position, self.time(position))
    }

    fn time(&self, position: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.earlier + position)
    }

    fn entry(&self, position: u64) -> KvEntry {
        let (key, is_value) = &self.writes[usize::try_from(position - 1).unwrap()];
        let (key, version, time) =
            (key.clone(), VersionToken::from_u64(position), self.time(position));
        match is_value {
            true => KvEntry::put(key, Bytes::from("value"), version, time),
            false => KvEntry::tombstone(key, KvOperation::Delete, version, time),
        }
    }

    /// Returns the log of the recreated store.
    fn recreated(&self) -> Self {
        let earlier = self.earlier + self.writes.len() as u64;
        Self { incarnation: self.incarnation + 1, earlier, ..Self::default() }
    }
}

/// A watch of the backend: at a position in the log, with keys of its initial state still to come.
struct SimulatedWatch {
    scope: WatchScope,
    log_at_start: u64,
    incarnation: u8,
    position: u64,
    pending: BTreeSet<Key>,
    caught_up: bool,
    /// Whether the marker moves the cursor to the end that the log had.
    moves: bool,
    /// Whether it receives nothing for now.
    down: bool,
    /// Whether it began at a cursor.
    resumed: bool,
}

struct World {
    random: fastrand::Rng,
    subscriptions: Subscriptions,
    log: Log,
    keys: Vec<Key>,
    openings: Vec<Opening>,
    /// The running reads, each with the entry in the leader's answer, or `None` before the answer.
    reads: Vec<(Read, Option<Option<KvEntry>>)>,
    watches: BTreeMap<UpstreamId, SimulatedWatch>,
    subscribers: Vec<SimulatedSubscriber>,
    /// Whether opening an upstream sometimes fails.
    fails: bool,
}

impl World {
    fn new(seed: u64, keys: usize) -> Self {
        let keys = (0..keys)
            .map(|number| Key::new(format!("area{}.{number}", number % 3)).unwrap())
            .collect();
        Self {
            random: fastrand::Rng::with_seed(seed),
            subscriptions: Subscriptions::default(),
            log: Log::default(),
            keys,
            openings: Vec::new(),
            reads: Vec::new(),
            watches: BTreeMap::new(),
            subscribers: Vec::new(),
            fails: true,
        }
    }

    fn run_until_idle(&mut self) {
        let (_, openings, reads) = self.subscriptions.take_due();
        self.openings.extend(openings);
        self.reads.extend(reads.into_iter().map(|read| (read, None)));
        // Upstreams without subscribers have been stopped.
        let subscriptions = &self.subscriptions;
        self.watches.retain(|id, _| subscriptions.has(*id));
        self.openings.retain(|opening| subscriptions.has(opening.upstream));
        // The check covers everything, so it runs only sometimes with a crowd.
        if self.subscribers.len() < 50 || self.random.u8(0..100) == 0 {
            subscriptions.check();
        }
    }

    fn write(&mut self) {
        let key = self.keys[self.random.usize(..self.keys.len())].clone();
        let is_value = self.random.u8(0..4) > 0;
        self.log.write(key, is_value);
    }

    fn join(&mut self) {
        let interest = match self.random.u8(0..10) {
            0 => Interest::Scope(WatchScope::prefix("area1.")),
            1 => Interest::Scope(WatchScope::All),
            _ => Interest::Key(self.keys[self.random.usize(..self.keys.len())].clone()),
        };
        let mailbox = Arc::new(Mailbox::new());
        let deadline = Deadline::after(Duration::from_secs(5));
        let may_read = self.random.bool();
        let id =
            self.subscriptions.join(interest.clone(), may_read, deadline, Arc::clone(&mailbox));
        let mut subscriber = SimulatedSubscriber {
            id,
            interest,
            mailbox,
            expected: BTreeMap::new(),
            joined: self.log.incarnation,
            seen: HashMap::new(),
            incarnation: None,
            caught_up: false,
            ended: false,
        };
        let newest = self.log.newest.iter().map(|(key, sequence)| (key.clone(), *sequence));
        subscriber.expected = newest.filter(|(key, _)| subscriber.wants(key)).collect();
        self.subscribers.push(subscriber);
    }

    fn leave(&mut self) {
        if !self.subscribers.is_empty() {
            let subscriber =
                self.subscribers.swap_remove(self.random.usize(..self.subscribers.len()));
            self.subscriptions.leave(subscriber.id);
        }
    }

    /// Lets the leader answer a read, or the answer arrive.
    fn read(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let at = self.random.usize(..self.reads.len());
        let (read, answer) = &mut self.reads[at];
        if answer.is_none() {
            *answer = Some(self.log.newest(&read.key).map(|newest| self.log.entry(newest)));
            return;
        }
        let (Read { subscriber, .. }, answer) = self.reads.swap_remove(at);
        let failed = self.fails && self.random.u8(0..20) == 0;
        let answer = match failed {
            true => {
                Err(KvError::Unavailable { operation: "test", reason: String::new(), source: None })
            }
            false => Ok(answer.flatten()),
        };
        self.subscriptions.begin_with(subscriber, answer);
    }

    fn open(&mut self) {
        if self.openings.is_empty() {
            return;
        }
        let Opening { upstream, scope, from, .. } =
            self.openings.swap_remove(self.random.usize(..self.openings.len()));
        self.subscriptions.begin(upstream);
        if self.fails && self.random.u8(0..20) == 0 {
            let error = match self.random.bool() {
                true => KvError::Closed { operation: "test" },
                false => {
                    KvError::Unavailable { operation: "test", reason: String::new(), source: None }
                }
            };
            self.subscriptions.end(upstream, &error);
            return;
        }
        // Sometimes a cursor has expired, and the initial state comes.
        let from = from.filter(|from| {
            from.incarnation()[0] == self.log.incarnation && self.random.u8(0..4) > 0
        });
        let start = from.map_or(0, |from| from.position());
        let is_pending = |key: &Key| scope.matches(key) && self.log.newest(key) > Some(start);
        let pending = self.log.newest.keys().filter(|key| is_pending(key)).cloned().collect();
        let watch = SimulatedWatch {
            scope,
            log_at_start: self.log.writes.len() as u64,
            incarnation: self.log.incarnation,
            position: start,
            pending,
            caught_up: false,
            moves: self.random.bool(),
            down: false,
            resumed: from.is_some(),
        };
        self.watches.insert(upstream, watch);
        self.subscriptions.opened(upstream, WatchLink::Up, from.is_some());
    }

    /// Sets whether a watch is down.
    fn relink(&mut self, upstream: UpstreamId, down: bool) {
        let Some(watch) = self.watches.get_mut(&upstream) else { return };
        if std::mem::replace(&mut watch.down, down) != down {
            let link =
                if down { WatchLink::down(SystemTime::UNIX_EPOCH, "away") } else { WatchLink::Up };
            self.subscriptions.relink(upstream, &link);
        }
    }

    /// Delivers one update of one watch. Returns whether it had one.
    fn deliver(&mut self, upstream: UpstreamId) -> bool {
        let Some(watch) = self.watches.get_mut(&upstream) else { return false };
        if watch.down {
            return false;
        }
        if watch.incarnation != self.log.incarnation {
            self.watches.remove(&upstream);
            let error = KvError::StoreNotFound { store: "test".to_owned() };
            self.subscriptions.end(upstream, &error);
            return true;
        }
        if watch.pending.is_empty() && !watch.caught_up {
            watch.caught_up = true;
            if watch.moves {
                watch.position = watch.position.max(watch.log_at_start);
            }
            self.subscriptions.receive(
                upstream,
                KvUpdate::CaughtUp,
                self.log.cursor(watch.position),
            );
            return true;
        }
        while watch.position < self.log.writes.len() as u64 {
            watch.position += 1;
            let (key, _) = &self.log.writes[usize::try_from(watch.position - 1).unwrap()];
            let is_newest = self.log.newest(key) == Some(watch.position);
            let of_state = !watch.resumed && watch.position <= watch.log_at_start;
            let skipped = !is_newest && (of_state || self.random.bool());
            if skipped || !watch.scope.matches(key) {
                continue;
            }
            watch.pending.remove(key);
            let (entry, cursor) = (self.log.entry(watch.position), self.log.cursor(watch.position));
            self.subscriptions.receive(upstream, KvUpdate::from(entry), cursor);
            return true;
        }
        false
    }

    fn step(&mut self) {
        match self.random.u8(0..100) {
            0..20 => self.write(),
            20..30 => self.join(),
            30..35 => self.leave(),
            35..45 => self.open(),
            45..50 => self.read(),
            50..53 => {
                let upstreams: Vec<_> = self.watches.keys().copied().collect();
                if !upstreams.is_empty() {
                    let (at, down) = (self.random.usize(..upstreams.len()), self.random.bool());
                    self.relink(upstreams[at], down);
                }
            }
            53..75 => {
                let upstreams: Vec<_> = self.watches.keys().copied().collect();
                if !upstreams.is_empty() {
                    let at = self.random.usize(..upstreams.len());
                    self.deliver(upstreams[at]);
                }
            }
            75..99 => {
                if !self.subscribers.is_empty() {
                    let at = self.random.usize(..self.subscribers.len());
                    self.subscribers[at].read(&self.log);
                }
            }
            _ => {
                if self.random.u8(0..10) == 0 {
                    self.log = self.log.recreated();
                }
            }
        }
        self.run_until_idle();
    }

    /// Performs all pending actions, until none is left.
    fn quiet(&mut self) {
        loop {
            let mut busy = false;
            while !self.openings.is_empty() {
                busy = true;
                self.open();
                self.run_until_idle();
            }
            for upstream in self.watches.keys().copied().collect::<Vec<_>>() {
                self.relink(upstream, false);
                self.run_until_idle();
                while self.deliver(upstream) {
                    busy = true;
                    self.run_until_idle();
                }
            }
            while !self.reads.is_empty() {
                busy = true;
                self.read();
                self.run_until_idle();
            }
            if !busy {
                break;
            }
        }
        for subscriber in &mut self.subscribers {
            while subscriber.read(&self.log) {}
        }
    }

    fn check(&self) {
        for subscriber in self.subscribers.iter().filter(|subscriber| !subscriber.ended) {
            assert!(subscriber.caught_up, "{:?} never caught up", subscriber.interest);
            for key in self.log.newest.keys().filter(|key| subscriber.wants(key)) {
                assert_eq!(
                    subscriber.seen.get(key).copied(),
                    self.log.newest(key),
                    "{key} of {:?}",
                    subscriber.interest
                );
            }
        }
    }
}

/// Begins with a crowd of subscribers, all at once or one after the other.
fn run(seed: u64, keys: usize, steps: usize, crowd: usize) {
    let mut world = World::new(seed, keys);
    let at_once = seed.is_multiple_of(16);
    for _ in 0..crowd {
        world.write();
        world.join();
        world.run_until_idle();
        if !at_once {
            for _ in 0..3 {
                world.step();
            }
        }
    }
    for _ in 0..steps {
        world.step();
    }
    world.quiet();
    world.check();
    // An upstream that could not replace others is tried again when another subscriber joins.
    world.fails = false;
    world.join();
    world.run_until_idle();
    world.quiet();
    world.check();
    // The two scopes, four upstreams of few keys, four of many, one of prefixes.
    assert!(
        world.watches.len() <= 11,
        "{} feeds are left: {}",
        world.watches.len(),
        world.subscriptions.summary()
    );
    while !world.subscribers.is_empty() {
        world.leave();
        world.run_until_idle();
    }
    assert!(world.subscriptions.is_empty(), "something is left: {:?}", world.subscriptions);
}

#[test]
fn every_subscriber_gets_each_update_once_and_in_order() {
    let (first, many): (u64, u64) =
        match std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok()) {
            Some(seed) => (seed, 1),
            None if std::env::var_os("SHIZUKU_LONG").is_some() => (1, 240),
            None => (1, 24),
        };
    for seed in first..first + many {
        let (keys, steps, crowd) = match seed % 8 {
            0 => (3000, 300, 2600),
            1 => (600, 1500, 300),
            2 | 3 => (300, 1500, 0),
            4 | 5 => (20, 1500, 0),
            _ => (3, 500, 0),
        };
        let outcome = std::panic::catch_unwind(|| run(seed, keys, steps, crowd));
        assert!(outcome.is_ok(), "SHIZUKU_SEED={seed} shows it again");
    }
}
