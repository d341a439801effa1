//! Cases that a review of the subscriptions has found, one test each.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::mailbox::Mailbox;
use super::subscriptions::{Ended, Interest, Opening, SubscriberId, Subscriptions, UpstreamId};
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvUpdate, VersionToken, WatchCursor, WatchLink, WatchScope,
};

#[derive(Default)]
struct Table {
    subscriptions: Subscriptions,
    openings: Vec<Opening>,
    subscribers: usize,
    /// Whether subscribers may begin with a read of their key.
    reads: bool,
}

fn key(number: usize) -> Key {
    Key::new(format!("key.{number}")).unwrap()
}

/// Returns an entry with the time that cursors of its position have.
fn entry(number: usize, position: u64) -> KvEntry {
    let version = VersionToken::from_u64(position);
    KvEntry::put(key(number), Bytes::from("value"), version, SystemTime::UNIX_EPOCH)
}

fn cursor(incarnation: u8, position: u64) -> WatchCursor {
    WatchCursor::new([incarnation; 16], position, SystemTime::UNIX_EPOCH)
}

fn gone() -> KvError {
    KvError::StoreNotFound { store: "test".to_owned() }
}

impl Table {
    fn join(&mut self, interest: Interest) -> (SubscriberId, Arc<Mailbox>) {
        self.subscribers += 1;
        let mailbox = Arc::new(Mailbox::new());
        let deadline = Deadline::after(Duration::from_secs(5));
        let id = self.subscriptions.join(interest, self.reads, deadline, Arc::clone(&mailbox));
        self.collect();
        (id, mailbox)
    }

    fn join_key(&mut self, number: usize) -> (SubscriberId, Arc<Mailbox>) {
        self.join(Interest::Key(key(number)))
    }

    fn collect(&mut self) {
        self.openings.extend(self.subscriptions.take_due().1);
        // Run with few subscribers only, because it checks all of them.
        if self.subscribers < 100 {
            self.subscriptions.check();
        }
    }

    /// Opens the upstream that has waited the longest, and delivers its marker at a position.
    fn catch_up(&mut self, incarnation: u8, position: u64) -> Opening {
        let opening = self.openings.remove(0);
        self.subscriptions.begin(opening.upstream);
        self.subscriptions.opened(opening.upstream, WatchLink::Up, opening.from.is_some());
        self.subscriptions.receive(
            opening.upstream,
            KvUpdate::CaughtUp,
            cursor(incarnation, position),
        );
        self.collect();
        opening
    }

    fn put(&mut self, upstream: UpstreamId, number: usize, position: u64) {
        let update = KvUpdate::Put(entry(number, position));
        self.subscriptions.receive(upstream, update, cursor(1, position));
        self.collect();
    }

    /// Returns a table in which one subscriber of key 1 has an upstream at this position, and a
    /// second one waits for the entry of the key.
    fn with_a_read(position: u64) -> (Self, UpstreamId, SubscriberId, Arc<Mailbox>) {
        let mut table = Self { reads: true, ..Self::default() };
        let (_, first) = table.join_key(1);
        let upstream = table.catch_up(1, position).upstream;
        assert_eq!(read(&first).0, [0]);
        let (second, mailbox) = table.join_key(1);
        assert!(table.openings.is_empty(), "the key is read instead");
        (table, upstream, second, mailbox)
    }

    fn begin_with(&mut self, id: SubscriberId, entry: Result<Option<KvEntry>, KvError>) {
        self.subscriptions.begin_with(id, entry);
        self.collect();
    }

    fn link(&mut self, upstream: UpstreamId, is_up: bool) {
        let link =
            if is_up { WatchLink::Up } else { WatchLink::down(SystemTime::UNIX_EPOCH, "away") };
        self.subscriptions.relink(upstream, &link);
        self.collect();
    }
}

/// Returns the positions of the updates that have arrived, 0 for the marker, and the error if one
/// has arrived.
fn read(mailbox: &Mailbox) -> (Vec<u64>, Option<KvError>) {
    let mut positions = Vec::new();
    loop {
        match mailbox.poll_next(&Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok((update, cursor)))) => {
                positions.push(update.entry().map_or(0, |_| cursor.position()));
            }
            Poll::Ready(Some(Err(error))) => return (positions, Some(error)),
            Poll::Ready(None) | Poll::Pending => return (positions, None),
        }
    }
}

