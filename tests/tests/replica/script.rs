//! A backend whose watches deliver what a test wants.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, stream};
use shizuku_kv::replica::Replica;
use shizuku_kv::{
    Connection, Key, KvEntry, KvError, KvOperation, KvResult, KvStream, KvUpdate, MemoryConnection,
    Store, StoreFigures, VersionToken, Watch, WatchCursor, WatchLink, WatchScope,
};
use shizuku_kv_tests::faulty::{
    Abilities, Answer, Call, FaultyStore, Hook, Next, Operation, Update,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::Disk;
use crate::support::{Follower, follow, real};

/// A request for a watch.
pub(crate) struct Opening {
    pub(crate) scope: WatchScope,
    pub(crate) from: Option<WatchCursor>,
    answer: oneshot::Sender<KvResult<Watch>>,
}

impl Opening {
    pub(crate) fn accept(self) -> Feed {
        let (items, receiver) = mpsc::unbounded_channel::<Update>();
        let pulled = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&pulled);
        let updates = stream::unfold(receiver, move |mut receiver| {
            let counter = Arc::clone(&counter);
            async move {
                // A feed that the test has dropped delivers nothing more.
                let Some(item) = receiver.recv().await else { return pending().await };
                counter.fetch_add(1, Ordering::SeqCst);
                Some((item, receiver))
            }
        });
        let link = watch::Sender::default();
        let watch = Watch::new(updates).with_link(link.subscribe());
        // The requester may be gone.
        let _ = self.answer.send(Ok(watch));
        Feed { items, pulled, link }
    }

    /// Answers with a watch that the test has made.
    pub(crate) fn with(self, watch: Watch) {
        let _ = self.answer.send(Ok(watch));
    }

    pub(crate) fn refuse(self, error: KvError) {
        let _ = self.answer.send(Err(error));
    }
}

/// The server's side of an open watch.
pub(crate) struct Feed {
    items: mpsc::UnboundedSender<Update>,
    pulled: Arc<AtomicUsize>,
    link: watch::Sender<WatchLink>,
}

impl Feed {
    fn item(&self, item: Update) -> &Self {
        // The watch may have been dropped.
        let _ = self.items.send(item);
        self
    }

    /// Delivers `key=value`, `-key` or `.`, at a position, which is the version too.
    pub(crate) fn say(&self, position: u64, word: &str) -> &Self {
        self.item(Ok((update(position, word), cursor(position))))
    }

    /// Delivers any update at a position.
    pub(crate) fn raw(&self, position: u64, update: KvUpdate) -> &Self {
        self.item(Ok((update, cursor(position))))
    }

    /// Delivers these one after the other from a position on.
    pub(crate) fn all<W: AsRef<str>>(&self, position: u64, words: &[W]) -> &Self {
        for (position, word) in (position..).zip(words) {
            self.say(position, word.as_ref());
        }
        self
    }

    pub(crate) fn end(&self, error: KvError) {
        self.item(Err(error));
    }

    pub(crate) fn link(&self, link: WatchLink) {
        self.link.send_replace(link);
    }

    /// Returns the number of updates that were taken.
    pub(crate) fn pulled(&self) -> usize {
        self.pulled.load(Ordering::SeqCst)
    }

    /// Waits until the watch is dropped.
    pub(crate) async fn left(&self) {
        real(self.items.closed()).await.expect("the watch is dropped");
    }
}

pub(crate) fn update(position: u64, word: &str) -> KvUpdate {
    let version = VersionToken::from_u64(position);
    if let Some(key) = word.strip_prefix('!') {
        return KvEntry::tombstone(key_of(key), KvOperation::Expire, version, time(position))
            .into();
    }
    match (word.split_once('='), word.strip_prefix('-')) {
        (Some((key, value)), _) => {
            KvEntry::put(key_of(key), value.to_owned().into(), version, time(position)).into()
        }
        (None, Some(key)) => {
            KvEntry::tombstone(key_of(key), KvOperation::Delete, version, time(position)).into()
        }
        (None, None) => KvUpdate::CaughtUp,
    }
}

fn key_of(key: &str) -> Key {
    Key::new(key).unwrap()
}

fn time(position: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(position)
}

pub(crate) fn cursor(position: u64) -> WatchCursor {
    WatchCursor::new([1; 16], position, time(position))
}

pub(crate) fn away() -> KvError {
    KvError::unavailable("watch", "the server is away")
}

pub(crate) fn expired() -> KvError {
    KvError::cursor_expired("script", "the test says so")
}

/// The test's side of the backend.
pub(crate) struct Script {
    pub(crate) store: Store,
    pub(crate) contents: Arc<Mutex<Contents>>,
    openings: mpsc::UnboundedReceiver<Opening>,
}

