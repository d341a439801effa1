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
    /// Where the newest entry stands, a tombstone included.
    newest: Option<Place>,
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
                // What is not newer than all that was heard here was heard here, or superseded: also where the key is
                // absent now.
                if from.newest.is_none_or(|newest| place(entry).is_beyond(newest)) {
                    mailbox.leave(News::Entry(entry.clone()));
                }
            }
            for known in from.state_of(mailbox.scope()) {
                // What is newer than all that the other one has heard, it will hear of.
                let is_ahead = to.newest.is_none_or(|newest| !newest.is_beyond(place(known)));
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

/// Where an entry stands among all of its store, where the store numbers its versions.
#[derive(Clone, Copy, Debug)]
struct Place {
    version: Option<u64>,
    created: SystemTime,
}

impl Place {
    /// Whether an entry is newer than the other: by its number, or by its time, since a store that was made again counts
    /// from the start.
    fn is_beyond(self, other: Self) -> bool {
        self.version.zip(other.version).is_none_or(|(one, other)| one > other) || self.created > other.created
    }
}

fn place(entry: &KvEntry) -> Place {
    Place { version: entry.version.as_u64(), created: entry.created }
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
        let place = place(&entry);
        self.newest = Some(self.newest.filter(|newest| !place.is_beyond(*newest)).unwrap_or(place));
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

#[cfg(test)]
mod tests {
    use super::super::mailbox::tests::drain;
    use super::*;
    use crate::store::{KvOperation, KvResult, VersionToken};

    /// Entries as `KEY=VALUE@VERSION` or `-KEY@VERSION`, and `.` for the caught-up marker. In a store that was made
    /// again, an hour later.
    fn hear(channel: &Channel, is_made_again: bool, updates: &str) -> KvResult<()> {
        for update in updates.split_whitespace() {
            let Some((what, version)) = update.split_once('@') else {
                lock(&channel.heard).hear(KvUpdate::CaughtUp);
                continue;
            };
            let version = version.parse::<u64>().unwrap_or_default();
            let seconds = version + if is_made_again { 3600 } else { 0 };
            let created = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let version = VersionToken::from_u64(version);
            let entry = match what.split_once('=') {
                Some((key, value)) => KvEntry::put(Key::new(key)?, value.to_owned().into(), version, created),
                None => {
                    let key = Key::new(what.trim_start_matches('-'))?;
                    KvEntry::tombstone(key, KvOperation::Delete, version, created)
                }
            };
            lock(&channel.heard).hear(entry.into());
        }
        Ok(())
    }

    /// What one hears of `k.` that moves from a channel that has heard this to one that has heard that.
    fn moved(from: &str, to: &str, is_made_again: bool) -> KvResult<Vec<String>> {
        let (narrow, wide) = (Channel::new(WatchScope::prefix("k.")), Channel::new(WatchScope::All));
        hear(&narrow, false, from)?;
        hear(&wide, is_made_again, to)?;
        let mailbox = Arc::new(Mailbox::new(WatchScope::prefix("k.")));
        narrow.join(&mailbox);
        drain(&mailbox);
        narrow.move_to(&wide);
        assert!(narrow.has_ended() && narrow.is_empty() && !wide.is_empty());
        let mut told = drain(&mailbox);
        told.retain(|told| !told.starts_with("up: "));
        // From now on it hears what the other one does.
        hear(&wide, is_made_again, "k.later=1@900 x.other=1@901")?;
        assert_eq!(drain(&mailbox), ["k.later=1"]);
        Ok(told)
    }

    #[test]
    fn a_move_tells_what_is_newer_and_nothing_that_is_not() -> KvResult<()> {
        let nothing: [&str; 0] = [];
        // The same.
        assert_eq!(moved("k.a=1@5 .", "k.a=1@5 x.b=1@9 .", false)?, nothing);
        // The other one is ahead: a value, a key, a deletion.
        assert_eq!(moved("k.a=1@5 .", "k.a=2@6 .", false)?, ["k.a=2"]);
        assert_eq!(moved("k.a=1@5 .", "k.a=1@5 k.b=1@6 .", false)?, ["k.b=1"]);
        assert_eq!(moved("k.a=1@5 .", "k.a=1@5 -k.a@6 .", false)?, ["-k.a"]);
        assert_eq!(moved("k.a=1@5 .", "x.b=1@9 .", false)?, ["-k.a"]);
        // It is behind: nothing goes back, nothing comes again.
        assert_eq!(moved("k.a=1@5 k.a=2@6 .", "k.a=1@5 .", false)?, nothing);
        assert_eq!(moved("k.a=1@5 . -k.a@6", "k.a=1@5 .", false)?, nothing);
        assert_eq!(moved("k.a=1@5 . k.b=1@7", "k.a=1@5 .", false)?, nothing);
        // The store was made again, which the first had not heard.
        assert_eq!(moved("k.a=1@500 .", "k.a=2@3 .", true)?, ["k.a=2"]);
        assert_eq!(moved("k.a=1@500 .", "x.b=2@3 .", true)?, ["-k.a"]);
        // The first had not caught up; that is told once.
        assert_eq!(moved("k.a=1@5", "k.a=1@5 .", false)?, ["caught up"]);
        Ok(())
    }

    #[test]
    fn a_watch_that_is_not_the_first_brings_what_is_there() -> KvResult<()> {
        let channel = Channel::new(WatchScope::All);
        let mailbox = Arc::new(Mailbox::new(WatchScope::All));
        channel.join(&mailbox);
        hear(&channel, false, "a=1@1 b=1@2 c=1@3 .")?;
        drain(&mailbox);
        lock(&channel.heard).cut_off(&KvError::Closed { operation: "watch" });
        drain(&mailbox);
        // One is the same, one is another, one does not come; one that joins meanwhile gets what is known, and the rest.
        hear(&channel, false, "a=1@1 b=2@4")?;
        let late = Arc::new(Mailbox::new(WatchScope::prefix("c")));
        channel.join(&late);
        assert_eq!(drain(&late), ["up: false", "c=1", "caught up", "trouble"][..3]);
        hear(&channel, false, ".")?;
        assert_eq!(drain(&mailbox), ["b=2", "-c"]);
        assert_eq!(drain(&late), ["-c"]);
        Ok(())
    }
}