#[test]
fn replacement_that_is_down_takes_over_no_subscriber() {
    let mut table = Table::default();
    let (_first, _) = table.join_key(1);
    let old = table.catch_up(1, 10).upstream;
    // While an upstream is down, new subscribers do not listen to it.
    table.link(old, false);
    let (_second, mailbox) = table.join_key(1);
    let new = table.catch_up(1, 20).upstream;
    assert!(table.subscriptions.has(new) && mailbox.link().borrow().is_up());
    // An upstream that goes down before the marker is not moved to either.
    table.link(old, true);
    let (_third, mailbox) = table.join_key(1);
    let third = table.openings[0].upstream;
    for upstream in [old, new] {
        table.link(upstream, false);
    }
    table.catch_up(1, 30);
    assert!(table.subscriptions.has(third) && mailbox.link().borrow().is_up());
    table.put(third, 1, 40);
    assert_eq!(read(&mailbox).0, [0, 40]);
}

#[test]
fn hanging_opening_delays_no_other_subscriber() {
    let mut table = Table::default();
    let subscribers: Vec<_> = (0..20).map(|number| table.join_key(number % 10)).collect();
    // Two for each of ten keys would be twenty.
    assert_eq!(table.openings.len(), 16);
    let hanging = table.openings.remove(0);
    while !table.openings.is_empty() {
        table.catch_up(1, 10);
    }
    let served = subscribers.iter().filter(|(_, mailbox)| read(mailbox).0 == [0]).count();
    assert_eq!(served, 19);
    assert!(table.subscriptions.has(hanging.upstream));
}

#[test]
fn failed_openings_are_retried_one_for_all_waiting_subscribers() {
    let mut table = Table::default();
    let (_, first) = table.join_key(0);
    let opening = table.openings.remove(0);
    table.subscriptions.begin(opening.upstream);
    assert_eq!(table.subscriptions.end(opening.upstream, &gone()), Ended::OpeningFailed);
    assert!(matches!(read(&first).1, Some(KvError::StoreNotFound { .. })));
    let (_, second) = table.join_key(1);
    let waiting: Vec<_> = (2..5).map(|number| table.join_key(number).1).collect();
    assert_eq!(table.openings.len(), 1);
    let probe = table.openings.remove(0);
    assert!(probe.later);
    table.subscriptions.begin(probe.upstream);
    // A probe proves nothing about subscribers that joined after its start.
    let (_, late) = table.join_key(5);
    assert_eq!(table.subscriptions.end(probe.upstream, &gone()), Ended::Nothing);
    table.collect();
    assert!(read(&second).1.is_some() && waiting.iter().all(|mailbox| read(mailbox).1.is_some()));
    assert!(read(&late).1.is_none());
    table.catch_up(1, 10);
    assert_eq!(read(&late).0, [0]);
    // Openings succeed again, so all waiting interests are opened at once.
    for number in 6..10 {
        table.join_key(number);
    }
    assert_eq!(table.openings.len(), 4);
}

#[test]
fn subscriber_with_time_left_waits_for_another_upstream() {
    let mut table = Table::default();
    let (_, mailbox) = table.join_key(0);
    let opening = table.openings.remove(0);
    let error = KvError::Unavailable { operation: "watch", reason: String::new(), source: None };
    table.subscriptions.end(opening.upstream, &error);
    table.collect();
    table.catch_up(1, 10);
    let (positions, error) = read(&mailbox);
    assert_eq!((positions.as_slice(), error.is_none()), ([0].as_slice(), true));
}

#[test]
fn replacement_resumes_at_the_earliest_position_of_one_store() {
    let mut table = Table::default();
    let mut upstreams = Vec::new();
    for number in 0..4 {
        table.join_key(number);
        upstreams.push(table.catch_up(1, 10 + number as u64).upstream);
    }
    // The fifth is of the recreated store, so nothing can be replaced.
    table.join_key(4);
    let other = table.catch_up(2, 1).upstream;
    assert!(table.openings.is_empty());
    // Four more upstreams of that store can be replaced, and only they.
    let mut subscribers = Vec::new();
    for number in 5..9 {
        subscribers.push(table.join_key(number).1);
        table.catch_up(2, number as u64);
    }
    let replacement = table.catch_up(2, 9);
    assert_eq!(replacement.from.map(|from| (from.incarnation()[0], from.position())), Some((2, 1)));
    assert!(
        upstreams.iter().all(|upstream| table.subscriptions.has(*upstream))
            && !table.subscriptions.has(other)
    );
    assert!(table.openings.is_empty());
    assert!(subscribers.iter().all(|mailbox| read(mailbox).0 == [0]));
}

