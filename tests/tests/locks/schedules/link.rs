//! A store as one process reaches it: late, not at all, or with lost acknowledgements.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use shizuku_kv::{Deadline, Key, KvEntry, KvError, KvResult, KvStream, Store, WriteCondition};
use shizuku_kv_tests::Random;
use shizuku_kv_tests::faulty::{
    Abilities, Answer, Call, FaultyStore, Hook, Next, Operation, Update, Updates,
};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

/// The connection between a process and the store.
#[derive(Debug)]
pub(crate) struct Link {
    state: watch::Sender<State>,
    random: Mutex<Random>,
    rates: Rates,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Nothing gets through. Requests in transit arrive later.
    Cut,
    /// The process is gone and sends nothing any more. Requests in transit arrive.
    Crashed,
    /// Everything gets through at once, and nothing is lost. Single changes of locks are still
    /// rejected sometimes. Such a rejection may be the last event of a lock, and its waiters must
    /// recover on their own.
    Quiet,
}

/// A change of a lock is rejected once in this many times when all else is quiet.
const REFUSED_IN_QUIET: u64 = 8;

/// Rates of faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// An answer is lost, or a write or a watch is late, or a request is rejected or reads from a
    /// replica that is behind: each once in this many times.
    pub(crate) often: u64,
    /// Maximum delay of a round trip in each direction, in milliseconds.
    pub(crate) slowest: u64,
}

/// A fault of the store, to prove that schedules find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// An update takes effect whatever the entry is.
    UpdatesDoNotCompare,
    /// So does a deletion of a version, which ends a session that has just been renewed.
    DeletionsDoNotCompare,
    /// Watches of locks deliver nothing after the first update, so that a waiter is never notified.
    WatchesStop,
}

/// The course of a write.
struct Course {
    there: Duration,
    back: Duration,
    loses_request: bool,
    loses_answer: bool,
    /// Time after which the process stops waiting for the answer, as if its connection broke.
    gives_up: Duration,
}

/// Longer than any deadline.
const LONG: Duration = Duration::from_secs(60);

impl Link {
    pub(crate) fn new(random: Random, rates: Rates) -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(State::Up), random: Mutex::new(random), rates })
    }

    /// Returns a quiet link.
    pub(crate) fn sound() -> Arc<Self> {
        let link = Self::new(Random::new(0, "sound"), Rates { often: 1, slowest: 1 });
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

    /// Makes the link quiet from now on.
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
        // Cannot fail, because this has the sender.
        let _ = self.state.subscribe().wait_for(|state| passes(*state)).await;
    }

    /// Waits until a request has arrived at the store.
    async fn arrives(&self) {
        self.until(|state| state != State::Cut).await;
    }

    /// Waits until an answer of the store has arrived here.
    async fn answers(&self) {
        self.until(|state| matches!(state, State::Up | State::Quiet)).await;
    }

    fn once_in(&self, times: u64) -> bool {
        !self.is(State::Quiet) && self.random.lock().unwrap().once_in(times)
    }

    /// Decides whether a single change of a lock's record is rejected.
    async fn admits(&self, operation: &'static str, key: &Key, deadline: Deadline) -> KvResult<()> {
        let is_quiet = self.is(State::Quiet);
        let rate = if is_quiet { REFUSED_IN_QUIET } else { self.rates.often };
        let draw = |times| self.random.lock().unwrap().once_in(times);
        if !key.starts_with("rw_lock.") || !draw(rate) {
            return Ok(());
        }
        if draw(2) {
            let reason = "no leader, as it was decided";
            return Err(KvError::unavailable(operation, reason));
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
            loses_request: self.once_in(2 * self.rates.often),
            loses_answer: self.once_in(self.rates.often),
            gives_up: LONG,
        };
        if self.once_in(self.rates.often) {
            // Often later than a lease, but it takes effect nevertheless.
            let mut random = self.random.lock().unwrap();
            course.there = Duration::from_millis(random.below(4000));
            course.gives_up = Duration::from_millis(random.below(1500));
        }
        course
    }
}

/// Returns the store at the other end of a link.
pub(crate) fn linked(store: &Store, link: &Arc<Link>, broken: Broken) -> Store {
    FaultyStore::over(store, &Arc::new(Far { link: Arc::clone(link), broken }))
}

/// The way between a process and the store, and the store's own faults.
#[derive(Debug)]
struct Far {
    link: Arc<Link>,
    broken: Broken,
}

