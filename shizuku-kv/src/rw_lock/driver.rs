//! Shares the future of a coordinator between its background task and the callers that wait for its
//! answers (ADR 0093).
//!
//! A caller polls the future in its own task, so that a request and its answer need no switch to
//! another task. Without such a caller, the background task polls it. The future has one waker for
//! both. A caller that does not poll any more loses its turn to the background task.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod turns;

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;

use self::turns::{Poller, TurnId, Turns};
use crate::store::timer::current_runtime;

/// Minimum time after which a waiting caller loses its turn. The maximum is twice that time.
const TURN: Duration = Duration::from_millis(5);

/// Polls the future of a coordinator, in the background task and in the tasks of callers.
pub(super) struct Driver {
    /// The only runtime on which the future is polled.
    runtime: runtime::Id,
    shared: Mutex<Shared>,
}

struct Shared {
    turns: Turns,
    /// `None` during a poll, and once the future has ended.
    future: Option<BoxFuture<'static, ()>>,
    /// Waker of the caller whose turn it is, once it has polled.
    caller: Option<Waker>,
    background: Option<Waker>,
    /// The panic that ended the future, for the background task.
    panic: Option<Box<dyn Any + Send>>,
}

impl Driver {
    pub(super) fn new(runtime: runtime::Id, future: BoxFuture<'static, ()>) -> Arc<Self> {
        let (turns, future) = (Turns::new(), Some(future));
        let shared = Shared { turns, future, caller: None, background: None, panic: None };
        Arc::new(Self { runtime, shared: Mutex::new(shared) })
    }

    /// Starts the background task. The future is dropped with it.
    pub(super) fn start(self: &Arc<Self>, runtime: &Handle) {
        runtime.spawn(Background(Arc::clone(self)).run());
    }

    /// Starts the turn of a caller, before it sends its request. So the request wakes no other
    /// task. The caller polls its [`Answer`] at once.
    pub(super) fn begin(self: &Arc<Self>) -> Turn {
        let mut shared = self.lock();
        let id = shared.turns.begin();
        let former = shared.caller.take();
        drop(shared);
        Turn { id, driver: Arc::clone(self), former }
    }

    /// Polls the future, if this task has to. The waker is that of the task.
    fn poll(self: &Arc<Self>, by: Option<TurnId>, waker: &Waker) {
        let mut shared = self.lock();
        let is_registered = match by {
            Some(turn) => shared.turns.is_turn_of(turn),
            None => true,
        };
        let kept = if by.is_some() { &mut shared.caller } else { &mut shared.background };
        let former = if is_registered { replace(kept, waker) } else { None };
        let future = if shared.turns.start_poll(by) { shared.future.take() } else { None };
        drop(shared);
        drop(former);
        let Some(mut future) = future else { return };
        let waker = Waker::from(Arc::clone(self));
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        let mut shared = self.lock();
        let next = shared.turns.end_poll(by);
        if matches!(polled, Ok(Poll::Pending)) && !shared.turns.is_over() {
            shared.future = Some(future);
            let waker = next.and_then(|next| shared.waker(next));
            drop(shared);
            waker.into_iter().for_each(Waker::wake);
        } else {
            shared.panic = polled.err();
            drop(shared);
            drop(future);
            self.finish();
        }
    }

