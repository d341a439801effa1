//! A store as one process reaches it: late, not at all, or without being told what became of a write.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream;
use shizuku_kv::{
    ConnectionCapabilities, Deadline, Key, KvEntry, KvError, KvFenced, KvReader, KvResult, KvStore,
    KvStream, KvUpdate, KvWatcher, KvWriter, VersionToken, Watch, WatchCursor, WatchScope,
};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::random::Random;

/// What is between a process and the store.
#[derive(Debug)]
pub(crate) struct Link {
    state: watch::Sender<State>,
    random: Mutex<Random>,
    rates: Rates,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Nothing gets through. What is on its way arrives later.
    Cut,
    /// The process is gone: it sends nothing any more. What is on its way arrives.
    Crashed,
    /// Everything gets through at once, and nothing is lost. Single changes of locks are still refused now and then: that
    /// may be the last thing that happens to a lock, and whoever waits has to get over it by itself.
    Quiet,
}

/// So often a change of a lock is refused when all else is quiet: once in so many times.
const REFUSED_IN_QUIET: u64 = 8;

/// How often something goes wrong: once in so many times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) lost: u64,
    pub(crate) late: u64,
    pub(crate) refused: u64,
    pub(crate) stale: u64,
    pub(crate) lagging: u64,
    /// Of a round trip, in each direction, in milliseconds.
    pub(crate) slowest: u64,
}

/// What a store does wrong, for the proof that schedules find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// An update takes effect whatever is there.
    UpdatesDoNotCompare,
    /// So does a deletion of a version: a session is ended that has just been renewed.
    DeletionsDoNotCompare,
    /// What a watch brings of locks stops at the first update: who waits is never told.
    WatchesStop,
}

/// How a write goes.
struct Course {
    there: Duration,
    back: Duration,
    loses_request: bool,
    loses_answer: bool,
    /// When the process stops waiting for the answer, as one whose connection breaks.
    gives_up: Duration,
}

/// Longer than any deadline.
const LONG: Duration = Duration::from_secs(60);

impl Link {
    pub(crate) fn new(random: Random, rates: Rates) -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(State::Up), random: Mutex::new(random), rates })
    }

    /// One that is quiet.
    pub(crate) fn sound() -> Arc<Self> {
        let rates = Rates { lost: 1, late: 1, refused: 1, stale: 1, lagging: 1, slowest: 1 };
        let link = Self::new(Random::new(0, "sound"), rates);
        link.calm();
        link
    }

    pub(crate) fn cut(&self) {
        self.change(State::Cut);
    }

    pub(crate) fn heal(&self) {
        self.change(State::Up);
    }

    pub(crate) fn crash(&self) {
        self.change(State::Crashed);
    }

    /// It is quiet from now on.
    pub(crate) fn calm(&self) {
        self.change(State::Quiet);
    }

    fn change(&self, to: State) {
        self.state.send_if_modified(|state| {
            let changes = !matches!(*state, State::Crashed | State::Quiet);
            if changes {
                *state = to;
            }
            changes
        });
    }

    fn is(&self, state: State) -> bool {
        *self.state.borrow() == state
    }

    async fn until(&self, passes: impl Fn(State) -> bool) {
        // The sender is here.
        let _ = self.state.subscribe().wait_for(|state| passes(*state)).await;
    }

    /// Until what was sent has arrived at the store.
    async fn arrives(&self) {
        self.until(|state| state != State::Cut).await;
    }

    /// Until what the store says has arrived here.
    async fn answers(&self) {
        self.until(|state| matches!(state, State::Up | State::Quiet)).await;
    }

    fn once_in(&self, times: u64) -> bool {
        !self.is(State::Quiet) && self.random.lock().unwrap().once_in(times)
    }

    /// A single change of a lock's record may be refused by itself.
    async fn admits(&self, operation: &'static str, key: &Key, deadline: Deadline) -> KvResult<()> {
        let is_quiet = self.is(State::Quiet);
        let rate = if is_quiet { REFUSED_IN_QUIET } else { self.rates.refused };
        let draw = |times| self.random.lock().unwrap().once_in(times);
        if !key.starts_with("rw_lock.") || !draw(rate) {
            return Ok(());
        }
        if draw(2) {
            let reason = "no leader, as it was decided".to_owned();
            return Err(KvError::Unavailable { operation, reason, source: None });
        }
        if !is_quiet {
            sleep(deadline.remaining()).await;
        }
        Err(deadline.timeout(operation, Some(key)))
    }

    fn way(&self) -> Duration {
        if self.is(State::Quiet) {
            return Duration::from_micros(200);
        }
        Duration::from_micros(self.random.lock().unwrap().below(self.rates.slowest * 1000))
    }

    fn course(&self) -> Course {
        let mut course = Course {
            there: self.way(),
            back: self.way(),
            loses_request: self.once_in(2 * self.rates.lost),
            loses_answer: self.once_in(self.rates.lost),
            gives_up: LONG,
        };
        if self.once_in(self.rates.late) {
            // Often beyond a lease, and done all the same.
            let mut random = self.random.lock().unwrap();
            course.there = Duration::from_millis(random.below(4000));
            course.gives_up = Duration::from_millis(random.below(1500));
        }
        course
    }
}