impl Hook for Far {
    async fn call(self: &Arc<Self>, call: Call, next: &Next) -> KvResult<Answer> {
        let deadline = call.deadline;
        match &call.operation {
            Operation::Write(key, _) => {
                let name = call.operation.name();
                self.sent(name, deadline).await?;
                self.link.admits(name, key, deadline).await?;
                self.send(call, next).await
            }
            Operation::Entry(key) | Operation::LeaderEntry(key) => {
                self.sent("get", deadline).await?;
                self.read(key.clone(), next).await
            }
            Operation::Watch(..) => {
                self.sent("watch", deadline).await?;
                sleep(self.link.way()).await;
                self.link.answers().await;
                let stops = self.broken == Broken::WatchesStop;
                let link = Arc::clone(&self.link);
                let answer = next.call(call).await?;
                Ok(answer.map_updates(|inner| {
                    let watching = Watching { inner, link, pending: None, stops };
                    let updates = stream::unfold(watching, |mut watching| async move {
                        Some((watching.next().await?, watching))
                    });
                    updates.boxed()
                }))
            }
            _ => next.call(call).await,
        }
    }

    /// No lock here writes with times to live.
    fn abilities(&self, abilities: Abilities) -> Abilities {
        Abilities { granularity: None, ..abilities }
    }
}

impl Far {
    async fn send(&self, mut call: Call, next: &Next) -> KvResult<Answer> {
        let course = self.link.course();
        let (answer, answered) = oneshot::channel();
        let (original, next, link) = (call.clone(), next.clone(), Arc::clone(&self.link));
        self.break_comparison(&mut call.operation);
        call.deadline = Deadline::after(LONG);
        // Runs in a task of its own, so that it continues after its caller is gone.
        tokio::spawn(async move {
            sleep(course.there).await;
            link.arrives().await;
            if course.loses_request {
                return;
            }
            let result = next.call(call).await;
            sleep(course.back).await;
            link.answers().await;
            if !course.loses_answer {
                let _ = answer.send(result);
            }
        });
        // Backends may take a little longer to find out the outcome of a write.
        let overrun = Duration::from_millis(self.link.random.lock().unwrap().below(250));
        let deadline = original.deadline.instant() + overrun;
        match timeout_at(deadline.min(Instant::now() + course.gives_up), answered).await {
            Ok(Ok(result)) => result,
            _ => original.lost(),
        }
    }

    fn break_comparison(&self, operation: &mut Operation) {
        let Operation::Write(_, write) = operation else { return };
        let broken = if write.is_deletion() {
            Broken::DeletionsDoNotCompare
        } else {
            Broken::UpdatesDoNotCompare
        };
        if self.broken == broken && matches!(write.condition, WriteCondition::Exactly(_)) {
            write.condition = WriteCondition::Any;
        }
    }

    /// Decides whether a request leaves the process at all.
    async fn sent(&self, operation: &'static str, deadline: Deadline) -> KvResult<()> {
        if self.link.is(State::Crashed) {
            std::future::pending::<()>().await;
        }
        // The process knows that it is cut off, or does not know it yet.
        if self.link.is(State::Cut) && self.link.once_in(2) {
            let healed = timeout_at(deadline.instant(), self.link.arrives()).await;
            healed.map_err(|_| deadline.timeout(operation, None))?;
        }
        if self.link.once_in(self.link.rates.often) {
            sleep(self.link.way()).await;
            let reason = "it was so decided";
            return Err(KvError::unavailable(operation, reason));
        }
        Ok(())
    }

    /// Reads an entry that existed at some time since the request, unless the replica is behind.
    async fn read(&self, key: Key, next: &Next) -> KvResult<Answer> {
        sleep(self.link.way()).await;
        self.link.arrives().await;
        let deadline = Deadline::after(LONG);
        let entry = if self.link.once_in(self.link.rates.often) {
            let history = next.call(Call { operation: Operation::History(key), deadline }).await?;
            let history = KvStream::<KvEntry>::try_from(history)?.try_collect().await?;
            let behind = 2 + self.link.random.lock().unwrap().below(3);
            let behind = usize::try_from(behind).expect("a small number");
            Answer::Entry(history.into_iter().rev().nth(behind - 1))
        } else {
            next.call(Call { operation: Operation::Entry(key), deadline }).await?
        };
        sleep(self.link.way()).await;
        self.link.answers().await;
        Ok(entry)
    }
}

/// A watch through the link: each update is late, and one that was superseded meanwhile may be left
/// out.
struct Watching {
    inner: Updates,
    link: Arc<Link>,
    /// Taken from `inner` already.
    pending: Option<Update>,
    stops: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Update> {
        let mut item = match self.pending.take() {
            Some(item) => item,
            None => self.inner.next().await?,
        };
        sleep(self.link.way()).await;
        if self.link.once_in(self.link.rates.often) {
            let lag = self.link.random.lock().unwrap().below(3000);
            sleep(Duration::from_millis(lag)).await;
        }
        self.link.answers().await;
        if self.stops && key_of(&item).is_some() {
            std::future::pending::<()>().await;
        }
        while let Some(Some(next)) = self.inner.next().now_or_never() {
            if key_of(&item).is_none() || key_of(&item) != key_of(&next) || self.link.once_in(2) {
                self.pending = Some(next);
                break;
            }
            item = next;
        }
        Some(item)
    }
}

fn key_of(update: &Update) -> Option<&Key> {
    Some(&update.as_ref().ok()?.0.entry()?.key)
}
