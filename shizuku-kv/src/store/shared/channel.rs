//! One watch, what it has delivered, and those that hear of it.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Hub, Mailbox, News, lock};
use crate::store::{Deadline, Key, KvEntry, KvError, KvUpdate, Store, Watch, WatchLink, WatchScope};

#[derive(Debug)]
pub(super) struct Channel {
    scope: WatchScope,
    heard: Mutex<Heard>,
    task: OnceLock<AbortHandle>,
}

/// What was heard, and by whom it is to be heard.
#[derive(Debug, Default)]
struct Heard {
    /// The newest entry of each key that lives.
    state: HashMap<Key, KvEntry>,
    /// The newest version, where the store numbers them.
    newest: Option<u64>,
    is_caught_up: bool,
    /// While a watch that is not the first brings its state: the keys that it has brought.
    brought: Option<HashSet<Key>>,
    link: WatchLink,
    trouble: Option<KvError>,
    has_ended: bool,
    by_key: HashMap<Key, Vec<Arc<Mailbox>>>,
    by_prefix: Vec<Arc<Mailbox>>,
}

impl Channel {
    pub(super) fn new(scope: WatchScope) -> Arc<Self> {
        let link = WatchLink::down(SystemTime::now(), "the watch has not begun yet");
        let heard = Mutex::new(Heard { link, ..Heard::default() });
        Arc::new(Self { scope, heard, task: OnceLock::new() })
    }

    /// Begins to watch. What `replaced` has is taken over once this has caught up.
    pub(super) fn start(self: &Arc<Self>, store: &Store, hub: Weak<Hub>, replaced: Vec<Arc<Self>>) {
        // A handle with a deadline of its own may be the first, and others follow.
        let store = store.with_deadline(store.deadline().max(Deadline::DEFAULT));
        let task = tokio::spawn(run(Arc::clone(self), store, hub, replaced));
        // There is none yet.
        let _ = self.task.set(task.abort_handle());
    }

    pub(super) fn scope(&self) -> &WatchScope {
        &self.scope
    }

    pub(super) fn has_ended(&self) -> bool {
        lock(&self.heard).has_ended || self.task.get().is_some_and(AbortHandle::is_finished)
    }