/// The store at the other end of a link.
#[derive(Clone)]
pub(crate) struct LinkedStore {
    inner: Arc<dyn KvStore>,
    link: Arc<Link>,
    broken: Broken,
}

#[derive(Clone)]
enum Write {
    Put(Bytes),
    Create(Bytes),
    Update(Bytes, VersionToken),
    Delete,
    DeleteWithVersion(VersionToken),
    Purge,
}

impl LinkedStore {
    pub(crate) fn new(inner: &Arc<dyn KvStore>, link: &Arc<Link>, broken: Broken) -> Self {
        Self { inner: Arc::clone(inner), link: Arc::clone(link), broken }
    }

    async fn write(
        &self,
        operation: &'static str,
        key: &Key,
        write: Write,
        deadline: Deadline,
    ) -> KvResult<VersionToken> {
        self.sent(operation, deadline).await?;
        self.link.admits(operation, key, deadline).await?;
        let course = self.link.course();
        let (answer, answered) = oneshot::channel();
        let (this, the_key) = (self.clone(), key.clone());
        // By itself: it goes on where nobody waits for it any more.
        tokio::spawn(async move {
            sleep(course.there).await;
            this.link.arrives().await;
            if course.loses_request {
                return;
            }
            let result = this.apply(&the_key, write).await;
            sleep(course.back).await;
            this.link.answers().await;
            if !course.loses_answer {
                let _ = answer.send(result);
            }
        });
        // Backends may take a little longer to find out what became of a write.
        let overrun = Duration::from_millis(self.link.random.lock().unwrap().below(250));
        let patience = (deadline.instant() + overrun).min(Instant::now() + course.gives_up);
        match timeout_at(patience, answered).await {
            Ok(Ok(result)) => result,
            _ => Err(KvError::OutcomeUnknown { operation, key: key.clone(), source: None }),
        }
    }

    async fn apply(&self, key: &Key, write: Write) -> KvResult<VersionToken> {
        let deadline = Deadline::after(LONG);
        let writer = self.inner.writer().expect("memory can be written");
        match write {
            Write::Put(value) => writer.put(key, value, deadline).await,
            Write::Create(value) => writer.create(key, value, deadline).await,
            Write::Update(value, _) if self.broken == Broken::UpdatesDoNotCompare => {
                writer.put(key, value, deadline).await
            }
            Write::DeleteWithVersion(_) if self.broken == Broken::DeletionsDoNotCompare => {
                writer.delete(key, deadline).await
            }
            Write::Update(value, expected) => writer.update(key, value, expected, deadline).await,
            Write::Delete => writer.delete(key, deadline).await,
            Write::DeleteWithVersion(expected) => {
                writer.delete_with_version(key, expected, deadline).await
            }
            Write::Purge => writer.purge(key, deadline).await,
        }
    }

    /// Whether a request leaves the process at all.
    async fn sent(&self, operation: &'static str, deadline: Deadline) -> KvResult<()> {
        if self.link.is(State::Crashed) {
            std::future::pending::<()>().await;
        }
        // The process knows that it is cut off, or does not know it yet.
        if self.link.is(State::Cut) && self.link.once_in(2) {
            let healed = timeout_at(deadline.instant(), self.link.arrives()).await;
            healed.map_err(|_| deadline.timeout(operation, None))?;
        }
        if self.link.once_in(self.link.rates.refused) {
            sleep(self.link.way()).await;
            let reason = "it was so decided".to_owned();
            return Err(KvError::Unavailable { operation, reason, source: None });
        }
        Ok(())
    }

    /// What is read was there at some time since it was asked for, unless the replica is behind.
    async fn read(&self, key: &Key, deadline: Deadline) -> KvResult<Option<KvEntry>> {
        self.sent("get", deadline).await?;
        sleep(self.link.way()).await;
        self.link.arrives().await;
        let entry = if self.link.once_in(self.link.rates.stale) {
            let history =
                self.inner.history(key.clone(), Deadline::after(LONG)).try_collect().await?;
            let behind = 2 + self.link.random.lock().unwrap().below(3);
            history.into_iter().rev().nth(usize::try_from(behind).expect("a small number") - 1)
        } else {
            self.inner.entry(key, Deadline::after(LONG)).await?
        };
        sleep(self.link.way()).await;
        self.link.answers().await;
        Ok(entry)
    }
}