#[test]
fn upstreams_of_a_scope_merge_once_they_are_up_again() {
    let mut table = Table::default();
    let scope = || Interest::Scope(WatchScope::prefix("key."));
    let (_, first) = table.join(scope());
    let old = table.catch_up(1, 10).upstream;
    table.link(old, false);
    let (_, second) = table.join(scope());
    let new = table.catch_up(1, 20).upstream;
    assert!(table.subscriptions.has(old) && table.subscriptions.has(new));
    table.link(old, true);
    assert!(
        table.subscriptions.has(old) && !table.subscriptions.has(new),
        "the one that is behind stays"
    );
    table.put(old, 1, 15);
    table.put(old, 1, 25);
    assert_eq!((read(&first).0, read(&second).0), (vec![0, 25], vec![0, 25]));
}

#[test]
fn key_missing_in_a_state_stays_with_its_upstream() {
    let mut table = Table::default();
    let subscribers: Vec<_> = (0..5).map(|number| table.join_key(number).1).collect();
    let own = table.openings[0].upstream;
    for number in 0..5 {
        let opening = table.openings.remove(0);
        table.subscriptions.opened(opening.upstream, WatchLink::Up, false);
        table.put(opening.upstream, number, 1 + number as u64);
        table.subscriptions.receive(
            opening.upstream,
            KvUpdate::CaughtUp,
            cursor(1, 1 + number as u64),
        );
        table.collect();
    }
    // The replacement cannot resume from a cursor, and key 0 is missing in its initial state.
    let replacement = table.openings.remove(0);
    table.subscriptions.opened(replacement.upstream, WatchLink::Up, false);
    for number in 1..5 {
        table.put(replacement.upstream, number, 1 + number as u64);
    }
    table.subscriptions.receive(replacement.upstream, KvUpdate::CaughtUp, cursor(1, 9));
    table.collect();
    let ended = subscribers.iter().filter(|mailbox| read(mailbox).1.is_some()).count();
    assert_eq!((ended, table.openings.len()), (0, 0));
    // Its own upstream stays for it, and is not chosen again.
    assert!(table.subscriptions.has(own));
    for number in 10..14 {
        table.join_key(number);
        table.catch_up(1, 10);
    }
    let again = table
        .openings
        .iter()
        .map(|opening| opening.from.map(|from| from.position()))
        .collect::<Vec<_>>();
    assert_eq!(again, [Some(9)]);
}

#[test]
fn update_older_than_the_marker_is_not_delivered() {
    let mut table = Table::default();
    let (_first, _) = table.join_key(1);
    let behind = table.catch_up(1, 3).upstream;
    let (_, mailbox) = table.join_key(1);
    // The key was written and deleted, and the tombstone is forgotten: no entry exists.
    table.catch_up(1, 10);
    table.put(behind, 1, 5);
    table.put(behind, 1, 12);
    assert_eq!(read(&mailbox).0, [0, 12]);
}

#[test]
fn upstream_of_many_keys_serves_subscribers_still_opening() {
    let mut table = Table::default();
    let subscribers: Vec<_> = (0..1200).map(|number| table.join_key(number).1).collect();
    let many =
        table.openings.iter().position(|opening| matches!(opening.scope, WatchScope::Prefixes(_)));
    let many = table.openings.remove(many.unwrap());
    // 16 have their own, and the next 16 wait for either.
    for _ in 0..16 {
        table.catch_up(1, 1200);
    }
    assert_eq!(table.openings.len(), 16);
    table.subscriptions.opened(many.upstream, WatchLink::Up, false);
    for number in 0..1200 {
        table.put(many.upstream, number, 1 + number as u64);
    }
    table.subscriptions.receive(many.upstream, KvUpdate::CaughtUp, cursor(1, 1200));
    table.collect();
    let open = subscribers.iter().filter(|mailbox| mailbox.is_open()).count();
    let served = subscribers.iter().filter(|mailbox| read(mailbox).0.len() == 2).count();
    // 1,025 were waiting when it was requested.
    assert_eq!((open, served), (16 + 1025, 1025));
    while !table.openings.is_empty() {
        table.catch_up(1, 1200);
    }
    assert!(subscribers.iter().all(|mailbox| mailbox.is_open()));
    table.subscriptions.check();
}

