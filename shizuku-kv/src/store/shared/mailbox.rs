//! What waits for one subscriber: of each key the newest only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use super::lock;
use crate::store::{Key, KvEntry, KvError, WatchLink, WatchScope};

/// What a subscriber hears.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// The newest entry of a key; a tombstone where it is absent now.
    Entry(KvEntry),
    /// The key is absent now, and no tombstone says since when.
    Gone(Key),
    /// What was there when the subscription began has come. Once.
    CaughtUp,
    /// Whether the store is heard from. The last one counts.
    Link(WatchLink),
    /// The watch behind it ended; another is on its way.
    Trouble(KvError),
}

impl News {
    fn key(&self) -> Option<&Key> {
        match self {
            Self::Entry(entry) => Some(&entry.key),
            Self::Gone(key) => Some(key),
            Self::CaughtUp | Self::Link(_) | Self::Trouble(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Mailbox {
    scope: WatchScope,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// In the order in which they came; what is superseded is taken out.
    queue: BTreeMap<u64, News>,
    places: HashMap<Key, u64>,
    next: u64,
    link: Option<WatchLink>,
    trouble: Option<KvError>,
    is_caught_up: bool,
    has_ended: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    pub(super) fn new(scope: WatchScope) -> Self {
        Self { scope, pending: Mutex::default() }
    }

    pub(super) fn scope(&self) -> &WatchScope {
        &self.scope
    }

    /// Leaves news, in place of older ones of its kind.
    pub(super) fn leave(&self, news: News) {
        let mut pending = lock(&self.pending);
        match news {
            News::Link(link) => pending.link = Some(link),
            News::Trouble(error) => pending.trouble = Some(error),
            News::CaughtUp if pending.is_caught_up => return,
            news => {
                pending.is_caught_up |= matches!(news, News::CaughtUp);
                let place = pending.next;
                pending.next += 1;
                if let Some(key) = news.key()
                    && let Some(superseded) = pending.places.insert(key.clone(), place)
                {
                    pending.queue.remove(&superseded);
                }
                pending.queue.insert(place, news);
            }
        }
        wake(pending);
    }

    /// Nothing follows.
    pub(super) fn end(&self) {
        let mut pending = lock(&self.pending);
        pending.has_ended = true;
        wake(pending);
    }

    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Option<News>> {
        let mut pending = lock(&self.pending);
        if let Some(link) = pending.link.take() {
            return Poll::Ready(Some(News::Link(link)));
        }
        if let Some((_, news)) = pending.queue.pop_first() {
            if let Some(key) = news.key() {
                pending.places.remove(key);
            }
            return Poll::Ready(Some(news));
        }
        if let Some(error) = pending.trouble.take() {
            return Poll::Ready(Some(News::Trouble(error)));
        }
        if pending.has_ended {
            return Poll::Ready(None);
        }
        match &mut pending.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// Wakes without holding the lock.
fn wake(mut pending: std::sync::MutexGuard<'_, Pending>) {
    let waker = pending.waker.take();
    drop(pending);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::{KvResult, VersionToken};

    /// Everything that waits, as text.
    pub(in super::super) fn drain(mailbox: &Mailbox) -> Vec<String> {
        let context = Context::from_waker(Waker::noop());
        let mut drained = Vec::new();
        while let Poll::Ready(Some(news)) = mailbox.poll(&context) {
            drained.push(match news {
                News::Entry(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
                News::Gone(key) => format!("-{key}"),
                News::CaughtUp => "caught up".to_owned(),
                News::Link(link) => format!("up: {}", link.is_up()),
                News::Trouble(_) => "trouble".to_owned(),
            });
        }
        drained
    }

    #[test]
    fn of_each_key_the_newest_is_kept_in_the_order_in_which_it_came() -> KvResult<()> {
        let mailbox = Mailbox::new(WatchScope::All);
        let entry = |key: &str, value: &'static str| -> KvResult<News> {
            let version = VersionToken::from_u64(1);
            Ok(News::Entry(KvEntry::put(Key::new(key)?, value.into(), version, SystemTime::UNIX_EPOCH)))
        };
        mailbox.leave(entry("a", "1")?);
        mailbox.leave(entry("b", "1")?);
        mailbox.leave(News::CaughtUp);
        for _ in 0..1000 {
            mailbox.leave(entry("a", "2")?);
        }
        mailbox.leave(News::Link(WatchLink::down(SystemTime::UNIX_EPOCH, "x")));
        mailbox.leave(News::Link(WatchLink::Up));
        mailbox.leave(News::CaughtUp);
        assert_eq!(lock(&mailbox.pending).queue.len(), 3);
        assert_eq!(drain(&mailbox), ["up: true", "b=1", "caught up", "a=2"]);
        mailbox.leave(News::Gone(Key::new("a")?));
        mailbox.leave(entry("a", "3")?);
        mailbox.leave(News::Gone(Key::new("b")?));
        assert_eq!(drain(&mailbox), ["a=3", "-b"]);
        let pending = lock(&mailbox.pending);
        assert!(pending.places.is_empty() && pending.queue.is_empty());
        Ok(())
    }
}