    /// Ends the task, and with it the watch.
    pub(super) fn end(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Takes a subscriber in, and leaves it the state. Not where the channel has ended.
    pub(super) fn join(&self, mailbox: &Arc<Mailbox>) -> bool {
        let mut heard = lock(&self.heard);
        if heard.has_ended {
            return false;
        }
        mailbox.leave(News::Link(heard.link.clone()));
        heard.state_of(mailbox.scope()).for_each(|entry| mailbox.leave(News::Entry(entry.clone())));
        if heard.is_caught_up {
            mailbox.leave(News::CaughtUp);
        }
        if let Some(error) = &heard.trouble {
            mailbox.leave(News::Trouble(error.clone()));
        }
        heard.enter(Arc::clone(mailbox));
        true
    }

    /// Lets a subscriber go; whether it was here.
    pub(super) fn leave(&self, mailbox: &Arc<Mailbox>) -> bool {
        let mut heard = lock(&self.heard);
        if let WatchScope::Key(key) = mailbox.scope() {
            let Some(those) = heard.by_key.get_mut(key) else { return false };
            let is_here = take(those, mailbox);
            if those.is_empty() {
                heard.by_key.remove(key);
            }
            is_here
        } else {
            take(&mut heard.by_prefix, mailbox)
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let heard = lock(&self.heard);
        heard.by_key.is_empty() && heard.by_prefix.is_empty()
    }

    /// Moves all subscribers to a channel that covers this one and has caught up, and ends this one. They hear of what
    /// the other one knows and this one did not.
    pub(super) fn move_to(&self, other: &Self) {
        let mut from = lock(&self.heard);
        let mut to = lock(&other.heard);
        let those = from.by_key.drain().flat_map(|(_, those)| those).collect::<Vec<_>>();
        for mailbox in those.into_iter().chain(std::mem::take(&mut from.by_prefix)) {
            for entry in to.state_of(mailbox.scope()) {
                if from.state.get(&entry.key).is_none_or(|known| is_news(entry, known)) {
                    mailbox.leave(News::Entry(entry.clone()));
                }
            }
            for known in from.state_of(mailbox.scope()) {
                // What is newer than all that the other one has heard, it will hear of.
                let is_ahead = known.version.as_u64() > to.newest;
                if !to.state.contains_key(&known.key) && !is_ahead {
                    mailbox.leave(News::Gone(known.key.clone()));
                }
            }
            mailbox.leave(News::CaughtUp);
            mailbox.leave(News::Link(to.link.clone()));
            to.enter(mailbox);
        }
        from.has_ended = true;
        self.end();
    }
}

/// Whether an entry says something else than the one that is known, and is not older.
fn is_news(entry: &KvEntry, known: &KvEntry) -> bool {
    match (entry.version.as_u64(), known.version.as_u64()) {
        (Some(entry), Some(known)) if entry < known => false,
        _ => (entry.version, entry.created) != (known.version, known.created),
    }
}

fn take(those: &mut Vec<Arc<Mailbox>>, one: &Arc<Mailbox>) -> bool {
    let place = those.iter().position(|other| Arc::ptr_eq(other, one));
    place.map(|place| those.swap_remove(place)).is_some()
}

impl Heard {
    fn enter(&mut self, mailbox: Arc<Mailbox>) {
        match mailbox.scope() {
            WatchScope::Key(key) => self.by_key.entry(key.clone()).or_default().push(mailbox),
            _ => self.by_prefix.push(mailbox),
        }
    }

    /// What lives in a scope.
    fn state_of<'s>(&'s self, scope: &'s WatchScope) -> Box<dyn Iterator<Item = &'s KvEntry> + 's> {
        match scope {
            WatchScope::Key(key) => Box::new(self.state.get(key).into_iter()),
            scope => Box::new(self.state.values().filter(|entry| scope.matches(&entry.key))),
        }
    }

    fn tell_all(&self, news: &News) {
        for mailbox in self.by_key.values().flatten().chain(&self.by_prefix) {
            mailbox.leave(news.clone());
        }
    }

    fn tell(&self, key: &Key, news: &News) {
        let by_prefix = self.by_prefix.iter().filter(|mailbox| mailbox.scope().matches(key));
        for mailbox in self.by_key.get(key).into_iter().flatten().chain(by_prefix) {
            mailbox.leave(news.clone());
        }
    }

    fn hear(&mut self, update: KvUpdate) {
        self.trouble = None;
        let Some(entry) = update.into_entry() else {
            self.catch_up();
            return;
        };
        let key = entry.key.clone();
        self.newest = self.newest.max(entry.version.as_u64());
        if let Some(brought) = &mut self.brought {
            brought.insert(key.clone());
        }
        // A watch that is not the first brings what is known, too.
        let known = match entry.is_tombstone() {
            true => self.state.remove(&key),
            false => self.state.insert(key.clone(), entry.clone()),
        };
        if known.is_none_or(|known| (known.version, known.created) != (entry.version, entry.created)) {
            self.tell(&key, &News::Entry(entry));
        }
    }

    /// What a watch has not brought by now is not there.
    fn catch_up(&mut self) {
        if let Some(brought) = self.brought.take() {
            let gone = self.state.extract_if(|key, _| !brought.contains(key)).collect::<Vec<_>>();
            for (key, _) in gone {
                self.tell(&key, &News::Gone(key.clone()));
            }
        }
        self.is_caught_up = true;
        self.tell_all(&News::CaughtUp);
    }

    fn link(&mut self, link: WatchLink) {
        if self.link != link {
            self.link = link;
            self.tell_all(&News::Link(self.link.clone()));
        }
    }

    /// Nothing is heard, since the moment that is known already or since now.
    fn cut_off(&mut self, error: &KvError) {
        let since = match &self.link {
            WatchLink::Down { since, .. } => *since,
            WatchLink::Up => SystemTime::now(),
        };
        self.link(WatchLink::down(since, error.to_string()));
        self.trouble = Some(error.clone());
        self.tell_all(&News::Trouble(error.clone()));
        // The next watch brings all that is there. In a store that was made again versions begin anew.
        self.brought = Some(HashSet::new());
        self.newest = None;
    }
}

/// Watches until the connection is closed.
async fn run(channel: Arc<Channel>, store: Store, hub: Weak<Hub>, mut replaced: Vec<Arc<Channel>>) {
    let _end = End(Arc::clone(&channel));
    let mut pauses = pauses();
    loop {
        let error = match store.watch(channel.scope.clone()).await {
            Ok(watch) => {
                let taken_over = || {
                    if let Some(hub) = hub.upgrade().filter(|_| !replaced.is_empty()) {
                        hub.replace(&std::mem::take(&mut replaced), &channel);
                    }
                };
                follow(&channel, watch, &mut pauses, taken_over).await
            }
            Err(error) => error,
        };
        {
            let mut heard = lock(&channel.heard);
            heard.cut_off(&error);
            if matches!(error, KvError::Closed { .. }) {
                return;
            }
        }
        tracing::warn!(store = store.name(), %error, "a shared watch cannot go on yet");
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

/// Tells those that are left when the task ends, also where its runtime does.
struct End(Arc<Channel>);

impl Drop for End {
    fn drop(&mut self) {
        let mut heard = lock(&self.0.heard);
        heard.has_ended = true;
        heard.by_key.values().flatten().chain(&heard.by_prefix).for_each(|mailbox| mailbox.end());
    }
}

/// Tells of what a watch delivers, until it ends.
async fn follow(
    channel: &Channel,
    mut watch: Watch,
    pauses: &mut ExponentialBackoff,
    mut caught_up: impl FnMut(),
) -> KvError {
    let mut links = watch.link_changes();
    lock(&channel.heard).link(watch.link());
    loop {
        let Some(update) = next(&mut watch, &mut links).await else {
            lock(&channel.heard).link(watch.link());
            continue;
        };
        match update {
            None => return KvError::Closed { operation: "watch" },
            Some(Err(error)) => return error,
            Some(Ok(update)) => {
                *pauses = self::pauses();
                let is_caught_up = update == KvUpdate::CaughtUp;
                lock(&channel.heard).hear(update);
                if is_caught_up {
                    caught_up();
                }
            }
        }
    }
}

/// The next update; none where the link is another one.
async fn next(
    watch: &mut Watch,
    links: &mut Option<watch::Receiver<WatchLink>>,
) -> Option<Option<Result<KvUpdate, KvError>>> {
    let next = pin!(watch.next());
    let Some(links) = links else { return Some(next.await) };
    match select(next, pin!(links.changed())).await {
        Either::Left((update, _)) => Some(update),
        Either::Right((Ok(()), _)) => None,
        Either::Right((Err(_), next)) => Some(next.await),
    }
}

/// The pauses between tries. Jittered, since everybody else's watch ended at the same moment.
fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(10))
        .without_max_times()
        .with_jitter()
        .build()
}