    /// Ends the future, and the background task.
    fn finish(&self) {
        let mut shared = self.lock();
        shared.turns.finish();
        let (future, caller) = (shared.future.take(), shared.caller.take());
        let background = shared.background.take();
        drop(shared);
        drop(future);
        caller.into_iter().chain(background).for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Returns the waker of a task. A caller without one has begun its turn, and is about to poll.
    fn waker(&self, poller: Poller) -> Option<Waker> {
        match poller {
            Poller::Caller => self.caller.clone(),
            Poller::Background => self.background.clone(),
        }
    }
}

/// Wakes the task that polls the future.
impl Wake for Driver {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut shared = self.lock();
        let waker = shared.turns.wake().and_then(|poller| shared.waker(poller));
        drop(shared);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

/// The background task. Dropping it ends the future.
struct Background(Arc<Driver>);

impl Background {
    async fn run(self) {
        let driver = &self.0;
        let mut check = pin!(tokio::time::sleep(TURN));
        let mut is_armed = false;
        poll_fn(|context| {
            // Registered before `is_checked` is read, so that a caller that begins to wait later
            // wakes this task.
            let former = replace(&mut driver.lock().background, context.waker());
            drop(former);
            while driver.lock().turns.is_checked() {
                if !mem::replace(&mut is_armed, true) {
                    check.as_mut().reset(Instant::now() + TURN);
                }
                if check.as_mut().poll(context).is_pending() {
                    break;
                }
                let mut shared = driver.lock();
                let caller = if shared.turns.check() { shared.caller.take() } else { None };
                drop(shared);
                caller.into_iter().for_each(Waker::wake);
                is_armed = false;
            }
            driver.poll(None, context.waker());
            // The end of the future wakes this task.
            if driver.lock().turns.is_over() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let panic = driver.lock().panic.take();
        if let Some(panic) = panic {
            // The task of a caller may have polled. The panic belongs to the background task.
            resume_unwind(panic);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Replaces the waker of a task, unless it is the same. Returns the former one, to be dropped
/// outside of the mutex.
fn replace(waker: &mut Option<Waker>, by: &Waker) -> Option<Waker> {
    match waker {
        Some(waker) if waker.will_wake(by) => None,
        _ => waker.replace(by.clone()),
    }
}

/// The turn of a caller to poll the future. Dropping it ends the turn.
#[derive(Debug)]
pub(super) struct Turn {
    id: TurnId,
    driver: Arc<Driver>,
    /// The caller that has lost its turn. The first poll wakes it. `begin` does not, because its
    /// callers hold a mutex, and a waker runs code of other crates.
    former: Option<Waker>,
}

impl Turn {
    fn wake_former(&mut self) {
        self.former.take().into_iter().for_each(Waker::wake);
    }

    /// Records that the caller waits, and may never poll again. Returns `false` if the turn or the
    /// future is over.
    fn wait(&self) -> bool {
        let mut shared = self.driver.lock();
        let is_turn = shared.turns.is_turn_of(self.id) && !shared.turns.is_over();
        let next = if is_turn { shared.turns.wait() } else { None };
        let waker = next.and_then(|next| shared.waker(next));
        drop(shared);
        waker.into_iter().for_each(Waker::wake);
        is_turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.wake_former();
        let mut shared = self.driver.lock();
        if !shared.turns.is_turn_of(self.id) {
            return;
        }
        let caller = shared.caller.take();
        let waker = shared.turns.end(self.id).and_then(|poller| shared.waker(poller));
        drop(shared);
        drop(caller);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The error of a request whose coordinator has ended without an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended;

/// The answer to a request. While it is awaited, the caller polls the coordinator.
///
/// Cancel safe: the background task continues.
#[derive(Debug)]
pub(super) struct Answer<T> {
    turn: Option<Turn>,
    receiver: oneshot::Receiver<T>,
}

impl<T> Answer<T> {
    pub(super) fn new(turn: Option<Turn>, receiver: oneshot::Receiver<T>) -> Self {
        Self { turn, receiver }
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.turn.take_if(|turn| current_runtime() != Some(turn.driver.runtime));
        if let Some(mut turn) = self.turn.take() {
            turn.wake_former();
            turn.driver.poll(Some(turn.id), context.waker());
            // The receiver has no waker meanwhile. Otherwise the answer would wake the task that
            // sends it, which then runs once more.
            match self.receiver.try_recv() {
                Err(TryRecvError::Empty) => {
                    if turn.wait() {
                        self.turn = Some(turn);
                        return Poll::Pending;
                    }
                }
                answer => return Poll::Ready(answer.map_err(|_| Ended)),
            }
        }
        Pin::new(&mut self.receiver).poll(context).map_err(|_| Ended)
    }
}