/// The answers of the store, apart from its watches.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The newest position and the number of keys; `None` if the store reports every change to its
    /// watches.
    pub(crate) figures: Option<(u64, u64)>,
    /// True if a request for the figures is rejected for lack of permission.
    pub(crate) refuses_figures: bool,
    /// True if the store cannot count the keys of the scope.
    pub(crate) is_uncountable: bool,
    /// Number of requests for its figures.
    pub(crate) figure_requests: usize,
    /// Number of listings of its keys.
    pub(crate) listings: usize,
    /// The newest entries, by their positions.
    pub(crate) entries: Vec<(u64, &'static str)>,
}

impl Contents {
    fn newest(&self) -> Vec<KvEntry> {
        let entries = self.entries.iter();
        entries.filter_map(|(position, word)| update(*position, word).into_entry()).collect()
    }

    fn figures(&mut self) -> KvResult<StoreFigures> {
        self.figure_requests += 1;
        if self.refuses_figures {
            return Err(KvError::unauthorized("figures", "no permission for figures"));
        }
        if self.is_uncountable {
            return Err(KvError::unsupported("figures", "the scope cannot be counted"));
        }
        Ok(match self.figures {
            Some((newest, keys)) => StoreFigures::counted([1; 16], newest, keys),
            None => StoreFigures::told([1; 16], 0),
        })
    }

    fn keys(&mut self, scope: &WatchScope) -> KvStream<Key> {
        self.listings += 1;
        let live = self.newest().into_iter().filter(|entry| !entry.is_tombstone());
        let keys = live.map(|entry| entry.key).filter(|key| scope.matches(key));
        KvStream::new(stream::iter(keys.map(Ok).collect::<Vec<_>>()))
    }
}

impl Script {
    pub(crate) fn new() -> Self {
        let (sender, openings) = mpsc::unbounded_channel();
        let contents = Arc::<Mutex<Contents>>::default();
        let memory = MemoryConnection::new();
        let store = memory.store("script").now_or_never().expect("memory answers at once").unwrap();
        let store = FaultyStore::over(&store, &Arc::new(Scripted(sender, Arc::clone(&contents))));
        Self { store: store.with_deadline(Duration::from_secs(3600)), contents, openings }
    }

    /// Returns a replica of all keys, which keeps its entries on a disk.
    pub(crate) fn replica(&self, disk: &Disk) -> Replica<Disk> {
        Replica::new(&self.store, WatchScope::All).storage(disk.clone())
    }

    /// Starts such a replica.
    pub(crate) fn follow(&self, disk: &Disk) -> Follower<Disk> {
        follow(&self.store, disk)
    }

    /// Returns the next requested watch.
    #[track_caller]
    pub(crate) fn opening(&mut self) -> impl Future<Output = Opening> + use<'_> {
        let checkpoint = std::panic::Location::caller();
        async move {
            let opening = real(self.openings.recv()).await;
            opening.unwrap_or_else(|| panic!("{checkpoint}: no watch is opened")).expect("a store")
        }
    }

    /// Opens the next requested watch.
    #[track_caller]
    pub(crate) fn accept(&mut self) -> impl Future<Output = Feed> + use<'_> {
        let opening = self.opening();
        async move { opening.await.accept() }
    }
}

#[derive(Debug)]
struct Scripted(mpsc::UnboundedSender<Opening>, Arc<Mutex<Contents>>);

pub(crate) fn lock(contents: &Mutex<Contents>) -> std::sync::MutexGuard<'_, Contents> {
    contents.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hook for Scripted {
    async fn call(self: &Arc<Self>, call: Call, _: &Next) -> KvResult<Answer> {
        match call.operation {
            Operation::Entry(key) | Operation::LeaderEntry(key) => {
                let entries = lock(&self.1).newest();
                Ok(entries.into_iter().find(|entry| entry.key == key).into())
            }
            Operation::Figures(_) => lock(&self.1).figures().map(Answer::from),
            Operation::Keys(scope) => Ok(lock(&self.1).keys(&scope).into()),
            Operation::Watch(scope, from) => {
                let (answer, answered) = oneshot::channel();
                let _ = self.0.send(Opening { scope, from, answer });
                let watch = answered.await.unwrap_or_else(|_| Err(KvError::closed("watch")));
                watch.map(Answer::from)
            }
            other => panic!("the script does not answer {}", other.name()),
        }
    }

    fn abilities(&self, abilities: Abilities) -> Abilities {
        Abilities { watches: true, incarnation: None, ..abilities.read_only() }
    }
}
