//! The updates that a subscriber has not read yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;

use crate::store::{Key, KvError, KvUpdate, WatchCursor, WatchLink, lock};

type Item = (KvUpdate, WatchCursor);

/// The updates in the order of their arrival. An update supersedes the older one of its key, unless
/// the caught-up marker depends on that one. The size is therefore bounded by the number of keys,
/// however slow the subscriber is.
#[derive(Debug)]
pub(super) struct Mailbox {
    contents: Mutex<Contents>,
    link: watch::Sender<WatchLink>,
}

#[derive(Debug, Default)]
struct Contents {
    items: BTreeMap<u64, Item>,
    /// Position of each key's newest item.
    newest: HashMap<Key, u64>,
    came: u64,
    /// Position of the caught-up marker, until it is read.
    marker: Option<u64>,
    opened: bool,
    end: Option<KvError>,
    ended: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        Self { contents: Mutex::default(), link: watch::Sender::default() }
    }

    pub(super) fn link(&self) -> watch::Receiver<WatchLink> {
        self.link.subscribe()
    }

    pub(super) fn relink(&self, link: &WatchLink) {
        self.link.send_if_modified(|known| {
            let is_new = known != link;
            if is_new {
                known.clone_from(link);
            }
            is_new
        });
    }

    /// Marks the upstream as open. Returns a waker, which the caller wakes without the mutex.
    #[must_use]
    pub(super) fn open(&self) -> Option<Waker> {
        let mut contents = self.lock();
        contents.opened = true;
        contents.waker.take()
    }

    #[must_use]
    pub(super) fn push(&self, update: KvUpdate, cursor: WatchCursor) -> Option<Waker> {
        let mut contents = self.lock();
        contents.push(update, cursor);
        contents.waker.take()
    }

    #[must_use]
    pub(super) fn end(&self, error: &KvError) -> Option<Waker> {
        let mut contents = self.lock();
        if !contents.ended {
            contents.ended = true;
            contents.end = Some(error.clone());
        }
        contents.waker.take()
    }

    /// Waits until the upstream is open.
    pub(super) async fn opened(&self) -> Result<(), KvError> {
        std::future::poll_fn(|cx| {
            self.poll(cx, |contents| {
                if contents.opened {
                    return Some(Ok(()));
                }
                contents.end.take().map(Err)
            })
        })
        .await
    }

    /// Returns the oldest item. Returns `None` after the error that ended the upstream.
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Result<Item, KvError>>> {
        self.poll(cx, |contents| match contents.pop() {
            Some(item) => Some(Some(Ok(item))),
            None if contents.ended => Some(contents.end.take().map(Err)),
            None => None,
        })
    }

    /// Calls `look`, and stores the waker if it finds nothing. Wakers are cloned and dropped
    /// without the mutex, because they run code of an executor.
    fn poll<T>(&self, cx: &Context<'_>, look: impl Fn(&mut Contents) -> Option<T>) -> Poll<T> {
        let mut contents = self.lock();
        if let Some(found) = look(&mut contents) {
            return Poll::Ready(found);
        }
        if contents.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        drop(contents);
        let waker = cx.waker().clone();
        let mut contents = self.lock();
        let found = look(&mut contents);
        let superseded = if found.is_none() { contents.waker.replace(waker) } else { Some(waker) };
        drop(contents);
        drop(superseded);
        found.map_or(Poll::Pending, Poll::Ready)
    }

    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.lock().opened
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }
}

impl Contents {
    fn push(&mut self, update: KvUpdate, cursor: WatchCursor) {
        let index = self.came;
        self.came += 1;
        match update.entry() {
            Some(entry) => {
                let key = entry.key.clone();
                // The items before the marker stay, because the marker depends on them.
                let superseded = self
                    .newest
                    .insert(key, index)
                    .filter(|old| self.marker.is_none_or(|m| *old > m));
                if let Some(old) = superseded {
                    self.items.remove(&old);
                }
            }
            None => self.marker = Some(index),
        }
        self.items.insert(index, (update, cursor));
    }

    fn pop(&mut self) -> Option<Item> {
        let (index, item) = self.items.pop_first()?;
        match item.0.entry() {
            Some(entry) => {
                if self.newest.get(&entry.key) == Some(&index) {
                    self.newest.remove(&entry.key);
                }
            }
            None => self.marker = None,
        }
        if self.items.is_empty() {
            // Frees the memory of read updates, which thousands of idle subscribers would keep.
            (self.items, self.newest) = Default::default();
        }
        Some(item)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::*;
    use crate::store::{KvEntry, VersionToken};

    fn put(mailbox: &Mailbox, key: &str, position: u64) {
        let version = VersionToken::from_u64(position);
        let entry =
            KvEntry::put(Key::new(key).unwrap(), Bytes::new(), version, SystemTime::UNIX_EPOCH);
        push(mailbox, KvUpdate::Put(entry), position);
    }

    fn push(mailbox: &Mailbox, update: KvUpdate, position: u64) {
        let cursor = WatchCursor::new([0; 16], position, SystemTime::UNIX_EPOCH);
        assert!(mailbox.push(update, cursor).is_none(), "nobody waits");
    }

    /// Returns the position of each update, and 0 for the marker.
    fn read(mailbox: &Mailbox) -> Vec<u64> {
        let mut read = Vec::new();
        while let Poll::Ready(Some(Ok((update, _)))) =
            mailbox.poll_next(&Context::from_waker(Waker::noop()))
        {
            read.push(update.into_entry().map_or(0, |entry| entry.version.as_u64().unwrap()));
        }
        mailbox.lock().waker = None;
        read
    }

    #[test]
    fn slow_subscriber_finds_the_newest_update_of_each_key_in_order() {
        let mailbox = Mailbox::new();
        for position in 1..=10_000 {
            put(&mailbox, ["a", "b", "c"][usize::try_from(position % 3).unwrap()], position);
            assert!(mailbox.lock().items.len() <= 3);
        }
        assert_eq!(read(&mailbox), [9998, 9999, 10_000]);
        put(&mailbox, "a", 10_001);
        assert_eq!(read(&mailbox), [10_001]);
        assert!(mailbox.lock().newest.is_empty());
    }

    #[test]
    fn initial_state_stays_before_its_marker() {
        let mailbox = Mailbox::new();
        put(&mailbox, "a", 1);
        put(&mailbox, "b", 2);
        put(&mailbox, "a", 3);
        push(&mailbox, KvUpdate::CaughtUp, 3);
        put(&mailbox, "b", 4);
        put(&mailbox, "b", 5);
        put(&mailbox, "b", 6);
        assert_eq!(read(&mailbox), [2, 3, 0, 6]);
    }

    #[test]
    fn error_is_read_after_all_updates_and_only_once() {
        let mailbox = Mailbox::new();
        put(&mailbox, "a", 1);
        for _ in 0..2 {
            assert!(mailbox.end(&KvError::Closed { operation: "test" }).is_none());
        }
        assert_eq!(read(&mailbox), [1]);
        let context = Context::from_waker(Waker::noop());
        assert!(
            matches!(mailbox.poll_next(&context), Poll::Ready(None)),
            "the error was read above"
        );
    }
}