/// Openings do not return, and subscribers retry. The turns of subscribers that have left are
/// removed.
#[test]
fn turns_of_subscribers_that_left_are_removed() {
    let mut table = Table::default();
    for number in 0..16 {
        table.join_key(number);
    }
    assert_eq!(table.openings.len(), 16);
    let (_stays, _mailbox) = table.join_key(1000);
    for round in 0..10_000 {
        let (subscriber, _mailbox) = table.join_key(100 + round % 3);
        table.subscriptions.leave(subscriber);
    }
    assert!(table.subscriptions.turns() < 40, "{} turns", table.subscriptions.turns());
    // The subscriber that stayed still gets its turn.
    table.catch_up(1, 10);
    assert_eq!(table.openings.last().map(|opening| opening.scope.clone()), Some(key(1000).into()));
}

#[test]
fn read_entry_is_ordered_among_the_updates() {
    let (mut table, upstream, subscriber, mailbox) = Table::with_a_read(10);
    // The upstream is behind the leader, and delivers one update that the entry supersedes.
    table.put(upstream, 1, 11);
    assert!(read(&mailbox).0.is_empty() && !mailbox.is_open());
    table.begin_with(subscriber, Ok(Some(entry(1, 12))));
    table.put(upstream, 1, 12);
    table.put(upstream, 1, 13);
    assert_eq!(read(&mailbox).0, [12, 0, 13]);
    // It is ahead of the answer, and has delivered an update that supersedes the entry.
    let (mut table, upstream, subscriber, mailbox) = Table::with_a_read(10);
    table.put(upstream, 1, 12);
    table.begin_with(subscriber, Ok(Some(entry(1, 11))));
    assert_eq!(read(&mailbox).0, [11, 0, 12]);
    // An entry from before the upstream has the cursor of the upstream.
    let (mut table, upstream, subscriber, mailbox) = Table::with_a_read(10);
    table.begin_with(subscriber, Ok(Some(entry(1, 3))));
    table.put(upstream, 1, 14);
    assert_eq!(read(&mailbox).0, [10, 0, 14]);
    assert!(table.openings.is_empty());
}

#[test]
fn read_without_a_proof_opens_an_upstream() {
    let recreated =
        || KvEntry { created: SystemTime::UNIX_EPOCH + Duration::from_secs(1), ..entry(1, 2) };
    let away = || KvError::Unavailable { operation: "watch", reason: String::new(), source: None };
    for answer in [Ok(None), Ok(Some(recreated())), Err(away())] {
        let fails = answer.is_err();
        let (mut table, _, subscriber, mailbox) = Table::with_a_read(10);
        table.begin_with(subscriber, answer);
        table.catch_up(1, 20);
        assert_eq!(read(&mailbox).0, [0]);
        // A failed read is not repeated soon.
        table.join_key(1);
        assert_eq!(table.openings.len(), usize::from(fails));
    }
    // The upstream is lost, or goes down, before the answer.
    for is_lost in [true, false] {
        let (mut table, upstream, subscriber, mailbox) = Table::with_a_read(10);
        if is_lost {
            table.subscriptions.end(upstream, &gone());
        } else {
            table.link(upstream, false);
        }
        table.begin_with(subscriber, Ok(Some(entry(1, 12))));
        table.catch_up(1, 20);
        assert_eq!(read(&mailbox).0, [0]);
    }
}

#[test]
fn subscriber_may_leave_while_its_key_is_read() {
    let (mut table, _, subscriber, _) = Table::with_a_read(10);
    table.subscriptions.leave(subscriber);
    table.begin_with(subscriber, Ok(Some(entry(1, 12))));
    assert!(table.openings.is_empty());
}

#[test]
fn subscribers_beyond_the_read_limit_share_an_upstream() {
    let mut table = Table { reads: true, ..Table::default() };
    table.join_key(0);
    table.catch_up(1, 10);
    for _ in 0..64 {
        table.join_key(0);
    }
    assert!(table.openings.is_empty());
    table.join_key(0);
    assert_eq!(table.openings.len(), 1);
}