impl fmt::Debug for LinkedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkedStore").finish_non_exhaustive()
    }
}

impl KvStore for LinkedStore {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> ConnectionCapabilities {
        self.inner.capabilities()
    }

    fn max_value_size(&self) -> usize {
        self.inner.max_value_size()
    }

    fn writer(&self) -> Option<&dyn KvWriter> {
        Some(self)
    }

    fn watcher(&self) -> Option<&dyn KvWatcher> {
        Some(self)
    }

    /// Nobody here writes with tokens; that it could be done tells that the store forgets nothing.
    fn fenced(&self) -> Option<&dyn KvFenced> {
        self.inner.fenced()
    }
}

impl KvReader for LinkedStore {
    fn entry<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Option<KvEntry>>> {
        Box::pin(self.read(key, deadline))
    }

    fn entries<'a>(
        &'a self,
        keys: &'a [Key],
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<Vec<Option<KvEntry>>>> {
        self.inner.entries(keys, deadline)
    }

    fn history(&self, key: Key, deadline: Deadline) -> KvStream<KvEntry> {
        self.inner.history(key, deadline)
    }

    fn scan(&self, scope: WatchScope, deadline: Duration) -> KvStream<KvEntry> {
        self.inner.scan(scope, deadline)
    }

    fn keys(&self, scope: WatchScope, deadline: Duration) -> KvStream<Key> {
        self.inner.keys(scope, deadline)
    }
}

impl KvWriter for LinkedStore {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.write("put", key, Write::Put(value), deadline))
    }

    fn create<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.write("create", key, Write::Create(value), deadline))
    }

    fn update<'a>(
        &'a self,
        key: &'a Key,
        value: Bytes,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.write("update", key, Write::Update(value, expected), deadline))
    }

    fn delete<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.write("delete", key, Write::Delete, deadline))
    }

    fn delete_with_version<'a>(
        &'a self,
        key: &'a Key,
        expected: VersionToken,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.write(
            "delete_with_version",
            key,
            Write::DeleteWithVersion(expected),
            deadline,
        ))
    }

    fn purge<'a>(
        &'a self,
        key: &'a Key,
        deadline: Deadline,
    ) -> BoxFuture<'a, KvResult<VersionToken>> {
        Box::pin(self.write("purge", key, Write::Purge, deadline))
    }

    fn put_many<'a>(
        &'a self,
        items: Vec<(Key, Bytes)>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<KvResult<VersionToken>>> {
        self.inner.writer().expect("memory can be written").put_many(items, deadline)
    }
}

type Item = KvResult<(KvUpdate, WatchCursor)>;

/// A watch through the link: each update is late, and one that was superseded meanwhile may be left out.
struct Watching {
    inner: Watch,
    link: Arc<Link>,
    /// Taken from `inner` already.
    pending: Option<Item>,
    stops: bool,
}

impl Watching {
    async fn take(&mut self) -> Option<Item> {
        let update = self.inner.next().await?;
        let nowhere = WatchCursor::new([0; 16], 0, SystemTime::UNIX_EPOCH);
        let cursor = self.inner.cursor().unwrap_or(nowhere);
        Some(update.map(|update| (update, cursor)))
    }

    async fn next(&mut self) -> Option<Item> {
        let mut item = match self.pending.take() {
            Some(item) => item,
            None => self.take().await?,
        };
        sleep(self.link.way()).await;
        if self.link.once_in(self.link.rates.lagging) {
            let lag = self.link.random.lock().unwrap().below(3000);
            sleep(Duration::from_millis(lag)).await;
        }
        self.link.answers().await;
        if self.stops && key_of(&item).is_some() {
            std::future::pending::<()>().await;
        }
        while let Some(Some(next)) = self.take().now_or_never() {
            if key_of(&item).is_none() || key_of(&item) != key_of(&next) || self.link.once_in(2) {
                self.pending = Some(next);
                break;
            }
            item = next;
        }
        Some(item)
    }
}

fn key_of(item: &Item) -> Option<&Key> {
    Some(&item.as_ref().ok()?.0.entry()?.key)
}

impl KvWatcher for LinkedStore {
    fn watch(
        &self,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> BoxFuture<'_, KvResult<Watch>> {
        Box::pin(async move {
            self.sent("watch", deadline).await?;
            sleep(self.link.way()).await;
            self.link.answers().await;
            let inner = self
                .inner
                .watcher()
                .expect("memory can be watched")
                .watch(scope, from, deadline)
                .await?;
            let stops = self.broken == Broken::WatchesStop;
            let watching = Watching { inner, link: Arc::clone(&self.link), pending: None, stops };
            Ok(Watch::new(stream::unfold(watching, |mut watching| async move {
                Some((watching.next().await?, watching))
            })))
        })
    }
}
